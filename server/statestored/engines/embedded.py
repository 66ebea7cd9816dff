"""The default engine: the states in this process's memory, a journal of their changes, and snapshots of them."""

import asyncio
import secrets
import time
from asyncio import Future
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from statestore.errors import Full, NumberReused, StateStoreError, Unavailable, Uncertain
from statestored.datadir import DataDirectory
from statestored.engines.base import (
    DEFAULT_NAMESPACE,
    MAX_NEW_SESSION,
    Answer,
    Counts,
    Filter,
    Held,
    Number,
    Page,
    Reply,
    Sender,
)
from statestored.engines.commits import Fsync, GroupCommit
from statestored.engines.leases import MAX_SESSIONS, Leases
from statestored.engines.queries import count, scan
from statestored.engines.quota import Quota
from statestored.engines.recovery import recover
from statestored.engines.saver import Saver, SnapshotSchedule
from statestored.engines.sessions import DONE, EXPIRED, OPENED, packed
from statestored.engines.states import CLEAR, PUT, States
from statestored.engines.table import Table
from statestored.engines.threads import in_thread
from statestored.errors import AttemptFailed, StartError

T = TypeVar("T")

LOOK_EVERY = 30.0  # seconds, for sessions that have expired
MAX_ANSWERS = 2**26  # bytes of memory for those that are remembered; then no session may have more than its share


