"""Sockets to listen on, for the listener and the admin address alike."""

import asyncio
import os
import socket
import stat
from pathlib import Path

from statestore.address import Address, TcpAddress, UnixAddress
from statestored.errors import StartError

# A peer that is silent is asked after 20 seconds, and again every 10; what it has not acknowledged, or not answered,
# for 50 seconds ends the connection.
KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 50_000}


def notice_dead_peers(listening: socket.socket) -> None:
    """On all connections to a listening TCP socket, which inherit what is set here."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        option = getattr(socket, name, None)
        if option is not None:  # not every system has all of them
            listening.setsockopt(socket.IPPROTO_TCP, option, value)


async def bind_tcp(address: TcpAddress, setting: str) -> list[socket.socket]:
    """Return a socket for each address that the host name stands for and that can be bound. Raises StartError."""
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise cannot_listen(address, setting, error) from error
    for family, kind, protocol, _, place in found:
        try:
            sockets.append(_bind(socket.socket(family, kind, protocol), place))
        except OSError as error:
            failure = error
    if not sockets and failure is not None:
        raise cannot_listen(address, setting, failure) from failure
    return sockets


def _bind(sock: socket.socket, place: tuple[object, ...]) -> socket.socket:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
    except OSError:
        sock.close()
        raise
    return sock


def bind_unix(address: UnixAddress, setting: str) -> socket.socket:
    """A socket that only our own user can connect to, in place of one that a killed daemon left. Raises StartError."""
    path = Path(address.path)
    sock = socket.socket(socket.AF_UNIX)
    # The mode has to be right from the beginning: a chmod afterwards leaves a moment for others.
    umask = os.umask(0o177)
    try:
        _remove_stale(path)
        sock.bind(address.path)
    except OSError as error:
        sock.close()
        raise cannot_listen(address, setting, error) from error
    finally:
        os.umask(umask)
    return sock


def cannot_listen(address: Address, setting: str, error: OSError) -> StartError:
    return StartError(f"cannot listen on {address} ({setting}): {reason(error)}")


def reason(error: OSError) -> str:
    """What the system says, in a form for the middle of a sentence."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno).lower()


def _remove_stale(path: Path) -> None:
    """One that somebody answers on stays. Raises OSError."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise FileExistsError("there is a file of that name which is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError("another process listens on it")
