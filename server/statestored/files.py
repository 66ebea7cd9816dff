"""All that is ever done to the files of a data directory, and what it takes for them to survive a loss of power.

Everything raises NoRoom where there is none, on the disk or for one more open file. What fails otherwise is told from
a failed disk here: a write, a sync or a truncation raises DiskFailed, and must not be tried again, for the system may
have forgotten what it could not write; everything else an OSError.
"""

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from statestored.errors import DiskFailed, NoRoom

TEMPORARY = ".tmp"
REMOVED_AT_ONCE = 2**24  # bytes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE)


def create(path: Path) -> BinaryIO:
    """A new, empty file that only its owner may read, unbuffered."""
    return os.fdopen(_open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb", buffering=0)


def open_to_read(path: Path) -> BinaryIO:
    return os.fdopen(_open(path, os.O_RDONLY), "rb")


def write_at(file: BinaryIO, data: bytes, offset: int) -> None:
    """All of `data`, however little the system takes at a time."""
    fd, rest = file.fileno(), memoryview(data)
    try:
        while rest:
            written = os.pwrite(fd, rest, offset)
            offset += written
            rest = rest[written:]
    except OSError as error:
        raise _no_room_or(error, DiskFailed(error)) from error


def truncate(file: BinaryIO | Path, size: int) -> None:
    try:
        os.truncate(file if isinstance(file, Path) else file.fileno(), size)
    except OSError as error:
        raise _no_room_or(error, DiskFailed(error)) from error


def sync_file(file: BinaryIO) -> None:
    """What was written is on the disk when this returns."""
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # fsync there stops at the drive's cache
        else:
            os.fdatasync(file)
    except OSError as error:
        raise DiskFailed(error) from error


def sync_directory(directory: Path | int) -> None:
    """Files made, renamed and removed in `directory`, by its path or as it is open, stay so."""
    with open_directory(directory) if isinstance(directory, Path) else nullcontext(directory) as fd:
        try:
            os.fsync(fd)
        except OSError as error:
            raise DiskFailed(error) from error


@contextmanager
def open_directory(directory: Path) -> Iterator[int]:
    """To sync it later, when there may be no room for one more open file."""
    fd = _open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def rename(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        raise _no_room_or(error, error) from None


def remove(path: Path) -> None:
    path.unlink()


def remove_in_steps(path: Path) -> None:
    """A large file, so that no sync of another one has to wait until the system has freed all of it.

    What has another name too is to stay there as it is, and only loses this one.
    """
    if not has_other_names(path):
        with os.fdopen(_open(path, os.O_WRONLY), "wb", buffering=0) as file:
            size = path.stat().st_size
            while size > REMOVED_AT_ONCE:
                size -= REMOVED_AT_ONCE
                truncate(file, size)
                sync_file(file)
    remove(path)


def has_other_names(path: Path) -> bool:
    """Whether the same file also stands elsewhere, such as in a backup that was made of links."""
    return path.stat().st_nlink > 1


def paths_in(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError as error:
        raise _no_room_or(error, error) from None


def free_space(path: Path) -> int:
    """Bytes that may still be written to the file system on which `path` is, as far as it tells."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a file that is synced its name: whatever happens, `path` is the old file or the new one.

    Where it raises NoRoom, it is the old one: whoever goes on after that relies on it.
    """
    with open_directory(path.parent) as directory:
        rename(temporary, path)
        sync_directory(directory)


def write_durably(
    path: Path, content: bytes, like: os.stat_result | None = None, ready: Callable[[], object] = lambda: None
) -> None:
    """Write a small file, as a whole or not at all; for its owner only, or for whom another file is.

    Args:
        ready: Is called when nothing is left to do but to give the file its name. If this raises, nothing has changed.
    """
    temporary = temporary_name(path)
    with create(temporary) as file:
        if like is not None:
            os.fchown(file.fileno(), like.st_uid, like.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
        write_at(file, content, 0)
        sync_file(file)
    try:
        ready()
    except BaseException:
        remove(temporary)
        raise
    put_in_place(temporary, path)


def temporary_name(path: Path) -> Path:
    """Where a file is written before it is put in place; what is found there at a start was never finished."""
    return path.with_name(path.name + TEMPORARY)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _no_room_or(error, error) from None


def _no_room_or(error: OSError, other: Exception) -> Exception:
    return NoRoom(error.errno, error.strerror, error.filename) if error.errno in _NO_ROOM else other
