"""The memory that a server takes, as it grows."""

from __future__ import annotations

import re
import time
from pathlib import Path

SHARE_OF_TIME = 0.1  # that looking takes at most: for a gigabyte a look costs 20 ms, some of it the server's


class Usage:
    """The proportional set size (proc(5)) of a process and its children, in bytes: pages that they share count once."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._next_look = 0.0
        self.peak = 0
        self.look()
        self.first = self.peak

    def look(self) -> None:
        """Does nothing where the last look was just before."""
        started = time.monotonic()
        if started >= self._next_look:
            self.peak = max(self.peak, _of_all(self._pid))
            ended = time.monotonic()
            self._next_look = ended + (ended - started) / SHARE_OF_TIME


def _of_all(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(map(_proportional, [pid, *map(int, children)]))


def _proportional(pid: int) -> int:
    """0 for a process that has just ended."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 if found else 0
