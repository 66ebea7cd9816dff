"""A snapshot, and the journal from where its walk began, are the states, whatever was committed meanwhile."""

import asyncio
import errno
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from statestored import files
from statestored.engines import sessions, snapshots
from statestored.engines.base import START
from statestored.engines.sessions import ANSWER_SIZE, DONE, DUMP_SIZE, OPENED
from statestored.engines.snapshots import (
    BYTES_A_SLICE,
    ENTRIES_A_SLICE,
    ENTRY_BYTES,
    load_snapshot,
    write_states,
)
from statestored.engines.states import CLEAR, PUT, Effect, States
from statestored.engines.table import BUCKET_SIZE, MAX_DEPTH, position_of
from statestored.errors import DamagedFile, DiskFailed, NoRoom, TooNew
from statestored.framing import Kind
from statestored.framing import Sequence as Number
from statestored.snapshot import SnapshotWriter, content_of, read_snapshot, verify_snapshot
from tests.server.journals import Batch, Daemon, put, recovered, states_after, without_syncs
from tests.server.models import (
    TODAY,
    content,
    days,
    effects,
    possible,
    remembered,
    remembered_after,
    sender_at,
    session_effects,
    small_buckets,
)

STORE = uuid.UUID("7d1c6f0e-0d6a-4b1e-9f4c-2f8e6a1b3c5d")
LAST = Number(3, 4)

batches = st.builds(Batch, st.lists(effects, min_size=1, max_size=4), days)


@pytest.fixture(scope="module", autouse=True)
def _small_buckets() -> Iterator[None]:
    with small_buckets(), without_syncs():
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


async def save(path: Path, states: States) -> int:
    """Returns how many entries were written."""
    with SnapshotWriter(path, STORE, 0) as writer:
        entries = await write_states(states, writer)
        writer.finish(entries, LAST)
    return entries


async def loaded(path: Path) -> States:
    states = States()
    await load_snapshot(path, STORE, states)
    return states


class Turns:
    """A batch in each turn of the loop, for as long as there are some and the snapshot is being written."""

    def __init__(self, daemon: Daemon, some: Iterable[Batch]) -> None:
        self._daemon = daemon
        self._some = some
        self.written: list[Batch] = []

    async def go_on(self) -> None:
        for batch in self._some:
            self._daemon.write(batch)
            self.written.append(batch)
            await asyncio.sleep(0)


async def snapshot_while_writing(daemon: Daemon, meanwhile: Iterable[Batch]) -> list[Batch]:
    """As the saver makes one. Returns what was written by its end."""
    daemon.journal.rotate()
    turns = Turns(daemon, meanwhile)
    writing = asyncio.create_task(turns.go_on())
    path, store_id = daemon.directory.snapshot(daemon.journal.number), daemon.directory.store_id
    with SnapshotWriter(path, store_id, 0) as writer:
        entries = await write_states(daemon.states, writer)
        writing.cancel()
        await asyncio.wait([writing])
        writer.finish(entries, daemon.journal.last)
    verify_snapshot(path, store_id)
    daemon.directory.remove_before(daemon.journal.number)
    return turns.written


async def walked_and_replayed(
    path: Path, before: list[Batch], meanwhile: list[Batch], after: list[Batch]
) -> list[Batch]:
    """A daemon's life with a snapshot in it. Returns all that it wrote."""
    daemon = await Daemon(path).start()
    daemon.write(*before)
    written = [*before, *await snapshot_while_writing(daemon, meanwhile), *after]
    daemon.write(*after)
    assert content(daemon.states) == states_after(written)
    daemon.kill()
    return written


@settings(max_examples=100)
@given(
    before=st.lists(batches, max_size=15),
    meanwhile=st.lists(batches, max_size=20),
    after=st.lists(batches, max_size=3),
    flush_every=st.sampled_from([1, 200, 2**20]),
)
def test_the_walk_and_what_is_replayed_from_its_beginning_are_exactly_the_states(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[Batch],
    meanwhile: list[Batch],
    after: list[Batch],
    flush_every: int,
) -> None:
    """D7: the days of the entries included."""
    path = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "FLUSH_EVERY", flush_every)
        written = run(walked_and_replayed(path, before, meanwhile, after))
    found = run(recovered(path))
    assert (found.states, found.dropped) == (states_after(written), 0)


