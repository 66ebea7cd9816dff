"""`python -m examples.demo`: exits 1 unless every conversation completed."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from examples.demo import report
from examples.demo.conversations import LISTS_EACH
from examples.demo.scenario import Say, run_alone, run_shared


def main() -> int:
    options = _options()
    count = options.conversations
    with tempfile.TemporaryDirectory(prefix="statestored-demo-") as directory:
        shared_directory, alone_directory = Path(directory, "shared"), Path(directory, "alone")
        shared_directory.mkdir()
        alone_directory.mkdir()
        print(f"{count} conversations by mail, each hopping between three Salmon processes\n")
        print("1. The processes share their states through statestored.")
        shared = run_shared(shared_directory, count, options.workers, _stopwatch())
        print("\n2. The same with Salmon's own MemoryStorage in each process.")
        alone = run_alone(alone_directory, count, options.workers, _stopwatch())
    print("\nSide by side", *report.compare(shared, alone), sep="\n")
    print("\nThe final states in statestored", *report.states(shared), sep="\n")
    print("\nThe final states in the three MemoryStorages, added up", *report.states(alone), sep="\n")
    if shared.completed < count:
        print(f"\nFAILED: {count - shared.completed} of {count} conversations did not complete")
        return 1
    print(f"\nWith statestored, {shared.completed} of {count} conversations completed;", end=" ")
    print(f"without it, {alone.completed} of {count}.")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument(
        "--conversations", type=int, default=120, help=f"a multiple of {LISTS_EACH} (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=6, help="mails under way at once (default: %(default)s)")
    options = parser.parse_args()
    if options.conversations < 2 * LISTS_EACH or options.conversations % LISTS_EACH:
        parser.error(f"--conversations must be a multiple of {LISTS_EACH}, and at least {2 * LISTS_EACH}")
    return options


def _stopwatch() -> Say:
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"   {time.monotonic() - start:5.1f} s  {text}", flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
