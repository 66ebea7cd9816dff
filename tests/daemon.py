"""A real statestored process for the tests: started, asked, stopped, killed."""

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 20.0
STOP_SECONDS = 20.0


class Daemon:
    """Listens on a free TCP port and on a unix socket; `arguments` are added to its command line.

    A daemon started again on the same directory keeps its addresses.
    """

    def __init__(self, directory: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.log_path = directory / "log"
        self.arguments = arguments
        self.environment = environment or {}
        self.address = "127.0.0.1:0"
        self.admin = ""
        # A unix socket's path may have 108 bytes; pytest's directories are longer.
        self._sockets = tempfile.TemporaryDirectory(prefix="ss-")
        self.unix_address = f"unix:{self._sockets.name}/s"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Returns when it listens; fails with the daemon's own words where it ends instead."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "statestored", *self._flags()],
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment(),
            )
        lines = self._read_until_listening(2)
        self.address, self.unix_address = re.findall(r"^listening on (\S+)$", lines, re.M)
        self.admin = re.findall(r"^admin on (\S+)$", lines, re.M)[0]
        return self

    def run(self) -> subprocess.CompletedProcess[str]:
        """For a start that is expected to fail."""
        return subprocess.run(
            [sys.executable, "-m", "statestored", *self._flags()],
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            env=self._environment(),
            check=False,
        )

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.wait()

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def wait(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        code = self.process.wait(STOP_SECONDS)
        self.process.stdout.close()
        return code

    def send_signal(self, signum: int) -> None:
        assert self.process is not None
        self.process.send_signal(signum)

    def log(self) -> str:
        return self.log_path.read_text()

    def __enter__(self) -> Self:
        return self if self.process else self.start()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._sockets.cleanup()

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

    def _read_until_listening(self, addresses: int) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        output, deadline = b"", time.monotonic() + START_SECONDS
        while output.count(b"listening on") < addresses or not output.endswith(b"\n"):
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 4096) if readable else b""
            if not chunk:
                self.process.kill()
                self.wait()
                raise AssertionError(f"statestored does not listen:\n{output.decode()}{self.log()}")
            output += chunk
        return output.decode()
