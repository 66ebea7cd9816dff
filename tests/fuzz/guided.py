"""The same with atheris (libFuzzer for Python): inputs that make the code do something new are kept and changed."""

import gc
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tests.fuzz.driver import Run, Target

LONGEST = 2048  # bytes of an input


def fuzz_guided(
    target: Target, count: int, seed: int, say: Callable[[str], None], finish: Callable[[Run], NoReturn]
) -> NoReturn:
    """Ends the process, by `finish`."""
    atheris = _atheris()
    target(b"")  # so that all is loaded that is to be watched
    gc.unfreeze()  # what a start has frozen would not be found
    atheris.instrument_all()
    run = Run(target, count, say)

    def one(data: bytes) -> None:
        run.take(data)
        if not run.wants_more:
            finish(run)

    # Time and memory are watched by the run.
    quiet = ["-timeout=0", "-rss_limit_mb=0", "-print_funcs=0", "-detect_leaks=0"]
    atheris.Setup([sys.argv[0], f"-seed={seed + 1}", f"-max_len={LONGEST}", "-len_control=0", *quiet], one)
    atheris.Fuzz()
    raise AssertionError("it has ended")


def _atheris() -> Any:
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris")
    return atheris
