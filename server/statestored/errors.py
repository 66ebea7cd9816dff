"""Why the daemon cannot start, or must not go on, and the exit code of each."""

from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path


class Exit(IntEnum):
    STOPPED = 0  # asked to
    CANNOT_START = 1
    USAGE = 2
    DAMAGED = 3
    DISK_FAILED = 4


class StartError(Exception):
    """The daemon cannot start as things are; the text says why, and what to do."""


class DamagedFile(Exception):
    """A file of ours does not hold what we wrote: at `offset`, in bytes from its beginning, `what` is wrong."""

    def __init__(self, path: Path, what: str, offset: int = 0) -> None:
        self.path, self.what, self.offset = path, what, offset
        super().__init__(f"{path} is damaged at byte {offset}: {what}")


class TooNew(Exception):
    """The file is of a later release's format."""

    def __init__(self, path: Path, what: str, known: int) -> None:
        super().__init__(f"{path} has {what}, but this release knows formats up to {known}: start a newer one")


class OutputFailed(Exception):
    """A command cannot print what it has to say: what takes its output is full, or has gone. No disk of ours failed."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror}")


class AttemptFailed(OSError):
    """An attempt to write a file failed; nothing is wrong with what is there, and a later attempt may succeed."""


class NoRoom(AttemptFailed):
    """The disk is full, or our share of it, or too many files are open."""


class TemporaryFileRemoved(AttemptFailed):
    """Another program, such as a cleaner, removed a temporary file before it got its name."""


class DiskFailed(Exception):
    """A write failed, and not for want of room, or a sync: nobody knows any more what is on the disk."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the disk failed ({error}): look at it before you start again")


class Displaced(DiskFailed):
    """A file that the daemon has open is not the one under its name any more: what it writes would be lost."""

    def __init__(self, what: str) -> None:
        Exception.__init__(self, f"{what}: stop the daemon before you change its files")


class FilesMissing(DiskFailed):
    """The daemon stops, and files of the store that another program removed could not be replaced by a snapshot."""

    def __init__(self, names: Iterable[str], error: Exception) -> None:
        files = ", ".join(sorted(names)) or "files of the store"
        Exception.__init__(
            self,
            f"{files}: removed by another program, and the snapshot that should replace them failed ({error}): "
            "acknowledged writes are lost unless you restore the files before you start again",
        )
