"""Stand-ins for the neighbours of what is tested: an engine without files, one that answers later, a transport."""

import asyncio
import errno
import threading
from asyncio import Future
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Self, TypeVar, cast

import pytest

from statestore.errors import StateStoreError, Unavailable
from statestored import files
from statestored.access import Access
from statestored.commands import Service
from statestored.connection import Connection, Connections
from statestored.datadir import DataDirectory
from statestored.engines import commits
from statestored.engines.base import Commit, Counts, Filter, Held, Number, Page, Reply, Sender
from statestored.engines.commits import Fsync, GroupCommit
from statestored.engines.embedded import EmbeddedEngine
from statestored.engines.quota import Quota
from statestored.engines.saver import Saver, SnapshotSchedule
from statestored.engines.states import MS_A_DAY, Effect, States
from statestored.errors import DiskFailed, NoRoom
from statestored.intake import Intake
from tests.server.rpc import messages
from tests.server.waiting import PATIENCE, eventually

T = TypeVar("T")
NEVER = SnapshotSchedule(interval=0, journal_size=0)
STORE_ID = "7d1c6f0e-0d6a-4b1e-9f4c-2f8e6a1b3c5d"


class SettledAtOnce:
    """Commits to states that no journal follows."""

    refused_because = ""

    def __init__(self, states: States) -> None:
        self._states = states

    def check(self) -> None:
        """There is always room."""

    def commit(self, effects: Sequence[Effect]) -> None:
        self._states.apply(effects, commits.now() // MS_A_DAY)
        self._states.cut()
        self._states.settle()


def engine_without_files(max_namespaces: int = 1000, quota: Quota = Quota()) -> EmbeddedEngine:  # noqa: B008
    """Holds states, and answers at once, as long as nobody opens it."""
    engine = EmbeddedEngine(DataDirectory(Path("/nowhere")), Fsync.NEVER, NEVER, max_namespaces, quota)
    engine.commits = cast(GroupCommit, SettledAtOnce(engine.states))
    nothing: Any = SimpleNamespace(snapshots=list, size=0)
    engine.saver = Saver(nothing, engine.states, nothing, nothing, NEVER)
    return engine


def make_service(
    engine: Any = None, *, token: str | None = None, tokens: Path | None = None, **settings: Any
) -> Service:
    """Where there is a `token`, it may do everything; `tokens` is a file of them."""
    return Service(engine or engine_without_files(), store_id=STORE_ID, access=Access(tokens, token), **settings)


class LaterEngine:
    """One space, which answers when the test says so."""

    name = "later"
    bulk_is_atomic = False

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answers: list[Future[Any]] = []  # in the order of `asked`

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def failure(self) -> None:
        await asyncio.get_running_loop().create_future()

    def snapshot_soon(self) -> None: ...

    def open_session(self, _asked: int) -> int:
        raise Unavailable("there are none")

    def leave_session(self, _session: int) -> None: ...

    def once(self, _number: Number, write: Callable[[], Reply]) -> Reply:
        return write()

    def once_together(self, _numbers: Sequence[Number], _write: Callable[[], Reply | None]) -> None: ...

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


class HeldCommit:
    """Writes that become durable, or are taken back, when the test says so."""

    def __init__(self) -> None:
        self.is_settled = False
        self.error: StateStoreError | None = None
        self._waiting: list[tuple[Callable[[Any, StateStoreError | None], None], Any]] = []

    def then(self, callback: Callable[[T, StateStoreError | None], None], argument: T) -> None:
        self._waiting.append((callback, argument))

    def settle(self, error: StateStoreError | None = None) -> None:
        self.is_settled, self.error = True, error
        for callback, argument in self._waiting:
            callback(argument, error)


class HoldingEngine(LaterEngine):
    """As soon as it is asked it knows what the test says, and has it held until the test settles `commit`."""

    name = "holding"

    def __init__(self) -> None:
        super().__init__()
        self.commit = HeldCommit()
        self.value: Any = None

    def _later(self, *asked: Any) -> Any:
        self.asked.append(asked)
        return Held(self.value, self.commit)


class Gate:
    """Calls of a function, or of a method, wait in front of it while it is shut."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self._function = getattr(owner, name)
        self._open = threading.Event()
        self._open.set()
        self.passed: list[tuple[Any, ...]] = []  # with which arguments
        self.waiting = 0
        self.error: Exception | None = None  # what those that pass it meet
        self.error_once: Exception | None = None  # what the next one does
        patch.setattr(owner, name, lambda *arguments: self._pass(*arguments))

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __enter__(self) -> Self:
        self.shut()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def _pass(self, *arguments: Any) -> Any:
        self.waiting += 1
        self._open.wait(PATIENCE)
        self.waiting -= 1
        self.passed.append(arguments)
        error, self.error_once = self.error_once or self.error, None
        if error is not None:
            raise error
        return self._function(*arguments)


class Disk:
    """Where files are written: without room, or out of order, when the test says so. What is there can be read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self._write_at = files.write_at
        patch.setattr(files, "write_at", self._write)

    def fill(self) -> None:
        self.error = NoRoom(errno.ENOSPC, "No space left on device")

    def fail(self) -> None:
        self.error = DiskFailed(OSError(errno.EIO, "Input/output error"))

    def make_room(self) -> None:
        self.error = None

    def _write(self, file: BinaryIO, data: bytes, offset: int) -> None:
        error = self.error  # the test may make room at any moment
        if error is not None:
            self._write_at(file, data[: len(data) // 2], offset)
            raise error
        self._write_at(file, data, offset)


Outcome = StateStoreError | None


def listen(commit: Commit) -> list[Outcome]:
    """What is told to somebody who waits for it."""
    told: list[Outcome] = []
    commit.then(lambda told, error: told.append(error), told)
    return told


async def settled(answer: Any) -> Any:
    """The value of an answer, once it may be seen. Raises the error where its writes were taken back."""
    if not isinstance(answer, Held):
        return answer
    told = listen(answer.until)
    await eventually(lambda: told)
    if told[0] is not None:
        raise told[0]
    return answer.value


async def some_turns() -> None:
    """Of the loop, in which whatever need not wait happens."""
    for _ in range(20):
        await asyncio.sleep(0)


class Loop:
    """Turns when it is told to. As libuv's, it reads from one socket again and again, as long as something is there and
    nobody stops it.
    """

    READS = 32  # from one socket, before the next has its turn

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self._soon: list[Callable[[], None]] = []
        self.intake: Intake | None = None  # of all connections

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def turn(self) -> None:
        for wire in self.wires:
            for _ in range(self.READS):
                wire.deliver()
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()

    @property
    def is_busy(self) -> bool:
        return bool(self._soon) or any(wire.can_deliver for wire in self.wires)


class Wire(asyncio.Transport):
    """A connection's transport, and the client behind it: reads what it is sent when the test says so.

    With a `loop` that it shares with others, it turns when that does; without, until there is nothing left to do.
    """

    def __init__(
        self,
        service: Service,
        *,
        high_water: int = 65536,
        memory: int = 0,
        connections: Connections | None = None,
        loop: Loop | None = None,
    ) -> None:
        super().__init__({"memory": memory})  # bytes that it keeps besides
        self._high_water = high_water
        self._unsent = bytearray()
        self._unread = bytearray()
        self._read = bytearray()
        self._is_paused = False
        self._closing = False
        self._is_reading_paused = False
        self.writes = 0
        self.connections = Connections() if connections is None else connections
        self._loop = Loop() if loop is None else loop
        self._has_own_loop = loop is None
        self._loop.wires.append(self)
        call_soon = self._loop.call_soon
        intake = self._loop.intake = self._loop.intake or Intake(service, call_soon)
        self.connection = Connection(service, self.connections, intake, call_soon)
        self.connection.connection_made(self)

    # The client's side

    def send(self, *parts: bytes) -> None:
        self._unsent += b"".join(parts)
        self._turn()

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
                self.connection.resume_writing()
            self._turn()
        return messages(bytes(self._read))

    @property
    def unsent(self) -> int:
        """Bytes that the connection has not taken yet."""
        return len(self._unsent)

    @property
    def unread(self) -> int:
        """Bytes that wait for the client."""
        return len(self._unread)

    def hang_up(self) -> None:
        self.lose(None)

    def lose(self, error: Exception | None) -> None:
        """The connection is lost: the client hung up, or for this error."""
        self._closing = True
        self.connection.connection_lost(error)

    def look(self, times: int = 1) -> None:
        """So many seconds pass."""
        for _ in range(times):
            self.connections.watch.tick()
            self.connection._budget.tick()

    # The loop's side

    @property
    def can_deliver(self) -> bool:
        return bool(self._unsent) and not (self._is_reading_paused or self._closing)

    def deliver(self) -> None:
        """So much as is read at once."""
        if self.can_deliver:
            buffer = self.connection.get_buffer(-1)
            size = min(len(self._unsent), len(buffer))
            buffer[:size] = self._unsent[:size]
            del self._unsent[:size]
            self.connection.buffer_updated(size)

    def _turn(self) -> None:
        while self._has_own_loop and self._loop.is_busy:
            self._loop.turn()

    # The connection's side

    def write(self, data: Any) -> None:
        self.writes += 1
        self._unread += data
        if len(self._unread) > self._high_water and not self._is_paused:
            self._is_paused = True
            self.connection.pause_writing()

    def pause_reading(self) -> None:
        self._is_reading_paused = True

    def resume_reading(self) -> None:
        self._is_reading_paused = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = True

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:  # noqa: ARG002
        """What the test says goes."""
        self.asked_high_water = high

    def get_write_buffer_size(self) -> int:
        return len(self._unread)
