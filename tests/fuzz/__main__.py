"""`python -m tests.fuzz TARGET`: exits 1 where an input was found that makes it fail, and says which."""

import argparse
import logging
import os
import resource
import subprocess
import sys
import time
from functools import partial
from random import Random
from typing import NoReturn

import structlog

from tests.command import add_seed, say
from tests.fuzz.driver import Run, at_random, fuzz
from tests.fuzz.guided import fuzz_guided
from tests.fuzz.targets import TARGETS

MAX_MEMORY = 2**31  # bytes of addresses: what would take all that there is fails instead


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    if options.replay is not None:
        TARGETS[options.targets[0]](bytes.fromhex(options.replay))
        say("nothing is wrong with it")
        return 0
    failed = False
    names = options.targets or list(TARGETS)
    if options.guided and len(names) > 1:
        codes = [_guided_apart(name, options) for name in names]
        return int(any(codes))
    for name in names:
        more = " --guided" if options.guided else ""
        say(f"python -m tests.fuzz {name} --inputs {options.inputs} --seed {options.seed}{more}")
        if options.guided:
            fuzz_guided(TARGETS[name], options.inputs, options.seed, say, partial(_finish, name))
        run = fuzz(TARGETS[name], at_random(Random(f"{options.seed}/{name}")), options.inputs, say)
        say(*_summary(name, run))
        failed = failed or bool(run.faults)
    return int(failed)


def _guided_apart(name: str, options: argparse.Namespace) -> int:
    """In a process of its own, which that ends; its exit code."""
    arguments = (name, "--guided", f"--inputs={options.inputs}", f"--seed={options.seed}")
    return subprocess.run([sys.executable, "-m", "tests.fuzz", *arguments], check=False).returncode


def _finish(name: str, run: Run) -> NoReturn:
    """The fuzzer that is guided never returns."""
    say(*_summary(name, run))
    os._exit(int(bool(run.faults)))


def _summary(name: str, run: Run) -> list[str]:
    slowest, _ = run.slowest
    lines = [
        f"{name}: {run.inputs:,} inputs in {time.monotonic() - run.started:,.0f} s, {len(run.faults)} faults; "
        f"the slowest took {slowest * 1000:.0f} ms, memory grew by {run.grown / 2**20:.1f} MiB"
    ]
    for fault in run.faults.values():
        lines += ["", f"FAILED: {fault.kind}", fault.said.rstrip()]
        lines.append(f"again: python -m tests.fuzz {name} --replay {fault.data.hex()}")
    return lines


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--inputs", type=int, default=10_000, help="for each of them (default: %(default)s)")
    add_seed(parser)
    parser.add_argument("--guided", action="store_true", help="by what the code does with them; needs atheris")
    parser.add_argument("--replay", metavar="HEX", help="this input alone")
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    if options.replay is not None and len(options.targets) != 1:
        parser.error("--replay is for one target")
    return options


if __name__ == "__main__":
    sys.exit(main())
