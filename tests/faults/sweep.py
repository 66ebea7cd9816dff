"""A daemon that is killed at every call that touches its data directory, one call for each of its lives.

A first life, from which nothing is taken, tells which calls there are.
"""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM, SIGUSR1
from typing import NamedTuple

from statestore.base import Pair
from statestored.datadir import SEGMENT
from tests.daemon import Daemon, NotListening
from tests.faults.strace import CALLS, Call, Strace, Trace
from tests.faults.workload import MODULE, NAMESPACE, Gone, Workload, is_marked, newest_segment
from tests.server.waiting import wait_until
from tests.torture.pipeline import connect

ANY_PORT = "127.0.0.1:0"
WORKERS = 2
ATTEMPTS = 3
HIGHEST = 12  # number of a file in a data directory here
DIRECTORY = "."
_KINDS = {DIRECTORY: "directory", "lock": "lock", "store.json": "identity"}  # others say it by their suffix
KILLED = "killed by SIGKILL"

# Segments that one large batch fills, and that are removed in several steps.
SEGMENT_SIZE, REMOVED_AT_ONCE = 4096, 2048
SMALL_SEGMENTS = (
    sys.executable,
    "-c",
    f"from statestored import files, journal; journal.SEGMENT_SIZE = {SEGMENT_SIZE}; "
    f"files.REMOVED_AT_ONCE = {REMOVED_AT_ONCE}; from statestored.__main__ import main; main()",
)


class Prepared(NamedTuple):
    """A data directory to begin with, what is stored in it, and the number of the next call."""

    data_dir: Path
    state: Mapping[Pair, str]
    number: int


