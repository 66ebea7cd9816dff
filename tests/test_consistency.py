"""K1: what many clients see is linearizable for each sender, while the daemon and the network fail.

`make torture` has the long version.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from statestore.base import START
from tests.consistency import __main__ as command
from tests.consistency.clients import Clients, client_processes
from tests.consistency.history import Operation
from tests.consistency.runs import Result, judge, run
from tests.consistency.troubles import KINDS

pytestmark = pytest.mark.timeout(300)  # it takes 10 s, where nobody else wants the machine

PROCESSES = 8
OPERATIONS = 1000


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    with client_processes(PROCESSES) as clients:
        yield clients


def test_histories_are_linearizable(tmp_path: Path, clients: Clients) -> None:
    result = run(tmp_path, clients, seed="suite", operations=OPERATIONS, troubles=10)
    assert (result.wrong, result.undecided, result.faults) == ([], [], [])
    assert len(result.history) >= OPERATIONS
    assert result.troubles.total() > 0


def test_each_sender_is_judged_alone() -> None:
    history = [
        Operation("c", "set", "ann", ("m", "x"), 0.0, 1.0, True),
        Operation("c", "get", "bob", ("m",), 2.0, 3.0, True, START),
        Operation("c", "get", "ann", ("m",), 2.0, 3.0, True, START),
    ]
    result = Result(history)
    judge(result)
    assert result.wrong == [[history[0], history[2]]]


def test_what_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = [Operation("c0x", "set", "ann", ("m", "x"), 0.0, 0.5, True)]
    lost += [Operation("c1y", "get", "ann", ("m",), 0.75, 1.0, True, START)]
    outcomes = iter([Result(lost, refused=3, troubles=Counter(kill=2)), Result(lost, wrong=[lost])])

    def run_already(directory: Path, *_: object, **__: object) -> Result:
        directory.mkdir()
        return next(outcomes)

    monkeypatch.setattr(command, "run", run_already)
    assert command.main(["--runs", "2", "--clients", "1", "--seed", "7", "--directory", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert f"\nFAILED in run 2, seed 7/2; its directory is kept: {tmp_path}/2\n" in output
    assert "     0.000 ..    500.000  c0x    set(m, x) -> done\n" in output
    assert "   750.000 ..   1000.000  c1y    get(m) -> START\n" in output
    for line in (r"runs +2", r"calls +7", r"  set, answered +2", r"trouble: kill +2", r"histories not linearizable +1"):
        assert re.search(f"^{line}$", output, re.M), line
    assert [path.name for path in tmp_path.iterdir()] == ["2"], "the other is not kept"


def test_there_are_troubles_of_all_kinds() -> None:
    assert {kind.__name__ for kind in KINDS} >= {"kill", "pause", "cut", "cut_after", "hold", "late", "stop_and_start"}
