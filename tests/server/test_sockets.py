"""The sockets to listen on: ours from the first moment, and nobody else's taken away."""

import errno
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from statestore.address import TcpAddress, UnixAddress
from statestored import sockets
from statestored.errors import StartError
from statestored.sockets import address_of, bind, bind_unix, listen, reason, unacknowledged


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket's path may have 108 bytes; pytest's directories are longer."""
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        yield Path(directory) / "s"


def address(path: Path) -> UnixAddress:
    return UnixAddress(str(path))


def leave_socket(path: Path) -> None:
    """As a killed daemon does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.usefixtures("open_umask")
def test_it_is_for_its_owner_only_before_anybody_could_connect(path: Path) -> None:
    with bind_unix(address(path), "--listen"):
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("works", [True, False])
def test_the_umask_is_what_it_was(path: Path, works: bool) -> None:
    before = os.umask(0o027)
    try:
        if works:
            bind_unix(address(path), "--listen").close()
        else:
            with pytest.raises(StartError):
                bind_unix(UnixAddress("/nowhere/at/all/s"), "--listen")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_stale_one_is_replaced(path: Path) -> None:
    leave_socket(path)
    with bind_unix(address(path), "--listen") as sock:
        sock.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_one_that_answers_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        with pytest.raises(StartError, match="another process listens on it"):
            bind_unix(address(path), "--listen")
        assert path.exists()


def test_one_that_answers_nobody_any_more_for_all_that_wait_is_left_alone(path: Path) -> None:
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(str(path))
        sock.listen(0)
        with suppress(BlockingIOError):
            for _ in range(100):
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        with pytest.raises(StartError, match="another process listens on it"):
            bind_unix(address(path), "--listen")
        assert path.exists()


def test_one_that_is_bound_and_does_not_listen_yet_is_left_alone(path: Path) -> None:
    """A daemon that loads its states is not taken for one that was killed."""
    with bind_unix(address(path), "--listen") as sock:
        with pytest.raises(StartError, match="another process listens on it"):
            bind_unix(address(path), "--listen")
        sock.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_nothing_is_left_of_one_that_is_removed(path: Path) -> None:
    for _ in range(2):
        with bind_unix(address(path), "--listen") as sock:
            sock.remove()
            assert list(path.parent.iterdir()) == []


def test_one_that_has_taken_its_path_stays(path: Path) -> None:
    """The path was removed by somebody, and another process has it now."""
    with bind_unix(address(path), "--listen") as sock, socket.socket(socket.AF_UNIX) as other:
        path.unlink()
        other.bind(str(path))
        other.listen()
        sock.remove()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_one_whose_path_is_gone_is_removed_all_the_same(path: Path) -> None:
    with bind_unix(address(path), "--listen") as sock:
        for file in path.parent.iterdir():
            file.unlink()
        sock.remove()
        bind_unix(address(path), "--listen").close()


@pytest.fixture
def umask_of_many() -> Iterator[None]:
    """The umask of threads that each change it, and set it to what they found: those of a process share one."""
    before = os.umask(0o177)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask_of_many")
def test_of_many_that_replace_a_stale_one_at_once_one_has_it(path: Path) -> None:
    leave_socket(path)
    start, bound = threading.Barrier(8), list[socket.socket]()

    def bind() -> None:
        start.wait(20)
        with suppress(StartError):
            bound.append(bind_unix(address(path), "--listen"))

    threads = [threading.Thread(target=bind) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bound) == 1
    bound[0].listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    bound[0].close()


@pytest.mark.parametrize("name", ["s", "s.lock"])
def test_a_link_is_left_alone(path: Path, name: str) -> None:
    target = path.with_name("target")
    (path.parent / name).symlink_to(target)
    with pytest.raises(StartError):
        bind_unix(address(path), "--listen")
    assert (path.parent / name).is_symlink()
    assert not target.exists()


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(StartError, match="no socket"):
        bind_unix(address(path), "--listen")
    assert path.read_text() == "precious"


@pytest.mark.parametrize("where", ["/nowhere/at/all/s", "/tmp/" + "x" * 200])
def test_a_path_that_cannot_be_is_refused_with_its_name(where: str) -> None:
    with pytest.raises(StartError) as refusal:
        bind_unix(UnixAddress(where), "--listen")
    assert str(refusal.value).startswith(f"cannot listen on unix:{where} (--listen): ")


