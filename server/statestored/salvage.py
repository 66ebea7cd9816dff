"""The states that can still be read from a data directory, and what is lost. Nothing is changed.

Everything is taken in the order in which it was written: the newest snapshot that is whole, then what came after it.
A snapshot that is not whole goes over what is older, bucket by bucket; a batch that is not is left out, and those after
it count. What a start of the daemon would not read does not count here either.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from statestored import files, framing
from statestored.datadir import SEGMENT, DataDirectory, number_of
from statestored.engines.base import START
from statestored.engines.recovery import recover, replay_batch
from statestored.engines.snapshots import BlockLoader
from statestored.engines.states import PUT, States
from statestored.engines.table import POSITION_BITS, position_of
from statestored.errors import DamagedFile, TooNew
from statestored.framing import FORMAT, HEADER_SIZE, Frame, Kind
from statestored.inspection import Gap, find_file_id, read_pieces, size_used
from statestored.journal import boot_id
from statestored.segment import Origin, SegmentReader
from statestored.snapshot import Footer, content_of, footer_of, read_file_id, verify_snapshot


@dataclass
class Content:
    """What was read of a snapshot or a segment.

    frames: how many blocks or batches are whole.
    first, last: of the batches.
    time: of the last, in milliseconds since 1970.
    tail: bytes at the end which a start leaves out.
    open_end: bytes there that are damaged, and nothing tells what was in them.
    """

    path: Path
    frames: int = 0
    first: framing.Sequence | None = None
    last: framing.Sequence | None = None
    time: int = 0
    entries: int = 0  # of a snapshot
    footer: Footer | None = None
    tail: int = 0
    open_end: int = 0
    is_unreadable: bool = False
    damage: list[DamagedFile] = field(default_factory=list)

    def count(self, frame: Frame) -> None:
        self.frames += 1
        self.first = self.first or frame.sequence
        self.last, self.time = frame.sequence, frame.time

    def note(self, gap: Gap, what: str) -> None:
        rest = self.path.stat().st_size - gap.start
        said = f"{min(gap.end - gap.start, rest):,} bytes are no whole {what}" if rest else "batches are cut off"
        self.damage.append(DamagedFile(self.path, said, gap.start))

    def lost(self) -> list[str]:
        if self.is_unreadable:
            return [f"all of {self.path.name}"]
        lost = [] if self.path.suffix == SEGMENT else self._lost_blocks()
        if self.open_end:
            lost.append(f"what was in the last {self.open_end:,} bytes of {self.path.name}")
        return lost

    def _lost_blocks(self) -> list[str]:
        if self.footer is None:  # what was behind the last one is the open end
            lost = 0 if self.last is None else self.last.counter - self.frames
            return [f"{lost} blocks of {self.path.name}"] if lost else []
        all_, entries = self.footer.blocks, self.footer.entries - self.entries
        lost = all_ - (self.frames - 1)  # without the footer
        return [f"{lost} of the {all_} blocks of {self.path.name}, with {entries:,} entries"] if lost else []


@dataclass
class Salvage:
    """last: the highest number of a batch that the files speak of.

    lost_batches: as far as the numbers of the others tell.
    missing: files that others speak of.
    """

    states: States = field(default_factory=States)
    contents: list[Content] = field(default_factory=list)
    missing: list[DamagedFile] = field(default_factory=list)
    last: framing.Sequence | None = None
    lost_batches: int = 0

    @property
    def damage(self) -> list[DamagedFile]:
        return [*self.missing, *(damage for content in self.contents for damage in content.damage)]

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all could be read, not even that there was nothing."""
        return not any(content.frames for content in self.contents)

    def lost(self) -> list[str]:
        """In words. What is written later may have been lost with a file, and make up for some of it."""
        lost = [f"all of {damage.path.name}" for damage in self.missing]
        lost += [line for content in self.contents for line in content.lost()]
        if self.lost_batches:
            lost.append(f"{self.lost_batches:,} batch{'es' if self.lost_batches > 1 else ''}, going by their numbers")
        return lost


