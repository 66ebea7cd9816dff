"""Unix sockets, for the listener and the admin address alike."""

import os
import socket
import stat
from pathlib import Path

from statestore.address import UnixAddress
from statestored.errors import StartError


def bind_unix(address: UnixAddress) -> socket.socket:
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
        raise StartError(f"cannot listen on {address}: {reason(error)}") from error
    finally:
        os.umask(umask)
    return sock


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
