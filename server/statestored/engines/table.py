"""The entries of one namespace, in memory, for tens of millions of senders.

Not one big dict: growing one past a million entries stops the loop for tens of milliseconds. Senders live in many
small dicts ("buckets") that split one at a time: extendible hashing. A sender's position, a stable hash, decides its
bucket; each bucket covers a range of positions, so that a walk in the order of positions can be left and taken up
again however the buckets have split meanwhile, and even after a restart.

A bucket maps a sender to one `Cell`, shared by all entries of the same module, state and day, or to a tuple of them
if the sender has entries in several modules.

Nothing that a table holds refers back to what it is held by: there are no cycles. So a cell is freed with the last
entry that has it. The garbage collector would not do that: it is kept away from the entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

from statestored import collector
from statestored.engines.base import START, Entry, Sender

T = TypeVar("T")

POSITION_BITS = 32
# CPython gives a dict of 1,366 to 2,730 entries the same memory: a full bucket's halves begin where it ends.
BUCKET_SIZE = 2730
# A dict keeps its memory when entries are removed: 53 bytes for each of a million. When so few are left it is rebuilt.
SPARSE_SIZES = frozenset((BUCKET_SIZE // 8, BUCKET_SIZE // 64, 0))
# Buckets fill up at about the same time, and a split takes most of a millisecond: so many insertions are to lie between
# two, lest a bulk call wait for dozens. Until its turn comes, a full bucket takes a few more.
SPLIT_EVERY = 128
# Only senders made to collide get here; the directory must stay small for their sake.
MAX_DEPTH = 18
# Applications that keep a secret in the state have as many states as senders: those are not counted apart.
MAX_COUNTED_STATES = 16_384

# What things take, in bytes besides their text, measured with CPython 3.13 and rounded up.
SENDER_MEMORY = 88  # with its place in a bucket
MORE_MEMORY = 64  # each further entry of the same sender
STATE_MEMORY = 240  # a module and a state, with their cell and their count; 64 more if they are counted apart


class StateCount:
    """How many entries have one state in one module, whatever their days; all their cells share it.

    If `counted` is false there were too many states to count them apart: only some of these entries are counted here.
    """

    __slots__ = ("counted", "entries")

    def __init__(self, *, counted: bool) -> None:
        self.counted = counted
        self.entries = 0


class Cell:
    """What an entry holds: its module, its state, and the day of its last change; and how many entries are like it."""

    __slots__ = ("count", "day", "module", "state")

    def __init__(self, module: bytes, state: bytes, day: int, count: StateCount) -> None:
        self.module = module
        self.state = state
        self.day = day
        self.count = count


Held = Cell | tuple[Cell, ...]
Bucket = dict[Sender, Held]
_Contents = tuple[list[Bucket], list[int], int, int, dict[tuple[bytes, bytes], Cell], Counter[bytes], int, int]


class Range(NamedTuple):
    """A bucket and the positions it covers, from `start` up to `end`."""

    start: int
    end: int
    depth: int
    bucket: Bucket


class Changes(dict[Sender, Held | None]):
    """What senders held before they were changed; None: nothing.

    cleared: where everything was forgotten meanwhile, what there was, and the changes up to then.
    """

    __slots__ = ("cleared",)

    def __init__(self) -> None:
        super().__init__()
        self.cleared: tuple[_Contents, Changes] | None = None

    def concern(self, sender: Sender) -> bool:
        return sender in self or self.cleared is not None

    def any(self) -> bool:
        return bool(self) or self.cleared is not None


class Table:
    """The entries of one namespace.

    changed: the changes since the last `cut`; cutting: those before it, until they are settled.
    unsettled: whether there are any.
    memory: bytes that the entries take, about. most_modules: that any sender has ever had
    entries in at the same time.
    """

    def __init__(self) -> None:
        self.changed = Changes()
        self.cutting = Changes()
        self.unsettled = False
        self._inserted = 0  # since the last split
        self._clears = 0
        self.most_modules = 1
        self._reset()

    def __len__(self) -> int:
        """How many entries there are."""
        return self._size

    def held(self, module: bytes, sender: Sender) -> Cell | None:
        """What holds the entry, where there is one."""
        held = self._range(position_of(sender)).bucket.get(sender)
        return next((cell for cell in cells_of(held) if cell.module == module), None)

    def get(self, module: bytes, sender: Sender) -> bytes:
        held = self._directory[crc32(sender or b"") >> self._shift].get(sender)
        if held is None:
            return START
        if isinstance(held, Cell):
            return held.state if held.module == module else START
        for cell in held:
            if cell.module == module:
                return cell.state
        return START

    def modules(self, sender: Sender) -> list[bytes]:
        """The modules that have an entry for `sender`."""
        held = self._range(position_of(sender)).bucket.get(sender)
        return [cell.module for cell in cells_of(held)]

    def put(self, puts: Iterable[tuple[Any, ...]], day: int) -> int:
        """Store entries, or remove them (`START`); each as an effect has it: kind, namespace, module, sender, state.

        Returns how many changed anything; the others leave the day of their entry, too.
        """
        # The usual case stands in the loop, and not in functions, for it is what a busy daemon does most.
        directory, shift, latest, changed = self._directory, self._shift, self._latest, self.changed
        count = 0
        for _, _, module, sender, state in puts:
            bucket = directory[crc32(sender or b"") >> shift]
            held = bucket.get(sender)
            if type(held) is not Cell or held.module != module or state == START:
                if self._put_unusual(bucket, held, module, sender, state, day):
                    directory, shift = self._directory, self._shift  # a bucket may have split
                    count += 1
                continue
            if held.state == state:
                continue
            if sender not in changed:
                changed[sender] = held
            cell = latest.get((module, state))
            if cell is not None and cell.day == day:
                cell.count.entries += 1
                bucket[sender] = cell
            else:
                bucket[sender] = self._add(module, state, day)
            replaced = held.count
            if replaced.counted and replaced.entries > 1:
                replaced.entries -= 1
            else:
                self._drop(held)
            count += 1
        if count:
            self.unsettled = True
        return count

    def _put_unusual(
        self, bucket: Bucket, held: Held | None, module: bytes, sender: Sender, state: bytes, day: int
    ) -> bool:
        """As `put`, where there is nothing for the sender yet, or something of another module, or an entry goes."""
        if held is None:
            return state != START and self._insert(bucket, module, sender, state, day)
        return self._put_among(bucket, held, module, sender, state, day)

    def _insert(self, bucket: Bucket, module: bytes, sender: Sender, state: bytes, day: int) -> bool:
        """As `put`, where there is nothing for the sender."""
        self._note(sender, None)
        bucket[sender] = self._add(module, state, day)
        self._size += 1
        self.memory += sender_memory(sender, 1)
        self._inserted += 1
        if len(bucket) > BUCKET_SIZE and self._inserted >= SPLIT_EVERY:
            self._inserted = 0
            self._split(position_of(sender))
        return True

    def _put_among(self, bucket: Bucket, held: Held, module: bytes, sender: Sender, state: bytes, day: int) -> bool:
        """As `put`, where there is an entry of another module, or one goes."""
        cells = cells_of(held)
        others = tuple(cell for cell in cells if cell.module != module)
        replaced = next((cell for cell in cells if cell.module == module), None)
        if state == (START if replaced is None else replaced.state):
            return False
        self._note(sender, held)
        after = others if state == START else (*others, self._add(module, state, day))
        if replaced is not None:
            self._drop(replaced)
        self._size += len(after) - len(cells)
        self.memory += sender_memory(sender, len(after)) - sender_memory(sender, len(cells))
        self.most_modules = max(self.most_modules, len(after))
        if after:
            bucket[sender] = after if len(after) > 1 else after[0]
        else:
            del bucket[sender]
            if len(bucket) in SPARSE_SIZES:
                _rebuild(bucket)
        return True

    def clear(self) -> int:
        """Forget everything at once. Returns 1 where there was anything, else 0."""
        if not self._size:
            return 0
        changed = Changes()
        changed.cleared = (self._contents(), self.changed)
        self.changed, self.unsettled = changed, True
        self._clears += 1
        self._reset()
        return 1

    def cut(self) -> None:
        """The changes so far are about to be written; those that were cut before are settled."""
        self.cutting, self.changed = self.changed, Changes()

    def settle(self) -> list[Bucket]:
        """The changes that were cut stay. The caller frees the buckets a few at a time, for each takes a while."""
        freed: list[Bucket] = []
        cleared = self.cutting.cleared
        while cleared is not None:
            (directory, *_), changes = cleared
            freed += {id(bucket): bucket for bucket in directory}.values()
            cleared = changes.cleared
        self.cutting, self.unsettled = Changes(), self.changed.any()
        return freed

    def revert(self) -> None:
        """Take back all changes that are not settled."""
        for changes in (self.changed, self.cutting):
            self._take_back(changes)
        self.changed, self.cutting, self.unsettled = Changes(), Changes(), False

    def _note(self, sender: Sender, held: Held | None) -> None:
        """What a sender held before its first change in a batch."""
        if sender not in self.changed:
            self.changed[sender] = held
            self.unsettled = True

    def _take_back(self, changes: Changes) -> None:
        while changes.cleared is not None:
            contents, changes = changes.cleared
            self._clears += 1
            self._set_contents(contents)
        for sender in changes:
            self._take_out(sender)
        for sender, held in changes.items():
            if held is not None:
                self._put_back(sender, held)

    def _take_out(self, sender: Sender) -> None:
        cells = cells_of(self._directory[position_of(sender) >> self._shift].pop(sender, None))
        for cell in cells:
            self._drop(cell)
        self._size -= len(cells)
        self.memory -= sender_memory(sender, len(cells))

    def _put_back(self, sender: Sender, held: Held) -> None:
        cells = tuple(self._add(cell.module, cell.state, cell.day) for cell in cells_of(held))
        self._directory[position_of(sender) >> self._shift][sender] = cells if len(cells) > 1 else cells[0]
        self._size += len(cells)
        self.memory += sender_memory(sender, len(cells))

    def walk(self, position: int = 0) -> Iterator[Range]:
        """The buckets from the one that covers `position` on, in order, as they are when the walk comes to them.

        Ends where the table is cleared meanwhile: what it holds then has come since.
        """
        clears = self._clears
        while position < 1 << POSITION_BITS and clears == self._clears:
            covered = self._range(position)
            yield covered
            position = covered.end

    def adopt(self, start: int, depth: int, bucket: Bucket) -> None:
        """Take over a bucket as `walk` gave it, in place of the empty one that covers its range: for loading.

        Raises ValueError where `walk` cannot have given it.
        """
        if not (0 <= depth <= MAX_DEPTH and 0 <= start < 1 << POSITION_BITS):
            raise ValueError(f"there is no bucket at position {start} with depth {depth}")
        while self._depths[start >> self._shift] < depth:
            self._divide(start)
        covered = self._range(start)
        if (covered.start, covered.depth) != (start, depth) or covered.bucket:
            raise ValueError(f"a bucket at position {start} with depth {depth} overlaps another one")
        positions = [*map(crc32, filter(None, bucket))]
        if not bucket.keys().isdisjoint((None, b"")):
            positions.append(position_of(None))
        if positions and not (start <= min(positions) and max(positions) < covered.end):
            raise ValueError(f"a bucket at position {start} with depth {depth} has senders that belong elsewhere")
        self._place(covered._replace(bucket=bucket))
        # Counting senders at C speed matters when there are millions.
        self.memory += len(bucket) * SENDER_MEMORY + sum(map(len, filter(None, bucket)))
        for held, count in Counter(bucket.values()).items():
            cells = cells_of(held)
            self.memory += count * (len(cells) - 1) * MORE_MEMORY
            self.most_modules = max(self.most_modules, len(cells))
            for cell in cells:
                cell.count.entries += count
                self._size += count
                if not cell.count.counted:
                    self._uncounted[cell.module] += count

    def cell(self, module: bytes, state: bytes, day: int) -> Cell:
        """Return a cell for one more entry to hold: the one made last for this state, if it has the same day."""
        latest = self._latest.get((module, state))
        if latest is None:
            latest = Cell(module, state, day, StateCount(counted=len(self._latest) < MAX_COUNTED_STATES))
            self.memory += state_memory(module, state)
        elif latest.day != day:
            latest = Cell(latest.module, latest.state, day, latest.count)
        else:
            return latest
        if latest.count.counted:
            self._latest[latest.module, latest.state] = latest
        return latest

    def has_state(self, module: bytes, state: bytes) -> bool:
        """Whether an entry of the module can share what others have for this state."""
        return (module, state) in self._latest

    def uncounted(self, module: bytes | None) -> int:
        """How many entries of the module (None: of all) are in none of the `counts`."""
        return self._uncounted.total() if module is None else self._uncounted[module]

    def counts(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Each module and state that are counted apart, and how many entries have them."""
        return ((module, state, cell.count.entries) for (module, state), cell in self._latest.items())

    def _reset(self) -> None:
        self._directory: list[Bucket] = [{}]  # by the first bits of the position; a bucket may stand in many places
        self._depths = [0]  # of the bucket at the same place: how many bits it goes by
        self._depth = 0  # how many bits the directory goes by
        self._shift = POSITION_BITS
        # By module and state, the cell made last, which entries changed on the same day share; those that are counted.
        self._latest: dict[tuple[bytes, bytes], Cell] = {}
        self._uncounted: Counter[bytes] = Counter()  # the other entries, by module
        self._size = 0
        self.memory = 0

    def _contents(self) -> _Contents:
        place = self._directory, self._depths, self._depth, self._shift
        return *place, self._latest, self._uncounted, self._size, self.memory

    def _set_contents(self, contents: _Contents) -> None:
        self._directory, self._depths, self._depth, self._shift = contents[:4]
        self._latest, self._uncounted, self._size, self.memory = contents[4:]

    def _range(self, position: int) -> Range:
        index = position >> self._shift
        depth = self._depths[index]
        span = 1 << POSITION_BITS - depth
        start = position & -span
        return Range(start, start + span, depth, self._directory[index])

    def _split(self, position: int) -> None:
        if self._depths[position >> self._shift] < MAX_DEPTH:
            self._divide(position)
            collector.freeze()

    def _divide(self, position: int) -> None:
        """Two buckets in place of the one that covers `position`, each for half of its range."""
        if self._depths[position >> self._shift] == self._depth:
            self._double()
        for half in halves(self._range(position)):
            self._place(half)

    def _place(self, covered: Range) -> None:
        first, after = covered.start >> self._shift, covered.end >> self._shift
        self._directory[first:after] = [covered.bucket] * (after - first)
        self._depths[first:after] = [covered.depth] * (after - first)

    def _double(self) -> None:
        self._directory, self._depths = _twice(self._directory), _twice(self._depths)
        self._depth += 1
        self._shift -= 1

    def _add(self, module: bytes, state: bytes, day: int) -> Cell:
        """A cell for one more entry."""
        cell = self.cell(module, state, day)
        cell.count.entries += 1
        if not cell.count.counted:
            self._uncounted[module] += 1
        return cell

    def _drop(self, cell: Cell) -> None:
        """One entry less holds the cell."""
        count, module = cell.count, cell.module
        count.entries -= 1
        if not count.entries:
            self.memory -= state_memory(module, cell.state)
        if count.counted:
            if not count.entries:
                del self._latest[module, cell.state]
        elif self._uncounted[module] > 1:
            self._uncounted[module] -= 1
        else:
            del self._uncounted[module]


