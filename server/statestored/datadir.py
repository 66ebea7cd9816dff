"""The data directory: a lock, the store's identity, and the snapshots and segments of the journal, each numbered.

Snapshot N holds what all segments before segment N did: segments go on being numbered where the newest file ends.
"""

import errno
import fcntl
import json
import os
import re
import socket
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import structlog

from statestored import files
from statestored.errors import DamagedFile, DiskFailed, StartError, TooNew
from statestored.framing import HEADER_SIZE

log = structlog.get_logger()

LOCK, IDENTITY = "lock", "store.json"
IDENTITY_FORMAT = 1
SNAPSHOT, SEGMENT = ".snapshot", ".journal"
SET_ASIDE = "damaged-"  # and when: a directory of files that a repair has replaced
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUMBERED = re.compile(rf"\d{{8,}}({re.escape(SNAPSHOT)}|{re.escape(SEGMENT)})")
_UNFINISHED = re.compile(rf"({_NUMBERED.pattern}|{re.escape(IDENTITY)}){re.escape(files.TEMPORARY)}")


class DataDirectory:
    """Ours alone while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self.store_id = uuid.UUID(int=0)
        self.is_new = False  # nothing is in it yet, its identity neither

    def open(self) -> None:
        """Make it where there is none, lock it, read its identity.

        Raises StartError, DamagedFile, TooNew, or DiskFailed.
        """
        try:
            self._make()
            self._lock = self._take_lock("stop that one, or give another --data-dir")
            self._remove_unfinished()
            self._read_identity()
        except PermissionError as error:
            raise StartError(
                f"data directory {self.path}: {error}: user {os.geteuid()} may not. "
                "Start as the user whose it is, or give another --data-dir"
            ) from error
        except OSError as error:
            if error.errno == errno.EIO:  # another directory would be an empty store
                raise DiskFailed(error) from error
            raise StartError(f"data directory {self.path}: {error.strerror}: give another --data-dir") from error

    def open_existing(self, *, to_write: bool) -> None:
        """Where there is no daemon in it, and let none in; only `to_write` changes that lock. Its identity is not read.

        Raises StartError or OSError.
        """
        if not self.path.is_dir():
            raise StartError(f"there is no directory {self.path}")
        try:
            self._lock = self._take_lock("stop that one") if to_write else self._share_lock()
        except PermissionError as error:
            raise StartError(
                f"data directory {self.path}: {error}: user {os.geteuid()} may not. Run this as the user whose it is"
            ) from error

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def snapshots(self) -> list[Path]:
        """By their numbers."""
        return self._numbered(SNAPSHOT)

    def segments(self) -> list[Path]:
        """By their numbers."""
        return self._numbered(SEGMENT)

    def unfinished(self) -> list[Path]:
        """Snapshots and segments whose writing, or whose removal, was broken off."""
        return sorted(path for path in files.paths_in(self.path) if is_unfinished(path) and path.stem != IDENTITY)

    def snapshot(self, number: int) -> Path:
        return self.path / f"{number:08}{SNAPSHOT}"

    def segment(self, number: int) -> Path:
        return self.path / f"{number:08}{SEGMENT}"

    def holds_nothing(self) -> bool:
        """Whether a new store is made here: a first start does not come further than an empty segment before it is."""
        first, found = self.segment(1), [*self.segments(), *self.snapshots()]
        is_begun = found == [first] and first.stat().st_size <= HEADER_SIZE
        return not (self.path / IDENTITY).exists() and (is_begun or not found)

    def remove_before(self, number: int) -> None:
        """What the snapshot of this number has made needless. Raises OSError."""
        needless = [path for path in (*self.snapshots(), *self.segments()) if number_of(path) < number]
        for path in needless:  # under this name a start removes them
            files.rename(path, files.temporary_name(path))
        files.sync_directory(self.path)
        for path in needless:
            files.remove_in_steps(files.temporary_name(path))
        files.sync_directory(self.path)

    def set_aside(self, paths: Sequence[Path], name: str) -> None:
        """These files also stand in a new directory `name` in this one when this returns. Raises OSError."""
        aside = self.path / name
        aside.mkdir(mode=0o700)
        for path in paths:
            _link_or_copy(path, aside / path.name)
        files.sync_directory(aside)
        files.sync_directory(self.path)

    def save_identity(self) -> None:
        """Done last in a new directory, whose identity thus stands for a journal that is there. Raises OSError."""
        write_identity(self.path, self.store_id)
        self.is_new = False
        log.warning("a new, empty store was made", data_dir=str(self.path), store_id=str(self.store_id))

    def _make(self) -> None:
        """Where there is none, and so that it stays."""
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in made:
            files.sync_directory(path.parent)

    def _numbered(self, suffix: str) -> list[Path]:
        found = [path for path in files.paths_in(self.path) if path.suffix == suffix and _NUMBERED.fullmatch(path.name)]
        return sorted(found, key=number_of)

    def _take_lock(self, advice: str) -> IO[str]:
        fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        lock = os.fdopen(fd, "r+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(lock, advice) from None
        with suppress(OSError):  # the disk may be full, and the lock holds without a name on it
            os.ftruncate(fd, 0)
            # In a container every daemon is process 1.
            os.pwrite(fd, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return lock

    def _share_lock(self) -> IO[str] | None:
        """Without making it where there is none, as in a copy."""
        try:
            lock = (self.path / LOCK).open()
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(lock, "stop that one, or look at a copy") from None
        return lock

    def _in_use(self, lock: IO[str], advice: str) -> StartError:
        with lock:
            owner = lock.read().strip() or "unknown"
        return StartError(f"data directory {self.path} is in use by another statestored (process {owner}): {advice}")

    def _remove_unfinished(self) -> None:
        for path in files.paths_in(self.path):
            if is_unfinished(path):
                files.remove(path)

    def _read_identity(self) -> None:
        path = self.path / IDENTITY
        try:
            self.store_id = read_identity(path)
            return
        except FileNotFoundError:
            self.is_new = True
        if self.holds_nothing():
            for segment in self.segments():
                files.remove(segment)
        if found := (*self.snapshots(), *self.segments()):
            raise DamagedFile(path, f"it is missing, yet there is {found[-1].name}")
        self.store_id = uuid.uuid4()


def number_of(path: Path) -> int:
    """Of a snapshot or a segment, in its place or unfinished."""
    return int(path.name.partition(".")[0])


def is_unfinished(path: Path) -> bool:
    """Whether it is a file that a daemon was about to write, or to remove."""
    return _UNFINISHED.fullmatch(path.name) is not None


def read_identity(path: Path) -> uuid.UUID:
    """Raises DamagedFile, TooNew or OSError."""
    match _json(path):
        case {"format": int(version)} if version > IDENTITY_FORMAT:
            raise TooNew(path, f"format {version}", IDENTITY_FORMAT)
        case {"format": int(), "store_id": str(store_id)} if _UUID.fullmatch(store_id):
            return uuid.UUID(store_id)
    raise DamagedFile(path, "it does not hold a store's identity")


def write_identity(directory: Path, store_id: uuid.UUID) -> None:
    """Raises OSError."""
    content = json.dumps({"format": IDENTITY_FORMAT, "store_id": str(store_id)}).encode() + b"\n"
    files.write_durably(directory / IDENTITY, content)


def _link_or_copy(path: Path, target: Path) -> None:
    """Both are never changed, so that one file may stand for them. Not all file systems have links."""
    try:
        os.link(path, target)
    except OSError:
        with path.open("rb") as source, files.create(target) as copy:
            offset = 0
            while chunk := source.read(2**20):
                files.write_at(copy, chunk, offset)
                offset += len(chunk)
            files.sync_file(copy)


def _json(path: Path) -> Any:
    """What a file of JSON holds; None where it holds none."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
