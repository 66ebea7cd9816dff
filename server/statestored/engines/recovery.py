"""The states as they were when the daemon last ended, however it did: the newest snapshot, then the journal."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from statestored import collector, framing
from statestored.datadir import DataDirectory, number_of
from statestored.engines.sessions import DONE, EXPIRED, OPENED
from statestored.engines.snapshots import load_snapshot
from statestored.engines.states import CLEAR, MS_A_DAY, PUT, Effect, States
from statestored.errors import DamagedFile, TooNew
from statestored.journal import Journal, JournalReader

log = structlog.get_logger()

PROGRESS_EVERY = 2**26  # bytes of the journal
SLICE = 0.005  # seconds of work, after which others, such as health checks, have their turn


async def recover(directory: DataDirectory, states: States) -> Journal:
    """Fill `states`, which are empty. Returns the journal to go on with, which has still to begin.

    Raises DamagedFile, TooNew or OSError. Changes nothing in the directory.
    """
    snapshots = directory.snapshots()
    reader = JournalReader(directory, number_of(snapshots[-1]) if snapshots else 0)
    needed = framing.Sequence(0, 0)
    with collector.paused():
        if snapshots:
            needed = await load_snapshot(snapshots[-1], directory.store_id, states)
            states.measure()
        await _replay(reader, states)
    if reader.last < needed:
        what = f"the journal ends with batch {reader.last}, and the snapshot was made after {needed}"
        raise DamagedFile(reader.path, what, reader.offset)
    if reader.dropped:
        log.warning("the end of the journal is no whole batch, and was left out", bytes=reader.dropped)
    return Journal(directory, reader)


def replay_batch(path: Path, frame: framing.Frame, states: States) -> None:
    """Of the segment `path`. Raises DamagedFile or TooNew."""
    try:
        for effects in effects_of(path, frame):
            states.apply(effects, frame.time // MS_A_DAY)
    except (TypeError, ValueError, IndexError) as error:
        raise DamagedFile(path, f"a batch that makes no sense: {error}", frame.offset) from error
    states.cut()
    states.settle()
    states.garbage.clear()


def effects_of(path: Path, frame: framing.Frame) -> Iterator[Sequence[Effect]]:
    """Return what a batch does, some of its effects at a time. Raises DamagedFile or TooNew, even after some."""
    if frame.payload:
        for effects in framing.unpack_array(path, frame):
            _check_effects(path, frame, effects)
            yield effects


def _check_effects(path: Path, frame: framing.Frame, effects: Sequence[Any]) -> None:
    if not all(isinstance(effect, tuple) and effect for effect in effects):
        raise DamagedFile(path, "a batch that makes no sense", frame.offset)
    for kind, *what in effects:
        if (kind == PUT and not _is_put(*what)) or (kind == CLEAR and list(map(type, what)) != [bytes]):
            raise DamagedFile(path, "a batch that makes no sense", frame.offset)
        if kind not in (PUT, CLEAR, DONE, OPENED, EXPIRED):
            shown = kind if type(kind) is int else type(kind).__name__  # its repr may be nested too deeply
            raise TooNew(path, f"an effect of kind {shown}", framing.FORMAT)


def _is_put(namespace: Any = None, module: Any = None, sender: Any = 0, state: Any = None, *more: Any) -> bool:
    # By their exact types, which is the fastest: this is asked for each effect.
    texts = type(namespace) is type(module) is type(state) is bytes
    return texts and (sender is None or type(sender) is bytes) and not more


async def _replay(reader: JournalReader, states: States) -> None:
    started = breath = time.monotonic()
    next_progress = PROGRESS_EVERY
    for frame in reader.batches():
        replay_batch(reader.path, frame, states)
        if time.monotonic() - breath > SLICE:
            await asyncio.sleep(0)
            breath = time.monotonic()
        if reader.size >= next_progress:
            next_progress += PROGRESS_EVERY
            log.info("replaying", segment=reader.path.name, bytes=reader.size, entries=len(states))
    seconds = round(time.monotonic() - started, 3)
    log.info("replayed", bytes=reader.size, entries=len(states), seconds=seconds)
