"""Programs for processes of their own: what they do would disturb the process of the tests."""

import subprocess
import sys
from textwrap import dedent

PATIENCE = 60.0  # seconds after which a script has hung


def start_script(source: str, *arguments: str) -> subprocess.Popen[str]:
    """Its standard input and output are pipes; `sys.argv[1:]` are the arguments."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", dedent(source), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed. Fails with its own words where it failed."""
    with process:
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, output + errors
    return output


def run_script(source: str, *arguments: str) -> str:
    return finish(start_script(source, *arguments))
