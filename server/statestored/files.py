"""All that is ever done to the files of a data directory, and what it takes for them to survive a loss of power.

Everything raises NoRoom if there is none, on the disk or for one more open file. What fails otherwise is told from
a failed disk here: a write, a sync or a truncation raises DiskFailed, and must not be tried again, for the system may
have forgotten what it could not write; everything else an OSError.
"""

import errno
import fcntl
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from statestored.errors import DiskFailed, NoRoom, TemporaryFileRemoved

TEMPORARY = ".tmp"
REMOVED_AT_ONCE = 2**24  # bytes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE)


def create(path: Path) -> BinaryIO:
    """Make a new, empty file that only its owner may read, unbuffered.

    What is there under this name, such as a link that somebody planted, loses the name and is not touched otherwise.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        fd = open_file(path, flags)
    except FileExistsError:
        discard(path)
        fd = open_file(path, flags)
    return os.fdopen(fd, "wb", buffering=0)


def open_to_read(path: Path, buffering: int = -1) -> BinaryIO:
    """Open a regular file. Raises OSError for anything else, without waiting for a FIFO's other end."""
    fd = open_file(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(fd, "rb", buffering)


def open_file(path: Path, flags: int) -> int:
    """Open a file, or a directory with O_DIRECTORY, and return its descriptor.

    A symbolic link to a file is not followed. The path of a directory is the operator's, and may be a link.
    """
    if not flags & os.O_DIRECTORY:
        flags |= os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _no_room_or(error, error) from None


def is_at(path: Path, fd: int, *, follow: bool = False) -> bool:
    """Return whether `path` still names the file or directory that is open as `fd`."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=follow), os.fstat(fd))
    except (FileNotFoundError, NotADirectoryError):
        return False


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
    if isinstance(file, Path):
        with os.fdopen(open_file(file, os.O_WRONLY), "wb", buffering=0) as opened:
            _truncate(opened, size)
    else:
        _truncate(file, size)


def _truncate(file: BinaryIO, size: int) -> None:
    try:
        os.truncate(file.fileno(), size)
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
    fd = open_file(directory, os.O_RDONLY | os.O_DIRECTORY)
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


def discard(path: Path) -> None:
    """Remove a file that nobody needs. Another program may have removed it already."""
    with suppress(FileNotFoundError):
        remove(path)


@contextmanager
def needs_temporary(path: Path) -> Iterator[None]:
    """Raise TemporaryFileRemoved if a file that is missing is `path`, our own temporary file."""
    try:
        yield
    except FileNotFoundError as error:
        what = "removed by another program while it was written"
        raise TemporaryFileRemoved(error.errno, what, str(path)) from error


def remove_in_steps(path: Path) -> None:
    """A large file, so that no sync of another one has to wait until the system has freed all of it.

    What has another name too is to stay there as it is, and only loses this one. Another program may remove the file
    meanwhile.
    """
    with suppress(FileNotFoundError):
        if not has_other_names(path):
            with os.fdopen(open_file(path, os.O_WRONLY), "wb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
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

    If it raises AttemptFailed, it is the old one, and the caller may go on with that.
    """
    with open_directory(path.parent) as directory:
        with needs_temporary(temporary):
            rename(temporary, path)
        sync_directory(directory)


def write_durably(
    path: Path,
    content: bytes,
    temporary: Path,
    like: os.stat_result | None = None,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Replace a small file as a whole or not at all; its owner, group and mode are ours (0600), or those of `like`.

    Args:
        ready: Is called when nothing is left to do but to give the file its name. If this raises, nothing has changed.
    """
    with create(temporary) as file:
        try:
            if like is not None:
                os.fchown(file.fileno(), like.st_uid, like.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
            write_at(file, content, 0)
            sync_file(file)
            ready()
            put_in_place(temporary, path)
        except BaseException:
            discard(temporary)  # unless it has its name already
            raise


def temporary_name(path: Path) -> Path:
    """Where a file is written before it is put in place; what is found there at a start was never finished."""
    return path.with_name(path.name + TEMPORARY)


def random_name(path: Path) -> Path:
    """A temporary name that nobody can foresee, for a directory in which others may make files."""
    return path.with_name(f".{path.name}.{secrets.token_hex(16)}{TEMPORARY}")


def _no_room_or(error: OSError, other: Exception) -> Exception:
    return NoRoom(error.errno, error.strerror, error.filename) if error.errno in _NO_ROOM else other
