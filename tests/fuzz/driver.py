"""Runs a target on one input after the other, and watches what it does: failures, time, memory."""

from __future__ import annotations

import gc
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import NamedTuple

Target = Callable[[bytes], None]

MAX_SECONDS = 1.0  # of the process's own time, for one input
STUCK = 20.0  # seconds by the clock, after which it is broken off
MAX_GROWTH = 10 * 2**20  # bytes
LOOKS = 100  # at the memory, at most
LEAST_BETWEEN = 50  # inputs; a look takes as long as several of them
SAY_EVERY = 30.0  # seconds
MAX_FAULTS = 10  # of different kinds; more are not looked for
SIZES = (4, 16, 64, 256, 1024)  # bytes of an input, at most


class Stuck(BaseException):
    """Not an Exception, so that what is watched does not take it for one of its own."""


class Fault(NamedTuple):
    """kind: by which two of them are told apart."""

    kind: str
    said: str
    data: bytes

    @classmethod
    def of(cls, error: BaseException, data: bytes) -> Fault:
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(innermost.filename).name}:{innermost.lineno}"
        return cls(kind, "".join(traceback.format_exception(error)), data)


@dataclass
class Run:
    """Of a target, on `count` inputs, or fewer where there are too many faults.

    slowest: seconds that an input took, and which; sizes: of the process, in bytes.
    """

    target: Target
    count: int
    say: Callable[[str], None]
    inputs: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)
    slowest: tuple[float, bytes] = (0.0, b"")
    sizes: list[int] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    @property
    def wants_more(self) -> bool:
        return self.inputs < self.count and len(self.faults) < MAX_FAULTS

    @property
    def grown(self) -> int:
        """Bytes. It goes up and down: the least of the last quarter counts, against the most of the second."""
        quarter = len(self.sizes) // 4
        return min(self.sizes[-quarter:]) - max(self.sizes[quarter : 2 * quarter]) if quarter else 0

    def take(self, data: bytes) -> None:
        """One input."""
        started = time.process_time()
        try:
            with _broken_off(STUCK):
                self.target(data)
        except (Exception, Stuck) as error:
            self._note(Fault.of(error, data))
        seconds = time.process_time() - started
        if seconds > self.slowest[0]:
            self.slowest = (seconds, data)
            if seconds > MAX_SECONDS:
                self._note(Fault("slow", f"one input took {seconds:.2f} seconds", data))
        self.inputs += 1
        self._look()

    def _look(self) -> None:
        if self.inputs % max(LEAST_BETWEEN, self.count // LOOKS) == 0:
            gc.unfreeze()  # a start freezes what it has loaded; here it is only one of many
            gc.collect()
            self.sizes.append(resident())
        if self.inputs == self.count and self.grown > MAX_GROWTH:
            self._note(Fault("memory", f"it grew by {self.grown:,} bytes in {self.inputs:,} inputs", b""))
        now = time.monotonic()
        if now - self._said > SAY_EVERY:
            self._said, rate = now, self.inputs / (now - self.started)
            self.say(f"{self.inputs:,} inputs, {rate:,.0f} a second, {len(self.faults)} faults")

    def _note(self, fault: Fault) -> None:
        self.faults.setdefault(fault.kind, fault)


def fuzz(target: Target, inputs: Iterator[bytes], count: int, say: Callable[[str], None]) -> Run:
    run = Run(target, count, say)
    while run.wants_more:
        run.take(next(inputs))
    return run


def at_random(random: Random) -> Iterator[bytes]:
    """Without end. They are choices, so that none is worse than another."""
    while True:
        yield random.randbytes(random.randrange(random.choice(SIZES)))


def resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@contextmanager
def _broken_off(seconds: float) -> Iterator[None]:
    """Raises Stuck where it takes longer."""
    before = signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _give_up(_signum: int, _frame: FrameType | None) -> None:
    raise Stuck("it takes too long")
