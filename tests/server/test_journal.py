"""The journal's segments follow each other without a gap, whatever ended the daemon, and however often."""

import errno
import os
import shutil
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from statestored import files, journal
from statestored.errors import DamagedFile, DiskFailed, NoRoom
from statestored.files import temporary_name
from statestored.framing import HEADER_SIZE, Sequence
from statestored.journal import JournalReader, boot_id
from statestored.segment import Origin
from tests.server.damaged import bytes_of
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
    reader,
    recovered,
    recovered_in,
    segments,
    states_after,
    without_syncs,
)


@pytest.fixture(autouse=True)
def _without_syncs() -> Iterator[None]:
    with without_syncs():
        yield


class Steps:
    """What is done to the files of a directory, in order: the function, the file's name, and what is in it then."""

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path) -> None:
        self.done: list[tuple[str, str, bytes]] = []
        self._directory = directory
        for function in ("write_at", "truncate", "sync_file", "rename", "sync_directory"):
            patch.setattr(files, function, self._noted(function, getattr(files, function)))

    def _noted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(file: BinaryIO | Path | int, *arguments: Any) -> Any:
            path = file if isinstance(file, Path) else self._path(file)
            self.done.append((name, path.name, path.read_bytes() if path.is_file() else b""))
            return function(file, *arguments)

        return noted

    def _path(self, file: BinaryIO | int) -> Path:
        number = os.fstat(file if isinstance(file, int) else file.fileno()).st_ino
        paths = (self._directory, *self._directory.iterdir())
        return next(path for path in paths if path.stat().st_ino == number)


def origin(path: Path) -> Origin:
    return reader(path).origin


def numbers(path: Path) -> list[Sequence]:
    return [frame.sequence for frame in frames(path)]


async def unclean(path: Path, synced: int = 2) -> None:
    """All batches, of which only the first few are known to be on the disk."""
    daemon = await Daemon(path).start()
    daemon.write(*BATCHES[:synced])
    daemon.journal.sync()
    daemon.write(*BATCHES[synced:])
    daemon.kill()


async def rotated(path: Path) -> None:
    """Three segments with two batches each."""
    daemon = await Daemon(path).start()
    daemon.write(*BATCHES[:2])
    daemon.journal.rotate()
    daemon.write(*BATCHES[2:4])
    daemon.journal.rotate()
    daemon.write(*BATCHES[4:])
    daemon.stop()


async def test_what_was_written_is_read(tmp_path: Path) -> None:
    await rotated(tmp_path)
    found = await recovered(tmp_path)
    assert (found.states, found.dropped) == (states_after(BATCHES), 0)
    assert [path.name for path in segments(tmp_path)] == ["00000001.journal", "00000002.journal", "00000003.journal"]


async def test_a_segment_names_the_one_before_it(tmp_path: Path) -> None:
    await rotated(tmp_path)
    first, second, third = segments(tmp_path)
    assert origin(first) == Origin(1, 1, boot_id())
    assert origin(second) == Origin(2, 1, boot_id(), 1, first.stat().st_size, Sequence(1, 2))
    assert origin(third) == Origin(3, 1, boot_id(), 2, second.stat().st_size, Sequence(1, 4))


async def test_a_segment_is_on_the_disk_before_the_next_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D2: the next one's header says that it is."""
    daemon = await Daemon(tmp_path).start()
    daemon.write(*BATCHES)
    content = segments(tmp_path)[0].read_bytes()
    with monkeypatch.context() as patch:
        steps = Steps(patch, tmp_path)
        daemon.journal.rotate()
    in_place = [name for name, *_ in steps.done].index("rename")
    assert ("sync_file", "00000001.journal", content) in steps.done[:in_place]
    daemon.stop()


async def test_a_segment_that_is_sealed_holds_batches_only(tmp_path: Path) -> None:
    daemon = await Daemon(tmp_path).start()
    daemon.journal.reserve()
    daemon.write(*BATCHES)
    daemon.journal.rotate()
    daemon.stop()
    first = segments(tmp_path)[0]
    assert first.stat().st_size == ends(first)[-1]


