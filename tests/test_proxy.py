"""The proxy does to a connection what it was told, and says when it has."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.proxy import PATIENCE, Direction, Proxy
from tests.server.waiting import wait_until

REQUESTS, REPLIES = Direction.REQUESTS, Direction.REPLIES
SOON = 0.05  # seconds in which on this machine a byte would have come
LATER = 0.25  # seconds; for so long even a busy machine does not stand still


class Echo:
    """Sends back what it gets, and counts it."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._server.getsockname())
        self.received = b""
        self.endings: list[str] = []  # of its connections: "FIN" or "RST"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    self.received += data
                    sock.sendall(data)
            except OSError:
                self.endings.append("RST")
            else:
                self.endings.append("FIN")

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(PATIENCE)


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.address) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    host, port = proxy.address.split(":")
    return socket.create_connection((host, int(port)), PATIENCE)


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connect(proxy) as client:
        yield client


def read(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := client.recv(count - len(data))):
        data += more
    return data


def ask(client: socket.socket, data: bytes = b"hello") -> bytes:
    client.sendall(data)
    return read(client, len(data))


def is_silent(client: socket.socket) -> bool:
    client.settimeout(SOON)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(PATIENCE)
    return False


def test_all_goes_through(proxy: Proxy, client: socket.socket) -> None:
    data = bytes(range(256)) * 1000
    threading.Thread(target=client.sendall, args=(data,)).start()
    assert read(client, len(data)) == data
    wait_until(lambda: proxy.passed == {REQUESTS: len(data), REPLIES: len(data)})
    assert proxy.connections == 1


@pytest.mark.parametrize(("reset", "ending"), [(False, "FIN"), (True, "RST")])
def test_cut(proxy: Proxy, echo: Echo, client: socket.socket, reset: bool, ending: str) -> None:
    ask(client)
    proxy.cut(reset=reset)
    if reset:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    else:
        assert client.recv(1) == b""
    wait_until(lambda: echo.endings == [ending])
    with connect(proxy) as another:
        assert ask(another) == b"hello"


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_cut_after_so_many_bytes_of_replies(
    proxy: Proxy, echo: Echo, client: socket.socket, count: int, reset: bool
) -> None:
    ask(client)
    cut = proxy.cut_after(REPLIES, count, reset=reset)
    client.sendall(b"again!")
    cut.wait()
    assert echo.received == b"helloagain!", "it was executed"
    with suppress(ConnectionResetError):  # which may come before what was sent before it is read
        assert read(client, 6) == b"again!"[:count]
        assert not reset or count
    with connect(proxy) as another:
        assert ask(another) == b"hello", "it was for once"


@pytest.mark.parametrize("count", [0, 1, 5])
def test_cut_after_so_many_bytes_of_requests(proxy: Proxy, echo: Echo, client: socket.socket, count: int) -> None:
    ask(client)
    cut = proxy.cut_after(REQUESTS, count)
    client.sendall(b"again!")
    cut.wait()
    read(client, 6)
    wait_until(lambda: echo.endings)
    assert count or echo.endings == ["FIN"]  # what it sends back to a closed connection may be answered by a reset
    assert echo.received == b"hello" + b"again!"[:count]


def test_a_cut_counts_over_several_messages(proxy: Proxy, client: socket.socket) -> None:
    cut = proxy.cut_after(REPLIES, 7)
    assert ask(client) == b"hello"
    assert not cut.done.is_set()
    client.sendall(b"hello")
    assert read(client, 5) == b"he"
    cut.wait()


def test_a_cut_is_not_made_where_no_more_comes(proxy: Proxy, client: socket.socket) -> None:
    cut = proxy.cut_after(REPLIES, 5)
    assert ask(client) == b"hello"
    assert is_silent(client)
    assert not cut.done.is_set()


def test_a_black_hole_accepts_and_passes_nothing(proxy: Proxy, echo: Echo, client: socket.socket) -> None:
    ask(client)
    proxy.hold()
    client.sendall(b"again")
    with connect(proxy) as another:
        another.sendall(b"again")
        assert is_silent(client)
        assert is_silent(another)
        assert echo.received == b"hello"
        proxy.heal()
        assert read(client, 5) == read(another, 5) == b"again"


def test_what_is_held_is_late_where_its_sender_has_gone(proxy: Proxy, echo: Echo, client: socket.socket) -> None:
    ask(client)
    proxy.hold()
    client.sendall(b"again")
    client.close()
    assert echo.received == b"hello"
    proxy.heal()
    wait_until(lambda: echo.received == b"helloagain")


def test_hang_up(proxy: Proxy, echo: Echo, client: socket.socket) -> None:
    ask(client)
    proxy.hold(REQUESTS)
    client.sendall(b"again")
    wait_until(lambda: proxy.came[REQUESTS] == 10)
    proxy.hang_up()
    assert client.recv(1) == b""
    client.close()
    assert echo.received == b"hello"
    proxy.heal()
    wait_until(lambda: echo.received == b"helloagain")
    assert proxy.passed[REQUESTS] == 10


def test_half_open_towards_the_client(proxy: Proxy, echo: Echo, client: socket.socket) -> None:
    ask(client)
    proxy.hold(REPLIES)
    client.sendall(b"again")
    wait_until(lambda: echo.received == b"helloagain")
    assert is_silent(client)
    proxy.cut()
    assert client.recv(1) == b"", "what was held is lost"


def test_half_open_towards_the_daemon(proxy: Proxy, echo: Echo, client: socket.socket) -> None:
    proxy.hold(REQUESTS)
    client.sendall(b"hello")
    assert is_silent(client)
    assert echo.received == b""


def test_drip(proxy: Proxy, client: socket.socket) -> None:
    proxy.drip()
    proxy.delay(LATER)
    client.sendall(b"hello")
    received = []
    while sum(map(len, received)) < 5:
        received.append(client.recv(5))
    assert len(received) > 1
    assert b"".join(received) == b"hello"


def test_delay(proxy: Proxy, client: socket.socket) -> None:
    proxy.delay(LATER)
    client.sendall(b"hello")
    assert is_silent(client)
    assert read(client, 5) == b"hello"


def test_stop_accepting(proxy: Proxy, client: socket.socket) -> None:
    ask(client)
    proxy.stop_accepting()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    assert ask(client) == b"hello", "what is there stays"
    proxy.accept_again()
    with connect(proxy) as another:
        assert ask(another) == b"hello"


def test_another_target(proxy: Proxy, echo: Echo, client: socket.socket) -> None:
    ask(client)
    other = Echo()
    try:
        proxy.target = other.address
        with connect(proxy) as another:
            ask(another, b"there")
        assert ask(client, b"!") == b"!"
        assert (echo.received, other.received) == (b"hello!", b"there")
    finally:
        proxy.cut()
        other.close()


def test_nobody_at_the_target(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        proxy.target = "{}:{}".format(*gone.getsockname())
    with pytest.raises(ConnectionResetError), connect(proxy) as client:  # already while connecting, or soon after
        client.recv(1)


def test_either_side_ends_it(echo: Echo, client: socket.socket) -> None:
    ask(client)
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b"", "the echo's end came back"
    assert echo.endings == ["FIN"]
