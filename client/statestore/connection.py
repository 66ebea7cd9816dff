"""One blocking connection: greeted within a deadline, then one request and one response at a time."""

import contextlib
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from statestore.address import Address, TcpAddress
from statestore.deadline import Deadline
from statestore.dial import TICK, connect, reason
from statestore.forks import ProcessBound, detect_fork
from statestore.protocol import (
    READ_SIZE,
    ClientProtocol,
    ConnectionLost,
    NotSent,
    Response,
    Welcome,
    WrongServer,
    identify,
)
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
FORKED = "it is the parent's: the process was forked"
_NOT_WAITING = getattr(socket, "MSG_DONTWAIT", 0)


class Connection(ProcessBound):
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
        self._may_have_arrived = False  # all of the last request, at the server
        self._socket = connect(address, deadline)
        try:
            self._is_readable = _readiness(self._socket)
            if tls is not None and isinstance(address, TcpAddress):
                self._tls = self._agree(Tls(tls, address.host), deadline.within(HELLO_PATIENCE))
            msgid, hello = self._protocol.hello(namespace, token, session)
            if self._tls is not None:
                hello = self._tls.encrypt(hello)
            patience = deadline.within(HELLO_PATIENCE)
            self._send_rest(hello, patience)
            response = self._receive(patience)
            if response.msgid != msgid:
                raise _of_another(response, msgid)
            if response.error is not None:
                raise response.error
            self.welcome = Welcome.parse(response.result)
            self.welcome.check_version()
        except TimeoutError:
            self.close()
            raise silence(address, deadline) from None
        except OSError as error:
            self.close()
            # In TLS 1.3 a client is done before the server has looked for its certificate, and some just hang up then.
            hint = "" if self._tls is None else ": does it ask for a client's certificate (tls_cert)?"
            raise ConnectionLost(reason(error) + hint, sent=False) from error
        except BaseException:
            self.close()
            raise

    def call(
        self, method: str, params: tuple[Any, ...], deadline: Deadline | None, patience: Callable[[], Deadline]
    ) -> Response:
        """Send a request and return the response.

        Args:
            deadline: after it nothing is sent. None: there is time enough to look whether the response comes at once.
            patience: called if it does not; returns until when to wait for it.

        Raises NotSent if the connection broke, or the deadline passed, before all of the request was sent, else
        ConnectionLost; TooLong for what no message can hold.
        """
        msgid, data = self._protocol.request(method, params)
        self._may_have_arrived = False
        response = None
        try:
            left = None if deadline is None else deadline.left()
            if self._tls is not None:
                data = self._tls.encrypt(data)
            # Mostly it takes one send and one receive, and no look whether the socket is ready for them.
            sent = 0
            if left is None or left > TICK:
                self._may_have_arrived = True
                try:
                    detect_fork()  # no signal handler runs from here to `send`
                    sent = self._socket.send(data)
                except OSError as error:
                    self._note_unsent(error)
                try:
                    if sent < len(data):
                        self._may_have_arrived = False
                    elif self._is_readable(TICK * 1000):
                        detect_fork()  # a signal handler may have forked meanwhile: the answer is its parent's
                        received = self._socket.recv(READ_SIZE)
                        receive = self._protocol.receive if received and self._tls is None else self._take
                        response = receive(received)
                except BlockingIOError:  # it has taken a TICK
                    pass
            if response is None:
                waits_until = patience()
                self._send_rest(data[sent:], waits_until)
                response = self._receive(waits_until)
            if response.msgid != msgid:
                raise _of_another(response, msgid)
        except (WrongServer, OSError) as error:
            if self._may_have_arrived:
                raise ConnectionLost(reason(error), sent=True) from error
            raise NotSent(reason(error)) from error
        return response

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it, or said something unasked, while it was idle. Takes 0.4 µs."""
        return bool(self._is_readable(0))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()

    def _receive(self, deadline: Deadline) -> Response:
        """Wait for the response. Raises WrongServer or OSError, as TimeoutError."""
        response = None
        while response is None:
            _wait(self._socket, deadline)
            with contextlib.suppress(BlockingIOError):
                response = self._take(self._socket.recv(READ_SIZE))
        return response

    def _agree(self, tls: Tls, deadline: Deadline) -> Tls:
        """The TLS handshake."""
        self._send_rest(tls.handshake(b""), deadline)
        while not tls.is_ready:
            _wait(self._socket, deadline)
            if not (received := self._socket.recv(READ_SIZE)):
                raise ConnectionLost("the server closed the connection: does it speak TLS?", sent=False)
            self._send_rest(tls.handshake(received), deadline)
        return tls

    def _send_rest(self, data: bytes, deadline: Deadline) -> None:
        while data:
            _wait(self._socket, deadline, for_writing=True)
            self._may_have_arrived = True
            try:
                detect_fork()  # no signal handler runs from here to `send`
                data = data[self._socket.send(data, _NOT_WAITING) :]
            except OSError as error:
                self._note_unsent(error)
            else:
                self._may_have_arrived = not data

    def _note_unsent(self, error: OSError) -> None:
        """Note that a `send` took nothing. Raises `error` unless the socket was just not ready.

        A signal handler may raise an OSError, too, as soon as `send` has sent all. It has a frame of its own.
        """
        is_from_handler = error.__traceback__ is not None and error.__traceback__.tb_next is not None
        self._may_have_arrived = is_from_handler
        if is_from_handler or not isinstance(error, BlockingIOError):
            raise error

    def _take(self, received: bytes) -> Response | None:
        """The response, if what has come is all of it."""
        if not received:
            raise ConnectionResetError("the server closed the connection")
        if self._tls is not None:
            received = self._tls.decrypt(received)
        return self._protocol.receive(received)


def _of_another(response: Response, msgid: int) -> WrongServer:
    return WrongServer(f"an answer to request {response.msgid} came where {msgid} was asked")


def _wait(sock: socket.socket, deadline: Deadline, *, for_writing: bool = False) -> None:
    """Raises TimeoutError where the socket is not ready in time."""
    while not _is_ready(sock, deadline.left(), for_writing=for_writing):
        pass


if hasattr(select, "poll"):

    def _readiness(sock: socket.socket) -> Callable[[float], object]:
        """Return what tells whether something comes within so many milliseconds, however many signals do.

        A `recv` would start again after each signal.
        """
        return _poller(sock, select.POLLIN).poll

    def _poll(sock: socket.socket, seconds: float, *, for_writing: bool) -> bool:
        return bool(_poller(sock, select.POLLOUT if for_writing else select.POLLIN).poll(seconds * 1000))

    def _poller(sock: socket.socket, event: int) -> select.poll:
        poller = select.poll()
        try:
            poller.register(sock, event)
        except ValueError:  # it is closed, as in a child
            raise ConnectionAbortedError(FORKED) from None
        return poller
else:

    def _readiness(sock: socket.socket) -> Callable[[float], object]:
        return lambda milliseconds: milliseconds > 0 or _is_ready(sock, 0)  # signals break off nothing here

    def _poll(sock: socket.socket, seconds: float, *, for_writing: bool) -> bool:
        readable, writable = ([], [sock]) if for_writing else ([sock], [])
        return any(select.select(readable, writable, [], seconds))


def _is_ready(sock: socket.socket, seconds: float, *, for_writing: bool = False) -> bool:
    """Raises ConnectionAbortedError if the process was forked meanwhile, as a signal handler may do it."""
    is_ready = _poll(sock, seconds, for_writing=for_writing)
    detect_fork()
    if sock.fileno() < 0:
        raise ConnectionAbortedError(FORKED)
    return is_ready


def silence(address: Address, deadline: Deadline) -> Exception:
    """Something accepts connections but does not answer a `hello`: the error that says what it is, if it tells."""
    for question in QUESTIONS_FOR_OTHERS:
        with contextlib.suppress(OSError, ConnectionLost), connect(address, deadline) as sock:
            sock.settimeout(min(deadline.left(), HELLO_PATIENCE))
            sock.sendall(question)
            if (said := sock.recv(100)) and said[0] not in (0x93, 0x94):
                return WrongServer(f"what answers is not statestored but {identify(said)}")
    return ConnectionLost("it accepts connections but does not answer", sent=False)
