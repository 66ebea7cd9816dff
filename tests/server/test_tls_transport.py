"""TLS between a socket's transport and a protocol: what passes, what is kept meanwhile, and how it ends."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from statestored import tls as tls_module
from statestored.timeouts import HANDSHAKE, Watch
from statestored.tls import CHUNK_SIZE, ServerTls, TlsFiles
from statestored.tls_transport import FULL_READS, MAX_HANDSHAKE_SIZE, MEMORY, TlsTransport
from tests.certificates import Authority
from tests.server.rpc import request


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls(authority: Authority) -> ServerTls:
    identity = authority.issue("server")
    return ServerTls(TlsFiles(identity.certificate, identity.key))


class Loop:
    """Calls back when it is told to."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def turn(self) -> bool:
        """Returns whether there was anything to do."""
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()
        return bool(soon)


class Socket(asyncio.Transport):
    """The socket's transport. What is written to it stays `unsent` until the test takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent = bytearray()
        self.is_closed = self.is_aborted = self.is_reading_paused = False
        self.writes = 0

    def write(self, data: Any) -> None:
        self.writes += 1
        self.unsent += data

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def pause_reading(self) -> None:
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        self.is_reading_paused = False

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True


class Upper(asyncio.BufferedProtocol):
    """The protocol above. Reads `room` bytes at once."""

    def __init__(self, room: int = 2**14) -> None:
        self.room = memoryview(bytearray(room))
        self.received: list[bytes] = []
        self.has_eof = False
        self.is_lost = False
        self.error: Exception | None = None
        self.pauses = False  # reading, each time that something came
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self.room

    def buffer_updated(self, size: int) -> None:
        self.received.append(bytes(self.room[:size]))
        if self.pauses:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.has_eof = True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost, self.error = True, error


class Peers:
    """A client, and the server's side of its connection."""

    def __init__(self, tls: ServerTls, authority: Authority, *, loop: Loop | None = None, upper: Any = None) -> None:
        self.loop = loop or Loop()
        self.watch = Watch()
        self.socket = Socket()
        self.upper = upper or Upper()
        self.server = TlsTransport(tls, lambda: self.upper, self.watch, self.loop.call_soon)
        context = ssl.create_default_context(cafile=authority.certificate)
        self._to_client, self._to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(self._to_client, self._to_server, server_hostname="localhost")
        self._sent = bytearray()  # by the client, and not read yet
        self.server.connection_made(self.socket)

    def send(self, data: bytes) -> None:
        """Have the client send this as it is, and the server read it as far as it does."""
        self._sent += data
        self.read()

    def read(self) -> None:
        while self._sent and not (self.socket.is_reading_paused or self.socket.is_closed):
            room = self.server.get_buffer(-1)
            size = min(len(room), len(self._sent))
            room[:size] = self._sent[:size]
            del self._sent[:size]
            self.server.buffer_updated(size)

    def encrypt(self, *data: bytes) -> bytes:
        """A record for each."""
        for each in data:
            self.client.write(each)
        return self._to_server.read()

    def shake_hands(self) -> None:
        for _ in range(5):
            try:
                self.client.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            self.send(self._to_server.read())
            while self.loop.turn():
                self.read()
            self.take()
            if done:
                return

    def take(self) -> None:
        """Have the client receive what the server has written."""
        self._to_client.write(self.socket.unsent)
        self.socket.unsent.clear()

    def answers(self) -> bytes:
        """All that the client can decrypt."""
        self.take()
        data = b""
        try:
            while part := self.client.read(2**16):
                data += part
        except ssl.SSLWantReadError:
            pass
        return data


@pytest.fixture
def peers(tls: ServerTls, authority: Authority) -> Peers:
    peers = Peers(tls, authority)
    peers.shake_hands()
    return peers


# What passes


def test_what_is_sent_comes_and_what_is_written_is_received(peers: Peers) -> None:
    peers.send(peers.encrypt(b"ask"))
    peers.server.write(b"answer")
    assert peers.upper.received == [b"ask"]
    assert peers.answers() == b"answer"


def test_the_protocol_is_made_when_the_handshake_is_complete(tls: ServerTls, authority: Authority) -> None:
    peers = Peers(tls, authority)
    assert (peers.upper.transport, tls.under_way) == (None, 1)
    peers.shake_hands()
    assert (peers.upper.transport, tls.under_way, tls.failures) == (peers.server, 0, 0)


