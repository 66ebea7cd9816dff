"""`python -m tests.torture`: exits 1 where anything was lost, and keeps the directory then."""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.command import add_seed, add_store, say
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
    say(f"{command} --connections {options.connections}", f"in {directory}")
    daemon = Daemon(
        directory,
        "--allow-clear",
        f"--fsync={options.fsync}",
        f"--snapshot-journal-size={SNAPSHOT_JOURNAL_MIB}",
    )
    torture = Torture(daemon, seed=options.seed, rounds=options.rounds, writers=options.connections)
    started = time.monotonic()
    faults = torture.run()
    say(*summary(torture.tally, faults, daemon))
    say(f"seed {options.seed}, fsync {options.fsync}, {time.monotonic() - started:.0f} seconds")
    if faults:
        say(f"\nFAILED in round {torture.tally.rounds}, seed {options.seed}:", *listing(faults))
        say(f"{directory} is kept: data, killed (data as the kill left it, before the restart), and the daemon's log")
        return 1
    if options.directory is None:
        shutil.rmtree(directory)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="kills (default: %(default)s)")
    add_seed(parser)
    add_store(parser)
    parser.add_argument("--connections", type=int, default=6, help="that write (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.directory and options.directory.is_dir() and any(options.directory.iterdir()):
        parser.error(f"{options.directory} is not empty")
    if options.rounds < 1 or options.connections < 1:
        parser.error("--rounds and --connections must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
