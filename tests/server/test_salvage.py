"""All that can be read is saved, in the order in which it was written, and what is lost is said."""

import asyncio
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from statestore import wire
from statestored.datadir import IDENTITY, DataDirectory, read_identity
from statestored.engines.sessions import DONE, OPENED
from statestored.errors import DamagedFile, TooNew
from statestored.framing import HEADER_SIZE, Kind, Sequence, pack_frame
from statestored.inspection import find_file_id, identify
from statestored.salvage import Salvage, first_damage, salvage
from tests.server.damaged import (
    AFTER,
    ALL,
    COPIED,
    LAST,
    content_of,
    flip,
    flip_frame,
    frames,
    make,
    snapshot,
    without,
)
from tests.server.journals import BATCHES, Batch, Daemon, put, states_after, without_syncs
from tests.server.models import TODAY, Model, content, remembered


@pytest.fixture(autouse=True)
def _without_syncs() -> Iterator[None]:
    with without_syncs():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with without_syncs():
        return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "data")


def salvaged(path: Path) -> Salvage:
    directory = DataDirectory(path)
    identify(directory)
    return salvage(directory)


def saved(path: Path) -> dict[bytes, Model]:
    return content(salvaged(path).states)


def the_snapshot(path: Path) -> Path:
    return path / "00000002.snapshot"


def segment(path: Path, number: int) -> Path:
    return path / f"{number:08}.journal"


def append(to: Path, sequence: Sequence, payload: bytes, time: int = 0) -> None:
    """A good batch at the end of a segment."""
    file_id = find_file_id(to, read_identity(to.parent / IDENTITY))
    assert file_id is not None
    with to.open("ab") as file:
        file.write(pack_frame(file_id, to.stat().st_size, Kind.BATCH, sequence, time, 0, payload))


def test_what_is_sound_is_what_a_start_finds(path: Path) -> None:
    found = salvaged(path)
    assert content(found.states) == content_of(path) == states_after(ALL)
    assert (found.damage, found.lost(), found.lost_batches) == ([], [], 0)
    assert found.last == Sequence(3, 2)


@pytest.mark.parametrize(
    ("number", "batch", "lost"),
    [(2, 0, AFTER[0]), (2, 2, AFTER[2]), (2, 3, AFTER[3]), (3, 0, COPIED[0]), (3, 2, LAST[0])],
)
def test_a_damaged_batch_is_left_out_and_those_after_it_count(path: Path, number: int, batch: int, lost: Batch) -> None:
    frame = flip_frame(segment(path, number), batch)
    found = salvaged(path)
    assert content(found.states) == without(lost)
    assert [(one.path, one.offset) for one in found.damage] == [(segment(path, number), frame.offset)]
    assert found.lost_batches == 1
    assert found.lost() == ["1 batch, going by their numbers"]


def test_batches_that_are_lost_at_the_end_of_a_segment_are_counted_by_the_next(path: Path) -> None:
    """In the middle of the last but two: the file ends there."""
    os.truncate(segment(path, 2), frames(segment(path, 2))[2].offset + 5)
    found = salvaged(path)
    assert content(found.states) == without(*AFTER[2:])
    assert found.lost_batches == 2
    [damage] = found.damage
    assert "5 bytes are no whole batch" in str(damage)


def test_batches_that_are_cut_off_at_the_end_of_one_are_missed(path: Path) -> None:
    os.truncate(segment(path, 2), frames(segment(path, 2))[2].offset)
    found = salvaged(path)
    assert found.lost_batches == 2
    assert ["batches are cut off" in str(damage) for damage in found.damage] == [True]


def test_what_nothing_tells_of_is_said_to_be_unknown(path: Path) -> None:
    """No batch that could be read comes behind."""
    all_frames = frames(segment(path, 3))
    with segment(path, 3).open("r+b") as file:
        os.pwrite(file.fileno(), bytes(200), all_frames[1].offset)
        os.ftruncate(file.fileno(), all_frames[2].end - 3)
    found = salvaged(path)
    assert content(found.states) == without(COPIED[1], *LAST)
    [lost] = found.lost()
    assert lost.startswith("what was in the last ")
    assert lost.endswith(" bytes of 00000003.journal")


def test_a_torn_tail_is_dropped_as_a_start_does(path: Path) -> None:
    """Another file is damaged, so that a start refuses."""
    flip_frame(the_snapshot(path), 0)
    last = frames(segment(path, 3))[-1]
    os.truncate(segment(path, 3), last.end - 3)
    found = salvaged(path)
    assert found.contents[-1].tail == last.end - 3 - last.offset
    assert found.contents[-1].damage == []
    assert (b"lists", b"last") in content(found.states)[b"default"]


