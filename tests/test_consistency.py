"""K1: what many clients see is linearizable for each sender, while the daemon and the network fail.

`make torture` has the long version.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from statestore.base import START
from tests import daemon
from tests.consistency import __main__ as command
from tests.consistency import faults
from tests.consistency.clients import Clients, client_processes
from tests.consistency.faulty import program_with
from tests.consistency.history import Operation
from tests.consistency.runs import Result, judge, run
from tests.consistency.troubles import KINDS

pytestmark = pytest.mark.timeout(300)  # it takes 10 s, where nobody else wants the machine

PROCESSES = 8
RUNS_WITH_A_FAULT = 5  # of which one has to show it


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    with client_processes(PROCESSES) as clients:
        yield clients


def test_histories_are_linearizable(tmp_path: Path, clients: Clients) -> None:
    result = run(tmp_path, clients, seed="suite", operations=2000)
    assert (result.wrong, result.undecided, result.faults) == ([], [], [])
    assert len(result.history) > 1500, "most calls are answered"
    assert sum(result.troubles.made.values()) > 5


def test_a_double_apply_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(daemon, "STATESTORED", program_with(faults.nothing_remembered))
    monkeypatch.setattr(command.tempfile, "mkdtemp", lambda **_: str(tmp_path))
    assert command.main(["--runs", str(RUNS_WITH_A_FAULT), "--seed", "1", "--operations", "1000"]) == 1
    output = capsys.readouterr().out
    assert re.search(r"^FAILED in run \d, seed 1/\d; its directory is kept: ", output, re.M)
    assert re.search(r"^ +\d+\.\d+ \.\. +\S+  c\d[xy]  +get\(a|b\) -> c\d[xy]\.\d+$", output, re.M)
    assert list(tmp_path.glob("*/data")), "it is kept"


def test_each_sender_is_judged_alone() -> None:
    history = [
        Operation("c", "set", "ann", ("m", "x"), 0.0, 1.0, True),
        Operation("c", "get", "bob", ("m",), 2.0, 3.0, True, START),
        Operation("c", "get", "ann", ("m",), 2.0, 3.0, True, START),
    ]
    result = Result(history, refused=0)
    judge(result)
    assert result.wrong == [[history[0], history[2]]]


def test_there_are_troubles_of_all_kinds() -> None:
    assert {kind.__name__ for kind in KINDS} >= {"kill", "pause", "cut", "cut_after", "hold", "late", "stop_and_start"}
