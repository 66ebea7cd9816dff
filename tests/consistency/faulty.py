"""A daemon, or a whole run of tests, with one of the `faults` in it.

`python -m tests.consistency.faulty FAULT ...` is `statestored ...` with that fault; as a plugin of pytest this gives it
to what the tests use: `python -m pytest -p tests.consistency.faulty --fault=FAULT ...`.
"""

import sys

import pytest

from tests import daemon
from tests.consistency import faults
from tests.consistency.faults import Fault


def program_with(fault: Fault) -> tuple[str, ...]:
    """The command of a daemon that has it."""
    return (sys.executable, "-m", "tests.consistency.faulty", fault.__name__)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault", required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Here, and in the daemons."""
    fault = _named(config.getoption("--fault"))
    fault(pytest.MonkeyPatch())
    daemon.STATESTORED = program_with(fault)


def _named(name: str) -> Fault:
    fault: Fault = getattr(faults, name)
    return fault


if __name__ == "__main__":
    _named(sys.argv.pop(1))(pytest.MonkeyPatch())
    from statestored.__main__ import main

    sys.exit(main())