class EmbeddedEngine:
    """`commits` and `saver` are there once it is open; until then it is loading."""

    name = "embedded"
    bulk_is_atomic = True
    commits: GroupCommit
    saver: Saver | None = None

    def __init__(
        self,
        directory: DataDirectory,
        fsync: Fsync,
        schedule: SnapshotSchedule,
        max_namespaces: int,
        quota: Quota = Quota(),  # noqa: B008  # it never changes
    ) -> None:
        self._directory = directory
        self._fsync = fsync
        self._schedule = schedule
        self._max_namespaces = max_namespaces
        self.quota = quota
        self.states = States()
        self._spaces: WeakValueDictionary[bytes, EmbeddedSpace] = WeakValueDictionary()  # those that somebody uses
        self._default = self.space(DEFAULT_NAMESPACE)
        self._leases = Leases((), 0)
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: asyncio.Future[None]

    async def open(self) -> None:
        """Raises DamagedFile or TooNew for what the files are; older ones are never taken instead. Or DiskFailed."""
        journal = await recover(self._directory, self.states)
        self._failure = asyncio.get_running_loop().create_future()
        self.commits = GroupCommit(self.states, journal, self._fsync, self._fail)
        await self.commits.begin()
        if self._directory.is_new:
            await in_thread(self._make_store)
        self.saver = Saver(self._directory, self.states, journal, self.commits, self._schedule)
        self._leases = Leases(self.states.sessions, time.monotonic())
        commits, saver = self.commits, self.saver
        works = (commits.keep_up(), commits.find_room_again(), saver.run(), saver.watch_files(), self._end_leases())
        self._tasks = [self._go(work) for work in works]

    async def close(self) -> None:
        """Raises DiskFailed, such as FilesMissing, if acknowledged writes may not be there at the next start."""
        if not self._tasks:
            return  # it was not opened
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        saved = asyncio.create_task(self._save_all())
        await asyncio.wait((saved, self._failure), return_when=asyncio.FIRST_COMPLETED)
        if self._failure.done():
            saved.cancel()
            self._failure.result()
        await saved
        await self.commits.close()

    async def failure(self) -> None:
        await asyncio.shield(self._failure)

    @property
    def is_missing_files(self) -> bool:
        """Whether another program removed files, as far as is known, that no snapshot has replaced yet."""
        return self.saver is not None and self.saver.is_missing_files

    def snapshot_soon(self) -> None:
        if self.saver is not None:
            self.saver.ask()

    def open_session(self, asked: int) -> int | Held[int]:
        sessions = self.states.sessions
        if sessions.get(asked) is not None:
            self._leases.take(asked)
            return asked
        if len(sessions) >= MAX_SESSIONS and not self._end_one():
            self.commits.check()
            raise Unavailable(f"all {MAX_SESSIONS} sessions are in use")
        new = 1 + secrets.randbelow(MAX_NEW_SESSION)  # nobody can guess another client's
        batch = self.commits.commit(((OPENED, new),))
        self._leases.take(new)
        if batch is None:
            return new
        batch.then(self._opened, new)
        return Held(new, batch)

    def leave_session(self, session: int) -> None:
        self._leases.leave(session, time.monotonic())

    def once(self, number: Number, write: Callable[[], Reply]) -> Reply:
        states, sessions = self.states, self.states.sessions
        session_id, seq, oldest, fingerprint = number
        session = sessions.get(session_id)
        if session is None:
            raise Uncertain("the session has expired: whether the write was applied before is not known any more")
        known = session.reply(seq)
        if known is not None and session.is_of_another(seq, fingerprint):
            # Its `oldest` is not heard: it is that of another client.
            raise NumberReused(f"{seq} is the number of another write in this session: ask for a session of your own")
        sessions.tell(session, oldest)
        if seq < session.oldest:
            raise Uncertain(f"the client has had its answer to everything before number {session.oldest}")
        if known is not None:
            return known
        if sessions.size >= MAX_ANSWERS and session.size > MAX_ANSWERS // len(sessions):
            raise Unavailable("too many answers are remembered: the client has not said that it has them")
        changes = states.changes
        reply = write()
        self._remember((number,), reply, changed=states.changes != changes)
        return reply

    def once_together(self, numbers: Sequence[Number], write: Callable[[], Reply | None]) -> Reply | None:
        states = self.states
        if states.sessions.size >= MAX_ANSWERS or not states.sessions.are_new(numbers):
            return None
        changes = states.changes
        reply = write()
        if reply is not None:
            self._remember(numbers, reply, changed=states.changes != changes)
        return reply

    def space(self, name: bytes) -> "EmbeddedSpace":
        space = self._spaces.get(name)
        if space is None:
            if name not in self.states.tables:
                self._make_room()
            space = self._spaces[name] = EmbeddedSpace(name, self, self.states.table(name))
        return space

    def info(self) -> dict[str, Any]:
        """Figures of the states; and of the files, once they have been loaded."""
        figures = {
            "entries": len(self.states),
            "memory": self.states.memory,
            "max_memory": self.quota.memory,
            "namespaces": sum(1 for table in self.states.tables.values() if len(table)),
            "sessions": len(self.states.sessions),
        }
        if self.saver is None:
            return figures
        return {**figures, "writes_refused": self.commits.refused_because, **self.saver.info()}

    def _remember(self, numbers: Sequence[Number], reply: Reply, *, changed: bool) -> None:
        """What the write with these numbers was answered, and whether it changed anything."""
        if isinstance(reply, Future):
            raise TypeError("an answer that comes later cannot be remembered")
        if changed:
            # Nobody had a turn since the write: this goes into the same batch.
            answer = packed(reply)
            self.commits.commit([(DONE, session, seq, oldest, answer, fp) for session, seq, oldest, fp in numbers])
        self.states.sessions.remember(numbers, reply)

    def _make_store(self) -> None:
        """The identity comes last: where it is, a journal has to be. Raises StartError where there is no room."""
        try:
            self.commits.check()
            self._directory.save_identity()
        except (AttemptFailed, Unavailable) as error:
            raise StartError(f"data directory {self._directory.path}: a new store cannot be made: {error}") from error

    async def _end_leases(self) -> None:
        """Whenever some have ended. Until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            for session in self._leases.end(time.monotonic()):
                self._expire(session)
                await asyncio.sleep(0)  # there may be thousands, an hour after a start

    def _end_one(self) -> bool:
        """To make room. Returns whether there was one without a connection."""
        ended = self._leases.end_one()
        return ended is not None and self._expire(ended)

    def _expire(self, session: int) -> bool:
        """Returns whether that can be written now."""
        try:
            batch = self.commits.commit(((EXPIRED, session),))
        except Unavailable as error:
            self._expired(session, error)
            return False
        if batch is not None:
            batch.then(self._expired, session)
        return True

    def _opened(self, session: int, error: StateStoreError | None) -> None:
        if error is not None:
            self._leases.forget(session)

    def _expired(self, session: int, error: StateStoreError | None) -> None:
        if error is not None:  # it is still there, and expires later
            self._leases.take(session)
            self._leases.leave(session, time.monotonic())

    def _go(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)

    async def _save_all(self) -> None:
        """See that all acknowledged writes are on the disk, and in files that are still there."""
        with suppress(Unavailable):  # what was not acknowledged was refused at last
            await self.commits.durable()
        if self.saver is not None:
            await self.saver.replace_missing()

    def _make_room(self) -> None:
        """For one more namespace: those that hold nothing and that nobody uses go. Raises Full."""
        tables = self.states.tables
        if len(tables) >= self._max_namespaces:
            for name, table in list(tables.items()):
                if not (len(table) or table.unsettled or name in self._spaces):
                    del tables[name]
        if len(tables) >= self._max_namespaces:
            raise Full(f"there are {self._max_namespaces} namespaces already, and no more are allowed")


class EmbeddedSpace:
    """One namespace. It knows all answers at once; those that follow from unsettled writes are held."""

    def __init__(self, name: bytes, engine: EmbeddedEngine, table: Table) -> None:
        self._name = name
        self._engine = engine
        self._table = table

    def get(self, module: bytes, sender: Sender) -> Answer[bytes]:
        table = self._table
        state = table.get(module, sender)
        return self._of(sender, state) if table.unsettled else state

    def set(self, module: bytes, sender: Sender, state: bytes) -> Answer[None]:
        puts = ((PUT, self._name, module, sender, state),)
        self._engine.quota.check(self._engine.states, self._table, puts)
        batch = self._engine.commits.commit(puts)
        return self._of(sender, None) if batch is None else batch.nothing

    def set_all(self, sender: Sender, state: bytes) -> Answer[int]:
        puts = [(PUT, self._name, module, sender, state) for module in self._table.modules(sender)]
        if puts:
            self._engine.quota.check(self._engine.states, self._table, puts)
            self._engine.commits.commit(puts)
        return self._of(sender, len(puts))

    def compare_and_set(
        self, module: bytes, sender: Sender, expected: bytes, state: bytes
    ) -> Answer[tuple[bool, bytes]]:
        previous = self._table.get(module, sender)
        if previous == expected:
            puts = ((PUT, self._name, module, sender, state),)
            self._engine.quota.check(self._engine.states, self._table, puts)
            self._engine.commits.commit(puts)
        return self._of(sender, (previous == expected, previous))

    def get_many(self, pairs: Sequence[tuple[bytes, Sender]]) -> Answer[list[bytes]]:
        get = self._table.get
        states = [get(module, sender) for module, sender in pairs]
        return self._of_all((sender for _, sender in pairs), states)

    def set_many(self, triples: Sequence[tuple[bytes, Sender, bytes]]) -> Answer[None]:
        name = self._name
        puts = [(PUT, name, *triple) for triple in triples]
        self._engine.quota.check(self._engine.states, self._table, puts)
        batch = self._engine.commits.commit(puts) if puts else None
        # What was there already was settled before this batch will be.
        return batch.nothing if batch is not None else self._of_all((sender for _, sender, _ in triples), None)

    def scan(self, cursor: bytes | None, wanted: Filter) -> Answer[Page]:
        return self._of_table(scan(self._table, cursor, wanted))

    def count(self, module: bytes | None, state: bytes | None) -> Answer[Counts]:
        return self._of_table(count(self._table, module, state))

    def clear(self) -> Answer[None]:
        self._engine.commits.commit(((CLEAR, self._name),))
        return self._of_table(None)

    def _of(self, sender: Sender, value: T) -> Answer[T]:
        """An answer that follows from what is stored for the sender."""
        if self._table.changed.concern(sender):
            return Held(value, self._engine.commits.batch)
        if self._table.cutting.concern(sender):
            return Held(value, self._engine.commits.writing)
        return value

    def _of_all(self, senders: Iterable[Sender], value: T) -> Answer[T]:
        """An answer that follows from what is stored for the senders."""
        if not self._table.unsettled:
            return value
        held = [answer for sender in senders if isinstance(answer := self._of(sender, value), Held)]
        last = [answer for answer in held if answer.until is self._engine.commits.batch]
        return last[0] if last else held[0] if held else value

    def _of_table(self, value: T) -> Answer[T]:
        """An answer that follows from everything that is stored."""
        if self._table.changed.any():
            return Held(value, self._engine.commits.batch)
        if self._table.cutting.any():
            return Held(value, self._engine.commits.writing)
        return value
