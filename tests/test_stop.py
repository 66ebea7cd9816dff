"""O1: a stop ends within five seconds, whatever any connection does, and takes nothing that was acknowledged."""

import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from statestore.address import TcpAddress, parse_address
from statestored.app import STOP_SECONDS
from statestored.errors import Exit
from statestored.tokens import Role, add_token
from tests.certificates import Authority
from tests.daemon import Daemon
from tests.server.rpc import RawClient, request
from tests.server.waiting import wait_until

LIMIT = 5.0  # seconds
PIPELINED = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 5000
SCANS = request(1, "scan", None, None, None, None) * 5000
ANN = ("lists", "ann@a.example")


class Peers:
    """Connections to a daemon, each of which does what it can to be waited for."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.stack = ExitStack()
        self._ended = threading.Event()
        self.stack.callback(self._ended.set)

    def admin(self, data: bytes) -> None:
        """Sends as much of it as the system takes, and reads nothing."""
        _send(self._connect(self.daemon.admin.removeprefix("http://")), data)

    def protocol(self, address: str, data: bytes) -> None:
        _send(self._connect(address), data)

    def flooding(self, address: str, data: bytes, *, reads: bool) -> None:
        """Sends without end, from a thread."""
        sock = self._connect(address)

        def run() -> None:
            with suppress(OSError):
                while not self._ended.is_set():
                    _send(sock, data)
                    with suppress(BlockingIOError):
                        while reads and sock.recv(65536):
                            pass
                    time.sleep(0.001)  # as a network would be slower than this machine

        thread = threading.Thread(target=run)
        thread.start()
        self.stack.callback(thread.join)
        self.stack.callback(self._ended.set)

    def tls(self, address: str, data: bytes, context: ssl.SSLContext) -> None:
        """Completes its handshake, sends, and reads nothing."""
        client = self.stack.enter_context(RawClient(address, context))
        client.socket.setblocking(False)
        with suppress(ssl.SSLWantWriteError, BlockingIOError):
            for _ in range(100):
                client.socket.send(data)

    def _connect(self, address: str) -> socket.socket:
        parsed = parse_address(address)
        if isinstance(parsed, TcpAddress):
            sock = socket.create_connection((parsed.host, parsed.port), LIMIT)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(parsed.path)
        sock.setblocking(False)
        self.stack.callback(sock.close)
        return sock


def _send(sock: socket.socket, data: bytes) -> None:
    with suppress(BlockingIOError):
        while data:
            data = data[sock.send(data) :]


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Callable[..., Peers]]:
    """Return a daemon of this test's own, with an acknowledged write, and enough for large answers."""
    with ExitStack() as stack:

        def start(*arguments: str) -> Peers:
            daemon = stack.enter_context(Daemon(tmp_path, "--snapshot-interval=0", *arguments).start())
            with RawClient(daemon.unix_address) as client:
                client.ask("set_many", [["m", f"s{number}", "A" * 500] for number in range(400)])
                client.ask("set", *ANN, "CONFIRMING")
            found = Peers(daemon)
            stack.enter_context(found.stack)
            return found

        yield start


def check_stop(daemon: Daemon) -> None:
    started = time.monotonic()
    assert daemon.stop() == Exit.STOPPED
    seconds = time.monotonic() - started
    assert seconds < LIMIT, f"it took {seconds:.1f} s"
    assert "Traceback" not in daemon.log()
    with RawClient(daemon.start().unix_address) as client:
        assert client.ask("get", *ANN) == "CONFIRMING"


ADMIN = {
    "pipelines and does not read": PIPELINED,
    "a body that does not come": b"POST /live HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
    "a body without end": b"POST /live HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1\r\nx\r\n" * 9999,
    "half a head": b"GET /live HTTP/1.1\r\nHo",
    "nothing": b"",
}


