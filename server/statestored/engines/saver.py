"""When snapshots are made, and how one comes to replace what it makes needless."""

import asyncio
import errno
import os
import time
from contextlib import suppress
from dataclasses import dataclass

import structlog

from statestore.errors import Unavailable
from statestored import files
from statestored.datadir import DataDirectory
from statestored.engines.commits import GroupCommit, now
from statestored.engines.snapshots import write_states
from statestored.engines.states import States
from statestored.engines.threads import in_thread
from statestored.errors import AttemptFailed, DamagedFile, DiskFailed, FilesMissing, NoRoom
from statestored.journal import Journal
from statestored.snapshot import SnapshotWriter, read_begin_time

log = structlog.get_logger()

LOOK_EVERY = 0.25  # seconds
WATCH_SECONDS = 1.0  # between two looks at whether all files are still there
# Seconds from a snapshot that failed to the next attempt, each time twice as many: an attempt may fill the disk up.
RETRY_AFTER = 5.0
RETRY_AT_MOST = 300.0


@dataclass(frozen=True, slots=True)
class SnapshotSchedule:
    """A snapshot is due `interval` seconds after the last one, or when there are `journal_size` bytes of journal and
    no fewer than the last one has: then it is worth its writing, however large the store. 0 is never.
    """

    interval: float
    journal_size: int

    def is_due(self, seconds: float, journal_size: int, snapshot_size: int) -> bool:
        by_size = 0 < self.journal_size <= journal_size and snapshot_size <= journal_size
        return by_size or 0 < self.interval <= seconds


