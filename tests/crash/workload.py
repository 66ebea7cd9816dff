"""One life of an engine whose files are recorded, and a client that knows what it was told, and when."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import structlog
import uvloop

from statestore.errors import NumberReused, Unavailable
from statestored import files, journal, segment
from statestored.answers import NIL
from statestored.datadir import DataDirectory
from statestored.engines import commits, saver, snapshots
from statestored.engines.base import DEFAULT_NAMESPACE, START, Held, Reply, Sender
from statestored.engines.commits import Fsync
from statestored.engines.embedded import EmbeddedEngine
from statestored.engines.sessions import DONE, EXPIRED, OPENED
from statestored.engines.states import CLEAR, MS_A_DAY, PUT, Effect
from statestored.framing import FRAME_SIZE
from statestored.writes import fingerprint
from tests.crash.history import Content, History, Violation
from tests.crash.recorder import Recorder
from tests.crash.trace import Acknowledged, Served, Trace
from tests.server.fakes import NEVER
from tests.server.models import TODAY, Remembered, small_buckets
from tests.server.waiting import eventually

OTHER = b"other"  # a namespace
MODULE = b"lists"
SENDERS: list[Sender] = [None, b"", *(b"s%d" % number for number in range(12))]
DISORDER = Random(3)


class Client:
    """Calls the engine; what it is told goes into the trace, what it wrote into the history."""

    def __init__(self, engine: EmbeddedEngine, directory: DataDirectory, recorder: Recorder, history: History) -> None:
        self.engine = engine
        self.directory = directory
        self.recorder = recorder
        self.history = history
        self._unanswered = 0
        self._values = 0
        self._seqs = {session: max(oldest, *answers, 1) for session, (oldest, answers) in self.sessions.items()}
        # What was told, also by writes that were refused.
        self._oldest = {session: oldest for session, (oldest, _) in self.sessions.items()}
        self._spaces = {name: engine.space(name) for name in (DEFAULT_NAMESPACE, OTHER)}  # there as long as it is

    # Calls; they return at once

    def set(self, sender: Sender, state: bytes, module: bytes = MODULE, namespace: bytes = DEFAULT_NAMESPACE) -> None:
        answer = self._spaces[namespace].set(module, sender, state)
        self._wrote([(PUT, namespace, module, sender, state)], answer)

    def remove(self, sender: Sender, namespace: bytes = DEFAULT_NAMESPACE) -> None:
        self.set(sender, START, namespace=namespace)

    def set_many(self, states: dict[Sender, bytes], namespace: bytes = DEFAULT_NAMESPACE) -> None:
        answer = self._spaces[namespace].set_many([(MODULE, sender, state) for sender, state in states.items()])
        self._wrote([(PUT, namespace, MODULE, sender, state) for sender, state in states.items()], answer)

    def set_all(self, sender: Sender, state: bytes, namespace: bytes = DEFAULT_NAMESPACE) -> None:
        modules = self.history.modules(namespace, sender)
        answer = self._spaces[namespace].set_all(sender, state)
        self._wrote([(PUT, namespace, module, sender, state) for module in modules], answer)

    def clear(self, namespace: bytes = OTHER) -> None:
        self._wrote([(CLEAR, namespace)], self._spaces[namespace].clear())

    def get(self, sender: Sender, module: bytes = MODULE, namespace: bytes = DEFAULT_NAMESPACE) -> None:
        answer = self._spaces[namespace].get(module, sender)
        value = answer.value if isinstance(answer, Held) else answer
        expected = self.history.state(namespace, (module, sender))
        if value != expected:
            raise Violation(f"{sender!r} has the state {value!r}, not {expected!r}")
        self._told(self.history.changed_last(namespace, (module, sender)), answer)

    @property
    def sessions(self) -> Remembered:
        return self.history.content.sessions

    def open_session(self) -> None:
        answer = self.engine.open_session(0)
        if not isinstance(answer, Held):
            raise Unavailable("there is no new session")
        self._seqs[answer.value], self._oldest[answer.value] = 0, 1
        self._wrote([(OPENED, answer.value)], answer)

    def expire(self, session: int) -> None:
        """As if its time had come."""
        until = self.engine.commits.batch
        self.engine._expire(session)
        self._wrote([(EXPIRED, session)], Held(None, until))

    def set_once(self, session: int, sender: Sender, state: bytes, unfinished: int = 0) -> None:
        """So many of those before it are not told to be answered."""
        self._seqs[session] += 1
        seq = self._seqs[session]
        oldest = self._oldest[session] = max(seq - unfinished, self._oldest[session])

        def write() -> Reply:
            answer = self._spaces[DEFAULT_NAMESPACE].set(MODULE, sender, state)
            if isinstance(answer, Held):
                answer.packed = NIL
            return answer

        written = fingerprint(DEFAULT_NAMESPACE, "set", (MODULE, sender, state))
        answer = self.engine.once((session, seq, oldest, written), write)
        put = (PUT, DEFAULT_NAMESPACE, MODULE, sender, state)
        self._wrote([put, (DONE, session, seq, oldest, NIL, written)], answer)

    def repeat(self, session: int) -> None:
        """Everything that is to be remembered of it: nothing is carried out."""

        def write() -> Reply:
            raise Violation(f"a write of session {session} is carried out again")

        oldest = self._oldest[session]
        _, answers = self.sessions[session]
        for seq in [seq for seq in answers if seq >= oldest]:
            expected, written = answers[seq]
            if written is not None:
                with pytest.raises(NumberReused):
                    self.engine.once((session, seq, oldest, written ^ 1), write)
            answer = self.engine.once((session, seq, oldest, written or 0), write)
            packed = answer.packed if isinstance(answer, Held) else answer
            if packed != expected:
                raise Violation(f"number {seq} was answered {expected!r}, and now {packed!r}")
            self._told(self.history.done(session, seq), answer)

    def look_at_sessions(self) -> None:
        """There are those that there are to be, and of each there is remembered what is to be."""
        if set(self.engine.states.sessions) != set(self.sessions):
            raise Violation("there are other sessions than were opened and have not expired, which was not done")
        for session in self.sessions:
            self.repeat(session)

    def fill_segment(self) -> Callable[[], bool]:
        """Returns what says whether the journal goes on in another one."""
        before = self.directory.segments()
        self.set_many({sender: self.value(journal.SEGMENT_SIZE // 4) for sender in SENDERS[:4]})
        return lambda: self.directory.segments() != before

    def value(self, size: int = 0) -> bytes:
        """One that was never used before, of about this size, in which no sector is like another."""
        self._values += 1
        return b"%d-%d " % (self.history.last, self._values) + DISORDER.randbytes(size)

    # Waiting

    async def answered(self) -> None:
        """All calls."""
        await eventually(lambda: not self._unanswered)

    async def turn(self) -> None:
        """Of the loop."""
        await asyncio.sleep(0)

    async def marked(self) -> None:
        """Nothing was written for a while, and the journal says that all before that is on the disk."""
        await eventually(lambda: self.recorder.written_last == FRAME_SIZE and not self.recorder.syncing)

    async def rotated(self) -> None:
        """The journal goes on in another segment, since the last one is full."""
        await eventually(self.fill_segment())

    async def writable(self) -> None:
        """Writes are taken again."""
        await eventually(self._is_writable)

    def _is_writable(self) -> bool:
        try:
            self.engine.commits.check()
        except Unavailable:
            return False
        return True

    def snapshot(self) -> "asyncio.Task[None]":
        return asyncio.create_task(self.engine.saver.snapshot())

    def _wrote(self, effects: Sequence[Effect], answer: Any) -> None:
        until = answer.until if isinstance(answer, Held) else self.engine.commits.batch
        self._told(self.history.commit(until, effects, commits.now() // MS_A_DAY), answer)

    def _told(self, batch: int, answer: Any) -> None:
        if not isinstance(answer, Held):
            self.recorder.mark(Acknowledged(batch))
            return
        self._unanswered += 1
        answer.until.then(self._settled, batch)

    def _settled(self, batch: int, error: Exception | None) -> None:
        self._unanswered -= 1
        if error is None:
            self.recorder.mark(Acknowledged(batch))
        elif batch:
            self.history.refuse(batch)


Script = Callable[[Client], Awaitable[None]]


class Clock:
    """What the daemon takes for the time."""

    def __init__(self) -> None:
        self.day = TODAY

    def now(self) -> int:
        return self.day * MS_A_DAY


def record(
    directory: Path, trace: Trace, history: History, script: Script, fsync: Fsync, boot: bytes, is_full: bool
) -> None:
    """A daemon starts in `directory`, which is as the trace ends, does what the script says, and stops.

    is_full: the disk, when it starts.

    Trace and history go on. Raises whatever the daemon does.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, booted(boot):
        runner.run(_record(directory, trace, history, script, fsync, is_full))


