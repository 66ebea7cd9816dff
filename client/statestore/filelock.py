"""A lock between processes, and between the threads of each, by a file that is opened each time.

A cleaner of old files may remove the file. So it is given a new time of change each time; and whoever has the lock sees
that the file still has its name, for otherwise the next process would make another file, and lock that.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_LOCK, 1)

    def _unlock(fd: int) -> None:
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

    def _is_at(_path: str, _fd: int) -> bool:
        return True  # a file that is open cannot be removed there
else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)

    def _is_at(path: str, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(path), os.fstat(fd))
        except FileNotFoundError:
            return False


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock `path` for ourselves. Raises OSError."""
    fd = _take(path)
    try:
        with suppress(OSError):  # the file may be another user's
            os.utime(path)
        yield
    finally:
        try:
            _unlock(fd)  # a child that was forked meanwhile has the file open, too
        finally:
            os.close(fd)


def _take(path: str) -> int:
    """Open and lock the file that has this name then."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            _lock(fd)
            if _is_at(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # which gives the lock up