@settings(max_examples=100)
@given(
    stream=st.lists(session_effects, max_size=50).map(possible),
    before=st.integers(0, 30),
    meanwhile=st.integers(0, 20),
    block=st.integers(1, 6),
)
def test_sessions_are_as_they_were_whatever_was_done_during_the_walk(
    tmp_path_factory: pytest.TempPathFactory, stream: list[Effect], before: int, meanwhile: int, block: int
) -> None:
    path = tmp_path_factory.mktemp("data")
    each = [Batch([effect]) for effect in stream]

    async def live() -> list[Batch]:
        daemon = await Daemon(path).start()
        daemon.write(*each[:before])
        written = await snapshot_while_writing(daemon, each[before : before + meanwhile])
        rest = each[before + len(written) :]
        daemon.write(*rest)
        daemon.kill()
        return rest

    with pytest.MonkeyPatch.context() as patch:
        for module in (snapshots, sessions):  # a block has some sessions, a session is in several blocks
            patch.setattr(module, "DUMP_SIZE", block * ANSWER_SIZE)
        run(live())
    assert run(recovered(path)).sessions == remembered_after(stream)


async def test_sessions_stand_in_blocks_that_do_not_take_long(path: Path) -> None:
    states = filled(1)
    states.apply([(OPENED, session) for session in range(1, 2001)], TODAY)
    states.apply([(DONE, 7, seq, 1, b"A") for seq in range(1, 1001)], TODAY)
    states.apply([(DONE, 8, seq, 1, b"A") for seq in range(1, 1001)], TODAY)
    assert await save(path, states) == 1
    again = await loaded(path)
    assert remembered(again.sessions) == remembered(states.sessions)
    sizes = []
    for frame in read_snapshot(path, STORE):
        if frame.kind == Kind.SESSIONS:
            sizes.append(sum(1 + len(answers) for _, _, answers in content_of(path, frame)))
    assert sum(sizes) >= 4000, "a session counts in each block that has answers of it"
    assert max(sizes) <= 2 * DUMP_SIZE // ANSWER_SIZE
    assert len(sizes) >= 3


async def test_without_sessions_there_is_no_block_of_them(path: Path) -> None:
    await save(path, filled(3))
    assert [frame for frame in read_snapshot(path, STORE) if frame.kind == Kind.SESSIONS] == []


@pytest.mark.parametrize("dumps", [7, [7], [(7, 0, [])], [(7, 2, [(1, b"A")])], [(7, 1, [(1, 1)])], {"a": 1}])
async def test_a_block_of_sessions_that_makes_no_sense_is_damage(path: Path, dumps: Any) -> None:
    with SnapshotWriter(path, STORE, 0) as writer:
        writer.add(Kind.SESSIONS, dumps)
        writer.finish(0, LAST)
    with pytest.raises(DamagedFile, match="makes no sense"):
        await loaded(path)


async def test_some_buckets_have_what_is_committed_meanwhile_and_some_have_not(tmp_path: Path) -> None:
    """So that the journal is what makes them whole."""
    senders = [f"s{number}" for number in range(40)]
    before = Batch([put(sender, "OLD") for sender in senders])
    daemon = await Daemon(tmp_path).start()
    daemon.write(before)
    meanwhile = [Batch([put(sender, "NEW")], TODAY + 1) for sender in senders]
    written = await snapshot_while_writing(daemon, meanwhile)
    alone = States()
    await load_snapshot(daemon.directory.snapshots()[-1], daemon.directory.store_id, alone)
    states = {state for state, _ in content(alone)[b"default"].values()}
    assert states == {b"OLD", b"NEW"}
    assert content(alone) != content(daemon.states) == states_after([before, *written])
    daemon.kill()
    assert (await recovered(tmp_path)).states == states_after([before, *written])


async def test_buckets_that_split_during_the_walk_are_whole_in_it(tmp_path: Path) -> None:
    before = [Batch([put(f"s{number}", "A") for number in range(60)])]
    meanwhile = [Batch([put(f"t{number}", "B")]) for number in range(200)]
    written = await walked_and_replayed(tmp_path, before, meanwhile, [])
    assert len(written) > 10
    assert (await recovered(tmp_path)).states == states_after(written)


