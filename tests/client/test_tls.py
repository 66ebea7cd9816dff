"""TLS: what is agreed on, what is refused, and what the error says is to be done about it."""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from statestore import AsyncRemoteStorage, RemoteStorage, Unavailable
from statestore.protocol import WrongServer
from statestore.tls import Tls, client_context
from tests.certificates import Authority
from tests.client.scripts import run_script
from tests.client.servers import WELCOME, Server, answers, found, says, server_context


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


def store(context: ssl.SSLContext | None) -> Server:
    """One that remembers nothing, and answers every `get` with the sender."""
    welcome = WELCOME | {"limits": {"module": 9, "sender": 2**20, "state": 9, "items": 9}}
    return answers(lambda method, params: (None, welcome if method == "hello" else params[1]), context)


@contextmanager
def asked(server: Server, **settings: Any) -> Iterator[RemoteStorage]:
    with server, RemoteStorage(server.address, deadline=1, **settings) as storage:
        yield storage


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_is_said_comes_through(authority: Authority, version: ssl.TLSVersion) -> None:
    context = server_context(authority.issue("server"))
    context.minimum_version = context.maximum_version = version
    with asked(store(context), tls=authority.certificate) as storage:
        for sender in ("", "a", "x" * 1000, "y" * 60_000, "z" * 600_000):  # below a record, and over many
            assert storage.get("m", sender) == sender
        assert repr(storage).endswith("with TLS>")


def test_a_context_of_ones_own_will_do(authority: Authority) -> None:
    context = ssl.create_default_context(cafile=authority.certificate)
    with asked(store(server_context(authority.issue("server"))), tls=context) as storage:
        assert storage.get("m", "a") == "a"


def test_a_client_shows_its_certificate(authority: Authority) -> None:
    server, own = authority.issue("server"), authority.issue("client")
    with asked(
        store(server_context(server, authority.certificate)),
        tls=authority.certificate,
        tls_cert=own.certificate,
        tls_key=own.key,
    ) as storage:
        assert storage.get("m", "a") == "a"


def test_a_certificate_for_another_name_is_refused(authority: Authority) -> None:
    context = server_context(authority.issue("other", "states.example"))
    with (
        asked(store(context), tls=authority.certificate) as storage,
        pytest.raises(Unavailable, match=r"the server's certificate is not for 127\.0\.0\.1: connect by a name"),
    ):
        storage.get("m", "a")


