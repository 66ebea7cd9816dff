"""The journal: a chain of segments, each of which names the one before it, and the last of which is written.

Reading it goes before writing it: what a start finds behind the last mark of what is on the disk is copied into the
start's own first segment, since the system may have read it from its cache alone.
"""

import errno
import subprocess
import sys
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from statestored import files
from statestored.datadir import DataDirectory, number_of
from statestored.errors import AttemptFailed, DamagedFile, DiskFailed, Displaced, NoRoom, TooNew
from statestored.framing import HEADER_SIZE, Frame, Sequence
from statestored.segment import Origin, SegmentReader, SegmentWriter

SEGMENT_SIZE = 2**26  # bytes, about: the batch that goes over it is the last of its segment
LANDMARK_DISTANCE = 2**16  # bytes, at least, between two places in a segment that are remembered


class End(NamedTuple):
    """Where the journal, as far as it is known to be on the disk, ended: in which segment, where, after which batch."""

    segment: int
    offset: int
    after: Sequence


class JournalReader:
    """The batches of the segments from number `first` on (0: all); afterwards, where the journal ended.

    path, offset: of the segment that is being read, and behind the batch read last.
    """

    def __init__(self, directory: DataDirectory, first: int) -> None:
        self._directory = directory
        self._first = first
        self.path = directory.segment(max(first, 1))
        self.offset = 0
        self.last = Sequence(0, 0)  # of the batches read
        self.size = 0  # bytes of them
        self.dropped = 0  # bytes behind them that are no whole batch
        self.end = End(0, 0, Sequence(0, 0))

    def batches(self) -> Iterator[Frame]:
        """Raises DamagedFile, TooNew or OSError."""
        chain = self._chain()
        for reader, following in zip_longest(chain, chain[1:]):
            self.path, self.offset, self.last = reader.path, reader.end, reader.last
            if following is None:
                yield from self._last_segment(reader)
                return
            yield from self._counted(reader.sealed(following.origin.previous_end))
            if following.origin.after != self.last:
                what = f"it goes on behind batch {following.origin.after}, and {reader.path.name} ends with {self.last}"
                raise DamagedFile(following.path, what)

    def _last_segment(self, reader: SegmentReader) -> Iterator[Frame]:
        # Where batches begin, and the batch before: of all that is known to be on the disk, the last place only. Not
        # every batch, let alone what it holds: with `never`, nothing of a segment may be known to be there.
        landmarks = deque([(reader.end, reader.last)])
        for frame in self._counted(reader.open_ended(boot_id())):
            yield frame
            if frame.end - landmarks[-1][0] >= LANDMARK_DISTANCE:
                landmarks.append((frame.end, frame.sequence))
            while len(landmarks) > 1 and landmarks[1][0] <= reader.durable:
                landmarks.popleft()
        self.dropped += reader.dropped
        self.end = End(reader.origin.number, *landmarks[0])
        for frame in self._read_again():
            if frame.end > reader.durable:
                break
            self.end = End(reader.origin.number, frame.end, frame.sequence)

    def copies(self) -> Iterator[Frame]:
        """Read the batches behind `end` again. Raises DiskFailed if they are not there any more."""
        if not self.has_copies:
            return
        try:
            yield from self._read_again()
        except (DamagedFile, TooNew) as error:
            what = f"what was read at the start cannot be read again: {error}"
            raise DiskFailed(OSError(errno.EIO, what)) from error

    @property
    def has_copies(self) -> bool:
        """Whether there are batches behind `end`."""
        return self.end.segment > 0 and self.end.offset < self.offset

    def _read_again(self) -> Iterator[Frame]:
        """The batches of the last segment, from `end` to the last one that was read."""
        again = SegmentReader(self.path, self._directory.store_id)
        again.resume(self.end.offset, self.end.after)
        yield from again.sealed(self.offset)

    def _counted(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self.last, self.offset = frame.sequence, frame.end
            self.size += frame.end - frame.offset
            yield frame

    def _chain(self) -> list[SegmentReader]:
        """From the first segment that is needed to the newest, each found by the one after it."""
        chain: list[SegmentReader] = []
        number = self._newest()
        while number >= max(self._first, 1):
            path = self._directory.segment(number)
            if not path.exists():
                raise DamagedFile(path, "it is missing, and the journal goes on behind it")
            chain.append(SegmentReader(path, self._directory.store_id))
            number = chain[-1].origin.previous
        missing = self._directory.segment(max(self._first, 1))
        if self._first and (not chain or chain[-1].origin.number != self._first):
            raise DamagedFile(missing, "it is missing, and the snapshot of this number needs it")
        if not (chain or self._directory.segments() or self._directory.is_new):
            raise DamagedFile(missing, "it is missing, and there is no snapshot either")
        return chain[::-1]

    def _newest(self) -> int:
        """The last segment's number. What was cut within its header, and is the last, holds nothing."""
        for path in reversed(self._directory.segments()):
            size = path.stat().st_size
            if size >= HEADER_SIZE:
                return number_of(path)
            self.dropped += size
        return 0


class Journal:
    """What is appended to. But for `sync` and `is_in_place`, no two methods may run at the same time.

    All raise AttemptFailed or DiskFailed, or another OSError where a file cannot be made.
    """

    def __init__(self, directory: DataDirectory, found: JournalReader) -> None:
        self._directory = directory
        self._found = found
        self.number = max((number_of(path) for path in (*directory.segments(), *directory.snapshots())), default=0)
        self._epoch = self.number + 1  # of this start's first segment
        self._counter = 0
        self.last = found.last  # the sequence of the last batch
        self.size = found.size  # bytes of batches, those found included
        self._segment: SegmentWriter | None = None
        self.is_fresh = False  # the last segment is there, and nothing that changes anything is in it

    def begin(self) -> None:
        """Make this start's first segment; once it is there, do nothing."""
        if self._segment is None:
            # What was found may have its name in the system's cache only.
            files.sync_directory(self._directory.path)
            try:
                self._segment = self._new_segment(self._found.end, self._found.copies())
            except AttemptFailed:
                self._sync_found()  # it is served nevertheless
                raise
            old = self._directory.segment(self._found.end.segment)
            if self._found.end.segment and not files.has_other_names(old):  # else a backup would lose what was copied
                files.truncate(old, self._found.end.offset)

    @property
    def is_full(self) -> bool:
        """Whether it is time for the next segment."""
        return self._writer.end >= SEGMENT_SIZE

    def append(self, time: int, payload: bytes) -> None:
        """One batch, of this time (in milliseconds since 1970). Where there is no room, nothing of it is left."""
        before = self._writer.end
        sequence = Sequence(self._epoch, self._counter + 1)
        self._writer.append(sequence, time, payload)
        self._counter += 1
        self.is_fresh = self.is_fresh and not payload
        self.last = sequence
        self.size += self._writer.end - before

    def sync(self) -> None:
        """What was appended before is on the disk when this returns."""
        if self._segment is not None:
            self._segment.sync()

    def mark(self, time: int) -> None:
        """An empty batch, which says how much is on the disk: damage to what was the last batch shows from now on."""
        self.append(time, b"")

    def reserve(self) -> None:
        """Room ahead of the batches."""
        with suppress(NoRoom):  # there may be some without it
            self._writer.reserve()

    def probe(self) -> None:
        """See whether there is room."""
        self.begin()
        self._writer.reserve()

    def rotate(self) -> None:
        """Go on in a new segment."""
        self.begin()
        old = self._writer
        old.sync()
        self._segment = self._new_segment(End(self.number, old.end, self.last), [])
        old.close()

    def is_in_place(self) -> bool:
        """Return whether what is appended can be found again. Raises Displaced or OSError.

        May run beside everything else: what is found out about a segment that `rotate` replaces meanwhile, and closes,
        does not count.
        """
        segment = self._segment
        try:
            is_in_place = segment is None or segment.is_in_place()
        except (OSError, ValueError, Displaced):  # ValueError: the segment was closed
            if segment is self._segment:
                raise
            return True
        return is_in_place or segment is not self._segment

    def close(self, time: int) -> None:
        if self._segment is not None:
            self.sync()
            with suppress(NoRoom):
                self.mark(time)
            self._segment.close()

    def _sync_found(self) -> None:
        """Bring to the disk what should be copied. Less than a copy: what an earlier sync failed for stays lost."""
        if self._found.has_copies:
            with files.open_to_read(self._directory.segment(self._found.end.segment)) as file:
                files.sync_file(file)

    @property
    def _writer(self) -> SegmentWriter:
        if self._segment is None:
            raise RuntimeError("the journal has not begun")
        return self._segment

    def _new_segment(self, end: End, copies: Iterable[Frame]) -> SegmentWriter:
        number = self.number + 1
        origin = Origin(number, self._epoch, boot_id(), end.segment, end.offset, end.after)
        segment = SegmentWriter(self._directory.segment(number), self._directory.store_id, origin, copies)
        self._directory.expect(segment.path)
        self.number, self.is_fresh = number, segment.end == HEADER_SIZE
        return segment


def boot_id() -> bytes:
    """16 bytes that are others after each boot of the machine; zeros where it is not known."""
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            return uuid.UUID(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()).bytes  # noqa: S603
        return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
    return bytes(16)
