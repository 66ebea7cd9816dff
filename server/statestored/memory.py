"""How much memory there is, and how it goes back to the system."""

import ctypes
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


M_MMAP_THRESHOLD = -3
OF_ITS_OWN = 2**17  # bytes


def give_back_large_blocks() -> None:
    """What was a buffer of a client's is the system's again when it is freed.

    Without this glibc, once a large block was freed, puts all others among the small ones, where they leave holes:
    after clients with half a megabyte each it kept three times what they had. Other libraries do not need it.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, OF_ITS_OWN)
