"""What journal segments and snapshots have in common: a header, then frames. docs/formats.md has it byte by byte.

A frame's checksums cover the file's random id and the frame's own offset too, so that a frame of another file, or of
another place in this one, is never taken for the right one. Each frame begins with a mark of its file, by which frames
are found again behind damage. Integers are little-endian.
"""

import io
import os
import struct
import uuid
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32

import msgpack

from statestored.errors import DamagedFile, TooNew

FORMAT = 2  # of what is written; all up to this one are read
# One sector of the disk, which is written as a whole or not at all.
HEADER_SIZE = 512
LARGE = 2**20  # bytes; a payload of more is rare
WINDOW = 2**20  # bytes of a file that are searched at once
VALUES_AT_ONCE = 2**13  # of a large array; as objects they take about 3 MB

_PREFIX = struct.Struct("<8sI16s16sI")  # magic, format, store id, file id, length of the details
_CRC = struct.Struct("<I")
_FRAME = struct.Struct("<4sIIIQQQI")  # as in Frame; then the checksum of the payload
_PLACE = struct.Struct("<16sQ")
FRAME_SIZE = _FRAME.size + _CRC.size
_MARK_SIZE = 4


class Kind(IntEnum):
    """What a frame's payload is."""

    BATCH = 1
    BUCKET = 2
    FOOTER = 3
    SESSIONS = 4


class Sequence(NamedTuple):
    """The number of a batch. Each start of the daemon has an epoch of its own, so that none is given twice."""

    epoch: int
    counter: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.counter}"

    def is_followed_by(self, other: "Sequence") -> bool:
        return other == (self.epoch, self.counter + 1) or (other.epoch > self.epoch and other.counter == 1)


class Header(NamedTuple):
    store_id: uuid.UUID
    file_id: bytes
    details: dict[bytes, Any]


class Frame(NamedTuple):
    """`time`: of the commit, in milliseconds since 1970. `durable`: so much of the file was on the disk by then."""

    kind: int
    sequence: Sequence
    time: int
    durable: int
    payload: bytes
    offset: int

    @property
    def end(self) -> int:
        return self.offset + FRAME_SIZE + len(self.payload)


def pack_header(magic: bytes, store_id: uuid.UUID, file_id: bytes, details: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(details)
    header = _PREFIX.pack(magic, FORMAT, store_id.bytes, file_id, len(packed)) + packed
    header = header.ljust(HEADER_SIZE - _CRC.size, b"\0")
    return header + _CRC.pack(crc32(header))


def unpack_header(path: Path, data: bytes, magic: bytes) -> Header:
    """Raises DamagedFile or TooNew."""
    if len(data) < HEADER_SIZE:
        raise DamagedFile(path, "it ends within the header")
    found, version, store_id, file_id, length = _PREFIX.unpack_from(data)
    if found != magic:
        raise DamagedFile(path, "it does not begin as a file of its kind does")
    if _CRC.unpack_from(data, HEADER_SIZE - _CRC.size)[0] != crc32(data[: HEADER_SIZE - _CRC.size]):
        raise DamagedFile(path, "the header's checksum is wrong")
    if version > FORMAT:
        raise TooNew(path, f"format {version}", FORMAT)
    details = _unpack(path, data[_PREFIX.size : _PREFIX.size + length], 0)
    if not isinstance(details, dict):
        raise DamagedFile(path, "the header makes no sense")
    return Header(uuid.UUID(bytes=store_id), file_id, details)


def unpack_content(path: Path, frame: Frame) -> Any:
    """What a payload holds: arrays as tuples, text as bytes. Raises DamagedFile."""
    return _unpack(path, frame.payload, frame.offset)


def unpack_array(path: Path, frame: Frame) -> Iterator[tuple[Any, ...]]:
    """Return what a payload holds that is an array; if it is large, some of its values at a time.

    Unpacked, it takes about seven times the memory. Raises DamagedFile, also after some of the values.
    """
    if len(frame.payload) <= LARGE:
        values = unpack_content(path, frame)
        if not isinstance(values, tuple):
            raise DamagedFile(path, "its content makes no sense: it is no array", frame.offset)
        yield values
        return
    unpacker = msgpack.Unpacker(io.BytesIO(frame.payload), raw=True, use_list=False)
    try:
        left = unpacker.read_array_header()
        while left:
            count = min(left, VALUES_AT_ONCE)
            yield tuple(unpacker.unpack() for _ in range(count))
            left -= count
    except (msgpack.UnpackException, ValueError) as error:
        raise DamagedFile(path, f"its content makes no sense: {error}", frame.offset) from error
    if unpacker.tell() < len(frame.payload):
        raise DamagedFile(path, "its content makes no sense: something follows the array", frame.offset)


def pack_frame(
    file_id: bytes, offset: int, kind: Kind, sequence: Sequence, time: int, durable: int, payload: bytes
) -> bytes:
    place = crc32(_PLACE.pack(file_id, offset))
    head = _FRAME.pack(
        file_id[:_MARK_SIZE], kind, len(payload), *sequence, time, durable, crc32(payload, place)
    )  # fmt: skip
    return b"".join((head, _CRC.pack(crc32(head, place)), payload))


def read_frame(file: BinaryIO, offset: int, file_id: bytes) -> Frame | None:
    """The frame at the place where the file stands, which is `offset`; None where there is no whole one."""
    place = crc32(_PLACE.pack(file_id, offset))
    head = _unpack_head(file.read(FRAME_SIZE), place, file_id)
    if head is None:
        return None
    kind, length, epoch, counter, time, durable, checksum = head
    if length > LARGE and length > os.fstat(file.fileno()).st_size - offset - FRAME_SIZE:
        return None  # memory is taken before it is read
    payload = file.read(length)
    if len(payload) < length or crc32(payload, place) != checksum:
        return None
    return Frame(kind, Sequence(epoch, counter), time, durable, payload, offset)


class Found(NamedTuple):
    """A frame's head, somewhere behind damage. Its payload may be damaged too."""

    offset: int
    durable: int


def find_frames(data: bytes, start: int, file_id: bytes) -> Iterator[Found]:
    """All heads of frames in `data`, which begins at the offset `start` of its file."""
    mark, at = file_id[:_MARK_SIZE], -1
    while (at := data.find(mark, at + 1)) >= 0:
        place = crc32(_PLACE.pack(file_id, start + at))
        if (head := _unpack_head(data[at : at + FRAME_SIZE], place, file_id)) is not None:
            yield Found(start + at, durable=head[5])


def windows(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """Return the rest of the file, by offsets, in pieces that overlap: each head of a frame is whole in one of them."""
    while True:
        file.seek(start)
        data = file.read(WINDOW)
        yield start, data
        if len(data) < WINDOW:
            return
        start += WINDOW - FRAME_SIZE + 1


def _unpack_head(data: bytes, place: int, file_id: bytes) -> tuple[int, int, int, int, int, int, int] | None:
    """All that is in it but the mark and its own checksum."""
    if len(data) < FRAME_SIZE or _CRC.unpack_from(data, _FRAME.size)[0] != crc32(data[: _FRAME.size], place):
        return None
    mark, *head = _FRAME.unpack_from(data)
    return tuple(head) if mark == file_id[:_MARK_SIZE] else None


def _unpack(path: Path, packed: bytes, offset: int) -> Any:
    try:
        return msgpack.unpackb(packed, raw=True, use_list=False)
    except (msgpack.UnpackException, ValueError) as error:
        raise DamagedFile(path, f"what is no MessagePack: {error}", offset) from error
