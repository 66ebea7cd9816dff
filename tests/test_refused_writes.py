"""D6, K2: writes on a disk that is really full, and after it: each is applied once, or its caller is told."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from statestore import AsyncRemoteStorage, Forbidden, RemoteStorage, StateStorage, Unavailable
from statestore.base import START, Swap
from tests import daemon as daemon_module
from tests.client.blocking import Blocking
from tests.client.servers import Cut, Proxy, write_all
from tests.consistency import faults
from tests.consistency.faulty import program_with
from tests.daemon import Daemon
from tests.faults.filesystem import fill, small_filesystem
from tests.server.waiting import wait_until
from tests.tokenfile import TokenFile

pytestmark = pytest.mark.timeout(120)

MIB = 2**20
M, N = "app.join", "app.post"
ANN, BOB = "ann@example.org", "bob@example.org"
LONG = "x" * 100
GOES_ON_WITHIN = 5.0  # seconds from when there is room
SOON = 1.0  # seconds, for a call that is to be given up

# Each changes what is stored for Ann, who is in "old" before it.
WRITES: dict[str, tuple[Callable[[StateStorage], Any], Any]] = {
    "set": (lambda storage: storage.set(M, ANN, "mine"), None),
    "set_all": (lambda storage: storage.set_all(ANN, "mine"), 1),
    "set_many": (lambda storage: storage.set_many([(M, ANN, "mine")]), None),
    "compare_and_set": (lambda storage: storage.compare_and_set(M, ANN, "old", "mine"), Swap(True, "old")),
    "clear": (lambda storage: storage.clear(), None),  # type: ignore[attr-defined]
}

Connect = Callable[..., Any]


def blocking(address: str, **settings: Any) -> RemoteStorage:
    return RemoteStorage(address, **settings)


def coroutines(address: str, **settings: Any) -> Blocking:
    return Blocking(AsyncRemoteStorage(address, **settings))


@pytest.fixture(autouse=True)
def time_for_the_last_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has an answer, also on a busy machine; without one it would be in doubt."""
    monkeypatch.setattr("statestore.calls.LAST_ATTEMPT", SOON / 2)


both_clients = pytest.mark.parametrize("connect", [blocking, coroutines])


