"""One blocking connection: connect within a deadline, then one request and one response at a time."""

import contextlib
import select
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from statestore.address import Address, TcpAddress
from statestore.deadline import Deadline
from statestore.errors import Unavailable
from statestore.protocol import READ_SIZE, ClientProtocol, ConnectionLost, Response, Welcome, WrongServer, identify

HELLO_PATIENCE = 2.0  # seconds of silence after which we ask what it is that does not answer
# What makes a server of a line-based protocol say something, and one of TLS: a greeting that is empty.
QUESTIONS_FOR_OTHERS = (b"PING\r\n\r\n", b"\x16\x03\x01\x00\x04\x01\x00\x00\x00")


class Connection:
    """Greeted and ready. After any exception out of `call` the owner must `close` it: a late answer may still come."""

    def __init__(
        self, address: Address, namespace: str, token: str | None, deadline: Deadline, session: int | None = None
    ) -> None:
        """Raises ConnectionLost, WrongServer, or what the server answers to `hello`."""
        self.address = address
        self._protocol = ClientProtocol()
        self._socket = _connect(address, deadline)
        try:
            response = self._exchange(
                self._protocol.hello(namespace, token, session), deadline, patience=HELLO_PATIENCE
            )
            if response.error is not None:
                raise response.error
            self.welcome = Welcome.parse(response.result)
            self.welcome.check_version()
        except TimeoutError:
            self.close()
            raise _silence(address, deadline) from None
        except OSError as error:
            self.close()
            raise ConnectionLost(_reason(error), sent=False) from error
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
            raise ConnectionLost(_reason(error), sent=True) from error

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it, or said something unasked, while nobody was looking."""
        return _is_ready(self._socket, 0)

    def close(self) -> None:
        """Only the file descriptor goes; a `shutdown` would reach a parent process that shares the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _exchange(self, request: tuple[int, bytes], deadline: Deadline, patience: float | None = None) -> Response:
        """Raises WrongServer or OSError, of which TimeoutError is one."""
        msgid, data = request
        while data := data[self._send(data) :]:
            _wait(self._socket, _least(deadline.left(), patience), for_writing=True)
        while (response := self._protocol.next_response()) is None:
            _wait(self._socket, _least(deadline.left(), patience))
            received = self._socket.recv(READ_SIZE)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            self._protocol.feed(received)
        if response.msgid != msgid:
            raise WrongServer(f"an answer to request {response.msgid} came where {msgid} was asked")
        return response

    def _send(self, data: bytes) -> int:
        """How much of it the system took."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0


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


def _connect(address: Address, deadline: Deadline) -> socket.socket:
    """Tries every address that a name stands for. Raises ConnectionLost with what the last one said."""
    failure = ConnectionLost("the name stands for no address", sent=False)
    targets = list(_targets(address, deadline))
    for number, (family, target) in enumerate(targets):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise ConnectionLost(_reason(error), sent=False) from error
        try:
            sock.settimeout(deadline.left() / (len(targets) - number))  # each its share
            sock.connect(target)
            if family != getattr(socket, "AF_UNIX", None):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError as error:
            sock.close()
            failure = ConnectionLost(_reason(error), sent=False)
        except BaseException:
            sock.close()
            raise
        else:
            sock.settimeout(0)
            return sock
    raise failure


def _targets(address: Address, deadline: Deadline) -> Iterator[tuple[int, Any]]:
    if not isinstance(address, TcpAddress):
        if not hasattr(socket, "AF_UNIX"):
            raise Unavailable(f"{address}: this platform has no unix sockets")
        yield socket.AF_UNIX, address.path
    elif (ip := address.ip) is not None:
        yield socket.AF_INET6 if ip.version == 6 else socket.AF_INET, (address.host, address.port)
    else:
        for family, _, _, _, target in _look_up(address, deadline):
            yield family, target


def _look_up(address: TcpAddress, deadline: Deadline) -> Iterable[tuple[Any, ...]]:
    """`getaddrinfo` knows no time-out: a thread asks, and is left behind where it takes too long."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.append(error)

    thread = threading.Thread(target=ask, name="statestore-look-up", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise ConnectionLost(f"looking up {address.host}: {error}", sent=False) from error
    with contextlib.suppress(TimeoutError):
        thread.join(deadline.left())
    if not answer:
        raise ConnectionLost(f"looking up {address.host} took longer than {deadline.seconds:g} s", sent=False)
    if isinstance(answer[0], Exception):
        raise ConnectionLost(f"looking up {address.host}: {answer[0]}", sent=False)
    found: Iterable[tuple[Any, ...]] = answer[0]
    return found


def _silence(address: Address, deadline: Deadline) -> Exception:
    """Something accepts connections but does not answer a `hello`: the error that says what it is, if it tells."""
    for question in QUESTIONS_FOR_OTHERS:
        with contextlib.suppress(OSError, ConnectionLost), _connect(address, deadline) as sock:
            sock.settimeout(min(deadline.left(), HELLO_PATIENCE))
            sock.sendall(question)
            if (said := sock.recv(100)) and said[0] not in (0x93, 0x94):
                return WrongServer(f"what answers is not statestored but {identify(said)}")
    return ConnectionLost("it accepts connections but does not answer", sent=False)


def _least(seconds: float, patience: float | None) -> float:
    return seconds if patience is None else min(seconds, patience)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
