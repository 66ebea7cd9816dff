"""The default engine: the states in this process's memory, and snapshots of them in a data directory."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import structlog

from statestore.errors import Full
from statestored.datadir import DataDirectory
from statestored.engines.base import DEFAULT_NAMESPACE, Counts, Filter, Page, Sender
from statestored.engines.queries import count, scan
from statestored.engines.snapshots import SnapshotInProgress, load_snapshot
from statestored.engines.states import CLEAR, PUT, Effect, States
from statestored.engines.table import Table
from statestored.snapshot import verify_snapshot

log = structlog.get_logger()

SECONDS_A_DAY = 86400
RETRY_AFTER = 5.0  # seconds from a snapshot that failed to the next attempt


@dataclass(frozen=True, slots=True)
class SnapshotSchedule:
    """A snapshot is due `interval` seconds after the last one, or after `changes`, whichever is first; 0 is never."""

    interval: float
    changes: int


class EmbeddedEngine:
    name = "embedded"
    bulk_is_atomic = True

    def __init__(self, directory: DataDirectory, schedule: SnapshotSchedule, max_namespaces: int) -> None:
        self._directory = directory
        self._schedule = schedule
        self._max_namespaces = max_namespaces
        self._states = States()
        self._spaces: WeakValueDictionary[bytes, EmbeddedSpace] = WeakValueDictionary()  # those that somebody uses
        self._default = self.space(DEFAULT_NAMESPACE)
        self._in_progress: SnapshotInProgress | None = None
        self._due = asyncio.Event()
        self._saved(0)
        self._one_at_a_time = asyncio.Lock()
        self._freeing = False
        self._saver: asyncio.Task[None] | None = None
        self._last_snapshot: dict[str, float] = {"time": 0.0, "seconds": 0.0}
        self._failures = 0

    async def open(self) -> None:
        """Raises DamagedFile or TooNew for what the newest snapshot is; an older one is never taken instead."""
        if snapshots := self._directory.snapshots():
            await load_snapshot(snapshots[-1], self._directory.store_id, self._states)
        self._saved(self._states.changes)
        self._saver = asyncio.create_task(self._save_when_due())

    async def close(self) -> None:
        """Raises OSError where the last changes could not be saved."""
        if self._saver is None:
            return  # nothing was loaded, and what is in memory must not take its place
        self._saver.cancel()
        await asyncio.wait([self._saver])
        await self.snapshot()

    def space(self, name: bytes) -> "EmbeddedSpace":
        space = self._spaces.get(name)
        if space is None:
            if name not in self._states.tables:
                self._make_room()
            space = self._spaces[name] = EmbeddedSpace(name, self, self._states.table(name))
        return space

    def commit(self, effects: Sequence[Effect]) -> None:
        """The one way in which states change. A journal belongs here: what changed something is to be written."""
        day = int(time.time() / SECONDS_A_DAY)
        states = self._states
        if not states.apply(effects, day):
            return
        if self._in_progress is not None:
            self._in_progress.carry(effects, day)
        if states.changes >= self._due_at:
            self._due.set()
        if states.garbage and not self._freeing:
            self._freeing = True
            self._free_garbage()

    async def snapshot(self) -> None:
        """Where anything has changed since the last one. Raises OSError."""
        async with self._one_at_a_time:
            if self._states.changes != self._saved_changes:
                await self._write_snapshot()

    async def _write_snapshot(self) -> None:
        """Write it, read it back, and only then remove the older ones."""
        started = time.monotonic()
        path = self._directory.next_snapshot()
        self._in_progress = SnapshotInProgress(self._states)
        try:
            changes = await self._in_progress.write(path, self._directory.store_id)
        finally:
            self._in_progress = None
        try:
            await asyncio.to_thread(verify_snapshot, path, self._directory.store_id)
        except BaseException:
            path.unlink()  # or the next start would find it, and not the good one
            raise
        await asyncio.to_thread(self._directory.remove_snapshots_before, path)
        self._saved(changes)
        seconds = time.monotonic() - started
        self._last_snapshot = {"time": time.time(), "seconds": seconds}
        log.info("snapshot written", snapshot=path.name, entries=len(self._states), seconds=round(seconds, 3))

    def info(self) -> dict[str, Any]:
        return {
            "entries": len(self._states),
            "namespaces": sum(1 for table in self._states.tables.values() if len(table)),
            "changes_since_snapshot": self._states.changes - self._saved_changes,
            "last_snapshot_time": self._last_snapshot["time"],
            "last_snapshot_seconds": self._last_snapshot["seconds"],
            "snapshot_failures": self._failures,
        }

    async def _save_when_due(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._schedule.interval or None):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            try:
                # Not to be broken off: a thread may be at it. Who ends the engine waits for it.
                await asyncio.shield(self.snapshot())
            except Exception as error:
                self._failures += 1
                log.error("snapshot failed", error=str(error), next_attempt_in=RETRY_AFTER)
                await asyncio.sleep(RETRY_AFTER)
                self._due.set()

    def _make_room(self) -> None:
        """For one more namespace: those that hold nothing and that nobody uses go. Raises Full."""
        tables = self._states.tables
        if len(tables) >= self._max_namespaces:
            for name in [name for name, table in tables.items() if not len(table) and name not in self._spaces]:
                del tables[name]
        if len(tables) >= self._max_namespaces:
            raise Full(f"there are {self._max_namespaces} namespaces already, and no more are allowed")

    def _saved(self, changes: int) -> None:
        """So many of the states' changes are in a snapshot."""
        self._saved_changes = changes
        self._due_at = changes + (self._schedule.changes or math.inf)
        if self._states.changes < self._due_at:
            self._due.clear()

    def _free_garbage(self) -> None:
        """A bucket for each turn of the loop."""
        self._states.garbage.pop()
        self._freeing = bool(self._states.garbage)
        if self._freeing:
            asyncio.get_running_loop().call_soon(self._free_garbage)


class EmbeddedSpace:
    """One namespace; answers at once."""

    def __init__(self, name: bytes, engine: EmbeddedEngine, table: Table) -> None:
        self._name = name
        self._engine = engine
        self._table = table
        self.get = table.get  # asked most, and nothing has to be added to it

    def set(self, module: bytes, sender: Sender, state: bytes) -> None:
        self._engine.commit(((PUT, self._name, module, sender, state),))

    def set_all(self, sender: Sender, state: bytes) -> int:
        modules = self._table.modules(sender)
        if modules:
            self._engine.commit([(PUT, self._name, module, sender, state) for module in modules])
        return len(modules)

    def compare_and_set(self, module: bytes, sender: Sender, expected: bytes, state: bytes) -> tuple[bool, bytes]:
        previous = self._table.get(module, sender)
        if previous == expected:
            self.set(module, sender, state)
        return previous == expected, previous

    def get_many(self, pairs: Sequence[tuple[bytes, Sender]]) -> list[bytes]:
        get = self._table.get
        return [get(module, sender) for module, sender in pairs]

    def set_many(self, triples: Sequence[tuple[bytes, Sender, bytes]]) -> None:
        if triples:
            self._engine.commit([(PUT, self._name, *triple) for triple in triples])

    def scan(self, cursor: bytes | None, wanted: Filter) -> Page:
        return scan(self._table, cursor, wanted)

    def count(self, module: bytes | None, state: bytes | None) -> Counts:
        return count(self._table, module, state)

    def clear(self) -> None:
        self._engine.commit([(CLEAR, self._name)])
