"""What a disk may hold when the power fails, as far as POSIX and disks promise anything; file systems often keep more.

**Data.** A sector of 512 bytes is written as a whole or not at all. What was written to a file since its last sync is
on the disk sector by sector, in any order: each sector as it was at that sync, or after any of the writes to it since,
since the system may have sent it at any moment. That includes writes that were dropped, torn and reordered.

**Sizes.** A file's size is kept apart from its data. It is one of those that the file had since the last sync; where a
file has grown without its data, there are zeros. What a truncation cut off comes back only if the size from before
comes back.

**Names.** They are kept in the directory, and apart from the files: the sync of a file says nothing of its name. Each
step that was taken since the directory's last sync has been taken on the disk or not, in any combination. A rename
gives the new name to the new file or leaves it to the old one, nothing between, but the source's name may still be
there, as a second name of the same file.

**Syncs.** One covers what was done before it began, and of one file or of the directory only. It counts from its end
on; before, everything is still open.

What is on the disk already stays as it is: damage without a loss of power is another subject.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import prod
from random import Random
from typing import NamedTuple, Self

from tests.crash.trace import (
    Created,
    Event,
    Image,
    Removed,
    Renamed,
    SyncBegun,
    SyncEnded,
    Trace,
    Truncated,
    Written,
)

SECTOR = 512
MOST_DIRECTORIES = 256

Entries = dict[str, int]  # a directory: files by their names


class Disk:
    """What is on it for certain, and what may be, after the events it was given.

    entries: the directory as the system shows it.
    """

    def __init__(self, base: Image) -> None:
        self.files = {number: File(base[name]) for number, name in enumerate(sorted(base), 1)}
        self.entries: Entries = {name: number for number, name in enumerate(sorted(base), 1)}
        self._durable = dict(self.entries)
        self._steps: list[Created | Renamed | Removed] = []  # not known to be on the disk
        self._steps_synced = 0
        self._syncs: dict[int, tuple[int | None, int]] = {}  # under way: of what, and how much of that they cover

    @classmethod
    def after(cls, trace: Trace) -> Self:
        disk = cls(trace.base)
        for event in trace.events:
            disk.apply(event)
        return disk

    @property
    def next_file(self) -> int:
        return len(self.files) + 1

    def apply(self, event: Event) -> None:
        match event:
            case Created(file):
                self.files[file] = File()
                self._take_step(event)
            case Renamed() | Removed():
                self._take_step(event)
            case Written(file) | Truncated(file):
                self.files[file].change(event)
            case SyncBegun(number, None):
                self._syncs[number] = None, self._steps_synced + len(self._steps)
            case SyncBegun(number, int(file)):
                self._syncs[number] = file, self.files[file].changes
            case SyncEnded(number):
                of, covered = self._syncs.pop(number)
                if of is None:
                    self._sync_directory(covered)
                else:
                    self.files[of].sync(covered)
            case _:
                pass

    def put(self, number: int, name: str, content: bytes) -> None:
        """Place a file on the disk that is there for certain, and has the name before any step that is still open."""
        self.files[number] = File(content)
        self.entries[name] = self._durable[name] = number

    def fail_sync(self, number: int, rng: Random) -> None:
        """End a sync with an error: the system has forgotten what the sync covered of a file, as Linux does.

        No later sync writes that. How much of it the disk has is random. Names are kept for the next sync.
        """
        of, covered = self._syncs.pop(number)
        if of is not None:
            self.files[of].forget(covered, rng)

    def after_power_loss(self, rng: Random) -> "Disk":
        """Return one of the disks that may be found if the power fails now. Files keep their numbers."""
        directories = self.directories(rng)
        entries = directories[-1] if rng.random() < 0.3 else rng.choice(directories)
        found = Disk({})
        found.files = {
            number: File(self.files[number].after_power_loss(rng)) for number in sorted(set(entries.values()))
        }
        found.entries, found._durable = dict(entries), dict(entries)
        return found

    def shown(self) -> Image:
        """As the system shows it, and as the next start finds it where the daemon is killed and the power stays."""
        return {name: bytes(self.files[file].content) for name, file in self.entries.items()}

    def directories(self, rng: Random) -> list[Entries]:
        """What the directory may be: all of it, or a sample where it is very much.

        First as it was at the last sync, and last as the system shows it.
        """
        ways = [(0, 1, 2) if isinstance(step, Renamed) else (0, 1) for step in self._steps]
        if prod(map(len, ways)) <= MOST_DIRECTORIES:
            choices: Iterable[tuple[int, ...]] = product(*ways)
        else:
            choices = (tuple(map(rng.choice, ways)) for _ in range(MOST_DIRECTORIES))
        last = frozenset(self.entries.items())
        found = {frozenset(self._durable.items()): dict(self._durable)}
        for choice in choices:
            entries = dict(self._durable)
            for step, way in zip(self._steps, choice, strict=True):
                if way:
                    _step(entries, step, keep_source=way == 2)
            found[frozenset(entries.items())] = entries
        found.pop(last, None)
        return [*found.values(), dict(self.entries)]

    def _take_step(self, step: Created | Renamed | Removed) -> None:
        _step(self.entries, step)
        self._steps.append(step)

    def _sync_directory(self, covered: int) -> None:
        for step in self._steps[: max(covered - self._steps_synced, 0)]:
            _step(self._durable, step)
        self._steps = self._steps[max(covered - self._steps_synced, 0) :]
        self._steps_synced = max(covered, self._steps_synced)


def _step(entries: Entries, step: Created | Renamed | Removed, *, keep_source: bool = False) -> None:
    match step:
        case Created(file, name):
            entries[name] = file
        case Removed(_, name):
            entries.pop(name, None)
        case Renamed(file, source, target):
            if not keep_source:
                entries.pop(source, None)
            entries[target] = file


class File:
    """content: as the system shows it. changes: how many there were."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.changes = 0
        self._durable = bytearray(content)
        self._unsynced: list[Written | Truncated] = []
        self._shapes: list[Shape] | None = None  # as far as they are known

    def change(self, change: Written | Truncated) -> None:
        _change(self.content, change)
        self.changes += 1
        self._unsynced.append(change)
        self._shapes = None

    def sync(self, covered: int) -> None:
        """The first so many changes are on the disk."""
        synced = max(covered - self.changes + len(self._unsynced), 0)
        for change in self._unsynced[:synced]:
            _change(self._durable, change)
        self._unsynced, self._shapes = self._unsynced[synced:], None

    def forget(self, covered: int, rng: Random) -> None:
        """Leave the first so many changes as they are on the disk now, which is random: no sync writes them later."""
        forgotten = max(covered - self.changes + len(self._unsynced), 0)
        synced = File(bytes(self._durable))
        synced._unsynced = self._unsynced[:forgotten]
        self._durable = bytearray(synced.after_power_loss(rng))
        self._unsynced, self._shapes = self._unsynced[forgotten:], None

    def after_power_loss(self, rng: Random) -> bytes:
        """Return one of the contents that may be on the disk. The oldest and the newest ones are likely."""
        if not self._unsynced:
            return bytes(self._durable)
        contents, touched, sizes = self._history()
        size, cut = sizes[-1] if rng.random() < 0.3 else rng.choice(sizes)
        shape = self._shape(size, cut, contents, touched)  # the others are not needed, and take long to find
        chance = rng.random()
        if chance < 0.15:
            return shape.oldest()
        return shape.newest() if chance < 0.3 else shape.random(rng)

    def shapes(self) -> list["Shape"]:
        """All that may be on the disk, in the order in which its sizes came."""
        if self._shapes is None:
            self._shapes = self._find_shapes()
        return self._shapes

    def _find_shapes(self) -> list["Shape"]:
        contents, touched, sizes = self._history()
        return [self._shape(size, cut, contents, touched) for size, cut in sizes]

    def _history(self) -> tuple[list[bytes], list[range], list[tuple[int, int]]]:
        """What the file held after each change, which sectors that touched, and its sizes, each with the last cut."""
        contents = [bytes(self._durable)]  # after each change
        for change in self._unsynced:
            content = bytearray(contents[-1])
            _change(content, change)
            contents.append(bytes(content))
        touched = [range(0), *(_sectors(change, before) for change, before in zip(self._unsynced, contents))]  # noqa: B905
        cuts = [0]  # the last truncation up to each change
        for number, change in enumerate(self._unsynced, 1):
            cuts.append(number if isinstance(change, Truncated) else cuts[-1])
        # Sizes between two truncations differ in nothing else.
        sizes = dict.fromkeys((len(content), cut) for content, cut in zip(contents, cuts, strict=True))
        return contents, touched, list(sizes)

    def _shape(self, size: int, cut: int, contents: list[bytes], touched: list[range]) -> "Shape":
        """Of this size, which it had after the truncation `cut` (0: none) and before any later one."""
        sure = contents[0][:size].ljust(size, b"\0")
        unsure: list[Unsure] = []
        for sector in sorted({sector for sectors in touched for sector in sectors if sector * SECTOR < size}):
            start, end = sector * SECTOR, min((sector + 1) * SECTOR, size)
            after = [number for number in range(1, len(contents)) if sector in touched[number]]
            cuts = [number for number in after if isinstance(self._unsynced[number - 1], Truncated)]
            first = max((number for number in cuts if number <= cut), default=0)
            numbers = [first, *(number for number in after if number > first and number not in cuts)]
            versions = [contents[number][start:end].ljust(end - start, b"\0") for number in numbers]
            unsure.append(Unsure(start, list(dict.fromkeys(versions))))
        return Shape(sure, unsure)