@dataclass
class Life:
    """Of one daemon, under strace or not. Each step is a phase."""

    directory: Path
    fsync: str
    prepared: Prepared | None = None
    daemon: Daemon = field(init=False)
    workload: Workload = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self.daemon = Daemon(
            self.directory, f"--fsync={self.fsync}", "--snapshot-interval=0", "--snapshot-journal-size=0"
        )
        self.daemon.program = SMALL_SEGMENTS
        self.workload = Workload()
        if self.prepared is not None:
            shutil.copytree(self.prepared.data_dir, self.daemon.data_dir)
            self.workload = Workload(self.prepared.state, self.prepared.number)
        self._begun: list[tuple[float, str]] = []
        self._steps: dict[str, Callable[[], None]] = {
            "start": self._start,
            "write": self._write,
            "idle": self._idle,
            "rotate": self._rotate,
            "snapshot": self._snapshot,
            "stop": self._stop,
        }

    def run(self, *phases: str) -> None:
        """Up to the last of them, or to the daemon's end, if that comes before."""
        with suppress(NotListening, Gone):
            for phase in phases:
                self._begun.append((time.time(), phase))
                self._steps[phase]()
            return
        self.daemon.wait()

    def phase_at(self, moment: float) -> str:
        """`moment` in seconds since 1970."""
        return [phase for begun, phase in self._begun if begun <= moment][-1]

    def end(self) -> None:
        """Without any order."""
        self.workload.close()
        self.daemon.kill()

    def close(self) -> None:
        """Nothing can follow."""
        self.workload.close()
        self.daemon.close()

    def restart(self) -> list[str]:
        """What is wrong afterwards."""
        self.daemon.wrapper, self.daemon.address = (), ANY_PORT
        try:
            self.daemon.start()
        except NotListening as error:
            return [str(error)]
        faults = list(map(str, self.workload.verdict(self.daemon.unix_address)))
        with connect(self.daemon.unix_address, NAMESPACE) as client:
            client.ask("set", MODULE, "late", "value")
            assert client.ask("get", MODULE, "late") == "value"
        self.end()
        return faults

    def fill_segment(self) -> None:
        senders = [f"large{number}" for number in range(6)]
        self.workload.write(self.workload.set_many(*senders, padding=SEGMENT_SIZE // len(senders)))

    def _start(self) -> None:
        self.daemon.start()
        self.workload.connect(self.daemon.unix_address)

    def _write(self) -> None:
        new = self.workload
        new.write(new.set("ann"))
        new.write(new.set_many("ann", "ben", "cid"))
        new.write(*(new.set(f"user{number}") for number in range(6)), new.remove("user1"), new.set("ann"))

    def _idle(self) -> None:
        """Until the last batch is marked as durable."""
        wait_until(lambda: is_marked(self.daemon.data_dir) or self._has_ended())
        self.workload.ask("ping")

    def _rotate(self) -> None:
        data_dir = self.daemon.data_dir
        segment = newest_segment(data_dir)
        self.fill_segment()
        wait_until(lambda: newest_segment(data_dir) != segment or self._has_ended())
        self.workload.write(self.workload.set("ben"))

    def _snapshot(self) -> None:
        new = self.workload
        new.write(new.set("cid"))
        before = self._last_snapshot()
        self.daemon.send_signal(SIGUSR1)
        new.write(new.set("ann"), new.set_many("ben", "cid"))
        wait_until(lambda: self._last_snapshot() != before)

    def _stop(self) -> None:
        self.workload.send(self.workload.set("ann"))
        self.daemon.send_signal(SIGTERM)
        with suppress(Gone):
            self.workload.take_answers()
        self.daemon.wait()

    def _last_snapshot(self) -> float:
        info = self.workload.ask("info")
        assert isinstance(info, dict)
        assert info["snapshot_failures"] == 0
        return float(info["last_snapshot_time"])

    def _has_ended(self) -> bool:
        assert self.daemon.process is not None
        return self.daemon.process.poll() is not None


class Point(NamedTuple):
    """The Nth call of this name that a thread, whichever, makes on a file of this name."""

    file: str
    name: str
    number: int


class Place(NamedTuple):
    """Where in a daemon's life a call is made, by which thread, and what it touches."""

    phase: str
    thread: str
    call: str
    file: str


@dataclass(frozen=True)
class Scenario:
    """A start, and what the daemon lives through afterwards. It is killed there; where that is nothing, in the start.

    file: only at calls that touch it.
    """

    fsync: str
    life: tuple[str, ...]
    prepared: Prepared | None = None
    file: str | None = None

    @property
    def phases(self) -> tuple[str, ...]:
        return ("start", *(self.life or ("write", "stop")))

    def sweeps(self, phase: str, file: str) -> bool:
        return phase in (self.life or ("start",)) and self.file in (None, file)


@dataclass(frozen=True)
class Outcome:
    """place: of the call that was hit; None where there were fewer of them this time."""

    point: Point
    place: Place | None
    faults: list[str]


def sweep(directory: Path, scenario: Scenario, wanted: set[Place]) -> list[Outcome]:
    """Kills at every point, and again where a wanted place was missed: on a busy machine the calls are others."""
    directory.mkdir()
    outcomes: list[Outcome] = []
    for attempt in range(ATTEMPTS):
        missing = wanted - {outcome.place for outcome in outcomes}
        if attempt and not missing:
            break
        calibrated = calibrate(directory / f"first{attempt}", scenario)
        points = set(calibrated)
        if attempt:
            near = [point for point, places in calibrated.items() if places & missing]
            points = {point._replace(number=max(1, point.number + by)) for point in near for by in (-1, 0, 1)}
        with ThreadPoolExecutor(WORKERS) as workers:
            running = [
                workers.submit(_kill_at, directory / f"{attempt}-{number}", scenario, point)
                for number, point in enumerate(sorted(points))
            ]
            outcomes += [future.result() for future in running]
    return outcomes


def calibrate(directory: Path, scenario: Scenario) -> dict[Point, set[Place]]:
    """All points of the phases that are swept, and where they are: it may be in several threads."""
    with closing(Life(directory, scenario.fsync, scenario.prepared)) as life:
        trace = _run(life, scenario, all_files(life.daemon.data_dir), CALLS)
    counts: Counter[tuple[int, str, str]] = Counter()
    points: dict[Point, set[Place]] = {}
    for call in trace.calls:
        file = _file(life, call)
        counts[call.thread, file, call.name] += 1
        if call.name == "openat" and file == DIRECTORY:
            continue  # to be read, or synced: it changes nothing, and there are many
        if scenario.sweeps(life.phase_at(call.time), file):
            point = Point(file, call.name, counts[call.thread, file, call.name])
            points.setdefault(point, set()).add(_place(life, trace, call))
    return points


def all_files(data_dir: Path) -> list[Path]:
    numbered = [f"{number:08}.{kind}" for number in range(1, HIGHEST + 1) for kind in ("journal", "snapshot")]
    written = [name + temporary for name in ("store.json", *numbered) for temporary in ("", ".tmp")]
    return [data_dir / name for name in (DIRECTORY, "lock", *written)]


def _kill_at(directory: Path, scenario: Scenario, point: Point) -> Outcome:
    with closing(Life(directory, scenario.fsync, scenario.prepared)) as life:
        file = life.daemon.data_dir / point.file
        trace = _run(life, scenario, [file], point.name, f"{point.name}:signal=KILL:when={point.number}")
        hit = _hit(trace, point)
        outcome = Outcome(point, hit and _place(life, trace, hit), life.restart())
    if not outcome.faults:
        shutil.rmtree(directory)
    return outcome


def _run(life: Life, scenario: Scenario, files: list[Path], calls: str, tamper: str | None = None) -> Trace:
    strace = Strace(life.directory / "trace", files, calls, tamper)
    life.daemon.wrapper = strace.command()
    life.run(*scenario.phases)
    life.end()
    return strace.trace()


def _hit(trace: Trace, point: Point) -> Call | None:
    """The call before which the daemon was killed."""
    counts: Counter[int] = Counter()
    for call in trace.calls:
        counts[call.thread] += 1
        if counts[call.thread] == point.number:
            assert (call.result, trace.how) == ("?", KILLED)
            return call
    return None


def _place(life: Life, trace: Trace, call: Call) -> Place:
    file = _file(life, call)
    kind = _KINDS.get(file.removesuffix(".tmp")) or file.split(".")[1]
    return Place(life.phase_at(call.time), _thread(life, trace, call, kind), call.kind, kind)


def _thread(life: Life, trace: Trace, call: Call, kind: str) -> str:
    """The executor's threads open the directory, make snapshots, and remove what those have made needless."""
    if call.thread == trace.pid:
        return "loop"
    if kind in ("lock", "identity", "snapshot") or call.kind == "unlink" or _is_removal(life, call):
        return "executor"
    others = [other for other in trace.calls if other.thread != trace.pid]
    writing = [other for other in others if other.kind in ("pwrite64", "fdatasync") and SEGMENT in other.path.name]
    return "journal" if call.thread == (writing or others)[0].thread else "executor"


def _is_removal(life: Life, call: Call) -> bool:
    """Whether what was there before the life loses its name, or has lost it."""
    was_there = life.prepared is not None and (life.prepared.data_dir / _file(life, call).removesuffix(".tmp")).exists()
    return was_there and (call.kind == "rename" or call.path.suffix == ".tmp")


def _file(life: Life, call: Call) -> str:
    """As in Point."""
    return str(call.path.relative_to(life.daemon.data_dir))
