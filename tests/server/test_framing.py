"""A frame is what was written, at its place in its file, or it is not there."""

import io
import struct
import tracemalloc
import uuid
from pathlib import Path
from typing import Any
from zlib import crc32

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestored import framing
from statestored.errors import DamagedFile, TooNew
from statestored.framing import (
    FRAME_SIZE,
    HEADER_SIZE,
    Found,
    Frame,
    Header,
    Kind,
    Sequence,
    find_frames,
    pack_frame,
    pack_header,
    read_frame,
    unpack_array,
    unpack_content,
    unpack_header,
    windows,
)
from tests.server.journals import flipped

MAGIC = b"\x93TESTED\n"
STORE = uuid.UUID("7d1c6f0e-0d6a-4b1e-9f4c-2f8e6a1b3c5d")
FILE = bytes(range(0xA0, 0xB0))
PATH = Path("/data/00000001.journal")
HEADER = pack_header(MAGIC, STORE, FILE, {"number": 1})

file_ids = st.binary(min_size=16, max_size=16)
offsets = st.integers(0, 2**64 - 1)
sequences = st.builds(Sequence, st.integers(0, 2**32 - 1), offsets)
payloads = st.binary(max_size=60)


def frame(payload: bytes = b"payload", offset: int = HEADER_SIZE, durable: int = 0, file_id: bytes = FILE) -> bytes:
    return pack_frame(file_id, offset, Kind.BATCH, Sequence(3, 4), 1_700_000_000_000, durable, payload)


def read(data: bytes, offset: int = HEADER_SIZE, file_id: bytes = FILE) -> Frame | None:
    return read_frame(io.BytesIO(data), offset, file_id)


def found(data: bytes, start: int = HEADER_SIZE) -> list[Found]:
    return list(find_frames(data, start, FILE))


@given(file_ids, offsets, st.sampled_from(Kind), sequences, offsets, offsets, payloads, st.binary(max_size=60))
def test_a_frame_is_read_as_it_was_written_whatever_follows(
    file_id: bytes,
    offset: int,
    kind: Kind,
    sequence: Sequence,
    time: int,
    durable: int,
    payload: bytes,
    behind: bytes,
) -> None:
    packed = pack_frame(file_id, offset, kind, sequence, time, durable, payload)
    assert len(packed) == FRAME_SIZE + len(payload)
    again = read(packed + behind, offset, file_id)
    assert again == Frame(kind, sequence, time, durable, payload, offset)
    assert again.end == offset + len(packed)


@given(file_ids, st.dictionaries(st.text(max_size=9), st.integers(0, 2**64 - 1) | st.binary(max_size=9), max_size=9))
def test_a_header_is_read_as_it_was_written(file_id: bytes, details: dict[str, Any]) -> None:
    packed = pack_header(MAGIC, STORE, file_id, details)
    assert len(packed) == HEADER_SIZE
    expected = {name.encode(): value for name, value in details.items()}
    assert unpack_header(PATH, packed + b"frames", MAGIC) == Header(STORE, file_id, expected)


def test_the_format_is_the_one_that_is_described() -> None:
    magic, version, store, file_id, length = struct.unpack_from("<8sI16s16sI", HEADER)
    assert (magic, version, store, file_id) == (MAGIC, 2, STORE.bytes, FILE)
    assert msgpack.unpackb(HEADER[48 : 48 + length]) == {"number": 1}
    assert set(HEADER[48 + length : 508]) == {0}
    assert struct.unpack_from("<I", HEADER, 508)[0] == crc32(HEADER[:508])
    packed = frame(b"payload", offset=600, durable=550)
    place = crc32(FILE + struct.pack("<Q", 600))
    head = (FILE[:4], 1, 7, 3, 4, 1_700_000_000_000, 550, crc32(b"payload", place), crc32(packed[:44], place))
    assert struct.unpack_from("<4sIIIQQQII", packed) == head
    assert packed[48:] == b"payload"


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    """D5."""
    for bit in range(8 * HEADER_SIZE):
        with pytest.raises(DamagedFile):
            unpack_header(PATH, flipped(HEADER, bit), MAGIC)


@pytest.mark.parametrize("payload", [b"", b"payload", bytes(30)])
def test_every_flipped_bit_of_a_frame_is_noticed(payload: bytes) -> None:
    """D5."""
    packed = frame(payload)
    for bit in range(8 * len(packed)):
        assert read(flipped(packed, bit) + packed) is None


