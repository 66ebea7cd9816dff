"""The simulation: fixed seeds, seeds of the day, what once failed, and defects that are put in on purpose."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.simulation.plan import plan_of

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
    "fault", ["acknowledged_before_synced", "directory_never_synced", "nothing_remembered", "get_not_held"]
)
def test_a_defect_is_found_within_100_seeds_and_replayed_from_its_plan(fault: str) -> None:
    done = simulate("--seeds", "100", "--fault", fault, "--until-found")
    assert done.returncode == 1, done.stdout + done.stderr
    plan = re.search(r"--plan '(.*)'$", done.stdout, re.MULTILINE)
    assert plan is not None, done.stdout
    again = simulate("--plan", plan[1], "--fault", fault)
    assert again.returncode == 1, again.stdout + again.stderr
    assert simulate("--plan", plan[1]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--seeds", "many"], "argument --seeds: 'many' is not a number from 1 on"),
        (["--first", "-1"], "argument --first: "),
        (["--first", "x"], "argument --first: 'x' is not a seed: a seed is a number from 0 on"),
        (["--plan", "{"], "argument --plan: the plan is not JSON: "),
        (["--plan", "[]"], "argument --plan: the plan is not an object: []"),
        (
            ["--plan", '{"version": 0}'],
            "argument --plan: the plan is of version 0, and this simulation reads version 1",
        ),
        (["--plan", '{"version": 1}'], "argument --plan: the plan's fields are not those of a plan: "),
        (
            ["--plan", plan_of(1).to_json().replace('"clients": 4', '"clients": 0')],
            "argument --plan: the plan's clients is 0: expected at least 1",
        ),
        (["--fault", "none"], "argument --fault: invalid choice: 'none'"),
    ],
)
def test_bad_input_is_refused_with_the_reason(arguments: list[str], error: str) -> None:
    done = simulate(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert error in done.stderr
    assert "Traceback" not in done.stderr
