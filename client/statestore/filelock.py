"""A lock between processes, and between the threads of each, by a file that is opened each time.

A cleaner of old files may remove the file. So its time of change is set each time. The holder then checks that the
file still has its name, because otherwise the next process would make another file, and lock that.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from statestore.forks import Descriptor, detect_fork, reset_after_fork

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


class _LockFile:
    """A lock file that one thread has open. A child gives its copy back: else the lock would outlive the parent."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        self.fd = os.open(path, flags, 0o600)
        self._descriptor = Descriptor(self.fd)
        self._is_inherited = False
        reset_after_fork(self)

    def after_fork_in_child(self) -> None:
        self._is_inherited = True
        self._descriptor.close()

    def unlock(self) -> None:
        """Raises OSError in a child that was forked inside, for the lock is its parent's."""
        detect_fork()
        if self._is_inherited:
            raise OSError("the process was forked while it held the lock")
        _unlock(self.fd)  # a child that was forked meanwhile may have the file open, too

    def close(self) -> None:
        if not self._is_inherited:
            os.close(self.fd)


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock `path` for ourselves. Raises OSError."""
    file = _take(path)
    try:
        with suppress(OSError):  # the file may be another user's
            os.utime(path)
        try:
            yield
        finally:
            file.unlock()
    finally:
        file.close()


def _take(path: str) -> _LockFile:
    """Open and lock the file that has this name then."""
    while True:
        file = _LockFile(path)
        try:
            _lock(file.fd)
            if _is_at(path, file.fd):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # which gives the lock up
