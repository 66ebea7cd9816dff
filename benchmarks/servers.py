"""statestored and Redis under the same load, round about."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import load, prebuilt, processes
from benchmarks.errors import BenchmarkError
from benchmarks.load import Load
from benchmarks.prebuilt import KEYS, MESSAGEPACK, RESP, STATES, Wire
from benchmarks.processes import Server
from benchmarks.tables import table

PROBES = 100
WARM_UP_SECONDS = 0.3
WHOLE_CORE = 0.9


@dataclass(frozen=True)
class Case:
    operation: str
    pipeline: int

    def __str__(self) -> str:
        pipelined = f", pipelined {self.pipeline}" if self.pipeline > 1 else ""
        return f"{self.operation}, {load.CONNECTIONS} connections{pipelined}"


CASES = (Case("get", 1), Case("set", 1), Case("get", 16), Case("set", 16))


@dataclass
class Contender:
    """A server that holds the keys, the files of requests for it, and where in each of them it stands."""

    server: Server
    wire: Wire
    files: dict[str, Path]
    cursors: dict[str, int] = field(default_factory=lambda: {"get": 0, "set": 0})

    @classmethod
    def prepared(cls, server: Server, wire: Wire, directory: Path) -> Contender:
        files = {
            "get": prebuilt.write(directory / f"{wire.name}.get", prebuilt.gets(wire)),
            "set": prebuilt.write(directory / f"{wire.name}.set", prebuilt.sets(wire)),
        }
        contender = cls(server, wire, files)
        contender._run(Case("set", 1), count=KEYS)
        contender._probe(STATES[0])
        return contender

    def run(self, case: Case, seconds: float) -> Load:
        return self._run(case, seconds=seconds)

    def _run(self, case: Case, *, seconds: float | None = None, count: int | None = None) -> Load:
        result = load.run(
            self.server,
            self.wire,
            self.files[case.operation],
            pipeline=case.pipeline,
            start=self.cursors[case.operation],
            seconds=seconds,
            count=count,
        )
        self.cursors[case.operation] = result.cursor
        return result

    def _probe(self, state: str) -> None:
        """The load only counts answers; that they are the right ones is looked at here, once."""
        with socket.create_connection((self.server.host, self.server.port), timeout=10) as connection:
            for sender in prebuilt.senders()[:PROBES]:
                connection.sendall(self.wire.get(1, sender))
                expected = self.wire.state(1, state)
                # Far too short to come in pieces.
                if (answer := connection.recv(4096)) != expected:
                    raise BenchmarkError(f"{self.server.name} answered {answer!r} instead of {expected!r}")


@dataclass(frozen=True)
class Outcome:
    """The rounds of one case: ours[i] and theirs[i] ran one directly after the other."""

    case: Case
    ours: list[Load]
    theirs: list[Load]

    @property
    def ratio(self) -> float:
        return median(our.rate / their.rate for our, their in zip(self.ours, self.theirs, strict=True))

    @property
    def least_cores(self) -> float:
        return min(_median(runs, lambda run: run.server_cores) for runs in (self.ours, self.theirs))


def measure(rounds: int, seconds: float) -> list[Outcome]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        ours = Contender.prepared(stack.enter_context(processes.statestored()), MESSAGEPACK, directory)
        theirs = Contender.prepared(stack.enter_context(processes.redis()), RESP, directory)
        return [_measure_case(case, ours, theirs, rounds, seconds) for case in CASES]


def _measure_case(case: Case, ours: Contender, theirs: Contender, rounds: int, seconds: float) -> Outcome:
    outcome = Outcome(case, [], [])
    for contender in (ours, theirs):
        contender.run(case, WARM_UP_SECONDS)
    for _ in range(rounds):
        outcome.ours.append(ours.run(case, seconds))
        outcome.theirs.append(theirs.run(case, seconds))
    return outcome


def report(outcomes: list[Outcome]) -> str:
    return "\n\n".join([_rates(outcomes), _latencies(outcomes), *_doubts(outcomes)])


def _doubts(outcomes: list[Outcome]) -> list[str]:
    """Both servers have work all the time: one without a core of its own had to share it with something else."""
    doubtful = [str(each.case) for each in outcomes if each.least_cores < WHOLE_CORE]
    return (
        [f"No whole core for a server, for something else is running here: {'; '.join(doubtful)}."] if doubtful else []
    )


def _rates(outcomes: list[Outcome]) -> str:
    """With the cores in use: where a server fills one and the generator does not, the server was what limited."""
    head = [
        "operations a second",
        "statestored",
        "Redis",
        "ratio",
        "CPU µs each, statestored",
        "Redis",
        "cores in use, statestored + generator",
        "Redis + generator",
    ]
    return table(head, map(_rate_row, outcomes))


def _rate_row(outcome: Outcome) -> list[str]:
    both = (outcome.ours, outcome.theirs)
    return [
        str(outcome.case),
        *(f"{_median(runs, lambda run: run.rate):,.0f}" for runs in both),
        f"{outcome.ratio:.2f}",
        *(f"{_median(runs, lambda run: run.server_cpu_us):.2f}" for runs in both),
        *map(_cores, both),
    ]


def _cores(runs: list[Load]) -> str:
    server, generator = _median(runs, lambda run: run.server_cores), _median(runs, lambda run: run.generator_cores)
    return f"{server:.2f} + {generator:.2f}"


def _latencies(outcomes: list[Outcome]) -> str:
    head = ["latency in ms: p50 / p99 / p99.9", "statestored", "Redis"]
    return table(head, ([str(each.case), _latency(each.ours), _latency(each.theirs)] for each in outcomes))


def _latency(runs: list[Load]) -> str:
    microseconds = (
        _median(runs, value) for value in (lambda run: run.p50_us, lambda run: run.p99_us, lambda run: run.p999_us)
    )
    return " / ".join(f"{each / 1000:.2f}" for each in microseconds)


def _median(runs: list[Load], value: Callable[[Load], float]) -> float:
    return median(map(value, runs))
