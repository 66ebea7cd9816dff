"""How much memory there is."""

import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup/memory.max")  # of the container; "max" where it has no limit of its own


def available() -> int:
    """Bytes that the machine has, or the container may use."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        found = min(found, int(CGROUP.read_text()))
    return found
