"""What the daemon's own check says of a data directory that no daemon uses."""

import subprocess
from pathlib import Path

from tests.daemon import STATESTORED
from tests.torture.model import Fault, Kind

SECONDS = 60.0


def check(data_dir: Path) -> list[Fault]:
    command = [*STATESTORED, "check", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode == 0:
        return []
    found = f"exit code {done.returncode}:\n{done.stdout}{done.stderr}"
    return [Fault(Kind.UNSOUND, str(data_dir), ("exit code 0",), found)]