def test_a_reason_fits_into_a_sentence() -> None:
    assert reason(FileNotFoundError(2, "No such file or directory")) == "no such file or directory"
    assert reason(OSError("AF_UNIX path too long")) == "AF_UNIX path too long"


def test_one_that_a_process_has_bound_and_does_not_listen_on_is_left_alone(path: Path) -> None:
    """As a daemon that loads its states."""
    with bind_unix(address(path), "--listen"):
        with pytest.raises(StartError, match="another process"):
            bind_unix(address(path), "--listen")
        assert path.exists()


# TCP


ANY_PORT = TcpAddress("127.0.0.1", 0)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of host names that there are not."""
    names: dict[str, list[str]] = {}
    resolve = sockets._resolve

    async def look_up(asked: TcpAddress) -> Any:
        hosts = names.get(asked.host, [asked.host])
        return [place for host in hosts for place in await resolve(TcpAddress(host, asked.port))]

    monkeypatch.setattr(sockets, "_resolve", look_up)
    return names


def close(bound: list[socket.socket]) -> None:
    for sock in bound:
        sock.close()


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def port_of(sock: socket.socket) -> int:
    found = address_of(sock)
    assert isinstance(found, TcpAddress)
    return found.port


async def test_an_address_is_taken_before_anybody_can_connect() -> None:
    (sock,) = await bind(ANY_PORT, "--listen")
    port = port_of(sock)
    assert not accepts(port)
    with pytest.raises(StartError) as refusal:
        await bind(TcpAddress("127.0.0.1", port), "--admin-listen")
    assert str(refusal.value) == f"cannot listen on 127.0.0.1:{port} (--admin-listen): address already in use"
    listen(sock, "--listen")
    assert accepts(port)
    with pytest.raises(StartError, match="already in use"):
        await bind(TcpAddress("127.0.0.1", port), "--listen")
    sock.close()


async def test_what_another_program_shares_is_in_use_as_well() -> None:
    """It asks for SO_REUSEADDR, as most do, and may not have the address of one that does not listen yet."""
    (sock,) = await bind(ANY_PORT, "--listen")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port_of(sock)))
    sock.close()


@pytest.mark.parametrize("ends_first", ["client", "server"])
async def test_connections_of_a_daemon_that_has_ended_are_not_in_the_way(ends_first: str) -> None:
    """Also not of the one after it. The side that ends a connection first keeps it for a minute."""
    port = 0
    for _ in range(3):
        (sock,) = await bind(TcpAddress("127.0.0.1", port), "--listen")
        port = port_of(sock)
        listen(sock, "--listen")
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = sock.accept()
        for each in (accepted, client) if ends_first == "server" else (client, accepted):
            each.close()
        left_open = socket.create_connection(("127.0.0.1", port)), sock.accept()[0]
        sock.close()
        again = await bind(TcpAddress("127.0.0.1", port), "--listen")
        with pytest.raises(StartError, match="already in use"):
            await bind(TcpAddress("127.0.0.1", port), "--listen")
        close([*again, *left_open])


async def test_all_addresses_of_a_name_get_one_port(names: dict[str, list[str]]) -> None:
    names["here.example"] = ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
    bound = await bind(TcpAddress("here.example", 0), "--listen")
    first, second = map(address_of, bound)
    assert isinstance(first, TcpAddress)
    assert isinstance(second, TcpAddress)
    assert (first.host, second.host) == ("127.0.0.1", "127.0.0.2")
    assert first.port == second.port > 0
    close(bound)


async def test_another_port_is_chosen_if_it_is_not_free_on_all_of_them(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["here.example"] = ["127.0.0.1", "127.0.0.2"]
    taken: list[socket.socket] = []
    bind_socket = sockets._bind_socket

    def take_the_second(family: Any, place: tuple[Any, ...]) -> socket.socket:
        if place[0] == "127.0.0.2" and not taken:
            taken.append(bind_socket(family, place))
        return bind_socket(family, place)

    monkeypatch.setattr(sockets, "_bind_socket", take_the_second)
    bound = await bind(TcpAddress("here.example", 0), "--listen")
    assert port_of(taken[0]) not in {port_of(sock) for sock in bound}
    assert len(bound) == 2
    close([*bound, *taken])


@pytest.mark.parametrize("missing", ["first", "last"])
async def test_an_address_of_a_name_that_the_machine_does_not_have_is_left_out(
    names: dict[str, list[str]], missing: str
) -> None:
    """As ::1 of localhost on a machine without IPv6; 240.0.0.1 is nobody's."""
    names["here.example"] = ["240.0.0.1", "127.0.0.1"] if missing == "first" else ["127.0.0.1", "240.0.0.1"]
    with capture_logs() as logs:
        bound = await bind(TcpAddress("here.example", 0), "--listen")
    assert [sock.getsockname()[0] for sock in bound] == ["127.0.0.1"]
    ((event, name, left_out, why),) = [
        (entry["event"], entry["name"], entry["address"], entry["reason"]) for entry in logs
    ]
    assert (event, name) == ("not listening on an address of a name", "here.example:0")
    assert left_out.startswith("240.0.0.1:")
    assert why == "cannot assign requested address"
    close(bound)


