"""A segment holds the batches that were appended, whatever became of the last of them."""

import errno
import os
import tracemalloc
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestored import files, framing, segment
from statestored.errors import DamagedFile, DiskFailed, Displaced, NoRoom, TemporaryFileRemoved, TooNew
from statestored.files import temporary_name
from statestored.framing import FRAME_SIZE, HEADER_SIZE, Frame, Kind, Sequence, pack_frame, pack_header
from statestored.segment import MAGIC, RESERVE, Origin, SegmentReader, SegmentWriter
from tests.server.journals import flipped

STORE = uuid.UUID("7d1c6f0e-0d6a-4b1e-9f4c-2f8e6a1b3c5d")
OTHER = uuid.UUID("11111111-2222-4333-8444-555555555555")
FILE = b"some random id.."
BOOT, OTHER_BOOT = b"this boot of it.", b"another one.    "
ORIGIN = Origin(number=2, epoch=7, boot=BOOT, previous=1, previous_end=900, after=Sequence(6, 3))
COPIES = [
    Frame(Kind.BATCH, Sequence(6, number), time, 99, payload, 9999)
    for number, time, payload in ((4, 10, b"four"), (5, 11, b""), (6, 12, b"six"))
]
SOME = [b"first", b"", b"third", b"4"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00000002.journal"


class Appended:
    """A segment that is being written, and what should be in it."""

    def __init__(self, path: Path, origin: Origin = ORIGIN, copies: list[Frame] | None = None) -> None:
        self.writer = SegmentWriter(path, STORE, origin, copies or [])
        self.batches = [(frame.sequence, frame.payload) for frame in copies or []]
        self.counter = 0

    def append(self, *payloads: bytes) -> None:
        for payload in payloads:
            sequence = Sequence(7, self.counter + 1)
            self.writer.append(sequence, 1_700_000_000_000 + self.counter, payload)
            self.counter += 1
            self.batches.append((sequence, payload))

    def __enter__(self) -> "Appended":
        return self

    def __exit__(self, *_: object) -> None:
        self.writer._file.close()


def batches(frames: Iterator[Frame]) -> list[tuple[Sequence, bytes]]:
    return [(frame.sequence, frame.payload) for frame in frames]


def open_ended(path: Path, boot: bytes = OTHER_BOOT) -> tuple[list[tuple[Sequence, bytes]], SegmentReader]:
    reader = SegmentReader(path, STORE)
    return batches(reader.open_ended(boot)), reader


def written(path: Path, payloads: list[bytes]) -> tuple[bytes, list[int]]:
    """A segment none of whose batches was synced; and where its header and each of its batches end."""
    ends = [HEADER_SIZE]
    with Appended(path) as appended:
        for payload in payloads:
            appended.append(payload)
            ends.append(appended.writer.end)
    return path.read_bytes(), ends


def half_of(data: Any) -> Any:
    return data[: len(data) // 2]


def without_room(patch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
    """Half of what is written still fits."""
    pwrite, calls = os.pwrite, [0]

    def full(fd: int, data: Any, offset: int) -> int:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(number, os.strerror(number))
        return pwrite(fd, half_of(data), offset)

    patch.setattr(os, "pwrite", full)


@given(payloads=st.lists(st.binary(max_size=40), max_size=8), copies=st.integers(0, 3))
def test_what_was_appended_is_read(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], copies: int
) -> None:
    path = tmp_path_factory.mktemp("segment") / "00000002.journal"
    with Appended(path, copies=COPIES[:copies]) as appended:
        appended.append(*payloads)
        end = appended.writer.end
    for boot in (BOOT, OTHER_BOOT):
        found, reader = open_ended(path, boot)
        assert found == appended.batches
        assert (reader.dropped, reader.end) == (0, end)
    assert batches(SegmentReader(path, STORE).sealed(end)) == appended.batches


@pytest.mark.usefixtures("open_umask")
def test_it_is_for_its_owner_only(path: Path) -> None:
    with Appended(path):
        assert path.stat().st_mode & 0o777 == 0o600


def test_its_header_says_what_it_was_made_for(path: Path) -> None:
    with Appended(path):
        assert SegmentReader(path, STORE).origin == ORIGIN


def test_a_frame_says_how_much_was_on_the_disk_when_it_was_written(path: Path) -> None:
    """D5."""
    with Appended(path) as appended:
        appended.append(b"one", b"two")
        second = appended.writer.end
        appended.writer.sync()
        appended.append(b"three", b"four")
    frames = list(SegmentReader(path, STORE).open_ended(BOOT))
    assert [frame.durable for frame in frames] == [HEADER_SIZE, HEADER_SIZE, second, second]


def test_what_is_appended_during_a_sync_is_not_said_to_be_on_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Appended(path) as appended:
        appended.append(b"before")
        end = appended.writer.end
        monkeypatch.setattr(files, "sync_file", lambda _: appended.append(b"meanwhile"))
        appended.writer.sync()
        assert appended.writer.durable == end < appended.writer.end


def test_what_could_not_be_synced_is_not_said_to_be_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise DiskFailed(OSError(errno.EIO, "Input/output error"))

    with Appended(path) as appended:
        appended.append(b"one")
        monkeypatch.setattr(files, "sync_file", fail)
        with pytest.raises(DiskFailed):
            appended.writer.sync()
        assert appended.writer.durable == HEADER_SIZE


@pytest.mark.parametrize("reserved", [False, True])
def test_a_batch_without_room_leaves_nothing_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch, reserved: bool
) -> None:
    """D6: and those that come when there is room again are whole."""
    with Appended(path) as appended:
        if reserved:
            appended.writer.reserve()
        appended.append(b"one")
        end = appended.writer.end
        with monkeypatch.context() as patch:
            without_room(patch)
            with pytest.raises(NoRoom):
                appended.append(b"two" * 100)
            with pytest.raises(NoRoom):
                appended.writer.reserve()  # by which it is seen whether there is room again
        assert appended.writer.end == end == path.stat().st_size
        assert batches(SegmentReader(path, STORE).sealed(end)) == appended.batches
        appended.append(b"three")
        appended.writer.reserve()
        assert path.stat().st_size >= appended.writer.end + RESERVE // 2
        appended.append(b"four")
    found, reader = open_ended(path, BOOT)
    assert found == appended.batches
    assert [payload for _, payload in found] == [b"one", b"three", b"four"]
    assert reader.dropped == 0


def test_a_batch_that_cannot_be_written_for_another_reason_is_for_good(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Appended(path) as appended:
        appended.append(b"one")
        with monkeypatch.context() as patch:
            without_room(patch, errno.EIO)
            with pytest.raises(DiskFailed):
                appended.append(b"two")


def test_room_is_kept_ahead_of_the_batches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "RESERVE", 1000)
    sizes = []
    with Appended(path) as appended:
        for _ in range(20):
            appended.writer.reserve()
            sizes.append(path.stat().st_size)
            assert sizes[-1] - appended.writer.end >= 500
            appended.append(b"x" * 100)
    assert len(set(sizes)) < 10, "it is kept for several batches at a time"
    found, reader = open_ended(path, BOOT)
    assert found == appended.batches
    assert reader.dropped == 0


def test_no_room_to_keep_leaves_the_batches_as_they_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Appended(path) as appended:
        appended.append(b"one")
        with monkeypatch.context() as patch:
            without_room(patch)
            with pytest.raises(NoRoom):
                appended.writer.reserve()
        appended.append(b"two")
    assert open_ended(path)[0] == appended.batches


def test_closing_leaves_nothing_but_batches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    appended = Appended(path)
    appended.writer.reserve()
    appended.append(*SOME)
    end = appended.writer.end
    assert path.stat().st_size == HEADER_SIZE + RESERVE
    monkeypatch.setattr(files, "sync_file", lambda _: synced.append(path.read_bytes()[:end]))
    appended.writer.close()
    assert path.stat().st_size == end
    assert synced == [path.read_bytes()]
    assert batches(SegmentReader(path, STORE).sealed(end)) == appended.batches
    assert appended.writer._file.closed


def test_copies_are_as_they_were_but_for_their_place(path: Path) -> None:
    with Appended(path, copies=COPIES) as appended:
        appended.append(b"new")
    *copies, new = SegmentReader(path, STORE).open_ended(BOOT)
    assert [copy._replace(durable=99, offset=9999) for copy in copies] == COPIES
    assert new.sequence == (7, 1)


def test_its_header_vouches_for_the_copies(path: Path) -> None:
    """D10: they are on the disk before it has its name."""
    with Appended(path, copies=COPIES) as appended:
        end = appended.writer.end
        assert appended.writer.durable == end
    reader = SegmentReader(path, STORE)
    assert reader.origin.durable == reader.durable == end
    assert end == HEADER_SIZE + 3 * FRAME_SIZE + len(b"four" + b"six")


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
def test_damage_to_a_copy_is_never_a_torn_tail(path: Path, boot: bytes) -> None:
    """D5: they are below the mark in the header, even the last of them, behind which there is nothing."""
    with Appended(path, copies=COPIES):
        data = path.read_bytes()
    for bit in range(8 * HEADER_SIZE, 8 * len(data)):
        path.write_bytes(flipped(data, bit))
        with pytest.raises(DamagedFile):
            open_ended(path, boot)
    for size in range(HEADER_SIZE, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(DamagedFile):
            open_ended(path, boot)


@pytest.mark.parametrize("copies", [0, 3])
def test_all_is_on_the_disk_before_it_has_its_name(path: Path, monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    steps: list[tuple[str, bytes]] = []
    temporary, put_in_place = temporary_name(path), files.put_in_place
    monkeypatch.setattr(files, "sync_file", lambda _: steps.append(("synced", temporary.read_bytes())))

    def put(source: Path, target: Path) -> None:
        steps.append(("in place", source.read_bytes()))
        put_in_place(source, target)

    monkeypatch.setattr(files, "put_in_place", put)
    with Appended(path, copies=COPIES[:copies]) as appended:
        data = path.read_bytes()
    assert len(data) == appended.writer.end
    assert steps == [("synced", data), ("in place", data)]


def test_a_segment_is_in_its_place_until_it_is_removed(path: Path) -> None:
    with Appended(path) as appended:
        assert appended.writer.is_in_place()
        moved = path.rename(path.with_name("moved"))
        assert not appended.writer.is_in_place()
        path.symlink_to(moved)
        with pytest.raises(Displaced, match=f"{path} was replaced by another program: stop the daemon before"):
            appended.writer.is_in_place()
        path.unlink()
        path.write_bytes(moved.read_bytes())
        with pytest.raises(Displaced):
            appended.writer.is_in_place()


@pytest.mark.parametrize("step", ["write_at", "sync_file", "rename"])
@pytest.mark.parametrize("error", [NoRoom(errno.ENOSPC, "full"), DiskFailed(OSError(errno.EIO, "broken"))])
def test_one_that_cannot_be_made_is_not_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(files, step, fail)
    with pytest.raises(type(error)):
        SegmentWriter(path, STORE, ORIGIN, COPIES)
    assert list(path.parent.iterdir()) == []


def test_one_whose_temporary_file_another_program_removes_may_be_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_file = files.sync_file

    def removed_meanwhile(file: BinaryIO) -> None:
        sync_file(file)
        temporary_name(path).unlink()

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_file", removed_meanwhile)
        with pytest.raises(TemporaryFileRemoved, match=f"removed by another program.*{path.name}.tmp"):
            SegmentWriter(path, STORE, ORIGIN, COPIES)
    assert list(path.parent.iterdir()) == []
    SegmentWriter(path, STORE, ORIGIN, COPIES).close()


def test_a_sealed_one_ends_exactly_where_the_next_says(path: Path) -> None:
    data, ends = written(path, SOME)
    for behind in (b"", b"\0" * 99, b"junk", data[HEADER_SIZE:]):
        path.write_bytes(data + behind)
        assert [payload for _, payload in batches(SegmentReader(path, STORE).sealed(ends[-1]))] == SOME
    path.write_bytes(data)
    for number, end in enumerate(ends):
        reader = SegmentReader(path, STORE)
        assert [payload for _, payload in batches(reader.sealed(end))] == SOME[:number]
    for end in range(HEADER_SIZE + 1, len(data) + FRAME_SIZE):
        if end not in ends:
            with pytest.raises(DamagedFile, match="no whole batch"):
                batches(SegmentReader(path, STORE).sealed(end))


def test_a_sealed_one_has_no_torn_tail(path: Path) -> None:
    """D5: all in it was on the disk before the next was made."""
    data, ends = written(path, SOME)
    for size in range(HEADER_SIZE, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(DamagedFile) as damage:
            batches(SegmentReader(path, STORE).sealed(ends[-1]))
        assert damage.value.offset == max(end for end in ends if end <= size)


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
@pytest.mark.parametrize("behind", [b"", b"\0" * 8192])
def test_a_torn_tail_is_left_out(path: Path, boot: bytes, behind: bytes) -> None:
    """D4: behind the batches, room may have been kept."""
    data, ends = written(path, SOME)
    for size in range(HEADER_SIZE, len(data)):
        path.write_bytes(torn := data[:size] + behind)
        whole = max(number for number, end in enumerate(ends) if torn[:end] == data[:end])
        found, reader = open_ended(path, boot)
        assert [payload for _, payload in found] == SOME[:whole]
        assert (reader.end, reader.dropped) == (ends[whole], len(torn[ends[whole] :].rstrip(b"\0")))


def test_a_batch_in_front_of_a_good_one_was_whole_unless_power_was_lost(path: Path) -> None:
    """D5: blocks that were not synced reach the disk in any order, but within one boot they are all there."""
    data, ends = written(path, SOME)
    for number, (start, end) in enumerate(pairwise(ends)):
        path.write_bytes(data[:start] + bytes(end - start) + data[end:])
        found, reader = open_ended(path, OTHER_BOOT)
        assert [payload for _, payload in found] == SOME[:number]
        assert reader.dropped == (len(data) - start if end < len(data) else 0)
        if end < len(data):
            with pytest.raises(DamagedFile, match=f"there is one at byte {end}$") as damage:
                open_ended(path, BOOT)
            assert damage.value.offset == start


@pytest.mark.parametrize("window", range(FRAME_SIZE, 3 * FRAME_SIZE, 7))
def test_what_follows_is_searched_in_windows(path: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    data, ends = written(path, SOME)
    path.write_bytes(flipped(data, 8 * ends[1]) + bytes(500))
    monkeypatch.setattr(framing, "WINDOW", window)
    assert open_ended(path, OTHER_BOOT)[1].dropped == len(data) - ends[1]
    with pytest.raises(DamagedFile, match=f"there is one at byte {ends[2]}$"):
        open_ended(path, BOOT)


@pytest.mark.parametrize("junk", [False, True])
def test_what_follows_takes_no_memory(path: Path, junk: bool) -> None:
    """However much room was kept, or whatever stands there."""
    data, _ = written(path, SOME)
    with path.open("ab") as file:
        file.truncate(len(data) + 2**25)
        file.seek(0, os.SEEK_END)
        file.write(b"junk" * junk)
    tracemalloc.start()
    try:
        found, reader = open_ended(path, BOOT)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert [payload for _, payload in found] == SOME
    assert reader.dropped == (2**25 + 4 if junk else 0)


def test_an_unknown_boot_is_no_same_boot(path: Path) -> None:
    with Appended(path, Origin(number=2, epoch=7, boot=bytes(16))) as appended:
        appended.append(b"one", b"two")
    path.write_bytes(flipped(path.read_bytes(), 8 * HEADER_SIZE))
    assert open_ended(path, bytes(16))[0] == []


def test_below_a_later_mark_there_is_no_torn_tail(path: Path) -> None:
    """D5: in whichever boot."""
    with Appended(path) as appended:
        appended.append(b"one", b"two")
        durable = appended.writer.end
        appended.writer.sync()
        appended.append(b"three")
        third = appended.writer.end
        appended.append(b"")
    data = path.read_bytes()
    for bit in range(8 * HEADER_SIZE, 8 * len(data)):
        path.write_bytes(flipped(data, bit))
        if bit < 8 * durable:
            with pytest.raises(DamagedFile):
                open_ended(path)
        else:
            found, reader = open_ended(path)
            assert len(found) == (2 if bit < 8 * third else 3)
            assert reader.dropped > 0


def crafted(path: Path, frames: list[tuple[int, Sequence]], **details: Any) -> None:
    """With checksums that are right, whatever they are over."""
    header = {"number": 2, "epoch": 7, "boot": BOOT, "after": [6, 3], **details}
    data = pack_header(MAGIC, STORE, FILE, {name: value for name, value in header.items() if value is not ...})
    for kind, sequence in frames:
        data += pack_frame(FILE, len(data), Kind(kind) if kind in list(Kind) else kind, sequence, 0, 0, b"")  # type: ignore[arg-type]
    path.write_bytes(data)


@pytest.mark.parametrize("kind", [Kind.BUCKET, Kind.FOOTER, 4, 9, 2**32 - 1])
def test_a_frame_of_a_later_release_is_too_new(path: Path, kind: int) -> None:
    crafted(path, [(Kind.BATCH, Sequence(7, 1)), (kind, Sequence(7, 2))])
    with pytest.raises(TooNew, match=f"{path} has a frame of kind {int(kind)},"):
        open_ended(path)
    with pytest.raises(TooNew):
        batches(SegmentReader(path, STORE).sealed(path.stat().st_size))


@pytest.mark.parametrize(
    "numbers", [[(7, 2)], [(7, 1), (7, 1)], [(7, 1), (7, 3)], [(6, 3)], [(6, 5)], [(7, 1), (6, 4)]]
)
def test_batches_that_do_not_follow_each_other_are_damage(path: Path, numbers: list[tuple[int, int]]) -> None:
    crafted(path, [(Kind.BATCH, Sequence(*number)) for number in numbers])
    with pytest.raises(DamagedFile, match="follows batch"):
        open_ended(path)


@pytest.mark.parametrize(
    "details",
    [
        *({"after": ...}, {"after": 5}, {"after": [1]}, {"after": [1, None]}, {"number": ...}, {"boot": ...}),
        *({"boot": 1}, {"previous": None}, {"previous_end": -1}, {"durable": {}}, {"of a later release": 1}),
    ],
)
def test_a_header_that_makes_no_sense_is_damage(path: Path, details: dict[str, Any]) -> None:
    crafted(path, [], **details)
    with pytest.raises(DamagedFile, match="makes no sense"):
        SegmentReader(path, STORE)


def test_a_segment_of_another_store_is_refused(path: Path) -> None:
    written(path, SOME)
    with pytest.raises(DamagedFile) as damage:
        SegmentReader(path, OTHER)
    for name in (path, STORE, OTHER):
        assert str(name) in str(damage.value)


def test_a_segment_under_another_number_is_refused(path: Path) -> None:
    written(path, SOME)
    renamed = path.rename(path.with_name("00000003.journal"))
    with pytest.raises(DamagedFile, match="made as number 2"):
        SegmentReader(renamed, STORE)


def test_a_file_that_is_not_there_is_no_damage(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SegmentReader(path, STORE)
