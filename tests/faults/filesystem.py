"""A file system so small that a test can fill it. To mount one takes root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

LEFT_OUT = "TESTS_WITHOUT_MOUNT"  # set where nobody may mount; never where nobody would notice
CHUNK = 2**16


@contextmanager
def small_filesystem(place: Path, size: int) -> Iterator[Path]:
    """`size` in bytes. Whoever has files open in it has to end before this does."""
    if os.environ.get(LEFT_OUT):
        pytest.skip(f"{LEFT_OUT} is set")
    place.mkdir()
    options = f"size={size},mode=700"
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "statestored-test", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert mount.returncode == 0, f"{mount.stderr}run as root, or set {LEFT_OUT}=1 to leave these tests out"
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, *, leave: int = 0) -> Path:
    """Fills the file system with a file, but for so many bytes, about; returns the file, to be removed."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):  # the daemon may take some of it meanwhile
        status = os.statvfs(place)
        free = status.f_bavail * status.f_frsize - leave
        while free > 0:
            free -= file.write(bytes(min(free, CHUNK)))
    return filler