def test_what_came_with_the_end_of_the_handshake_is_handed_on(tls: ServerTls, authority: Authority) -> None:
    peers = Peers(tls, authority)
    with pytest.raises(ssl.SSLWantReadError):
        peers.client.do_handshake()
    peers.send(peers._to_server.read())
    peers.take()
    peers.client.do_handshake()
    peers.send(peers.encrypt(b"ask"))
    while peers.loop.turn():
        peers.read()
    assert peers.upper.received == [b"ask"]


def test_records_that_came_together_are_handed_on_together(peers: Peers) -> None:
    peers.send(peers.encrypt(b"one", b"two", b"three"))
    assert peers.upper.received == [b"onetwothree"]


def test_a_record_that_has_come_in_part_waits_for_the_rest(peers: Peers) -> None:
    record = peers.encrypt(b"A" * 16384)
    for start in range(0, len(record) - 1, 1000):
        peers.send(record[start : min(start + 1000, len(record) - 1)])
        while peers.loop.turn():
            peers.read()
    assert peers.upper.received == []
    peers.send(record[-1:])
    assert b"".join(peers.upper.received) == b"A" * 16384


def test_more_than_the_protocol_has_room_for_comes_in_order(tls: ServerTls, authority: Authority) -> None:
    peers = Peers(tls, authority, upper=Upper(room=5))
    peers.shake_hands()
    peers.send(peers.encrypt(b"0123456789", b"abc"))
    assert peers.upper.received == [b"01234", b"56789", b"abc"]


# Flow control, and what is kept


def test_all_that_waits_to_be_sent_is_in_the_transport_of_the_socket(peers: Peers) -> None:
    """There it counts, and nowhere else is a copy that nobody sees."""
    answer = bytes(2**20)
    writes = peers.socket.writes
    peers.server.write(answer)
    assert peers.socket.writes == writes + 1
    assert len(answer) < peers.server.get_write_buffer_size() == len(peers.socket.unsent) < 1.02 * len(answer)
    assert peers.server._outgoing.pending == 0
    assert peers.answers() == answer


def test_nothing_is_handed_on_while_the_protocol_pauses(tls: ServerTls, authority: Authority) -> None:
    peers = Peers(tls, authority, upper=Upper(room=3))
    peers.shake_hands()
    peers.upper.pauses = True
    peers.send(peers.encrypt(b"onetwosix"))
    peers.send(peers.encrypt(b"ten"))
    assert (peers.upper.received, peers.socket.is_reading_paused) == ([b"one"], True)
    for expected in ([b"one", b"two"], [b"one", b"two", b"six"]):
        peers.server.resume_reading()
        assert peers.loop.turn()
        assert (peers.upper.received, peers.socket.is_reading_paused) == (expected, True)
    peers.upper.pauses = False
    peers.server.resume_reading()
    assert len(peers.upper.received) == 3, "not from within the call: the protocol may be at work"
    peers.loop.turn()
    peers.read()
    assert peers.upper.received[3:] == [b"ten"]


def test_who_sends_without_end_is_not_read_from_without_end(peers: Peers) -> None:
    peers.send(peers.encrypt(*[b"A" * 16384] * 10))
    read = sum(map(len, peers.upper.received))
    assert FULL_READS * CHUNK_SIZE - 16384 <= read <= FULL_READS * CHUNK_SIZE
    while peers.loop.turn():
        before = sum(map(len, peers.upper.received))
        peers.read()
        assert sum(map(len, peers.upper.received)) - before <= 2 * FULL_READS * CHUNK_SIZE
    assert b"".join(peers.upper.received) == b"A" * 163840


class WithoutData:
    """Stands for OpenSSL where all records are requests for new keys, which bring no data; Python cannot send those."""

    def __init__(self, peers: Peers) -> None:
        self._incoming = peers.server._incoming
        self.taken = 0
        peers.server._ssl = self  # type: ignore[assignment]

    def pending(self) -> int:
        return 0

    def read(self, _size: int, _room: memoryview) -> int:
        self.taken += len(self._incoming.read())
        raise ssl.SSLWantReadError


def test_what_brings_no_data_is_taken_from_one_connection_in_a_loop_iteration(
    tls: ServerTls, authority: Authority
) -> None:
    """Each KiB of it takes a millisecond."""
    loop = Loop()
    crowd = [Peers(tls, authority, loop=loop) for _ in range(3)]
    for peers in crowd:
        peers.shake_hands()
        peers.send(peers.encrypt(request(1, "ping")))
        loop.turn()
    without = [WithoutData(peers) for peers in crowd]
    for peers in crowd:
        peers.send(bytes(100))
    assert [each.taken for each in without] == [100] * 3, "their last bytes brought data"
    for peers in crowd:
        peers.send(bytes(100))
    for number in range(1, 4):
        assert sum(each.taken for each in without) == 300 + number * 100
        loop.turn()
    assert not any(peers.socket.is_closed for peers in crowd)


