"""The servers that are measured: started on free ports of the loopback, stopped afterwards."""

from __future__ import annotations

import getpass
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.errors import BenchmarkError

LOOPBACK = "127.0.0.1"
START_SECONDS = 15.0
STOP_SECONDS = 15.0
# As Redis, which runs beside it without persistence: nothing is written while it is measured.
NO_SNAPSHOTS = ("--snapshot-interval", "0", "--snapshot-changes", "0")
STATESTORED_FLAGS = ("--listen", f"{LOOPBACK}:0", "--admin-listen", f"{LOOPBACK}:0", *NO_SNAPSHOTS)


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    pid: int
    host: str = LOOPBACK

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far (fields 14 and 15 of proc(5)'s stat)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def redis() -> Iterator[Server]:
    port = _free_port()
    flags = ["--bind", LOOPBACK, "--port", str(port), "--save", "", "--appendonly", "no"]
    with _directory() as directory:
        log = directory / "log"

        def ready() -> int | None:
            return port if "Ready to accept connections" in log.read_text() else None

        with _running("Redis", ["redis-server", *flags, "--dir", str(directory)], log, ready) as server:
            yield server


@contextmanager
def memcached() -> Iterator[Server]:
    # A port of -1 is any free one. As root it wants a user to become, and that one to write the port's file.
    flags = ["-l", LOOPBACK, "-p", "-1", "-U", "0", "-u", getpass.getuser()]
    with _directory() as directory:
        told = directory / "port"
        command = ["env", f"MEMCACHED_PORT_FILENAME={told}", "memcached", *flags]

        def ready() -> int | None:
            return _port(r"^TCP INET: (\d+)$", told) if told.exists() else None

        with _running("memcached", command, directory / "log", ready) as server:
            yield server


@contextmanager
def statestored() -> Iterator[Server]:
    with _directory() as directory:
        log = directory / "log"
        command = [sys.executable, "-m", "statestored", *STATESTORED_FLAGS, "--data-dir", str(directory / "data")]
        with _running("statestored", command, log, lambda: _port(r"^listening on \S+:(\d+)$", log)) as server:
            yield server


@contextmanager
def _running(name: str, command: list[str], log: Path, ready: Callable[[], int | None]) -> Iterator[Server]:
    """Yields once `ready` knows the port. Raises BenchmarkError, with what the server printed."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS
        while (port := ready()) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"{name} did not start: {' '.join(command)}\n{log.read_text()}")
            time.sleep(0.01)
        yield Server(name, port, process.pid)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _port(pattern: str, file: Path) -> int | None:
    found = re.search(pattern, file.read_text(), re.MULTILINE)
    return int(found[1]) if found else None


def _free_port() -> int:
    """For Redis, which cannot choose one itself. Another process may take it first; then Redis says so and ends."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def _directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="statestored-bench-") as name:
        yield Path(name)
