"""`make demo`, made small."""

import subprocess
import sys
from pathlib import Path

from examples.demo.scenario import run_alone

ROOT = Path(__file__).parents[1]


def test_all_conversations_complete_with_the_daemon_and_none_without() -> None:
    command = [sys.executable, "-m", "examples.demo", "--conversations", "12"]
    demo = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "With statestored, 12 of 12 conversations completed; without it, 0 of 12." in demo.stdout
    assert "daemon is back" in demo.stdout


def test_salmons_own_storages_do_where_there_is_one_process(tmp_path: Path) -> None:
    """So what fails in the demo's second part is the sharing, not the application."""
    outcome = run_alone(tmp_path, 12, workers=4, say=print, processes=1)
    assert [conversation.failure for conversation in outcome.conversations] == [""] * 12
