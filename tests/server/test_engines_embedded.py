"""The default engine: states like a dict's, held until the disk has them, and there after whatever end."""

import asyncio
import secrets
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from structlog.testing import capture_logs

from statestore import wire
from statestore.errors import Full, NumberReused, StateStoreError, Unavailable, Uncertain
from statestored import files, segment
from statestored.datadir import DataDirectory
from statestored.engines import commits as commits_module
from statestored.engines import embedded as embedded_module
from statestored.engines import leases as leases_module
from statestored.engines.base import MAX_NUMBER, START, Counts, Filter, Held, Page, Reply, Sender
from statestored.engines.commits import Fsync
from statestored.engines.embedded import EmbeddedEngine, EmbeddedSpace
from statestored.engines.sessions import DONE, OPENED
from statestored.engines.states import MS_A_DAY
from statestored.errors import DamagedFile, DiskFailed, StartError
from statestored.files import temporary_name
from statestored.journal import Journal
from statestored.snapshot import SnapshotWriter
from tests.server.fakes import NEVER, Disk, Gate, engine_without_files, listen, settled, some_turns
from tests.server.models import TODAY, Model, apply, as_model, modules, namespaces, senders, small_buckets, states
from tests.server.waiting import eventually

ANN, BEN = (b"lists", b"ann"), (b"lists", b"ben")


@pytest.fixture(autouse=True)
def _small_buckets() -> Iterator[None]:
    with small_buckets():
        yield


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits_module, "RETRY_EVERY", 0.002)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch, Journal, "sync")


def make(path: Path, fsync: Fsync = Fsync.ALWAYS, max_namespaces: int = 1000) -> tuple[DataDirectory, EmbeddedEngine]:
    directory = DataDirectory(path)
    directory.open()
    return directory, EmbeddedEngine(directory, fsync, NEVER, max_namespaces)


@asynccontextmanager
async def opened(path: Path, fsync: Fsync = Fsync.ALWAYS, max_namespaces: int = 1000) -> AsyncIterator[EmbeddedEngine]:
    """Closed in order; what a test leaves open on purpose it opens itself."""
    directory, engine = make(path, fsync, max_namespaces)
    try:
        await engine.open()
        yield engine
    finally:
        await engine.close()
        directory.close()


def left_by_a_kill(path: Path, to: Path) -> Path:
    """What the system has of a directory, while the daemon that has it goes on."""
    shutil.copytree(path, to)
    return to


def space(engine: EmbeddedEngine) -> EmbeddedSpace:
    return engine.space(b"default")


def snapshots(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("*.snapshot*"))


def value_of(answer: Any) -> Any:
    return answer.value if isinstance(answer, Held) else answer


def entries(of: EmbeddedSpace) -> Model:
    page = value_of(of.scan(None, Filter()))
    found = list(page.entries)
    while page.cursor is not None:
        page = value_of(of.scan(page.cursor, Filter()))
        found += page.entries
    return as_model(found)


async def fill(of: EmbeddedSpace, count: int, state: bytes = b"POSTING") -> None:
    await settled(of.set_many([(b"lists", b"s%d" % number, state) for number in range(count)]))


Ask = Callable[[EmbeddedSpace], Any]
_pack = wire.packer()


def once(
    engine: EmbeddedEngine, session: int, seq: int, ask: Ask, oldest: int = 1, fingerprint: int | None = None
) -> Any:
    """A write that has a number, as a caller asks for it. Returns a packed answer, or one that is held."""

    def write() -> Reply:
        answer = ask(space(engine))
        if not isinstance(answer, Held):
            return _pack(answer)
        answer.packed = answer.packed or _pack(answer.value)
        return answer

    return engine.once((session, seq, oldest, seq % 2**32 if fingerprint is None else fingerprint), write)


async def packed_once_settled(reply: Any) -> bytes:
    await settled(reply)
    packed = reply.packed if isinstance(reply, Held) else reply
    assert isinstance(packed, bytes)
    return packed


