"""`python -m benchmarks`: all of them, as Markdown tables that are good for the README."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.errors import BenchmarkError


@dataclass(frozen=True)
class Plan:
    rounds: int
    server_seconds: float
    client_seconds: float


FULL = Plan(rounds=5, server_seconds=2.0, client_seconds=0.5)
QUICK = Plan(rounds=3, server_seconds=0.5, client_seconds=0.1)


def main() -> int:
    arguments = _arguments()
    if lines := machine.missing():
        print("\n".join(lines), file=sys.stderr)
        return 1
    try:
        _run(QUICK if arguments.quick else FULL, arguments.only or PARTS)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(plan: Plan, parts: Iterable[str]) -> None:
    print(f"Measured on {machine.description()}; medians of {plan.rounds} alternating rounds.", flush=True)
    for part in parts:
        print("\n" + PARTS[part](plan), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short rounds: to see that it runs, not for numbers")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part (repeatable)")
    return parser.parse_args()


# Each part is imported when it runs, for it imports what `missing` has to look for first.


def _servers(plan: Plan) -> str:
    from benchmarks import servers

    return servers.report(servers.measure(plan.rounds, plan.server_seconds))


def _client(plan: Plan) -> str:
    from benchmarks import client

    return client.report(client.measure(plan.rounds, plan.client_seconds))


PARTS = {"servers": _servers, "client": _client}

if __name__ == "__main__":
    sys.exit(main())
