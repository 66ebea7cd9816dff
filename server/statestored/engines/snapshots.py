"""Writing the states to a snapshot while they change, and loading one.

The walk over the live buckets is fuzzy: it takes a slice at a time and lets the daemon work in between, so that some
buckets have what was committed meanwhile, and some have not. The journal has all of it, and its effects are absolute:
applied again from where the walk began, they make the states whole.
"""

import asyncio
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import structlog

from statestored import framing
from statestored.engines.base import START
from statestored.engines.sessions import DUMP_SIZE, ClientSessions, Dump, dump_size
from statestored.engines.states import States
from statestored.engines.table import MAX_DEPTH, Bucket, Cell, Held, Range, Table, cells_of, halves
from statestored.engines.threads import in_thread
from statestored.errors import DamagedFile
from statestored.framing import Kind
from statestored.snapshot import SnapshotWriter, content_of, footer_of, read_snapshot

log = structlog.get_logger()

FLUSH_EVERY = 2**20  # bytes; one sync of a large file would hold up everybody else's
# What is written in one turn of the loop, which is to take about a millisecond.
ENTRIES_A_SLICE = 2**15  # for even those that share what they hold are looked at
BYTES_A_SLICE = 2**18  # of text, with ENTRY_BYTES for each entry that shares nothing
ENTRY_BYTES = 100  # as long as to pack one takes, without its text, so many bytes are written
PROGRESS_EVERY = 1_000_000  # entries

CellContent = tuple[bytes, bytes, int]  # module, state, day


async def write_states(states: States, writer: SnapshotWriter) -> int:
    """All of them, as they are when the walk comes to them. Returns how many entries there are.

    Raises NoRoom or DiskFailed.
    """
    entries = 0
    for namespace, table in list(states.tables.items()):
        for covered in table.walk():
            entries += await _write_bucket(writer, namespace, covered, table.most_modules)
    await _write_sessions(states.sessions, writer)
    return entries


async def _write_bucket(writer: SnapshotWriter, namespace: bytes, covered: Range, most_modules: int) -> int:
    """One block; or several, each of a part of the range, where it holds much. Returns how many entries it has."""
    entries = 0
    if not covered.bucket:
        await _others_turn(writer)
    elif covered.depth < MAX_DEPTH and not _is_a_slice(covered.bucket, most_modules):
        for half in halves(covered):  # which are as all of it was just now
            await _others_turn(writer)
            entries += await _write_bucket(writer, namespace, half, most_modules)
    else:
        columns = _columns(namespace, covered)
        entries = _count_entries(columns)
        writer.add(Kind.BUCKET, columns)
        await _others_turn(writer)
    return entries


async def _write_sessions(sessions: ClientSessions, writer: SnapshotWriter) -> None:
    block: list[Dump] = []
    size = 0
    for session in list(sessions):
        for dump in sessions.dump(session):
            block.append(dump)
            size += dump_size(dump)
            if size >= DUMP_SIZE:
                writer.add(Kind.SESSIONS, block)
                await _others_turn(writer)
                block, size = [], 0
    if block:
        writer.add(Kind.SESSIONS, block)
        await _others_turn(writer)


async def _others_turn(writer: SnapshotWriter) -> None:
    if writer.unwritten >= FLUSH_EVERY:
        await in_thread(writer.flush)
    else:
        await asyncio.sleep(0)


async def load_snapshot(path: Path, store_id: uuid.UUID, states: States) -> framing.Sequence:
    """Put what a snapshot holds into `states`, which are empty. Returns the last batch that it may have a part of.

    Raises DamagedFile, TooNew or OSError; what is in `states` then is of no use.
    """
    started, next_progress = time.monotonic(), PROGRESS_EVERY
    loader = BlockLoader(states)
    for frame in read_snapshot(path, store_id):
        if frame.kind == Kind.FOOTER:
            footer = footer_of(path, frame)
            if footer.entries != len(states):
                raise DamagedFile(path, f"its footer counts {footer.entries} entries, not {len(states)}", frame.offset)
        else:
            loader.load(path, frame)
        if len(states) >= next_progress:
            next_progress += PROGRESS_EVERY
            log.info("loading", snapshot=path.name, entries=len(states))
        await asyncio.sleep(0)
    log.info("loaded", snapshot=path.name, entries=len(states), seconds=round(time.monotonic() - started, 3))
    return footer.last


