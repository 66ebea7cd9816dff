"""How much memory there is, and how it goes back to the system."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")  # of version 2; in a container its own group is the root of what it sees
OWN_CGROUP = Path("/proc/self/cgroup")


def available() -> int:
    """Bytes that the machine has, or that the container, the systemd unit, or a group around them may use."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = CGROUPS / _own_cgroup()
    for each in (group, *group.parents):
        with suppress(OSError, ValueError):  # it has no limit of its own: "max", or no such file
            found = min(found, int((each / "memory.max").read_text()))
        if each == CGROUPS:
            break
    return found


def _own_cgroup() -> str:
    """Its path below the root; empty for the root itself, and where there are no groups of version 2."""
    with suppress(OSError):
        for line in OWN_CGROUP.read_text().splitlines():
            if line.startswith("0::/") and ".." not in line:
                return line.removeprefix("0::/")
    return ""


M_MMAP_THRESHOLD = -3
OF_ITS_OWN = 2**16  # bytes: the table of a full bucket is larger


def give_back_large_blocks() -> None:
    """What was a buffer of a client's, or a bucket, is the system's again when it is freed, and not with many at once.

    Without this glibc, once a large block was freed, puts all others among the small ones, where they leave holes:
    after clients with half a megabyte each it kept three times what they had. Other libraries do not need it.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, OF_ITS_OWN)
