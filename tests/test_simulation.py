"""The simulation: fixed seeds, seeds of the day, what once failed, and defects that are put in on purpose."""

import json
import math
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.simulation import __main__ as command
from tests.simulation.plan import Plan, plan_of
from tests.simulation.worker import Result

ROOT = Path(__file__).parents[1]
PATIENCE = 600.0  # seconds after which it hangs

pytestmark = pytest.mark.timeout(PATIENCE + 60)


def simulate(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """In a process of its own: what the simulation replaces stays replaced."""
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def check_none_fails(*arguments: str) -> None:
    done = simulate(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_150_seeds_show_nothing_wrong() -> None:
    check_none_fails("--seeds", "150", "--twice", "10")


def test_50_seeds_of_today_show_nothing_wrong() -> None:
    today = f"{datetime.now(UTC):%Y%m%d}"
    check_none_fails("--seeds", "50", "--first", f"{today}00", "--twice", "10")


def test_what_once_failed_does_not() -> None:
    check_none_fails("--regressions")


def test_a_seed_is_the_same_in_every_process() -> None:
    digests = {
        _digest(simulate("--seeds", "12", "--jobs", jobs, hash_seed=hash_seed))
        for jobs, hash_seed in (("1", "0"), ("2", "0"), ("1", "random"))
    }
    assert len(digests) == 1


def _digest(done: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"^digest of all +(\w{8})$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout + done.stderr
    return found[1]


@pytest.mark.parametrize(
    ("fault", "shrinking"),
    [
        ("acknowledged_before_synced", ["--no-shrink"]),
        ("directory_never_synced", []),
        ("nothing_remembered", ["--no-shrink"]),
        ("get_not_held", ["--no-shrink"]),
    ],
)
def test_a_defect_is_found_within_100_seeds_and_replayed_from_its_plan(fault: str, shrinking: list[str]) -> None:
    done = simulate("--seeds", "100", "--fault", fault, "--until-found", *shrinking)
    assert done.returncode == 1, done.stdout + done.stderr
    plan = re.search(rf"--fault {fault} --plan '(.*)'$", done.stdout, re.MULTILINE)
    assert plan is not None, done.stdout
    again = simulate("--plan", plan[1], "--fault", fault)
    assert again.returncode == 1, again.stdout + again.stderr
    assert simulate("--plan", plan[1]).returncode == 0


def result(seed: int, *failures: str, reached_fault: bool = True) -> Result:
    return Result(seed, list(failures), {}, 0, ran_twice=False, cpu=0.06, reached_fault=reached_fault)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """What the seeds come to, in the place of runs."""
    results: list[Result] = []
    monkeypatch.setattr(command, "_results", lambda _: iter(results))
    return results


def test_the_next_seed_is_told_at_the_end(results: list[Result], capsys: pytest.CaptureFixture[str]) -> None:
    results.extend(map(result, range(7, 10)))
    assert command.main(["--seeds", "3", "--first", "7"]) == 0
    assert "FIRST=10" in capsys.readouterr().out


def test_a_defect_that_shows_something_else_is_not_found(
    results: list[Result], capsys: pytest.CaptureFixture[str]
) -> None:
    results.append(result(1, "client1 keeps 0 calls and 2 sockets"))
    assert command.main(["--seeds", "1", "--fault", "heads_swapped"]) == 0
    assert "seed 1 fails, but not as heads_swapped must" in capsys.readouterr().out


def test_a_defect_that_no_seed_reaches_is_not_said_to_be_harmless(
    results: list[Result], capsys: pytest.CaptureFixture[str]
) -> None:
    results.append(result(1, reached_fault=False))
    assert command.main(["--seeds", "1", "--fault", "nothing_taken_back"]) == 2
    assert "no run has called anything that nothing_taken_back replaces" in capsys.readouterr().out


NO_PLAN = "argument --plan: the plan"


def changed(**fields: object) -> list[str]:
    return ["--plan", json.dumps(json.loads(plan_of(1).to_json()) | fields)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--seeds", "many"], "argument --seeds: 'many' is not a number from 1 on"),
        (["--first", "-1"], "argument --first: "),
        (["--first", "x"], "argument --first: 'x' is not a seed: a seed is a number from 0 on"),
        (["--fault", "none"], "argument --fault: invalid choice: 'none'"),
        (["--plan", "1", "--seeds", "3"], "argument --seeds: not allowed with argument --plan"),
        (["--plan", "1", "--defects"], "argument --defects: not allowed with argument --plan"),
        (["--regressions", "--fault", "get_not_held"], "argument --fault: not allowed with argument --regressions"),
        (["--write"], "argument --write: not allowed without argument --regressions"),
        (["--plan", "{"], f"{NO_PLAN} is not JSON: "),
        (["--plan", "[]"], f"{NO_PLAN} is not an object: []"),
        (["--plan", "[" * 100_000], f"{NO_PLAN} is nested too deeply"),
        (["--plan", '{"version": 0}'], f"{NO_PLAN} is of version 0, and this simulation reads version 1"),
        (["--plan", '{"version": true}'], f"{NO_PLAN} is of version True, "),
        (["--plan", '{"version": 1}'], f"{NO_PLAN}'s fields are not those of a plan: "),
        (changed(clients=0), f"{NO_PLAN}'s clients is 0: expected 1 to 20"),
        (changed(clients=10**30), f"{NO_PLAN}'s clients is 1000000000000000000000000000000: expected 1 to 20"),
        (changed(clients=True), f"{NO_PLAN}'s clients is True: expected a whole number"),
        (changed(clients=1, blocking=2), f"{NO_PLAN}'s blocking is 2: expected at most 1, its clients"),
        (changed(calls=[[1]] * 3), f"{NO_PLAN}'s calls are [[1], [1], [1]]: expected a list for each of the 4 clients"),
        (changed(addresses=3), f"{NO_PLAN}'s addresses is 3: expected 1 to 2"),
        (changed(senders=["s"] * 101), f"{NO_PLAN}'s senders are ['s', 's', "),
        (changed(segment_size=0), f"{NO_PLAN}'s segment_size is 0: expected 1 to "),
        (changed(think=0), f"{NO_PLAN}'s think is 0: expected 0.0001 to 10"),
        (changed(cancelled=7), f"{NO_PLAN}'s cancelled is 7: expected 0 to 1"),
        (changed(latency=math.nan), f"{NO_PLAN} is not JSON: NaN is not a number"),
        (changed(latency=math.inf), f"{NO_PLAN} is not JSON: Infinity is not a number"),
        (changed(seed="x" * 1000), f"{NO_PLAN}'s seed is '"),
        (changed(fsync="often"), f"{NO_PLAN}'s fsync is 'often': expected one of "),
        (changed(events="kill"), f"{NO_PLAN}'s events are 'kill': expected a list"),
        (changed(events=[[-1, "kill", 1]]), f"{NO_PLAN}'s event [-1, 'kill', 1] is none: expected 0 to "),
        (changed(events=[[True, "kill", 1]]), f"{NO_PLAN}'s event [True, 'kill', 1] is none: expected [seconds, "),
        (changed(events=[[1, "kill", True]]), f"{NO_PLAN}'s event [1, 'kill', True] is none: expected [seconds, "),
        (changed(events=[[1, "fire", 1]]), f"{NO_PLAN}'s event [1, 'fire', 1] has a trouble that is not known"),
    ],
)
def test_bad_input_is_refused_with_the_reason(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert error in told.err


def test_a_plan_can_be_read_again() -> None:
    for seed in range(1000):
        plan = plan_of(seed)
        assert Plan.from_json(plan.to_json()) == plan