class BlockLoader:
    """Puts the buckets and sessions of a snapshot into `states`, which are empty."""

    def __init__(self, states: States) -> None:
        self._states = states
        # By namespace, and by module, state and day. Not those of states that are too many to be counted: they can be
        # as many as the entries, which then took a third more memory.
        self._cells: dict[bytes, dict[CellContent, Cell]] = {}
        # One object for each module, and for each day, for those cells as well.
        self._modules: dict[bytes, bytes] = {}
        self._days: dict[int, int] = {}

    def load(self, path: Path, frame: framing.Frame) -> None:
        """Raises DamagedFile or TooNew."""
        content = content_of(path, frame)
        try:
            if frame.kind == Kind.SESSIONS:
                self._states.sessions.load(content)
            else:
                self._load_bucket(*content)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DamagedFile(path, f"a block that makes no sense: {error}", frame.offset) from error

    def _load_bucket(
        self,
        namespace: bytes,
        start: int,
        depth: int,
        held: Sequence[Iterable[CellContent]],
        senders: Sequence[bytes | None],
        column: Sequence[int],
    ) -> None:
        if not {type(namespace), *map(type, senders)} <= {bytes, NoneType} or namespace is None:
            raise TypeError("a name that is no text")
        table = self._states.table(namespace)
        shared = self._cells.setdefault(namespace, {})
        all_held = [self._held(table, shared, contents) for contents in held]
        bucket = dict(zip(senders, map(all_held.__getitem__, column), strict=True))
        if len(bucket) != len(senders):
            raise ValueError("a sender stands in it twice")
        table.adopt(start, depth, bucket)

    def _held(self, table: Table, shared: dict[CellContent, Cell], contents: Iterable[CellContent]) -> Held:
        held = tuple([self._cell(table, shared, content) for content in contents])
        if len(held) == 1:
            return held[0]
        if not held or len({cell.module for cell in held}) < len(held):
            raise ValueError("a sender has nothing, or a module twice")
        return held

    def _cell(self, table: Table, shared: dict[CellContent, Cell], content: CellContent) -> Cell:
        """One object for all entries of the same module, state and day."""
        cell = shared.get(content)
        if cell is None:
            module, state, day = content
            if not (type(module) is type(state) is bytes and type(day) is int and state != START):
                raise TypeError("an entry that cannot be")
            cell = table.cell(self._modules.setdefault(module, module), state, self._days.setdefault(day, day))
            if cell.count.counted:
                shared[content] = cell
        return cell


def _is_a_slice(bucket: Bucket, most_modules: int) -> bool:
    """Whether it can be written in one turn of the loop. `most_modules`: that any of its senders has entries in."""
    if len(bucket) == 1:  # it cannot be less
        return True
    may_be_many = len(bucket) * most_modules > ENTRIES_A_SLICE
    if may_be_many and sum(len(cells_of(held)) for held in bucket.values()) > ENTRIES_A_SLICE:
        return False
    size = sum(map(len, filter(None, bucket)))
    # The order of the set depends on addresses, and has no effect on a sum. `dict.fromkeys` takes 40 to 70 % longer.
    for held in set(bucket.values()):
        size += sum(ENTRY_BYTES + len(cell.module) + len(cell.state) for cell in cells_of(held))
        if size > BYTES_A_SLICE:
            return False
    return True


def _columns(namespace: bytes, covered: Range) -> tuple[Any, ...]:
    """What is held, each once, the senders, and for each of them the number of what it holds."""
    numbers: dict[Held, int] = {}
    column = [numbers.setdefault(held, len(numbers)) for held in covered.bucket.values()]
    held = [[(cell.module, cell.state, cell.day) for cell in cells_of(held)] for held in numbers]
    return namespace, covered.start, covered.depth, held, list(covered.bucket), column


def _count_entries(columns: tuple[Any, ...]) -> int:
    _, _, _, held, _, column = columns
    sizes = list(map(len, held))
    return sum(map(sizes.__getitem__, column))