def first_damage(directory: DataDirectory) -> DamagedFile | None:
    """What a start of the daemon would stop at. Raises TooNew or OSError."""
    try:
        asyncio.run(recover(directory, States()))
    except DamagedFile as damage:
        return damage
    return None


def salvage(directory: DataDirectory) -> Salvage:
    """Raises TooNew or OSError."""
    found = Salvage()
    base = _newest_whole(directory)
    snapshots = {number: path for path in directory.snapshots() if (number := number_of(path)) >= base}
    segments = {number: path for path in directory.segments() if (number := number_of(path)) >= base}
    chain = _Chain(directory, [*segments.values()])
    found.missing = chain.missing(min(snapshots, default=0))
    for number in sorted({*snapshots, *segments}):
        if number in snapshots:
            found.contents.append(_load(directory, snapshots[number], found))
        if number in segments:
            found.contents.append(_replay(directory, segments[number], chain, found))
    footers = [content.footer.last for content in found.contents if content.footer is not None]
    found.last = max(filter(None, [found.last, *footers]), default=None)
    return found


def _newest_whole(directory: DataDirectory) -> int:
    """The number of the newest snapshot in which there is no damage; 0 where there is none."""
    for path in reversed(directory.snapshots()):
        try:
            verify_snapshot(path, directory.store_id)
        except DamagedFile:
            continue
        return number_of(path)
    return 0


# Snapshots


def _load(directory: DataDirectory, path: Path, found: Salvage) -> Content:
    content = Content(path)
    try:
        with files.open_to_read(path) as file:
            read_file_id(path, file, directory.store_id)
    except DamagedFile as damage:
        content.damage.append(damage)
    file_id = find_file_id(path, directory.store_id)
    if file_id is None:
        content.is_unreadable = True
        return content
    loader, is_first = BlockLoader(found.states), not found.states.tables
    for piece in read_pieces(path, file_id, path.stat().st_size):
        if isinstance(piece, Gap):
            content.note(piece, "block")
            content.open_end = piece.end - piece.start if content.footer is None else 0
            continue
        try:
            if piece.kind == Kind.FOOTER:
                content.footer = footer_of(path, piece)
            elif is_first or piece.kind == Kind.SESSIONS:
                before = len(found.states)
                loader.load(path, piece)
                content.entries += len(found.states) - before
            else:
                content.entries += _load_over(path, piece, found.states)
        except DamagedFile as damage:
            _take_back(found.states)
            content.damage.append(damage)
        else:
            content.count(piece)
            content.open_end = 0
    return content


def _load_over(path: Path, block: Frame, states: States) -> int:
    """A bucket in the place of whatever is there in its range. Returns how many entries are in it."""
    entries = 0
    try:
        namespace, start, depth, held, senders, column = content_of(path, block)
        table, end = states.table(namespace), start + (1 << POSITION_BITS - depth)
        older = [sender for covered in table.walk(start) if covered.start < end for sender in covered.bucket]
        for sender in older:
            if start <= position_of(sender) < end:
                states.apply([(PUT, namespace, module, sender, START) for module in table.modules(sender)], 0)
        for sender, index in zip(senders, column, strict=True):
            for module, state, day in held[index]:
                entries += bool(states.apply([(PUT, namespace, module, sender, state)], day))
    except (ValueError, TypeError, IndexError) as error:
        _take_back(states)
        raise DamagedFile(path, f"a block that makes no sense: {error}", block.offset) from error
    states.cut()
    states.settle()
    return entries


# Segments