async def _record(path: Path, trace: Trace, history: History, script: Script, fsync: Fsync, is_full: bool) -> None:
    with Recorder(path, trace) as recorder:
        recorder.is_full = is_full
        directory = DataDirectory(path)
        try:
            directory.open()
            engine = EmbeddedEngine(directory, fsync, NEVER, max_namespaces=10)
            await engine.open()
            found = history.found(Content.of(engine.states))
            if found is None:
                raise Violation(f"it starts with what never was: {Content.of(engine.states)}")
            history.go_back(found)
            recorder.mark(Served(found))
            client = Client(engine, directory, recorder, history)
            await script(client)
            await client.answered()
            await engine.close()
        finally:
            directory.close()


@contextmanager
def booted(boot: bytes) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "boot_id", lambda: boot)
        yield


@contextmanager
def hasty_daemon() -> Iterator[Clock]:
    """Everything is small and soon, nothing is logged, and the clock stands still."""
    clock, configuration = Clock(), structlog.get_config()
    with pytest.MonkeyPatch.context() as patch, small_buckets():
        patch.setattr(journal, "SEGMENT_SIZE", 4096)
        patch.setattr(segment, "RESERVE", 4096)
        patch.setattr(files, "REMOVED_AT_ONCE", 2048)
        patch.setattr(snapshots, "FLUSH_EVERY", 1024)
        patch.setattr(commits, "IDLE", 0.002)
        patch.setattr(commits, "SYNC_EVERY", 0.004)
        patch.setattr(commits, "RETRY_EVERY", 0.002)
        patch.setattr(saver, "LOOK_EVERY", 0.002)
        patch.setattr(commits, "now", clock.now)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        try:
            yield clock
        finally:
            structlog.configure(**configuration)