def test_every_cut_is_noticed() -> None:
    packed = frame()
    for size in range(len(packed)):
        assert read(packed[:size]) is None
        assert read(packed[:size].ljust(8192, b"\0")) is None
    for size in range(HEADER_SIZE):
        with pytest.raises(DamagedFile, match="ends within the header"):
            unpack_header(PATH, HEADER[:size], MAGIC)


def test_a_frame_of_another_place_is_not_taken() -> None:
    """D5: a stale block may be a valid old frame."""
    packed = frame(offset=1000)
    assert read(packed, 1000) is not None
    for offset in (*range(990, 1000), *range(1001, 1010), 0, 1000 + 2**32, 2**64 - 1):
        assert read(packed, offset) is None


def test_a_frame_of_another_file_is_not_taken() -> None:
    """Not even of one whose id begins alike."""
    packed = frame()
    for bit in range(8 * len(FILE)):
        assert read(packed, file_id=flipped(FILE, bit)) is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "ends within the header"),
        (bytes(600), "does not begin as"),
        (b"{}".ljust(600), "does not begin as"),
        (pack_header(b"\x93OTHER!\n", STORE, FILE, {}), "does not begin as"),
        (flipped(HEADER, 8 * 8), "checksum"),  # the format
        (flipped(HEADER, 8 * 300), "checksum"),
    ],
)
def test_each_kind_of_wrong_header_has_a_message_of_its_own(data: bytes, says: str) -> None:
    with pytest.raises(DamagedFile, match=says) as damage:
        unpack_header(PATH, data, MAGIC)
    assert (damage.value.path, damage.value.offset) == (PATH, 0)


def test_the_format_before_is_read() -> None:
    older = bytearray(HEADER)
    older[8:12] = struct.pack("<I", 1)
    older[508:] = struct.pack("<I", crc32(older[:508]))
    assert unpack_header(PATH, bytes(older), MAGIC) == unpack_header(PATH, HEADER, MAGIC)