async def test_it_is_time_for_the_next_segment_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SEGMENT_SIZE", HEADER_SIZE + 200)
    daemon = await Daemon(tmp_path).start()
    assert not daemon.journal.is_full
    daemon.write(Batch([put("ann", "x" * 200)]))
    assert daemon.journal.is_full
    daemon.journal.rotate()
    assert not daemon.journal.is_full
    daemon.stop()


async def test_the_journal_knows_its_size(tmp_path: Path) -> None:
    """That of the batches, by which a snapshot may be due; a start finds it again."""
    daemon = await Daemon(tmp_path).start()
    daemon.write(*BATCHES[:3])
    daemon.journal.rotate()
    daemon.write(*BATCHES[3:])
    size = daemon.journal.size
    assert size == sum(frame.end - frame.offset for path in segments(tmp_path) for frame in frames(path))
    daemon.kill()
    assert (await recovered(tmp_path)).journal.size == size


async def test_closing_marks_the_last_batch_as_durable(tmp_path: Path) -> None:
    """D5: damage to it is no torn tail any more."""
    daemon = await Daemon(tmp_path).start()
    daemon.write(*BATCHES)
    daemon.stop()
    *_, last, mark = frames(segments(tmp_path)[0])
    assert (mark.payload, mark.durable, mark.end) == (b"", last.end, segments(tmp_path)[0].stat().st_size)


async def test_closing_goes_without_the_mark_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise NoRoom(errno.ENOSPC, "No space left on device")

    daemon = await Daemon(tmp_path).start()
    daemon.write(*BATCHES)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_at", full)
        daemon.stop()
    assert (await recovered(tmp_path)).states == states_after(BATCHES)