def test_who_sends_nothing_that_brings_data_is_closed(peers: Peers) -> None:
    WithoutData(peers)
    for _ in range(6):
        peers.send(bytes(4000))
        while peers.loop.turn():
            peers.read()
    assert peers.socket.is_aborted
    peers.server.connection_lost(None)
    assert isinstance(peers.upper.error, ssl.SSLError)
    assert peers.upper.error.reason == "too much without data"


def test_the_turn_of_a_connection_does_not_end_a_pause_of_its_protocol(tls: ServerTls, authority: Authority) -> None:
    loop = Loop()
    first, second = Peers(tls, authority, loop=loop), Peers(tls, authority, loop=loop)
    for peers in (first, second):
        peers.shake_hands()
    second.upper.pauses = True
    first.send(first.encrypt(b"ask"))
    second.send(second.encrypt(b"ask"))
    assert second.upper.received == []
    for _ in range(5):
        loop.turn()
    assert second.upper.received == [b"ask"]
    assert second.socket.is_reading_paused


def test_the_protocol_is_told_when_to_pause_writing(peers: Peers) -> None:
    told: list[str] = []
    peers.upper.pause_writing = lambda: told.append("pause")
    peers.upper.resume_writing = lambda: told.append("resume")
    peers.server.pause_writing()
    peers.server.resume_writing()
    assert told == ["pause", "resume"]


def test_a_protocol_that_begins_while_writing_is_paused_is_told(tls: ServerTls, authority: Authority) -> None:
    told: list[str] = []
    peers = Peers(tls, authority)
    peers.upper.pause_writing = lambda: told.append("pause")
    peers.server.pause_writing()
    peers.shake_hands()
    assert told == ["pause"]


# Handshakes that are not completed


def test_a_failed_handshake_is_counted_once_and_said_to_both_sides(tls: ServerTls, authority: Authority) -> None:
    peers = Peers(tls, authority)
    client = ssl.create_default_context(cafile=authority.certificate)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # the server has no RSA key
    peers.client = client.wrap_bio(peers._to_client, peers._to_server, server_hostname="localhost")
    with capture_logs() as logs:
        with pytest.raises(ssl.SSLWantReadError):
            peers.client.do_handshake()
        peers.send(peers._to_server.read())
        peers.server.connection_lost(None)
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("a TLS handshake failed", "no shared cipher")]
    assert (tls.failures, tls.under_way, peers.upper.transport) == (1, 0, None)
    peers.take()
    with pytest.raises(ssl.SSLError, match="handshake failure"):
        peers.client.do_handshake()


def test_a_peer_that_hangs_up_is_counted_without_a_line(tls: ServerTls, authority: Authority) -> None:
    peers = Peers(tls, authority)
    with capture_logs() as logs:
        assert not peers.server.eof_received()
        peers.server.connection_lost(None)
    assert (tls.failures, tls.under_way, logs) == (1, 0, [])
    assert not peers.upper.is_lost


def test_a_handshake_has_its_time(tls: ServerTls, authority: Authority) -> None:
    slow, fast = Peers(tls, authority), Peers(tls, authority)
    fast.shake_hands()
    slow.send(b"\x16\x03\x01")
    for peers in (slow, fast):
        for _ in range(HANDSHAKE):
            peers.watch.tick()
        assert not peers.socket.is_closed
    with capture_logs() as logs:
        slow.watch.tick()
        fast.watch.tick()
    assert (slow.socket.is_closed, fast.socket.is_closed) == (True, False)
    assert [entry["reason"] for entry in logs] == ["it was not completed within 5 seconds"]
    assert (tls.failures, tls.under_way) == (1, 0)


def test_the_oldest_makes_room_for_one_too_many(
    tls: ServerTls, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_module, "MAX_HANDSHAKES", 2)
    done = Peers(tls, authority)
    done.shake_hands()
    oldest, *others = [Peers(tls, authority) for _ in range(3)]
    assert [peers.socket.is_closed for peers in (done, oldest, *others)] == [False, True, False, False]
    for peers in others:
        peers.shake_hands()
        assert peers.upper.transport is not None


def test_a_handshake_that_is_too_long_is_ended(tls: ServerTls, authority: Authority) -> None:
    """OpenSSL would keep 130 KiB of a single message."""
    peers = Peers(tls, authority)
    head = b"\x16\x03\x01\x40\x00\x01\x01\xff\xf0\x03\x03"  # a record of 16 KiB, of a message of 131 KB
    with capture_logs() as logs:
        for record in (head + bytes(16384 - 6), *[b"\x16\x03\x01\x40\x00" + bytes(16384)] * 3):
            peers.send(record)
            while peers.loop.turn():
                peers.read()
    assert [entry["reason"] for entry in logs] == [f"it has more than {MAX_HANDSHAKE_SIZE} bytes"]
    assert peers.socket.is_closed
    assert peers.server._handshake_size <= MAX_HANDSHAKE_SIZE + CHUNK_SIZE