async def test_a_clear_in_the_middle_of_the_walk_leaves_a_file_that_can_be_loaded(tmp_path: Path) -> None:
    """The buckets that come after it cover other positions than those before."""
    before = [Batch([put(f"s{number}", "A") for number in range(50)])]
    cleared = Batch([(CLEAR, b"default"), *(put(f"t{number}", "B") for number in range(3))], TODAY + 1)
    meanwhile = [*(Batch([put(f"u{number}", "C")]) for number in range(4)), cleared]
    written = await walked_and_replayed(tmp_path, before, meanwhile, [])
    assert written[-1] == cleared
    assert (await recovered(tmp_path)).states == states_after(written) == states_after([cleared])


@pytest.mark.parametrize(("a_turn", "senders"), [(1, 1_000_000), (30, 40)])
async def test_the_walk_ends_although_something_is_committed_in_every_turn(
    tmp_path: Path, a_turn: int, senders: int
) -> None:
    """New senders, or new states of those that are there, and more of them than a slice takes."""

    def for_ever() -> Iterator[Batch]:
        number = 0
        while True:
            yield Batch([put(f"s{(number + more) % senders}", f"{number}") for more in range(a_turn)])
            number += a_turn

    daemon = await Daemon(tmp_path).start()
    before = Batch([put(f"s{number}", "A") for number in range(20)])
    daemon.write(before)
    written = await snapshot_while_writing(daemon, for_ever())
    daemon.kill()
    assert 0 < len(written) < 200
    assert (await recovered(tmp_path)).states == states_after([before, *written])


async def test_one_snapshot_may_follow_another(tmp_path: Path) -> None:
    """And an unclean start comes between them."""
    written: list[Batch] = []
    for round_number in range(4):
        daemon = await Daemon(tmp_path).start()
        meanwhile = [Batch([put(f"s{number}", f"{round_number}")], TODAY + round_number) for number in range(30)]
        written += await snapshot_while_writing(daemon, meanwhile)
        more = Batch([put(f"r{round_number}", "A")])
        daemon.write(more)
        written.append(more)
        daemon.kill()
        assert (await recovered(tmp_path)).states == states_after(written)
    assert len(list(tmp_path.glob("*.snapshot"))) == 1


def test_it_is_written_and_synced_in_small_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D7: the disk is shared with the journal."""
    sizes: list[int] = []
    write_at = files.write_at

    def write(file: BinaryIO, data: bytes, offset: int) -> None:
        sizes.append(len(data))
        write_at(file, data, offset)

    syncs: list[int] = []
    monkeypatch.setattr(snapshots, "FLUSH_EVERY", 500)
    monkeypatch.setattr(files, "write_at", write)
    monkeypatch.setattr(files, "sync_file", lambda _: syncs.append(len(sizes)))
    run(save(path, filled(200)))
    assert len(sizes) > 10
    assert syncs == list(range(1, len(sizes) + 1))
    assert max(sizes) < 500 + 512 + 200, "a header or a bucket may go over it"
    assert sum(sizes) == path.stat().st_size


async def test_what_waits_for_the_disk_does_not_hold_the_loop_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D7."""
    loop, released = asyncio.get_running_loop(), asyncio.Event()

    def release(_: object) -> None:  # by the loop, while it is being synced
        asyncio.run_coroutine_threadsafe(set_released(), loop).result(timeout=10)

    async def set_released() -> None:
        released.set()

    monkeypatch.setattr(snapshots, "FLUSH_EVERY", 500)
    with SnapshotWriter(path, STORE, 0) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(files, "sync_file", release)
            entries = await write_states(filled(100), writer)
        writer.finish(entries, LAST)
    assert released.is_set()


async def test_others_have_their_turn_between_slices(path: Path) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    states = filled(100)
    slices = len([covered for covered in states.table(b"default").walk() if covered.bucket])
    counting = asyncio.create_task(count())
    await save(path, states)
    assert turns >= slices
    turns = 0
    await loaded(path)
    counting.cancel()
    assert turns >= slices


MODULES = [b"module %d" % number for number in range(500)]


