"""Time: a clock that a test turns; and how long a call takes, on a machine that may be busy with something else."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

READ_DEADLINE, WRITE_DEADLINE = 0.4, 0.7  # seconds, of clients whose deadlines are to be seen
TOLERANCE = 0.1  # seconds, as R3 allows
BEAT = 0.02  # seconds that the witness sleeps


class Clock:
    """The fixture `clock` puts it in place of the monotonic one."""

    now = 1000.0


@contextmanager
def takes(seconds: float) -> Iterator[None]:
    """R3: what is done ends when its deadline passes; not before, and at most 0.1 s later."""
    with _within(seconds, seconds + TOLERANCE):
        yield


@contextmanager
def at_once() -> Iterator[None]:
    """What is done waits for no deadline."""
    with within(READ_DEADLINE / 2):
        yield


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done takes no longer."""
    with _within(0.0, seconds):
        yield


@contextmanager
def _within(least: float, most: float) -> Iterator[None]:
    """A thread that only sleeps is the witness of how late the machine is: that much later nobody can be blamed for."""
    over, late = threading.Event(), [0.0]

    def sleep_and_see() -> None:
        slept = time.monotonic()
        while not over.wait(BEAT):
            late[0] += max(time.monotonic() - slept - BEAT, 0.0)
            slept = time.monotonic()

    witness = threading.Thread(target=sleep_and_see, name="test-witness")
    witness.start()
    started = time.monotonic()
    try:
        yield
        took = time.monotonic() - started
    finally:
        over.set()
        witness.join()
    assert least - 0.001 <= took <= most + 2 * late[0]