def test_what_stands_behind_the_end_of_a_sealed_segment_does_not_count(path: Path) -> None:
    """Those were copied, or dropped, when the next segment was made."""
    old = segment(path, 2)
    append(old, Sequence(1, 99), b"\x91\x95\x01\xc4\x01n\xc4\x01m\xc4\x01s\xc4\x01t")
    assert saved(path) == content_of(path) == states_after(ALL)
    flip_frame(the_snapshot(path), 0)
    assert b"n" not in saved(path)


def test_copies_are_not_applied_a_second_time_behind_what_came_later(path: Path) -> None:
    """The old segment still has them where the new one's header, which says what counts, is damaged."""
    for frame in frames(segment(path, 3))[:2]:
        append(segment(path, 2), frame.sequence, frame.payload, frame.time)
    flip(segment(path, 3), 100)
    flip_frame(segment(path, 3), 1)
    assert saved(path) == states_after(ALL)


def zero_header(path: Path) -> None:
    path.write_bytes(bytes(HEADER_SIZE) + path.read_bytes()[HEADER_SIZE:])


@pytest.mark.parametrize("damage", [lambda path: flip(path, 100), zero_header])
def test_nothing_is_lost_with_the_headers(path: Path, damage: Callable[[Path], None]) -> None:
    for file in (the_snapshot(path), segment(path, 2), segment(path, 3)):
        damage(file)
    found = salvaged(path)
    assert content(found.states) == states_after(ALL)
    assert found.lost() == []
    assert len(found.damage) == 3


def test_the_good_blocks_of_a_damaged_snapshot_are_saved(path: Path) -> None:
    blocks = frames(the_snapshot(path))
    assert len(blocks) > 3, "there are some to lose"
    flip_frame(the_snapshot(path), 1)
    found = salvaged(path)
    whole = states_after(ALL)
    assert content(found.states)[b"other"] == whole[b"other"]
    kept = content(found.states)[b"default"]
    assert {key: kept[key] for key in kept if key != (b"lists", b"ann")}.items() <= whole[b"default"].items()
    gone = whole[b"default"].keys() - kept.keys()
    assert gone
    assert all(sender.startswith(b"old") or sender == b"ann" for _, sender in gone)  # type: ignore[union-attr]
    [line] = found.lost()
    assert line.startswith(f"1 of the {len(blocks) - 1} blocks of 00000002.snapshot, with ")


def test_without_its_footer_a_snapshot_is_saved_and_its_end_is_unknown(path: Path) -> None:
    flip_frame(the_snapshot(path), -1)
    found = salvaged(path)
    assert content(found.states) == states_after(ALL)
    assert [line.partition(" bytes of ")[2] for line in found.lost()] == ["00000002.snapshot"]


def test_a_missing_segment_is_said(path: Path) -> None:
    segment(path, 2).unlink()
    found = salvaged(path)
    assert content(found.states) == without(*AFTER)
    assert found.lost() == ["all of 00000002.journal"]


def test_a_file_that_has_nothing_readable_is_said(path: Path) -> None:
    segment(path, 2).write_bytes(bytes(5000))
    found = salvaged(path)
    assert content(found.states) == without(*AFTER)
    assert found.lost() == ["all of 00000002.journal"]


