"""Data directories with many entries in them, all in one snapshot; each made once in a run of the benchmarks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.asking import connected
from benchmarks.persistence import Kind
from benchmarks.prebuilt import STATES, Entry, senders

BATCH = 1000  # what a set_many takes
FILLED_STATES = STATES[1:]  # so that a first lap of `prebuilt.sets` changes each of them


def entries(count: int) -> Iterator[Entry]:
    return zip(senders(count), cycle(FILLED_STATES), strict=False)


@contextmanager
def copy_of_filled(kind: Kind, count: int, directory: Path) -> Iterator[Path]:
    """A data directory below `directory`, to do with as one likes. It is in the page cache, and on the disk."""
    filled = _filled(kind, count, directory)
    with TemporaryDirectory(dir=directory) as temporary:
        copy = Path(shutil.copytree(filled, Path(temporary, filled.name)))
        os.sync()  # as the server would have left it: its own first syncs are not to write the copy
        yield copy


def _filled(kind: Kind, count: int, directory: Path) -> Path:
    filled = directory / f"{kind.name}-{count}"
    if not filled.exists():
        unfinished = directory / f"{filled.name}-unfinished"
        unfinished.mkdir()
        _fill(kind, list(entries(count)), unfinished)
        unfinished.rename(filled)
    return filled


def _fill(kind: Kind, content: Sequence[Entry], data: Path) -> None:
    with kind.start_on(data) as server:
        with connected(server, kind.wire) as connection:
            for start in range(0, len(content), BATCH):
                connection.set_many(content[start : start + BATCH])
        kind.snapshot(server)
