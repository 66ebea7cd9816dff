"""The default engine: states like a dict's, and on the disk whenever it was promised."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from structlog.testing import capture_logs

from statestore.errors import Full
from statestored import files
from statestored.datadir import DataDirectory
from statestored.engines import embedded
from statestored.engines.base import START, Filter, Sender
from statestored.engines.embedded import EmbeddedEngine, EmbeddedSpace, SnapshotSchedule
from statestored.errors import DamagedFile
from statestored.files import temporary_name
from statestored.snapshot import EFFECTS, SnapshotWriter, verify_snapshot
from tests.server.fakes import NEVER, engine_without_files
from tests.server.models import TODAY, Model, apply, as_model, modules, namespaces, senders, small_buckets, states
from tests.server.waiting import eventually

SECONDS_A_DAY = 86400
ANN = (b"lists", b"ann")


@pytest.fixture(autouse=True)
def _small_buckets() -> Iterator[None]:
    with small_buckets():
        yield


@asynccontextmanager
async def opened(
    path: Path, *, interval: float = 0, changes: int = 0, max_namespaces: int = 1000
) -> AsyncIterator[EmbeddedEngine]:
    """Closed in order; what a test leaves open on purpose it opens itself."""
    directory = DataDirectory(path)
    directory.open()
    engine = EmbeddedEngine(directory, SnapshotSchedule(interval, changes), max_namespaces)
    try:
        await engine.open()
        yield engine
    finally:
        await engine.close()
        directory.close()


def space(engine: EmbeddedEngine) -> EmbeddedSpace:
    return engine.space(b"default")


def snapshots(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("*.snapshot*"))


def entries(of: EmbeddedSpace) -> Model:
    page = of.scan(None, Filter())
    found = list(page.entries)
    while page.cursor is not None:
        page = of.scan(page.cursor, Filter())
        found += page.entries
    return as_model(found)


def fill(of: EmbeddedSpace, count: int) -> None:
    for number in range(count):
        of.set(b"lists", b"s%d" % number, b"POSTING")


class EngineAgainstDicts(RuleBasedStateMachine):
    """Every method, in two namespaces, with restarts in between."""

    path: Path

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        for file in self.path.glob("*.snapshot"):
            file.unlink()
        self.models: dict[bytes, Model] = {b"default": {}, b"other": {}}
        self.start()

    def start(self) -> None:
        self.directory = DataDirectory(self.path)
        self.directory.open()
        self.engine = EmbeddedEngine(self.directory, NEVER, 1000)
        self.runner.run(self.engine.open())

    def stop(self) -> None:
        self.runner.run(self.engine.close())
        self.directory.close()

    def teardown(self) -> None:
        self.stop()
        self.runner.close()

    def put(self, name: bytes, module: bytes, sender: Sender, state: bytes) -> None:
        apply(self.models, (1, name, module, sender, state), TODAY)

    def get(self, name: bytes, module: bytes, sender: Sender) -> bytes:
        return self.models[name].get((module, sender), (START, 0))[0]

    @rule(name=namespaces, module=modules, sender=senders)
    def look(self, name: bytes, module: bytes, sender: Sender) -> None:
        assert self.engine.space(name).get(module, sender) == self.get(name, module, sender)

    @rule(name=namespaces, pairs=st.lists(st.tuples(modules, senders), max_size=5))
    def look_at_many(self, name: bytes, pairs: list[tuple[bytes, Sender]]) -> None:
        assert self.engine.space(name).get_many(pairs) == [self.get(name, *pair) for pair in pairs]

    @rule(name=namespaces, module=modules, sender=senders, state=states)
    def set(self, name: bytes, module: bytes, sender: Sender, state: bytes) -> None:
        self.engine.space(name).set(module, sender, state)
        self.put(name, module, sender, state)

    @rule(name=namespaces, triples=st.lists(st.tuples(modules, senders, states), max_size=20))
    def set_many(self, name: bytes, triples: list[tuple[bytes, Sender, bytes]]) -> None:
        self.engine.space(name).set_many(triples)
        for triple in triples:
            self.put(name, *triple)

    @rule(name=namespaces, sender=senders, state=states)
    def set_all(self, name: bytes, sender: Sender, state: bytes) -> None:
        its = [module for module, of in self.models[name] if of == sender]
        assert self.engine.space(name).set_all(sender, state) == len(its)
        for module in its:
            self.put(name, module, sender, state)

    @rule(name=namespaces, module=modules, sender=senders, expected=states, state=states)
    def compare_and_set(self, name: bytes, module: bytes, sender: Sender, expected: bytes, state: bytes) -> None:
        previous = self.get(name, module, sender)
        answer = self.engine.space(name).compare_and_set(module, sender, expected, state)
        assert answer == (previous == expected, previous)
        if previous == expected:
            self.put(name, module, sender, state)

    @rule(name=namespaces)
    def clear(self, name: bytes) -> None:
        async def clear() -> None:
            self.engine.space(name).clear()
            await asyncio.sleep(0)

        self.runner.run(clear())
        self.models[name].clear()

    @rule()
    def restart(self) -> None:
        self.stop()
        self.start()

    @rule(name=namespaces, module=st.none() | modules)
    def count(self, name: bytes, module: bytes | None) -> None:
        counts = self.engine.space(name).count(module, None)
        truth = Counter((its, state) for (its, _), (state, _) in self.models[name].items() if module in (None, its))
        assert {(its, state): number for its, state, number in counts.rows} == truth
        assert (counts.total, counts.uncounted) == (truth.total(), 0)

    @invariant()
    def holds_the_same(self) -> None:
        for name, model in self.models.items():
            assert entries(self.engine.space(name)) == model


def test_the_engine_is_a_dict_that_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "time", SimpleNamespace(time=lambda: TODAY * SECONDS_A_DAY, monotonic=lambda: 0.0))
    monkeypatch.setattr(files, "sync_file", lambda _: None)
    monkeypatch.setattr(files, "sync_directory", lambda _: None)
    EngineAgainstDicts.path = tmp_path
    run = EngineAgainstDicts.TestCase()
    run.settings = settings(max_examples=25, stateful_step_count=30)
    with capture_logs():
        run.runTest()


def test_the_day_is_todays_and_stays_where_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5 * SECONDS_A_DAY - 1.0
    monkeypatch.setattr(embedded, "time", SimpleNamespace(time=lambda: now))
    default = space(engine_without_files())
    default.set(*ANN, b"A")
    now += 1
    default.set(b"lists", b"ben", b"A")
    default.set(*ANN, b"A")
    default.set_many([(*ANN, b"A")])
    default.set_all(b"ann", b"A")
    default.compare_and_set(*ANN, b"A", b"A")
    assert entries(default) == {ANN: (b"A", 4), (b"lists", b"ben"): (b"A", 5)}


def test_what_changes_nothing_is_no_change() -> None:
    engine = engine_without_files()
    default = space(engine)
    default.set(*ANN, b"A")
    default.set(*ANN, b"A")
    default.set(b"lists", b"ben", START)
    default.set_all(b"cleo", b"B")
    default.compare_and_set(*ANN, b"B", b"C")
    default.set_many([])
    engine.space(b"other").clear()
    assert engine.info()["changes_since_snapshot"] == 1


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
            engine.space(b"%d" % number).set(*ANN, b"A")
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


async def test_closing_saves(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        space(engine).set(*ANN, b"A")
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"A"
        assert engine.info()["changes_since_snapshot"] == 0


async def test_closing_without_changes_writes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    assert snapshots(tmp_path) == []
    async with opened(tmp_path) as engine:
        space(engine).set(*ANN, b"A")
    async with opened(tmp_path) as engine:
        space(engine).get(*ANN)
    assert snapshots(tmp_path) == ["00000001.snapshot"]


async def test_a_snapshot_is_due_after_so_many_changes(tmp_path: Path) -> None:
    async with opened(tmp_path, changes=10) as engine:
        fill(space(engine), 9)
        await asyncio.sleep(0)
        assert snapshots(tmp_path) == []
        space(engine).set(*ANN, b"A")
        await eventually(lambda: engine.info()["changes_since_snapshot"] == 0)
        assert snapshots(tmp_path) == ["00000001.snapshot"]


async def test_a_snapshot_is_due_after_an_interval(tmp_path: Path) -> None:
    async with opened(tmp_path, interval=0.01) as engine:
        for number in (1, 2):
            space(engine).set(*ANN, b"%d" % number)
            await eventually(lambda: engine.info()["changes_since_snapshot"] == 0)
            assert snapshots(tmp_path) == [f"0000000{number}.snapshot"]


async def test_commits_during_a_snapshot_do_not_make_another_one_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be the next of a series without end, under load."""
    loop = asyncio.get_running_loop()

    async with opened(tmp_path, changes=10) as engine:

        def verify_while_one_commits(*arguments: Any) -> None:
            verify_snapshot(*arguments)
            done = threading.Event()
            loop.call_soon_threadsafe(lambda: (space(engine).set(*ANN, b"A"), done.set()))
            done.wait()

        monkeypatch.setattr(embedded, "verify_snapshot", verify_while_one_commits)
        fill(space(engine), 10)
        await eventually(lambda: engine.info()["changes_since_snapshot"] == 1)
        monkeypatch.setattr(embedded, "verify_snapshot", verify_snapshot)
        for number in range(9):
            space(engine).set(*ANN, b"%d" % number)
            await asyncio.sleep(0)
        await eventually(lambda: engine.info()["changes_since_snapshot"] == 0)
        assert snapshots(tmp_path) == ["00000002.snapshot"]