def _twice(each: list[T]) -> list[T]:
    """Each one two times, side by side; by slices, for a directory can be long."""
    doubled = each * 2
    doubled[::2] = doubled[1::2] = each
    return doubled


def position_of(sender: Sender) -> int:
    """Where a sender stands in a walk; the same in every process and release."""
    return crc32(sender or b"")


def _rebuild(bucket: Bucket) -> None:
    """Give back the memory of entries that were removed."""
    left = dict(bucket)
    bucket.clear()
    bucket.update(left)


def halves(covered: Range) -> tuple[Range, Range]:
    """Two new buckets with what is in one, each for half of its range."""
    start, end, depth, bucket = covered
    middle = (start + end) // 2
    lower: Bucket = {}
    upper: Bucket = {}
    for sender, held in bucket.items():
        (lower if position_of(sender) < middle else upper)[sender] = held
    return Range(start, middle, depth + 1, lower), Range(middle, end, depth + 1, upper)


def entry_memory(module: bytes, sender: Sender, state: bytes) -> int:
    """Bytes that an entry takes which shares nothing with others."""
    return sender_memory(sender, 1) + state_memory(module, state)


def sender_memory(sender: Sender, entries: int) -> int:
    """Bytes that a sender takes with so many entries, without their states."""
    return SENDER_MEMORY + len(sender or b"") + (entries - 1) * MORE_MEMORY if entries else 0


def state_memory(module: bytes, state: bytes) -> int:
    return STATE_MEMORY + len(module) + len(state)


def cells_of(held: Held | None) -> tuple[Cell, ...]:
    return (held,) if isinstance(held, Cell) else held or ()


def entries_of(sender: Sender, held: Held) -> list[Entry]:
    return [Entry(cell.module, sender, cell.state, cell.day) for cell in cells_of(held)]
