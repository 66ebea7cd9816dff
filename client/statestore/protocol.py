"""The client's side of one connection, without any I/O: the sync and the asyncio client drive the same object."""

import time
from dataclasses import dataclass, field
from typing import Any, Self

from statestore import wire
from statestore._version import __version__
from statestore.base import Limits
from statestore.errors import StateStoreError, TooLong, Unavailable, from_wire

MAX_REPLY = 2**23  # bytes; a thousand states of the greatest length that a server may be set to
MAX_REPLY_ITEMS = 2**20
READ_SIZE = 65536  # bytes to ask a socket for at once; `feed` takes no more


class WrongServer(Unavailable):
    """Something else than the expected store answers there; asking again does not help."""

    retry = False


class WrongStore(WrongServer):
    """Another store than the expected one; to ask elsewhere does not help either."""


class ConnectionLost(Exception):
    """The connection cannot be used any more. `sent`: the server may have received the request."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class NotSent(ConnectionLost):
    """The request did not reach the server as a whole, so it was not executed; that says nothing of the store.

    The connection was open before, and turned out to be broken or too slow: make another attempt.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason, sent=False)


@dataclass(slots=True)
class Response:
    """What the server said to the request `msgid`: `error` is None, or the error to raise."""

    msgid: int
    error: StateStoreError | None
    result: Any


@dataclass(frozen=True, slots=True)
class Welcome:
    """What `hello` answers.

    session: the connection's, None if it has none. session_error: why it has none, if the server knows sessions.
    time: the server's, in seconds, when it said so; `received` is when that was, on our monotonic clock.
    """

    store_id: str
    version: int
    limits: Limits
    session: int | None = None
    features: frozenset[str] = frozenset()
    time: float = 0.0
    received: float = field(default=0.0, compare=False)
    session_error: StateStoreError | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, result: Any) -> Self:
        """To be called as soon as it has come. Raises WrongServer where this is no answer to a `hello`."""
        try:
            limits = result["limits"]
            session = None if result.get("session") is None else int(result["session"])
            features = frozenset(result.get("features", ()))
            return cls(
                store_id=str(result["store_id"]),
                version=int(result["version"]),
                limits=Limits(**{name: int(limits[name]) for name in ("module", "sender", "state", "items")}),
                session=session,
                features=features,
                time=float(result.get("time", 0.0)),
                received=time.monotonic(),
                session_error=_session_error(result) if session is None and "sessions" in features else None,
            )
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise WrongServer(f"what answers is not statestored: its hello lacks {error}") from error

    def server_time(self, at: float) -> float:
        """What the server's clock shows `at` this moment of our monotonic clock; never a later time."""
        return self.time + (at - self.received)

    def check_version(self) -> None:
        """Raises WrongServer where the server speaks another version of the protocol than we do."""
        if self.version != wire.PROTOCOL_VERSION:
            raise WrongServer(
                f"the server speaks version {self.version} of the protocol, this client {wire.PROTOCOL_VERSION}"
            )


def _session_error(result: dict[str, Any]) -> StateStoreError:
    """Why a server that knows sessions has given none. If it does not say, it may give one later."""
    reason = result.get("session_error")
    return from_wire(reason) if isinstance(reason, str) else Unavailable("the server gives no session now")


