"""Data directories with a journal of known batches, and what a start makes of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import pytest
from structlog.testing import capture_logs

from statestore import wire
from statestored import files, journal
from statestored.datadir import IDENTITY, DataDirectory, read_identity
from statestored.engines.recovery import recover
from statestored.engines.states import CLEAR, MS_A_DAY, PUT, Effect, States
from statestored.framing import HEADER_SIZE, Frame
from statestored.journal import Journal
from statestored.segment import SegmentReader
from tests.server.models import TODAY, Model, Remembered, apply, content, remembered, without_empty

OTHER_BOOT = b"after the reboot"
DROPPED = "the end of the journal is no whole batch, and was left out"  # what the log says


class Batch(NamedTuple):
    effects: Sequence[Effect]
    day: int = TODAY


def put(sender: str, state: str, namespace: str = "default") -> Effect:
    return (PUT, namespace.encode(), b"lists", sender.encode(), state.encode())


# After each of them the states are others than after any other.
BATCHES = (
    Batch([put("ann", "CONFIRMING")]),
    Batch([put("ben", "A"), put("ann", "B", "other")], TODAY + 1),
    Batch([(CLEAR, b"other")], TODAY + 1),
    Batch([put("ann", "START"), put("ben", "C")], TODAY + 2),
    Batch([put("cid", "D")], TODAY + 2),
    Batch([put("dan", "E")], TODAY + 3),
)


def states_after(batches: Sequence[Batch]) -> dict[bytes, Model]:
    models: dict[bytes, Model] = {}
    for effects, day in batches:
        for effect in effects:
            apply(models, effect, day)
    return without_empty(models)


class Daemon:
    """One life of a daemon, as far as its files can tell."""

    def __init__(self, path: Path) -> None:
        self.directory = DataDirectory(path)
        self.states = States()
        self.journal: Journal
        self._pack = wire.packer()

    async def start(self) -> Self:
        self.directory.open()
        self.journal = await recover(self.directory, self.states)
        self.journal.begin()
        if self.directory.is_new:
            self.directory.save_identity()
        return self

    def write(self, *batches: Batch) -> None:
        """As commits do: what changes nothing is not written."""
        for effects, day in batches:
            if self.states.apply(effects, day):
                self.states.cut()
                self.journal.append(day * MS_A_DAY, self._pack(effects))
                self.states.settle()

    def stop(self) -> None:
        self.journal.close(TODAY * MS_A_DAY)
        self.directory.close()

    def kill(self) -> None:
        """The files stay as they are."""
        segment = self.journal._segment
        assert segment is not None
        segment._file.close()
        self.directory.close()


class Recovered(NamedTuple):
    states: dict[bytes, Model]
    sessions: Remembered
    dropped: int  # bytes, as the log says
    journal: Journal


async def recovered(path: Path) -> Recovered:
    """What a start finds. It changes nothing there."""
    with opened(path) as directory:
        return await recovered_in(directory)


async def recovered_in(directory: DataDirectory) -> Recovered:
    """As `recovered`, in one that is open."""
    states = States()
    with capture_logs() as logs:
        found = await recover(directory, states)
    dropped = sum(entry["bytes"] for entry in logs if entry["event"] == DROPPED)
    return Recovered(content(states), remembered(states.sessions), dropped, found)


@contextmanager
def opened(path: Path) -> Iterator[DataDirectory]:
    directory = DataDirectory(path)
    try:
        directory.open()
        yield directory
    finally:
        directory.close()


def segments(path: Path) -> list[Path]:
    return sorted(path.glob("*.journal"))


def reader(path: Path) -> SegmentReader:
    """Of a segment, also while a daemon has its directory."""
    return SegmentReader(path, read_identity(path.parent / IDENTITY))


def frames(path: Path) -> list[Frame]:
    """Of a segment, up to the first that is not whole."""
    return list(reader(path)._batches(None))


def ends(path: Path) -> list[int]:
    """Where the header of a segment and each of its batches end."""
    return [HEADER_SIZE, *(frame.end for frame in frames(path))]


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@contextmanager
def without_syncs() -> Iterator[None]:
    """For many cases: nothing waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync_file", lambda _: None)
        patch.setattr(files, "sync_directory", lambda _: None)
        yield


@contextmanager
def another_boot() -> Iterator[None]:
    """The machine was started again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "boot_id", lambda: OTHER_BOOT)
        yield
