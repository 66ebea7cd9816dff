"""`python -m tests.mail`: exits 1 where anything was lost or handled twice, and keeps the directory then."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.command import add_seed, say
from tests.mail.run import Outcome, run_behind_postfix, run_with_kills


def main() -> int:
    options = _options()
    directory = Path(tempfile.mkdtemp(prefix="statestored-mail-"))
    count, every, seed, outage = options.conversations, options.every, options.seed, options.outage
    say(f"python -m tests.mail --conversations {count} --every {every} --outage {outage:g} --seed {seed}")

    def take(name: str, run: Callable[[Path], Outcome]) -> list[str]:
        """All that went wrong."""
        (directory / name).mkdir()
        started = time.monotonic()
        outcome = run(directory / name)
        say(f"{name}: {_summary(outcome)}, {time.monotonic() - started:.0f} seconds")
        return outcome.faults

    faults = take("by LMTP", lambda place: run_with_kills(place, count, every, seed))
    faults += take("behind Postfix", lambda place: run_behind_postfix(place, count, every, seed, outage))
    if faults:
        say(f"FAILED, seed {seed}; {directory} is kept:", *faults)
        return 1
    shutil.rmtree(directory)
    return 0


def _summary(outcome: Outcome) -> str:
    replies = ", ".join(f"{count} answers {code}" for code, count in sorted(outcome.replies.items()))
    deferred = f", {len(outcome.deferred)} mails deferred in the outage" if outcome.deferred else ""
    return f"{outcome.kills} kills, {replies}{deferred}, {len(outcome.faults)} faults"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mail", description=__doc__)
    parser.add_argument("--conversations", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--every", type=int, default=10, help="mails from a kill to the next (default: %(default)s)")
    parser.add_argument("--outage", type=float, default=60, help="seconds (default: %(default)s)")
    add_seed(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