class ClientProtocol:
    """`request()` gives bytes to send; `feed()` takes bytes received; `next_response()` gives what they held.

    Not thread safe. After any exception drop the connection: what comes next on it cannot be trusted.
    """

    def __init__(self) -> None:
        self._pack = wire.packer()
        self._decoder = wire.Decoder(raw=False, max_buffer=MAX_REPLY, max_items=MAX_REPLY_ITEMS)
        self._last_msgid = 0
        self._seen_first = False
        self._unfinished = 0  # bytes received since the last whole message

    def hello(self, namespace: str, token: str | None, session: int | None = None) -> tuple[int, bytes]:
        """The request to send first; hand its result to `Welcome.parse`.

        session: the one to go on with, 0 for a new one, None for none.
        """
        about: dict[str, Any] = {
            "version": wire.PROTOCOL_VERSION,
            "namespace": namespace,
            "client": f"statestore {__version__}",
        }
        if token is not None:
            about["token"] = token
        if session is not None:
            about["session"] = session
        return self.request("hello", (about,))

    def request(self, method: str, params: tuple[Any, ...]) -> tuple[int, bytes]:
        """The id that the response will carry, and the bytes to send. Raises TooLong."""
        self._last_msgid = msgid = (self._last_msgid + 1) & wire.MAX_MSGID
        data = self._pack((wire.REQUEST, msgid, method, params))
        if len(data) > wire.MAX_MESSAGE:
            raise TooLong(f"message is {len(data)} bytes long, at most {wire.MAX_MESSAGE} are allowed: ask in parts")
        return msgid, data

    def receive(self, data: bytes) -> Response | None:
        """`feed` and `next_response` in one, for who asks one question at a time."""
        if self._seen_first and not self._unfinished:
            # Mostly it is one whole answer, and nothing before it: then this is all that there is to do.
            try:
                self._decoder.feed(data)
                message = self._decoder.unpack()
            except wire.Incomplete:
                self._unfinished = len(data)
                return None
            except wire.DECODE_ERRORS as error:
                raise _no_messagepack(error) from error
            return _response(message) or self.next_response()
        self.feed(data)
        return self.next_response()

    def feed(self, data: bytes) -> None:
        """Raises WrongServer where the first bytes are not the beginning of a MessagePack-RPC message."""
        if not self._seen_first and data:
            if data[0] not in (0x93, 0x94):
                raise WrongServer(f"what answers is not statestored but {identify(data)}")
            self._seen_first = True
        self._unfinished += len(data)
        if self._unfinished > MAX_REPLY:
            raise WrongServer(f"an answer of more than {MAX_REPLY} bytes")
        try:
            self._decoder.feed(data)
        except wire.DECODE_ERRORS as error:
            raise _no_messagepack(error) from error

    def next_response(self) -> Response | None:
        """The next response, or None until more bytes are fed. Notifications are passed over."""
        while True:
            try:
                message = self._decoder.unpack()
            except wire.Incomplete:
                return None
            except wire.DECODE_ERRORS as error:
                raise _no_messagepack(error) from error
            self._unfinished = 0
            if (response := _response(message)) is not None:
                return response


def _response(message: Any) -> Response | None:
    """None where it is a notification. Raises WrongServer where it is neither."""
    if isinstance(message, list):
        if len(message) == 4 and message[0] == wire.RESPONSE and type(message[1]) is int:
            _, msgid, refusal, result = message
            if refusal is None:
                return Response(msgid, None, result)
            if isinstance(refusal, str):
                return Response(msgid, from_wire(refusal), None)
            raise WrongServer(f"what answers is not statestored: its errors are no str but {type(refusal).__name__}")
        if len(message) == 3 and message[0] == wire.NOTIFICATION:
            return None
    raise WrongServer("what answers does not speak MessagePack-RPC")


def _no_messagepack(error: Exception) -> WrongServer:
    return WrongServer(f"the answer is not MessagePack: {error}")


def identify(data: bytes) -> str:
    """The name of the protocol whose server says `data` first."""
    line = data[:80].upper()
    for beginning, name in _FIRST_WORDS:
        if line.startswith(beginning):
            return name
    return "something that says " + ascii(data[:16].decode("latin-1"))


_FIRST_WORDS = (
    (b"HTTP/", "an HTTP server"),
    (b"<!DOCTYPE HTML", "an HTTP server"),
    (b"<HTML", "an HTTP server"),
    (b"220", "an SMTP or LMTP server"),
    (b"421", "an SMTP or LMTP server"),
    (b"554", "an SMTP or LMTP server"),
    (b"-ERR", "a Redis server"),
    (b"-NOAUTH", "a Redis server"),
    (b"-DENIED", "a Redis server"),
    (b"+PONG", "a Redis server"),
    (b"ERROR\r\n", "a memcached server"),
    (b"SSH-", "an SSH server"),
    (b"+OK", "a POP3 server"),
    (b"* OK", "an IMAP server"),
    (b"\x15\x03", "a TLS server (for statestored with TLS, set tls or STATESTORE_TLS)"),
    (b"\x16\x03", "a TLS server (for statestored with TLS, set tls or STATESTORE_TLS)"),
)
