"""A network that fails on command: a TCP proxy on the loopback address, in a thread of its own.

Each command has taken effect when it returns. What is held back is late, not lost, as in a network that comes back:
it goes through when the proxy is healed, even where its sender has gone by then.
"""

import asyncio
import socket
import struct
import threading
from asyncio import Task
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, Self, TypeVar

from statestore.address import TcpAddress, parse_address
from tests.ports import CAN_SHARE, address_of, reserve_port

PATIENCE = 20.0  # seconds after which a test has hung
READ_SIZE = 65536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds

T = TypeVar("T")


class Direction(Enum):
    REQUESTS = "requests"  # from the client to the daemon
    REPLIES = "replies"


BOTH = tuple(Direction)


@dataclass
class Cut:
    """After `left` more bytes in its direction, in which all connections are counted together."""

    direction: Direction
    left: int
    reset: bool
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        assert self.done.wait(PATIENCE), f"not so many {self.direction.value} came"


class Proxy:
    """Between clients and the daemon at `target`, which may be set to another address: new connections go there."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.connections = 0  # accepted so far
        self.came: Counter[Direction] = Counter()  # bytes
        self.passed: Counter[Direction] = Counter()  # and those of them that are through
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-proxy")
        self._port = reserve_port()
        self.address = address_of(self._port)
        self._listener: socket.socket | None = None
        self._accepting: Task[None] | None = None
        self._links: dict[Task[None], _Link] = {}
        self._open = {direction: asyncio.Event() for direction in BOTH}
        self._delay = 0.0
        self._piece = READ_SIZE
        self._cut: Cut | None = None

    # Commands

    def hold(self, *directions: Direction) -> None:
        """Nothing goes through: a black hole; with one direction only, half-open connections. They are accepted."""
        self._do(lambda: [self._open[direction].clear() for direction in directions or BOTH])

    def delay(self, seconds: float) -> None:
        """Whatever comes goes on so much later."""
        self._delay = seconds

    def drip(self) -> None:
        """A byte at a time, each a packet of its own; after the delay, if there is one."""
        self._piece = 1

    def heal(self) -> None:
        """Everything goes through as it comes; what was held first. A cut that was ordered is not taken back."""
        self._delay, self._piece = 0.0, READ_SIZE
        self._do(lambda: [gate.set() for gate in self._open.values()])

    def cut(self, *, reset: bool = False) -> None:
        """All connections that there are, on both sides; with a FIN, or with a RST."""
        self._run(self._cut_all(reset=reset))

    def hang_up(self) -> None:
        """The clients are told that their connections have ended; what they have sent still goes through."""
        self._do(lambda: [link.hang_up() for link in self._links.values()])

    def cut_after(self, direction: Direction, count: int, *, reset: bool = False) -> Cut:
        """So many bytes more go through; where the next would, its connection is cut. Then this is over.

        With REPLIES and 0 a request is executed, and whoever sent it never hears of it.
        """
        self._cut = Cut(direction, count, reset)
        return self._cut

    def stop_accepting(self) -> None:
        """New connections are refused."""
        self._run(self._stop_accepting())

    def accept_again(self) -> None:
        """At the same address."""
        self._run(self._listen())

    # Its life

    def __enter__(self) -> Self:
        self._thread.start()
        self.heal()
        self._run(self._listen())
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop_accepting()
        self.cut(reset=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
        self._port.close()

    async def _listen(self) -> None:
        assert self._listener is None
        if not CAN_SHARE:
            self._port.close()
        self._listener = socket.create_server(_host_and_port(self.address))
        self._listener.setblocking(False)
        self._accepting = self._loop.create_task(self._accept(self._listener))

    async def _stop_accepting(self) -> None:
        if self._listener is not None and self._accepting is not None:
            await _end(self._accepting)
            self._listener.close()
            self._listener = None

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await self._loop.sock_accept(listener)
            self.connections += 1
            link = _Link(client)
            task = self._loop.create_task(self._relay(link))
            self._links[task] = link
            task.add_done_callback(self._links.pop)

    async def _relay(self, link: "_Link") -> None:
        try:
            await self._loop.sock_connect(link.daemon, _host_and_port(self.target))
            async with asyncio.TaskGroup() as pumps:
                for direction, source, sink in link.directions():
                    pumps.create_task(self._pump(link, direction, source, sink))
        except* OSError:  # one side has reset it, or there is nobody
            link.reset = True
        except* _CutNow:
            pass
        finally:
            link.close()

    async def _pump(self, link: "_Link", direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        gate = self._open[direction]
        await gate.wait()
        while data := await self._loop.sock_recv(source, READ_SIZE):
            self.came[direction] += len(data)
            for piece in _pieces(data, self._piece):
                await asyncio.sleep(self._delay)
                await gate.wait()
                await self._pass(link, direction, piece, sink)
        await gate.wait()
        sink.shutdown(socket.SHUT_WR)

    async def _pass(self, link: "_Link", direction: Direction, data: bytes, sink: socket.socket) -> None:
        cut = self._cut
        if cut is None or cut.direction is not direction:
            allowed = data
        else:
            allowed, cut.left = data[: cut.left], max(0, cut.left - len(data))
        await self._loop.sock_sendall(sink, allowed)
        self.passed[direction] += len(allowed)
        if cut is not None and len(allowed) < len(data):
            self._cut, link.reset = None, cut.reset
            link.close()
            cut.done.set()
            raise _CutNow

    async def _cut_all(self, *, reset: bool) -> None:
        for task, link in list(self._links.items()):
            link.reset = reset
            await _end(task)

    def _do(self, change: Callable[[], T]) -> T:
        async def in_loop() -> T:
            return change()

        return self._run(in_loop())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)


class _CutNow(Exception):
    """A cut that was ordered."""


class _Link:
    """Two connections: the client's, and ours to the daemon."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.daemon = socket.socket()
        self.reset = False  # how it ends
        for sock in (self.client, self.daemon):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def directions(self) -> Iterator[tuple[Direction, socket.socket, socket.socket]]:
        yield Direction.REQUESTS, self.client, self.daemon
        yield Direction.REPLIES, self.daemon, self.client

    def hang_up(self) -> None:
        with suppress(OSError):  # the client has gone
            self.client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for sock in (self.client, self.daemon):
            if self.reset:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            else:
                _drain(sock)
            sock.close()


def _drain(sock: socket.socket) -> None:
    """What is unread would make a reset of the close."""
    with suppress(OSError):
        while sock.recv(READ_SIZE):
            pass


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _host_and_port(address: str) -> tuple[str, int]:
    parsed = parse_address(address)
    assert isinstance(parsed, TcpAddress)
    return parsed.host, parsed.port


async def _end(task: "Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])
