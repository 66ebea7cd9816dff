"""What came instead of our protocol is named, and nothing else of it is repeated."""

import ssl

import pytest

from statestored.foreign_protocols import instead_of_messagepack, instead_of_tls
from tests.server.rpc import request


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


ANYWHERE = [
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 7828\r\n", "a PROXY protocol header"),
    (b"PROXY UNKNOWN\r\n", "a PROXY protocol header"),
    (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12), "a PROXY protocol header"),
    (b"GET /health HTTP/1.1\r\nHost: states.example\r\n\r\n", "an HTTP request"),
    (b"HEAD / HTTP/1.0\r\n\r\n", "an HTTP request"),
    (b"POST / HTTP/1.1\r\n", "an HTTP request"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "an HTTP request"),
    (b"EHLO mail.example\r\n", "an SMTP or LMTP client"),
    (b"lhlo mail.example\r\n", "an SMTP or LMTP client"),
    (b"HELO mail.example\r\n", "an SMTP or LMTP client"),
    (b"*1\r\n$4\r\nPING\r\n", "a Redis client"),
    (b"*13\r\n$3\r\nSET\r\n", "a Redis client"),
    (b"PING\r\n", "a Redis client"),
    (b"get some key\r\n", "a memcached client"),
    (b"version\r\n", "a memcached client"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH client"),
]


@pytest.mark.parametrize(("first", "name"), ANYWHERE)
def test_other_protocols_are_named_with_and_without_tls(first: bytes, name: str) -> None:
    for sentence in (instead_of_messagepack(memoryview(first)), instead_of_tls(bytearray(first))):
        assert sentence is not None
        assert sentence.startswith(f"{name} came")
        assert "example" not in sentence
        assert "192.0.2" not in sentence


def test_tls_is_named_if_none_is_expected() -> None:
    sentence = instead_of_messagepack(client_hello())
    assert sentence is not None
    assert sentence.startswith("a TLS handshake came, and this address has no TLS")
    assert instead_of_tls(client_hello()) is None


@pytest.mark.parametrize("first", [request(0, "ping"), request(2**32 - 1, "hello", {}), b"\x93\x02\xa4ping\x90"])
def test_our_own_is_named_if_tls_is_expected(first: bytes) -> None:
    sentence = instead_of_tls(first)
    assert sentence is not None
    assert sentence.startswith("a client without TLS came")
    assert instead_of_messagepack(first) is None


@pytest.mark.parametrize("first", [b"", b"\x00", b"P", b"getaway", b"PINGU", b"*x", b"secret", b"\xc1"])
def test_what_is_not_known_is_not_named(first: bytes) -> None:
    assert instead_of_messagepack(first) is None
    assert instead_of_tls(first) is None