@pytest.mark.parametrize(
    ("modules", "state", "length", "sizes"),
    [
        (MODULES[:100], b"S", 10, lambda content: (len(content[3]) * 100 * ENTRY_BYTES, BYTES_A_SLICE)),
        (MODULES, b"", 10, lambda content: (len(content[4]) * len(MODULES), ENTRIES_A_SLICE)),
        (MODULES[:1], b"S" * 1000, 10, lambda content: (len(content[3]) * 1000, BYTES_A_SLICE)),
        (MODULES[:1], b"", 4000, lambda content: (len(content[4]) * 4000, BYTES_A_SLICE)),
    ],
    ids=["entries", "entries that share", "states", "senders"],
)
async def test_no_block_takes_long_however_much_a_bucket_holds(
    path: Path, modules: list[bytes], state: bytes, length: int, sizes: Callable[[Any], tuple[int, int]]
) -> None:
    """D7."""
    states = States()
    with small_buckets(BUCKET_SIZE):
        for number in range(300):
            sender, its_own = (b"s%d" % number).ljust(length), state and b"%d %s" % (number, state)
            states.apply([(PUT, b"default", module, sender, its_own) for module in modules], TODAY)
    assert len(list(states.table(b"default").walk())) == 1
    assert await save(path, states) == 300 * len(modules)
    blocks = [content_of(path, frame) for frame in read_snapshot(path, STORE) if frame.kind == Kind.BUCKET]
    assert len(blocks) > 1
    for block in blocks:
        size, most = sizes(block)
        assert size <= most
    assert content(await loaded(path)) == content(states)


async def test_others_have_their_turn_while_a_bucket_that_holds_much_is_written(path: Path) -> None:
    """D7. What they change and clear meanwhile is theirs: the blocks have what was there, each sender once."""
    states = States()
    with small_buckets(BUCKET_SIZE):
        senders = [b"s%d" % number for number in range(300)]
        states.apply(
            [(PUT, b"default", module, sender, sender) for sender in senders for module in MODULES[:100]], TODAY
        )
    turns = 0

    async def clear() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1
            states.apply(
                [(CLEAR, b"default")] if turns == 5 else [(PUT, b"default", b"m", b"s%d" % turns, b"S")], TODAY
            )

    clearing = asyncio.create_task(clear())
    assert await save(path, states) == 30_000
    clearing.cancel()
    blocks = [frame for frame in read_snapshot(path, STORE) if frame.kind == Kind.BUCKET]
    assert turns >= 2 * len(blocks) > 20, "one to halve, one to write"
    assert len((await loaded(path)).table(b"default")) == 30_000


async def test_others_have_their_turn_while_empty_buckets_are_passed(path: Path) -> None:
    """D7."""
    states = filled(100)
    buckets = len(list(states.table(b"default").walk()))
    states.apply([(PUT, b"default", b"lists", b"s%d" % number, START) for number in range(100)], TODAY)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    assert await save(path, states) == 0
    counting.cancel()
    assert turns >= buckets > 20


async def test_senders_that_cannot_be_told_apart_by_their_positions_are_one_block(path: Path) -> None:
    """Forged ones: no depth is enough."""
    states = States()
    with small_buckets(BUCKET_SIZE):
        other = b"ann@example.org"
        same = [other, sender_at(position_of(other))]
        assert len(set(map(position_of, same))) == 1
        states.apply([(PUT, b"default", b"%d" % i, one, b"S" * 1000) for one in same for i in range(300)], TODAY)
    assert await save(path, states) == 600
    (block,) = [content_of(path, frame) for frame in read_snapshot(path, STORE) if frame.kind == Kind.BUCKET]
    assert block[2] == MAX_DEPTH
    assert content(await loaded(path)) == content(states)


async def test_all_namespaces_are_in_it(path: Path) -> None:
    states = filled(20, b"one")
    states.apply([(PUT, b"two", b"m", None, b"A"), (PUT, b"two", b"m", b"", b"B")], TODAY)
    states.apply([(PUT, b"two", b"n", None, b"C")], TODAY + 1)
    states.table(b"never used")
    assert await save(path, states) == 23
    assert content(await loaded(path)) == content(states)


async def test_nothing_at_all_can_be_saved_as_well(path: Path) -> None:
    assert await save(path, States()) == 0
    assert content(await loaded(path)) == {}


async def test_what_is_loaded_can_be_changed_and_saved_again(path: Path) -> None:
    states = filled(50)
    await save(path, states)
    again = await loaded(path)
    for each in (states, again):
        each.apply([(PUT, b"default", b"lists", b"s%d" % number, b"BOUNCED") for number in range(0, 90, 3)], TODAY + 1)
    await save(path, again)
    assert content(await loaded(path)) == content(states)


async def test_what_is_loaded_is_counted(path: Path) -> None:
    states = filled(50)
    states.apply([(PUT, b"default", b"other", b"s%d" % number, b"A") for number in range(7)], TODAY)
    await save(path, states)
    counts = (await loaded(path)).table(b"default").counts()
    assert sorted(counts) == [(b"lists", b"POSTING", 50), (b"other", b"A", 7)]


