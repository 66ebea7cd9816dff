"""What the benchmarks run on: a line for beneath the tables, and what is missing here."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile

from benchmarks.errors import BenchmarkError

# Command -> Debian package; install.sh installs the same.
COMMANDS = {
    "redis-server": "redis-server",
    "memcached": "memcached",
    "gcc": "gcc libc6-dev",
    "openssl": "openssl",
}
# Module -> package on PyPI. redis-py works without hiredis, but is not what it could be.
MODULES = {
    "statestored": "statestored[server]",
    "redis": "redis",
    "hiredis": "hiredis",
    "pymemcache": "pymemcache",
    "salmon": "salmon-mail",
}
SYNCS = 100
APPENDED = 100  # bytes: about what a journal gets for one set


def missing() -> list[str]:
    """A line for each thing that is not here, with the command that brings it."""
    commands = [
        f"{command} is missing: apt-get install {package}"
        for command, package in COMMANDS.items()
        if shutil.which(command) is None
    ]
    modules = [
        f"the Python module {module} is missing: pip install '{package}'"
        for module, package in MODULES.items()
        if find_spec(module) is None
    ]
    return commands + modules


def description() -> str:
    versions = [f"Redis {_version('redis-server')}", f"memcached {_version('memcached')}"]
    system = [f"{platform.system()} {platform.release()}", f"Python {platform.python_version()}"]
    return ", ".join([_processor(), f"{os.cpu_count()} cores", *system, *versions])


@contextmanager
def on_core(number: int) -> Iterator[None]:
    """This thread, and what it starts meanwhile: a call takes one time or three times as long, depending on where the
    system happens to put client and server.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def disk(directory: Path) -> str:
    """The file system's type, and what a sync costs there. Raises BenchmarkError where nothing is kept."""
    found = subprocess.run(["df", "--output=fstype", directory], capture_output=True, text=True, check=True)
    type_ = found.stdout.split()[-1]
    if type_ in ("tmpfs", "ramfs"):
        raise BenchmarkError(f"{directory} is in memory ({type_}): name a directory on a disk with --dir")
    return f"{type_}, where to append {APPENDED} bytes and sync takes {_sync_seconds(directory) * 1000:.2f} ms"


def _sync_seconds(directory: Path) -> float:
    with TemporaryFile(dir=directory, buffering=0) as file:
        return median(_append_and_sync(file.fileno()) for _ in range(SYNCS))


def _append_and_sync(fd: int) -> float:
    started = time.perf_counter()
    os.write(fd, bytes(APPENDED))
    os.fdatasync(fd)
    return time.perf_counter() - started


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _version(command: str) -> str:
    printed = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)+", printed)
    return found[0] if found else "of unknown version"
