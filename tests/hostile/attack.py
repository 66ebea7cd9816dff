"""One attack: a daemon, a crowd of hostile clients in another process, and a well-behaved one in this."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from tests.daemon import Daemon
from tests.hostile.bystander import Bystander, Latency
from tests.hostile.clients import TOKEN, Fates
from tests.server.rpc import RawClient

ENVIRONMENT = {"STATESTORED_TOKEN": TOKEN}
SENDERS, STATE = 1000, "S" * 1000  # a MiB, so that a page of a scan is a quarter of one
CONNECTING = GONE = 60.0  # seconds
LOOK_EVERY = 0.05  # seconds


@dataclass
class Outcome:
    """before, during: of the well-behaved client's gets and sets.

    memory_before, memory_most, memory_after: bytes of the daemon's, the last when all hostile clients have gone.
    files_before, files_most, files_after: how many it had open.
    waited: which part of the time, meanwhile, the daemon had to wait for a processor; 0.0 to 1.0.
    """

    before: tuple[Latency, Latency]
    during: tuple[Latency, Latency]
    fates: dict[str, Fates]
    memory_before: int
    memory_most: int
    memory_after: int
    files_before: int
    files_most: int
    files_after: int
    waited: float

    @property
    def memory_growth(self) -> int:
        return self.memory_most - self.memory_before


class Watched:
    """A daemon's memory and open files, and the most that they were."""

    def __init__(self, daemon: Daemon) -> None:
        self._proc = Path(f"/proc/{daemon.pid}")
        self.memory_most = self.files_most = 0

    def memory(self) -> int:
        return int((self._proc / "statm").read_text().split()[1]) * 4096

    def files(self) -> int:
        return len(list((self._proc / "fd").iterdir()))

    def waited(self) -> float:
        """Seconds that it had to wait for a processor since it began."""
        return int((self._proc / "schedstat").read_text().split()[1]) / 1e9

    def look(self) -> None:
        self.memory_most = max(self.memory_most, self.memory())
        self.files_most = max(self.files_most, self.files())


def fill(daemon: Daemon) -> None:
    """With something that is worth asking for."""
    with RawClient(daemon.unix_address) as client:
        client.ask("hello", {"token": TOKEN})
        for start in range(0, SENDERS, 100):
            client.ask("set_many", [["lists", f"sender{start + number}@a.example", STATE] for number in range(100)])


def attack(
    daemon: Daemon, counts: Mapping[str, int], *, seconds: float, calm: float, beside: str | None = None
) -> Outcome:
    """So many clients of each kind for so long. The daemon is filled, and the token is that of the clients.

    beside: where the well-behaved client connects; without it, where the others do.
    """
    watched, bystander = Watched(daemon), Bystander(beside or daemon.address)
    before = bystander.ask_for(calm)
    memory_before, files_before = watched.memory(), watched.files()
    with _watching(watched), _crowd(daemon.address, counts) as crowd:
        waited = watched.waited()
        during = bystander.ask_for(seconds)
        waited = (watched.waited() - waited) / seconds
        fates = _end(crowd)
    _wait_until_gone(watched, files_before)
    bystander.ask_for(0.5)
    bystander.close()
    return Outcome(
        before,
        during,
        fates,
        memory_before,
        watched.memory_most,
        watched.memory(),
        files_before,
        watched.files_most,
        watched.files(),
        waited,
    )


def _wait_until_gone(watched: Watched, files: int) -> None:
    """What a client had asked for may be executed before it is noticed that it hung up."""
    deadline = time.monotonic() + GONE
    while watched.files() > files:
        assert time.monotonic() < deadline, f"{watched.files() - files} connections are still there after {GONE:g} s"
        time.sleep(LOOK_EVERY)


@contextmanager
def _crowd(address: str, counts: Mapping[str, int]) -> Iterator[subprocess.Popen[str]]:
    """All have connected when it is there, or were refused."""
    command = [sys.executable, "-m", "tests.hostile.crowd", address, *(f"{kind}={of}" for kind, of in counts.items())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as crowd:
        try:
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == "connected\n", "the hostile clients did not come"
            yield crowd
        finally:
            crowd.kill()


def _end(crowd: subprocess.Popen[str]) -> dict[str, Fates]:
    output, _ = crowd.communicate(timeout=CONNECTING)
    return {kind: Fates(**of) for kind, of in json.loads(output).items()}


@contextmanager
def _watching(watched: Watched) -> Iterator[None]:
    """The daemon, now and then."""
    going = True

    def watch() -> None:
        while going:
            watched.look()
            time.sleep(LOOK_EVERY)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        going = False
        thread.join()
