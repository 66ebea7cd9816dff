"""What the commands that `make torture` runs have in common."""

import argparse
import secrets
from pathlib import Path


def say(*lines: str) -> None:
    """At once, for whoever watches."""
    print(*lines, sep="\n", flush=True)  # noqa: T201


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="default: another each time")


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fsync", choices=["always", "everysec", "never"], default="always")
    parser.add_argument("--directory", type=Path, help="a new or empty one, to be kept (default: a temporary one)")
