"""The sockets that the daemon listens on, for the protocol and the admin address alike.

An address is taken in two steps: `bind` before the states are loaded, so that one in use is known at once, and `listen`
when clients can be served. In between a client that connects is refused.
"""

import asyncio
import errno
import fcntl
import os
import socket
import stat
import sys
import termios
from array import array
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from statestore.address import Address, TcpAddress, UnixAddress
from statestored.errors import StartError
from statestored.locks import lock_file, unlock_and_remove

log = structlog.get_logger()

BACKLOG = 1024  # connections that the system accepts before the daemon does
IN_USE = "another process listens on it"
# A peer that is silent is asked after 20 seconds, and again every 10; what it has not acknowledged, or not answered,
# for 50 seconds ends the connection. That is also so if the peer answers, but has had no room for more all the time.
KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 50_000}
SO_NWRITE = 0x1024  # of macOS
# What the system says of an address that this machine does not have, as ::1 if it has no IPv6.
MISSING = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
PORTS_TRIED = 20  # until one is free on all addresses of a name

_Place = tuple[socket.AddressFamily, tuple[Any, ...]]  # what the system calls an address


class _CannotBind(Exception):
    def __init__(self, place: TcpAddress, error: OSError) -> None:
        self.place, self.error = place, error


async def bind(address: Address, setting: str) -> list[socket.socket]:
    """Take an address, and do not listen on it yet.

    Args:
        address: a host name stands for all its addresses, which get the same port.
        setting: the name of the setting that the address comes from, for the message.

    Returns: a socket for each address.

    Raises:
        StartError: the address cannot be had, or one of those that a name stands for is in use: clients that try it
            first would talk to another program. One that this machine does not have is left out, and logged.
    """
    if isinstance(address, UnixAddress):
        return [bind_unix(address, setting)]
    return await bind_tcp(address, setting)


def listen(sock: socket.socket, setting: str) -> None:
    """Let clients connect to a socket of `bind`. Raises StartError."""
    if sock.family != socket.AF_UNIX:
        # Only now: as long as the socket does not listen this would let others bind the same address. The connections
        # inherit it, and after a restart, when some are still there, the address can be bound again.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _notice_dead_peers(sock)
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        raise cannot_listen(address_of(sock), setting, error) from error


def remove_paths(sockets: Iterable[socket.socket]) -> None:
    """Remove the paths of unix sockets, as far as they still have them. To be called before they are closed."""
    for sock in sockets:
        if isinstance(sock, UnixSocket):
            sock.remove()


def address_of(sock: socket.socket) -> Address:
    name = sock.getsockname()
    return UnixAddress(name) if sock.family == socket.AF_UNIX else TcpAddress(*name[:2])


async def bind_tcp(address: TcpAddress, setting: str) -> list[socket.socket]:
    """As `bind`."""
    try:
        places = await _resolve(address)
    except OSError as error:
        raise cannot_listen(address, setting, error) from error
    try:
        return _bind_places(address, list(dict.fromkeys(places)))  # a name may have the same address twice
    except _CannotBind as failure:
        raise cannot_listen(address, setting, failure.error, failure.place) from failure.error


async def _resolve(address: TcpAddress) -> list[_Place]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(socket.AddressFamily(family), place) for family, _, _, _, place in found]


def _bind_places(address: TcpAddress, places: list[_Place]) -> list[socket.socket]:
    for tries_left in reversed(range(PORTS_TRIED)):
        try:
            return _bind_to_one_port(address, places)
        except _CannotBind as failure:
            if address.port or failure.error.errno != errno.EADDRINUSE or not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def _bind_to_one_port(address: TcpAddress, places: list[_Place]) -> list[socket.socket]:
    """If the port is 0, the system chooses one for the first address, and the others get the same."""
    port, bound = address.port, list[socket.socket]()
    missing: dict[TcpAddress, OSError] = {}
    for family, (host, _, *more) in places:
        try:
            sock = _bind_socket(family, (host, port, *more))
        except OSError as error:
            if error.errno not in MISSING:
                for other in bound:
                    other.close()
                raise _CannotBind(TcpAddress(host, port), error) from error
            missing[TcpAddress(host, port)] = error
        else:
            port = sock.getsockname()[1]
            bound.append(sock)
    if not bound:
        raise _CannotBind(*next(iter(missing.items())))
    for place, why in missing.items():
        log.warning("not listening on an address of a name", name=str(address), address=str(place), reason=reason(why))
    return bound