async def test_a_kind_of_address_that_the_machine_does_not_know_is_left_out(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["here.example"] = ["127.0.0.2", "127.0.0.1"]
    bind_socket = sockets._bind_socket

    def know_one(family: Any, place: tuple[Any, ...]) -> socket.socket:
        if place[0] == "127.0.0.2":
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return bind_socket(family, place)

    monkeypatch.setattr(sockets, "_bind_socket", know_one)
    bound = await bind(TcpAddress("here.example", 0), "--listen")
    assert [sock.getsockname()[0] for sock in bound] == ["127.0.0.1"]
    close(bound)


async def test_an_address_of_a_name_that_is_in_use_ends_it(names: dict[str, list[str]]) -> None:
    """Another program answers there: clients of this name would come to either of them."""
    names["here.example"] = ["127.0.0.1", "127.0.0.2"]
    free, other = await bind(TcpAddress("here.example", 0), "--listen")
    port = port_of(other)
    free.close()
    with pytest.raises(StartError) as refusal:
        await bind(TcpAddress("here.example", port), "--listen")
    said = str(refusal.value)
    assert said == f"cannot listen on here.example:{port} (--listen): 127.0.0.2:{port}: address already in use"
    close(await bind(TcpAddress("127.0.0.1", port), "--listen"))  # that one was given back
    other.close()


@pytest.mark.parametrize("addresses", [["240.0.0.1"], ["240.0.0.1", "240.0.0.2"]])
async def test_a_name_of_which_no_address_can_be_had_is_refused(
    names: dict[str, list[str]], addresses: list[str]
) -> None:
    names["there.example"] = addresses
    with pytest.raises(StartError, match=r"there\.example:7828 \(--listen\): .*annot assign requested address"):
        await bind(TcpAddress("there.example", 7828), "--listen")


async def test_a_name_of_nothing_is_refused() -> None:
    with pytest.raises(StartError, match=r"cannot listen on nowhere\.invalid:0 \(--admin-listen\): "):
        await bind(TcpAddress("nowhere.invalid", 0), "--admin-listen")


async def test_an_address_that_another_program_listens_on_in_the_end_is_refused() -> None:
    (sock,) = await bind(ANY_PORT, "--listen")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", port_of(sock)))
        except OSError:  # not every system lets it
            sock.close()
            return
        other.listen()
        with pytest.raises(StartError, match="already in use"):
            listen(sock, "--listen")
    sock.close()


async def test_a_unix_socket_is_bound_and_listened_on_in_the_same_way(path: Path) -> None:
    (sock,) = await bind(address(path), "--listen")
    with socket.socket(socket.AF_UNIX) as client:
        assert client.connect_ex(str(path)) == errno.ECONNREFUSED
        listen(sock, "--listen")
        client.connect(str(path))
    assert address_of(sock) == address(path)
    sock.close()


def test_what_a_peer_has_not_taken_is_known() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            assert unacknowledged(accepted) == 0
            accepted.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    accepted.send(bytes(2**16))
            assert unacknowledged(accepted) > 0
