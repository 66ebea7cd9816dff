"""The data directory: a lock, the store's identity, and the snapshots, each under the number of its generation."""

import fcntl
import json
import os
import re
import socket
import uuid
from pathlib import Path
from typing import IO, Any

import structlog

from statestored import files
from statestored.errors import DamagedFile, StartError, TooNew

log = structlog.get_logger()

LOCK, IDENTITY = "lock", "store.json"
IDENTITY_FORMAT = 1
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SNAPSHOT = re.compile(r"\d{8}\.snapshot")
_UNFINISHED = re.compile(rf"({_SNAPSHOT.pattern}|{re.escape(IDENTITY)}){re.escape(files.TEMPORARY)}")


class DataDirectory:
    """Ours alone while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self.store_id = uuid.UUID(int=0)

    def open(self) -> None:
        """Make it where there is none, lock it, read or make its identity. Raises StartError, DamagedFile or TooNew."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self._remove_unfinished()
            self.store_id = self._identity()
        except PermissionError as error:
            raise StartError(
                f"data directory {self.path}: {error}: user {os.geteuid()} may not. "
                "Start as the user whose it is, or give another --data-dir"
            ) from error
        except OSError as error:
            raise StartError(f"data directory {self.path}: {error.strerror}: give another --data-dir") from error

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def snapshots(self) -> list[Path]:
        """Oldest generation first."""
        return sorted(path for path in self.path.iterdir() if _SNAPSHOT.fullmatch(path.name))

    def next_snapshot(self) -> Path:
        """The path of a generation newer than all that are there."""
        newest = max((int(path.stem) for path in self.snapshots()), default=0)
        return self.path / f"{newest + 1:08}.snapshot"

    def remove_snapshots_before(self, newest: Path) -> None:
        """Raises OSError."""
        for path in self.snapshots():
            if path.name < newest.name:
                path.unlink()
        files.sync_directory(self.path)

    def _take_lock(self) -> IO[str]:
        fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        lock = os.fdopen(fd, "r+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise StartError(
                f"data directory {self.path} is in use by another statestored (process {owner}): "
                "stop that one, or give another --data-dir"
            ) from None
        lock.truncate()
        lock.write(f"{os.getpid()} on {socket.gethostname()}\n")  # in a container every daemon is process 1
        lock.flush()
        return lock

    def _remove_unfinished(self) -> None:
        for path in self.path.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                path.unlink()

    def _identity(self) -> uuid.UUID:
        path = self.path / IDENTITY
        if not path.exists():
            return self._new_identity(path)
        match _json(path):
            case {"format": int(version)} if version > IDENTITY_FORMAT:
                raise TooNew(path, version, IDENTITY_FORMAT)
            case {"format": int(), "store_id": str(store_id)} if _UUID.fullmatch(store_id):
                return uuid.UUID(store_id)
        raise DamagedFile(path, "it does not hold a store's identity")

    def _new_identity(self, path: Path) -> uuid.UUID:
        if found := self.snapshots():
            raise DamagedFile(path, f"it is missing, yet there is {found[-1].name}")
        store_id = uuid.uuid4()
        files.write_durably(path, json.dumps({"format": IDENTITY_FORMAT, "store_id": str(store_id)}).encode() + b"\n")
        log.warning("a new, empty store was made", data_dir=str(self.path), store_id=str(store_id))
        return store_id


def _json(path: Path) -> Any:
    """What a file of JSON holds; None where it holds none."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