class Disk:
    """The small file system that a daemon writes to."""

    def __init__(self, place: Path, daemon: Daemon) -> None:
        self._place = place
        self._daemon = daemon
        self._filler: Path | None = None
        self._number = 0

    def fill(self) -> None:
        """Returns when writes are refused."""
        self._filler = fill(self._place)
        with RemoteStorage(self._daemon.unix_address, namespace="filler", write_deadline=0.2) as filling:
            wait_until(lambda: not self._takes(filling))

    def make_room(self) -> None:
        """Returns when writes are accepted again."""
        assert self._filler is not None
        self._filler.unlink()
        with RemoteStorage(self._daemon.unix_address, namespace="filler") as writing:
            writing.set(M, ANN, "room")

    def _takes(self, filling: RemoteStorage) -> bool:
        self._number += 1
        try:
            filling.set_many([(M, str(sender), f"{self._number} {LONG}") for sender in range(100)])
        except Unavailable:
            return False
        return True


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Its data directory is on a file system of 8 MiB."""
    with small_filesystem(tmp_path / "small", 8 * MIB) as place:
        daemon = Daemon(tmp_path, "--allow-clear")
        daemon.data_dir = place / "data"
        with daemon:
            yield daemon


@pytest.fixture
def disk(daemon: Daemon) -> Disk:
    return Disk(daemon.data_dir.parent, daemon)


@pytest.fixture
def proxy(daemon: Daemon) -> Iterator[Proxy]:
    with Proxy(daemon.address) as proxy:
        yield proxy


@pytest.fixture
def other(daemon: Daemon) -> Iterator[RemoteStorage]:
    """Another client, in a session that it had before."""
    with RemoteStorage(daemon.unix_address) as other:
        other.set(M, ANN, "old")
        yield other


@contextmanager
def answer_lost(proxy: Proxy, meanwhile: Callable[[], None]) -> Iterator[None]:
    """The next write is applied, and then `meanwhile` happens; its connection breaks, and its answer is lost."""

    async def lose(_writer: Any, _reply: bytes) -> None:
        proxy.write_reply = write_all
        await asyncio.get_running_loop().run_in_executor(None, meanwhile)
        raise ConnectionResetError

    proxy.write_reply = lose
    yield
    assert proxy.write_reply is write_all, "no answer came"


@both_clients
@pytest.mark.parametrize("method", WRITES)
def test_after_a_full_disk_a_write_whose_answer_is_lost_is_applied_once(
    connect: Connect, method: str, disk: Disk, proxy: Proxy, other: RemoteStorage
) -> None:
    """The client connected while writes were refused, and there was no session for it."""
    write, result = WRITES[method]
    disk.fill()
    with connect(proxy.address) as client:
        assert client.get(M, ANN) == "old"
        disk.make_room()
        proxy.methods.clear()
        with answer_lost(proxy, lambda: other.set(M, ANN, "newer")):
            assert write(client) == result
        assert proxy.methods == [method, method]
        assert other.get(M, ANN) == "newer"


@both_clients
def test_a_write_waits_until_there_is_room_and_reads_go_on_meanwhile(
    connect: Connect, disk: Disk, proxy: Proxy, other: RemoteStorage
) -> None:
    disk.fill()
    with connect(proxy.address, write_deadline=SOON) as client:
        with pytest.raises(Unavailable, match=r"no room .*gave up after 1 s"):
            client.set(M, ANN, "mine")
        connections = proxy.connections
        for _ in range(100):
            assert client.get(M, ANN) == "old"
        assert proxy.connections == connections <= 4
    with connect(proxy.address) as client, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.set, M, ANN, "mine")
        connections = proxy.connections
        wait_until(lambda: proxy.connections >= connections + 2)
        assert client.get(M, ANN) == "old"
        assert "set" not in proxy.methods, "it has no number yet"
        disk.make_room()
        waiting.result(GOES_ON_WITHIN)
    assert other.get(M, ANN) == "mine"


@both_clients
def test_a_client_that_was_away_while_the_disk_became_full(
    connect: Connect, disk: Disk, proxy: Proxy, other: RemoteStorage
) -> None:
    """What is refused is not uncertain, in whichever session it is repeated."""
    with connect(proxy.address, write_deadline=SOON) as client:
        client.set(M, BOB, "before")
        disk.fill()
        with pytest.raises(Unavailable, match="no room"):
            client.set(M, BOB, "mine")
        assert other.get(M, BOB) == "before"
        disk.make_room()
        client.set(M, BOB, "mine")
    assert other.get(M, BOB) == "mine"


@both_clients
def test_a_client_that_may_only_read_is_told_so_at_once_and_gets_a_session_when_it_may_write(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = TokenFile(tmp_path / "tokens.toml")
    reader = tokens.add("reader", "read")
    with Daemon(tmp_path, f"--tokens={tokens.path}") as daemon, connect(daemon.address, token=reader) as client:
        assert client.get(M, ANN) == START
        for _ in range(3):
            with pytest.raises(Forbidden, match="needs the role write"):
                client.set(M, ANN, "mine")
        assert client.info()["sessions"] == 0
        tokens.change_role("reader", "write")
        daemon.send_signal(signal.SIGHUP)
        monkeypatch.setattr("statestore.renewal.PAUSE", (0.0, 0.0))

        def has_session() -> bool:
            with suppress(Forbidden):  # until the daemon has read the file
                client.set(M, ANN, "mine")
            return bool(client.info()["sessions"])

        wait_until(has_session)


@both_clients
def test_where_all_sessions_are_in_use_a_write_waits_for_one(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "STATESTORED", program_with(faults.one_session_at_a_time))
    with (
        Daemon(tmp_path) as daemon,
        Proxy(daemon.address) as proxy,
        RemoteStorage(daemon.address) as first,
        connect(proxy.address) as second,
        ThreadPoolExecutor(1) as thread,
    ):
        first.set(M, ANN, "first")
        proxy.cuts["set"] = [Cut(reply=0)]
        waiting = thread.submit(second.set, M, ANN, "second")
        wait_until(lambda: proxy.connections > 2)
        assert second.get(M, ANN) == "first"
        assert "set" not in proxy.methods
        first.close()
        waiting.result(GOES_ON_WITHIN)
        assert proxy.methods.count("set") == 2
        assert second.get(M, ANN) == "second"
        third = RemoteStorage(daemon.address, write_deadline=SOON)
        with third, pytest.raises(Unavailable, match="all 1 sessions are in use"):
            third.set(M, ANN, "third")


@pytest.fixture
def short_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the daemons of a test: they end as soon as nobody is connected."""
    monkeypatch.setattr(daemon_module, "STATESTORED", program_with(faults.sessions_end_soon))


@both_clients
@pytest.mark.parametrize("method", WRITES)
@pytest.mark.usefixtures("short_sessions")
def test_the_first_write_after_a_long_rest_and_a_restart_is_made_in_a_new_session(
    connect: Connect, method: str, tmp_path: Path
) -> None:
    """Its connection was dead before it was sent, so it is not uncertain."""
    write, result = WRITES[method]
    with Daemon(tmp_path, "--allow-clear") as daemon, connect(daemon.address) as client:
        client.set(M, ANN, "old")
        restart_without_sessions(daemon)
        assert write(client) == result


def restart_without_sessions(daemon: Daemon) -> None:
    """Returns when the sessions from before have expired."""
    daemon.stop()
    daemon.start()
    with RemoteStorage(daemon.address) as other:
        wait_until(lambda: other.info()["sessions"] == 1)  # its own


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.usefixtures("short_sessions")
def test_the_first_write_after_the_loop_was_blocked_during_a_restart(tmp_path: Path, loop_factory: Any) -> None:
    """The loop has not seen yet that its connection is dead."""

    async def write(daemon: Daemon) -> str:
        async with AsyncRemoteStorage(daemon.address) as storage:
            await storage.set(M, ANN, "old")
            restart_without_sessions(daemon)
            await storage.set(M, ANN, "mine")
            return await storage.get(M, ANN)

    with Daemon(tmp_path) as daemon, asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(write(daemon)) == "mine"
