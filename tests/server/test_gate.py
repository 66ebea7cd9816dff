"""What arrives at the admin address gets its share of the loop's time and no more, and ends in time.

The rests of the pacer end when a test says so: between two of them a crowd of connections can be counted to get one
piece of work done, whatever it sends.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, cast

import pytest

from statestored import gate as gate_module
from statestored.gate import (
    ACCEPTED_AT_ONCE,
    MAX_RECEIVING,
    MAX_RESPONDING,
    READ_SIZE,
    READING_LOOKS,
    REQUEST_LOOKS,
    Gate,
)
from statestored.pacer import Pacer
from statestored.timeouts import Dropped
from tests.server.fakes import some_turns
from tests.server.waiting import eventually

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 2**23  # bytes; more than the system takes for a client that does not read


class Handler(asyncio.Protocol):
    """Stands for the HTTP library's: answers `size` bytes, and ends the connection unless it `lasts`."""

    def __init__(self, served: "Served") -> None:
        self.served = served

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        served = self.served
        served.requests.append(data)
        served.handlers.append(self)
        if served.size:
            self.transport.write(b"x" * served.size)
        if not served.lasts:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self.served.lost += 1


class Served:
    """A gate in front of `Handler`s, and its clients."""

    def __init__(self) -> None:
        self.size, self.lasts = 2, False
        self.requests: list[bytes] = []
        self.handlers: list[Handler] = []
        self.lost = 0
        self.dropped: Counter[Dropped] = Counter()
        self.reasons: list[str] = []
        self.faults: list[Exception] = []
        self.rests = 0
        self._holding = False
        self._rests_over = asyncio.Semaphore(0)
        self._clients = ExitStack()
        self.gate = Gate(lambda: Handler(self), self._note_dropped, Pacer(self.faults.append, sleep=self._rest))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.gate.open([self._listening])

    def connect(self) -> socket.socket:
        sock = self._clients.enter_context(socket.create_connection(self._listening.getsockname(), 10))
        sock.setblocking(False)
        return sock

    def send(self, data: bytes) -> socket.socket:
        """As much of it as the system takes, on a connection of its own."""
        sock = self.connect()
        sock.send(data)
        return sock

    def hold(self) -> None:
        """From now on a rest lasts until `release` or `step`."""
        self._holding = True

    def release(self) -> None:
        self._holding = False
        self._rests_over.release()

    async def step(self) -> None:
        """End the rest; the next piece runs, and its rest begins."""
        rests = self.rests
        self._rests_over.release()
        await eventually(lambda: self.rests > rests)

    def look(self, times: int) -> None:
        """So many seconds pass."""
        for _ in range(times):
            self.gate._watch.tick()

    async def close(self) -> None:
        await self.gate.close()
        self._clients.close()

    async def _rest(self, _seconds: float) -> None:
        self.rests += 1
        await asyncio.sleep(0)
        if self._holding:
            await self._rests_over.acquire()

    def _note_dropped(self, why: Dropped, reason: str) -> None:
        self.dropped[why] += 1
        self.reasons.append(reason)


@asynccontextmanager
async def serving(*, size: int = 2, lasts: bool = False) -> AsyncIterator[Served]:
    served = Served()
    served.size, served.lasts = size, lasts
    try:
        yield served
    finally:
        served.release()
        await served.close()
    assert served.faults == []


async def read(sock: socket.socket) -> bytes:
    """All that it is sent until it is closed."""
    loop, received = asyncio.get_running_loop(), bytearray()
    try:
        while chunk := await loop.sock_recv(sock, 65536):
            received += chunk
    except ConnectionError:
        pass
    return bytes(received)


# One request a connection


