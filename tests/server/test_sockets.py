"""Unix sockets: ours from the first moment, and nobody else's taken away."""

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from statestore.address import UnixAddress
from statestored.errors import StartError
from statestored.sockets import bind_unix, reason


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