@pytest.mark.parametrize("what", ADMIN)
def test_connections_to_the_admin_address_do_not_delay_it(peers: Callable[..., Peers], what: str) -> None:
    found = peers()
    for _ in range(4):
        found.admin(ADMIN[what])
    _settle(found.daemon)
    check_stop(found.daemon)


PROTOCOL = {
    "pipelines and does not read": SCANS,
    "half a message": request(1, "set", *ANN, "A" * 900)[:-5],
    "nothing": b"",
}


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("what", PROTOCOL)
def test_clients_do_not_delay_it(peers: Callable[..., Peers], what: str, transport: str) -> None:
    found = peers()
    address = found.daemon.address if transport == "tcp" else found.daemon.unix_address
    for _ in range(4):
        found.protocol(address, PROTOCOL[what])
    _settle(found.daemon)
    check_stop(found.daemon)


@pytest.mark.parametrize("reads", [True, False])
def test_clients_that_go_on_sending_do_not_delay_it(peers: Callable[..., Peers], reads: bool) -> None:
    found = peers()
    for address in (found.daemon.address, found.daemon.unix_address):
        found.flooding(address, request(1, "get", *ANN) * 200, reads=reads)
        found.flooding(address, request(1, "set", "lists", "ben", "A") * 200, reads=reads)
    found.flooding(found.daemon.admin.removeprefix("http://"), PIPELINED, reads=reads)
    wait_until(lambda: _info(found.daemon)["calls"]["set"] > 1000)
    check_stop(found.daemon)


def test_tls_does_not_delay_it(peers: Callable[..., Peers], tmp_path: Path) -> None:
    """Neither handshakes under way, nor clients that do not read, nor those that do not take leave."""
    authority = Authority(tmp_path)
    identity = authority.issue("server")
    found = peers(f"--tls-cert={identity.certificate}", f"--tls-key={identity.key}")
    context = ssl.create_default_context(cafile=authority.certificate)
    hello = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
    first_flight = hello.read()
    for data in (b"", first_flight[:50], first_flight):
        for _ in range(8):
            found.protocol(found.daemon.address, data)
    for data in (b"", SCANS):
        for _ in range(4):
            found.tls(found.daemon.address, data, context)
    _settle(found.daemon)
    check_stop(found.daemon)


# A program that cannot go on with a snapshot: the file `told` appears when it waits.
STUCK_SNAPSHOT = """
import pathlib, sys, threading
from statestored import snapshot

def verify_snapshot(*_, told=sys.argv.pop(1)):
    pathlib.Path(told).touch()
    threading.Event().wait()

snapshot.verify_snapshot = verify_snapshot
from statestored.__main__ import main
main()
"""


@contextmanager
def stuck(directory: Path) -> Iterator[Daemon]:
    """One that has acknowledged a write, and waits for the disk in a snapshot."""
    told = directory / "told"
    daemon = Daemon(directory, "--snapshot-interval=0")
    daemon.program = (sys.executable, "-c", STUCK_SNAPSHOT, str(told))
    with daemon.start():
        with RawClient(daemon.unix_address) as client:
            client.ask("set", *ANN, "CONFIRMING")
        daemon.send_signal(signal.SIGUSR1)
        wait_until(told.exists)
        yield daemon


def test_a_disk_that_hangs_does_not_delay_it(tmp_path: Path) -> None:
    """All that is still to be done then is dispensable: nothing was acknowledged that is not safe."""
    with stuck(tmp_path) as daemon:
        check_stop(daemon)
        assert "the stop took too long" in daemon.log()


def test_a_second_signal_ends_a_stop_that_hangs_at_once(tmp_path: Path) -> None:
    with stuck(tmp_path) as daemon:
        daemon.send_signal(signal.SIGTERM)
        wait_until(lambda: "event=stopping" in daemon.log())
        started = time.monotonic()
        assert daemon.stop() == 128 + signal.SIGTERM
        assert time.monotonic() - started < STOP_SECONDS / 2


