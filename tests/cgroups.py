"""A real control group that limits the memory of the processes in it, where the machine lets us make one."""

import os
import re
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

MOUNTS = Path("/proc/self/mountinfo")
LIMITS = {1: "memory.limit_in_bytes", 2: "memory.max"}
_numbers = count(1)


class Group:
    """Of the version that the machine has; within another one, or at the top. The test is skipped if it cannot be made.

    It must be empty when it ends.
    """

    def __init__(self, *, limit: int = 0, within: "Group | None" = None) -> None:
        around, self._version = _top() if within is None else (within.path, within._version)
        self.path = around / f"statestored-test-{os.getpid()}-{next(_numbers)}"
        try:
            self.path.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made in {around}: {error}")
        if limit:
            self.limit(limit)
        if self._version == 2:
            with suppress(OSError):  # for groups within this one
                (self.path / "cgroup.subtree_control").write_text("+memory")

    def limit(self, size: int) -> None:
        (self.path / LIMITS[self._version]).write_text(str(size))

    def join(self) -> None:
        """This process, which is about to become another program, is in it from now on."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.path.rmdir()


def _top() -> tuple[Path, int]:
    """The outermost group that we see of the hierarchy that limits memory, and its version."""
    mounts = MOUNTS.read_text() if MOUNTS.exists() else ""
    if found := re.search(r"^\S+ \S+ \S+ \S+ (\S+) .* - cgroup \S+ \S*\bmemory\b", mounts, re.MULTILINE):
        return Path(found[1]), 1
    if found := re.search(r"^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 ", mounts, re.MULTILINE):
        path = Path(found[1])
        controllers = path / "cgroup.subtree_control"
        if controllers.exists() and "memory" in controllers.read_text().split():
            return path, 2
    pytest.skip("no hierarchy of control groups here limits memory")