class EngineAgainstDicts(RuleBasedStateMachine):
    """Every method, in two namespaces, with snapshots, restarts and kills in between."""

    path: Path
    fsync: Fsync

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.generation = 0
        shutil.rmtree(self.path / "0", ignore_errors=True)
        self.models: dict[bytes, Model] = {b"default": {}, b"other": {}}
        self.start()
        self.session = self.open_session(0)
        self.seq = 0
        self.oldest = 1
        self.remembered: dict[int, bytes] = {}  # the answers of those that are not told
        self.idle: set[int] = set()  # of those that changed nothing

    @property
    def data_dir(self) -> Path:
        return self.path / str(self.generation)

    def start(self) -> None:
        self.directory, self.engine = make(self.data_dir, self.fsync)
        self.runner.run(self.engine.open())

    def stop(self) -> None:
        self.runner.run(self.engine.close())
        self.directory.close()

    def go_on(self) -> None:
        """A start: the client has its session again, but for what changed nothing."""
        self.start()
        assert self.open_session(self.session) == self.session
        for seq in self.idle:
            self.remembered.pop(seq, None)

    def open_session(self, session: int) -> int:
        async def opened() -> Any:
            return await settled(self.engine.open_session(session))

        opened_session = self.runner.run(opened())
        assert isinstance(opened_session, int)
        return opened_session

    def once(self, seq: int, ask: Ask, fingerprint: int | None = None) -> bytes:
        """What it answers, in the end."""

        async def answered() -> bytes:
            return await packed_once_settled(once(self.engine, self.session, seq, ask, self.oldest, fingerprint))

        return self.runner.run(answered())

    def teardown(self) -> None:
        self.stop()
        self.runner.close()
        shutil.rmtree(self.data_dir)

    def put(self, name: bytes, module: bytes, sender: Sender, state: bytes) -> None:
        apply(self.models, (1, name, module, sender, state), TODAY)

    def get(self, name: bytes, module: bytes, sender: Sender) -> bytes:
        return self.models[name].get((module, sender), (START, 0))[0]

    def ask(self, name: bytes, method: str, *params: Any) -> Any:
        """What it answers, in the end."""

        async def ask() -> Any:
            return await settled(getattr(self.engine.space(name), method)(*params))

        return self.runner.run(ask())

    @rule(name=namespaces, module=modules, sender=senders)
    def look(self, name: bytes, module: bytes, sender: Sender) -> None:
        assert self.ask(name, "get", module, sender) == self.get(name, module, sender)

    @rule(name=namespaces, pairs=st.lists(st.tuples(modules, senders), max_size=5))
    def look_at_many(self, name: bytes, pairs: list[tuple[bytes, Sender]]) -> None:
        assert self.ask(name, "get_many", pairs) == [self.get(name, *pair) for pair in pairs]

    @rule(name=namespaces, module=modules, sender=senders, state=states)
    def set(self, name: bytes, module: bytes, sender: Sender, state: bytes) -> None:
        assert self.ask(name, "set", module, sender, state) is None
        self.put(name, module, sender, state)

    @rule(name=namespaces, triples=st.lists(st.tuples(modules, senders, states), max_size=20))
    def set_many(self, name: bytes, triples: list[tuple[bytes, Sender, bytes]]) -> None:
        assert self.ask(name, "set_many", triples) is None
        for triple in triples:
            self.put(name, *triple)

    @rule(name=namespaces, sender=senders, state=states)
    def set_all(self, name: bytes, sender: Sender, state: bytes) -> None:
        its = [module for module, of in self.models[name] if of == sender]
        assert self.ask(name, "set_all", sender, state) == len(its)
        for module in its:
            self.put(name, module, sender, state)

    @rule(name=namespaces, module=modules, sender=senders, expected=states, state=states)
    def compare_and_set(self, name: bytes, module: bytes, sender: Sender, expected: bytes, state: bytes) -> None:
        previous = self.get(name, module, sender)
        answer = self.ask(name, "compare_and_set", module, sender, expected, state)
        assert answer == (previous == expected, previous)
        if previous == expected:
            self.put(name, module, sender, state)

    @rule(name=namespaces)
    def clear(self, name: bytes) -> None:
        assert self.ask(name, "clear") is None
        self.models[name].clear()

    @rule()
    def snapshot(self) -> None:
        self.runner.run(self.engine.saver.snapshot())

    @rule(module=modules, sender=senders, expected=states, state=states)
    def write_once(self, module: bytes, sender: Sender, expected: bytes, state: bytes) -> None:
        self.seq += 1
        previous = self.get(b"default", module, sender)
        answer = self.once(self.seq, lambda of: of.compare_and_set(module, sender, expected, state))
        assert answer == _pack((previous == expected, previous))
        self.remembered[self.seq] = answer
        if previous == expected != state:
            self.put(b"default", module, sender, state)
        else:
            self.idle.add(self.seq)

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        if self.remembered:
            seq = data.draw(st.sampled_from(sorted(self.remembered)))
            assert self.once(seq, lambda of: of.clear()) == self.remembered[seq]
            with pytest.raises(NumberReused):
                self.once(seq, lambda of: of.clear(), fingerprint=seq + 1)

    @rule(more=st.integers(1, 3))
    def tell(self, more: int) -> None:
        self.oldest = min(self.oldest + more, self.seq + 1)
        for seq in [seq for seq in self.remembered if seq < self.oldest]:
            del self.remembered[seq]

    @rule(more=st.integers(1, 3))
    def copy_that_comes_late(self, more: int) -> None:
        if self.oldest > more:
            self.seq = max(self.seq + 1, self.oldest)
            self.remembered[self.seq] = self.once(
                self.seq, lambda of: of.set(b"a", b"s1", self.get(b"default", b"a", b"s1"))
            )
            self.idle.add(self.seq)
            with pytest.raises(Uncertain):
                self.once(self.oldest - more, lambda of: of.clear())

    @rule()
    def restart(self) -> None:
        self.stop()
        self.go_on()

    @rule()
    def kill(self) -> None:
        """Everything that was answered is there."""
        old = self.data_dir
        left_by_a_kill(old, self.path / str(self.generation + 1))
        self.stop()
        shutil.rmtree(old)
        self.generation += 1
        self.go_on()

    @rule(name=namespaces, module=modules, sender=senders, state=states)
    def kill_before_the_answer(self, name: bytes, module: bytes, sender: Sender, state: bytes) -> None:
        """It is there or it is not, as a whole."""
        self.engine.space(name).set(module, sender, state)
        self.kill()
        found = self.engine.space(name).get(module, sender)
        assert found in (self.get(name, module, sender), state)
        self.put(name, module, sender, value_of(found))

    @rule(name=namespaces, module=st.none() | modules)
    def count(self, name: bytes, module: bytes | None) -> None:
        counts = self.ask(name, "count", module, None)
        truth = Counter((its, state) for (its, _), (state, _) in self.models[name].items() if module in (None, its))
        assert {(its, state): number for its, state, number in counts.rows} == truth
        assert (counts.total, counts.uncounted) == (truth.total(), 0)

    @invariant()
    def holds_the_same(self) -> None:
        for name, model in self.models.items():
            assert entries(self.engine.space(name)) == model
        client = self.engine.states.sessions.get(self.session)
        assert client is not None
        assert self.remembered.items() <= {seq: client.reply(seq) for seq in client.done}.items()


@pytest.mark.parametrize("fsync", Fsync)
def test_the_engine_is_a_dict_that_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync) -> None:
    monkeypatch.setattr(commits_module, "now", lambda: TODAY * MS_A_DAY)
    monkeypatch.setattr(segment, "RESERVE", 4096)  # so much less to copy
    monkeypatch.setattr(files, "sync_file", lambda _: None)
    monkeypatch.setattr(files, "sync_directory", lambda _: None)
    EngineAgainstDicts.path, EngineAgainstDicts.fsync = tmp_path, fsync
    run = EngineAgainstDicts.TestCase()
    run.settings = settings(max_examples=20, stateful_step_count=30)
    with capture_logs():
        run.runTest()


