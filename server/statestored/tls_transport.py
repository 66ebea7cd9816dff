"""TLS for one connection: between the transport of a socket and the protocol above it.

asyncio and uvloop have such a layer, but nobody can see or bound what theirs keeps: it encrypts an answer as a whole,
into a buffer that never shrinks, and what the transport of the socket has not sent yet counts as sent. Here all that
waits to be sent is in that transport, so it counts in the same way as without TLS.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from statestored.foreign_protocols import instead_of_tls
from statestored.heavy import CallSoon
from statestored.timeouts import HANDSHAKE, Watch
from statestored.tls import CHUNK_SIZE, ServerTls, reason_of

FULL_READS = 4  # of one connection, then the others have their turn; so 16 KiB, as without TLS
# Before the handshake is complete; certificates of a client and its authorities have some KiB.
MAX_HANDSHAKE_SIZE = 2**15
# Bytes taken one after the other that carry no data: more than the largest record, 18 KiB, of which a part is missing.
MAX_WITHOUT_DATA = 20 * 2**10
# Bytes that OpenSSL keeps for a connection in the middle of large requests and answers: measured. An idle one: 19 KiB.
MEMORY = 48 * 2**10
HANDSHAKE_RECORD = b"\x16"  # the first byte of a TLS client


class TlsTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """The protocol of a socket's transport, and the transport of the protocol that `make_protocol` makes.

    That protocol is made when the handshake is complete. As a transport this follows asyncio's rules; neither side of
    a TLS connection can end alone.
    """

    _transport: asyncio.Transport
    _ssl: ssl.SSLObject  # made for the first step of the handshake: many a peer connects and says nothing

    def __init__(
        self, tls: ServerTls, make_protocol: Callable[[], asyncio.BufferedProtocol], watch: Watch, call_soon: CallSoon
    ) -> None:
        super().__init__()
        self._tls = tls
        self._make_protocol = make_protocol
        self._watch = watch
        self._call_soon = call_soon
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._protocol: asyncio.BufferedProtocol | None = None
        self._has_begun = False  # the handshake's first step was made
        self._handshake_size = 0  # bytes received of it
        self._is_trusted = False  # to send what is worth the work
        self._awaits_turn = False
        self._without_data = 0  # bytes taken since the last ones that carried data
        self._is_reading_paused = False  # by the protocol
        self._is_writing_paused = False
        self._full_reads = 0  # one after the other
        self._connected = 0  # when, in the watch's time
        self._error: ssl.SSLError | None = None  # why the connection is aborted

    # The socket's protocol: called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connected = self._watch.add(self)
        self._tls.begin_handshake(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._watch.discard(self)
        self._tls.turns.forget(self)
        if self._tls.end_handshake(self):
            self._tls.failures += 1  # without a line in the log: the probes of load balancers connect and hang up
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connection_lost(error or self._error)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._tls.receive_buffer

    def buffer_updated(self, size: int) -> None:
        received = self._tls.receive_buffer[:size]
        if self._protocol is None and not self._is_handshake(received):
            return
        self._incoming.write(received)
        if self._is_trusted or self._tls.turns.take(self._call_soon):
            self._take_step()
        else:
            self._awaits_turn = True
            self._transport.pause_reading()
            self._tls.turns.wait(self)
        self._full_reads = self._full_reads + 1 if size == CHUNK_SIZE else 0
        if self._full_reads == FULL_READS:
            # There is more, and the loop would read all of it before the others have their turn.
            self._transport.pause_reading()
            self._call_soon(self._read_on)

    def have_turn(self) -> None:
        """Called in the loop iteration in which no other connection takes such a step."""
        self._awaits_turn = False
        if not self._transport.is_closing():
            self._take_step()
            self._call_soon(self._read_on)

    def _take_step(self) -> None:
        """Continue the handshake, or hand on what came.

        What carries little costs much: a step of a handshake some tenths of a millisecond, and so does each KiB of
        requests for new keys. So that is done once in a loop iteration, for one of those connections of which the last
        bytes were not mostly data; and one that sends nothing else is closed.
        """
        if self._protocol is None:
            self._continue_handshake()
            self._decrypt()
        else:
            self._hand_on()

    def _hand_on(self) -> None:
        """Decrypt what has come, and judge by it what the connection sends: what waits for the protocol is no sign."""
        before = self._incoming.pending
        handed_on = self._decrypt()
        taken = before - self._incoming.pending
        self._is_trusted = handed_on * 8 >= taken
        self._without_data = 0 if handed_on else self._without_data + taken
        if self._without_data > MAX_WITHOUT_DATA:
            error = ssl.SSLError(f"{self._without_data} bytes without data")
            error.reason = "too much without data"
            self._break(error)

    def eof_received(self) -> bool:
        """Close the connection: what ends without TLS having said so is a connection that was cut off."""
        return False

    def pause_writing(self) -> None:
        self._is_writing_paused = True
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        if self._protocol is not None:
            self._protocol.resume_writing()

    # The handshake

    def look(self, now: int) -> bool:
        """Called once a second: end a handshake that takes too long. Returns whether it still goes on."""
        if not self._tls.is_under_way(self):
            return False
        if now - self._connected <= HANDSHAKE:
            return True
        self.fail(f"it was not completed within {HANDSHAKE} seconds")
        return False

    def fail(self, reason: str) -> None:
        """End the handshake, and the connection."""
        if self._tls.end_handshake(self):
            self._tls.failed(reason)
        if self._transport.get_write_buffer_size():
            self._transport.abort()  # it is not worth waiting for a peer that does not read
        else:
            self._transport.close()

    def _is_handshake(self, received: memoryview) -> bool:
        """Return whether it can be a part of one; else the connection ends."""
        if not self._handshake_size and received[:1] != HANDSHAKE_RECORD:
            self.fail(instead_of_tls(received) or "what came is not TLS")
        self._handshake_size += len(received)
        if self._handshake_size > MAX_HANDSHAKE_SIZE:
            self.fail(f"it has more than {MAX_HANDSHAKE_SIZE} bytes")
        return not self._transport.is_closing()

    def _continue_handshake(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._ssl = self._tls.wrap(self._incoming, self._outgoing)
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._send_outgoing()
            return
        except ssl.SSLError as error:
            self._send_outgoing()  # the alert that tells the client why
            self.fail(reason_of(error))
            return
        self._tls.end_handshake(self)
        self._send_outgoing()
        self._protocol = self._make_protocol()
        self._protocol.connection_made(self)
        if self._is_writing_paused:
            self._protocol.pause_writing()

    # What comes

    def _decrypt(self) -> int:
        """Hand on what has come, but for a record of which a part is missing. Returns how many bytes of data."""
        if (protocol := self._protocol) is None:
            return 0
        handed_on = 0
        incoming, pending = self._incoming, self._ssl.pending
        read: Callable[[int, memoryview], int] = self._ssl.read  # type: ignore[assignment]  # as it is with a buffer
        while (incoming.pending or pending()) and not (self._is_reading_paused or self._transport.is_closing()):
            room = cast(memoryview, protocol.get_buffer(-1))
            size, total = 1, 0
            try:
                # Records that came together are handed on together: most of the work is done once for all of them.
                while size and total < len(room) and (incoming.pending or pending()):
                    size = read(len(room) - total, room[total:])
                    total += size
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                self._break(error)
                return 0
            handed_on += total
            if self._outgoing.pending:
                self._send_outgoing()  # what TLS itself answers, for example to a request for new keys
            if total:
                protocol.buffer_updated(total)
            if not size:  # the peer has ended it
                protocol.eof_received()
                self.close()
        return handed_on

    def _read_on(self) -> None:
        """Hand on what came before a pause, then read on."""
        self._full_reads = 0
        if self._protocol is not None:
            self._hand_on()
        if not (self._is_reading_paused or self._awaits_turn):
            self._transport.resume_reading()

    def _break(self, error: ssl.SSLError) -> None:
        self._error = error
        self._transport.abort()

    # The protocol's transport: called by the protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "memory":  # bytes that are kept besides those that wait to be sent
            return MEMORY
        return self._transport.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.BufferedProtocol, protocol)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        """Tell the peer that this is the end, and close when all that was written has left."""
        if self._transport.is_closing():
            return
        with suppress(ssl.SSLError):  # which says that the peer has not answered to it yet
            self._ssl.unwrap()
        self._send_outgoing()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def pause_reading(self) -> None:
        self._is_reading_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._is_reading_paused:
            self._is_reading_paused = False
            self._call_soon(self._read_on)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._transport.is_closing():
            return
        try:
            if len(data) <= CHUNK_SIZE:
                self._ssl.write(data)
                self._transport.write(self._outgoing.read())
            else:
                self._transport.write(b"".join(self._encrypt_in_chunks(memoryview(data))))
        except ssl.SSLError as error:
            self._break(error)

    def _encrypt_in_chunks(self, data: memoryview) -> list[bytes]:
        encrypted = []
        for start in range(0, len(data), CHUNK_SIZE):
            self._ssl.write(data[start : start + CHUNK_SIZE])
            encrypted.append(self._outgoing.read())
        return encrypted

    def _send_outgoing(self) -> None:
        if data := self._outgoing.read():
            self._transport.write(data)
