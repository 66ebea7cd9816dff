"""Real daemons and their addresses: in use, not there, taken before a load and served after it."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from statestored.errors import Exit
from tests.daemon import STATESTORED, Daemon
from tests.server.rpc import RawClient
from tests.server.waiting import wait_until
from tests.test_failing_disk import REPLAYING_WHEN_TOLD

Make = Callable[[str], Daemon]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A daemon with a directory of its own, not started yet. It replays its journal when the file `told` is there."""
    with ExitStack() as stack:

        def make(name: str) -> Daemon:
            directory = tmp_path / name
            directory.mkdir()
            daemon = Daemon(directory)
            daemon.program = (sys.executable, "-c", REPLAYING_WHEN_TOLD, str(directory / "told"))
            stack.callback(daemon.close)
            return daemon

        yield make


def go_on(daemon: Daemon) -> None:
    (daemon.directory / "told").touch()


def is_refused(address: str) -> bool:
    if address.startswith("unix:"):
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(address.removeprefix("unix:")) != 0
    host, _, port = address.rpartition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) != 0


@pytest.mark.parametrize("is_loading", [True, False])
@pytest.mark.parametrize("which", ["tcp", "unix", "admin"])
def test_an_address_in_use_is_noticed_before_anything_is_loaded(make: Make, which: str, is_loading: bool) -> None:
    """Also if the other daemon does not listen yet because it is still loading. The load of the second never ends."""
    first, second = make("first"), make("second")
    first.launch().wait_until_live()
    assert is_refused(first.address)
    assert is_refused(first.unix_address)
    if not is_loading:
        go_on(first)
        first.wait_until_listening()
    if which == "tcp":
        second.address = first.address
    elif which == "unix":
        second.unix_address = first.unix_address
    else:
        second.arguments = (f"--admin-listen={first.admin.removeprefix('http://')}",)
    done = second.run()
    assert done.returncode == Exit.CANNOT_START
    assert "in use" in done.stderr or "another process" in done.stderr
    assert "Traceback" not in done.stderr
    if is_loading:
        go_on(first)
        first.wait_until_listening()
    for address in (first.address, first.unix_address):
        with RawClient(address) as client:
            assert client.ask("ping") is None
    assert first.stop() == Exit.STOPPED


def test_a_start_that_fails_leaves_no_socket_behind(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.start().stop()
    (segment,) = daemon.data_dir.glob("*.journal")
    segment.rename(segment.with_name("00000001.snapshot"))
    assert daemon.run().returncode not in (Exit.STOPPED, Exit.CANNOT_START)
    assert not Path(daemon.unix_address.removeprefix("unix:")).exists()
    daemon.close()


def test_a_daemon_that_is_stopped_while_it_loads_leaves_no_socket_behind(make: Make) -> None:
    daemon = make("one").launch().wait_until_live()
    assert daemon.stop() == Exit.STOPPED
    assert not Path(daemon.unix_address.removeprefix("unix:")).exists()


# `localhost` on a machine without IPv6, which has it in its hosts file all the same, as most containers do.
WITHOUT_IPV6 = """
set -e
ip link set lo up
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
printf '::1 localhost\\n127.0.0.1 localhost\\n' > "$0"
mount --bind "$0" /etc/hosts
exec "$@"
"""


def can_unshare() -> bool:
    """Whether this machine lets us have a network, and a hosts file, of our own."""
    if os.getuid() != 0 or not all(map(shutil.which, ("unshare", "ip"))):
        return False
    own = [
        "unshare",
        "--net",
        "--mount",
        "sh",
        "-ec",
        "ip link set lo up; test -w /proc/sys/net/ipv6/conf/all/disable_ipv6",
    ]
    return subprocess.run(own, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="needs a network namespace")
def test_localhost_can_be_listened_on_without_ipv6(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--admin-listen=localhost:0")
    daemon.address = "localhost:0"
    hosts = str(tmp_path / "hosts")
    daemon.program = ("unshare", "--net", "--mount", "sh", "-c", WITHOUT_IPV6, hosts, *STATESTORED)
    with daemon.start():
        assert re.fullmatch(r"127\.0\.0\.1:\d+", daemon.address)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", daemon.admin)
        event = 'event="not listening on an address of a name" '
        wait_until(lambda: daemon.log().count(event) == 2)
        left_out = re.findall(f"{event}.*", daemon.log())
        for line in left_out:
            assert re.search(r'address=\[::1\]:\d+ .*reason="cannot assign requested address"', line)
        with RawClient(daemon.unix_address) as client:
            assert client.ask("ping") is None
        assert daemon.stop() == Exit.STOPPED
