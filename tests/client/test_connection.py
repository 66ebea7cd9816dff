"""One connection: to the daemon, to names with several addresses, and to servers of another kind."""

import asyncio
import errno
import http.server
import socket
import ssl
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from unittest.mock import patch

import msgpack
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink

from statestore import BadRequest, RemoteStorage, Unauthorized, Unavailable
from statestore.address import parse_address
from statestore.connection import Connection
from statestore.deadline import Deadline
from statestore.protocol import ConnectionLost, NotSent, Response, WrongServer
from tests.client.servers import WELCOME, Messages, Server, answers, black_hole, found, hanging_look_up, refused, says
from tests.daemon import Daemon

PATIENCE = 20.0  # seconds after which a test has hung


def connect(address: str, seconds: float = PATIENCE, token: str | None = None) -> Connection:
    return Connection(parse_address(address), "default", token, Deadline(seconds))


def ask(connection: Connection, method: str, params: tuple[Any, ...], seconds: float) -> Response:
    deadline = Deadline(seconds)
    return connection.call(method, params, deadline, lambda: deadline)


@pytest.mark.parametrize("kind", ["address", "unix_address"])
def test_a_greeted_connection_answers(shared_daemon: Daemon, kind: str) -> None:
    with closing(connect(getattr(shared_daemon, kind))) as connection:
        assert ask(connection, "get", ("m", None), PATIENCE).result == "START"
        assert connection.welcome.store_id == ask(connection, "info", (), PATIENCE).result["store_id"]
        assert isinstance(ask(connection, "get", (), PATIENCE).error, BadRequest)
        assert ask(connection, "ping", (), PATIENCE).error is None


def test_nobody_there_means_nothing_was_sent() -> None:
    with pytest.raises(ConnectionLost, match="connection refused") as caught:
        connect(refused())
    assert not caught.value.sent


def test_what_hangs_up_before_its_hello_has_been_sent_nothing_of_ours() -> None:
    async def hang_up(reader: StreamReader, _: StreamWriter) -> None:
        await Messages(reader).read()

    with Server(hang_up) as server:
        with pytest.raises(ConnectionLost, match="the server closed the connection") as caught:
            connect(server.address)
        assert not caught.value.sent


@pytest.mark.parametrize("reads", [True, False])
def test_a_request_that_the_system_takes_in_pieces_only(reads: bool) -> None:
    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        messages = Messages(reader)
        await messages.read()
        writer.write(msgpack.packb([1, 1, None, WELCOME]))
        if reads:
            request = await messages.read()
            writer.write(msgpack.packb([1, 2, None, len(request)]))
        await asyncio.Event().wait()  # until the test is over

    triples = [("m", f"{number}@{'x' * 900}", "A") for number in range(1000)]
    with Server(serve) as server, closing(connect(server.address)) as connection:
        connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        if reads:
            assert ask(connection, "set_many", (triples,), PATIENCE).result > 900_000
        else:
            with pytest.raises(ConnectionLost, match=r"no answer within 0\.2 s"):
                ask(connection, "set_many", (triples,), 0.2)


def test_a_socket_file_that_is_not_there() -> None:
    with pytest.raises(ConnectionLost, match="no such file or directory"):
        connect("unix:/nonexistent/socket")


def test_a_platform_without_unix_sockets_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(Unavailable, match="this platform has no unix sockets"):
        connect("unix:/nonexistent/socket")


def test_a_refused_hello_is_raised_and_the_connection_closed() -> None:
    closed = threading.Event()

    async def refuse(reader: StreamReader, writer: StreamWriter) -> None:
        await Messages(reader).read()
        writer.write(msgpack.packb([1, 1, "unauthorized: the token is wrong", None]))
        assert await reader.read() == b""
        closed.set()

    with Server(refuse) as server:
        with pytest.raises(Unauthorized):
            connect(server.address)
        assert closed.wait(PATIENCE)


@pytest.mark.parametrize("reply", [b"", b"\x94\x01\x02\xc0\xa5STA"])
def test_a_connection_that_ends_before_the_answer_may_have_been_heard(reply: bytes) -> None:
    async def hang_up(reader: StreamReader, writer: StreamWriter) -> None:
        messages = Messages(reader)
        await messages.read()
        writer.write(msgpack.packb([1, 1, None, WELCOME]))
        await messages.read()
        writer.write(reply)

    with Server(hang_up) as server, closing(connect(server.address)) as connection:
        with pytest.raises(ConnectionLost, match="the server closed the connection") as caught:
            ask(connection, "get", ("m", "a"), PATIENCE)
        assert caught.value.sent


