"""What a file needs to still be there, whole, after a power loss."""

import fcntl
import os
import sys
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"


def create(path: Path) -> BinaryIO:
    """A new, empty file that only its owner may read, unbuffered. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return os.fdopen(fd, "wb", buffering=0)


def write_all(file: BinaryIO, data: bytes) -> None:
    """All of `data`, however little the system takes at a time. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def sync_file(file: BinaryIO) -> None:
    """What was written is on the disk when this returns. Raises OSError."""
    if sys.platform == "darwin":
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # fsync there stops at the drive's cache
    else:
        os.fdatasync(file)


def sync_directory(directory: Path) -> None:
    """Files made, renamed and removed in `directory` stay so. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a file that is synced its name: whatever happens, `path` is the old file or the new one. Raises OSError."""
    temporary.replace(path)
    sync_directory(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """A small file, as a whole or not at all. Raises OSError."""
    temporary = temporary_name(path)
    with create(temporary) as file:
        write_all(file, content)
        sync_file(file)
    put_in_place(temporary, path)


def temporary_name(path: Path) -> Path:
    """Where a file is written before it is put in place; what is found there at a start was never finished."""
    return path.with_name(path.name + TEMPORARY)