def test_a_name_with_a_dot_at_its_end_is_the_same_name(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    context = server_context(authority.issue("dotted", "states.example"))
    with store(context) as server:
        monkeypatch.setattr(socket, "getaddrinfo", found(server.address))
        address = "states.example.:7828"
        with RemoteStorage(address, deadline=5, tls=authority.certificate) as storage:
            assert storage.get("m", "a") == "a"

        async def ask() -> str:
            async with AsyncRemoteStorage(address, deadline=5, tls=authority.certificate) as storage:
                return await storage.get("m", "b")

        assert asyncio.run(ask()) == "b"


def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    context = server_context(authority.issue("expired", expired=True))
    with (
        asked(store(context), tls=authority.certificate) as storage,
        pytest.raises(Unavailable, match=r"the server's certificate has expired: the server needs a new one"),
    ):
        storage.get("m", "a")


@pytest.mark.parametrize("trusting", ["another", "the system's"])
def test_a_certificate_of_nobody_known_is_refused(authority: Authority, stranger: Authority, trusting: str) -> None:
    tls = stranger.certificate if trusting == "another" else True
    with (
        asked(store(server_context(authority.issue("server"))), tls=tls) as storage,
        pytest.raises(Unavailable, match=r"signed by nobody trusted here: tls \(STATESTORE_TLS\) can name a file"),
    ):
        storage.get("m", "a")


def test_an_old_version_is_refused(authority: Authority) -> None:
    context = server_context(authority.issue("server"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with asked(store(context), tls=authority.certificate) as storage, pytest.raises(Unavailable):
        storage.get("m", "a")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_asks_for_a_certificate_says_so(authority: Authority, version: ssl.TLSVersion) -> None:
    context = server_context(authority.issue("server"), authority.certificate)
    context.maximum_version = version
    with (
        asked(store(context), tls=authority.certificate) as storage,
        pytest.raises(Unavailable, match=r"tls_cert|does it speak TLS"),
    ):
        storage.get("m", "a")


def test_a_server_without_tls_is_not_spoken_to(authority: Authority) -> None:
    with (
        asked(store(None), tls=authority.certificate) as storage,
        pytest.raises(Unavailable, match=r"it accepts connections|does it speak TLS\?|does not speak TLS"),
    ):
        storage.get("m", "a")
    with (
        says(b"220 mx.example ESMTP\r\n") as server,
        RemoteStorage(server.address, tls=authority.certificate) as storage,
        pytest.raises(Unavailable, match=r"does not speak TLS, but is an SMTP or LMTP server: leave tls out"),
    ):
        storage.get("m", "a")


def test_a_server_with_tls_that_is_asked_without_says_so(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statestore.connection.HELLO_PATIENCE", 0.2)
    with (
        asked(store(server_context(authority.issue("server")))) as storage,
        pytest.raises(Unavailable, match=r"a TLS server \(for statestored with TLS, set tls or STATESTORE_TLS\)"),
    ):
        storage.get("m", "a")


def test_a_handshake_that_hangs_ends_at_the_deadline(authority: Authority) -> None:
    async def say_nothing(*_: object) -> None:
        await asyncio.Event().wait()

    with (
        Server(say_nothing) as server,
        RemoteStorage(server.address, tls=authority.certificate, deadline=0.3) as storage,
        pytest.raises(Unavailable, match=r"gave up after 0\.3 s"),
    ):
        storage.get("m", "a")


def test_what_is_cut_is_asked_again(authority: Authority) -> None:
    hung_up = []

    def answer(method: str, params: list[Any]) -> tuple[None, Any]:
        if method != "hello" and len(hung_up) < 2:
            hung_up.append(method)
            raise ConnectionResetError
        return None, WELCOME if method == "hello" else params[1]

    with asked(answers(answer, server_context(authority.issue("server"))), tls=authority.certificate) as storage:
        assert storage.get("m", "a") == "a"


@pytest.mark.parametrize("end", ["a farewell", "garbage"])
def test_what_came_together_with_the_end_is_not_lost(authority: Authority, end: str) -> None:
    """Both sides in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context(authority.issue("server")).wrap_bio(to_server, to_client, server_side=True)
    trusting = client_context(authority.certificate)
    assert trusting is not None
    client = Tls(trusting, "localhost")
    to_server.write(client.handshake(b""))
    while not client.is_ready:
        with suppress(ssl.SSLWantReadError):
            server.do_handshake()
        to_server.write(client.handshake(to_client.read()))
    server.do_handshake()
    server.write(b"answer")
    if end == "garbage":
        to_client.write(b"garbage that no server says")
    else:
        with pytest.raises(ssl.SSLWantReadError):
            server.unwrap()
    assert client.decrypt(to_client.read()) == b"answer"
    with pytest.raises(WrongServer if end == "garbage" else ConnectionResetError):
        client.decrypt(b"")


def test_the_bytes_may_come_one_by_one(authority: Authority) -> None:
    """Both sides in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = server_context(authority.issue("server"))
    server = context.wrap_bio(to_server, to_client, server_side=True)
    trusting = client_context(authority.certificate)
    assert trusting is not None
    client = Tls(trusting, "localhost")
    to_server.write(client.handshake(b""))
    while not client.is_ready:
        with suppress(ssl.SSLWantReadError):
            server.do_handshake()
        for byte in to_client.read():
            to_server.write(client.handshake(bytes([byte])))
    server.do_handshake()
    to_server.write(client.encrypt(b"question"))
    assert server.read() == b"question"
    server.write(b"answer")
    assert b"".join(client.decrypt(bytes([byte])) for byte in to_client.read()) == b"answer"
    to_client.write(b"garbage that no server says")
    with pytest.raises(WrongServer, match="TLS with the server failed"):
        client.decrypt(to_client.read())


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"tls": "/nonexistent"}, r"^tls: .*/nonexistent.*No such file"),
        ({"tls": __file__}, r"^tls: the authorities cannot be read from"),
        ({"tls": 5}, r"^tls: "),
        ({"tls": True, "tls_cert": "/nonexistent"}, r"^tls_cert: /nonexistent and its key cannot be read"),
        ({"tls": True, "tls_key": "/nonexistent"}, r"^tls_key is of no use without tls_cert"),
        ({"tls_cert": "/nonexistent"}, r"^tls_cert and tls_key are of no use without tls"),
        (
            {"tls": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "tls_cert": "x"},
            r"^tls_cert and tls_key belong into the SSLContext",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        RemoteStorage(**settings)


def test_a_unix_socket_is_not_encrypted(authority: Authority, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/s")
        listening.listen()
        with RemoteStorage(f"unix:{tmp_path}/s", tls=authority.certificate, deadline=0.2) as storage:
            with pytest.raises(Unavailable):
                storage.get("m", "a")
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.recv(1) == b"\x94"


def test_whoever_does_not_ask_for_tls_does_not_load_it() -> None:
    printed = run_script(
        """
        import sys, statestore
        statestore.RemoteStorage("127.0.0.1:1")
        print("ssl" in sys.modules)
        statestore.RemoteStorage("127.0.0.1:1", tls=True)
        print("ssl" in sys.modules)
        """
    )
    assert printed.split() == ["False", "True"]