# A program whose snapshots take ten times as long as a stop may.
SLOW_SNAPSHOT = """
import asyncio
from statestored import app
from statestored.engines import saver

saver.WATCH_SECONDS = 3600
app.STOP_SECONDS = 0.1
write_states = saver.write_states

async def slowly(*arguments):
    await asyncio.sleep(1)
    return await write_states(*arguments)

saver.write_states = slowly
from statestored.__main__ import main
main()
"""


def test_a_stop_waits_for_a_snapshot_without_which_acknowledged_writes_are_lost(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        daemon.stop()
        daemon.program, program = (sys.executable, "-c", SLOW_SNAPSHOT), daemon.program
        with RawClient(daemon.start().unix_address) as client:
            client.ask("set", *ANN, "CONFIRMING")
        for path in daemon.data_dir.glob("*.journal"):
            path.unlink()
        assert daemon.stop() == Exit.STOPPED
        assert "the stop takes long: a snapshot replaces files" in daemon.log()
        daemon.program = program
        with RawClient(daemon.start().unix_address) as client:
            assert client.ask("get", *ANN) == "CONFIRMING"


LOADING = """
import asyncio
from statestored.engines import recovery

async def replay(*_):
    await asyncio.Event().wait()

recovery._replay = replay
from statestored.__main__ import main
main()
"""


def test_a_daemon_that_loads_stops_as_fast(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.program = (sys.executable, "-c", LOADING)
    with daemon.launch().wait_until_live():
        found = Peers(daemon)
        with found.stack:
            for data in ADMIN.values():
                found.admin(data)
            started = time.monotonic()
            assert daemon.stop() == Exit.STOPPED
            assert time.monotonic() - started < LIMIT


# A program that waits for the disk while it starts, in the method that is named.
STUCK_START = """
import pathlib, sys, threading
from statestored.datadir import DataDirectory

def wait(*_, told=sys.argv.pop(1)):
    pathlib.Path(told).touch()
    threading.Event().wait()

setattr(DataDirectory, sys.argv.pop(1), wait)
from statestored.__main__ import main
main()
"""


@pytest.mark.parametrize("method", ["open", "save_identity"])
def test_a_disk_that_hangs_during_a_start_does_not_delay_it(tmp_path: Path, method: str) -> None:
    told = tmp_path / "told"
    daemon = Daemon(tmp_path)
    daemon.program = (sys.executable, "-c", STUCK_START, str(told), method)
    with daemon.launch():
        wait_until(told.exists)
        started = time.monotonic()
        assert daemon.stop() == Exit.STOPPED
        assert time.monotonic() - started < LIMIT
        assert "the stop took too long" in daemon.log()


def test_a_file_that_hangs_while_it_is_read_again_delays_nothing(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    add_token(tokens, "one", Role.WRITE, ())
    daemon = Daemon(tmp_path, f"--tokens={tokens}").start()
    tokens.unlink()
    os.mkfifo(tokens)
    daemon.send_signal(signal.SIGHUP)
    writing: list[int] = []

    def is_being_read() -> bool:
        with suppress(OSError):  # nobody has opened it to read yet
            writing.append(os.open(tokens, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writing)

    with daemon:
        wait_until(is_being_read)
        assert daemon.stop() == Exit.STOPPED
        assert "the stop took too long" not in daemon.log()
    os.close(writing[0])


def _settle(daemon: Daemon) -> None:
    """Wait until the daemon has done what it can do with what its peers have sent: it does nothing any more."""
    before, quiet = -1.0, 0
    while quiet < 5:
        now = _cpu_seconds(daemon)
        before, quiet = now, quiet + 1 if now == before else 0
        time.sleep(0.05)


def _cpu_seconds(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _info(daemon: Daemon) -> dict[str, dict[str, int]]:
    with RawClient(daemon.unix_address) as client:
        return client.ask("info")  # type: ignore[no-any-return]