@pytest.mark.parametrize("request_", [GET, b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"])
async def test_a_request_is_handed_over_as_a_whole(request_: bytes) -> None:
    async with serving() as served:
        assert await read(served.send(request_)) == b"xx"
        slow = served.connect()
        for at in range(len(request_)):
            slow.send(request_[at : at + 1])
            await some_turns()
        assert await read(slow) == b"xx"
        assert served.requests == [request_] * 2
        assert served.dropped == {}


async def test_nothing_is_read_behind_a_request() -> None:
    """A client that pipelines is answered once, and may send as long as it likes to nobody."""
    async with serving(lasts=True) as served:
        flooding = served.send(GET)
        await eventually(lambda: served.handlers)
        served.handlers[0].transport.resume_reading()  # as the HTTP library does now and then
        full = False
        for _ in range(1000):
            try:
                flooding.send(GET * 10_000)
                full = False
            except BlockingIOError:
                await some_turns()
                full = True
        assert full, "the system keeps all that it can keep"
        assert served.requests == [GET]


async def test_a_refused_request_is_answered_and_its_connection_closed() -> None:
    async with serving() as served:
        endless = served.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_000)
        await eventually(lambda: served.dropped)
        served.look(3)
        assert (await read(endless)).startswith(b"HTTP/1.1 411 ")
        assert served.dropped == {Dropped.GARBAGE: 1}
        assert served.reasons == ["admin address: a body needs a Content-Length"]
        assert served.requests == []


async def test_a_client_that_waits_with_its_body_is_asked_for_it() -> None:
    async with serving() as served:
        client = served.send(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        assert await asyncio.get_running_loop().sock_recv(client, 100) == gate_module.CONTINUE
        client.send(b"x")
        assert await read(client) == b"xx"


# The share of the loop's time


async def test_while_the_pacer_rests_nothing_is_accepted_read_or_answered() -> None:
    """Whatever a crowd sends, a rest is followed by one piece of work."""
    async with serving(lasts=True) as served:
        served.hold()
        first = served.send(GET)
        await eventually(lambda: served.rests)  # it was accepted and read; now there is a rest
        crowd = [served.send(GET * 1000) for _ in range(8)]
        rests = served.rests
        for _ in range(10):
            await some_turns()
        assert served.requests == []
        assert served.rests == rests
        await served.step()  # the first is answered, or the others are accepted
        answered = len(served.requests)
        while answered < 9:
            await served.step()
            assert len(served.requests) - answered <= 1
            answered = len(served.requests)
        assert served.rests <= 12
        assert first in await ready([first, *crowd])


async def test_of_a_flood_of_connections_few_are_accepted_at_once() -> None:
    async with serving() as served:
        served.hold()
        for _ in range(3 * ACCEPTED_AT_ONCE):
            served.connect()
        await eventually(lambda: served.rests)
        for pieces in (1, 2, 3):
            assert len(served.gate._receiving) == pieces * ACCEPTED_AT_ONCE
            if pieces < 3:
                await served.step()


async def ready(socks: list[socket.socket]) -> list[socket.socket]:
    return [sock for sock in socks if await asyncio.get_running_loop().sock_recv(sock, 2) == b"xx"]


async def test_of_a_connection_little_is_read_at_once() -> None:
    async with serving() as served:
        served.hold()
        served.send(b"GET /" + b"a" * 20_000)
        await eventually(lambda: served.rests)
        (receiving,) = served.gate._receiving
        for pieces in range(1, 4):
            assert len(receiving.request.data) == pieces * READ_SIZE
            await served.step()


async def test_a_fast_peer_gets_no_more_turns_than_a_slow_one() -> None:
    async with serving() as served:
        served.hold()
        head = b"GET /" + b"a" * 6000
        flooding = served.send(head)
        await eventually(lambda: served.rests)
        slow = served.send(b"GET / HTTP/1.1\r\n")
        await served.step()
        slow.send(b"\r\n")
        while not served.requests:
            await served.step()
            (flood,) = [one for one in served.gate._receiving if len(one.request.data) > 100] or [None]
            assert flood is None or len(flood.request.data) <= served.rests * READ_SIZE
        assert served.rests <= 7
        assert await read(slow) == b"xx"
        flooding.close()


# What takes too long


async def test_a_request_that_does_not_come_ends_its_connection() -> None:
    async with serving() as served:
        crowd = [served.send(data) for data in (b"", b"G", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")]
        await eventually(lambda: len(served.gate._receiving) == len(crowd))
        served.look(REQUEST_LOOKS)
        assert len(served.gate._receiving) == len(crowd)
        served.look(1)
        assert [await read(sock) for sock in crowd] == [b""] * 3
        assert served.dropped == {Dropped.UNFINISHED: 3}


async def test_a_response_that_is_not_read_ends_its_connection() -> None:
    async with serving(size=LARGE) as served:
        served.send(GET)
        await eventually(lambda: served.requests)
        served.look(READING_LOOKS)
        assert served.dropped == {}
        served.look(1)
        assert served.dropped == {Dropped.NOT_READING: 1}
        await eventually(lambda: served.lost)


async def test_a_response_that_is_read_slowly_goes_on() -> None:
    async with serving(size=LARGE) as served:
        client = served.send(GET)
        received, loop = 0, asyncio.get_running_loop()
        assert LARGE // 2**18 > 2 * READING_LOOKS
        while received < LARGE:
            chunk = await loop.sock_recv(client, 2**18)
            received += len(chunk)
            await some_turns()
            served.look(1)
            assert chunk
        assert served.dropped == {}


async def test_a_response_may_last() -> None:
    """As a stream of events does, of which nothing is sent for a while."""
    async with serving(lasts=True) as served:
        client = served.send(GET)
        assert await ready([client]) == [client]
        served.look(1000)
        served.handlers[0].transport.write(b"xx")
        assert await ready([client]) == [client]
        assert served.dropped == {}


async def test_a_client_that_hangs_up_is_forgotten() -> None:
    async with serving() as served:
        for data in (b"", b"GET / HTTP"):
            client = served.send(data)
            await eventually(lambda: served.gate._receiving)
            client.close()
            await eventually(lambda: not served.gate._receiving)
        assert served.dropped == {}


# Too many


async def test_for_one_more_connection_the_oldest_without_a_request_goes() -> None:
    async with serving() as served:
        crowd = [served.send(b"GET") for _ in range(MAX_RECEIVING + 3)]
        await eventually(lambda: served.dropped[Dropped.TOO_MANY_ADMIN] == 3)
        assert [await read(sock) for sock in crowd[:3]] == [b""] * 3
        assert await read(served.send(GET)) == b"xx"


async def test_a_crowd_without_requests_ends_no_response() -> None:
    async with serving(lasts=True) as served:
        lasting = [served.send(GET) for _ in range(6)]
        assert await ready(lasting) == lasting
        for _ in range(2 * MAX_RECEIVING):
            served.send(b"GET")
        await eventually(lambda: served.dropped[Dropped.TOO_MANY_ADMIN] == MAX_RECEIVING)
        for handler in served.handlers:
            handler.transport.write(b"xx")
        assert await ready(lasting) == lasting


async def test_for_one_more_response_the_oldest_goes() -> None:
    async with serving(lasts=True) as served:
        for number in range(MAX_RESPONDING + 2):
            served.send(GET)
            await eventually(lambda number=number: len(served.requests) == number + 1)  # type: ignore[misc]
        await eventually(lambda: served.lost == 2)
        assert served.dropped == {Dropped.TOO_MANY_ADMIN: 2}


async def test_an_error_while_accepting_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """L4: all files that may be open are, for a while."""
    monkeypatch.setattr(gate_module, "ACCEPT_RETRY_SECONDS", 0.001)
    failures = [OSError(24, "Too many open files")] * 3

    class Listening:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def accept(self) -> Any:
            if failures:
                raise failures.pop()
            return self._sock.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

    async with serving() as served:
        other = socket.create_server(("127.0.0.1", 0))
        served.gate._listening.append(other)
        served.gate._await_connection(Listening(other))  # type: ignore[arg-type]
        with socket.create_connection(other.getsockname(), 10) as client:
            client.setblocking(False)
            client.send(GET)
            assert await read(client) == b"xx"
        assert failures == []


# The end


@pytest.mark.parametrize("data", [b"", b"GET /", GET * 1000, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"])
@pytest.mark.parametrize("size", [0, LARGE])
async def test_closing_waits_for_nobody(data: bytes, size: int) -> None:
    async with serving(size=size, lasts=True) as served:
        client = served.send(data)
        await eventually(lambda: served.gate._receiving or served.handlers)
        await some_turns()
        async with asyncio.timeout(5):
            await served.gate.close()
        assert len(served.gate._receiving) == len(served.gate._responding) == 0
        assert served.lost == len(served.handlers)
        await read(client)


async def test_a_handler_that_fails_ends_its_connection_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:
        with monkeypatch.context() as patch:
            patch.setattr(Handler, "data_received", lambda *_: 1 / 0)
            assert await read(served.send(GET)) == b""
        assert await read(served.send(GET)) == b"xx"
        assert [type(fault) for fault in served.faults] == [ZeroDivisionError]
        served.faults.clear()
