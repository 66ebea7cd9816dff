"""What stands in for `os`, `fcntl` and paths in the product: they lead to the disk of the machine that is running.

Nothing here falls back to the real file system: a name that is missing raises AttributeError.
"""

import errno
import fcntl
import io
import os
import stat
from collections.abc import Generator
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, Self

from greenlet import GreenletExit

from tests.simulation.disk import DIRECTORY, PARENT, Disk, Status
from tests.simulation.kernel import World

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

DATA_DIRECTORY = "/sim/data"
USER = 1000  # the user and the group that run every daemon and own every file
DEVICE = 1


def current_disk() -> Disk:
    """Return the disk of the machine whose process is running.

    Raises GreenletExit if no process is: then the run is over, and what is left of the processes is unwound.
    """
    process = World.kernel.current
    if process is None:
        raise GreenletExit
    disk: Disk | None = process.machine.disk
    assert disk is not None, f"{process.name} runs on a machine without a disk"
    return disk


class DataPath(PosixPath):
    """A path of the data directory, of a file in it, or of a directory above it. Derived paths are of this class."""

    @property
    def _entry(self) -> str | int:
        """The name of a file in the data directory, or the number of a directory."""
        text = str(self)
        if text == DATA_DIRECTORY:
            return DIRECTORY
        if DATA_DIRECTORY.startswith(text):
            return PARENT
        directory, _, name = text.rpartition("/")
        if directory != DATA_DIRECTORY:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text)
        return name

    @property
    def _file(self) -> str:
        entry = self._entry
        if isinstance(entry, int):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self))
        return entry

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:  # noqa: ARG002  # there are none
        entry = self._entry
        disk = current_disk()
        return _stat_result(disk.status_of_directory(entry) if isinstance(entry, int) else disk.status(entry))

    def exists(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        return isinstance(self._entry, int) and self.exists()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002
        return isinstance(self._entry, str) and self.exists()

    def is_symlink(self) -> bool:
        return False

    def is_socket(self) -> bool:
        return False

    def resolve(self, strict: bool = False) -> Self:  # noqa: ARG002
        return self

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:  # noqa: ARG002
        assert self._entry == DIRECTORY, f"the simulation makes no directory {self}"
        current_disk().make_directory(exist_ok=exist_ok)

    def iterdir(self) -> Generator[Self, None, None]:
        assert self._entry == DIRECTORY, f"the simulation lists no directory {self}"
        for name in current_disk().names():
            yield self / name

    def replace(self, target: str | os.PathLike[str]) -> Self:
        path = type(self)(target)
        current_disk().rename(self._file, path._file)
        return path

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            current_disk().remove(self._file)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        disk = current_disk()
        reader = io.BufferedReader(OpenFile(disk, disk.open(self._file, os.O_RDONLY)))
        with io.TextIOWrapper(reader, encoding, errors, newline) as file:
            return file.read()


class OpenFile(io.RawIOBase):
    """What `os.fdopen` returns for a descriptor of a simulated disk, unbuffered. It is written by `os.pwrite` only."""

    def __init__(self, disk: Disk, fd: int) -> None:
        super().__init__()
        self._disk = disk
        self._fd = fd
        self._position = 0

    def fileno(self) -> int:
        return self._fd

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._disk.status_of(self._fd).size
        self._position = offset
        return offset

    def readinto(self, buffer: "WriteableBuffer") -> int:
        target = memoryview(buffer).cast("B")
        data = self._disk.read(self._fd, len(target), self._position)
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._disk.close(self._fd)
        super().close()


class OsPath:
    """`os.path`."""

    samestat = staticmethod(os.path.samestat)

    def lexists(self, path: Path) -> bool:
        return path.exists()


class Os:
    """`os`, as far as the product uses it for a data directory."""

    path = OsPath()
    O_RDONLY, O_WRONLY, O_RDWR = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
    O_CREAT, O_EXCL, O_DIRECTORY = os.O_CREAT, os.O_EXCL, os.O_DIRECTORY
    O_NOFOLLOW, O_NONBLOCK, O_CLOEXEC = os.O_NOFOLLOW, os.O_NONBLOCK, os.O_CLOEXEC
    strerror = staticmethod(os.strerror)

    def open(self, path: DataPath, flags: int, mode: int = 0o777) -> int:  # noqa: ARG002
        entry = path._entry
        if isinstance(entry, int):
            return current_disk().open_directory(entry)
        if flags & os.O_DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return current_disk().open(entry, flags)

    def fdopen(self, fd: int, mode: str = "r", buffering: int = -1, errors: str | None = None) -> io.IOBase:
        assert mode in ("r", "rb") or buffering == 0, "buffered writes are not simulated"
        raw = OpenFile(current_disk(), fd)
        if buffering == 0:
            return raw
        reader = io.BufferedReader(raw, buffering if buffering > 0 else io.DEFAULT_BUFFER_SIZE)
        return reader if mode == "rb" else io.TextIOWrapper(reader, errors=errors)

    def close(self, fd: int) -> None:
        current_disk().close(fd)

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        return path.stat(follow_symlinks=follow_symlinks)

    def fstat(self, fd: int) -> os.stat_result:
        return _stat_result(current_disk().status_of(fd))

    def statvfs(self, path: Path) -> SimpleNamespace:  # noqa: ARG002
        return SimpleNamespace(f_bavail=current_disk().free_space, f_frsize=1)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return current_disk().write(fd, bytes(data), offset)

    def truncate(self, fd: int, size: int) -> None:
        current_disk().truncate(fd, size)

    ftruncate = truncate

    def fdatasync(self, file: int | io.IOBase) -> None:
        current_disk().sync(file if isinstance(file, int) else file.fileno())

    fsync = fdatasync

    def urandom(self, size: int) -> bytes:
        return World.kernel.bytes.randbytes(size)

    def geteuid(self) -> int:
        return USER

    def getpid(self) -> int:
        return 1


class Fcntl:
    """`fcntl`, of which the product uses `flock`."""

    LOCK_EX, LOCK_SH, LOCK_NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_NB

    def flock(self, fd: int, operation: int) -> None:
        assert operation & fcntl.LOCK_NB, "the product never waits for a lock in the system"
        kind: Literal["shared", "exclusive"] = "exclusive" if operation & fcntl.LOCK_EX else "shared"
        current_disk().lock(fd, kind)


def _stat_result(status: Status) -> os.stat_result:
    mode = stat.S_IFDIR | 0o700 if status.is_directory else stat.S_IFREG | 0o600
    number = status.number + 100  # numbers of directories are not positive
    return os.stat_result((mode, number, DEVICE, status.links, USER, USER, status.size, 0, 0, 0))