async def test_entries_loaded_share_what_they_hold(path: Path) -> None:
    await save(path, filled(50))
    states = await loaded(path)
    held = [held for covered in states.table(b"default").walk() for held in covered.bucket.values()]
    assert len(held) == 50
    assert len(set(map(id, held))) == 1


async def test_loading_returns_the_last_batch_that_may_be_in_it(path: Path) -> None:
    await save(path, filled(3))
    assert await load_snapshot(path, STORE, States()) == LAST


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (NoRoom(errno.ENOSPC, "No space left on device"), NoRoom),
        (DiskFailed(OSError(errno.EIO, "Input/output error")), DiskFailed),
        (OSError(errno.EROFS, "Read-only file system"), DiskFailed),
    ],
)
async def test_a_failure_leaves_no_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(snapshots, "FLUSH_EVERY", 1)
    monkeypatch.setattr(files, "write_at", fail)
    with pytest.raises(raised):
        await save(path, filled(20))
    assert list(path.parent.iterdir()) == []


async def test_being_cancelled_leaves_no_file(path: Path) -> None:
    saving = asyncio.create_task(save(path, filled(100)))
    await asyncio.sleep(0)
    assert len(list(path.parent.iterdir())) == 1
    saving.cancel()
    await asyncio.wait([saving])
    assert saving.cancelled()
    assert list(path.parent.iterdir()) == []


HELD = [[(b"m", b"A", TODAY)]]
ONE = [b"default", 0, 0, HELD, [b"ann"], [0]]


@pytest.mark.parametrize(
    "buckets",
    [
        [[b"default", 0, 0, HELD, [b"ann"], [1]]],  # it holds only one thing
        [[b"default", 0, 0, HELD, [b"ann", b"ben"], [0]]],
        [[b"default", 0, 0, HELD, [b"ann", b"ann"], [0, 0]]],
        [[b"default", 0, 0, [[]], [b"ann"], [0]]],
        [[b"default", 0, 0, [[(b"m", b"A")]], [b"ann"], [0]]],
        [[b"default", 0, 0, [[(b"m", b"START", TODAY)]], [b"ann"], [0]]],
        [[b"default", 0, 0, [[(5, b"A", TODAY)]], [b"ann"], [0]]],
        [[b"default", 0, 0, [[(b"m", b"A", TODAY), (b"m", b"B", TODAY)]], [b"ann"], [0]]],
        [[b"default", 0, 0, HELD, [0], [0]]],
        [[None, 0, 0, HELD, [b"ann"], [0]]],
        [[b"default", 0, 0]],
        [[]],
        [5],
        [None],
        [ONE, [b"default", 0, 0, HELD, [b"ben"], [0]]],
    ],
)
async def test_buckets_that_make_no_sense_are_damage(path: Path, buckets: Sequence[Any]) -> None:
    with SnapshotWriter(path, STORE, 0) as writer:
        for bucket in buckets:
            writer.add(Kind.BUCKET, bucket)
        writer.finish(len(buckets), LAST)
    *_, bad, _ = read_snapshot(path, STORE)
    with pytest.raises(DamagedFile, match="makes no sense") as damage:
        await loaded(path)
    assert (damage.value.path, damage.value.offset) == (path, bad.offset)


@pytest.mark.parametrize("entries", [0, 2])
async def test_a_footer_that_counts_other_entries_is_damage(path: Path, entries: int) -> None:
    with SnapshotWriter(path, STORE, 0) as writer:
        writer.add(Kind.BUCKET, ONE)
        writer.finish(entries, LAST)
    with pytest.raises(DamagedFile, match=f"its footer counts {entries} entries, not 1"):
        await loaded(path)


async def test_a_block_of_a_later_release_is_too_new(path: Path) -> None:
    with SnapshotWriter(path, STORE, 0) as writer:
        writer.add(Kind.BATCH, ONE)
        writer.finish(1, LAST)
    with pytest.raises(TooNew, match="a block of kind 1"):
        await loaded(path)


async def test_loading_says_how_far_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D8."""
    monkeypatch.setattr(snapshots, "PROGRESS_EVERY", 10)
    await save(path, filled(50))
    with capture_logs() as logs:
        await loaded(path)
    assert len([entry for entry in logs if entry["event"] == "loading"]) == 5
    assert (logs[-1]["event"], logs[-1]["entries"]) == ("loaded", 50)
