"""Unix sockets, for the listener and the admin address alike."""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from statestore.address import Address, UnixAddress
from statestored.errors import StartError
from statestored.locks import lock_file, unlock_and_remove

IN_USE = "another process listens on it"
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
        self._lock_path = path.with_name(f"{path.name}.lock")
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


def cannot_listen(address: Address, setting: str, error: OSError) -> StartError:
    return StartError(f"cannot listen on {address} ({setting}): {reason(error)}")


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
    """Remove the socket that a killed process left; one that a process listens on stays. Raises OSError."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError("there is a file of that name which is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # so many wait for the process to accept them that there is no room for one more
            pass
    raise OSError(IN_USE)
