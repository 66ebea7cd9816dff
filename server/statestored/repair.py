"""`statestored repair DIR`: a new generation of files from all that can be read of a damaged one.

Nothing is overwritten, and at any moment the directory holds either the old damage or the whole new generation:

1. The states that can be read are written to a new snapshot, under a temporary name.
2. All files there are get a second name, in a directory beside them.
3. The snapshot gets its name, and is read back. A start still refuses, for it needs the segment of its number.
4. That segment is made, and holds nothing. From here on a start finds the new generation, and only it.
5. The identity is written, where it was damaged.
6. The old names go.
"""

import asyncio
import os
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from statestored import files, framing
from statestored.check import Checked, amount
from statestored.datadir import IDENTITY, SET_ASIDE, DataDirectory, number_of, write_identity
from statestored.engines.commits import now
from statestored.engines.snapshots import load_snapshot, write_states
from statestored.engines.states import States
from statestored.errors import DamagedFile, Exit, StartError
from statestored.inspection import identify
from statestored.journal import boot_id
from statestored.salvage import Salvage, first_damage, salvage
from statestored.segment import Origin, SegmentWriter
from statestored.snapshot import SnapshotWriter


def repair(path: Path) -> Checked:
    """Raises StartError, TooNew, DiskFailed or OSError where it cannot; then nothing was changed for the worse."""
    directory = DataDirectory(path)
    with closing(directory):
        directory.open_existing(to_write=True)
        _refuse_foreign(directory)
        identity = identify(directory)
        stops_at = first_damage(directory)
        if stops_at is None:
            done = "Nothing to repair." if identity is None else _repair_identity(directory, identity)
            return Checked(Exit.STOPPED, done)
        found = salvage(directory)
        if found.is_empty:
            return Checked(Exit.DAMAGED, "Nothing in it can be read, so nothing was repaired: take a backup.")
        return Checked(Exit.STOPPED, asyncio.run(_repair(directory, found, identity)))


async def _repair(directory: DataDirectory, found: Salvage, identity: DamagedFile | None) -> str:
    """Returns what was done, in words."""
    last = found.last or framing.Sequence(0, 0)
    originals = [*directory.segments(), *directory.snapshots(), *directory.unfinished()]
    # The next start's epoch is the number after this one, and above all that there ever were. So no file is in the way.
    number = max(*map(number_of, originals), last.epoch) + 1
    snapshot = directory.snapshot(number)
    with SnapshotWriter(snapshot, directory.store_id, now()) as writer:
        entries = await write_states(found.states, writer)
        writer.flush()
        aside = _set_aside(directory, [*originals, *_damaged_identity(identity)])
        writer.finish(entries, last)
    await _read_back(directory, found.states, snapshot)
    origin = Origin(number, number, boot_id(), after=last)
    SegmentWriter(directory.segment(number), directory.store_id, origin, []).close()
    if identity is not None:
        write_identity(directory.path, directory.store_id)
    directory.remove_before(number)
    return "\n".join(
        (
            f"Repaired: {amount(found.states)}, in {snapshot.name}.",
            f"Lost: {'; '.join(found.lost()) or 'nothing'}.",
            f"The files as they were are in {aside}: remove it when nobody needs them.",
        )
    )


def _repair_identity(directory: DataDirectory, identity: DamagedFile) -> str:
    """All else is sound."""
    damaged = _damaged_identity(identity)
    aside = _set_aside(directory, damaged) if damaged else None
    write_identity(directory.path, directory.store_id)
    lines = [f"Repaired: {IDENTITY} has the id {directory.store_id} again, as the other files have. Lost: nothing."]
    return "\n".join(lines + ([f"The file as it was is in {aside}."] if aside else []))


async def _read_back(directory: DataDirectory, states: States, snapshot: Path) -> None:
    """Nothing needs it yet, and it goes where it is not as it should be. Raises DamagedFile."""
    again = States()
    try:
        await load_snapshot(snapshot, directory.store_id, again)
        if len(again) != len(states):
            raise DamagedFile(snapshot, f"{len(states)} entries were written, and {len(again)} read back")
        if len(again.sessions) != len(states.sessions):
            raise DamagedFile(snapshot, f"{len(states.sessions)} sessions, and {len(again.sessions)} read back")
    except DamagedFile:
        files.remove(snapshot)
        raise


def _set_aside(directory: DataDirectory, paths: list[Path]) -> Path:
    """Returns the directory in which they are."""
    name = f"{SET_ASIDE}{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    taken = len([*directory.path.glob(f"{name}*")])
    aside = directory.path / (f"{name}-{taken + 1}" if taken else name)
    directory.set_aside(paths, aside.name)
    return aside


def _damaged_identity(damage: DamagedFile | None) -> list[Path]:
    return [damage.path] if damage is not None and damage.path.exists() else []


def _refuse_foreign(directory: DataDirectory) -> None:
    """New files belong to who makes them, and the daemon could not read those of another user."""
    for path in (*directory.segments(), *directory.snapshots()):
        if (owner := path.stat().st_uid) != os.geteuid():
            raise StartError(f"{path} belongs to user {owner}, and so must what repair makes: run it as that user")
