"""Stand-ins for the neighbours of what is tested: an engine without files, one that answers later, a transport."""

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from statestored.commands import Service
from statestored.datadir import DataDirectory
from statestored.engines.base import Counts, Filter, Page, Sender
from statestored.engines.embedded import EmbeddedEngine, SnapshotSchedule
from statestored.session import Session, Sessions
from tests.server.rpc import messages

NEVER = SnapshotSchedule(interval=0, changes=0)
STORE_ID = "7d1c6f0e-0d6a-4b1e-9f4c-2f8e6a1b3c5d"


def engine_without_files(max_namespaces: int = 1000) -> EmbeddedEngine:
    """Holds states as long as nobody opens it."""
    return EmbeddedEngine(DataDirectory(Path("/nowhere")), NEVER, max_namespaces)


def make_service(engine: Any = None, **settings: Any) -> Service:
    return Service(engine or engine_without_files(), store_id=STORE_ID, **settings)


class LaterEngine:
    """One space, which answers when the test says so."""

    name = "later"
    bulk_is_atomic = False

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answers: list[Future[Any]] = []  # in the order of `asked`

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def space(self, _name: bytes) -> "LaterEngine":
        return self

    def info(self) -> dict[str, Any]:
        return {}

    def get(self, module: bytes, sender: Sender) -> Future[bytes]:
        return self._later("get", module, sender)

    def set(self, module: bytes, sender: Sender, state: bytes) -> Future[None]:
        return self._later("set", module, sender, state)

    def set_all(self, sender: Sender, state: bytes) -> Future[int]:
        return self._later("set_all", sender, state)

    def compare_and_set(
        self, module: bytes, sender: Sender, expected: bytes, state: bytes
    ) -> Future[tuple[bool, bytes]]:
        return self._later("compare_and_set", module, sender, expected, state)

    def get_many(self, pairs: Sequence[tuple[bytes, Sender]]) -> Future[list[bytes]]:
        return self._later("get_many", pairs)

    def set_many(self, triples: Sequence[tuple[bytes, Sender, bytes]]) -> Future[None]:
        return self._later("set_many", triples)

    def scan(self, cursor: bytes | None, wanted: Filter) -> Future[Page]:
        return self._later("scan", cursor, wanted)

    def count(self, module: bytes | None, state: bytes | None) -> Future[Counts]:
        return self._later("count", module, state)

    def clear(self) -> Future[None]:
        return self._later("clear")

    def _later(self, *asked: Any) -> "Future[Any]":
        self.asked.append(asked)
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]


class Wire(asyncio.Transport):
    """A session's transport, and the client behind it: reads what it is sent when the test says so."""

    def __init__(self, service: Service, *, high_water: int = 65536) -> None:
        super().__init__()
        self._high_water = high_water
        self._unsent = bytearray()
        self._unread = bytearray()
        self._read = bytearray()
        self._is_paused = False
        self._closing = False
        self._is_reading_paused = False
        self.writes = 0
        self.sessions = Sessions()
        self._turns: deque[Callable[[], None]] = deque()
        self.session = Session(service, self.sessions, self._turns.append)
        self.session.connection_made(self)

    # The client's side

    def send(self, *parts: bytes) -> None:
        self._unsent += b"".join(parts)
        self._deliver()

    def ask(self, *parts: bytes) -> list[Any]:
        """What is answered to exactly this."""
        self.read()
        self._read.clear()
        self.send(*parts)
        return self.read()

    def read(self) -> list[Any]:
        """All messages so far; makes room for more of them."""
        while self._unread:
            self._read += self._unread
            self._unread.clear()
            if self._is_paused:
                self._is_paused = False
                self.session.resume_writing()
            self._deliver()
        return messages(bytes(self._read))

    @property
    def unread(self) -> int:
        """Bytes that wait for the client."""
        return len(self._unread)

    def hang_up(self) -> None:
        self._closing = True
        self.session.connection_lost(None)

    def _deliver(self) -> None:
        while (self._unsent and not (self._is_reading_paused or self._closing)) or self._turns:
            if self._turns:
                self._turns.popleft()()
                continue
            buffer = self.session.get_buffer(-1)
            size = min(len(self._unsent), len(buffer))
            buffer[:size] = self._unsent[:size]
            del self._unsent[:size]
            self.session.buffer_updated(size)

    # The session's side

    def write(self, data: Any) -> None:
        self.writes += 1
        self._unread += data
        if len(self._unread) > self._high_water and not self._is_paused:
            self._is_paused = True
            self.session.pause_writing()

    def pause_reading(self) -> None:
        self._is_reading_paused = True

    def resume_reading(self) -> None:
        self._is_reading_paused = False

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = True

    def is_closing(self) -> bool:
        return self._closing
