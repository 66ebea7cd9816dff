"""How both servers keep what they hold, and how each is asked for what a start begins with.

To statestored that is a snapshot, to Redis a rewrite of its AOF, which then begins with an RDB file.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import redis

from benchmarks import processes
from benchmarks.prebuilt import MESSAGEPACK, RESP, Wire
from benchmarks.processes import Server

SNAPSHOT_SECONDS = 180.0

ALWAYS, EVERY_SECOND = "always", "everysec"


@dataclass(frozen=True)
class Kind:
    """A server with its persistence. `start` takes flags, the data directory, and the signal that ends it."""

    name: str
    wire: Wire
    start: Callable[..., AbstractContextManager[Server]]
    journal: Callable[[str], tuple[str, ...]]  # the flags for ALWAYS or EVERY_SECOND
    no_triggers: tuple[str, ...]  # the flags for no snapshot but those that are asked for
    ask_for_snapshot: Callable[[Server], object]
    written: str  # in the log, once it is

    def start_on(self, data: Path) -> AbstractContextManager[Server]:
        """What was answered is on the disk; snapshots come when asked for; in the end it is killed."""
        return self.start((*self.journal(ALWAYS), *self.no_triggers), data, signal.SIGKILL)

    def snapshot(self, server: Server, watch: Callable[[], object] | None = None) -> float:
        """Asks for one and returns, when it is written, how many seconds that took. Calls `watch` again and again."""

        def look() -> float | None:
            if watch is not None:
                watch()
            return time.perf_counter() - started if server.log.read_text().count(self.written) > before else None

        before = server.log.read_text().count(self.written)
        started = time.perf_counter()
        self.ask_for_snapshot(server)
        return server.wait_for(look, SNAPSHOT_SECONDS, "was asked for a snapshot and wrote none")


def _rewrite_aof(server: Server) -> None:
    with redis.Redis(server.host, server.port) as client:
        client.bgrewriteaof()


STATESTORED = Kind(
    name="statestored",
    wire=MESSAGEPACK,
    start=processes.statestored,
    journal=lambda fsync: ("--fsync", fsync),
    no_triggers=("--snapshot-interval", "0", "--snapshot-journal-size", "0"),
    ask_for_snapshot=lambda server: os.kill(server.pid, signal.SIGUSR1),
    written="snapshot written",
)
REDIS = Kind(
    name="Redis",
    wire=RESP,
    start=processes.redis,
    journal=lambda fsync: ("--save", "", "--appendonly", "yes", "--appendfsync", fsync),
    no_triggers=("--auto-aof-rewrite-percentage", "0"),
    ask_for_snapshot=_rewrite_aof,
    written="Background AOF rewrite finished successfully",
)
KINDS = (STATESTORED, REDIS)
