"""What is whole is found again, wherever it stands in a damaged file."""

import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from statestored import framing, inspection
from statestored.datadir import IDENTITY, DataDirectory
from statestored.errors import DamagedFile, TooNew
from statestored.framing import HEADER_SIZE, Frame, Kind, Sequence, pack_frame
from statestored.inspection import Gap, find_file_id, identify, read_pieces, size_used
from statestored.segment import MAGIC
from tests.server.damaged import flip, make
from tests.server.journals import without_syncs

FILE = bytes(range(16))


@pytest.fixture(autouse=True)
def _without_syncs() -> Iterator[None]:
    with without_syncs():
        yield


def write(path: Path, payloads: list[bytes]) -> list[int]:
    """Frames behind a header of zeros. Returns where each begins, and where the last one ends."""
    data, offsets = bytes(HEADER_SIZE), []
    for number, payload in enumerate(payloads):
        offsets.append(len(data))
        data += pack_frame(FILE, len(data), Kind.BATCH, Sequence(1, number + 1), 0, 0, payload)
    path.write_bytes(data)
    return [*offsets, len(data)]


def pieces(path: Path, end: int | None = None) -> list[Gap | bytes]:
    read = read_pieces(path, FILE, path.stat().st_size if end is None else end)
    return [piece.payload if isinstance(piece, Frame) else piece for piece in read]


def test_what_is_whole_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, [b"one", b"", b"three"])
    assert pieces(path) == [b"one", b"", b"three"]


@pytest.mark.parametrize("part", [0, 4, 8, 30, 44, 48])
def test_a_damaged_frame_is_a_gap_and_those_around_it_are_read(tmp_path: Path, part: int) -> None:
    path = tmp_path / "file"
    offsets = write(path, [b"one", b"two", b"three", b"four"])
    flip(path, offsets[1] + part)
    flip(path, offsets[3] + part)
    assert pieces(path) == [b"one", Gap(*offsets[1:3]), b"three", Gap(*offsets[3:5])]


def test_reading_ends_where_it_should(tmp_path: Path) -> None:
    path = tmp_path / "file"
    offsets = write(path, [b"one", b"two", b"three"])
    assert pieces(path, offsets[2]) == [b"one", b"two"]
    flip(path, offsets[1])
    assert pieces(path, offsets[2]) == [b"one", Gap(*offsets[1:3])]
    assert pieces(path, offsets[3] + 7)[-1] == Gap(offsets[3], offsets[3] + 7), "bytes that should be there and are not"


def test_frames_are_found_across_the_windows_that_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    offsets = write(path, [bytes(300), b"two", b"three"])
    flip(path, offsets[0])
    for window in range(49, 120):
        monkeypatch.setattr(framing, "WINDOW", window)
        assert pieces(path) == [Gap(*offsets[:2]), b"two", b"three"], window


def test_a_head_that_is_whole_before_a_damaged_payload_is_not_taken_for_a_frame(tmp_path: Path) -> None:
    path = tmp_path / "file"
    offsets = write(path, [b"one", b"two", b"three"])
    flip(path, offsets[0])
    flip(path, offsets[2] - 1)
    assert pieces(path) == [Gap(offsets[0], offsets[2]), b"three"]


@pytest.mark.parametrize("payloads", [[b"one", b"two"], [b""], [b"", b"\1\0\0\0" * 40]])
def test_without_its_header_a_file_is_read_by_an_id_that_does_as_well(tmp_path: Path, payloads: list[bytes]) -> None:
    path = tmp_path / "00000001.journal"
    write(path, payloads)
    file_id = find_file_id(path, uuid.UUID(int=0))
    assert file_id is not None
    assert file_id != FILE
    assert [p.payload for p in read_pieces(path, file_id, path.stat().st_size) if isinstance(p, Frame)] == payloads


@pytest.mark.parametrize("window", [60, 128, 2**20])
def test_such_an_id_is_found_behind_damage_and_what_looks_like_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(framing, "WINDOW", window)
    path = tmp_path / "00000001.journal"
    offsets = write(path, [b"\1\0\0\0" * 100, b"two"])
    flip(path, offsets[1] - 1)
    file_id = find_file_id(path, uuid.UUID(int=0))
    assert file_id is not None
    assert list(read_pieces(path, file_id, offsets[2]))[-1].payload == b"two"  # type: ignore[union-attr]


def test_noise_has_no_id(tmp_path: Path) -> None:
    path = tmp_path / "00000001.journal"
    noise = random.Random(1).randbytes(20_000) + b"\1\0\0\0" * 2_000
    path.write_bytes(noise)
    assert find_file_id(path, uuid.UUID(int=0)) is None
    path.write_bytes(MAGIC)
    assert find_file_id(path, uuid.UUID(int=0)) is None


def test_a_file_that_belongs_elsewhere_has_none_either(tmp_path: Path) -> None:
    """Its header is good, and says so."""
    directory = DataDirectory(make(tmp_path))
    assert identify(directory) is None
    segment = directory.segment(2)
    assert find_file_id(segment, directory.store_id) is not None
    assert find_file_id(segment, uuid.UUID(int=7)) is None
    renamed = segment.rename(directory.segment(9))
    assert find_file_id(renamed, directory.store_id) is None


@pytest.mark.parametrize(("data", "used"), [(b"", 0), (bytes(300), 0), (b"ab\0c" + bytes(300), 4), (b"ab\0c", 4)])
def test_the_zeros_at_the_end_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, used: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    for window in (1, 3, 100, 2**20):
        monkeypatch.setattr(inspection, "WINDOW", window)
        assert size_used(path) == used


def test_the_identity_is_known_from_the_headers_where_its_file_is_lost(tmp_path: Path) -> None:
    directory = DataDirectory(make(tmp_path))
    assert identify(directory) is None
    known = directory.store_id
    for content in (b"{", None):
        path = tmp_path / IDENTITY
        path.write_bytes(content) if content else path.unlink()
        flip(directory.segment(3), 20)
        again = DataDirectory(tmp_path)
        damage = identify(again)
        assert isinstance(damage, DamagedFile)
        assert damage.path == path
        assert again.store_id == known


def test_where_no_file_knows_it_there_is_a_new_one(tmp_path: Path) -> None:
    directory = DataDirectory(make(tmp_path))
    (tmp_path / IDENTITY).unlink()
    for path in (*directory.segments(), *directory.snapshots()):
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), bytes(HEADER_SIZE), 0)
    assert identify(directory) is not None
    assert directory.store_id.version == 4


def test_an_identity_of_a_later_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / IDENTITY).write_text('{"format": 2}')
    with pytest.raises(TooNew):
        identify(DataDirectory(tmp_path))
