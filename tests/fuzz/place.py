"""Where a target has its files: in memory, where the system has a file system there."""

import atexit
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")


def place() -> Path:
    """A new directory, which goes when the process ends."""
    made = Path(tempfile.mkdtemp(prefix="statestored-fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
