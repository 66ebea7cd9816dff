"""A snapshot stands for the moment in which it was finished, whatever was committed meanwhile."""

import asyncio
import gc
import uuid
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from statestored import files
from statestored.engines import snapshots
from statestored.engines.snapshots import SnapshotInProgress, load_snapshot
from statestored.engines.states import CLEAR, PUT, Effect, States
from statestored.errors import DamagedFile, TooNew
from statestored.snapshot import BUCKET, EFFECTS, FOOTER, SnapshotWriter, read_snapshot
from tests.server.models import TODAY, Model, apply, content, effects, small_buckets, without_empty

STORE = uuid.UUID("7d1c6f0e-0d6a-4b1e-9f4c-2f8e6a1b3c5d")


@pytest.fixture(scope="module", autouse=True)
def _small_buckets() -> Iterator[None]:
    with small_buckets():
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00000001.snapshot"


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner() as runner:
        return runner.run(coroutine)


def filled(senders: int, namespace: bytes = b"default") -> States:
    states = States()
    states.apply([(PUT, namespace, b"lists", b"s%d" % number, b"POSTING") for number in range(senders)], TODAY)
    return states


async def loaded(path: Path) -> States:
    states = States()
    await load_snapshot(path, STORE, states)
    return states


class Commits:
    """Commits effects one by one, a few in each turn of the loop, for as long as the snapshot is written."""

    def __init__(self, states: States, snapshot: SnapshotInProgress) -> None:
        self._states = states
        self._snapshot = snapshot
        self.turns = 0

    def commit(self, some: Sequence[Effect], day: int = TODAY + 1) -> None:
        self._states.apply(some, day)
        self._snapshot.carry(some, day)

    async def go_on(self, turns: Iterator[Sequence[Effect]]) -> None:
        for some in turns:
            self.turns += 1
            for effect in some:
                self.commit([effect])
            await asyncio.sleep(0)


async def write_while_committing(
    path: Path, before: Sequence[Effect], turns: Sequence[Sequence[Effect]]
) -> tuple[States, int]:
    """What is in the memory at the end, and how many of its changes the snapshot has."""
    states = States()
    states.apply(before, TODAY)
    snapshot = SnapshotInProgress(states)
    committing = asyncio.create_task(Commits(states, snapshot).go_on(iter(turns)))
    changes = await snapshot.write(path, STORE)
    await committing
    return states, changes


def states_after(changes: int, before: list[Effect], turns: list[list[Effect]]) -> dict[bytes, Model]:
    models: dict[bytes, Model] = {}
    committed = [(effect, TODAY) for effect in before] + [(effect, TODAY + 1) for turn in turns for effect in turn]
    for effect, day in committed:
        if changes == 0:
            break
        changes -= apply(models, effect, day)
    return without_empty(models)


@settings(max_examples=60)
@given(before=st.lists(effects, max_size=40), turns=st.lists(st.lists(effects, max_size=4), max_size=30))
def test_it_holds_exactly_the_states_at_its_end(
    tmp_path_factory: pytest.TempPathFactory, before: list[Effect], turns: list[list[Effect]]
) -> None:
    path = tmp_path_factory.mktemp("snapshot") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync_file", lambda _: None)
        patch.setattr(files, "sync_directory", lambda _: None)
        states, changes = run(write_while_committing(path, before, turns))
    assert changes <= states.changes
    assert content(run(loaded(path))) == states_after(changes, before, turns)


async def test_commits_between_its_slices_are_carried(path: Path) -> None:
    before = [(PUT, b"default", b"lists", b"s%d" % number, b"POSTING") for number in range(20)]
    turns = [[(PUT, b"default", b"lists", b"t%d" % number, b"CONFIRMING")] for number in range(5)]
    _, changes = await write_while_committing(path, before, turns)
    kinds = [block.kind for block in read_snapshot(path, STORE)]
    assert kinds == [BUCKET] * (len(kinds) - 2) + [EFFECTS, FOOTER]
    assert changes == 20 + 5