async def test_one_that_has_not_begun_takes_nothing_and_can_be_closed(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        unbegun = journal.Journal(directory, JournalReader(directory, 0))
        unbegun.sync()
        unbegun.close(0)
        with pytest.raises(RuntimeError, match="has not begun"):
            unbegun.append(0, b"")
    assert segments(tmp_path) == []


async def test_no_room_for_the_next_segment_leaves_the_old_one_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise NoRoom(errno.ENOSPC, "No space left on device")

    daemon = await Daemon(tmp_path).start()
    daemon.write(*BATCHES[:2])
    with monkeypatch.context() as patch:
        patch.setattr(files, "create", full)
        with pytest.raises(NoRoom):
            daemon.journal.rotate()
    daemon.write(*BATCHES[2:4])
    daemon.journal.rotate()
    daemon.write(*BATCHES[4:])
    daemon.stop()
    assert [path.name for path in segments(tmp_path)] == ["00000001.journal", "00000002.journal"]
    assert (await recovered(tmp_path)).states == states_after(BATCHES)


async def test_a_start_without_room_syncs_what_it_cannot_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D6, D10: it is served, and may be in the system's cache only."""

    def full(*_: Any) -> None:
        raise NoRoom(errno.ENOSPC, "No space left on device")

    await unclean(tmp_path)
    found = await recovered(tmp_path)
    (old,) = segments(tmp_path)
    with monkeypatch.context() as patch:
        steps = Steps(patch, tmp_path)
        patch.setattr(files, "create", full)
        with pytest.raises(NoRoom):
            found.journal.probe()
    assert [step[:2] for step in steps.done] == [("sync_directory", tmp_path.name), ("sync_file", old.name)]


async def test_a_start_without_room_begins_once_there_is_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D6, D10: nothing of what it found is lost meanwhile."""

    def full(*_: Any) -> None:
        raise NoRoom(errno.ENOSPC, "No space left on device")

    await unclean(tmp_path)
    found = await recovered(tmp_path)
    before = segments(tmp_path)[0].read_bytes()
    for step in ("create", "write_at", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(files, step, full)
            with pytest.raises(NoRoom):
                found.journal.probe()
            with pytest.raises(NoRoom):
                found.journal.rotate()
        assert [path.read_bytes() for path in segments(tmp_path)] == [before]
    found.journal.probe()
    found.journal.close(0)
    assert (await recovered(tmp_path)).states == states_after(BATCHES)


async def test_an_unclean_stop_has_its_unmarked_batches_copied_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D10: the system may have read them from its cache alone."""
    await unclean(tmp_path, synced=2)
    old = segments(tmp_path)[0]
    end = ends(old)[2]
    copied = [frame.payload for frame in frames(old)[2:]]
    with monkeypatch.context() as patch:
        steps = Steps(patch, tmp_path)
        daemon = await Daemon(tmp_path).start()
    new = segments(tmp_path)[1]
    assert [frame.payload for frame in frames(new)] == copied
    assert origin(new) == Origin(2, 2, boot_id(), 1, end, Sequence(1, 2), new.stat().st_size)
    temporary, whole = temporary_name(new).name, new.read_bytes()
    done = [step for step in steps.done if step[0] != "write_at"]
    assert done[0][:2] == ("sync_directory", tmp_path.name), "of the names that were found"
    assert done[1:3] == [("sync_file", temporary, whole), ("rename", temporary, whole)]
    assert [(function, name) for function, name, _ in done[3:]] == [
        ("sync_directory", tmp_path.name),
        ("truncate", old.name),
    ]
    assert old.stat().st_size == end
    daemon.stop()
    assert (await recovered(tmp_path)).states == states_after(BATCHES)


@pytest.mark.parametrize("tail", [b"", b"junk", bytes(500), None])
async def test_what_becomes_of_copied_batches_in_the_old_segment_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: bytes | None
) -> None:
    """D10: whether it is cut there or not (None), for that is not synced; and D2, a kill before it."""
    await unclean(tmp_path, synced=2)
    old = segments(tmp_path)[0]
    end = ends(old)[2]
    with monkeypatch.context() as patch:
        patch.setattr(files, "truncate", lambda *_: None)
        daemon = await Daemon(tmp_path).start()
    assert old.stat().st_size > end
    daemon.kill()
    if tail is not None:
        old.write_bytes(old.read_bytes()[:end] + tail)
    assert (await recovered(tmp_path)).states == states_after(BATCHES)


async def test_what_was_copied_stays_where_the_old_segment_has_another_name(tmp_path: Path) -> None:
    """As in a backup that was made of links."""
    await unclean(tmp_path, synced=2)
    shutil.copytree(tmp_path, tmp_path / "backup", copy_function=os.link)
    before = bytes_of(tmp_path / "backup")
    daemon = await Daemon(tmp_path).start()
    daemon.write(Batch([put("more", "M")]))
    daemon.stop()
    assert {**bytes_of(tmp_path / "backup"), "lock": b""} == {**before, "lock": b""}
    assert (await recovered(tmp_path / "backup")).states == states_after(BATCHES)


@pytest.mark.parametrize("step", ["create", "write_at", "sync_file", "rename", "sync_directory", "truncate"])
async def test_a_start_that_fails_half_way_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """D10: neither once nor several times."""

    def fail(*_: Any) -> None:
        raise DiskFailed(OSError(errno.EIO, "Input/output error"))

    await unclean(tmp_path)
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(files, step, fail)
            starting = Daemon(tmp_path)
            with pytest.raises(DiskFailed):
                await starting.start()
            starting.directory.close()
            if starting.journal._segment is not None:
                starting.journal._segment._file.close()
        found = await recovered(tmp_path)
        assert (found.states, found.dropped) == (states_after(BATCHES), 0)


