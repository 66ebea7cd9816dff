"""A start finds the states as they were, or says what is wrong: never others, and never silently fewer."""

import asyncio
import gc
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from statestore import wire
from statestored.engines import recovery
from statestored.engines.recovery import recover
from statestored.engines.sessions import DONE, EXPIRED, OPENED
from statestored.engines.snapshots import write_states
from statestored.engines.states import CLEAR, MS_A_DAY, PUT, States
from statestored.errors import DamagedFile, TooNew
from statestored.framing import HEADER_SIZE
from statestored.framing import Sequence as Number
from statestored.snapshot import SnapshotWriter
from tests.server.journals import (
    BATCHES,
    Batch,
    Daemon,
    another_boot,
    ends,
    flipped,
    frames,
    opened,
    put,
    recovered,
    recovered_in,
    segments,
    states_after,
    without_syncs,
)
from tests.server.models import TODAY

NUL_BYTES = [*range(1, 65), *(2**power + by for power in range(7, 14) for by in (-1, 0, 1) if 2**power + by <= 8192)]
# What recovery finds after the first few batches.
PREFIXES = [states_after(BATCHES[:count]) for count in range(len(BATCHES) + 1)]


@pytest.fixture(autouse=True)
def _without_syncs() -> Iterator[None]:
    with without_syncs():
        yield


async def killed(path: Path, synced: int = 0) -> Path:
    """Two batches in a sealed segment, the others in the last one, which is returned. So many of these were synced."""
    daemon = await Daemon(path).start()
    daemon.write(*BATCHES[:2])
    daemon.journal.rotate()
    daemon.write(*BATCHES[2 : 2 + synced])
    daemon.journal.sync()
    daemon.write(*BATCHES[2 + synced :])
    daemon.kill()
    return segments(path)[-1]


async def stopped(path: Path) -> None:
    daemon = await Daemon(path).start()
    daemon.write(*BATCHES[:3])
    daemon.journal.rotate()
    daemon.write(*BATCHES[3:])
    daemon.stop()


async def snapshotted(path: Path, last: Number | None = None) -> Path:
    """All batches; a snapshot was made after the first four. What it made needless is gone."""
    daemon = await Daemon(path).start()
    daemon.write(*BATCHES[:4])
    daemon.journal.rotate()
    snapshot = daemon.directory.snapshot(daemon.journal.number)
    with SnapshotWriter(snapshot, daemon.directory.store_id, TODAY * MS_A_DAY) as writer:
        entries = await write_states(daemon.states, writer)
        writer.finish(entries, last or daemon.journal.last)
    daemon.directory.remove_before(daemon.journal.number)
    daemon.write(*BATCHES[4:])
    daemon.stop()
    return snapshot


@contextmanager
def each_bit_flipped(path: Path, first: int = 0) -> Iterator[Iterator[int]]:
    """From this byte on, one after the other."""
    with path.open("r+b", buffering=0) as file:

        def bits() -> Iterator[int]:
            data = path.read_bytes()
            for bit in range(8 * first, 8 * len(data)):
                place, byte = bit // 8, data[bit // 8]
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), place)
                yield bit
                os.pwrite(file.fileno(), bytes([byte]), place)

        yield bits()


def whole(data: bytes, found: bytes, its_ends: Sequence[int]) -> int:
    """How many batches of a segment are still as they were."""
    return max(number for number, end in enumerate(its_ends) if found[:end] == data[:end])


async def test_a_first_start_finds_nothing_and_goes_on(tmp_path: Path) -> None:
    found = await recovered(tmp_path)
    assert (found.states, found.dropped, found.journal.last) == ({}, 0, (0, 0))


async def test_a_first_start_that_was_interrupted_is_begun_again(tmp_path: Path) -> None:
    """Its first segment was there already, the store's identity was not."""
    with opened(tmp_path) as directory:
        starting = await recover(directory, States())
        starting.begin()
        starting._segment._file.close()  # type: ignore[union-attr]
    assert len(segments(tmp_path)) == 1
    daemon = await Daemon(tmp_path).start()
    daemon.write(*BATCHES)
    daemon.stop()
    assert (await recovered(tmp_path)).states == PREFIXES[-1]