class _Chain:
    """The segments, by what their headers say of each other."""

    def __init__(self, directory: DataDirectory, paths: Sequence[Path]) -> None:
        self._directory = directory
        self.readers: dict[Path, SegmentReader] = {}
        self.damage: dict[Path, DamagedFile] = {}
        for path in paths:
            try:
                self.readers[path] = SegmentReader(path, directory.store_id)
            except DamagedFile as damage:
                self.damage[path] = damage
        self._cut = [path for path in paths if path.stat().st_size < HEADER_SIZE]
        self._paths = [path for path in paths if path not in self._cut]

    def is_nothing(self, path: Path) -> bool:
        """Cut within its header, and nothing goes on behind it: nobody was told yet of what it was to hold."""
        return path in self._cut and all(path != self._before(reader.origin) for reader in self.readers.values())

    def missing(self, first: int) -> list[DamagedFile]:
        """The files that should be there, from number `first` on."""
        found = [
            DamagedFile(path, "it is missing, and the journal goes on behind it")
            for reader in self.readers.values()
            if reader.origin.previous >= max(first, 1) and not (path := self._before(reader.origin)).exists()
        ]
        path = self._directory.segment(first)
        if first and not path.exists() and path not in [damage.path for damage in found]:
            found.append(DamagedFile(path, "it is missing, and the snapshot of this number needs it"))
        elif not (first or self._paths or self._cut):
            found.append(DamagedFile(self._directory.segment(1), "it is missing, and there is no snapshot either"))
        return found

    def is_last(self, path: Path) -> bool:
        return path == self._paths[-1]

    def end_of(self, path: Path) -> tuple[int, int]:
        """Up to where a segment counts, and how many bytes behind that a start leaves out."""
        after = [other for other in self._paths if number_of(other) > number_of(path)]
        following = next((self.readers[other].origin for other in after if other in self.readers), None)
        if following is not None and following.previous <= number_of(path):
            return (following.previous_end if following.previous == number_of(path) else HEADER_SIZE), 0
        if not after and path in self.readers:
            reader = self.readers[path]
            try:
                for _ in reader.open_ended(boot_id()):
                    pass
            except DamagedFile:
                return max(size_used(path), reader.durable), 0
            return reader.end, reader.dropped
        return size_used(path), 0

    def _before(self, origin: Origin) -> Path:
        return self._directory.segment(origin.previous)


def _replay(directory: DataDirectory, path: Path, chain: _Chain, found: Salvage) -> Content:
    content = Content(path)
    if chain.is_nothing(path):
        content.tail = path.stat().st_size
        return content
    if path in chain.damage:
        content.damage.append(chain.damage[path])
    file_id = find_file_id(path, directory.store_id)
    if file_id is None:
        content.is_unreadable = True
        return content
    if path in chain.readers:
        _go_on(found, chain.readers[path].origin.after)
    end, content.tail = chain.end_of(path)
    for piece in read_pieces(path, file_id, end):
        if isinstance(piece, Gap):
            content.note(piece, "batch")
            content.open_end = piece.end - piece.start if piece.end == end and chain.is_last(path) else 0
            continue
        if piece.kind != Kind.BATCH:
            raise TooNew(path, f"a frame of kind {piece.kind}", FORMAT)
        if found.last is None or piece.sequence > found.last:  # not one that was copied into a later segment
            if found.last is not None and not found.last.is_followed_by(piece.sequence):
                _go_on(found, framing.Sequence(piece.sequence.epoch, piece.sequence.counter - 1))
            found.last = piece.sequence
            try:
                replay_batch(path, piece, found.states)
            except DamagedFile as damage:
                _take_back(found.states)
                content.damage.append(damage)
                found.lost_batches += 1
                continue
        content.count(piece)
    return content


def _go_on(found: Salvage, after: framing.Sequence) -> None:
    """The journal goes on behind this batch. Whatever is between it and the last one that was read is lost."""
    if found.last is None:
        found.last = after
    elif after > found.last:
        same_epoch = after.epoch == found.last.epoch
        found.lost_batches += after.counter - (found.last.counter if same_epoch else 0)
        found.last = after


def _take_back(states: States) -> None:
    """What was applied of something that then made no sense."""
    states.revert()
    states.sessions.revert()
    for table in states.tables.values():
        table.revert()