def test_silence_ends_at_the_deadline() -> None:
    async def greet_only(reader: StreamReader, writer: StreamWriter) -> None:
        await Messages(reader).read()
        writer.write(msgpack.packb([1, 1, None, WELCOME]))
        await reader.read()

    with Server(greet_only) as server, closing(connect(server.address)) as connection:
        with pytest.raises(ConnectionLost, match=r"no answer within 0\.1 s") as caught:
            ask(connection, "get", ("m", "a"), 0.1)
        assert caught.value.sent


class Alarmed:
    """A socket during whose `send` a signal comes: its handler raises TimeoutError as soon as all was sent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, data: bytes, *flags: int) -> int:
        assert self._sock.send(data, *flags) == len(data)
        raise TimeoutError("the alarm went off")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize("seconds", [PATIENCE, 0.09])
def test_what_a_signal_handler_raises_after_the_request_was_sent_does_not_mean_that_it_was_not(seconds: float) -> None:
    """At once, and in the steps that are taken if little time is left."""
    with answers(lambda *_: (None, WELCOME)) as server, closing(connect(server.address)) as connection:
        connection._socket = Alarmed(connection._socket)  # type: ignore[assignment]
        with pytest.raises(ConnectionLost, match="alarm") as caught:
            ask(connection, "set", ("m", "a", "A"), seconds)
        assert caught.value.sent


@pytest.mark.parametrize("seconds", [PATIENCE, 0.09])
def test_what_the_system_refuses_to_send_was_not_sent(seconds: float) -> None:
    with answers(lambda *_: (None, WELCOME)) as server, closing(connect(server.address)) as connection:
        connection._socket.shutdown(socket.SHUT_WR)
        with pytest.raises(NotSent, match="broken pipe"):
            ask(connection, "set", ("m", "a", "A"), seconds)


def test_a_request_whose_time_is_over_before_it_is_sent_is_not_sent() -> None:
    with answers(lambda *_: (None, WELCOME)) as server, closing(connect(server.address)) as connection:
        late = Deadline(1, time.monotonic() - 2)
        with pytest.raises(NotSent, match="no answer within 1 s"):
            connection.call("set", ("m", "a", "A"), late, lambda: late)


def test_an_answer_to_another_request_is_nobodys() -> None:
    async def confuse(reader: StreamReader, writer: StreamWriter) -> None:
        messages = Messages(reader)
        await messages.read()
        writer.write(msgpack.packb([1, 1, None, WELCOME]))
        await messages.read()
        writer.write(msgpack.packb([1, 1, None, "POSTING"]))
        await reader.read()

    with (
        Server(confuse) as server,
        closing(connect(server.address)) as connection,
        pytest.raises((WrongServer, ConnectionLost), match="an answer to request 1 came where 2 was asked"),
    ):
        ask(connection, "get", ("m", "a"), PATIENCE)


def test_every_address_that_a_name_stands_for_is_tried(shared_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", found(refused(), refused(), shared_daemon.address))
    with closing(connect("states.example")) as connection:
        assert ask(connection, "ping", (), PATIENCE).error is None


def test_an_address_that_swallows_everything_has_only_its_share(
    shared_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with black_hole() as swallows:
        monkeypatch.setattr(socket, "getaddrinfo", found(swallows, shared_daemon.address))
        with closing(connect("states.example", seconds=1)) as connection:
            assert ask(connection, "ping", (), PATIENCE).error is None


def test_a_name_that_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConnectionLost, match=r"looking up states\.example: .*not known"):
        connect("states.example")


@pytest.mark.parametrize("name", ["a" * 64 + ".example", "a..example"])
def test_a_name_that_cannot_be_one(name: str) -> None:
    with pytest.raises(ConnectionLost, match="looking up "):
        connect(name)


def test_a_name_that_stands_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", found())
    with pytest.raises(ConnectionLost, match="the name stands for no address"):
        connect("states.example")


def test_a_look_up_that_hangs_ends_at_the_deadline() -> None:
    with (
        hanging_look_up(),
        pytest.raises(ConnectionLost, match=r"looking up states\.example took longer than 0\.1 s"),
    ):
        connect("states.example", seconds=0.1)


def test_a_process_that_may_open_no_more_files_is_told_so() -> None:
    with (
        patch("statestore.dial.ClientSocket", side_effect=OSError(errno.EMFILE, "Too many open files")),
        pytest.raises(ConnectionLost, match="too many open files"),
    ):
        connect("127.0.0.1:1")


def test_a_process_that_may_start_no_more_threads_is_told_so() -> None:
    with (
        patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")),
        pytest.raises(ConnectionLost, match=r"looking up states\.example: can't start new thread"),
    ):
        connect("states.example")


# What else may listen on a port


@contextmanager
def http_server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield "{}:{}".format(*server.server_address)
        finally:
            server.shutdown()
            thread.join(PATIENCE)


class FreePortController(Controller):
    def _trigger_server(self) -> None:
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]


@contextmanager
def smtp_server() -> Iterator[str]:
    controller = FreePortController(Sink(), hostname="127.0.0.1", port=0, ready_timeout=PATIENCE)
    controller.start()
    try:
        yield f"127.0.0.1:{controller.port}"
    finally:
        controller.stop()


@contextmanager
def tls_server() -> Iterator[str]:
    """One that has no certificate: it does not come to that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):  # the test is over
            while True:
                accepted, _ = listening.accept()
                with accepted, suppress(ssl.SSLError, ConnectionError):
                    context.wrap_socket(accepted, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=[listening])
        thread.start()
        try:
            yield "{}:{}".format(*listening.getsockname())
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