class Saver:
    """Makes snapshots, one at a time."""

    def __init__(
        self,
        directory: DataDirectory,
        states: States,
        journal: Journal,
        commits: GroupCommit,
        schedule: SnapshotSchedule,
    ) -> None:
        self._directory = directory
        self._states = states
        self._journal = journal
        self._commits = commits
        self._schedule = schedule
        self._one_at_a_time = asyncio.Lock()
        self._asked = asyncio.Event()
        self._saved_changes = 0  # so many of the states' changes are in the last snapshot, ...
        self._saved_size = 0  # ... and so many bytes of the journal
        self._missing: set[str] = set()  # files that another program removed, and no snapshot has replaced
        self._snapshots = 0  # that were made since the start
        snapshots = directory.snapshots()
        self._snapshot_size = sum(path.stat().st_size for path in snapshots)
        self._room_needed = self._snapshot_size
        # When the writing of the last snapshot began, in milliseconds since 1970; 0 if there is none.
        self._last_begun = read_begin_time(snapshots[-1], directory.store_id) if snapshots else 0
        self._seconds = 0.0  # that it took; of one from before the start nobody knows
        self._failures = 0

    def ask(self) -> None:
        """Let `run` make one soon."""
        self._asked.set()

    async def run(self) -> None:
        """Makes one whenever it is due, until it is cancelled. Raises DiskFailed."""
        since, pause = time.monotonic(), RETRY_AFTER
        while True:
            await self._until_asked(LOOK_EVERY)
            size = self._journal.size - self._saved_size
            due = self._schedule.is_due(time.monotonic() - since, size, self._snapshot_size)
            if not (due or self._asked.is_set()):
                continue
            self._asked.clear()
            try:
                await self.snapshot()
                since, pause = time.monotonic(), RETRY_AFTER
            except (AttemptFailed, Unavailable, DamagedFile) as error:
                self._failures += 1
                log.error("snapshot failed", error=str(error), next_attempt_in=pause)
                await self._until_asked(pause)
                self._asked.set()
                pause = min(2 * pause, RETRY_AT_MOST)

    async def watch_files(self) -> None:
        """Write a snapshot of everything if another program removes files of the store. Until it is cancelled.

        Raises DiskFailed; Displaced if files were replaced, or the directory was.
        """
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            with suppress(AttemptFailed):  # to write the identity, or to open a file: the next one may succeed
                if await self._look_for_missing():
                    self.ask()

    @property
    def is_missing_files(self) -> bool:
        """Whether another program removed files, as far as is known, that no snapshot has replaced yet."""
        return bool(self._missing)

    async def replace_missing(self) -> None:
        """Write a snapshot if files of the store are missing now, when the daemon stops and nothing is tried again.

        Raises FilesMissing if that fails, or another DiskFailed.
        """
        try:
            await self._look_for_missing()
            if self._missing:
                await self.snapshot()
        except (AttemptFailed, Unavailable, DamagedFile) as error:
            raise FilesMissing(self._missing, error) from error

    async def _look_for_missing(self) -> bool:
        """Return whether another program has removed files since the last look. Raises AttemptFailed or DiskFailed."""
        snapshots = self._snapshots
        try:
            missing = await in_thread(self._missing_files)
        except DiskFailed as error:
            self._commits.give_up(error)
            raise
        if snapshots != self._snapshots:  # a snapshot has replaced what was missing when the look began
            return False
        removed = missing - self._missing
        if removed:
            log.error("files were removed by another program, a snapshot replaces them", files=sorted(removed))
            self._missing |= removed
        return bool(removed)

    def _missing_files(self) -> set[str]:
        """May take long on a slow disk, and runs beside everything else: no write waits for it."""
        self._journal.is_in_place()  # raises Displaced; if the segment is just missing, so says the directory
        return set(self._directory.look_after())

    async def _until_asked(self, seconds: float) -> None:
        """Or so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()

    async def snapshot(self) -> None:
        """If anything has changed since the last one, or files have been removed by another program.

        Raises AttemptFailed, DamagedFile if it cannot be read back, Unavailable if writes that it has were taken back,
        or DiskFailed.
        """
        async with self._one_at_a_time:
            if self._states.changes == self._saved_changes and not self._missing:
                return
            try:
                await self._make()
            except DiskFailed as error:
                self._commits.give_up(error)
                raise

    async def _make(self) -> None:
        """Write it, and remove what it makes needless once it is in its place."""
        started, begun = time.monotonic(), now()
        await self._look_for_room()
        changes, reverts, missing = self._states.changes, self._commits.reverts, self._missing.copy()
        number, journal_size = await self._commits.rotate()
        path, store_id = self._directory.snapshot(number), self._directory.store_id
        with await in_thread(SnapshotWriter, path, store_id, begun) as writer:
            try:
                entries = await write_states(self._states, writer)
                last = await self._commits.durable()
                if reverts != self._commits.reverts:
                    raise Unavailable("it may hold writes that were taken back for want of room")
                await in_thread(writer.finish, entries, last)
            except NoRoom:
                self._room_needed = max(self._room_needed, writer.size)
                raise
        await in_thread(self._directory.remove_before, number)
        self._saved_size = journal_size
        self._saved_changes = changes
        self._missing -= missing
        self._snapshots += 1
        self._snapshot_size = writer.size
        self._room_needed = writer.size
        self._last_begun, self._seconds = begun, time.monotonic() - started
        log.info("snapshot written", snapshot=path.name, entries=entries, seconds=round(self._seconds, 3))

    async def _look_for_room(self) -> None:
        """Raises NoRoom where an attempt would most likely do no more than fill the disk up, and have writes refused.

        Most likely a snapshot takes about as much as the last one, or as one that failed had taken by then; and no more
        than the states do in memory, of which few may be left.
        """
        needed = min(self._room_needed, self._states.memory)
        if await in_thread(files.free_space, self._directory.path) < needed:
            raise NoRoom(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for a snapshot of about {needed:,} bytes")

    def info(self) -> dict[str, float]:
        return {
            "changes_since_snapshot": self._states.changes - self._saved_changes,
            "journal_bytes": self._journal.size - self._saved_size,
            "last_snapshot_time": self._last_begun / 1000,
            "last_snapshot_seconds": self._seconds,
            "snapshot_failures": self._failures,
        }
