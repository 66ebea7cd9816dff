"""`make torture`, made small; and whether it would notice."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Self

import pytest

from statestore.base import START, Pair
from tests.daemon import Daemon
from tests.torture import __main__ as command
from tests.torture.calls import Author
from tests.torture.model import Call, Fault, History, Kind, judge, value

ROOT = Path(__file__).parents[1]
W = "writer1"
ANN: Pair = ("app.join", "ann@example.org")
BOB: Pair = ("app.join", "bob@example.org")
FIRST = 100  # number of the first call in the histories below
OLD, OLDER = value(W, 7), value(W, 6)  # of earlier rounds
ONE, TWO, THREE = (value(W, FIRST + number) for number in range(3))


def put(changes: dict[Pair, str]) -> Call:
    return Call("set_many", (), changes)


def history(*calls: Call, answered: int) -> History:
    """ANN holds OLD; then these calls were sent, and so many answered."""
    made = History(W, {ANN: OLD}, FIRST)
    for call in calls:
        made.record(call)
    for place in range(answered):
        made.take_answer(place, None, calls[place].answer)
    return made


def kinds(faults: list[Fault]) -> list[Kind]:
    return [fault.kind for fault in faults]


# After a kill

SETS = [put({ANN: ONE}), put({ANN: TWO}), put({ANN: THREE})]


@pytest.mark.parametrize(
    ("answered", "found", "applied"),
    [(0, OLD, 0), (0, ONE, 1), (0, THREE, 3), (2, TWO, 2), (2, THREE, 3), (3, THREE, 3)],
)
def test_what_was_acknowledged_or_sent_after_it_may_be_found(answered: int, found: str, applied: int) -> None:
    verdict = judge(history(*SETS, answered=answered), [], {ANN: found})
    assert (verdict.applied, verdict.faults) == (applied, [])


@pytest.mark.parametrize("found", [START, OLDER, OLD, ONE])
def test_an_acknowledged_write_that_is_gone(found: str) -> None:
    """Whether nothing is there or an older value: of long ago, of before this round, of this round."""
    verdict = judge(history(*SETS, answered=2), [], {ANN: found})
    assert verdict.faults == [Fault(Kind.LOST, f"{W}, {ANN}", (TWO, THREE), found)]


def test_what_an_earlier_round_left_is_gone() -> None:
    assert kinds(judge(history(answered=0), [], {ANN: START}).faults) == [Kind.LOST]


def test_a_removed_entry_is_back() -> None:
    verdict = judge(history(put({ANN: START}), answered=1), [], {ANN: OLD})
    assert verdict.faults == [Fault(Kind.LOST, f"{W}, {ANN}", (START,), OLD)]


@pytest.mark.parametrize("found", [value("writer2", FIRST), value(W, FIRST + 50), "", "x"])
def test_a_value_that_nobody_wrote(found: str) -> None:
    verdict = judge(history(*SETS, answered=1), [], {ANN: found})
    assert verdict.faults == [Fault(Kind.INVENTED, f"{W}, {ANN}", (ONE, TWO, THREE), found)]


def test_a_value_under_a_key_that_nobody_wrote() -> None:
    assert kinds(judge(history(*SETS, answered=0), [], {ANN: OLD, BOB: ONE}).faults) == [Kind.INVENTED]


@pytest.mark.parametrize(("ann", "bob", "behind"), [(TWO, START, BOB), (ONE, TWO, ANN)])
def test_half_a_call(ann: str, bob: str, behind: Pair) -> None:
    verdict = judge(history(put({ANN: ONE}), put({ANN: TWO, BOB: TWO}), answered=1), [], {ANN: ann, BOB: bob})
    found = {ANN: ann, BOB: bob}[behind]
    assert verdict.faults == [Fault(Kind.TORN, f"{W}, {behind}", (TWO,), found)]


def test_a_call_without_the_one_before() -> None:
    verdict = judge(history(put({ANN: ONE}), put({BOB: TWO}), answered=0), [], {ANN: OLD, BOB: TWO})
    assert verdict.faults == [Fault(Kind.TORN, f"{W}, {ANN}", (ONE,), OLD)]


def test_removed_and_written_again_is_no_fault() -> None:
    """START alone does not say after which of the calls it was found."""
    calls = [put({ANN: START}), put({ANN: ONE}), put({ANN: START, BOB: TWO})]
    assert judge(history(*calls, answered=0), [], {ANN: START, BOB: TWO}).applied == 3
    assert judge(history(*calls, answered=0), [], {ANN: START, BOB: START}).applied == 1


# What was answered before it

VAIN = Call("compare_and_set", (), {}, [False, ONE], about=(ANN,))


def test_what_a_get_has_shown_is_gone() -> None:
    verdict = judge(history(*SETS, answered=0), [[(ANN, OLD), (ANN, TWO)]], {ANN: ONE})
    assert verdict.faults == [Fault(Kind.TAKEN_BACK, f"{W}, {ANN}", (TWO, THREE), ONE)]


def test_a_get_goes_back() -> None:
    verdict = judge(history(*SETS, answered=0), [[(ANN, TWO), (ANN, ONE)]], {ANN: THREE})
    assert verdict.faults == [Fault(Kind.ANSWER, f"a get of {W}, {ANN}", (TWO, THREE), ONE)]


def test_a_get_shows_what_nobody_wrote() -> None:
    assert kinds(judge(history(*SETS, answered=0), [[(ANN, "x")]], {ANN: OLD}).faults) == [Kind.INVENTED]


def test_two_connections_need_not_see_a_change_in_the_same_moment() -> None:
    assert judge(history(*SETS, answered=0), [[(ANN, TWO)], [(ANN, OLD)]], {ANN: TWO}).faults == []


@pytest.mark.parametrize(("error", "result"), [(None, [True, ONE]), (None, [False, OLD]), ("internal: x", None)])
def test_a_wrong_answer(error: str | None, result: list[object] | None) -> None:
    made = history(put({ANN: ONE}), VAIN, answered=1)
    made.take_answer(1, error, result)
    assert kinds(judge(made, [], {ANN: ONE}).faults) == [Kind.ANSWER]


def test_an_answer_that_tells_of_a_value_promises_it() -> None:
    made = history(put({ANN: ONE}), put({BOB: TWO}), VAIN, answered=0)
    made.take_answer(2, None, VAIN.answer)
    assert kinds(judge(made, [], {ANN: OLD, BOB: START}).faults) == [Kind.LOST]
    assert judge(made, [], {ANN: ONE, BOB: START}).faults == []


def test_an_answer_to_a_write_without_effect_promises_nothing_of_others() -> None:
    """It may come before theirs."""
    made = history(put({ANN: ONE}), put({BOB: START}), answered=0)
    made.take_answer(1, None, None)
    assert judge(made, [], {ANN: OLD, BOB: START}).faults == []


# The whole


def test_a_writer_makes_calls_of_all_kinds_and_no_value_twice() -> None:
    author, random, made = Author(W, clears=True), Random(1), History(W, {}, 1)
    for _ in range(2000):
        made.record(author.next(random, made.now))
    assert {call.method for call in made.calls} == {"set", "set_many", "set_all", "compare_and_set", "clear"}
    written = [set(call.changes.values()) - {START} for call in made.calls]
    assert sum(map(len, written)) == len(set().union(*written))


@pytest.mark.timeout(300)  # it takes 10 s, where nobody else wants the machine
@pytest.mark.parametrize(("fsync", "rounds"), [("always", 15), ("everysec", 5)])
def test_nothing_is_lost(fsync: str, rounds: int) -> None:
    torture = [sys.executable, "-m", "tests.torture", "--fsync", fsync, "--rounds", str(rounds)]
    done = subprocess.run(torture, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class ForgetfulDaemon(Daemon):
    """After a kill its directory is as it was when the store was made."""

    def wait_until_listening(self) -> Self:
        super().wait_until_listening()
        if not self._at_first.exists():
            shutil.copytree(self.data_dir, self._at_first)
        return self

    def stop(self, signum: int = signal.SIGTERM) -> int:
        code = super().stop(signum)
        shutil.rmtree(self.data_dir)
        shutil.copytree(self._at_first, self.data_dir)
        return code

    @property
    def _at_first(self) -> Path:
        return self.directory / "at_first"


def test_a_daemon_that_forgets_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Daemon", ForgetfulDaemon)
    assert command.main(["--rounds", "5", "--seed", "1", "--directory", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert re.search(r"^FAILED in round \d, seed 1:$", output, re.M)
    assert "\nlost: writer" in output
    assert (tmp_path / "data").is_dir(), "it is kept"
