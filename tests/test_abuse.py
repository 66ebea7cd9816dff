"""R4, R5: the short versions; `python -m tests.abuse` has the long ones."""

import ast
import subprocess
import sys
from collections import Counter

from tests.abuse import ENOUGH
from tests.daemon import Daemon

PATIENCE = 100.0  # seconds after which it hangs


def abuse(*arguments: str) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.abuse", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    outcomes: dict[str, int] = ast.literal_eval(ended.stdout)
    return outcomes


def test_no_answer_reaches_another_caller_whatever_interrupts_it(shared_daemon: Daemon) -> None:
    """R4"""
    outcomes = Counter(abuse("interrupts", "8000", shared_daemon.address))
    assert outcomes >= ENOUGH
    assert outcomes["aside"] + outcomes["interrupted"] >= 8000


def test_a_busy_process_forks(shared_daemon: Daemon) -> None:
    """R5"""
    assert abuse("forks", "40", shared_daemon.address)["parent"] > 100
