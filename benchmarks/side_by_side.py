"""Two servers under the same load, round about, and the tables of what that gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import load, prebuilt
from benchmarks.asking import connected
from benchmarks.load import Load
from benchmarks.prebuilt import KEYS, STATES, Wire, senders
from benchmarks.processes import Server
from benchmarks.tables import table

PROBES = 100
WARM_UP_SECONDS = 0.3


@dataclass(frozen=True)
class Case:
    operation: str
    connections: int = 50
    pipeline: int = 1

    def __str__(self) -> str:
        plural = "s" if self.connections > 1 else ""
        pipelined = f", pipelined {self.pipeline}" if self.pipeline > 1 else ""
        return f"{self.operation}, {self.connections} connection{plural}{pipelined}"


@dataclass
class Contender:
    """A server that holds the keys, the files of requests for it, and where in each of them it stands."""

    server: Server
    wire: Wire
    files: dict[str, Path]
    cursors: dict[str, int] = field(default_factory=lambda: {"get": 0, "set": 0})

    @classmethod
    def of(cls, server: Server, wire: Wire, keys: Sequence[str], directory: Path) -> Contender:
        """Where the server has the keys already. The files are written into the directory."""
        files = {
            "get": prebuilt.write(directory / f"{wire.name}.get", prebuilt.gets(wire, keys)),
            "set": prebuilt.write(directory / f"{wire.name}.set", prebuilt.sets(wire, keys)),
        }
        return cls(server, wire, files)

    @classmethod
    def prepared(cls, server: Server, wire: Wire, directory: Path) -> Contender:
        contender = cls.of(server, wire, senders(), directory)
        contender._run(Case("set"), count=KEYS)
        with connected(server, wire) as connection:
            for sender in senders()[:PROBES]:
                connection.check(sender, STATES[0])
        return contender

    def run(self, case: Case, seconds: float, meanwhile: Callable[[], object] | None = None) -> Load:
        """For so many seconds, or until `meanwhile` returns."""
        return self._run(case, seconds=seconds, meanwhile=meanwhile)

    def _run(
        self,
        case: Case,
        *,
        seconds: float | None = None,
        count: int | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Load:
        result = load.run(
            self.server,
            self.wire,
            self.files[case.operation],
            connections=case.connections,
            pipeline=case.pipeline,
            start=self.cursors[case.operation],
            seconds=seconds,
            count=count,
            meanwhile=meanwhile,
        )
        self.cursors[case.operation] = result.cursor
        return result


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


def measure_case(case: Case, ours: Contender, theirs: Contender, rounds: int, seconds: float) -> Outcome:
    outcome = Outcome(case, [], [])
    for contender in (ours, theirs):
        contender.run(case, WARM_UP_SECONDS)
    for _ in range(rounds):
        outcome.ours.append(ours.run(case, seconds))
        outcome.theirs.append(theirs.run(case, seconds))
    return outcome


def rates(outcomes: Iterable[Outcome]) -> str:
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


def latencies(outcomes: Iterable[Outcome]) -> str:
    head = ["latency in ms: p50 / p99 / p99.9", "statestored", "Redis"]
    return table(head, ([str(each.case), latency(each.ours), latency(each.theirs)] for each in outcomes))


def latency(runs: list[Load]) -> str:
    microseconds = (
        _median(runs, value) for value in (lambda run: run.p50_us, lambda run: run.p99_us, lambda run: run.p999_us)
    )
    return " / ".join(f"{each / 1000:.2f}" for each in microseconds)


def _median(runs: list[Load], value: Callable[[Load], float]) -> float:
    return median(map(value, runs))
