"""What stands in for functions and modules of the standard library: clocks, randomness, and `Like`.

Outside a simulated process each function is the real one, so that they can be installed for good.
"""

import os
import random
import time
from types import ModuleType
from typing import Any

from tests.simulation.kernel import World

EPOCH = 1_700_000_000.0  # the wall clock's time at virtual time 0

real_monotonic, real_time, real_clock_gettime, real_sleep = time.monotonic, time.time, time.clock_gettime, time.sleep
real_urandom = os.urandom


class Like:
    """A module in which some names stand for something else."""

    def __init__(self, module: ModuleType, **names: Any) -> None:
        for name in names:
            getattr(module, name)  # raises AttributeError if the module does not have the name
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def install() -> None:
    """Replace the clocks and the source of randomness. To be called before the product is imported."""
    # The attributes of the modules are replaced, because all callers look them up there at each call.
    replaced: list[tuple[Any, str, Any]] = [
        (time, "monotonic", monotonic),
        (time, "time", wall_clock),
        (time, "clock_gettime", clock_gettime),
        (time, "sleep", sleep),
        (os, "urandom", urandom),
        (random, "_urandom", urandom),  # what SystemRandom uses, and `secrets` with it
    ]
    for module, name, function in replaced:
        getattr(module, name)  # raises AttributeError if the name is gone
        setattr(module, name, function)


def monotonic() -> float:
    process = World.kernel.current
    return real_monotonic() if process is None else process.machine.monotonic()


def wall_clock() -> float:
    """`time.time`"""
    process = World.kernel.current
    return real_time() if process is None else EPOCH + process.kernel.now + process.machine.wall_error


def clock_gettime(clock: int) -> float:
    process = World.kernel.current
    if process is None:
        return real_clock_gettime(clock)
    if clock == time.CLOCK_BOOTTIME:
        return process.machine.boottime()
    return wall_clock() if clock == time.CLOCK_REALTIME else process.machine.monotonic()


def sleep(seconds: float) -> None:
    process = World.kernel.current
    if process is None:
        real_sleep(seconds)
    else:
        process.kernel.block(seconds)


def urandom(size: int, /) -> bytes:
    kernel = World.kernel
    return real_urandom(size) if kernel.current is None else kernel.bytes.randbytes(size)
