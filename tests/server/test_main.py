"""The command, where the daemon's libraries are and where they are not."""

import subprocess
import sys
from textwrap import dedent

import pytest

from statestored import __version__


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=30, check=False)


def test_it_can_be_run_as_a_module() -> None:
    done = run("-m", "statestored", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"statestored {__version__}\n", "")


@pytest.mark.parametrize("library", ["click", "uvloop", "structlog", "aiohttp", "prometheus_client"])
def test_a_library_that_is_missing_is_named_with_what_to_install(library: str) -> None:
    source = f"import sys; sys.modules[{library!r}] = None; from statestored.__main__ import main; main()"
    done = run("-c", source)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"statestored: {library} is not installed" in done.stderr
    assert "pip install 'statestored[server]'" in done.stderr


GOES_ON = f"statestored {__version__}\n"


@pytest.mark.parametrize(
    ("signum", "then"),
    [("SIGTERM", ""), ("SIGINT", ""), ("SIGHUP", GOES_ON), ("SIGUSR1", GOES_ON)],
)
def test_signals_while_it_still_starts(signum: str, then: str) -> None:
    """Asked to stop it is successful, also as the first process of a container, to which a signal without a handler
    means nothing. Asked to read its files again, or to write a snapshot, it goes on: it has not read anything yet.
    """
    source = f"""
        import os, signal, sys

        class Finder:
            def find_spec(self, name, *_):
                if name == "statestored.cli":
                    os.kill(os.getpid(), signal.{signum})

        sys.meta_path.insert(0, Finder())
        from statestored.__main__ import main
        main()
    """
    done = run("-c", dedent(source), "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, then, "")
