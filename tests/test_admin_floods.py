"""O3: whatever is sent to the admin address of a real daemon costs the daemon next to nothing, and the log too.

What the protocol's clients feel of it is the share of the daemon's one thread that it takes. So that is measured, while
nobody else wants anything: it is the same on a busy machine.
"""

import os
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.server.rpc import RawClient

# The gate allows a two-hundredth; the rest is for the connections that the loop has to notice, and for the daemon's own
# timers. Without the gate the first two floods took all of it and half of it.
MOST_OF_A_THREAD = 0.15
FLOOD_SECONDS = 1.5
GROWTH = 8 * 2**20  # bytes; the HTTP library's parser and its first requests take 1 MiB

GET = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /live HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

Address = tuple[str, int]
Flood = Callable[[Address, threading.Event], None]


def streams(count: int, first: bytes, then: bytes) -> Flood:
    """So many connections that send without end and read nothing, each made again when it is closed."""

    def run(address: Address, ended: threading.Event) -> None:
        unsent: dict[socket.socket, bytes] = {}
        while not ended.is_set():
            while len(unsent) < count:
                sock = socket.create_connection(address)
                sock.setblocking(False)
                unsent[sock] = first
            for sock, data in list(unsent.items()):
                try:
                    data = data or then
                    unsent[sock] = data[sock.send(data) :]
                except BlockingIOError:
                    time.sleep(0.0005)
                except OSError:
                    sock.close()
                    del unsent[sock]
        for sock in unsent:
            sock.close()

    return run


def requests(data: bytes) -> Flood:
    """A connection for each, one after the other as fast as they are answered."""

    def run(address: Address, ended: threading.Event) -> None:
        while not ended.is_set():
            with socket.create_connection(address, 10) as sock, suppress(OSError):
                sock.sendall(data)
                while sock.recv(65536):
                    pass

    return run


def connections(address: Address, ended: threading.Event) -> None:
    """A thousand a second, of which half hang up at once."""
    open_: list[socket.socket] = []
    while not ended.is_set():
        for _ in range(10):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(address)
            open_.append(sock)
        while len(open_) > 200:
            open_.pop(0).close()
        for sock in open_[::2]:
            sock.close()
        ended.wait(0.01)
    for sock in open_:
        sock.close()


FLOODS: dict[str, Flood] = {
    "bodies without end": streams(8, CHUNKED, b"1\r\nx\r\n" * 10_000),
    "pipelined requests": streams(4, GET, GET * 2000),
    "heads without end": streams(32, b"GET / HTTP/1.1\r\n", b"A: b\r\n"),
    "connections": connections,
    "no requests": requests(b"\x16\x03\x01 nonsense\r\n\r\n"),
    "wrong tokens": requests(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer guess\r\n\r\n"),
    "scrapes": requests(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 0123456789abcdef\r\n\r\n"),
}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, environment={"STATESTORED_TOKEN": "0123456789abcdef"}) as daemon:
        yield daemon


@contextmanager
def flooded(daemon: Daemon, flood: Flood) -> Iterator[None]:
    ended = threading.Event()
    thread = threading.Thread(target=flood, args=(admin_of(daemon), ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def admin_of(daemon: Daemon) -> Address:
    host, _, port = daemon.admin.removeprefix("http://").rpartition(":")
    return host, int(port)


def cpu_seconds(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(daemon: Daemon) -> int:
    """Bytes."""
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def live(daemon: Daemon) -> bytes:
    with urllib.request.urlopen(f"{daemon.admin}/live", timeout=10) as response:
        return bytes(response.read())


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_takes_no_time_from_clients(guarded: Daemon, what: str) -> None:
    lines = guarded.log().count("\n")
    with flooded(guarded, FLOODS[what]):
        time.sleep(0.2)  # it is under way
        began, cpu = time.monotonic(), cpu_seconds(guarded)
        time.sleep(FLOOD_SECONDS)
        share = (cpu_seconds(guarded) - cpu) / (time.monotonic() - began)
        with RawClient(guarded.address) as client:
            client.ask("hello", {"token": "0123456789abcdef"})
            client.ask("set", "lists", "ann", "A")
            assert client.ask("get", "lists", "ann") == "A"
    assert share < MOST_OF_A_THREAD
    assert live(guarded) == b"live\n", "and it is there again for everybody"
    assert guarded.log().count("\n") - lines <= 20, "a line a second for each reason"
    assert "Traceback" not in guarded.log()


@pytest.mark.parametrize("what", ["bodies without end", "pipelined requests", "heads without end"])
def test_a_flood_takes_no_memory(guarded: Daemon, what: str) -> None:
    live(guarded)
    before = resident(guarded)
    with flooded(guarded, FLOODS[what]):
        time.sleep(FLOOD_SECONDS)
        assert resident(guarded) - before < GROWTH
