"""`python -m benchmarks`: all of them, as Markdown tables that are good for the README."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import machine
from benchmarks.errors import BenchmarkError


@dataclass(frozen=True)
class Plan:
    rounds: int
    server_seconds: float
    client_seconds: float
    sizes: tuple[int, ...]  # entries, where there are to be many


FULL = Plan(rounds=5, server_seconds=2.0, client_seconds=0.5, sizes=(1_000_000, 5_000_000))
QUICK = Plan(rounds=3, server_seconds=0.5, client_seconds=0.1, sizes=(100_000,))
DATA = Path(__file__).parent / ".build" / "data"


def main() -> int:
    arguments = _arguments()
    if lines := machine.missing():
        print("\n".join(lines), file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # and all servers are stopped
    try:
        arguments.dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=arguments.dir) as directory:
            _run(QUICK if arguments.quick else FULL, arguments.only or PARTS, Path(directory))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(plan: Plan, parts: Iterable[str], directory: Path) -> None:
    print(f"Measured on {machine.description()}; medians of {plan.rounds} alternating rounds.")
    print(f"Data directories are on {machine.disk(directory)}.", flush=True)
    for part in parts:
        print("\n" + PARTS[part](plan, directory), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short rounds: to see that it runs, not for numbers")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part (repeatable)")
    parser.add_argument("--dir", type=Path, default=DATA, help="where data directories are made: on a real disk")
    return parser.parse_args()


# Each part is imported when it runs, for it imports what `missing` has to look for first.


def _servers(plan: Plan, _directory: Path) -> str:
    from benchmarks import servers

    return servers.report(servers.measure(plan.rounds, plan.server_seconds))


def _durable(plan: Plan, directory: Path) -> str:
    from benchmarks import durable

    return durable.report(durable.measure(directory, plan.rounds, plan.server_seconds))


def _snapshots(plan: Plan, directory: Path) -> str:
    from benchmarks import during_snapshots

    outcomes = during_snapshots.measure(directory, plan.sizes, plan.rounds, plan.server_seconds)
    return during_snapshots.report(outcomes)


def _pauses(plan: Plan, directory: Path) -> str:
    from benchmarks import pauses

    return pauses.report(pauses.measure(directory, max(plan.sizes), plan.rounds, plan.server_seconds))


def _ready(plan: Plan, directory: Path) -> str:
    from benchmarks import ready

    return ready.report(ready.measure(directory, plan.sizes, plan.rounds))


def _client(plan: Plan, _directory: Path) -> str:
    from benchmarks import client

    return client.report(client.measure(plan.rounds, plan.client_seconds))


def _async_client(plan: Plan, _directory: Path) -> str:
    from benchmarks import async_client

    return async_client.report(async_client.measure(plan.rounds, plan.client_seconds))


PARTS = {
    "servers": _servers,
    "durable": _durable,
    "snapshots": _snapshots,
    "pauses": _pauses,
    "ready": _ready,
    "client": _client,
    "async_client": _async_client,
}

if __name__ == "__main__":
    sys.exit(main())
