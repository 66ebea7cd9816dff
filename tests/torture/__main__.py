"""`python -m tests.torture`: exits 1 where anything was lost, and keeps the directory then."""

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.daemon import Daemon
from tests.torture.report import listing, summary
from tests.torture.rounds import Torture

# So little that snapshots are often due by size too.
SNAPSHOT_JOURNAL_MIB = 1


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="statestored-torture-"))
    directory.mkdir(parents=True, exist_ok=True)
    command = f"python -m tests.torture --rounds {options.rounds} --fsync {options.fsync} --seed {options.seed}"
    _say(f"{command} --connections {options.connections}", f"in {directory}")
    daemon = Daemon(
        directory,
        "--allow-clear",
        f"--fsync={options.fsync}",
        f"--snapshot-journal-size={SNAPSHOT_JOURNAL_MIB}",
    )
    torture = Torture(daemon, seed=options.seed, rounds=options.rounds, writers=options.connections)
    started = time.monotonic()
    faults = torture.run()
    _say(*summary(torture.tally, faults, daemon))
    _say(f"seed {options.seed}, fsync {options.fsync}, {time.monotonic() - started:.0f} seconds")
    if faults:
        _say(f"\nFAILED in round {torture.tally.rounds}, seed {options.seed}:", *listing(faults))
        _say(f"{directory} is kept: data, killed (data as the kill left it, before the restart), and the daemon's log")
        return 1
    if options.directory is None:
        shutil.rmtree(directory)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="kills (default: %(default)s)")
    parser.add_argument("--fsync", choices=["always", "everysec", "never"], default="always")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="default: another each time")
    parser.add_argument("--directory", type=Path, help="a new or empty one, to be kept (default: a temporary one)")
    parser.add_argument("--connections", type=int, default=6, help="that write (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.directory and options.directory.is_dir() and any(options.directory.iterdir()):
        parser.error(f"{options.directory} is not empty")
    if options.rounds < 1 or options.connections < 1:
        parser.error("--rounds and --connections must be at least 1")
    return options


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
