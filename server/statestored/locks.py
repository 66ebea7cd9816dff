"""Locks between processes (`flock`). A lock ends with its process, however that ends.

A lock file protects only those who lock the same file. If a cleaner of old files removes it, the next process makes
another one, and locks that. So a process that has locked a file sees that the file still has its name; and a data
directory, which is locked for a long time, is locked itself: it cannot be removed while there are files in it.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from statestored import files
from statestored.errors import Displaced, StartError

log = structlog.get_logger()

LOCK_FILE = "lock"
POLL_SECONDS = 0.01
# The errors with which a file system says that it cannot lock a directory.
_UNSUPPORTED = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def lock_file(path: Path) -> int:
    """Lock a file, which is made if there is none. Returns its descriptor; the lock ends when that is closed.

    Raises BlockingIOError if another process has the lock, or OSError. A symbolic link is not followed.
    """
    while True:
        fd = files.open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if files.is_at(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # it was removed in between: nobody else would lock this one


def lock_directory(fd: int, *, shared: bool = False) -> bool:
    """Lock an open directory until it is closed. Returns False if its file system has no such locks.

    Raises BlockingIOError if another process has the lock.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


@contextmanager
def file_locked(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock file `path`, for which to wait up to `patience` seconds. It is removed afterwards.

    Raises TimeoutError, or OSError.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            lock = lock_file(path)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another process has had the lock for too long") from None
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        unlock_and_remove(path, lock)


def unlock_and_remove(path: Path, lock: int) -> None:
    """Give up a lock file for good."""
    with suppress(OSError):
        if files.is_at(path, lock):
            files.remove(path)
    os.close(lock)


class DataDirectoryLock:
    """The lock of a data directory: one process has it to write there, or several have it to read.

    It locks the directory and a file in it. The file keeps out daemons of releases that lock nothing else, and is the
    only lock if the file system cannot lock directories (or does so for one machine only, as NFS does). It also says
    whose the directory is.

    fd: the directory, open.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self._file_path = path / LOCK_FILE
        self.fd = files.open_file(path, os.O_RDONLY | os.O_DIRECTORY)
        self._file: int | None = None
        self._is_writer = False

    def lock_directory(self, advice: str, *, shared: bool = False) -> None:
        """The first step, which changes nothing. Raises StartError, with what to do, if another process has it."""
        try:
            lock_directory(self.fd, shared=shared)
        except BlockingIOError:
            raise self._in_use(advice) from None

    def lock_file(self, advice: str) -> None:
        """The second step, which makes the file and writes down whose the directory is. Raises as the first."""
        try:
            self._file = lock_file(self._file_path)
        except BlockingIOError:
            raise self._in_use(advice) from None
        self._is_writer = True
        self._write_owner()

    def share_file(self, advice: str) -> None:
        """The second step of a reader: there may be no file, as in a copy, and none is made."""
        try:
            self._file = files.open_file(self._file_path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(advice) from None

    def check_in_place(self) -> None:
        """See that the directory is still at its path, and make the lock file again if it was removed.

        Raises Displaced if another directory has its place, or another process the lock file; or NoRoom, or OSError.
        """
        if not files.is_at(self._path, self.fd, follow=True):
            raise Displaced(f"data directory {self._path} was removed, moved or replaced by another program")
        if self._file is None or not self._is_writer or files.is_at(self._file_path, self._file):
            return
        try:
            new = lock_file(self._file_path)
        except BlockingIOError:
            raise Displaced(f"{self._file_path} was replaced, and another process has locked it") from None
        os.close(self._file)
        self._file = new
        self._write_owner()
        log.warning("lock file was removed by another program, made again", path=str(self._file_path))

    def close(self) -> None:
        """Let the next process have the directory."""
        os.close(self.fd)
        if self._file is not None:
            os.close(self._file)

    def _write_owner(self) -> None:
        """Write down who has the lock, for the message to others."""
        if self._file is None or os.fstat(self._file).st_nlink > 1:  # by its other name the file may be anything
            return
        with suppress(OSError):  # the disk may be full, and the lock holds without an owner's name
            os.ftruncate(self._file, 0)
            # In a container every daemon is process 1.
            os.pwrite(self._file, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _in_use(self, advice: str) -> StartError:
        owner = ""
        with suppress(OSError):
            fd = files.open_file(self._file_path, os.O_RDONLY | os.O_NONBLOCK)
            with os.fdopen(fd, errors="replace") as file:
                owner = file.read(500).strip()
        by = f"statestored (process {owner})" if owner else "process"
        return StartError(f"data directory {self._path} is in use by another {by}: {advice}")
