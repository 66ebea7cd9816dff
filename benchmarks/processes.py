"""The servers that are measured: started on free ports of the loopback, stopped afterwards."""

from __future__ import annotations

import getpass
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from benchmarks.errors import BenchmarkError

LOOPBACK = "127.0.0.1"
START_SECONDS = 180.0  # it may have millions of entries to load
STOP_SECONDS = 15.0
LOOK_EVERY = 0.005  # seconds, at what is waited for; times are measured no finer than that
# As memory only as each of them can be: what is measured waits for no disk.
REDIS_IN_MEMORY = ("--save", "", "--appendonly", "no")
STATESTORED_IN_MEMORY = ("--fsync", "never", "--snapshot-interval", "0", "--snapshot-journal-size", "0")

T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """A server that is ready. `started` is when its process was, on the clock of time.perf_counter."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path  # what it prints
    started: float
    host: str = LOOPBACK

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far (fields 14 and 15 of proc(5)'s stat)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_for(self, look: Callable[[], T | None], seconds: float, complaint: str) -> T:
        """What `look` returns once that is not None. Raises BenchmarkError where it stays so, or the server ends."""
        return _wait_for(look, self.process, self.log, seconds, f"{self.name} {complaint}")


@contextmanager
def redis(
    flags: Sequence[str] = REDIS_IN_MEMORY,
    data: Path | None = None,
    stop: signal.Signals = signal.SIGTERM,
    *,
    tls: bool = False,
) -> Iterator[Server]:
    """Keeps its files in `data`, a directory that is there; without it, in one that goes with the server."""
    port = _free_port()
    ports = ["--port", "0", "--tls-port", str(port)] if tls else ["--port", str(port)]
    with _directory() as directory:
        log = directory / "log"
        command = ["redis-server", "--bind", LOOPBACK, *ports, "--dir", str(data or directory), *flags]

        def ready() -> int | None:
            return port if "Ready to accept connections" in log.read_text() else None

        with _running("Redis", command, log, ready, stop) as server:
            yield server


@contextmanager
def memcached(flags: Sequence[str] = (), path: Path | None = None) -> Iterator[Server]:
    """On a free port, or on the unix socket `path`."""
    # A port of -1 is any free one. As root it wants a user to become, and that one to write the port's file.
    where = ["-l", LOOPBACK, "-p", "-1", "-U", "0"] if path is None else ["-s", str(path)]
    with _directory() as directory:
        told = directory / "port"
        command = ["env", f"MEMCACHED_PORT_FILENAME={told}", "memcached", *where, "-u", getpass.getuser(), *flags]

        def ready() -> int | None:
            if path is not None:
                return 0 if path.exists() else None
            return _port(r"^TCP INET: (\d+)$", told) if told.exists() else None

        with _running("memcached", command, directory / "log", ready) as server:
            yield server


@contextmanager
def statestored(
    flags: Sequence[str] = STATESTORED_IN_MEMORY, data: Path | None = None, stop: signal.Signals = signal.SIGTERM
) -> Iterator[Server]:
    """Keeps its files in `data`; without it, in a directory that goes with the server."""
    with _directory() as directory:
        log = directory / "log"
        addresses = ["--listen", f"{LOOPBACK}:0", "--admin-listen", f"{LOOPBACK}:0"]
        arguments = [*addresses, "--data-dir", str(data or directory / "data"), *flags]
        command = [sys.executable, "-m", "statestored", *arguments]

        def ready() -> int | None:
            return _port(r"^listening on \S+:(\d+)$", log)

        with _running("statestored", command, log, ready, stop) as server:
            yield server


@contextmanager
def _running(
    name: str,
    command: list[str],
    log: Path,
    ready: Callable[[], int | None],
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[Server]:
    """Yields once `ready` knows the port. Raises BenchmarkError, with what the server printed."""
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        complaint = f"{name} did not start: {' '.join(command)}"
        port = _wait_for(ready, process, log, START_SECONDS, complaint)
        yield Server(name, port, process, log, started)
    finally:
        _stop(process, stop)


def _wait_for(
    look: Callable[[], T | None],
    process: subprocess.Popen[bytes],
    log: Path,
    seconds: float,
    complaint: str,
) -> T:
    deadline = time.monotonic() + seconds
    while (found := look()) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchmarkError(f"{complaint}\n{log.read_text()}")
        time.sleep(LOOK_EVERY)
    return found


def _stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    process.send_signal(how)
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