def test_one_step_of_a_handshake_is_made_in_a_loop_iteration(tls: ServerTls, authority: Authority) -> None:
    """A thousand clients that connect at once would hold up everybody for a quarter of a second."""
    loop = Loop()
    crowd = [Peers(tls, authority, loop=loop) for _ in range(4)]
    for peers in crowd:
        with pytest.raises(ssl.SSLWantReadError):
            peers.client.do_handshake()
        peers.send(peers._to_server.read())
    for number in range(1, 5):
        assert [bool(peers.socket.unsent) for peers in crowd] == [True] * number + [False] * (4 - number)
        loop.turn()


def test_a_peer_that_has_gone_gets_no_turn(tls: ServerTls, authority: Authority) -> None:
    loop = Loop()
    first, second, third = [Peers(tls, authority, loop=loop) for _ in range(3)]
    for peers in (first, second, third):
        peers.send(b"\x16\x03\x01")
    second.socket.is_closed = True
    third.server.connection_lost(None)
    while loop.turn():
        pass
    assert not hasattr(second.server, "_ssl")
    assert not hasattr(third.server, "_ssl")


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (request(1, "ping"), "a client without TLS came"),
        (b"GET / HTTP/1.1\r\n", "an HTTP request came"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "a PROXY protocol header came"),
        (b"secret", "what came is not TLS"),
    ],
)
def test_what_is_not_tls_is_named(tls: ServerTls, authority: Authority, first: bytes, reason: str) -> None:
    peers = Peers(tls, authority)
    with capture_logs() as logs:
        peers.send(first)
        peers.server.connection_lost(None)
    assert [entry["reason"].startswith(reason) for entry in logs] == [True]
    assert (peers.socket.is_closed, tls.failures) == (True, 1)


# The end


def test_an_end_is_told_and_nothing_is_written_after_it(peers: Peers) -> None:
    peers.server.write(b"last")
    peers.server.close()
    peers.server.write(b"too late")
    peers.server.close()
    assert (peers.socket.is_closed, peers.socket.is_aborted) == (True, False)
    assert peers.answers() == b"last"
    assert peers.client.read() == b"", "the end is one that TLS has told"


def test_the_end_of_the_peer_ends_both_sides(peers: Peers) -> None:
    sent = peers.encrypt(b"ask")
    with pytest.raises(ssl.SSLWantReadError):
        peers.client.unwrap()
    peers.send(sent + peers._to_server.read())
    assert peers.upper.received == [b"ask"]
    assert (peers.upper.has_eof, peers.socket.is_closed, peers.socket.is_aborted) == (True, True, False)


def test_the_loss_of_the_connection_is_told_with_its_error(peers: Peers) -> None:
    error = TimeoutError("timed out")
    peers.server.connection_lost(error)
    assert (peers.upper.is_lost, peers.upper.error) == (True, error)


def test_what_is_no_tls_any_more_aborts_the_connection(peers: Peers) -> None:
    sent = bytearray(peers.encrypt(b"ask"))
    sent[-1] ^= 1
    peers.send(bytes(sent))
    assert (peers.socket.is_aborted, peers.upper.received) == (True, [])
    peers.server.connection_lost(None)
    assert isinstance(peers.upper.error, ssl.SSLError)


def test_nothing_is_handed_on_after_the_protocol_has_closed(peers: Peers) -> None:
    peers.upper.room = memoryview(bytearray(3))
    close = peers.server.close
    peers.upper.buffer_updated = lambda size: (peers.upper.received.append(size), close())
    peers.send(peers.encrypt(b"onetwo"))
    assert peers.upper.received == [3]


def test_the_rest_is_asked_of_the_transport_of_the_socket(peers: Peers) -> None:
    asked: list[Any] = []
    peers.socket.get_extra_info = lambda *about: asked.append(about)  # type: ignore[method-assign]
    peers.socket.set_write_buffer_limits = lambda *about: asked.append(about)  # type: ignore[method-assign]
    peers.server.get_extra_info("peername")
    peers.server.set_write_buffer_limits(16384)
    assert asked == [("peername", None), (16384, None)]
    assert peers.server.get_extra_info("memory") == MEMORY
    assert not peers.server.can_write_eof()
    peers.server.abort()
    assert peers.socket.is_aborted
    assert peers.server.is_closing()
