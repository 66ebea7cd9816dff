"""The snapshot file: buckets of entries, sessions, and a footer. docs/formats.md describes it byte by byte.

Each block is a frame (see `framing`), numbered from 1, and its payload one MessagePack value.
"""

import os
import uuid
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from statestore import wire
from statestored import files
from statestored.errors import DamagedFile, TooNew
from statestored.framing import (
    FORMAT,
    HEADER_SIZE,
    Frame,
    Kind,
    Sequence,
    pack_frame,
    pack_header,
    read_frame,
    unpack_content,
    unpack_header,
)

MAGIC = b"\x93STATES\n"  # not text, and not a MessagePack-RPC message either


class Footer(NamedTuple):
    """How many blocks came before it, how many entries are in them, and the last batch that may be among them."""

    blocks: int
    entries: int
    last: Sequence


class SnapshotWriter:
    """Writes `path` beside its place; nothing is there under its name before `finish` returns.

    `add` only takes note; `flush`, which writes and syncs, may run in another thread while nothing is added. As a
    context manager it removes what is unfinished. All methods raise OSError.

    size: bytes that were added. unwritten: those of them that are not in the file yet.
    """

    def __init__(self, path: Path, store_id: uuid.UUID, time: int) -> None:
        self._path = path
        self._store_id = store_id
        self._time = time
        self._temporary = files.temporary_name(path)
        self._pack = wire.packer()
        self._file_id = os.urandom(16)
        self._blocks = 0
        self.size = 0
        self._unwritten: list[bytes] = []
        self.unwritten = 0
        self._file = files.create(self._temporary)
        self._append(pack_header(MAGIC, store_id, self._file_id, {"number": _number(path)}))

    def add(self, kind: Kind, content: Any) -> None:
        """One block."""
        self._blocks += 1
        number = Sequence(0, self._blocks)
        self._append(pack_frame(self._file_id, self.size, kind, number, self._time, 0, self._pack(content)))

    def flush(self) -> None:
        """What was added is on the disk when this returns."""
        data, self._unwritten, self.unwritten = b"".join(self._unwritten), [], 0
        files.write_at(self._file, data, self.size - len(data))
        files.sync_file(self._file)

    def finish(self, entries: int, last: Sequence) -> None:
        """Footer, sync, read back, rename, sync of the directory: in this order, so that the name stands for all of it.

        Raises AttemptFailed, DiskFailed, or DamagedFile if it cannot be read back.
        """
        self.add(Kind.FOOTER, Footer(self._blocks, entries, last)._asdict())
        self.flush()
        self._file.close()
        with files.needs_temporary(self._temporary):
            verify_snapshot(self._temporary, self._store_id)
        files.put_in_place(self._temporary, self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is not None:
            self._file.close()
            files.discard(self._temporary)

    def _append(self, data: bytes) -> None:
        self._unwritten.append(data)
        self.unwritten += len(data)
        self.size += len(data)


def read_snapshot(path: Path, store_id: uuid.UUID) -> Generator[Frame, None, None]:
    """The blocks of a snapshot, whose payloads `content_of` unpacks, the footer last.

    Raises DamagedFile for whatever is not as it was written, TooNew, or OSError.
    """
    with files.open_to_read(path) as file:
        file_id = read_file_id(path, file, store_id)
        offset, blocks = HEADER_SIZE, 0
        while (frame := read_frame(file, offset, file_id)) is not None:
            blocks += 1
            if frame.sequence != (0, blocks):
                raise DamagedFile(path, f"there is block {frame.sequence.counter} where {blocks} should be", offset)
            yield frame
            offset = frame.end
            if frame.kind == Kind.FOOTER:
                if footer_of(path, frame).blocks != blocks - 1:
                    raise DamagedFile(path, "the footer counts other blocks than there are", frame.offset)
                break
        else:
            raise DamagedFile(path, "there is no whole block", offset)
        if file.read(1):
            raise DamagedFile(path, "something follows the footer", offset)


def read_begin_time(path: Path, store_id: uuid.UUID) -> int:
    """Return when the writing of a snapshot began, in milliseconds since 1970. Raises as `read_snapshot` does."""
    with closing(read_snapshot(path, store_id)) as blocks:
        return next(blocks).time


def read_file_id(path: Path, file: BinaryIO, store_id: uuid.UUID) -> bytes:
    """The header, and the id that is in it. Raises as `read_snapshot` does."""
    header = unpack_header(path, file.read(HEADER_SIZE), MAGIC)
    if header.store_id != store_id:
        raise DamagedFile(path, f"it belongs to the store {header.store_id}, not to {store_id}")
    if header.details.get(b"number") != _number(path):
        raise DamagedFile(path, f"it was made as number {header.details.get(b'number')}")
    return header.file_id


def verify_snapshot(path: Path, store_id: uuid.UUID) -> None:
    """Read a snapshot back, by way of the system's cache. Raises as `read_snapshot` does."""
    for _ in read_snapshot(path, store_id):
        pass


def _number(path: Path) -> int:
    """In its name, whether it is in place yet or not."""
    return int(path.name.partition(".")[0])


def content_of(path: Path, frame: Frame) -> Any:
    """What a block holds: tuples, and text as bytes. Raises TooNew for a kind of a later release."""
    if frame.kind not in (Kind.BUCKET, Kind.SESSIONS, Kind.FOOTER):
        raise TooNew(path, f"a block of kind {frame.kind}", FORMAT)
    return unpack_content(path, frame)


def footer_of(path: Path, frame: Frame) -> Footer:
    content = content_of(path, frame)
    try:
        footer = Footer(content[b"blocks"], content[b"entries"], Sequence(*content[b"last"]))
        if any(type(number) is not int or number < 0 for number in (footer.blocks, footer.entries, *footer.last)):
            raise TypeError
        return footer
    except (KeyError, TypeError) as error:
        raise DamagedFile(path, "the footer makes no sense", frame.offset) from error
