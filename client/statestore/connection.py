"""One blocking connection: greeted within a deadline, then one request and one response at a time."""

import contextlib
import select
import socket
import time
from typing import TYPE_CHECKING, Any

from statestore.address import Address, TcpAddress
from statestore.deadline import Deadline
from statestore.dial import TICK, connect, reason
from statestore.protocol import READ_SIZE, ClientProtocol, ConnectionLost, Response, Welcome, WrongServer, identify
from statestore.tls import Tls

if TYPE_CHECKING:
    import ssl

HELLO_PATIENCE = 2.0  # seconds of silence after which we ask what it is that does not answer
# A ClientHello of TLS 1.2, with the usual ciphers, groups and signatures.
TLS_QUESTION = bytes.fromhex(
    "160301005b"
    "01000057"
    "0303" + "00" * 32 + "00"
    "000cc02bc02fc02cc030cca9cca8"
    "0100"
    "0022"
    "000a00080006001d00170018"
    "000b00020100"
    "000d000c000a04030804040105030501"
)
# What makes a server of a line-based protocol say something, and one of TLS.
QUESTIONS_FOR_OTHERS = (b"PING\r\n\r\n", TLS_QUESTION)
_NOT_WAITING = getattr(socket, "MSG_DONTWAIT", 0)


class Connection:
    """Greeted and ready. After any exception out of `call` the owner must `close` it: a late answer may still come."""

    def __init__(
        self,
        address: Address,
        namespace: str,
        token: str | None,
        deadline: Deadline,
        session: int | None = None,
        tls: "ssl.SSLContext | None" = None,
    ) -> None:
        """Raises ConnectionLost, WrongServer, or what the server answers to `hello`."""
        self._protocol = ClientProtocol()
        self._tls: Tls | None = None
        self._socket = connect(address, deadline)
        try:
            if tls is not None and isinstance(address, TcpAddress):
                self._tls = self._agree(Tls(tls, address.host), deadline.within(HELLO_PATIENCE))
            response = self._exchange(self._protocol.hello(namespace, token, session), deadline.within(HELLO_PATIENCE))
            if response.error is not None:
                raise response.error
            self.welcome = Welcome.parse(response.result)
            self.welcome.check_version()
        except TimeoutError:
            self.close()
            raise _silence(address, deadline) from None
        except OSError as error:
            self.close()
            # In TLS 1.3 a client is done before the server has looked for its certificate, and some just hang up then.
            hint = "" if self._tls is None else ": does it ask for a client's certificate (tls_cert)?"
            raise ConnectionLost(reason(error) + hint, sent=False) from error
        except BaseException:
            self.close()
            raise

    def call(self, method: str, params: tuple[Any, ...], deadline: Deadline) -> Response:
        """Raises ConnectionLost, or TooLong for what no message can hold."""
        request = self._protocol.request(method, params)
        try:
            return self._exchange(request, deadline)
        except WrongServer as error:
            raise ConnectionLost(error.detail, sent=True) from error
        except TimeoutError:
            raise ConnectionLost(f"no answer within {deadline.seconds:g} s", sent=True) from None
        except OSError as error:
            raise ConnectionLost(reason(error), sent=True) from error

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it, or said something unasked, while nobody was looking."""
        return _is_ready(self._socket, 0)

    def close(self) -> None:
        """Only the file descriptor goes; a `shutdown` would reach a parent process that shares the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _exchange(self, request: tuple[int, bytes], deadline: Deadline) -> Response:
        """Raises WrongServer or OSError, of which TimeoutError is one."""
        msgid, data = request
        if self._tls is not None:
            data = self._tls.encrypt(data)
        # One send and one receive mostly do, without a look whether the socket is ready. None of them takes longer than
        # a TICK; where so little is left, or one took so long, it is looked.
        is_quick = deadline.at - time.monotonic() > TICK
        sent = self._send(data, 0 if is_quick else _NOT_WAITING)
        if sent < len(data):
            is_quick = False
            self._send_rest(data[sent:], deadline)
        response = self._receive() if is_quick else None
        while response is None:
            _wait(self._socket, deadline.left())
            response = self._receive()
        if response.msgid != msgid:
            raise WrongServer(f"an answer to request {response.msgid} came where {msgid} was asked")
        return response

    def _agree(self, tls: Tls, deadline: Deadline) -> Tls:
        """The TLS handshake."""
        self._send_rest(tls.handshake(b""), deadline)
        while not tls.is_ready:
            _wait(self._socket, deadline.left())
            if not (received := self._socket.recv(READ_SIZE)):
                raise ConnectionLost("the server closed the connection: does it speak TLS?", sent=False)
            self._send_rest(tls.handshake(received), deadline)
        return tls

    def _send(self, data: bytes, flags: int) -> int:
        """How much of it the system took."""
        try:
            return self._socket.send(data, flags)
        except BlockingIOError:
            return 0

    def _send_rest(self, data: bytes, deadline: Deadline) -> None:
        while data:
            _wait(self._socket, deadline.left(), for_writing=True)
            data = data[self._send(data, _NOT_WAITING) :]

    def _receive(self) -> Response | None:
        """The response, if it is there within a TICK."""
        try:
            received = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return None
        if not received:
            raise ConnectionResetError("the server closed the connection")
        if self._tls is not None:
            received = self._tls.decrypt(received)
        self._protocol.feed(received)
        return self._protocol.next_response()


def _wait(sock: socket.socket, seconds: float, *, for_writing: bool = False) -> None:
    """Raises TimeoutError where the socket is not ready so soon."""
    if not _is_ready(sock, seconds, for_writing=for_writing):
        raise TimeoutError(f"nothing came within {seconds:g} s")


if hasattr(select, "poll"):

    def _is_ready(sock: socket.socket, seconds: float, *, for_writing: bool = False) -> bool:
        poller = select.poll()
        poller.register(sock, select.POLLOUT if for_writing else select.POLLIN)
        return bool(poller.poll(seconds * 1000))
else:

    def _is_ready(sock: socket.socket, seconds: float, *, for_writing: bool = False) -> bool:
        readable, writable = ([], [sock]) if for_writing else ([sock], [])
        return any(select.select(readable, writable, [], seconds))


def _silence(address: Address, deadline: Deadline) -> Exception:
    """Something accepts connections but does not answer a `hello`: the error that says what it is, if it tells."""
    for question in QUESTIONS_FOR_OTHERS:
        with contextlib.suppress(OSError, ConnectionLost), connect(address, deadline) as sock:
            sock.settimeout(min(deadline.left(), HELLO_PATIENCE))
            sock.sendall(question)
            if (said := sock.recv(100)) and said[0] not in (0x93, 0x94):
                return WrongServer(f"what answers is not statestored but {identify(said)}")
    return ConnectionLost("it accepts connections but does not answer", sent=False)