async def test_buckets_that_split_during_the_walk_are_whole_in_it(path: Path) -> None:
    turns = [[(PUT, b"default", b"lists", b"t%d" % number, b"A")] for number in range(200)]
    states = filled(60)
    snapshot = SnapshotInProgress(states)
    commits = Commits(states, snapshot)
    committing = asyncio.create_task(commits.go_on(iter(turns)))
    changes = await snapshot.write(path, STORE)
    assert commits.turns > 10
    await committing
    assert len(await loaded(path)) == changes


async def test_a_clear_in_the_middle_of_the_walk_leaves_a_file_that_can_be_loaded(path: Path) -> None:
    """The buckets that come after it cover other positions than those before."""
    states = filled(50)
    puts = [(PUT, b"default", b"lists", b"t%d" % number, b"A") for number in range(3)]
    turns = [[], [], [], [(CLEAR, b"default"), *puts]]
    snapshot = SnapshotInProgress(states)
    committing = asyncio.create_task(Commits(states, snapshot).go_on(iter(turns)))
    await snapshot.write(path, STORE)
    await committing
    assert content(await loaded(path)) == content(states)
    assert len(states) == 3


@pytest.mark.parametrize("a_turn", [1, 30])
async def test_it_ends_although_something_is_committed_in_every_turn(
    path: Path, monkeypatch: pytest.MonkeyPatch, a_turn: int
) -> None:
    """And although it is more than a slice takes, as with many clients that pipeline their writes."""
    monkeypatch.setattr(snapshots, "EFFECTS_A_BLOCK", 10)
    states = filled(20)
    snapshot = SnapshotInProgress(states)
    commits = Commits(states, snapshot)
    turns = ([(PUT, b"default", b"lists", b"ann", b"%d" % turn)] * a_turn for turn in range(2000))
    committing = asyncio.create_task(commits.go_on(turns))
    await snapshot.write(path, STORE)
    committing.cancel()
    await asyncio.wait([committing])
    carried = sum(
        len(some) for block in read_snapshot(path, STORE) if block.kind == EFFECTS for _, some in block.content
    )
    assert 0 < carried < 500 * a_turn


