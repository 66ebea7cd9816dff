"""A segment, one file of the journal: a header, then batches of effects. docs/formats.md describes it byte by byte.

A batch is a frame (see `framing`); its payload is one MessagePack value, of which nothing is known here. A batch may be
empty: it then only says how much before it is on the disk.
"""

import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from statestored import files
from statestored.errors import DamagedFile, Displaced, NoRoom, TooNew
from statestored.framing import (
    FORMAT,
    HEADER_SIZE,
    Frame,
    Kind,
    Sequence,
    find_frames,
    pack_frame,
    pack_header,
    read_frame,
    unpack_header,
    windows,
)

MAGIC = b"\x93JOURNL\n"  # not text, and not a MessagePack-RPC message either
# Zeros written ahead of the batches: a sync then has no change of the file's size to write as well.
RESERVE = 2**20  # bytes


@dataclass(frozen=True, slots=True)
class Origin:
    """What a segment's header says of its making.

    previous: the segment before it (0: none), which counts up to the offset `previous_end` only.
    after: the last batch that counts there.
    durable: up to here the segment itself was on the disk before it got its name.
    boot: of the machine; where it is the same, no power was lost since.
    """

    number: int
    epoch: int
    boot: bytes
    previous: int = 0
    previous_end: int = 0
    after: Sequence = Sequence(0, 0)
    durable: int = HEADER_SIZE


class SegmentWriter:
    """A segment from its making on. All methods raise AttemptFailed or DiskFailed."""

    def __init__(self, path: Path, store_id: uuid.UUID, origin: Origin, copies: Iterable[Frame]) -> None:
        """It has its name, and is on the disk with all the copies in it, when this returns."""
        self.path = path
        self._file_id = os.urandom(16)
        self.end = HEADER_SIZE
        self.durable = 0  # so much is on the disk
        self._reserved = HEADER_SIZE
        temporary = files.temporary_name(path)
        self._file = files.create(temporary)
        try:
            for frame in copies:
                self.append(frame.sequence, frame.time, frame.payload)
            details = {**asdict(origin), "durable": self.end}
            files.write_at(self._file, pack_header(MAGIC, store_id, self._file_id, details), 0)
            self.sync()
            files.put_in_place(temporary, path)
        except BaseException:
            self._file.close()
            files.discard(temporary)
            raise

    def append(self, sequence: Sequence, time: int, payload: bytes) -> None:
        """One batch. Where it raises, what was written in part is taken back."""
        frame = pack_frame(self._file_id, self.end, Kind.BATCH, sequence, time, self.durable, payload)
        try:
            files.write_at(self._file, frame, self.end)
        except NoRoom:
            files.truncate(self._file, self.end)
            self._reserved = self.end
            raise
        self.end += len(frame)

    def sync(self) -> None:
        """What was appended before is on the disk when this returns. May run beside `append`."""
        end = self.end
        files.sync_file(self._file)
        self.durable = end

    def reserve(self) -> None:
        """Room ahead of the batches."""
        start = max(self.end, self._reserved)
        if start - self.end < RESERVE // 2:
            files.write_at(self._file, bytes(RESERVE), start)
            self._reserved = start + RESERVE

    def is_in_place(self) -> bool:
        """Return whether the file still has its name. Raises Displaced if another file has it, or OSError."""
        if files.is_at(self.path, self._file.fileno()):
            return True
        if os.path.lexists(self.path):
            raise Displaced(f"{self.path} was replaced by another program")
        return False

    def close(self) -> None:
        """Nothing but batches is left in it, and all of them are on the disk."""
        self.sync()
        files.truncate(self._file, self.end)
        self._file.close()


class SegmentReader:
    """A segment that is there. Raises DamagedFile, TooNew or OSError."""

    def __init__(self, path: Path, store_id: uuid.UUID) -> None:
        self.path = path
        with files.open_to_read(path) as file:
            header = unpack_header(path, file.read(HEADER_SIZE), MAGIC)
        if header.store_id != store_id:
            raise DamagedFile(path, f"it belongs to the store {header.store_id}, not to {store_id}")
        self.file_id = header.file_id
        self.origin = _origin(path, header.details)
        if self.origin.number != int(path.stem):
            raise DamagedFile(path, f"it was made as number {self.origin.number}")
        self.end = HEADER_SIZE  # of the batches read
        self.durable = self.origin.durable  # as the batches read say
        self.last = self.origin.after  # the sequence of the last batch read
        self.dropped = 0  # bytes behind them that are no whole batch, and never were acknowledged

    def sealed(self, end: int) -> Iterator[Frame]:
        """The batches up to `end`, all of which must be good: whatever follows does not count."""
        yield from self._batches(end)
        if self.end != end:
            raise DamagedFile(self.path, "no whole batch", self.end)

    def open_ended(self, boot: bytes) -> Iterator[Frame]:
        """The batches of the last segment, up to where its writing was broken off.

        A batch that is not whole ends it, unless something behind shows that it once was: then it is damage.
        """
        yield from self._batches(None)
        if self.end < self.durable:
            raise DamagedFile(self.path, f"no whole batch, and up to byte {self.durable} all was on the disk", self.end)
        same_boot = boot == self.origin.boot and any(boot)
        with files.open_to_read(self.path) as file:
            for start, data in windows(file, self.end):
                for found in find_frames(data, start, self.file_id):
                    # Without a loss of power the system writes what it was given, and in order.
                    if found.durable > self.end or (same_boot and found.offset > self.end):
                        what = f"no whole batch, and there is one at byte {found.offset}"
                        raise DamagedFile(self.path, what, self.end)
                if used := data.rstrip(b"\0"):
                    self.dropped = start + len(used) - self.end

    def resume(self, offset: int, after: Sequence) -> None:
        """Go on reading at `offset`, which is behind the batch `after`."""
        self.end, self.last = offset, after

    def _batches(self, end: int | None) -> Iterator[Frame]:
        with files.open_to_read(self.path, 2**18) as file:
            file.seek(self.end)
            while self.end != end and (frame := read_frame(file, self.end, self.file_id)) is not None:
                if frame.kind != Kind.BATCH:
                    raise TooNew(self.path, f"a frame of kind {frame.kind}", FORMAT)
                if not self.last.is_followed_by(frame.sequence):
                    raise DamagedFile(self.path, f"batch {frame.sequence} follows batch {self.last}", self.end)
                self.end, self.last = frame.end, frame.sequence
                self.durable = max(self.durable, frame.durable)
                yield frame


def _origin(path: Path, details: dict[bytes, Any]) -> Origin:
    try:
        named = {name.decode(): value for name, value in details.items()}
        origin = Origin(**{**named, "after": Sequence(*named["after"])})
        numbers = (*origin.after, *(value for name, value in named.items() if name not in ("after", "boot")))
        if not isinstance(origin.boot, bytes) or any(type(number) is not int or number < 0 for number in numbers):
            raise TypeError
        if origin.previous >= origin.number:
            raise TypeError
        return origin
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise DamagedFile(path, "the header makes no sense") from error
