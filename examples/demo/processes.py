"""Programs in processes of their own, which say `listening on ADDRESS` when they can be used."""

import os
import queue
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

MAILINGLIST = Path(__file__).parents[1] / "mailinglist"
READY = "listening on "
START_TIMEOUT = 30.0  # seconds; a busy machine takes its time to import Salmon
STOP_TIMEOUT = 10.0


class Program:
    """Started at once; stopped with SIGTERM, at the end of the context at the latest. Logs to `log`."""

    def __init__(
        self, command: Sequence[str], log: Path, *, cwd: Path | None = None, env: Mapping[str, str] = {}
    ) -> None:
        self.log = log
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()  # '' at the end
        # STATESTORED_TOKEN and the like, set in somebody's shell, are not meant for us.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STATE")}
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command, cwd=cwd, env={**inherited, **env}, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_listening(self) -> str:
        """The first address that the program says it listens on.

        Raises RuntimeError, with the log, if it ends before that or takes too long; it has ended then.
        """
        while line := self._next_line():
            if line.startswith(READY):
                return line.removeprefix(READY).strip()
        raise RuntimeError(f"not listening, exit status {self.stop()}:\n{self.log.read_text()}")

    def stop(self) -> int:
        """The exit status, also of a program that has ended already."""
        self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _next_line(self) -> str:
        """'' at the end, or when nothing came in time."""
        try:
            return self._lines.get(timeout=START_TIMEOUT)
        except queue.Empty:
            return ""


class Daemon:
    """statestored, with a data directory and an address that outlive a restart."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.address = "127.0.0.1:0"  # any free port, and from then on the same
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._program.pid

    def start(self) -> None:
        options = ["--listen", self.address, "--admin-listen", "127.0.0.1:0"]
        command = [sys.executable, "-m", "statestored", *options, "--data-dir", str(self._directory / "states")]
        self._program = Program(command, self._directory / "statestored.log")
        self.address = self._program.wait_until_listening()

    def stop(self) -> int:
        return self._program.stop()


def start_mailinglist(
    directory: Path, name: str, *, relay_port: int, boot: str = "config.boot", **settings: str
) -> Program:
    """One process of the application, on an LMTP port of its own; `settings` are for its environment."""
    salmon = str(Path(sysconfig.get_path("scripts")) / "salmon")
    command = [salmon, "start", "--no-daemon", "--boot", boot, "--pid", str(directory / f"{name}.pid")]
    env = {"LMTP_PORT": "0", "RELAY_PORT": str(relay_port), "RUN_DIRECTORY": str(directory / "run"), **settings}
    return Program(command, directory / f"{name}.log", cwd=MAILINGLIST, env=env)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])
