"""The server and the transports of an event loop. They read and write as those of uvloop do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from tests.simulation.sockets import Socket
from tests.simulation.tcp import os_error

if TYPE_CHECKING:
    from tests.simulation.loop import Loop

READ_SIZE = 256_000  # bytes, for a protocol without a buffer of its own
READS = 32  # of one connection in one iteration, if each fills the buffer
HIGH_WATER = 65536


class Server:
    """What `create_server` returns."""

    def __init__(self, loop: Loop, factory: Callable[[], asyncio.BaseProtocol], sock: Socket) -> None:
        self._loop = loop
        self._factory = factory
        self._socket = sock
        sock.on_connection = self._connection_waits
        for _ in sock.backlog:
            self._connection_waits()

    def close(self) -> None:
        self._socket.close()

    def is_serving(self) -> bool:
        return not self._socket.is_closed

    def _connection_waits(self) -> None:  # in the hub
        self._loop.call_soon_threadsafe(self._accept)

    def _accept(self) -> None:
        if not self._socket.backlog:  # the server was closed meanwhile
            return
        end = self._socket.backlog.popleft()
        accepted = Socket(self._socket.family)
        accepted.attach(end)
        transport = Transport(self._loop, accepted, self._factory())
        self._loop.call_soon(transport.begin)


class Transport(asyncio.Transport):
    """The transport of a connected socket. `begin` calls the protocol's `connection_made`."""

    _get_buffer: Callable[[int], Any] | None  # the method, if the protocol is a BufferedProtocol

    def __init__(self, loop: Loop, sock: Socket, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        assert sock.end is not None
        self._loop = loop
        self._socket = sock
        self._end = sock.end
        self._buffer = bytearray()  # what the system has not taken
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4
        self._is_closing = False
        self._is_loss_due = False  # `_lose` will be called, and nothing that is written is sent any more
        self._is_closed = False
        self._is_reading = False
        self._is_read_due = False
        self._is_protocol_paused = False
        self.set_protocol(protocol)

    def begin(self) -> None:
        if self._socket.is_closed:  # the call of `create_connection` was cancelled
            return
        self._end.on_readable = self._is_readable
        self._end.on_room = self._has_room
        cast(asyncio.Protocol, self._protocol).connection_made(self)
        self.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        match name:
            case "socket":
                return self._socket
            case "peername":
                return self._end.peer.address
            case "sockname":
                return self._end.address
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._get_buffer = protocol.get_buffer if isinstance(protocol, asyncio.BufferedProtocol) else None

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._is_reading = False
        if not self._buffer:
            self._lose_soon(None)

    def abort(self) -> None:
        self._fail(None)

    # Reading

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        if not (self._is_reading or self._is_closing):
            self._is_reading = True
            if self._has_something:
                self._is_readable()

    @property
    def _has_something(self) -> bool:
        end = self._end
        return bool(end.received or end.eof or end.error)

    def _is_readable(self) -> None:  # in the hub, or in the loop
        if not self._is_read_due:
            self._is_read_due = True
            self._loop.call_soon_threadsafe(self._read)

    def _read(self) -> None:
        self._is_read_due = False
        for _ in range(READS):
            if not self._is_reading or not self._read_once():
                break
        if self._is_reading and self._has_something:  # the other connections come first
            self._is_readable()

    def _read_once(self) -> bool:
        """Return whether the buffer was filled, so that there may be more."""
        end = self._end
        buffer = None if self._get_buffer is None else self._get_buffer(-1)
        size = READ_SIZE if buffer is None else len(buffer)
        if not end.received:
            if end.error:
                self._fail(os_error(end.error))
            elif end.eof:
                self._is_reading = False
                if not cast(asyncio.Protocol, self._protocol).eof_received():
                    self.close()
            return False
        data = end.read(size)
        if buffer is None:
            cast(asyncio.Protocol, self._protocol).data_received(data)
        else:
            buffer[: len(data)] = data
            cast(asyncio.BufferedProtocol, self._protocol).buffer_updated(len(data))
        return len(data) == size

    # Writing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        self._high, self._low = high, high // 4 if low is None else low
        self._pause_protocol_if_full()

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closed:
            raise RuntimeError(f"unable to perform operation on {self!r}; the handler is closed")
        if self._is_loss_due or not data:
            return
        self._buffer += data
        if len(self._buffer) == len(data):  # else the system takes nothing now
            self._send()
        self._pause_protocol_if_full()

    def _send(self) -> None:
        """Give the system as much as it takes."""
        end = self._end
        if end.error:
            self._buffer.clear()
            self._fail(os_error(end.error))
            return
        room = end.room
        if room > 0:
            end.send(bytes(self._buffer[:room]))
            del self._buffer[:room]
        end.needs_room = bool(self._buffer)

    def _has_room(self) -> None:  # in the hub
        self._loop.call_soon_threadsafe(self._send_rest)

    def _send_rest(self) -> None:
        if self._is_closed or not self._buffer:
            return
        self._send()
        if self._is_protocol_paused and len(self._buffer) <= self._low:
            self._is_protocol_paused = False
            cast(asyncio.Protocol, self._protocol).resume_writing()
        if self._is_closing and not self._buffer:
            self._lose_soon(None)

    def _pause_protocol_if_full(self) -> None:
        if len(self._buffer) > self._high and not self._is_protocol_paused:
            self._is_protocol_paused = True
            cast(asyncio.Protocol, self._protocol).pause_writing()

    # The end

    def _fail(self, error: OSError | None) -> None:
        """Close it without waiting until everything is sent."""
        self._is_closing = True
        self._is_reading = False
        self._lose_soon(error)

    def _lose_soon(self, error: OSError | None) -> None:
        if not self._is_loss_due:
            self._is_loss_due = True
            self._loop.call_soon(self._lose, error)

    def _lose(self, error: OSError | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._is_closed = True
            self._buffer.clear()
            self._socket.close()
