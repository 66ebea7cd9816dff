"""The disk of a simulated machine: the model of `tests.crash.disk`, on which calls take virtual time and may fail.

The disk holds one data directory. Every call on it is traced and counted, and can be made the moment of a fault, such
as a kill or a power loss. Files go by their numbers, as the model has them, and open files by descriptors.
"""

import errno
import os
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

from tests.crash.disk import Disk as DiskModel
from tests.crash.trace import Created, Removed, Renamed, SyncBegun, SyncEnded, Truncated, Written
from tests.simulation.disk_faults import SYNC_SLOWNESS, Call, DiskFaults
from tests.simulation.kernel import Kernel, Process

DIRECTORY, PARENT = 0, -1  # the numbers of the data directory and of the one around it; files are numbered from 1
CALL_SECONDS = (2e-6, 6e-5)  # the shortest and the longest call without a fault, apart from a sync
SHORTEST_SYNC, LONGEST_SYNC = 0.1, 2.0  # as parts of `sync_seconds`
SHORT_WRITES = 0.01  # of all writes, the part that the system does not do as a whole
FREE_BYTES = 2**40  # while the disk is not full
ZEROS = bytes(2**20)  # to recognize a write of zeros without a loop in Python


class DirectoryState(Enum):
    """Whether there is a data directory, and whether a power loss can take it away."""

    MISSING = 0
    MADE = 1  # but its parent directory was not synced
    DURABLE = 2


@dataclass(slots=True, eq=False)
class Descriptor:
    """An open file or directory. Each has its own lock, even if a process opened the same file twice."""

    number: int
    process: Process
    is_writable: bool
    lock: Literal["", "shared", "exclusive"] = ""


class Status(NamedTuple):
    """What `stat` tells about a file or a directory. size: in bytes; links: how many names it has."""

    number: int
    is_directory: bool
    size: int
    links: int


