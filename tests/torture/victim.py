"""The daemon that is killed and started again; where it ends by itself, or does not start, that is a fault."""

import re
import shutil
import signal
import time
from pathlib import Path

from tests.daemon import Daemon, NotListening
from tests.server.waiting import wait_until
from tests.torture.model import Fault, Kind
from tests.torture.report import Tally

ANY_PORT = "127.0.0.1:0"
TAIL = 2000  # characters of its log


class Victim:
    """Methods return the faults that they find."""

    def __init__(self, daemon: Daemon, tally: Tally) -> None:
        self.daemon = daemon
        self.killed = daemon.directory / "killed"  # the files as the last kill under load has left them
        self._tally = tally
        self._loading_seconds = 0.0  # of the last start
        self._heard = 0  # characters of its log that were looked at

    @property
    def addresses(self) -> list[str]:
        return [self.daemon.address, self.daemon.unix_address]

    def start(self) -> list[Fault]:
        self.daemon.address = ANY_PORT  # the last one may have found another user meanwhile
        started = time.monotonic()
        try:
            self.daemon.launch().wait_until_live()
            live = time.monotonic()
            self.daemon.wait_until_listening()
        except NotListening as error:
            return _fault("at its start", error)
        listening = time.monotonic()
        self._loading_seconds = listening - live
        self._tally.started(listening - started)
        return []

    def start_and_kill(self, part: float) -> list[Fault]:
        """After this part of the time that loading took the last time."""
        try:
            self.daemon.launch().wait_until_live()
        except NotListening as error:
            return _fault("at its start", error)
        time.sleep(part * self._loading_seconds)
        return self.kill("while loading")

    def snapshot(self, *, awaited: bool) -> list[Fault]:
        """On demand; it goes on in the background, or has its name when this returns."""
        before = self._snapshots()
        self.daemon.send_signal(signal.SIGUSR1)
        self._tally.snapshots_asked += 1
        try:
            wait_until(lambda: not awaited or self._snapshots() - before or self._has_ended())
        except AssertionError as error:
            return _fault("asked for a snapshot", error)
        return []

    def kill(self, when: str) -> list[Fault]:
        code = self.daemon.stop(signal.SIGKILL)
        self._tally.kills[when] += 1
        if code != -signal.SIGKILL:
            return _fault(when, f"exit code {code}:\n{self.daemon.log()}")
        return [fault for line in self._complaints() for fault in _fault(when, line)]

    def keep_files(self) -> None:
        """In `killed`, for whoever looks into a fault: the next start changes them."""
        shutil.rmtree(self.killed, ignore_errors=True)
        shutil.copytree(self.daemon.data_dir, self.killed)
        self._tally.snapshots |= {path.name for path in self._snapshots()}

    def _complaints(self) -> list[str]:
        """The errors that it has logged since the last kill."""
        log = self.daemon.log()
        new, self._heard = log[self._heard :], len(log)
        return re.findall(r"^.* level=(?:error|critical) .*$", new, re.M)

    def _has_ended(self) -> bool:
        assert self.daemon.process is not None
        return self.daemon.process.poll() is not None

    def _snapshots(self) -> set[Path]:
        return set(self.daemon.data_dir.glob("*.snapshot"))


def _fault(when: str, what: object) -> list[Fault]:
    return [Fault(Kind.DAEMON, when, ("to run without errors until it is killed",), str(what)[-TAIL:])]
