"""load.c: compiled when needed, run once for each measurement."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.prebuilt import Wire
from benchmarks.processes import Server

HERE = Path(__file__).parent
SOURCES = (HERE / "load.c", HERE / "answers.h")
BINARY = HERE / ".build" / "load"
CONNECTIONS = 50


@dataclass(frozen=True)
class Load:
    """What one run saw. `cursor` is where in the file of requests the next run should start."""

    ops: int
    seconds: float
    errors: int
    first_error: str
    p50_us: int
    p99_us: int
    p999_us: int
    cpu_seconds: float  # the generator's own
    cursor: int
    server_cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.ops / self.seconds

    @property
    def server_cpu_us(self) -> float:
        return self.server_cpu_seconds / self.ops * 1e6

    @property
    def server_cores(self) -> float:
        return self.server_cpu_seconds / self.seconds

    @property
    def generator_cores(self) -> float:
        """Near 1, and the server's not, it is the generator that was measured."""
        return self.cpu_seconds / self.seconds


@cache
def compiled() -> Path:
    if not BINARY.exists() or BINARY.stat().st_mtime < max(source.stat().st_mtime for source in SOURCES):
        BINARY.parent.mkdir(exist_ok=True)
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-std=c11", "-o", BINARY, SOURCES[0]], check=True)
    return BINARY


def run(
    server: Server,
    wire: Wire,
    requests: Path,
    *,
    pipeline: int,
    start: int = 0,
    seconds: float | None = None,
    count: int | None = None,
) -> Load:
    """Loads the server for so many seconds, or with so many requests. Any error answered is a BenchmarkError."""
    end = ["-n", str(count)] if count is not None else ["-t", str(seconds)]
    flags = ["-c", str(CONNECTIONS), "-p", str(pipeline), "-s", str(start), *end]
    command = [str(compiled()), wire.name, server.host, str(server.port), str(requests), *flags]
    cpu_before = server.cpu_seconds()
    finished = subprocess.run(command, capture_output=True, text=True)
    server_cpu = server.cpu_seconds() - cpu_before
    if not finished.stdout:
        raise BenchmarkError(f"{server.name}: {finished.stderr.strip()}")
    result = Load(**json.loads(finished.stdout), server_cpu_seconds=server_cpu)
    if result.errors:
        raise BenchmarkError(f"{server.name}: {result.errors} of {result.ops} answers are errors: {result.first_error}")
    return result
