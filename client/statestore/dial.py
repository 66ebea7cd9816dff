"""Connected sockets: made within a deadline, by one address or another, and closed in the child of a fork."""

import contextlib
import socket
import struct
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from statestore.address import Address, TcpAddress
from statestore.deadline import Deadline
from statestore.errors import Unavailable
from statestore.forks import Descriptor, ProcessBound, detect_fork, no_fork, reset_after_fork
from statestore.protocol import ConnectionLost, WrongServer, WrongStore

CONNECT_PATIENCE = 3.0  # seconds for one address: for a lost packet or two, not for a host that is down
# Seconds that a send or a receive may take; then it raises BlockingIOError. This way the usual one is a single system
# call, and still nobody is stuck in one.
TICK = 0.1
_TICK_OPTION = (
    struct.pack("@L", int(TICK * 1000)) if sys.platform == "win32" else struct.pack("@ll", 0, int(TICK * 1e6))
)


class ClientSocket(socket.socket):
    """Only ever closed, without a `shutdown`, which would reach a parent process that shares the connection."""

    def close(self) -> None:
        with no_fork():
            super().close()


class OpenSockets(ProcessBound):
    """Those of this process: in the child of a fork they are closed."""

    has_sockets = True

    def __init__(self) -> None:
        # By file descriptor. Not a WeakSet: an exception of a signal's handler is lost in its callbacks.
        self._sockets: dict[int, tuple[weakref.ref[ClientSocket], Descriptor]] = {}
        reset_after_fork(self)

    def __iter__(self) -> Iterator[ClientSocket]:
        return iter([sock for reference, _ in self._sockets.copy().values() if (sock := reference()) is not None])

    def new(self, family: int) -> ClientSocket:
        """Return a socket that is noted here, and that no other process has."""
        while True:
            with no_fork():
                sockets = self._sockets
                sock = ClientSocket(family, socket.SOCK_STREAM)
                sockets[sock.fileno()] = weakref.ref(sock), Descriptor(sock.fileno())
                detect_fork()
                if sockets is self._sockets:
                    return sock
                sock.close()  # a signal handler of this thread has forked before the socket was noted

    def forget(self, sock: ClientSocket) -> None:
        """Somebody else closes it in a child."""
        self._sockets.pop(sock.fileno(), None)

    def after_fork_in_child(self) -> None:
        for reference, descriptor in self._sockets.copy().values():
            sock = reference()
            if sock is not None:
                descriptor.close()  # `sock.close` would wait for an event loop that still uses it
                sock.detach()
        self._sockets = {}


open_sockets = OpenSockets()


class Candidates:
    """The addresses of one store, to be tried in turn until one gives a connection.

    Iterating gives each with the deadline of its share of the time. Where none is left it raises what became of those
    before, or TimeoutError. After the last one: `raise candidates.exhausted()`.
    """

    def __init__(self, addresses: Sequence[Address], first: Address | None, deadline: Deadline) -> None:
        """first: the one to begin with; or one that is down would cost each new connection its share."""
        self._addresses = sorted(addresses, key=lambda address: address != first)
        self._deadline = deadline
        self._failures: list[str] = []  # one for each address that was tried
        self._may_be_back = False  # one of these

    def __iter__(self) -> Iterator[tuple[Address, Deadline]]:
        for number, address in enumerate(self._addresses):
            if self._failures and self._deadline.passed:
                raise self.exhausted()
            share = self._deadline.left() / (len(self._addresses) - number)
            yield address, self._deadline.within(min(share, CONNECT_PATIENCE))

    def may_go_on(self, address: Address, failure: Exception) -> bool:
        """Whether another address may do better than this one did; else raise `failure`."""
        passes = isinstance(failure, ConnectionLost | TimeoutError) or getattr(failure, "retry", False)
        if isinstance(failure, WrongStore) or not (passes or isinstance(failure, WrongServer)):
            return False
        self._may_be_back = self._may_be_back or passes
        said = getattr(failure, "detail", str(failure))
        self._failures.append(said if len(self._addresses) == 1 else f"{address}: {said}")
        return True

    def exhausted(self) -> ConnectionLost | WrongServer:
        """What each of them said. WrongServer where asking again helps at none."""
        said = "; ".join(self._failures)
        if self._may_be_back or len(self._failures) < len(self._addresses):
            return ConnectionLost(said, sent=False)
        return WrongServer(said)


def connect(address: Address, deadline: Deadline) -> ClientSocket:
    """A blocking socket, but for `TICK`. Tries every address that a name stands for.

    Raises ConnectionLost with what the last one said.
    """
    failure = ConnectionLost("the name stands for no address", sent=False)
    targets = list(targets_of(address, deadline))
    for number, (family, target) in enumerate(targets):
        try:
            sock = open_sockets.new(family)
        except OSError as error:
            raise ConnectionLost(reason(error), sent=False) from error
        try:
            sock.settimeout(deadline.left() / (len(targets) - number))  # each its share
            sock.connect(target)
            if family != getattr(socket, "AF_UNIX", None):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, _TICK_OPTION)
            sock.settimeout(None)
            return sock
        except OSError as error:
            sock.close()
            failure = ConnectionLost(reason(error), sent=False)
        except BaseException:
            sock.close()
            raise
    raise failure


def targets_of(address: Address, deadline: Deadline) -> Iterator[tuple[int, Any]]:
    """Family and address of each socket that it stands for. Raises ConnectionLost where a name cannot be looked up."""
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
    """Ask `getaddrinfo`, which knows no time-out, in a thread, which is left behind if it takes too long.

    Raises ConnectionLost.
    """
    answer: list[Any] = []
    # A name in bytes is used as it is. For a str a codec is loaded first, which a process at its end cannot do.
    host = address.host.encode() if address.host.isascii() else address.host

    def ask() -> None:
        try:
            answer.append(socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.append(error)

    thread = threading.Thread(target=ask, name="statestore-look-up", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        if not is_interpreter_ending(error):
            raise ConnectionLost(f"looking up {address.host}: {error}", sent=False) from error
        ask()
    else:
        with contextlib.suppress(TimeoutError):
            thread.join(deadline.left())
    if not answer:
        raise ConnectionLost(f"looking up {address.host} took longer than {deadline.seconds:g} s", sent=False)
    if isinstance(answer[0], Exception):
        raise ConnectionLost(f"looking up {address.host}: {answer[0]}", sent=False)
    found: Iterable[tuple[Any, ...]] = answer[0]
    return found


def is_interpreter_ending(error: RuntimeError) -> bool:
    """Return whether no thread could be started because the process ends, as Python 3.12 has it from its end on.

    What the thread was to do is then done by its caller, without a limit of time.
    """
    return not threading.main_thread().is_alive() or "interpreter shutdown" in str(error)


def reason(error: Exception) -> str:
    """What to say of it: `connection refused`."""
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return getattr(error, "detail", str(error))