def test_the_day_is_todays_and_stays_where_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    time = 5 * MS_A_DAY - 1
    monkeypatch.setattr(commits_module, "now", lambda: time)
    default = space(engine_without_files())
    default.set(*ANN, b"A")
    time += 1
    default.set(*BEN, b"A")
    default.set(*ANN, b"A")
    default.set_many([(*ANN, b"A")])
    default.set_all(b"ann", b"A")
    default.compare_and_set(*ANN, b"A", b"A")
    assert entries(default) == {ANN: (b"A", 4), BEN: (b"A", 5)}


def test_what_changes_nothing_is_no_change() -> None:
    engine = engine_without_files()
    default = space(engine)
    default.set(*ANN, b"A")
    default.set(*ANN, b"A")
    default.set(*BEN, START)
    default.set_all(b"cleo", b"B")
    default.compare_and_set(*ANN, b"B", b"C")
    default.set_many([])
    engine.space(b"other").clear()
    assert engine.info()["changes_since_snapshot"] == 1


# What nobody may see before the disk has it (D1)


# What somebody else asks when ann's entry was set to A, and what he is to learn in the end.
AFTER_A_SET: dict[str, tuple[Ask, Any]] = {
    "get": (lambda of: of.get(*ANN), b"A"),
    "a set of the value that is there": (lambda of: of.set(*ANN, b"A"), None),
    "a set of another": (lambda of: of.set(*ANN, b"B"), None),
    "compare_and_set that fails": (lambda of: of.compare_and_set(*ANN, b"B", b"C"), (False, b"A")),
    "compare_and_set that succeeds": (lambda of: of.compare_and_set(*ANN, b"A", b"C"), (True, b"A")),
    "compare_and_set that changes nothing": (lambda of: of.compare_and_set(*ANN, b"A", b"A"), (True, b"A")),
    "set_all": (lambda of: of.set_all(b"ann", b"B"), 1),
    "set_all that changes nothing": (lambda of: of.set_all(b"ann", b"A"), 1),
    "get_many": (lambda of: of.get_many([BEN, ANN, BEN]), [b"X", b"A", b"X"]),
    "set_many": (lambda of: of.set_many([(*BEN, b"Y"), (*ANN, b"B")]), None),
    "set_many that changes nothing": (lambda of: of.set_many([(*BEN, b"X"), (*ANN, b"A")]), None),
    "scan": (lambda of: of.scan(None, Filter(state=b"A")), ...),  # its day is today's
    "count": (lambda of: of.count(None, b"A"), Counts(1, [(b"lists", b"A", 1)], 0)),
    "clear": (lambda of: of.clear(), None),
}
# When ann's entry was removed.
AFTER_A_REMOVAL: dict[str, tuple[Ask, Any]] = {
    "get": (lambda of: of.get(*ANN), START),
    "another removal": (lambda of: of.set(*ANN, START), None),
    "set_all that finds nothing": (lambda of: of.set_all(b"ann", b"B"), 0),
    "compare_and_set that fails": (lambda of: of.compare_and_set(*ANN, b"OLD", b"C"), (False, START)),
    "get_many": (lambda of: of.get_many([ANN]), [START]),
    "set_many that changes nothing": (lambda of: of.set_many([(*ANN, START)]), None),
    "scan": (lambda of: of.scan(None, Filter(prefix=b"ann")), Page(None, [])),
    "count": (lambda of: of.count(None, b"OLD"), Counts(0, [], 0)),
}
# When everything was.
AFTER_A_CLEAR: dict[str, tuple[Ask, Any]] = {
    "get": (lambda of: of.get(*BEN), START),
    "get of what never was": (lambda of: of.get(b"x", b"y"), START),
    "set_all": (lambda of: of.set_all(b"ben", b"B"), 0),
    "compare_and_set that fails": (lambda of: of.compare_and_set(*BEN, b"X", b"C"), (False, START)),
    "get_many": (lambda of: of.get_many([ANN]), [START]),
    "another clear": (lambda of: of.clear(), None),
    "scan": (lambda of: of.scan(None, Filter()), Page(None, [])),
    "count": (lambda of: of.count(None, None), Counts(0, [], 0)),
}
CASES = {
    f"{after}: {name}": (write, *case)
    for after, write, cases in (
        ("set", lambda of: of.set(*ANN, b"A"), AFTER_A_SET),
        ("removed", lambda of: of.set(*ANN, START), AFTER_A_REMOVAL),
        ("cleared", lambda of: of.clear(), AFTER_A_CLEAR),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize("while_written", [False, True])
@pytest.mark.parametrize(("write", "ask", "answer"), CASES.values(), ids=CASES)
async def test_with_always_no_answer_goes_out_before_what_it_follows_from_is_on_the_disk(
    tmp_path: Path, syncs: Gate, write: Ask, ask: Ask, answer: Any, while_written: bool
) -> None:
    async with opened(tmp_path) as engine:
        default = space(engine)
        await settled(default.set_many([(*ANN, b"OLD"), (*BEN, b"X")]))
        with syncs:
            written = write(default)
            assert isinstance(written, Held)
            if while_written:
                await eventually(lambda: syncs.waiting)
            asked = ask(default)
            assert isinstance(asked, Held)
            told = listen(asked.until)
            await eventually(lambda: syncs.waiting)
            await some_turns()
            assert told == []
        assert await settled_once_told(asked, told) == (asked.value if answer is ... else answer)


async def settled_once_told(asked: Held[Any], told: list[Any]) -> Any:
    await eventually(lambda: told)
    assert told == [None]
    return asked.value


NOT_CONCERNED: dict[str, tuple[Ask, Any]] = {
    "get": (lambda of: of.get(*BEN), b"X"),
    "get of what is not there": (lambda of: of.get(b"x", b"y"), START),
    "get_many": (lambda of: of.get_many([BEN, (b"x", b"y")]), [b"X", START]),
    "compare_and_set that fails": (lambda of: of.compare_and_set(*BEN, b"Y", b"Z"), (False, b"X")),
    "set of the value that is there": (lambda of: of.set(*BEN, b"X"), None),
    "set_all that finds nothing": (lambda of: of.set_all(b"cleo", b"Z"), 0),
    "set_many of nothing": (lambda of: of.set_many([]), None),
}


@pytest.mark.parametrize(("ask", "answer"), NOT_CONCERNED.values(), ids=NOT_CONCERNED)
async def test_answers_about_other_senders_are_not_held(tmp_path: Path, syncs: Gate, ask: Ask, answer: Any) -> None:
    async with opened(tmp_path) as engine:
        default = space(engine)
        await settled(default.set(*BEN, b"X"))
        with syncs:
            default.set(*ANN, b"A")
            assert ask(default) == answer
            await eventually(lambda: syncs.waiting)
            assert ask(default) == answer


async def test_answers_about_other_namespaces_are_not_held(tmp_path: Path, syncs: Gate) -> None:
    async with opened(tmp_path) as engine:
        other = engine.space(b"other")
        await settled(other.set(*ANN, b"X"))
        with syncs:
            space(engine).set(*ANN, b"A")
            space(engine).clear()
            assert other.get(*ANN) == b"X"
            assert len(value_of(other.scan(None, Filter())).entries) == 1
            assert not isinstance(other.count(None, None), Held)


async def test_once_it_is_on_the_disk_answers_are_not_held(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        default = space(engine)
        for write in (lambda: default.set(*ANN, b"A"), default.clear, lambda: default.set(*BEN, b"B")):
            await settled(write())
        assert default.get(*BEN) == b"B"
        assert default.get(*ANN) == START
        assert default.count(None, None) == Counts(1, [(b"lists", b"B", 1)], 0)
        assert default.set(*BEN, b"B") is None


async def test_what_follows_from_two_batches_waits_for_the_later_one(tmp_path: Path, syncs: Gate) -> None:
    async with opened(tmp_path) as engine:
        default = space(engine)
        with syncs:
            first = default.set(*ANN, b"A")
            await eventually(lambda: syncs.waiting)
            second = default.set(*BEN, b"B")
            assert isinstance(first, Held)
            assert isinstance(second, Held)
            assert first.until is not second.until
            for pairs in ([ANN, BEN], [BEN, ANN]):
                both = default.get_many(pairs)
                assert isinstance(both, Held)
                assert both.until is second.until
            assert value_of(default.get_many([ANN])) == [b"A"]
            assert isinstance(alone := default.get_many([ANN]), Held)
            assert alone.until is first.until
            assert isinstance(counted := default.count(None, None), Held)
            assert counted.until is second.until


async def test_what_went_back_to_what_it_was_is_held_as_well(tmp_path: Path, syncs: Gate) -> None:
    """The disk may get as far as what was between."""
    async with opened(tmp_path) as engine:
        default = space(engine)
        await settled(default.set(*ANN, b"A"))
        with syncs:
            default.set(*ANN, b"B")
            default.set(*ANN, b"A")
            assert isinstance(default.get(*ANN), Held)


@pytest.mark.parametrize("fsync", [Fsync.EVERYSEC, Fsync.NEVER])
async def test_with_less_than_always_answers_wait_for_the_system_only(
    tmp_path: Path, syncs: Gate, fsync: Fsync
) -> None:
    async with opened(tmp_path, fsync) as engine:
        with syncs:
            answer = space(engine).set(*ANN, b"A")
            assert isinstance(answer, Held)
            assert await settled(answer) is None
            assert space(engine).get(*ANN) == b"A"
            assert syncs.passed == []


# Where there is no room, and where the disk fails (D6)


@pytest.mark.parametrize("fsync", Fsync)
async def test_without_room_writes_are_refused_and_all_else_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync
) -> None:
    async with opened(tmp_path, fsync) as engine:
        default = space(engine)
        await fill(default, 20)
        await settled(default.set(*ANN, b"A"))
        before, counts, info = entries(default), default.count(None, None), engine.info()["entries"]
        disk = Disk(monkeypatch)
        disk.fill()
        asked = [default.set(*ANN, b"B"), default.get(*ANN), default.set_many([(*BEN, b"C"), (*ANN, START)])]
        asked += [default.clear(), default.set(*BEN, b"D"), default.count(None, None), default.get(b"lists", b"s1")]
        told = [listen(answer.until) for answer in asked if isinstance(answer, Held)]
        await eventually(lambda: all(told))
        assert [type(error) for (error,) in told] == [Unavailable] * len(asked)
        for write in (lambda: default.set(*ANN, b"B"), lambda: default.set_many([(*ANN, b"B")]), default.clear):
            with pytest.raises(Unavailable):
                write()
        assert entries(default) == before
        assert default.count(None, None) == counts
        assert engine.info()["entries"] == info
        assert default.get(*ANN) == b"A"
        assert default.compare_and_set(*ANN, b"X", b"Y") == (False, b"A")
        disk.make_room()
        await eventually(lambda: is_taken(default))
    async with opened(tmp_path, fsync) as engine:
        assert entries(space(engine)).keys() == {*before, (b"new", b"one")}


def is_taken(of: EmbeddedSpace) -> bool:
    try:
        of.set(b"new", b"one", b"X")
    except Unavailable:
        return False
    return True


async def test_a_start_without_room_serves_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as engine:
        await fill(space(engine), 20)
    disk = Disk(monkeypatch)
    disk.fill()
    async with opened(tmp_path) as engine:
        default = space(engine)
        assert len(entries(default)) == 20
        assert default.get(b"lists", b"s3") == b"POSTING"
        with pytest.raises(Unavailable):
            default.set(*ANN, b"A")
        disk.make_room()
        await eventually(lambda: is_taken(default))
    async with opened(tmp_path) as engine:
        assert len(entries(space(engine))) == 21


@pytest.mark.parametrize("fsync", Fsync)
async def test_closing_where_there_is_no_room_is_an_end_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync
) -> None:
    """O1: what is refused was never acknowledged."""
    async with opened(tmp_path, fsync) as engine:
        await settled(space(engine).set(*ANN, b"A"))
        disk = Disk(monkeypatch)
        disk.fill()
        space(engine).set(*ANN, b"REFUSED")
    disk.make_room()
    async with opened(tmp_path, fsync) as engine:
        assert space(engine).get(*ANN) == b"A"


async def test_a_new_store_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    disk.fill()
    with pytest.raises(StartError, match="No space left"):
        async with opened(tmp_path):
            pass
    disk.make_room()
    async with opened(tmp_path) as engine:
        assert entries(space(engine)) == {}


@pytest.mark.parametrize("fsync", Fsync)
async def test_a_disk_that_fails_is_told_and_nothing_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync
) -> None:
    directory, engine = make(tmp_path, fsync)
    await engine.open()
    answer = space(engine).set(*ANN, b"A")
    assert isinstance(answer, Held)
    told = listen(answer.until)
    Disk(monkeypatch).fail()
    with pytest.raises(DiskFailed):
        await engine.failure()
    await some_turns()
    assert told == []
    with pytest.raises(DiskFailed):
        await asyncio.wait_for(engine.close(), 5)
    directory.close()