@pytest.mark.parametrize("reboot", [False, True])
async def test_unclean_starts_may_follow_each_other_for_ever(tmp_path: Path, reboot: bool) -> None:
    """D10: with batches or without."""
    written: list[Batch] = []
    for number in range(12):
        daemon = await Daemon(tmp_path).start()
        batches = [Batch([put(f"s{number}", f"{count}")]) for count in range(number % 3)]
        daemon.write(*batches)
        daemon.kill()
        written += batches
        if reboot:
            with another_boot():
                found = await recovered(tmp_path)
        else:
            found = await recovered(tmp_path)
        assert (found.states, found.dropped) == (states_after(written), 0)
    sequences = [sequence for path in segments(tmp_path) for sequence in numbers(path)]
    assert sequences == sorted(set(sequences)), "each is there once, in order"
    assert len(sequences) == len(written)


@pytest.mark.parametrize("distance", [1, 100, 2**16])
@pytest.mark.parametrize("synced", range(len(BATCHES) + 1))
async def test_what_was_not_known_to_be_on_the_disk_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: int, distance: int
) -> None:
    """D10, and nothing else, however far apart the places are that are remembered while reading."""
    monkeypatch.setattr(journal, "LANDMARK_DISTANCE", distance)
    await unclean(tmp_path, synced)
    (first,) = segments(tmp_path)
    boundaries, batches = ends(first), frames(first)
    known = synced if synced < len(BATCHES) else 0  # what is on the disk, the next batch says
    (await Daemon(tmp_path).start()).kill()
    second = segments(tmp_path)[-1]
    assert (origin(second).previous_end, first.stat().st_size) == (boundaries[known], boundaries[known])
    assert origin(second).after == (batches[known - 1].sequence if known else (0, 0))
    assert [copy.payload for copy in frames(second)] == [batch.payload for batch in batches[known:]]


@pytest.mark.parametrize("distance", [1, 2**16])
async def test_a_journal_of_which_nothing_is_known_to_be_on_the_disk_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distance: int
) -> None:
    """As with `never`: all of its last segment is copied."""
    monkeypatch.setattr(journal, "LANDMARK_DISTANCE", distance)
    daemon = await Daemon(tmp_path).start()
    daemon.write(*(Batch([put("ann", f"{number}" * 10_000)]) for number in range(1000)))
    daemon.kill()
    assert segments(tmp_path)[0].stat().st_size > 2**24
    tracemalloc.start()
    try:
        again = await Daemon(tmp_path).start()
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert again.states.table(b"default").get(b"lists", b"ann") == b"999" * 10_000
    again.kill()
    assert len(frames(segments(tmp_path)[-1])) == 1000


@pytest.mark.parametrize("becomes", ["other", "less"])
async def test_what_cannot_be_read_again_when_it_is_to_be_copied_is_a_failure_of_the_disk(
    tmp_path: Path, becomes: str
) -> None:
    """D10: what an earlier sync failed for may be gone when the system has forgotten what it could not write."""
    await unclean(tmp_path)
    (path,) = segments(tmp_path)
    data = path.read_bytes()
    with opened(tmp_path) as directory:
        found = (await recovered_in(directory)).journal
        path.write_bytes(data[:-1] if becomes == "less" else flipped(data, 8 * len(data) - 1))
        with pytest.raises(DiskFailed, match="cannot be read again"):
            found.begin()
    assert segments(tmp_path) == [path], "nothing was made of it"


async def test_clean_starts_do_not_gather_copies(tmp_path: Path) -> None:
    for _ in range(5):
        (await Daemon(tmp_path).start()).stop()
    assert all(len(frames(path)) <= 2 for path in segments(tmp_path))


@pytest.mark.parametrize("size", [0, 1, 300, HEADER_SIZE - 1, HEADER_SIZE, None])
async def test_an_epoch_is_never_given_twice(tmp_path: Path, size: int | None) -> None:
    """Although the last segment was cut, within its header for one, and with it what says which epoch it was."""
    epochs: list[int] = []
    for number in range(6):
        daemon = await Daemon(tmp_path).start()
        epochs.append(origin(segments(tmp_path)[-1]).epoch)
        if number % 2:
            daemon.write(*BATCHES)
            daemon.journal.rotate()
        daemon.kill()
        if size is not None:
            last = segments(tmp_path)[-1]
            last.write_bytes(last.read_bytes()[:size])
    assert epochs == sorted(set(epochs))


