"""Why the daemon cannot start, or must not go on. `cli` knows the exit code of each."""

from pathlib import Path


class StartError(Exception):
    """The daemon cannot start as things are; the text says why, and what to do."""


class DamagedFile(Exception):
    """A file of ours does not hold what we wrote: at `offset`, in bytes from its beginning, `what` is wrong."""

    def __init__(self, path: Path, what: str, offset: int = 0) -> None:
        self.path, self.what, self.offset = path, what, offset
        super().__init__(f"{path} is damaged at byte {offset}: {what}")


class TooNew(Exception):
    """The file is of a later release's format."""

    def __init__(self, path: Path, version: int, known: int) -> None:
        super().__init__(
            f"{path} has format {version}, but this release knows formats up to {known}: start a newer one"
        )