async def test_older_snapshots_go_only_after_the_new_one_was_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def verify(*arguments: Any) -> None:
        seen.append(snapshots(tmp_path))
        verify_snapshot(*arguments)

    monkeypatch.setattr(embedded, "verify_snapshot", verify)
    async with opened(tmp_path) as engine:
        for state in (b"A", b"B"):
            space(engine).set(*ANN, state)
            await engine.snapshot()
    assert seen[1] == ["00000001.snapshot", "00000002.snapshot"]
    assert snapshots(tmp_path) == ["00000002.snapshot"]


async def test_a_snapshot_that_cannot_be_read_back_is_not_what_the_next_start_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(path: Path, *_: Any) -> None:
        raise DamagedFile(path, "as told to be")

    async with opened(tmp_path) as engine:
        space(engine).set(*ANN, b"A")
        await engine.snapshot()
        space(engine).set(*ANN, b"B")
        monkeypatch.setattr(embedded, "verify_snapshot", damaged)
        with pytest.raises(DamagedFile):
            await engine.snapshot()
        assert snapshots(tmp_path) == ["00000001.snapshot"]
        monkeypatch.setattr(embedded, "verify_snapshot", verify_snapshot)


async def test_a_snapshot_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(28, "No space left on device")] * 2
    sync_file = files.sync_file

    def sync(file: Any) -> None:
        if failures:
            raise failures.pop()
        sync_file(file)

    monkeypatch.setattr(files, "sync_file", sync)
    monkeypatch.setattr(embedded, "RETRY_AFTER", 0.001)
    failures, later = [], failures
    async with opened(tmp_path, changes=1) as engine:
        failures = later
        with capture_logs() as logs:
            space(engine).set(*ANN, b"A")
            await eventually(lambda: engine.info()["changes_since_snapshot"] == 0)
        assert engine.info()["snapshot_failures"] == 2
    assert ["No space left" in entry.get("error", "") for entry in logs] == [True, True, False]
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"A"


