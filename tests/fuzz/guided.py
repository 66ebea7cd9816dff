"""The same with atheris (libFuzzer for Python): inputs that make the code do something new are kept and changed."""

import gc
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, NoReturn

from tests.fuzz.driver import Run, Target

LONGEST = 2048  # bytes of an input
PACKAGES = ("statestored", "statestore")


def fuzz_guided(
    target: Target, count: int, seed: int, say: Callable[[str], None], finish: Callable[[Run], NoReturn]
) -> NoReturn:
    """Ends the process, by `finish`."""
    atheris = _atheris()
    target(b"")  # so that all is loaded that is to be watched
    for function in _functions():
        atheris.instrument_func(function)
    run = Run(target, count, say)

    def one(data: bytes) -> None:
        run.take(data)
        if not run.wants_more:
            finish(run)

    # Time and memory are watched by the run.
    quiet = ["-verbosity=0", "-timeout=0", "-rss_limit_mb=0", "-print_funcs=0", "-detect_leaks=0"]
    atheris.Setup([sys.argv[0], f"-seed={seed + 1}", f"-max_len={LONGEST}", "-len_control=0", *quiet], one)
    atheris.Fuzz()
    raise AssertionError("it has ended")


def _functions() -> list[FunctionType]:
    """What is watched: ours. With all that is loaded beside it, it would take minutes to begin."""
    gc.unfreeze()  # what a start has frozen would not be found
    return [
        each
        for each in gc.get_objects()
        if isinstance(each, FunctionType) and str(each.__module__).partition(".")[0] in PACKAGES
    ]


def _atheris() -> Any:
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install '.[fuzz]' (it is for Linux on x86-64)")
    return atheris