@contextmanager
def line_server(reply: bytes) -> Iterator[str]:
    """Says nothing until it has read a line, as Redis and memcached."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        while await reader.readline():
            writer.write(reply)

    with Server(serve) as server:
        yield server.address


@contextmanager
def banner(text: bytes) -> Iterator[str]:
    with says(text) as server:
        yield server.address


@pytest.mark.parametrize(
    ("server", "name"),
    [
        pytest.param(http_server, "an HTTP server", id="HTTP"),
        pytest.param(smtp_server, "an SMTP or LMTP server", id="SMTP"),
        pytest.param(tls_server, "a TLS server", id="TLS"),
        pytest.param(lambda: line_server(b"+PONG\r\n"), "a Redis server", id="Redis"),
        pytest.param(lambda: line_server(b"ERROR\r\n"), "a memcached server", id="memcached"),
        pytest.param(lambda: banner(b"SSH-2.0-OpenSSH_9.2\r\n"), "an SSH server", id="SSH"),
        pytest.param(lambda: banner(b"hello!\r\n"), "something that says 'hello!", id="another"),
    ],
)
def test_a_wrong_port_says_what_answers_there(
    server: Callable[[], Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statestore.connection.HELLO_PATIENCE", 0.2)
    started = time.monotonic()
    with server() as address, RemoteStorage(address, deadline=2) as storage:
        with pytest.raises(Unavailable) as caught:
            storage.get("m", "a")
        assert time.monotonic() - started < 2
    assert caught.value.detail.startswith(f"{address}: what answers is not statestored but {name}")


def test_a_server_that_speaks_messagepack_rpc_but_is_another() -> None:
    with answers(lambda *_: (None, "what?")) as server, pytest.raises(WrongServer, match="not statestored"):
        connect(server.address)


def test_a_server_of_another_version_says_which() -> None:
    with (
        answers(lambda *_: (None, WELCOME | {"version": 2})) as server,
        pytest.raises(WrongServer, match=r"speaks version 2 of the protocol, this client 1"),
    ):
        connect(server.address)


def test_what_says_nothing_at_all_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statestore.connection.HELLO_PATIENCE", 0.1)
    with says(b"") as server:
        with pytest.raises(ConnectionLost, match="it accepts connections but does not answer"):
            connect(server.address)
        asked = server.connections
        assert asked > 1  # to find out what it is
        with pytest.raises(ConnectionLost, match="it accepts connections but does not answer"):
            connect(server.address, seconds=0.05)
        assert server.connections == asked + 1  # no time was left for that