async def test_a_disk_that_fails_while_it_is_closed_is_told(tmp_path: Path, syncs: Gate) -> None:
    """O1, D6: there is no end that waits for ever, and none that says all is well."""
    directory, engine = make(tmp_path)
    await engine.open()
    syncs.shut()
    space(engine).set(*ANN, b"A")
    await eventually(lambda: syncs.waiting)
    closing = asyncio.create_task(engine.close())
    await some_turns()
    syncs.error = DiskFailed(OSError(5, "Input/output error"))
    syncs.open()
    with pytest.raises(DiskFailed):
        await asyncio.wait_for(closing, 5)
    directory.close()


async def test_a_last_sync_that_fails_is_told(tmp_path: Path, syncs: Gate) -> None:
    directory, engine = make(tmp_path, Fsync.EVERYSEC)
    await engine.open()
    await settled(space(engine).set(*ANN, b"A"))
    syncs.error = DiskFailed(OSError(5, "Input/output error"))
    with pytest.raises(DiskFailed):
        await engine.close()
    directory.close()


async def test_a_sync_that_fails_while_it_is_closed_is_not_tried_again(
    tmp_path: Path, syncs: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D6: the second would succeed, for the system has forgotten what it could not write."""
    monkeypatch.setattr(commits_module, "SYNC_EVERY", 0.001)
    directory, engine = make(tmp_path, Fsync.EVERYSEC)
    await engine.open()
    syncs.shut()
    await settled(space(engine).set(*ANN, b"A"))
    await eventually(lambda: syncs.waiting)
    closing = asyncio.create_task(engine.close())
    await some_turns()
    syncs.error_once = DiskFailed(OSError(5, "Input/output error"))
    syncs.open()
    with pytest.raises(DiskFailed):
        await asyncio.wait_for(closing, 5)
    directory.close()


# Namespaces


def test_only_so_many_namespaces_are_made() -> None:
    engine = engine_without_files(max_namespaces=3)
    for name in (b"one", b"two", b"one", b"default"):
        engine.space(name).set(*ANN, name)
    with pytest.raises(Full, match="3 namespaces"):
        engine.space(b"three")
    assert engine.space(b"two").get(*ANN) == b"two"


async def test_the_default_namespace_is_there_however_many_others_are(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        for number in range(5):
            await settled(engine.space(b"%d" % number).set(*ANN, b"A"))
    async with opened(tmp_path, max_namespaces=2) as engine:
        space(engine).set(*ANN, b"B")
        assert engine.space(b"3").get(*ANN) == b"A"
        with pytest.raises(Full):
            engine.space(b"5")


def test_a_namespace_that_is_only_looked_at_is_not_counted() -> None:
    engine = engine_without_files()
    engine.space(b"one").get(*ANN)
    engine.space(b"two").set(*ANN, b"A")
    assert engine.info()["namespaces"] == 1
    assert engine.info()["entries"] == 1


async def test_a_namespace_that_nobody_uses_makes_room_for_another() -> None:
    engine = engine_without_files(max_namespaces=2)
    engine.space(b"one").set(*ANN, b"A")
    with pytest.raises(Full):
        engine.space(b"two")
    engine.space(b"one").set(*ANN, START)
    used = engine.space(b"two")
    with pytest.raises(Full):
        engine.space(b"three")
    assert used.get(*ANN) == START


async def test_a_namespace_whose_last_removal_is_not_on_the_disk_yet_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1, D6: nobody may learn of the removal, and it may be taken back."""
    async with opened(tmp_path, max_namespaces=2) as engine:
        await settled(engine.space(b"one").set(*ANN, b"A"))
        appends = Gate(monkeypatch, Journal, "append")
        disk = Disk(monkeypatch)
        with appends:
            removal = engine.space(b"one").set(*ANN, START)
            await eventually(lambda: appends.waiting)
            with pytest.raises(Full):
                engine.space(b"two")
            disk.fill()
        with pytest.raises(Unavailable):
            await settled(removal)
        assert engine.space(b"one").get(*ANN) == b"A"
        disk.make_room()


# How it ends, and what the next start finds


async def test_closing_keeps_all_and_makes_no_snapshot(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await settled(space(engine).set(*ANN, b"A"))
        space(engine).set(*BEN, b"B")
    assert snapshots(tmp_path) == []
    async with opened(tmp_path) as engine:
        assert [space(engine).get(*key) for key in (ANN, BEN)] == [b"A", b"B"]


async def test_what_was_never_opened_can_be_closed(tmp_path: Path) -> None:
    directory, engine = make(tmp_path)
    await engine.close()
    directory.close()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("fsync", Fsync)
async def test_a_kill_takes_nothing_that_was_answered(tmp_path: Path, fsync: Fsync) -> None:
    async with opened(tmp_path / "0", fsync) as engine:
        for number in range(30):
            await settled(space(engine).set(b"lists", b"s%d" % number, b"A"))
            if number == 10:
                await engine.saver.snapshot()
        left = left_by_a_kill(tmp_path / "0", tmp_path / "1")
    async with opened(left, fsync) as engine:
        assert len(entries(space(engine))) == 30


async def test_what_a_clear_that_is_replayed_leaves_is_freed(tmp_path: Path) -> None:
    """So are the buckets of later ones."""
    async with opened(tmp_path) as engine:
        await fill(space(engine), 50)
        await settled(space(engine).clear())
    async with opened(tmp_path) as engine:
        await fill(space(engine), 50)
        await settled(space(engine).clear())
        await settled(space(engine).set(*ANN, b"A"))
        await eventually(lambda: engine.states.garbage == [])


async def make_damaged(path: Path) -> dict[str, bytes]:
    """A data directory whose newest snapshot is damaged at its end, beside an older one that is not."""
    async with opened(path) as engine:
        await fill(space(engine), 20)
        await engine.saver.snapshot()
        store_id = engine._directory.store_id
    newest = path / "00000003.snapshot"
    shutil.copy(path / "00000002.snapshot", newest)
    with SnapshotWriter(newest, store_id, 0) as writer:
        writer.finish(0, (0, 0))  # type: ignore[arg-type]
    newest.write_bytes(newest.read_bytes()[:-1])
    return contents(path)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "lock"}


async def test_a_damaged_snapshot_is_left_as_it_is_and_no_older_one_taken(tmp_path: Path) -> None:
    before = await make_damaged(tmp_path)
    for _ in range(2):
        with pytest.raises(DamagedFile, match=r"0000000\d"):
            async with opened(tmp_path):
                pass
    assert contents(tmp_path) == before


async def test_ending_while_loading_leaves_everything_as_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        for number in range(50):
            await settled(space(engine).set(b"lists", b"s%d" % number, b"A"))
        await engine.saver.snapshot()
    before = contents(tmp_path)

    async def open_and_close() -> None:
        async with opened(tmp_path):
            pytest.fail("it was to end while it loads")

    opening = asyncio.create_task(open_and_close())
    for _ in range(10):
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert contents(tmp_path) == before
    async with opened(tmp_path) as engine:
        assert engine.info()["entries"] == 50


async def test_an_unfinished_snapshot_is_not_there_for_the_next_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await settled(space(engine).set(*ANN, b"A"))
    temporary_name(tmp_path / "00000002.snapshot").write_bytes(b"half")
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"A"
        assert snapshots(tmp_path) == []


async def test_info_has_figures_under_fixed_names(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        names = set(engine.info())
        await settled(space(engine).set(*ANN, b"A"))
        await engine.saver.snapshot()
        assert set(engine.info()) == names == set(engine_without_files().info())
        assert all(isinstance(value, int | float | str) for value in engine.info().values())


async def test_info_says_what_is_known_while_the_states_are_loaded(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await settled(space(engine).set(*ANN, b"A"))
        known = set(engine.info())
    directory, loading = make(tmp_path)
    assert loading.info()["entries"] == 0
    assert "journal_bytes" not in loading.info()
    assert set(loading.info()) < known
    loading.snapshot_soon()  # there is nothing to make one of
    directory.close()


async def test_info_says_that_writes_are_refused_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits_module, "RETRY_EVERY", 0.002)
    disk = Disk(monkeypatch)
    async with opened(tmp_path) as engine:
        assert engine.info()["writes_refused"] == ""
        disk.fill()
        with pytest.raises(Unavailable):
            await settled(space(engine).set(*ANN, b"A"))
        assert "No space left on device" in engine.info()["writes_refused"]
        disk.make_room()
        await eventually(lambda: engine.info()["writes_refused"] == "")


# Sessions


def put_ann(state: bytes = b"A") -> Ask:
    return lambda of: of.set(*ANN, state)


def swap_ann(expected: bytes, state: bytes) -> Ask:
    return lambda of: of.compare_and_set(*ANN, expected, state)


def takes_writes(engine: EmbeddedEngine) -> bool:
    try:
        engine.commits.check()
    except Unavailable:
        return False
    return True


async def new_session(engine: EmbeddedEngine) -> int:
    session = await settled(engine.open_session(0))
    assert isinstance(session, int)
    return session


async def test_a_session_is_known_when_it_is_durable(tmp_path: Path, syncs: Gate) -> None:
    async with opened(tmp_path) as engine:
        with syncs:
            session = engine.open_session(0)
            assert isinstance(session, Held)
            told = listen(session.until)
            await eventually(lambda: syncs.waiting)
            await some_turns()
            assert told == []
        assert 0 < await settled_once_told(session, told) < 2**53
        assert engine.open_session(session.value) == session.value
        assert engine.info()["sessions"] == 1


@pytest.mark.parametrize(("drawn", "session"), [(lambda _: 0, 1), (lambda limit: limit - 1, 2**53 - 1)])
async def test_a_double_holds_what_is_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Callable[[int], int], session: int
) -> None:
    monkeypatch.setattr(secrets, "randbelow", drawn)
    async with opened(tmp_path) as engine:
        assert await new_session(engine) == session


async def test_a_larger_one_that_a_file_knows_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        engine.commits.commit(((OPENED, MAX_NUMBER),))
    async with opened(tmp_path) as engine:
        assert engine.open_session(MAX_NUMBER) == MAX_NUMBER
        first = await packed_once_settled(once(engine, MAX_NUMBER, MAX_NUMBER, put_ann(b"A")))
        assert once(engine, MAX_NUMBER, MAX_NUMBER, lambda of: of.clear()) == first
        assert space(engine).get(*ANN) == b"A"


async def test_in_place_of_one_that_nobody_knows_there_is_a_new_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        sessions = {await new_session(engine), await settled(engine.open_session(5)), await new_session(engine)}
        assert len(sessions) == engine.info()["sessions"] == 3
        assert 5 not in sessions


@pytest.mark.parametrize("ask", [put_ann(), swap_ann(b"OLD", b"NEW"), swap_ann(b"OTHER", b"NEW")])
@pytest.mark.parametrize("while_written", [False, True])
async def test_what_is_repeated_waits_for_the_same_batch(
    tmp_path: Path, syncs: Gate, ask: Ask, while_written: bool
) -> None:
    async with opened(tmp_path) as engine:
        session = await new_session(engine)
        with syncs:
            space(engine).set(*ANN, b"OLD")
            first = once(engine, session, 1, ask)
            if while_written:
                await eventually(lambda: syncs.waiting)
            state = value_of(space(engine).get(*ANN))
            assert once(engine, session, 1, lambda of: of.clear()) is first
            assert value_of(space(engine).get(*ANN)) == state
            told = listen(first.until)
            await some_turns()
            assert told == []
        await eventually(lambda: told == [None])
        assert once(engine, session, 1, lambda of: of.clear()) == first.packed


@pytest.mark.parametrize("ask", [put_ann(), swap_ann(b"OLD", b"NEW"), swap_ann(b"OTHER", b"NEW")])
@pytest.mark.parametrize("is_written", [False, True])
async def test_a_number_of_another_write_is_refused(tmp_path: Path, syncs: Gate, ask: Ask, is_written: bool) -> None:
    """K2: also while the write whose number it is waits for the disk, and if that one changed nothing."""
    async with opened(tmp_path) as engine:
        session = await new_session(engine)
        with syncs:
            space(engine).set(*ANN, b"OLD")
            first = once(engine, session, 1, ask)
            if is_written:
                await eventually(lambda: syncs.waiting)
            with pytest.raises(NumberReused, match="1 is the number of another write"):
                once(engine, session, 1, lambda of: of.clear(), fingerprint=2)
        answer = await packed_once_settled(first)
        state = space(engine).get(*ANN)
        with pytest.raises(NumberReused):
            once(engine, session, 1, lambda of: of.clear(), fingerprint=2)
        assert space(engine).get(*ANN) == state
        assert once(engine, session, 1, lambda of: of.clear()) == answer


async def test_what_is_refused_for_its_number_does_not_say_which_answers_its_client_has(tmp_path: Path) -> None:
    """It is another client than the one that waits for them."""
    async with opened(tmp_path) as engine:
        session = await new_session(engine)
        for seq in (1, 2):
            await packed_once_settled(once(engine, session, seq, put_ann(b"%d" % seq)))
        with pytest.raises(NumberReused):
            once(engine, session, 2, put_ann(b"OTHER"), oldest=2, fingerprint=5)
        assert once(engine, session, 1, put_ann(b"1")) == _pack(None)


async def test_a_number_whose_write_was_taken_back_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    async with opened(tmp_path) as engine:
        session = await new_session(engine)
        disk.fill()
        with pytest.raises(Unavailable):
            await settled(once(engine, session, 1, put_ann(b"TAKEN BACK")))
        disk.make_room()
        await eventually(lambda: takes_writes(engine))
        await packed_once_settled(once(engine, session, 1, put_ann(b"OTHER"), fingerprint=2))
        assert space(engine).get(*ANN) == b"OTHER"


async def test_a_write_of_a_file_without_fingerprints_is_known_by_its_number_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        session = await new_session(engine)
        engine.commits.commit(((DONE, session, 1, 1, b"A"),))
        await engine.saver.snapshot()
        engine.commits.commit(((DONE, session, 2, 1, b"B"),))
    async with opened(tmp_path) as engine:
        assert engine.open_session(session) == session
        assert [once(engine, session, seq, put_ann(b"OTHER"), fingerprint=9) for seq in (1, 2)] == [b"A", b"B"]


@pytest.mark.parametrize("end", ["stopped", "killed", "snapshot", "snapshot, killed"])
async def test_after_a_start_it_is_still_carried_out_once(tmp_path: Path, end: str) -> None:
    path = tmp_path / "first"
    async with opened(path) as engine:
        session, other = await new_session(engine), await new_session(engine)
        first = await packed_once_settled(once(engine, session, 1, swap_ann(START, b"A")))
        told = await packed_once_settled(once(engine, other, 5, swap_ann(b"A", b"B"), oldest=5))
        if end.startswith("snapshot"):
            await engine.saver.snapshot()
        await packed_once_settled(once(engine, other, 7, put_ann(b"C"), oldest=6))
        if end.endswith("killed"):
            left_by_a_kill(path, tmp_path / "second")
            path = tmp_path / "second"
    async with opened(path) as engine:
        assert (engine.open_session(session), engine.open_session(other)) == (session, other)
        for known, seq in ((session, 1), (other, 7)):
            with pytest.raises(NumberReused):
                once(engine, known, seq, lambda of: of.clear(), oldest=seq, fingerprint=2**32 - 1)
        assert once(engine, session, 1, lambda of: of.clear()) == first != told
        assert once(engine, other, 7, lambda of: of.clear(), oldest=6) == _pack(None)
        with pytest.raises(Uncertain):
            once(engine, other, 5, lambda of: of.clear(), oldest=5)
        assert space(engine).get(*ANN) == b"C"


@pytest.mark.parametrize("ask", [put_ann(b"NEW"), swap_ann(b"TAKEN BACK", b"NEW"), swap_ann(b"OLD", b"NEW")])
async def test_what_was_taken_back_is_forgotten_and_carried_out_when_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    disk = Disk(monkeypatch)
    async with opened(tmp_path) as engine:
        session = await new_session(engine)
        await settled(space(engine).set(*ANN, b"OLD"))
        disk.fill()
        space(engine).set(*ANN, b"TAKEN BACK")
        refused = once(engine, session, 1, ask)
        found: list[Any] = []

        def at_once(_: None, error: StateStoreError | None) -> None:
            """Who is told may ask again before the others are told."""
            client = engine.states.sessions.get(session)
            assert client is not None
            found.append((error is not None, client.reply(1)))

        engine.commits.batch.then(at_once, None)
        with pytest.raises(Unavailable):
            await settled(refused)
        assert found == [(True, None)]
        with pytest.raises(Unavailable):
            once(engine, session, 1, put_ann(b"NEW"))
        disk.make_room()
        await eventually(lambda: takes_writes(engine))
        assert space(engine).get(*ANN) == b"OLD"
        await packed_once_settled(once(engine, session, 1, put_ann(b"NEW")))
        assert space(engine).get(*ANN) == b"NEW"
        assert await packed_once_settled(once(engine, session, 1, lambda of: of.clear())) == _pack(None)


async def test_where_nothing_can_be_written_there_is_no_new_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    async with opened(tmp_path) as engine:
        known = await new_session(engine)
        disk.fill()
        refused = engine.open_session(0)
        assert isinstance(refused, Held)
        with pytest.raises(Unavailable):
            await settled(refused)
        engine.leave_session(refused.value)
        assert engine._leases.end_one() is None
        with pytest.raises(Unavailable, match="no room"):
            engine.open_session(0)
        assert engine.open_session(known) == known
        assert engine.info()["sessions"] == 1
        disk.make_room()
        await eventually(lambda: takes_writes(engine))
        assert await new_session(engine) not in (known, refused.value)
        assert engine.info()["sessions"] == 2


async def test_the_session_that_was_left_first_makes_room_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_module, "MAX_SESSIONS", 3)
    async with opened(tmp_path) as engine:
        first, second, third = [await new_session(engine) for _ in range(3)]
        with pytest.raises(Unavailable, match="all 3 sessions are in use"):
            engine.open_session(0)
        engine.leave_session(second)
        engine.leave_session(first)
        fourth = await new_session(engine)
        assert set(engine.states.sessions) == {first, third, fourth}
        assert engine.open_session(first) == first
        with pytest.raises(Unavailable, match="all 3 sessions are in use"):
            engine.open_session(0)


