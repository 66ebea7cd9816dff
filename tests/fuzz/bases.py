"""The stores that are damaged: those of every released format, and some made anew, with batches of all kinds."""

import asyncio
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from structlog.testing import capture_logs

from statestored.datadir import IDENTITY, DataDirectory, number_of, read_identity
from statestored.engines.recovery import replay_batch
from statestored.engines.snapshots import load_snapshot
from statestored.engines.states import States
from statestored.journal import JournalReader
from statestored.locks import LOCK_FILE
from tests.fuzz.stores import Base, States_
from tests.server import damaged
from tests.server.damaged import bytes_of
from tests.server.models import content

FIXTURES = Path(__file__).parents[1] / "fixtures"


@functools.cache
def bases() -> Sequence[Base]:
    paths = sorted(FIXTURES.glob("format-*/*/data"))
    found = [_base(path) for path in paths]
    with tempfile.TemporaryDirectory() as path:
        found.append(_base(damaged.make(Path(path) / "data")))
    return found


def _base(path: Path) -> Base:
    with tempfile.TemporaryDirectory() as copy:
        states = _all_states(shutil.copytree(path, Path(copy) / "data"))
    files = {name: data for name, data in bytes_of(path).items() if name != LOCK_FILE}
    return Base(files, states)


def _all_states(path: Path) -> list[States_]:
    """As they were after each batch, read in the usual way."""
    directory, states = DataDirectory(path), States()
    directory.store_id = read_identity(path / IDENTITY)
    first, found = 0, [content(states)]
    if snapshots := directory.snapshots():
        first = number_of(snapshots[-1])
        with capture_logs():
            asyncio.run(load_snapshot(snapshots[-1], directory.store_id, states))
        found = [content(states)]
    reader = JournalReader(directory, first)
    for frame in reader.batches():
        replay_batch(reader.path, frame, states)
        if (now := content(states)) not in found:
            found.append(now)
    return found