def test_a_later_format_is_too_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may mean other things by the same bytes: nothing behind the format is looked at."""
    with monkeypatch.context() as later:
        later.setattr(framing, "FORMAT", 3)
        header = pack_header(MAGIC, STORE, FILE, {})
    with pytest.raises(TooNew, match=f"{PATH} has format 3, .* up to 2"):
        unpack_header(PATH, header, MAGIC)


@pytest.mark.parametrize("details", [b"\xc1", b"\x93\x01", b"\x01\x02", b"\x05", b"\x90", b""])
def test_a_header_whose_details_make_no_sense_is_damage(details: bytes) -> None:
    """In spite of its checksum."""
    header = struct.pack("<8sI16s16sI", MAGIC, 1, STORE.bytes, FILE, len(details)) + details
    header = header.ljust(HEADER_SIZE - 4, b"\0")
    with pytest.raises(DamagedFile, match=r"no sense|no MessagePack"):
        unpack_header(PATH, header + struct.pack("<I", crc32(header)), MAGIC)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x01", b"\x01\x02", b"\x91" * 5000])
def test_a_payload_that_is_no_messagepack_is_damage(payload: bytes) -> None:
    with pytest.raises(DamagedFile, match="no MessagePack") as damage:
        unpack_content(PATH, Frame(Kind.BATCH, Sequence(1, 1), 0, 0, payload, 777))
    assert damage.value.offset == 777


def test_a_payload_is_arrays_as_tuples_and_text_as_bytes() -> None:
    payload = msgpack.packb([1, "text", b"bytes", [None]])
    unpacked = unpack_content(PATH, Frame(Kind.BATCH, Sequence(1, 1), 0, 0, payload, 0))
    assert unpacked == (1, b"text", b"bytes", (None,))


def test_frames_are_found_behind_damage() -> None:
    offsets: list[int] = []
    data = b""
    for payload in (b"one", b"", b"three"):
        offsets.append(HEADER_SIZE + len(data))
        data += frame(payload, offsets[-1], durable=offsets[-1] - 1)
    everything = [Found(offset, offset - 1) for offset in offsets]
    assert found(data) == everything
    assert found(data[1:], HEADER_SIZE + 1) == everything[1:]
    for bit in range(8 * FRAME_SIZE):
        assert found(flipped(data, bit)) == everything[1:]


def test_a_frame_whose_payload_is_damaged_is_found_all_the_same() -> None:
    """It says what was on the disk by then."""
    packed = frame(durable=500)
    assert found(flipped(packed, 8 * FRAME_SIZE)) == [Found(HEADER_SIZE, 500)]
    assert found(packed[:FRAME_SIZE]) == [Found(HEADER_SIZE, 500)]


@given(before=st.lists(st.sampled_from([FILE[:1], FILE[:3], FILE[:4], FILE, b"\0", b"junk"]), max_size=12))
def test_a_frame_is_found_whatever_is_before_it(before: list[bytes]) -> None:
    """Parts of frames, for one."""
    junk = b"".join(before)
    assert found(junk + frame(offset=HEADER_SIZE + len(junk))) == [Found(HEADER_SIZE + len(junk), 0)]


def test_frames_of_another_place_or_file_are_not_found() -> None:
    moved, other = frame(offset=5000), frame(file_id=FILE[:4] + bytes(12))
    assert found(moved + other + FILE[:4] * 30) == []


@pytest.mark.parametrize(
    ("one", "other", "follows"),
    [
        ((1, 1), (1, 2), True),
        ((1, 1), (1, 1), False),
        ((1, 2), (1, 1), False),
        ((1, 1), (1, 3), False),
        ((1, 7), (2, 1), True),
        ((1, 7), (9, 1), True),
        ((1, 7), (2, 8), False),
        ((2, 7), (1, 1), False),
        ((2, 7), (1, 8), False),
        ((0, 0), (1, 1), True),
    ],
)
def test_a_batch_follows_within_its_epoch_or_begins_a_later_one(
    one: tuple[int, int], other: tuple[int, int], follows: bool
) -> None:
    assert Sequence(*one).is_followed_by(Sequence(*other)) == follows


def test_no_memory_is_taken_for_a_payload_that_cannot_be_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(pack_frame(FILE, 0, Kind.BATCH, Sequence(1, 1), 0, 0, bytes(framing.LARGE + 1))[: FRAME_SIZE + 10])
    asked: list[int] = []

    class Reader(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size or 0)
            return super().read(size)

    with Reader(path) as file:
        assert read_frame(file, 0, FILE) is None
    assert asked == [FRAME_SIZE]


def of_array(payload: bytes) -> list[tuple[Any, ...]]:
    return list(unpack_array(PATH, Frame(Kind.BATCH, Sequence(1, 1), 0, 0, payload, 512)))


values = st.lists(st.binary(max_size=5) | st.integers(0, 2**64 - 1) | st.lists(st.binary(max_size=5)), max_size=40)


@given(values=values.map(msgpack.packb), large=st.sampled_from([0, 2**20]), at_once=st.integers(1, 50))
def test_an_array_is_the_same_in_pieces(values: bytes, large: int, at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "LARGE", large)
        patch.setattr(framing, "VALUES_AT_ONCE", at_once)
        pieces = of_array(values)
    assert [value for piece in pieces for value in piece] == [*msgpack.unpackb(values, raw=True, use_list=False)]
    assert large or all(len(piece) <= at_once for piece in pieces)


@pytest.mark.parametrize("large", [0, 2**20])
@pytest.mark.parametrize(
    "payload",
    [
        *(b"\xc1", b"\x05", b"\xa1a", b"\x81\x01\x02"),
        *(b"\x93\x01\x02", b"\x91\xc1", b"\x91\x01\x02", b"\xdd\xff\xff\xff\xff", b"\x91\x92\x01"),
    ],
)
def test_what_is_no_array_is_damage(monkeypatch: pytest.MonkeyPatch, payload: bytes, large: int) -> None:
    """Whether it is small or large."""
    monkeypatch.setattr(framing, "LARGE", large)
    with pytest.raises(DamagedFile) as damage:
        of_array(payload)
    assert (damage.value.path, damage.value.offset) == (PATH, 512)


def test_a_large_array_takes_little_more_than_its_payload() -> None:
    payload = msgpack.packb([[1, b"default", b"lists", b"s%d" % number, b"POSTING"] for number in range(300_000)])
    batch = Frame(Kind.BATCH, Sequence(1, 1), 0, 0, payload, 512)
    tracemalloc.start()
    try:
        assert sum(map(len, unpack_array(PATH, batch))) == 300_000
        assert tracemalloc.get_traced_memory()[1] < len(payload)  # all of it takes seven times as much
    finally:
        tracemalloc.stop()


@given(before=st.integers(0, 200), between=st.integers(0, 200), window=st.integers(FRAME_SIZE, 300))
def test_a_head_is_whole_in_one_of_the_windows(before: int, between: int, window: int) -> None:
    data = bytes(before)
    expected = []
    for gap in (between, 0):
        expected.append(Found(len(data), 0))
        data += frame(offset=len(data)) + bytes(gap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "WINDOW", window)
        pieces = list(windows(io.BytesIO(data), 0))
    assert all(data[start:].startswith(piece) for start, piece in pieces)
    assert [one for start, piece in pieces for one in found(piece, start)] == expected