def test_a_file_of_another_store_is_not_loaded(path: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    shutil.copy(segment(other, 2), segment(path, 2))
    found = salvaged(path)
    assert content(found.states) == without(*AFTER)
    assert "it belongs to the store" in str(found.damage[0])


def test_where_nothing_can_be_read_there_is_nothing(path: Path) -> None:
    for file in (the_snapshot(path), segment(path, 2), segment(path, 3)):
        file.write_bytes(bytes(2000))
    assert salvaged(path).is_empty
    assert not len(salvaged(path).states)


def test_of_a_batch_that_makes_no_sense_nothing_is_applied(path: Path) -> None:
    """Its first effect would; the second has no module."""
    append(segment(path, 3), Sequence(3, 3), b"\x92\x95\x01\xc4\x01n\xc4\x01m\xc4\x01s\xc4\x01t\x92\x01\xc4\x01n")
    append(segment(path, 3), Sequence(3, 4), b"\x91\x95\x01\xc4\x01n\xc4\x01m\xc4\x01u\xc4\x01t")
    found = salvaged(path)
    assert content(found.states)[b"n"].keys() == {(b"m", b"u")}
    assert len(found.damage) == found.lost_batches == 1
    assert first_damage_of(path) is not None


def test_of_a_batch_whose_answers_make_no_sense_nothing_is_remembered(path: Path) -> None:
    """The second has none."""
    pack = wire.packer()
    append(segment(path, 3), Sequence(3, 3), pack([(OPENED, 7)]))
    append(segment(path, 3), Sequence(3, 4), pack([(DONE, 7, 1, 1, b"A"), (DONE, 7, 2, 1)]))
    append(segment(path, 3), Sequence(3, 5), pack([(DONE, 7, 3, 1, b"C", 5)]))
    found = salvaged(path)
    assert remembered(found.states.sessions) == {7: (1, {3: (b"C", 5)})}
    assert len(found.damage) == found.lost_batches == 1


def test_an_unknown_kind_is_of_a_later_release_and_not_damage(path: Path) -> None:
    append(segment(path, 3), Sequence(3, 3), b"\x91\x92\x06\x01")
    with pytest.raises(TooNew, match="effect of kind 6"):
        salvaged(path)


def test_the_older_snapshot_serves_where_it_is_still_there_and_the_newer_one_is_damaged(tmp_path: Path) -> None:
    """It is removed only when the new one was read back; a kill may come between. Nothing is lost then."""
    path = asyncio.run(two_snapshots(tmp_path / "data"))
    flip_frame(path / "00000003.snapshot", 0)
    found = salvaged(path)
    assert content(found.states) == states_after(BATCHES)
    assert isinstance(first_damage_of(path), DamagedFile)


def test_buckets_of_a_newer_snapshot_go_over_what_is_older(tmp_path: Path) -> None:
    """And a batch between them is damaged: what it did is in the newer one."""
    path = asyncio.run(two_snapshots(tmp_path / "data"))
    flip_frame(path / "00000003.snapshot", -1)
    flip_frame(segment(path, 2), 1)
    assert saved(path) == states_after(BATCHES)


async def two_snapshots(path: Path) -> Path:
    daemon = await Daemon(path).start()
    daemon.write(*BATCHES[:2])
    daemon.journal.rotate()
    await snapshot(daemon)
    daemon.write(*BATCHES[2:4])
    daemon.journal.rotate()
    await snapshot(daemon)
    daemon.write(*BATCHES[4:])
    daemon.stop()
    return path


def first_damage_of(path: Path) -> DamagedFile | None:
    directory = DataDirectory(path)
    identify(directory)
    return first_damage(directory)


def test_it_agrees_with_a_start_wherever_a_bit_is_flipped(path: Path) -> None:
    """D5: where a start refuses, so do we find damage; where it does not, we have what it has."""
    randomly = random.Random(5)
    for file in (the_snapshot(path), segment(path, 2), segment(path, 3)):
        data = file.read_bytes()
        for _ in range(150):
            flip(file, randomly.randrange(len(data)))
            found, stops_at = salvaged(path), first_damage_of(path)
            if stops_at is None:
                assert found.damage == []
                assert content(found.states) == content_of(path)
            else:
                assert stops_at.path in {damage.path for damage in found.damage}
                assert not found.is_empty
            file.write_bytes(data)


def test_never_a_value_that_nobody_wrote(path: Path) -> None:
    written = {(*effect[1:4], state) for batch in ALL for effect in batch.effects for state in effect[4:]}
    randomly = random.Random(6)
    originals = {file: file.read_bytes() for file in (the_snapshot(path), segment(path, 2), segment(path, 3))}
    for _ in range(150):
        for file, data in originals.items():
            at, length = randomly.randrange(len(data)), randomly.randrange(1, 400)
            file.write_bytes(
                data[:at] + randomly.choice([bytes(length), randomly.randbytes(length), b""]) + data[at + length :]
            )
        for namespace, model in saved(path).items():
            assert {(namespace, *key, state) for key, (state, _) in model.items()} <= written


def test_the_days_are_those_of_the_commits(path: Path) -> None:
    flip_frame(the_snapshot(path), 0)
    days = {sender: day for (_, sender), (_, day) in saved(path)[b"default"].items()}
    assert (days[b"last"], days[b"copied"], days[b"new1"]) == (TODAY + 3, TODAY + 2, TODAY + 1)
    assert {day for sender, day in days.items() if sender is not None and sender.startswith(b"old")} == {TODAY}


def test_a_clear_clears(tmp_path: Path) -> None:
    """Also where a batch before it is damaged."""

    async def live() -> None:
        daemon = await Daemon(tmp_path).start()
        daemon.write(*BATCHES, Batch([put("x", "Y", "other")]))
        daemon.journal.rotate()
        daemon.stop()

    asyncio.run(live())
    flip_frame(segment(tmp_path, 1), 0)
    assert saved(tmp_path) == states_after([*BATCHES[1:], Batch([put("x", "Y", "other")])])