async def test_a_store_without_journal_and_snapshot_is_damaged(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        directory.save_identity()
    with pytest.raises(DamagedFile, match="missing"):
        await recovered(tmp_path)


async def test_recovery_changes_nothing(tmp_path: Path) -> None:
    """A start that is refused afterwards, or `check`, leaves all for the next one."""
    await killed(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    await recovered(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


async def test_the_days_are_those_of_the_commits(tmp_path: Path) -> None:
    await killed(tmp_path)
    states = (await recovered(tmp_path)).states
    assert {day for model in states.values() for _, day in model.values()} == {TODAY + 2, TODAY + 3}


@pytest.mark.parametrize("reboot", [False, True])
async def test_a_journal_cut_at_any_byte_keeps_the_longest_valid_prefix(tmp_path: Path, reboot: bool) -> None:
    """D4: also where the rest is NUL bytes, of room that was kept."""
    path = await killed(tmp_path)
    data, its_ends = path.read_bytes(), ends(path)
    with opened(tmp_path) as directory, another_boot() if reboot else nullcontext():
        for size in range(HEADER_SIZE, len(data) + 1):
            for behind in (b"", bytes(8192)):
                path.write_bytes(torn := data[:size] + behind)
                found = await recovered_in(directory)
                kept = whole(data, torn, its_ends)
                assert found.states == PREFIXES[2 + kept]
                assert found.dropped == len(torn[its_ends[kept] :].rstrip(b"\0"))


async def test_a_journal_cut_within_its_last_header_keeps_what_is_before_it(tmp_path: Path) -> None:
    """D4."""
    path = await killed(tmp_path)
    data = path.read_bytes()
    with opened(tmp_path) as directory:
        for size in range(HEADER_SIZE):
            path.write_bytes(data[:size])
            found = await recovered_in(directory)
            assert found.states == PREFIXES[2]
            assert (found.dropped > 0) == (size > 0)


async def test_a_cut_journal_is_gone_on_with(tmp_path: Path) -> None:
    """D4, D10: what follows the cut is there after the next start, and what was cut does not come back."""
    path = await killed(tmp_path / "cut")
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    data, its_ends = path.read_bytes(), ends(path)
    more = Batch([put("eve", "F")], TODAY + 4)
    for size in {*range(0, len(data), 5), HEADER_SIZE - 1, *its_ends}:
        for each in path.parent.iterdir():
            each.unlink()
        for name, content in before.items():
            (path.parent / name).write_bytes(content)
        path.write_bytes(data[:size])
        for _ in range(2):
            daemon = await Daemon(path.parent).start()
            daemon.write(more)
            daemon.kill()
        found = await recovered(path.parent)
        kept = whole(data, data[:size], its_ends) if size >= HEADER_SIZE else 0
        assert (found.states, found.dropped) == (states_after([*BATCHES[: 2 + kept], more]), 0)


@pytest.mark.parametrize("reboot", [False, True])
async def test_nul_bytes_behind_the_last_batch_are_nothing(tmp_path: Path, reboot: bool) -> None:
    """D4: they are room that was kept."""
    path = await killed(tmp_path)
    data = path.read_bytes()
    with opened(tmp_path) as directory, another_boot() if reboot else nullcontext():
        for count in NUL_BYTES:
            path.write_bytes(data + bytes(count))
            found = await recovered_in(directory)
            assert (found.states, found.dropped) == (PREFIXES[-1], 0)


def of_another_segment(path: Path, size: int) -> bytes:
    """With frames that once stood exactly here."""
    other = segments(path.parent.parent / "other")[-1].read_bytes()
    return other[size:] + other


def of_another_place(path: Path, _: int) -> bytes:
    """All of its own batches, a byte or more behind where they belong."""
    return b"." + path.read_bytes()[HEADER_SIZE:]


def of_anything(_: Path, size: int) -> bytes:
    return random.Random(size).randbytes(4096)


@pytest.mark.parametrize("reboot", [False, True])
@pytest.mark.parametrize("stale", [of_another_segment, of_another_place, of_anything])
async def test_stale_blocks_are_never_taken_for_batches(
    tmp_path: Path, stale: Callable[[Path, int], bytes], reboot: bool
) -> None:
    """D4: behind the last batch, or behind one that was torn."""
    daemon = await Daemon(tmp_path / "other").start()
    daemon.write(*(Batch([put(f"old{number}", "OLD")]) for number in range(40)))
    daemon.kill()
    path = await killed(tmp_path / "data")
    data, its_ends = path.read_bytes(), ends(path)
    with opened(path.parent) as directory, another_boot() if reboot else nullcontext():
        for size in {*range(HEADER_SIZE, len(data), 7), *its_ends}:
            path.write_bytes(data)
            block = stale(path, size)
            path.write_bytes(data[:size] + block)
            found = await recovered_in(directory)
            kept = whole(data, data[:size], its_ends)
            assert found.states == PREFIXES[2 + kept]
            assert found.dropped == len((data[its_ends[kept] : size] + block).rstrip(b"\0")) > 0


async def test_every_flipped_bit_of_a_stopped_journal_is_noticed(tmp_path: Path) -> None:
    """D5: the last batch, whose damage cannot be told from a torn write, holds nothing."""
    await stopped(tmp_path)
    last = segments(tmp_path)[-1]
    mark = frames(last)[-1].offset
    with opened(tmp_path) as directory:
        for path in segments(tmp_path):
            with each_bit_flipped(path) as bits:
                for bit in bits:
                    if path == last and bit >= 8 * mark:
                        found = await recovered_in(directory)
                        assert found.states == PREFIXES[-1]
                        assert found.dropped > 0
                    else:
                        with pytest.raises(DamagedFile) as damage:
                            await recovered_in(directory)
                        assert damage.value.path == path
        assert (await recovered_in(directory)).states == PREFIXES[-1]


async def test_every_flipped_bit_above_the_mark_is_a_drop_that_is_told_or_damage(tmp_path: Path) -> None:
    """D5: two batches were synced before the others were written, and then power was lost, or not."""
    path = await killed(tmp_path, synced=2)
    its_ends = ends(path)
    with opened(tmp_path) as directory, each_bit_flipped(path, HEADER_SIZE) as bits:
        for bit in bits:
            kept = max(number for number, end in enumerate(its_ends) if 8 * end <= bit)
            with another_boot():
                if kept < 2:
                    with pytest.raises(DamagedFile):
                        await recovered_in(directory)
                else:
                    found = await recovered_in(directory)
                    assert found.states == PREFIXES[2 + kept]
                    assert found.dropped > 0
            if kept < 3:
                with pytest.raises(DamagedFile) as damage:
                    await recovered_in(directory)
                assert (damage.value.path, damage.value.offset) == (path, its_ends[kept])
            else:
                found = await recovered_in(directory)
                assert found.states == PREFIXES[-2]
                assert found.dropped > 0


async def test_every_flipped_bit_after_an_unclean_start_is_noticed(tmp_path: Path) -> None:
    """D5, D10: the copies are known to be on the disk, in whichever boot."""
    await killed(tmp_path)
    daemon = await Daemon(tmp_path).start()
    daemon.kill()
    *_, old, new = segments(tmp_path)
    assert frames(old) == []
    with opened(tmp_path) as directory, another_boot():
        with each_bit_flipped(new, HEADER_SIZE) as bits:
            for _ in bits:
                with pytest.raises(DamagedFile):
                    await recovered_in(directory)
        assert (await recovered_in(directory)).states == PREFIXES[-1]


async def test_every_flipped_bit_of_a_snapshot_is_damage(tmp_path: Path) -> None:
    """D5: and so is every cut. An older snapshot is never taken instead."""
    path = await snapshotted(tmp_path)
    data = path.read_bytes()
    with opened(tmp_path) as directory:
        assert (await recovered_in(directory)).states == PREFIXES[-1]
        with each_bit_flipped(path) as bits:
            for _ in bits:
                with pytest.raises(DamagedFile):
                    await recovered_in(directory)
        for size in range(len(data)):
            path.write_bytes(data[:size])
            with pytest.raises(DamagedFile):
                await recovered_in(directory)


async def test_every_flipped_bit_of_the_identity_is_noticed_or_harmless(tmp_path: Path) -> None:
    await stopped(tmp_path)
    with each_bit_flipped(tmp_path / "store.json") as bits:
        for _ in bits:
            try:
                found = await recovered(tmp_path)
            except (DamagedFile, TooNew):
                continue
            assert found.states == PREFIXES[-1]


async def test_a_snapshot_and_the_journal_behind_it_are_the_states(tmp_path: Path) -> None:
    snapshot = await snapshotted(tmp_path)
    assert [path.stem for path in segments(tmp_path)] == [snapshot.stem]
    found = await recovered(tmp_path)
    assert (found.states, found.dropped) == (PREFIXES[-1], 0)
    assert found.journal.size == sum(frame.end - frame.offset for frame in frames(segments(tmp_path)[0]))


async def test_what_a_snapshot_has_made_needless_is_not_read(tmp_path: Path) -> None:
    """D2: it is there still where a kill came before it was removed, and may be incomplete."""
    await snapshotted(tmp_path)
    for name in ("00000001.journal", "00000001.snapshot"):
        (tmp_path / name).write_bytes(b"damaged")
    assert (await recovered(tmp_path)).states == PREFIXES[-1]


async def test_a_missing_segment_behind_a_snapshot_is_damage(tmp_path: Path) -> None:
    snapshot = await snapshotted(tmp_path)
    await stopped_again(tmp_path)
    needed, *later = segments(tmp_path)
    needed.unlink()
    for _ in range(2):
        with pytest.raises(DamagedFile, match="missing") as damage:
            await recovered(tmp_path)
        assert damage.value.path == needed == snapshot.with_suffix(".journal")
        for path in later:
            path.unlink(missing_ok=True)


async def stopped_again(path: Path) -> None:
    (await Daemon(path).start()).stop()


async def test_a_segment_that_a_snapshot_needs_is_not_replaced_by_an_older_one(tmp_path: Path) -> None:
    """The older ones are there still where a kill came before they were removed."""
    daemon = await Daemon(tmp_path).start()
    daemon.write(*BATCHES)
    daemon.journal.rotate()
    with SnapshotWriter(daemon.directory.snapshot(2), daemon.directory.store_id, 0) as writer:
        entries = await write_states(daemon.states, writer)
        writer.finish(entries, Number(0, 0))
    daemon.kill()
    assert (await recovered(tmp_path)).states == PREFIXES[-1]
    segments(tmp_path)[-1].unlink()
    with pytest.raises(DamagedFile, match="the snapshot of this number needs it") as damage:
        await recovered(tmp_path)
    assert damage.value.path == tmp_path / "00000002.journal"


async def test_a_missing_snapshot_is_damage(tmp_path: Path) -> None:
    """The journal before it is gone."""
    (await snapshotted(tmp_path)).unlink()
    with pytest.raises(DamagedFile, match="missing") as damage:
        await recovered(tmp_path)
    assert damage.value.path == tmp_path / "00000001.journal"


async def test_a_snapshot_of_another_number_is_damage(tmp_path: Path) -> None:
    snapshot = await snapshotted(tmp_path)
    await stopped_again(tmp_path)
    snapshot.rename(segments(tmp_path)[-1].with_suffix(".snapshot"))
    with pytest.raises(DamagedFile, match=f"made as number {int(snapshot.stem)}"):
        await recovered(tmp_path)


async def test_a_snapshot_made_after_more_than_the_journal_has_is_damage(tmp_path: Path) -> None:
    """Some of its buckets have what others lack."""
    await snapshotted(tmp_path, last=Number(1, 8))
    with pytest.raises(DamagedFile, match="the snapshot was made after") as damage:
        await recovered(tmp_path)
    assert damage.value.path == segments(tmp_path)[-1]
    assert damage.value.offset == segments(tmp_path)[-1].stat().st_size


async def test_a_snapshot_made_after_all_that_the_journal_has_is_good(tmp_path: Path) -> None:
    await snapshotted(tmp_path, last=Number(1, 7))
    assert (await recovered(tmp_path)).states == PREFIXES[-1]


async def test_sessions_are_there_as_they_were(tmp_path: Path) -> None:
    """Some in the snapshot, some in the journal, one in both; what is ended or told is forgotten.

    Some are written as in format 1, without a fingerprint.
    """
    before = [
        (OPENED, 7),
        (DONE, 7, 1, 1, b"A"),
        (DONE, 7, 2, 1, b"B", 2**32 - 1),
        (OPENED, 8),
        (OPENED, 9),
        (DONE, 9, 1, 1, b"C"),
    ]
    after = [(DONE, 7, 3, 2, b"D"), (EXPIRED, 8), (OPENED, 10), (DONE, 10, 5, 4, b"E", 0)]
    daemon = await Daemon(tmp_path).start()
    daemon.write(Batch([*before[:2], put("ann", "A")]), Batch(before[2:]))
    daemon.journal.rotate()
    with SnapshotWriter(daemon.directory.snapshot(2), daemon.directory.store_id, 0) as writer:
        writer.finish(await write_states(daemon.states, writer), daemon.journal.last)
    daemon.write(*(Batch([effect]) for effect in after))
    daemon.kill()
    assert (await recovered(tmp_path)).sessions == {
        7: (2, {2: (b"B", 2**32 - 1), 3: (b"D", None)}),
        9: (1, {1: (b"C", None)}),
        10: (4, {5: (b"E", 0)}),
    }


async def appended(path: Path, payload: bytes) -> None:
    daemon = await Daemon(path).start()
    daemon.journal.append(TODAY * MS_A_DAY, payload)
    daemon.stop()


@pytest.mark.parametrize("kind", [0, 6, 7, b"put", None, {}, (1,)])
async def test_an_effect_of_a_later_release_is_too_new(tmp_path: Path, kind: object) -> None:
    await appended(tmp_path, wire.packer()([put("ann", "A"), (kind, b"default", 5)]))
    with pytest.raises(TooNew, match=r"00000001\.journal has an effect of kind"):
        await recovered(tmp_path)


@pytest.mark.parametrize(
    "effects",
    [
        *([[PUT, 5, b"m", b"s", b"A"]], [[PUT, b"d", None, b"s", b"A"]], [[PUT, b"d", b"m", 0, b"A"]], [[CLEAR, 5]]),
        *([[PUT, b"d", b"m", b"s", []]], [[PUT, b"d", b"m", b"s", b"A", b"more"]]),
        *(5, b"effects", [5], [[]], {"a": 1}),
        *([[PUT]], [[PUT, b"default", b"m"]], [[CLEAR]], [put("ann", "A"), [PUT, b"d"]]),
        *([[OPENED]], [[OPENED, 0]], [[OPENED, b"7"]], [[OPENED, 7, 1]], [[EXPIRED, -7]], [[EXPIRED, 7, 7]]),
        *([[DONE, 7, 1, 1, b"", "5"]], [[DONE, 7, 1, 1, b"", 5, 5]], [[DONE, 7, 1, 1, b"", 2**32]]),
        *([[DONE, 7]], [[DONE, 7, 1, 1]], [[DONE, 7, 1, 2, b""]], [[DONE, 7, 1, 1, 0]], [[DONE, 7, 0, 0, b""]]),
    ],
)
async def test_a_batch_that_makes_no_sense_is_damage(tmp_path: Path, effects: Any) -> None:
    """In spite of its checksum."""
    await appended(tmp_path, wire.packer()(effects))
    with pytest.raises(DamagedFile, match="makes no sense") as damage:
        await recovered(tmp_path)
    assert damage.value.offset == HEADER_SIZE


NESTED = b"\x91" * 980 + b"\x05"  # too deeply to be shown


@pytest.mark.parametrize(
    ("effect", "error"),
    [
        (b"\x92" + NESTED + b"\x05", TooNew),
        (b"\x92\x04" + NESTED, DamagedFile),
        (b"\x96\x03\x07\x01\x01\xc4\x00" + NESTED, DamagedFile),
    ],
)
async def test_what_is_nested_deeply_is_no_fault_of_ours(tmp_path: Path, effect: bytes, error: type[Exception]) -> None:
    await appended(tmp_path, b"\x91" + effect)
    with pytest.raises(error):
        await recovered(tmp_path)


async def test_a_batch_that_is_no_messagepack_is_damage(tmp_path: Path) -> None:
    await appended(tmp_path, b"\x93\x01")
    with pytest.raises(DamagedFile, match="no MessagePack") as damage:
        await recovered(tmp_path)
    assert (damage.value.path, damage.value.offset) == (segments(tmp_path)[0], HEADER_SIZE)


async def test_what_was_replayed_is_settled(tmp_path: Path) -> None:
    """Nothing holds an answer up, nothing can be taken back, and what was cleared is freed."""
    await killed(tmp_path)
    states = States()
    with opened(tmp_path) as directory:
        await recover(directory, states)
    assert not any(table.unsettled for table in states.tables.values())
    assert states.garbage == []


async def test_a_drop_is_logged_and_nothing_is_where_nothing_was_dropped(tmp_path: Path) -> None:
    path = await killed(tmp_path)
    data = path.read_bytes()
    for size in (len(data), len(data) - 1):
        path.write_bytes(data[:size])
        with capture_logs() as logs, opened(tmp_path) as directory:
            await recover(directory, States())
        warnings = [entry["bytes"] for entry in logs if entry["log_level"] == "warning"]
        assert warnings == ([] if size == len(data) else [size - ends(path)[-1]])


async def test_replaying_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D8."""
    monkeypatch.setattr(recovery, "PROGRESS_EVERY", 500)
    daemon = await Daemon(tmp_path).start()
    daemon.write(*(Batch([put(f"s{number}", "A")]) for number in range(50)))
    size = daemon.journal.size
    daemon.kill()
    with capture_logs() as logs, opened(tmp_path) as directory:
        await recover(directory, States())
    progress = [entry for entry in logs if entry["event"] == "replaying"]
    assert len(progress) == size // 500
    assert [entry["bytes"] // 500 for entry in progress] == list(range(1, size // 500 + 1))
    assert (logs[-1]["event"], logs[-1]["bytes"], logs[-1]["entries"]) == ("replayed", size, 50)


async def test_others_have_their_turn_while_it_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D8: health checks, for one."""
    monkeypatch.setattr(recovery, "SLICE", 0)
    await killed(tmp_path)
    entries: set[int] = set()
    states = States()

    async def look() -> None:
        while True:
            entries.add(len(states))
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    with opened(tmp_path) as directory:
        await recover(directory, states)
    looking.cancel()
    assert entries == {1, 2, 3}


@pytest.mark.parametrize("damaged", [False, True])
async def test_the_garbage_collector_runs_again_afterwards(tmp_path: Path, damaged: bool) -> None:
    snapshot = await snapshotted(tmp_path)
    if damaged:
        snapshot.write_bytes(flipped(snapshot.read_bytes(), 8 * HEADER_SIZE))
        with pytest.raises(DamagedFile):
            await recovered(tmp_path)
    else:
        await recovered(tmp_path)
    assert gc.isenabled()