async def test_closing_fails_where_the_states_cannot_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise OSError(28, "No space left on device")

    engine = EmbeddedEngine(directory := DataDirectory(tmp_path), NEVER, 1000)
    directory.open()
    await engine.open()
    space(engine).set(*ANN, b"A")
    monkeypatch.setattr(files, "sync_file", fail)
    with pytest.raises(OSError, match="No space left"):
        await engine.close()
    directory.close()


async def test_closing_while_a_snapshot_is_being_finished_saves_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow sync of a busy disk; and SIGTERM comes."""
    syncing, go_on, sync_file, replaced = threading.Event(), threading.Event(), files.sync_file, threading.Event()
    put_in_place = files.put_in_place

    def sync(file: Any) -> None:
        sync_file(file)
        if not syncing.is_set():  # the first one, and its thread, hang here
            syncing.set()
            go_on.wait(10)
        else:
            go_on.set()
            replaced.wait(10)

    def replace(*paths: Path) -> None:
        try:
            put_in_place(*paths)
        finally:
            replaced.set()

    async with opened(tmp_path, changes=10) as engine:
        monkeypatch.setattr(files, "sync_file", sync)
        monkeypatch.setattr(files, "put_in_place", replace)
        fill(space(engine), 10)
        await eventually(syncing.is_set)
        space(engine).set(*ANN, b"A")
        closing = asyncio.create_task(engine.close())
        await asyncio.wait([closing], timeout=0.1)  # to go wrong, if it does
        go_on.set()
        await closing
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"A"
        assert engine.info()["entries"] == 11


async def test_the_newest_snapshot_is_loaded(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        space(engine).set(*ANN, b"old")
        await engine.snapshot()
        old = (tmp_path / "00000001.snapshot").read_bytes()
        space(engine).set(*ANN, b"new")
    (tmp_path / "00000001.snapshot").write_bytes(old)  # as a kill between two steps leaves it
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"new"
    assert snapshots(tmp_path) == ["00000001.snapshot", "00000002.snapshot"]


async def make_damaged(path: Path, *, with_effects: bool) -> dict[str, bytes]:
    """A data directory whose newest snapshot is damaged at its end, beside an older one that is not."""
    async with opened(path) as engine:
        fill(space(engine), 20)
        await engine.snapshot()
        store_id = engine._directory.store_id
    newest = path / "00000002.snapshot"
    with SnapshotWriter(newest, store_id) as writer:
        if with_effects:
            writer.write(EFFECTS, [(TODAY, [(1, b"default", *ANN, b"A")])])
        writer.finish(1)
    newest.write_bytes(newest.read_bytes()[:-1])
    return contents(path)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("with_effects", [False, True])
async def test_a_damaged_snapshot_is_left_as_it_is(tmp_path: Path, with_effects: bool) -> None:
    """Neither is an older one taken instead, nor is what could be read put in its place."""
    before = await make_damaged(tmp_path, with_effects=with_effects)
    with pytest.raises(DamagedFile, match=r"00000002\.snapshot"):
        async with opened(tmp_path):
            pass
    assert contents(tmp_path) == before


async def test_ending_while_loading_leaves_the_snapshot_as_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        store_id = engine._directory.store_id
        with SnapshotWriter(tmp_path / "00000001.snapshot", store_id) as writer:
            for number in range(50):
                writer.write(EFFECTS, [(TODAY, [(1, b"default", b"lists", b"s%d" % number, b"A")])])
            writer.finish(50)
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
        space(engine).set(*ANN, b"A")
    temporary_name(tmp_path / "00000002.snapshot").write_bytes(b"half")
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"A"
        assert snapshots(tmp_path) == ["00000001.snapshot"]


async def test_what_was_cleared_is_freed_over_several_turns_of_the_loop() -> None:
    """The test fails, as all do here, where the loop has to report an error."""
    engine = engine_without_files()
    default = space(engine)
    for _ in range(3):
        fill(default, 20)
        default.clear()
        default.set(*ANN, b"A")
        default.set(*ANN, b"B")
        assert entries(default).keys() == {ANN}
    assert engine._states.garbage
    await eventually(lambda: engine._states.garbage == [])


async def test_info_has_figures_under_fixed_names(tmp_path: Path) -> None:
    before = time.time()
    async with opened(tmp_path) as engine:
        names = set(engine.info())
        assert engine.info()["last_snapshot_time"] == 0
        space(engine).set(*ANN, b"A")
        await engine.snapshot()
        info = engine.info()
        assert set(info) == names
        assert before <= info["last_snapshot_time"] <= time.time()
        assert 0 < info["last_snapshot_seconds"] < 10
        assert all(isinstance(value, int | float) for value in info.values())