def _bind_socket(family: socket.AddressFamily, place: tuple[Any, ...]) -> socket.socket:
    """Bind one that no other process can bind as well, even before this one listens.

    So it is done without SO_REUSEADDR. If that fails, what is there may only be connections of a daemon that has ended,
    which do not count with it.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind(place)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(place)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        sock.close()
        raise
    return sock


def _notice_dead_peers(listening: socket.socket) -> None:
    """On all connections to a listening TCP socket, which inherit what is set here."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        option = getattr(socket, name, None)
        if option is not None:  # not every system has all of them
            listening.setsockopt(socket.IPPROTO_TCP, option, value)


class UnixSocket(socket.socket):
    """A unix socket with a path of its own, which it gives back by `remove`.

    A lock file beside the path belongs to the process that has the path, from before it is bound until it is removed.
    Otherwise two daemons that start at once could both find the socket that a third one left, and one of them remove
    the other's; and one that is bound and does not listen yet would be taken for such a socket.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError, with a reason, if another process has the path."""
        super().__init__(socket.AF_UNIX)
        self._path = path
        self._lock_path = lock_of_socket(path)
        try:
            self._lock = _lock_or_refuse(self._lock_path)
            try:
                self._status = self._bind()
            except BaseException:
                unlock_and_remove(self._lock_path, self._lock)
                raise
        except BaseException:
            self.close()
            raise

    def remove(self) -> None:
        """Remove the path, unless another process has put its own socket there. Before the socket is closed."""
        with suppress(FileNotFoundError):
            # Nobody is given this inode as long as the socket is open.
            if os.path.samestat(self._path.lstat(), self._status):
                self._path.unlink()
        unlock_and_remove(self._lock_path, self._lock)

    def _bind(self) -> os.stat_result:
        _remove_stale(self._path)
        self.bind(str(self._path))
        return self._path.lstat()


def lock_of_socket(path: Path) -> Path:
    """Return the path of the lock file beside a unix socket."""
    return path.with_name(f"{path.name}.lock")


def bind_unix(address: UnixAddress, setting: str) -> UnixSocket:
    """A socket that only our own user can connect to, in place of one that a killed daemon left. Raises StartError."""
    # The mode has to be right from the beginning: a chmod afterwards leaves a moment for others.
    umask = os.umask(0o177)
    try:
        return UnixSocket(Path(address.path))
    except OSError as error:
        raise cannot_listen(address, setting, error) from error
    finally:
        os.umask(umask)


def unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes the system still has for a TCP peer, also after it has given the connection up.

    0 if the system does not say.
    """
    with suppress(OSError, ValueError):
        if sys.platform == "darwin":
            return sock.getsockopt(socket.SOL_SOCKET, SO_NWRITE)
        size = array("i", [0])
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, size)
        return size[0]
    return 0


def cannot_listen(address: Address, setting: str, error: OSError, place: Address | None = None) -> StartError:
    """`place` is the one of the address's that cannot be bound."""
    which = "" if place is None or place == address else f"{place}: "
    return StartError(f"cannot listen on {address} ({setting}): {which}{reason(error)}")


def reason(error: OSError) -> str:
    """What the system says, in a form for the middle of a sentence."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno).lower()


def _lock_or_refuse(path: Path) -> int:
    try:
        return lock_file(path)
    except BlockingIOError:
        raise OSError(IN_USE) from None


def _remove_stale(path: Path) -> None:
    """Remove the socket of a process that has ended. Raises OSError if a process has it, whether it listens or not."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError("there is a file of that name which is no socket")
    # A socket of another kind cannot connect: it is refused if no process has this one, and else told that it is of the
    # wrong kind.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    raise OSError(IN_USE)
