"""The snapshot file: a header, blocks, and a footer that counts them. docs/formats.md describes it byte by byte.

    header   MAGIC (8)  format version u32  store id (16)  file id (16)  crc32 u32
    block    kind u32  payload length u32  crc32 of the payload u32  crc32 of this frame u32, then the payload
    footer   a block of the kind FOOTER

Numbers are little-endian. A frame's checksum also covers the file id and the frame's own offset: a block of another
file, or of another place in this one, is never taken for the right one.
"""

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from zlib import crc32

import msgpack

from statestore import wire
from statestored import files
from statestored.errors import DamagedFile, TooNew

MAGIC = b"\x93STATES\n"  # not text, and not a MessagePack-RPC message either
FORMAT = 1
BUCKET, EFFECTS, FOOTER = 1, 2, 3  # kinds of blocks

_HEADER = struct.Struct("<8sI16s16s")
_FRAME = struct.Struct("<III")
_CRC = struct.Struct("<I")
_PLACE = struct.Struct("<16sQ")


@dataclass(frozen=True, slots=True)
class Block:
    kind: int
    content: Any  # what the payload, MessagePack, holds: tuples, and text as bytes
    offset: int  # of the block's frame


class SnapshotWriter:
    """Writes `path` beside its place; nothing is there under its name before `finish` returns.

    As a context manager it removes what is unfinished. `sync` may run in another thread, between two blocks.
    """

    def __init__(self, path: Path, store_id: uuid.UUID) -> None:
        """Raises OSError, as all methods do."""
        self._path = path
        self._temporary = files.temporary_name(path)
        self._pack = wire.packer()
        self._file_id = uuid.uuid4().bytes
        self._blocks = 0
        self.size = 0  # bytes so far
        self.synced = 0  # bytes of them that are on the disk
        self._file = files.create(self._temporary)
        header = _HEADER.pack(MAGIC, FORMAT, store_id.bytes, self._file_id)
        try:
            self._write(header + _CRC.pack(crc32(header)))
        except BaseException:
            self._abandon()
            raise

    def write(self, kind: int, content: Any) -> None:
        payload = self._pack(content)
        frame = _FRAME.pack(kind, len(payload), crc32(payload))
        checksum = _frame_checksum(self._file_id, self.size, frame)
        self._write(b"".join((frame, _CRC.pack(checksum), payload)))
        self._blocks += 1

    def sync(self) -> None:
        size = self.size
        files.sync_file(self._file)
        self.synced = size

    def finish(self, entries: int) -> None:
        """Footer, sync, rename, sync of the directory: in this order, so that the name never stands for less."""
        self.write(FOOTER, {"blocks": self._blocks, "entries": entries})
        self.sync()
        self._file.close()
        files.put_in_place(self._temporary, self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is not None:
            self._abandon()

    def _abandon(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        files.write_all(self._file, data)
        self.size += len(data)


def read_snapshot(path: Path, store_id: uuid.UUID) -> Iterator[Block]:
    """The blocks of a snapshot, the footer last.

    Raises DamagedFile for whatever is not as it was written, TooNew, or OSError.
    """
    with path.open("rb") as file:
        file_id = _read_header(path, file, store_id)
        blocks = 0
        while (block := _read_block(path, file, file_id)).kind != FOOTER:
            blocks += 1
            yield block
        counted = block.content.get(b"blocks") if isinstance(block.content, dict) else None
        if counted != blocks:
            raise DamagedFile(path, f"the footer counts {counted} blocks, the file has {blocks}", block.offset)
        end = file.tell()
        if file.read(1):
            raise DamagedFile(path, "something follows the footer", end)
        yield block


def verify_snapshot(path: Path, store_id: uuid.UUID) -> None:
    """Read a snapshot back from the disk. Raises as `read_snapshot` does."""
    for _ in read_snapshot(path, store_id):
        pass


def _read_header(path: Path, file: BinaryIO, store_id: uuid.UUID) -> bytes:
    header = file.read(_HEADER.size + _CRC.size)
    if len(header) < _HEADER.size + _CRC.size:
        raise DamagedFile(path, "it ends within the header")
    magic, version, found, file_id = _HEADER.unpack_from(header)
    if magic != MAGIC:
        raise DamagedFile(path, "it does not begin as a snapshot does")
    (checksum,) = _CRC.unpack_from(header, _HEADER.size)
    if checksum != crc32(header[: _HEADER.size]):
        raise DamagedFile(path, "the header's checksum is wrong")
    if version > FORMAT:
        raise TooNew(path, version, FORMAT)
    if found != store_id.bytes:
        raise DamagedFile(path, f"it belongs to the store {uuid.UUID(bytes=found)}, not to {store_id}")
    return bytes(file_id)


def _read_block(path: Path, file: BinaryIO, file_id: bytes) -> Block:
    offset = file.tell()
    frame = file.read(_FRAME.size + _CRC.size)
    if len(frame) < _FRAME.size + _CRC.size:
        raise DamagedFile(path, "it ends without a footer", offset)
    kind, length, payload_checksum = _FRAME.unpack_from(frame)
    (checksum,) = _CRC.unpack_from(frame, _FRAME.size)
    if checksum != _frame_checksum(file_id, offset, frame[: _FRAME.size]):
        raise DamagedFile(path, "a block's frame has a wrong checksum", offset)
    if kind not in (BUCKET, EFFECTS, FOOTER):
        raise DamagedFile(path, f"a block of the unknown kind {kind}", offset)
    payload = file.read(length)
    if len(payload) < length or crc32(payload) != payload_checksum:
        raise DamagedFile(path, "a block's contents have a wrong checksum", offset)
    return Block(kind, msgpack.unpackb(payload, raw=True, use_list=False), offset)


def _frame_checksum(file_id: bytes, offset: int, frame: bytes) -> int:
    return crc32(frame, crc32(_PLACE.pack(file_id, offset)))
