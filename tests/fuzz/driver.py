"""Runs a target on one input after the other, and watches what it does: failures, time, memory."""

from __future__ import annotations

import gc
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
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
LOOKS = 100  # at the memory
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
    """What came of it so far. slowest: seconds that an input took, and which; sizes: of the process, in bytes."""

    inputs: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)
    slowest: tuple[float, bytes] = (0.0, b"")
    sizes: list[int] = field(default_factory=list)

    @property
    def grown(self) -> int:
        """Bytes. It goes up and down: the least of the last quarter counts, against the most of the second."""
        quarter = len(self.sizes) // 4
        return min(self.sizes[-quarter:]) - max(self.sizes[quarter : 2 * quarter]) if quarter else 0

    def add(self, target: Target, data: bytes) -> None:
        self.inputs += 1
        started = time.process_time()
        try:
            with _broken_off(STUCK):
                target(data)
        except (Exception, Stuck) as error:
            self.note(Fault.of(error, data))
        seconds = time.process_time() - started
        if seconds > self.slowest[0]:
            self.slowest = (seconds, data)
            if seconds > MAX_SECONDS:
                self.note(Fault("slow", f"one input took {seconds:.2f} seconds", data))

    def note(self, fault: Fault) -> None:
        self.faults.setdefault(fault.kind, fault)

    def measure(self) -> None:
        gc.collect()
        self.sizes.append(resident())

    def end(self) -> None:
        if self.grown > MAX_GROWTH:
            self.note(Fault("memory", f"it grew by {self.grown:,} bytes in {self.inputs:,} inputs", b""))


def fuzz(target: Target, inputs: Iterator[bytes], count: int, say: Callable[[str], None]) -> Run:
    """So many inputs, or fewer where there are too many faults."""
    run = Run()
    started = said = time.monotonic()
    for data in inputs:
        if run.inputs >= count or len(run.faults) >= MAX_FAULTS:
            break
        run.add(target, data)
        if run.inputs % max(1, count // LOOKS) == 0:
            run.measure()
        if time.monotonic() - said > 30:
            said = time.monotonic()
            say(f"{run.inputs:,} inputs, {run.inputs / (said - started):,.0f} a second, {len(run.faults)} faults")
    run.end()
    return run


def mutations(random: Random, seeds: Sequence[bytes]) -> Iterator[bytes]:
    """Without end: bytes at random, and seeds of which some has been changed."""
    while True:
        if not seeds or random.random() < 0.5:
            yield random.randbytes(random.randrange(random.choice(SIZES)))
        else:
            yield _mutated(random, random.choice(seeds))


def _mutated(random: Random, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        at, size = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 16))
        match random.randrange(5):
            case 0:
                data[at : at + size] = random.randbytes(size)
            case 1:
                data[at:at] = random.randbytes(size)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[random.randrange(len(data) + 1) :][:size]
            case _:
                data[at : at + 1] = bytes([random.choice((0, 1, 0x7F, 0x80, 0xFF))])
    return bytes(data)


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
