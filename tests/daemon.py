"""A real statestored process for the tests: started, asked, stopped, killed."""

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.ports import CAN_SHARE, address_of, reserve_port

START_SECONDS = 20.0
STOP_SECONDS = 20.0

STATESTORED = (sys.executable, "-m", "statestored")


class NotListening(AssertionError):
    """It ended instead, or takes too long."""


class Daemon:
    """Listens on a free TCP port and on a unix socket; `arguments` are added to its command line.

    A daemon started again on the same directory keeps its addresses; no other process can get them in between. Until a
    start, `data_dir` may be set to another place, `program` to another command, `wrapper` to one that is the parent of
    the daemon, as strace is, and `stdout` and `stderr` to descriptors that take what it prints, and its log, in place
    of this object.
    """

    def __init__(self, directory: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.log_path = directory / "log"
        self.arguments = arguments
        self.environment = environment or {}
        self.program: Sequence[str] = STATESTORED
        self.wrapper: Sequence[str] = ()
        self.stdout = subprocess.PIPE
        self.stderr: int | None = None
        self._port = reserve_port()
        self.address = address_of(self._port)
        self.admin = ""
        # A unix socket's path may have 108 bytes; pytest's directories are longer.
        self._sockets = tempfile.TemporaryDirectory(prefix="ss-")
        self.unix_address = f"unix:{self._sockets.name}/s"
        self.process: subprocess.Popen[bytes] | None = None
        self._output = b""
        self._pid = 0

    def start(self) -> Self:
        """Returns when it listens; fails with the daemon's own words where it ends instead."""
        return self.launch().wait_until_listening()

    def launch(self) -> Self:
        """Returns at once."""
        self._share_port()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, *self.program, *self._flags()],
                stdout=self.stdout,
                stderr=log if self.stderr is None else self.stderr,
                env=self._environment(),
                start_new_session=bool(self.wrapper),  # both can be ended together
            )
        self._output, self._pid = b"", 0
        return self

    def wait_until_listening(self) -> Self:
        lines = self._read_until(rb"(?:listening on \S+\n.*){2}")
        self.address, self.unix_address = re.findall(r"^listening on (\S+)$", lines, re.M)
        return self

    def wait_until_live(self) -> Self:
        """Its admin address answers; it may be loading still."""
        self._read_until(rb"admin on \S+\n")
        return self

    @property
    def pid(self) -> int:
        """The daemon's own. Under a wrapper it is known once the daemon has said something."""
        assert self.process is not None
        return self._pid or self.process.pid

    def run(self) -> subprocess.CompletedProcess[str]:
        """For a start that is expected to fail."""
        self._share_port()
        return subprocess.run(
            [*self.program, *self._flags()],
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            env=self._environment(),
            check=False,
        )

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        assert self.process is not None
        self.send_signal(signum)
        return self.wait()

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def wait(self) -> int:
        assert self.process is not None
        code = self.process.wait(STOP_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def send_signal(self, signum: int) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            with suppress(ProcessLookupError):  # it ends before its wrapper does
                os.kill(self.pid, signum)

    def log(self) -> str:
        return self.log_path.read_text()

    def __enter__(self) -> Self:
        return self if self.process else self.start()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """It can run no more."""
        if self.process is not None and self.process.poll() is None:
            self._end()
        self._sockets.cleanup()
        self._port.close()

    def _share_port(self) -> None:
        if not CAN_SHARE:
            self._port.close()

    def _flags(self) -> list[str]:
        return [
            f"--listen={self.address}",
            f"--listen={self.unix_address}",
            "--admin-listen=127.0.0.1:0",
            f"--data-dir={self.data_dir}",
            *self.arguments,
        ]

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("STATESTORE")}
        return {**kept, **self.environment}

    def _end(self) -> None:
        assert self.process is not None
        if self.wrapper:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.wait()

    def _read_until(self, expected: bytes) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        deadline = time.monotonic() + START_SECONDS
        while not re.search(expected, self._output, re.S):
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 4096) if readable else b""
            if not chunk:
                self.wait() if readable else self._end()
                raise self._not_listening()
            self._output += chunk
        if self.wrapper:
            self._pid = self._find_child()
        lines = self._output.decode()
        self.admin = re.findall(r"^admin on (\S+)$", lines, re.M)[0]
        return lines

    def _find_child(self) -> int:
        assert self.process is not None
        try:
            return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())
        except (OSError, ValueError):  # it has ended
            self.wait()
            raise self._not_listening() from None

    def _not_listening(self) -> NotListening:
        return NotListening(f"statestored does not listen:\n{self._output.decode()}{self.log()}")
