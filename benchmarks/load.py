"""load.c: compiled when needed, run once for each measurement."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.prebuilt import Wire
from benchmarks.processes import Server

HERE = Path(__file__).parent
SOURCES = (HERE / "load.c", HERE / "answers.h")
BINARY = HERE / ".build" / "load"


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
    max_us: int
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
    connections: int,
    pipeline: int,
    start: int = 0,
    seconds: float | None = None,
    count: int | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Load:
    """Loads the server for so many seconds, or with so many requests. Any error answered is a BenchmarkError.

    `meanwhile` is called once the first requests are on their way; the load ends when it returns, if not before.
    """
    end = ["-n", str(count)] if count is not None else ["-t", str(seconds)]
    flags = ["-c", str(connections), "-p", str(pipeline), "-s", str(start), *end]
    command = [str(compiled()), wire.name, server.host, str(server.port), str(requests), *flags]
    cpu_before = server.cpu_seconds()
    printed = _output(server, command, meanwhile)
    result = Load(**json.loads(printed), server_cpu_seconds=server.cpu_seconds() - cpu_before)
    if result.errors:
        raise BenchmarkError(f"{server.name}: {result.errors} of {result.ops} answers are errors: {result.first_error}")
    return result


def _output(server: Server, command: list[str], meanwhile: Callable[[], object] | None) -> str:
    """The result that load.c prints. Raises BenchmarkError where it prints none."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        try:
            if process.stdout.readline() and meanwhile is not None:
                meanwhile()
                process.send_signal(signal.SIGTERM)
            printed = process.stdout.read()
            # It is at most one line, which cannot have filled the pipe before.
            complaint = process.stderr.read()
        finally:
            process.kill()  # where it has not ended yet
    if not printed:
        raise BenchmarkError(f"{server.name}: {complaint.strip()}")
    return printed