async def test_a_slice_of_effects_is_bounded_though_commits_are_large(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`set_many` commits a thousand at once; a slice must stay about a millisecond's work."""
    monkeypatch.setattr(snapshots, "EFFECTS_A_BLOCK", 10)
    states = filled(20)
    snapshot = SnapshotInProgress(states)
    for number in range(20):
        Commits(states, snapshot).commit([(PUT, b"default", b"lists", b"s%d" % number, b"A")] * 5)
    await snapshot.write(path, STORE)
    carried = [
        sum(len(some) for _, some in block.content) for block in read_snapshot(path, STORE) if block.kind == EFFECTS
    ]
    assert sum(carried) == 100
    assert max(carried) < 10 + 5


def test_it_is_synced_in_small_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    sync_file = files.sync_file

    def sync(file: Any) -> None:
        sync_file(file)
        syncs.append(file.tell())

    monkeypatch.setattr(snapshots, "SYNC_EVERY", 200)
    monkeypatch.setattr(files, "sync_file", sync)
    run(SnapshotInProgress(filled(100)).write(path, STORE))
    assert len(syncs) > 10
    assert syncs[-1] == path.stat().st_size


async def test_others_have_their_turn_between_slices(path: Path) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    states = filled(100)
    await SnapshotInProgress(states).write(path, STORE)
    counting.cancel()
    assert turns >= len([covered for covered in states.table(b"default").walk() if covered.bucket])


async def test_all_namespaces_are_in_it(path: Path) -> None:
    states = filled(20, b"one")
    states.apply([(PUT, b"two", b"m", None, b"A"), (PUT, b"two", b"m", b"", b"B")], TODAY)
    states.table(b"never used")
    await SnapshotInProgress(states).write(path, STORE)
    assert content(await loaded(path)) == content(states)


async def test_nothing_at_all_can_be_saved_as_well(path: Path) -> None:
    assert await SnapshotInProgress(States()).write(path, STORE) == 0
    assert content(await loaded(path)) == {}


async def test_what_is_loaded_can_be_changed_and_saved_again(path: Path) -> None:
    states = filled(50)
    await SnapshotInProgress(states).write(path, STORE)
    again = await loaded(path)
    for each in (states, again):
        each.apply([(PUT, b"default", b"lists", b"s%d" % number, b"BOUNCED") for number in range(0, 90, 3)], TODAY + 1)
    await SnapshotInProgress(again).write(path, STORE)
    assert content(await loaded(path)) == content(states)


async def test_a_failure_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(files, "sync_file", fail)
    with pytest.raises(OSError, match="no space left"):
        await SnapshotInProgress(filled(20)).write(path, STORE)
    assert list(path.parent.iterdir()) == []


async def test_entries_loaded_share_what_they_hold(path: Path) -> None:
    await SnapshotInProgress(filled(50)).write(path, STORE)
    states = await loaded(path)
    held = [held for covered in states.table(b"default").walk() for held in covered.bucket.values()]
    assert len(held) == 50
    assert len(set(map(id, held))) == 1


def test_no_flipped_bit_and_no_cut_gives_other_states(path: Path) -> None:
    before = [(PUT, b"a", b"m", b"s%d" % number, b"A") for number in range(5)]
    run(write_while_committing(path, before, turns=[[(PUT, b"a", b"m", b"ben", b"B")]]))
    data = path.read_bytes()
    with asyncio.Runner() as runner:
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises((DamagedFile, TooNew)):
                runner.run(loaded(path))
        for size in range(len(data)):
            path.write_bytes(data[:size])
            with pytest.raises(DamagedFile):
                runner.run(loaded(path))


HELD = [[(b"m", b"A", TODAY)]]
ONE = (BUCKET, [b"default", 0, 0, HELD, [b"ann"], [0]])


@pytest.mark.parametrize(
    ("blocks", "entries"),
    [
        ([(BUCKET, [b"default", 0, 0, HELD, [b"ann"], [1]])], 1),  # it holds only one thing
        ([(BUCKET, [b"default", 0, 0, HELD, [b"ann", b"ben"], [0]])], 1),
        ([(BUCKET, [b"default", 0, 0, HELD, [b"ann", b"ann"], [0, 0]])], 1),
        ([(BUCKET, [b"default", 0, 0, [[]], [b"ann"], [0]])], 0),
        ([(BUCKET, [b"default", 0, 0, [[(b"m", b"A")]], [b"ann"], [0]])], 1),
        ([(BUCKET, [b"default", 0, 0])], 0),
        ([(BUCKET, 5)], 0),
        ([ONE, (BUCKET, [b"default", 0, 0, HELD, [b"ben"], [0]])], 2),
        ([(EFFECTS, [1, 2])], 0),
        ([(EFFECTS, 5)], 0),
        ([ONE], 0),
        ([ONE], 2),
    ],
)
async def test_blocks_that_make_no_sense_are_damage(path: Path, blocks: list[tuple[int, Any]], entries: int) -> None:
    with SnapshotWriter(path, STORE) as writer:
        for kind, its_content in blocks:
            writer.write(kind, its_content)
        writer.finish(entries)
    with pytest.raises(DamagedFile, match="makes no sense") as damage:
        await loaded(path)
    assert str(path) in str(damage.value)


def test_the_garbage_collector_runs_again_after_damage(path: Path) -> None:
    path.write_bytes(b"damaged")
    with pytest.raises(DamagedFile):
        run(loaded(path))
    assert gc.isenabled()


async def test_loading_says_how_far_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PROGRESS_EVERY", 10)
    await SnapshotInProgress(filled(50)).write(path, STORE)
    with capture_logs() as logs:
        await loaded(path)
    assert len([entry for entry in logs if entry["event"] == "loading"]) == 5
    assert (logs[-1]["event"], logs[-1]["entries"]) == ("loaded", 50)