class Unsure(NamedTuple):
    """A sector that may be on the disk in any of these versions; the oldest first."""

    offset: int
    versions: list[bytes]


class Shape(NamedTuple):
    """Contents of one size, the same but for some sectors."""

    sure: bytes
    unsure: list[Unsure]

    def ways(self) -> int:
        return prod(len(sector.versions) for sector in self.unsure)

    def all(self) -> Iterator[bytes]:
        for versions in product(*(sector.versions for sector in self.unsure)):
            yield self._with(versions)

    def oldest(self) -> bytes:
        return self._with([sector.versions[0] for sector in self.unsure])

    def newest(self) -> bytes:
        return self._with([sector.versions[-1] for sector in self.unsure])

    def random(self, rng: Random) -> bytes:
        """Most or few sectors are new, or those up to some place, or any."""
        chance = rng.choice((0.1, 0.5, 0.9))
        first_old = rng.randrange(len(self.unsure) + 1) if rng.random() < 0.3 else None
        return self._with([
            sector.versions[-1 if number < first_old else 0]
            if first_old is not None
            else sector.versions[-1] if rng.random() < chance
            else rng.choice(sector.versions)
            for number, sector in enumerate(self.unsure)
        ])  # fmt: skip

    def _with(self, versions: Sequence[bytes]) -> bytes:
        content = bytearray(self.sure)
        for sector, version in zip(self.unsure, versions, strict=True):
            content[sector.offset : sector.offset + len(version)] = version
        return bytes(content)


def _change(content: bytearray, change: Written | Truncated) -> None:
    match change:
        case Written(_, offset, data):
            content.extend(bytes(max(offset - len(content), 0)))
            content[offset : offset + len(data)] = data
        case Truncated(_, size):
            del content[size:]
            content.extend(bytes(size - len(content)))


def _sectors(change: Written | Truncated, before: bytes) -> range:
    """Those that a change of this content touched."""
    match change:
        case Written(_, offset, data):
            return range(offset // SECTOR, -(-(offset + len(data)) // SECTOR))
        case Truncated(_, size):
            return range(size // SECTOR, -(-len(before) // SECTOR))
