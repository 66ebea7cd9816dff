"""Writing the states to a snapshot while they change, and loading them.

The walk over the live buckets is fuzzy: it takes a slice at a time and lets the daemon work in between. What is
committed during the walk is carried into the same file, behind the buckets. Effects are absolute, so that applying
them again to a bucket that has them already does no harm, and the file stands for the moment in which it is finished.
"""

import asyncio
import gc
import itertools
import time
import uuid
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import structlog

from statestored.engines.states import Effect, States
from statestored.engines.table import Cell, Held, Range, Table, cells_of
from statestored.errors import DamagedFile
from statestored.snapshot import BUCKET, EFFECTS, FOOTER, Block, SnapshotWriter, read_snapshot

log = structlog.get_logger()

SYNC_EVERY = 2**20  # bytes; one sync of a large file would hold up everybody else's
EFFECTS_A_BLOCK = 2000  # at first; about a millisecond's work
PROGRESS_EVERY = 1_000_000  # entries


class SnapshotInProgress:
    """One walk over `states`. Hand `carry` whatever is committed from now until `write` returns."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._carried: list[tuple[int, Effect]] = []
        self._carries = True

    def carry(self, effects: Sequence[Effect], day: int) -> None:
        if self._carries:
            self._carried += [(day, effect) for effect in effects]

    async def write(self, path: Path, store_id: uuid.UUID) -> int:
        """Returns how many changes of the states the file holds. Raises OSError."""
        with SnapshotWriter(path, store_id) as writer:
            for namespace, table in list(self._states.tables.items()):
                for covered in table.walk():
                    if covered.bucket:
                        writer.write(BUCKET, _bucket_content(namespace, covered))
                        await _breathe(writer)
            done, slice_ = 0, EFFECTS_A_BLOCK
            while done < (known := len(self._carried)):
                writer.write(EFFECTS, _effects_content(self._carried[done : done + slice_]))
                done += slice_
                if done < known:
                    await _breathe(writer)
                    # It has to come to an end, even where more comes in every turn than is written.
                    slice_ = max(slice_, 2 * (len(self._carried) - known))
            # From here to the footer nothing may be committed unseen: no await in between.
            self._carries = False
            changes, entries = self._states.changes, len(self._states)
            await asyncio.to_thread(writer.finish, entries)
            return changes


async def _breathe(writer: SnapshotWriter) -> None:
    """Let others run between two slices, and keep what is not on the disk yet small."""
    if writer.size - writer.synced >= SYNC_EVERY:
        await asyncio.to_thread(writer.sync)
    else:
        await asyncio.sleep(0)


async def load_snapshot(path: Path, store_id: uuid.UUID, states: States) -> None:
    """Put what a snapshot holds into `states`, which are empty.

    Raises DamagedFile, TooNew or OSError; what is in `states` then is of no use.
    """
    started, next_progress = time.monotonic(), PROGRESS_EVERY
    gc.disable()  # it would look at millions of new objects again and again, and find nothing
    try:
        loader = _Loader(path, states)
        for block in read_snapshot(path, store_id):
            loader.load(block)
            if len(states) >= next_progress:
                next_progress += PROGRESS_EVERY
                log.info("loading", snapshot=path.name, entries=len(states))
            await asyncio.sleep(0)
    finally:
        gc.freeze()
        gc.enable()
    log.info("loaded", snapshot=path.name, entries=len(states), seconds=round(time.monotonic() - started, 3))


def _bucket_content(namespace: bytes, covered: Range) -> tuple[Any, ...]:
    """Columns: what is held, each once, the senders, and for each of them the number of what it holds."""
    numbers: dict[Held, int] = {}
    column = [numbers.setdefault(held, len(numbers)) for held in covered.bucket.values()]
    held = [[(cell.module, cell.state, cell.day) for cell in cells_of(held)] for held in numbers]
    return namespace, covered.start, covered.depth, held, list(covered.bucket), column


def _effects_content(effects: Iterable[tuple[int, Effect]]) -> list[tuple[int, list[Effect]]]:
    """In their order, under the day of their commit."""
    return [(day, [effect for _, effect in some]) for day, some in itertools.groupby(effects, key=itemgetter(0))]


class _Loader:
    def __init__(self, path: Path, states: States) -> None:
        self._path = path
        self._states = states
        self._cells: dict[tuple[bytes, bytes, bytes, int], Cell] = {}

    def load(self, block: Block) -> None:
        try:
            if block.kind == BUCKET:
                self._load_bucket(*block.content)
            elif block.kind == EFFECTS:
                for day, effects in block.content:
                    self._states.apply(effects, day)
            elif block.kind == FOOTER and (counted := block.content[b"entries"]) != len(self._states):
                raise ValueError(f"the footer counts {counted} entries, there are {len(self._states)}")
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DamagedFile(self._path, f"a block that makes no sense: {error}", block.offset) from error

    def _load_bucket(
        self,
        namespace: bytes,
        start: int,
        depth: int,
        held: Sequence[Iterable[tuple[bytes, bytes, int]]],
        senders: Sequence[bytes | None],
        column: Sequence[int],
    ) -> None:
        table = self._states.table(namespace)
        all_held = [self._held(namespace, table, cells) for cells in held]
        bucket = dict(zip(senders, map(all_held.__getitem__, column), strict=True))
        if len(bucket) != len(senders):
            raise ValueError("a sender stands in it twice")
        table.adopt(start, depth, bucket)

    def _held(self, namespace: bytes, table: Table, cells: Iterable[tuple[bytes, bytes, int]]) -> Held:
        held = tuple(self._cell(namespace, table, cell) for cell in cells)
        return held if len(held) > 1 else held[0]

    def _cell(self, namespace: bytes, table: Table, of: tuple[bytes, bytes, int]) -> Cell:
        """One object for all entries of the same module, state and day."""
        key = (namespace, *of)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = table.cell(*of)
        return cell
