"""Data directories to damage: a snapshot of several blocks, and segments, the last of an unclean end."""

import asyncio
import os
from pathlib import Path

from statestored.datadir import IDENTITY, read_identity
from statestored.engines.snapshots import write_states
from statestored.engines.states import MS_A_DAY
from statestored.framing import FRAME_SIZE, Frame
from statestored.inspection import find_file_id, read_pieces
from statestored.snapshot import SnapshotWriter
from tests.server.journals import Batch, Daemon, put, recovered, states_after
from tests.server.models import TODAY, Model, small_buckets

BEFORE = tuple(Batch([put(f"old{number}", "A"), put("ann", f"{number}")]) for number in range(20))
AFTER = tuple(Batch([put(f"new{number}", "B"), put("ann", f"{number}", "other")], TODAY + 1) for number in range(4))
COPIED = (Batch([put("copied", "C")], TODAY + 1), Batch([put("copied", "D")], TODAY + 2))
LAST = (Batch([put("last", "E"), put("old3", "START")], TODAY + 2), Batch([put("last", "F")], TODAY + 3))
ALL = (*BEFORE, *AFTER, *COPIED, *LAST)


def make(path: Path) -> Path:
    """Snapshot 2 holds BEFORE. Segment 2 has AFTER, 3 copies and LAST; both daemons were killed."""
    asyncio.run(_make(path))
    return path


async def _make(path: Path) -> None:
    first = await Daemon(path).start()
    with small_buckets():
        first.write(*BEFORE)
        first.journal.rotate()
        await snapshot(first)
    first.directory.remove_before(2)
    first.write(*AFTER)
    first.journal.sync()
    first.write(*COPIED)
    first.kill()
    second = await Daemon(path).start()
    second.write(LAST[0])
    second.journal.sync()
    second.write(LAST[1])
    second.kill()


async def snapshot(daemon: Daemon) -> Path:
    path = daemon.directory.snapshot(daemon.journal.number)
    with SnapshotWriter(path, daemon.directory.store_id, TODAY * MS_A_DAY) as writer:
        writer.finish(await write_states(daemon.states, writer), daemon.journal.last)
    return path


def content_of(path: Path) -> dict[bytes, Model]:
    """As a start finds it. Raises DamagedFile."""
    return asyncio.run(recovered(path)).states


def bytes_of(path: Path) -> dict[str, bytes]:
    """Of all files in it, whatever is below."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def frames(path: Path) -> list[Frame]:
    file_id = find_file_id(path, read_identity(path.parent / IDENTITY))
    assert file_id is not None
    return [piece for piece in read_pieces(path, file_id, path.stat().st_size) if isinstance(piece, Frame)]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), at)


def flip_frame(path: Path, number: int) -> Frame:
    """In the middle of its payload."""
    frame = frames(path)[number]
    flip(path, (frame.offset + FRAME_SIZE + frame.end) // 2)
    return frame


def without(*lost: Batch) -> dict[bytes, Model]:
    return states_after([batch for batch in ALL if batch not in lost])