class Disk:
    """The disk of one machine.

    Every method that a system call leads to is called by a simulated process, blocks it for a while, and raises OSError
    as the system does. The other methods are for the plan.

    model: what is on the disk, and what may be. faults: what a plan injects, and the counts of calls.
    sync_seconds: how long a sync takes, about. losses: how often the power failed.
    """

    def __init__(self, kernel: Kernel, *, has_directory: bool = True) -> None:
        self._kernel = kernel
        self.model = DiskModel({})
        self.directory = DirectoryState.DURABLE if has_directory else DirectoryState.MISSING
        self.faults = DiskFaults(kernel)
        self.sync_seconds = 0.001
        self.losses = 0
        self._random = kernel.stream("disk")
        self._descriptors: dict[int, Descriptor] = {}
        self._next_file, self._next_descriptor, self._next_sync = 1, 3, 0

    def process_ended(self, process: Process) -> None:
        """Close what the process had open, which ends its locks."""
        self._descriptors = {fd: found for fd, found in self._descriptors.items() if found.process is not process}

    def power_loss(self) -> None:
        """Keep of what was not synced what the model lets a random choice keep. No process may run meanwhile.

        The choice depends on how often the power failed, and not on what the disk did before: a plan that is cut
        short otherwise changes all later power losses.
        """
        self.losses += 1
        chance = self._kernel.stream(f"power loss {self.losses}")
        self._descriptors.clear()
        self.model = self.model.after_power_loss(chance)
        if self.directory is DirectoryState.MADE:
            if chance.random() < 0.5:
                self.model, self.directory = DiskModel({}), DirectoryState.MISSING
            else:
                self.directory = DirectoryState.DURABLE

    # System calls: names

    def make_directory(self, *, exist_ok: bool) -> None:
        self._begin("mkdir", "data directory")
        if self.directory is DirectoryState.MISSING:
            self._allocate_entry()
            self.directory = DirectoryState.MADE
        elif not exist_ok:
            raise _error(errno.EEXIST)

    def names(self) -> list[str]:
        self._begin("list", "data directory")
        self._check_directory()
        return sorted(self.model.entries)

    def status(self, name: str) -> Status:
        self._begin("stat", name)
        return self._status(self._number(name))

    def status_of_directory(self, number: int) -> Status:
        """`number` is DIRECTORY or PARENT."""
        self._begin("stat", _directory_name(number))
        if number == DIRECTORY:
            self._check_directory()
        return self._status(number)

    def rename(self, source: str, target: str) -> None:
        self._begin("rename", f"{source} -> {target}")
        number = self._number(source)
        replaced = self.model.entries.get(target)
        if replaced is None:
            self._allocate_entry()
        self.model.apply(Renamed(number, source, target))
        if replaced is not None:
            self._regain_room(replaced)

    def remove(self, name: str) -> None:
        self._begin("remove", name)
        number = self._number(name)
        self.model.apply(Removed(number, name))
        self._regain_room(number)

    # System calls: open files

    def open(self, name: str, flags: int) -> int:
        is_writable = bool(flags & (os.O_WRONLY | os.O_RDWR))
        self._begin("open", f"{name} to {'write' if is_writable else 'read'}")
        self._check_directory()
        number = self.model.entries.get(name)
        if number is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT, name)
            if self.free_space <= 0:
                raise _error(errno.ENOSPC, name)
            number, self._next_file = self._next_file, self._next_file + 1
            self.model.apply(Created(number, name))
        elif flags & os.O_EXCL:
            raise _error(errno.EEXIST, name)
        return self._descriptor(number, is_writable)

    def open_directory(self, number: int) -> int:
        """`number` is DIRECTORY or PARENT."""
        self._begin("open", _directory_name(number))
        if number == DIRECTORY:
            self._check_directory()
        return self._descriptor(number, is_writable=False)

    def close(self, fd: int) -> None:
        """Close a descriptor, which takes no time. After the end of its process this does nothing."""
        self._descriptors.pop(fd, None)

    def status_of(self, fd: int) -> Status:
        """As `fstat`, which takes no time."""
        return self._status(self._opened(fd).number)

    def lock(self, fd: int, kind: Literal["shared", "exclusive"]) -> None:
        """As `flock` with LOCK_NB."""
        opened = self._opened(fd)
        self._begin("lock", f"{self._name(opened.number)}, {kind}")
        for other in self._descriptors.values():
            if (
                other.number == opened.number
                and other is not opened
                and "exclusive" in (kind, other.lock)
                and other.lock
            ):
                raise _error(errno.EWOULDBLOCK)
        opened.lock = kind

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Return what the file holds now: what was written since it was opened, too."""
        number = self._opened(fd).number
        self._begin("read", f"{self._name(number)} at {offset}")
        return bytes(self.model.files[number].content[offset : offset + size])

    def write(self, fd: int, data: bytes, offset: int) -> int:
        """Return how many bytes were written, which may be fewer than there are."""
        number = self._writable(fd)
        zeros = " of zeros" if ZEROS.startswith(data) else ""
        self._begin("write", f"{self._name(number)} at {offset}, {len(data)} bytes{zeros}")
        if self.faults.takes_failure("write"):
            self.model.apply(Written(number, offset, data[: len(data) // 3]))
            raise _error(errno.EIO)
        size = self.faults.allocate(len(self.model.files[number].content), offset, len(data))
        if size == 0 and data:
            raise _error(errno.ENOSPC)
        if size > 1 and self._random.random() < SHORT_WRITES:
            size = self._random.randrange(1, size)
        self.model.apply(Written(number, offset, data[:size]))
        return size

    def truncate(self, fd: int, size: int) -> None:
        number = self._writable(fd)
        self._begin("truncate", f"{self._name(number)} to {size} bytes")
        self.faults.room += max(len(self.model.files[number].content) - size, 0)
        self.model.apply(Truncated(number, size))

    def sync(self, fd: int) -> None:
        """It covers what was done before it began, and only if it ends well."""
        number = self._opened(fd).number
        seconds = self._random.uniform(SHORTEST_SYNC, LONGEST_SYNC) * self.sync_seconds
        if self.faults.slowness > 1.0:
            seconds *= SYNC_SLOWNESS * self.faults.slowness
        name = self._name(number)
        self._begin("sync", name, seconds)
        sync, self._next_sync = self._next_sync, self._next_sync + 1
        if number != PARENT:
            self.model.apply(SyncBegun(sync, None if number == DIRECTORY else number))
        self._kernel.block(seconds)
        if self.faults.takes_failure("sync"):
            if number != PARENT:
                self.model.fail_sync(sync, self._random)
            raise _error(errno.EIO)
        if number != PARENT:
            self.model.apply(SyncEnded(sync))
        elif self.directory is DirectoryState.MADE:
            self.directory = DirectoryState.DURABLE
        self._note("synced", name)

    def _allocate_entry(self) -> None:
        """A directory may need a block more for one more name. Raises OSError, in half of all cases, on a full disk."""
        if self.free_space <= 0 and self._random.random() < 0.5:
            raise _error(errno.ENOSPC)

    @property
    def free_space(self) -> int:
        """Bytes that can be allocated."""
        return self.faults.room if self.faults.is_full else FREE_BYTES

    def _begin(self, call: Call, detail: str, sync_seconds: float = 0.0) -> None:
        """Every call comes here before it does anything. Its process may have ended before this returns."""
        faults = self.faults
        self._kernel.block(self._random.uniform(*CALL_SECONDS) * faults.slowness)
        self._note(call, detail)
        faults.count(call, sync_seconds)
        if call not in ("write", "sync") and faults.takes_failure(call):
            raise _error(errno.EIO)

    def _note(self, what: str, detail: str) -> None:
        process = self._kernel.current
        assert process is not None
        self._kernel.note(process.name, what, detail)

    def _check_directory(self) -> None:
        if self.directory is DirectoryState.MISSING:
            raise _error(errno.ENOENT)

    def _number(self, name: str) -> int:
        try:
            return self.model.entries[name]
        except KeyError:
            raise _error(errno.ENOENT, name) from None

    def _name(self, number: int) -> str:
        """The name that a file has now, for the trace."""
        if number <= DIRECTORY:
            return _directory_name(number)
        for name, found in self.model.entries.items():
            if found == number:
                return name
        return f"removed file {number}"

    def _status(self, number: int) -> Status:
        if number <= DIRECTORY:
            return Status(number, is_directory=True, size=0, links=2)
        links = sum(other == number for other in self.model.entries.values())
        return Status(number, is_directory=False, size=len(self.model.files[number].content), links=links)

    def _descriptor(self, number: int, is_writable: bool) -> int:
        process = self._kernel.current
        assert process is not None
        fd, self._next_descriptor = self._next_descriptor, self._next_descriptor + 1
        self._descriptors[fd] = Descriptor(number, process, is_writable)
        return fd

    def _opened(self, fd: int) -> Descriptor:
        try:
            return self._descriptors[fd]
        except KeyError:
            raise _error(errno.EBADF) from None

    def _writable(self, fd: int) -> int:
        opened = self._opened(fd)
        if not opened.is_writable:
            raise _error(errno.EBADF)
        return opened.number

    def _regain_room(self, number: int) -> None:
        """Free a file's data if it has no name any more."""
        if number not in self.model.entries.values():
            self.faults.room += len(self.model.files[number].content)


def _directory_name(number: int) -> str:
    return "data directory" if number == DIRECTORY else "parent directory"


def _error(code: int, name: str | None = None) -> OSError:
    return OSError(code, os.strerror(code)) if name is None else OSError(code, os.strerror(code), name)
