"""MessagePack-RPC by hand: what goes over the wire, without anything of the client."""

import socket
import ssl
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import msgpack

from statestore.address import TcpAddress, parse_address

TIMEOUT = 10.0


def request(msgid: Any, method: Any, *params: Any) -> bytes:
    return msgpack.packb([0, msgid, method, list(params)], unicode_errors="surrogatepass")


def notification(method: Any, *params: Any) -> bytes:
    return msgpack.packb([2, method, list(params)], unicode_errors="surrogatepass")


def messages(data: bytes) -> list[Any]:
    """The whole messages in `data`."""
    unpacker = msgpack.Unpacker(unicode_errors="surrogatepass")
    unpacker.feed(data)
    return list(unpacker)


def code_of(error: str | None) -> str:
    """`too_long` of `too_long: the sender ...`."""
    return "" if error is None else error.partition(": ")[0]


def ok(msgid: int, result: Any) -> list[Any]:
    return [1, msgid, None, result]


def error_of(answer: list[Any]) -> str:
    """Its code. A plain string is what other clients understand."""
    kind, _, error, result = answer
    assert (kind, result) == (1, None)
    assert isinstance(error, str)
    return code_of(error)


class RawClient:
    """A connection on which anything can be sent.

    With TLS where there is a context; then the server's certificate must be for `name`, or else for the address.
    `source` is the address that it comes from.
    """

    def __init__(self, address: str, tls: ssl.SSLContext | None = None, name: str = "", source: str = "") -> None:
        parsed = parse_address(address)
        if isinstance(parsed, TcpAddress):
            self.socket = socket.create_connection((parsed.host, parsed.port), TIMEOUT, (source, 0))
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket, server_hostname=name or parsed.host)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(TIMEOUT)
            self.socket.connect(parsed.path)
        self._unpacker = msgpack.Unpacker(unicode_errors="surrogatepass")
        self._received = self._receive()

    def send(self, *data: bytes) -> None:
        self.socket.sendall(b"".join(data))

    def next(self) -> Any:
        """The next message, or None where the other side closed the connection."""
        return next(self._received, None)

    def call(self, method: str, *params: Any) -> tuple[str | None, Any]:
        """Error and result."""
        self.send(request(7, method, *params))
        _, msgid, error, result = self.next()
        assert msgid == 7
        return error, result

    def ask(self, method: str, *params: Any) -> Any:
        error, result = self.call(method, *params)
        assert error is None
        return result

    def is_closed(self) -> bool:
        """Whether the other side closes it, without another message."""
        return self.next() is None

    def _receive(self) -> Iterator[Any]:
        while True:
            yield from self._unpacker
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return
            if not data:
                return
            self._unpacker.feed(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.socket.close()
