"""Reading files that are damaged: what is whole in them, wherever it stands, and where it is not.

A start of the daemon stops at the first damage; this goes on behind it. Nothing is changed.
"""

import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zlib import crc32

from statestored import files, segment, snapshot
from statestored.datadir import IDENTITY, SNAPSHOT, DataDirectory, read_identity
from statestored.errors import DamagedFile
from statestored.framing import (
    FRAME_SIZE,
    HEADER_SIZE,
    WINDOW,
    Frame,
    Header,
    Kind,
    find_frames,
    read_frame,
    unpack_header,
    windows,
)


class Gap(NamedTuple):
    """Bytes in which there is no whole frame."""

    start: int
    end: int


def read_pieces(path: Path, file_id: bytes, end: int) -> Iterator[Frame | Gap]:
    """What begins before `end`: the frames that are whole, and the gaps between them. Raises OSError."""
    offset = HEADER_SIZE
    with files.open_to_read(path, 2**18) as file:
        file.seek(offset)
        while offset < end:
            frame = read_frame(file, offset, file_id)
            if frame is None:
                frame = _next_frame(file, offset + 1, file_id)
                if frame is None or frame.offset >= end:
                    yield Gap(offset, end)
                    return
                yield Gap(offset, frame.offset)
            yield frame
            offset = frame.end


def identify(directory: DataDirectory) -> DamagedFile | None:
    """Learn the store's id. Returns what is wrong with the file that should say it: then the other files did.

    Where nothing does, there is a new one. Raises TooNew or OSError.
    """
    path = directory.path / IDENTITY
    try:
        directory.store_id = read_identity(path)
    except FileNotFoundError:
        damage = DamagedFile(path, "it is missing")
    except DamagedFile as found:
        damage = found
    else:
        return None
    directory.store_id = _id_in_headers(directory) or uuid.uuid4()
    return damage


def find_file_id(path: Path, store_id: uuid.UUID) -> bytes | None:
    """The file's id, or one that does as well, where the header is damaged; None where the file is of no use to us."""
    try:
        header = _read_header(path)
    except DamagedFile:
        kinds = (Kind.BUCKET, Kind.FOOTER) if path.suffix == SNAPSHOT else (Kind.BATCH,)
        return next((found for kind in kinds if (found := _id_in_frames(path, kind)) is not None), None)
    is_in_its_place = header.store_id == store_id and header.details.get(b"number") == int(path.stem)
    return header.file_id if is_in_its_place else None


def size_used(path: Path) -> int:
    """Without the zeros at the end, which are room that was kept."""
    with files.open_to_read(path) as file:
        at = file.seek(0, 2)
        while at:
            start = max(0, at - WINDOW)
            file.seek(start)
            if used := file.read(at - start).rstrip(b"\0"):
                return start + len(used)
            at = start
    return 0


def _id_in_headers(directory: DataDirectory) -> uuid.UUID | None:
    """The one that most files have; the newest one's, where there are several such."""
    found: Counter[uuid.UUID] = Counter()
    for path in reversed((*directory.segments(), *directory.snapshots())):
        try:
            found[_read_header(path).store_id] += 1
        except DamagedFile:
            continue
    return found.most_common(1)[0][0] if found else None


def _read_header(path: Path) -> Header:
    """Raises DamagedFile, TooNew or OSError."""
    magic = snapshot.MAGIC if path.suffix == SNAPSHOT else segment.MAGIC
    with files.open_to_read(path) as file:
        return unpack_header(path, file.read(HEADER_SIZE), magic)


def _next_frame(file: BinaryIO, start: int, file_id: bytes) -> Frame | None:
    """The first one from `start` on that is whole; the file then stands behind it."""
    for offset, data in windows(file, start):
        for found in find_frames(data, offset, file_id):
            file.seek(found.offset)
            if (frame := read_frame(file, found.offset, file_id)) is not None:
                return frame
    return None


# Where the header is damaged, so is the file's id, and all checksums begin with it. But a CRC can be calculated
# backwards: from one that is stored and the bytes that it covers, to the one that it began with. It is the same for
# all frames of the file, and any id that has it, and the mark, does as well as the one that was lost.


def _id_in_frames(path: Path, kind: Kind) -> bytes | None:
    """By which there is a whole frame of this kind. The checksum of its payload tells whether it is one."""
    sign = kind.to_bytes(4, "little")  # it stands behind the mark
    with files.open_to_read(path) as file:
        for offset, data in windows(file, HEADER_SIZE):
            at = 0
            while (at := data.find(sign, at + 1)) >= 0:
                head = data[max(at - 4, 0) : at - 4 + FRAME_SIZE]
                if len(head) < FRAME_SIZE:
                    continue
                file_id = _id_for(head, offset + at - 4)
                file.seek(offset + at - 4)
                if read_frame(file, offset + at - 4, file_id) is not None:
                    return file_id
    return None


def _id_for(head: bytes, offset: int) -> bytes:
    """An id with which this would be a frame's head."""
    covered, checksum = head[:-4], int.from_bytes(head[-4:], "little")
    of_id = _crc_before(_crc_before(checksum, covered), offset.to_bytes(8, "little"))
    mark = head[:4].ljust(12, b"\0")
    return mark + (crc32(mark) ^ _crc_before(of_id, bytes(4))).to_bytes(4, "little")


_TABLE = [crc32(bytes([byte]), 0xFFFFFFFF) ^ 0xFFFFFFFF for byte in range(256)]
_BY_FIRST_BYTE = {entry >> 24: byte for byte, entry in enumerate(_TABLE)}


def _crc_before(crc: int, data: bytes) -> int:
    """The `value` with which `crc32(data, value)` is `crc`."""
    crc ^= 0xFFFFFFFF
    for byte in reversed(data):
        index = _BY_FIRST_BYTE[crc >> 24]
        crc = (crc ^ _TABLE[index]) << 8 & 0xFFFFFFFF | index ^ byte
    return crc ^ 0xFFFFFFFF
