"""The data directory: a lock, the store's identity, and the snapshots and segments of the journal, each numbered.

Snapshot N holds what all segments before segment N did: segments go on being numbered where the newest file ends.
"""

import errno
import json
import os
import re
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import structlog

from statestored import files, trust
from statestored.errors import DamagedFile, DiskFailed, StartError, TooNew
from statestored.framing import HEADER_SIZE
from statestored.locks import LOCK_FILE, DataDirectoryLock

log = structlog.get_logger()

IDENTITY = "store.json"
IDENTITY_FORMAT = 1
SNAPSHOT, SEGMENT = ".snapshot", ".journal"
SET_ASIDE = "damaged-"  # and when: a directory of files that a repair has replaced
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUMBERED = re.compile(rf"\d{{8,}}({re.escape(SNAPSHOT)}|{re.escape(SEGMENT)})")
_UNFINISHED = re.compile(rf"({_NUMBERED.pattern}|{re.escape(IDENTITY)}){re.escape(files.TEMPORARY)}")


class DataDirectory:
    """The data directory, ours alone while it is open.

    configured: files that the settings name. They may stand in the directory before there is a store in it.
    """

    def __init__(self, path: Path, configured: Sequence[Path] = ()) -> None:
        self.path = path
        self._configured = configured
        self._lock: DataDirectoryLock | None = None
        self._needed_from = 0  # the number of the newest snapshot: what is older is not needed
        self._known: set[str] = set()  # names of the snapshots and segments that should be there
        self.store_id = uuid.UUID(int=0)
        self.is_new = False  # nothing is in it yet, its identity neither

    def open(self) -> None:
        """Make the directory if there is none, lock it, and read the store's identity.

        Raises StartError, DamagedFile, TooNew, or DiskFailed.
        """
        try:
            self._make()
            self._lock_to_write("stop that one, or give another --data-dir", self._check_empty)
            self._remove_unfinished()
            self._read_identity()
            self._needed_from = max(map(number_of, self.snapshots()), default=0)
            self._known.update(path.name for path in (*self.snapshots(), *self.segments()))
        except PermissionError as error:
            raise StartError(
                f"data directory {self.path}: {error}: user {os.geteuid()} may not. "
                "Start as the user who owns it, or give another --data-dir"
            ) from error
        except OSError as error:
            if error.errno == errno.EIO:  # another directory would be an empty store
                raise DiskFailed(error) from error
            raise StartError(f"data directory {self.path}: {error.strerror}: give another --data-dir") from error

    def open_existing(self, *, to_write: bool) -> None:
        """Lock a directory with a store, in which no daemon runs. Its identity is not read.

        Without `to_write` nothing is changed. Raises StartError or OSError.
        """
        if not self.path.is_dir():
            raise StartError(f"there is no directory {self.path}")
        try:
            if to_write:
                self._lock_to_write("stop that one", self._refuse_nothing)
            else:
                self._lock_to_read("stop that one, or look at a copy")
        except PermissionError as error:
            raise StartError(
                f"data directory {self.path}: {error}: user {os.geteuid()} may not. Run this as the user who owns it"
            ) from error

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def look_after(self) -> list[str]:
        """See that the files are still there, and put back the lock file and the identity if they were removed.

        Returns the names of the snapshots and segments that are needed and were removed, until `remove_before` says
        that they are not needed any more. May run beside everything else. Raises Displaced, AttemptFailed or OSError.
        """
        known = self._known.copy()  # before the names are read: a segment may be added meanwhile
        if self._lock is not None:
            self._lock.check_in_place()
        if not (self.path / IDENTITY).exists():
            write_identity(self.path, self.store_id)
            log.error("identity was removed by another program, written again", path=str(self.path / IDENTITY))
        found = {path.name for path in (*self.snapshots(), *self.segments())}
        # `remove_before` sets `_needed_from` before it renames any, and here that is read after the names.
        missing = [name for name in known - found if number_of(Path(name)) >= self._needed_from]
        self._known.update(found)
        return sorted(missing)

    def expect(self, segment: Path) -> None:
        """Have `look_after` miss a new segment, even if it is removed before the next call."""
        self._known.add(segment.name)

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
        self._needed_from = number
        self._known.add(self.snapshot(number).name)
        needless = [path for path in (*self.snapshots(), *self.segments()) if number_of(path) < number]
        self._known.difference_update(path.name for path in needless)
        for path in needless:  # under this name a start removes them
            with suppress(FileNotFoundError):  # another program was faster
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
        """Make the directory if there is none, and sync the directories above it, so that its name stays.

        An earlier start may have made some of them, and been killed before it synced them. So all are synced until the
        identity is there, which is written last: but not those above a mount point, which was there before.
        """
        made = {path for path in (self.path, *self.path.parents) if not path.exists()}
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (self.path / IDENTITY).exists():
            return
        for path, parent in pairwise((self.path, *self.path.parents)):
            if path not in made and path.stat().st_dev != parent.stat().st_dev:
                return
            try:
                files.sync_directory(parent)
            except PermissionError:  # such as a directory of root's with mode 0711, in which only root makes anything
                if path in made:
                    raise

    def _numbered(self, suffix: str) -> list[Path]:
        found = [path for path in files.paths_in(self.path) if path.suffix == suffix and is_numbered(path)]
        return sorted(found, key=number_of)

    def _lock_to_write(self, advice: str, check_content: Callable[[], None]) -> None:
        """Raises StartError, having changed nothing, if the directory is in use or cannot be trusted."""
        self._lock = DataDirectoryLock(self.path)
        directory = os.fstat(self._lock.fd)
        trust.check_directory(self.path, directory)
        self._lock.lock_directory(advice)
        names = self._files_read()
        trust.check_no_links(names)
        trust.check_owners(names, directory)
        check_content()
        self._lock.lock_file(advice)

    def _lock_to_read(self, advice: str) -> None:
        self._lock = DataDirectoryLock(self.path)
        self._lock.lock_directory(advice, shared=True)
        trust.check_no_links(self._files_read())
        self._refuse_nothing()
        self._lock.share_file(advice)

    def _files_read(self) -> list[Path]:
        return [path for path in files.paths_in(self.path) if path.name in (LOCK_FILE, IDENTITY) or is_numbered(path)]

    def _check_empty(self) -> None:
        """Refuse to make a new store among files of others."""
        if self.holds_nothing():
            known = {path.resolve() for path in self._configured}
            found = [path for path in files.paths_in(self.path) if not _is_ours(path)]
            trust.check_empty(self.path, [path for path in found if path.resolve() not in known])

    def _refuse_nothing(self) -> None:
        if self.holds_nothing():
            raise StartError(f"there is no store in {self.path}")

    def _remove_unfinished(self) -> None:
        for path in files.paths_in(self.path):
            if is_unfinished(path):
                files.discard(path)

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


def is_numbered(path: Path) -> bool:
    """Whether it is a snapshot or a segment in its place."""
    return _NUMBERED.fullmatch(path.name) is not None


def is_unfinished(path: Path) -> bool:
    """Whether it is a file that a daemon was about to write, or to remove."""
    return _UNFINISHED.fullmatch(path.name) is not None


def _is_ours(path: Path) -> bool:
    """Whether a daemon or a repair has made it."""
    is_set_aside = path.name.startswith(SET_ASIDE) and path.is_dir()
    return path.name in (LOCK_FILE, IDENTITY) or is_numbered(path) or is_unfinished(path) or is_set_aside


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
    path = directory / IDENTITY
    files.write_durably(path, content, files.temporary_name(path))


def _link_or_copy(path: Path, target: Path) -> None:
    """Both are never changed, so that one file may stand for them. Not all file systems have links."""
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError:
        with files.open_to_read(path) as source, files.create(target) as copy:
            offset = 0
            while chunk := source.read(2**20):
                files.write_at(copy, chunk, offset)
                offset += len(chunk)
            files.sync_file(copy)


def _json(path: Path) -> Any:
    """What a file of JSON holds; None where it holds none."""
    with files.open_to_read(path) as file:
        content = file.read()
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