async def test_the_next_number_is_above_that_of_the_newest_snapshot(tmp_path: Path) -> None:
    """D2: where a kill came between the removal of the journal and the next start."""
    (await Daemon(tmp_path).start()).kill()
    with opened(tmp_path) as directory:
        directory.snapshot(9).touch()
        assert journal.Journal(directory, JournalReader(directory, 9)).number == 9


@pytest.mark.parametrize("missing", [1, 2])
async def test_a_segment_that_is_missing_is_damage(tmp_path: Path, missing: int) -> None:
    await rotated(tmp_path)
    path = tmp_path / f"{missing:08}.journal"
    path.unlink()
    with pytest.raises(DamagedFile, match="missing") as damage:
        await recovered(tmp_path)
    assert damage.value.path == path


async def test_no_segment_at_all_is_damage_where_there_is_a_store(tmp_path: Path) -> None:
    """It is not made anew: its identity was saved after the first segment."""
    await rotated(tmp_path)
    for path in segments(tmp_path):
        path.unlink()
    with pytest.raises(DamagedFile, match="there is no snapshot either") as damage:
        await recovered(tmp_path)
    assert damage.value.path == tmp_path / "00000001.journal"


async def test_a_missing_newest_segment_cannot_be_told_from_one_never_made(tmp_path: Path) -> None:
    """docs/reliability.md says so; at least what is before it is whole."""
    await rotated(tmp_path)
    segments(tmp_path)[-1].unlink()
    assert (await recovered(tmp_path)).states == states_after(BATCHES[:4])


@pytest.mark.parametrize("which", [0, 1])
async def test_a_segment_cut_at_any_byte_is_damage_once_there_is_a_next_one(tmp_path: Path, which: int) -> None:
    await rotated(tmp_path)
    path = segments(tmp_path)[which]
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(DamagedFile) as damage:
            await recovered(tmp_path)
        assert damage.value.path == path


async def test_a_segment_that_goes_on_behind_another_batch_is_damage(tmp_path: Path) -> None:
    """As after one was brought back from an older copy of the directory."""
    await rotated(tmp_path)
    second = segments(tmp_path)[1]
    with opened(tmp_path) as directory:
        store_id = directory.store_id
    altered = Origin(2, 1, boot_id(), 1, segments(tmp_path)[0].stat().st_size, Sequence(1, 1))
    content = [(frame.sequence, frame.time, frame.payload) for frame in frames(second)]
    rewrite(second, store_id, altered, content)
    with pytest.raises(DamagedFile, match="it goes on behind batch") as damage:
        await recovered(tmp_path)
    assert damage.value.path == second


async def test_a_segment_of_another_directory_is_damage(tmp_path: Path) -> None:
    for name in ("one", "other"):
        await rotated(tmp_path / name)
    mine, other = (segments(tmp_path / name)[1] for name in ("one", "other"))
    mine.write_bytes(other.read_bytes())
    with pytest.raises(DamagedFile, match="belongs to the store"):
        await recovered(tmp_path / "one")


def rewrite(path: Path, store_id: uuid.UUID, altered: Origin, content: list[tuple[Sequence, int, bytes]]) -> None:
    writer = journal.SegmentWriter(path, store_id, altered, [])
    for batch in content:
        writer.append(*batch)
    writer.close()


def test_a_boot_has_an_id() -> None:
    assert len(boot_id()) == 16
    assert any(boot_id())
    assert boot_id() == boot_id()


def test_a_boot_whose_id_is_not_known_has_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr(journal.subprocess, "run", fail)
    assert boot_id() == bytes(16)
