"""Takes down what is done to the files of a directory while it is done.

All of it goes through the functions of `statestored.files`, which stand in for the system's own here. The real
directory changes too, but nothing is really synced.
"""

import errno
import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self

import pytest

from statestored import files
from statestored.errors import NoRoom
from tests.crash.disk import Disk
from tests.crash.trace import (
    Acknowledged,
    Created,
    Event,
    Removed,
    Renamed,
    Served,
    SyncBegun,
    SyncEnded,
    Trace,
    Truncated,
    Written,
    is_snapshot,
)

SYNC_TAKES = 0.0002  # seconds, in which the daemon goes on as it does while the disk is busy


class Recorder:
    """Adds to `trace`, at whose end the directory stands as the system, not the disk, has it. A context manager."""

    def __init__(self, directory: Path, trace: Trace) -> None:
        self._directory = directory
        self._trace = trace
        self._lock = threading.Lock()  # what is done, and that it is taken down, happens at once
        disk = Disk.after(trace)
        self._next_file = disk.next_file
        self._files = {(directory / name).stat().st_ino: file for name, file in disk.entries.items()}
        self._snapshots: set[int] = set()  # those that are written
        self._next_sync = sum(isinstance(event, SyncBegun) for event in trace.events)
        self._stack = ExitStack()
        self.syncs_end = threading.Event()  # while it is not set, none does
        self.syncs_end.set()
        self.syncing = 0  # syncs that are under way
        self.is_full = False  # then half of what is to be written is, and no more
        self.is_snapshot_damaged = False  # then another bit is written than should be
        self._create, self._write_at, self._truncate = files.create, files.write_at, files.truncate
        self._rename, self._remove = files.rename, files.remove

    def __enter__(self) -> Self:
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        for function in (
            self.create, self.write_at, self.truncate, self.rename, self.remove, self.sync_file, self.sync_directory
        ):  # fmt: skip
            patch.setattr(files, function.__name__, function)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def written_last(self) -> int:
        """How many bytes the last write had. That of an empty batch is a frame without a payload."""
        return next(len(event.data) for event in reversed(self._trace.events) if isinstance(event, Written))

    def mark(self, mark: Acknowledged | Served) -> None:
        with self._lock:
            self._add(mark)

    # As in statestored.files

    def create(self, path: Path) -> BinaryIO:
        if path.exists():  # as `create` does, and it is taken down
            self.remove(path)
        with self._lock:
            file = self._create(path)
            self._files[path.stat().st_ino] = self._next_file
            if is_snapshot(path.name):
                self._snapshots.add(self._next_file)
            self._add(Created(self._next_file, self._name(path)))
            self._next_file += 1
            return file

    def write_at(self, file: BinaryIO, data: bytes, offset: int) -> None:
        with self._lock:
            fits = data[: len(data) // 2] if self.is_full else data
            if self.is_snapshot_damaged and self._known(file) in self._snapshots:
                fits = fits[:-1] + bytes([fits[-1] ^ 1])
            self._write_at(file, fits, offset)
            self._add(Written(self._known(file), offset, bytes(fits)))
            if self.is_full:
                raise NoRoom(errno.ENOSPC, "No space left on device")

    def truncate(self, file: BinaryIO | Path, size: int) -> None:
        with self._lock:
            self._truncate(file, size)
            self._add(Truncated(self._known(file), size))

    def rename(self, source: Path, target: Path) -> None:
        with self._lock:
            self._rename(source, target)
            self._add(Renamed(self._known(target), self._name(source), self._name(target)))

    def remove(self, path: Path) -> None:
        with self._lock:
            file = self._known(path)
            self._remove(path)
            self._add(Removed(file, self._name(path)))

    def sync_file(self, file: BinaryIO) -> None:
        self._sync(self._known(file))

    def sync_directory(self, directory: Path | int) -> None:
        if directory in self._directory.parents:
            return  # in the model, the directory itself is always there
        assert os.path.samestat(os.stat(directory), self._directory.stat())
        self._sync(None)

    def _sync(self, file: int | None) -> None:
        """It covers what was done before it began, and only when it has ended."""
        with self._lock:
            number = self._next_sync
            self._next_sync += 1
            self._add(SyncBegun(number, file))
            self.syncing += 1
        time.sleep(SYNC_TAKES)
        self.syncs_end.wait()
        with self._lock:
            self._add(SyncEnded(number))
            self.syncing -= 1

    def _add(self, event: Event) -> None:
        self._trace.events.append(event)

    def _known(self, file: BinaryIO | Path) -> int:
        status = file.stat() if isinstance(file, Path) else os.fstat(file.fileno())
        return self._files[status.st_ino]

    def _name(self, path: Path) -> str:
        assert path.parent == self._directory, f"{path} is not in {self._directory}"
        return path.name