async def test_sessions_end_some_time_after_they_were_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_module, "LOOK_EVERY", 0.001)
    async with opened(tmp_path) as engine:
        left, used = await new_session(engine), await new_session(engine)
        await packed_once_settled(once(engine, left, 1, put_ann()))
        engine.leave_session(left)
        await some_turns()
        assert engine.info()["sessions"] == 2
        monkeypatch.setattr(leases_module, "LIFETIME", 0.01)
        await eventually(lambda: engine.info()["sessions"] == 1)
        with pytest.raises(Uncertain):
            once(engine, left, 1, put_ann(b"B"))
        await settled(once(engine, used, 1, put_ann(b"C")))
        assert engine.states.sessions.size > 0
        monkeypatch.undo()
    async with opened(tmp_path) as engine:
        assert list(engine.states.sessions) == [used]
        assert space(engine).get(*ANN) == b"C"


async def test_where_nothing_can_be_written_none_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where that is known nor where it turns out."""
    monkeypatch.setattr(embedded_module, "LOOK_EVERY", 0.001)
    disk = Disk(monkeypatch)
    async with opened(tmp_path) as engine:
        left = await new_session(engine)
        disk.fill()
        engine.leave_session(left)
        monkeypatch.setattr(leases_module, "LIFETIME", 0.005)
        await eventually(lambda: not takes_writes(engine))
        assert list(engine.states.sessions) == [left]
        looks = Gate(monkeypatch, engine._leases, "end")
        await eventually(lambda: len(looks.passed) > 5)
        assert list(engine.states.sessions) == [left]
        disk.make_room()
        await eventually(lambda: engine.info()["sessions"] == 0)


async def test_where_much_is_remembered_writes_are_looked_at_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as engine:
        session = await new_session(engine)
        monkeypatch.setattr(embedded_module, "MAX_ANSWERS", 0)
        assert engine.once_together([(session, 1, 1, 1)], put_ann(b"A")) is None
        assert space(engine).get(*ANN) == START


async def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose share is used up has to say first that it has its answers; nobody else notices."""
    monkeypatch.setattr(embedded_module, "MAX_ANSWERS", 1500)
    async with opened(tmp_path) as engine:
        greedy, modest = await new_session(engine), await new_session(engine)
        for seq in range(1, 6):
            await packed_once_settled(once(engine, greedy, seq, put_ann(b"%d of greed" % seq)))
        assert engine.states.sessions.size > 1500
        with pytest.raises(Unavailable, match="remembered"):
            once(engine, greedy, 6, put_ann(b"6 of greed"))
        assert once(engine, greedy, 5, put_ann()) == _pack(None)
        await packed_once_settled(once(engine, modest, 1, put_ann(b"modest")))
        assert space(engine).get(*ANN) == b"modest"
        await packed_once_settled(once(engine, greedy, 6, put_ann(b"6 of greed"), oldest=6))
        assert space(engine).get(*ANN) == b"6 of greed"
