"""What was done to the files of a data directory, in order, from what was there at first.

A file goes by a number of its own, for its name may change; a sync, too, for it takes a while.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

Image = dict[str, bytes]  # what a directory holds: the files' contents, by their names


class Created(NamedTuple):
    file: int
    name: str


class Written(NamedTuple):
    file: int
    offset: int
    data: bytes


class Truncated(NamedTuple):
    file: int
    size: int


class Renamed(NamedTuple):
    file: int
    source: str
    target: str


class Removed(NamedTuple):
    file: int
    name: str


class SyncBegun(NamedTuple):
    """Of what was done to a file before, or to the directory (None)."""

    number: int
    file: int | None


class SyncEnded(NamedTuple):
    number: int


class Acknowledged(NamedTuple):
    """Somebody was told that this batch, or what it wrote, is there. Batches are numbered in their order, from 1."""

    batch: int


class Served(NamedTuple):
    """A daemon has started with what was there up to this batch; from now on everybody can see that."""

    batch: int


Mark = Acknowledged | Served  # what happens outside of the directory
Event = Created | Written | Truncated | Renamed | Removed | SyncBegun | SyncEnded | Mark


@dataclass
class Trace:
    """base: what was on the disk before the first event."""

    base: Image = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def up_to(self, position: int) -> "Trace":
        """The first so many events; it may go on another way."""
        return Trace(self.base, self.events[:position])


def changes_disk(event: Event) -> bool:
    """Whether other states than before are possible after it."""
    return not isinstance(event, SyncBegun | Mark)


def is_journal(name: str) -> bool:
    """Whether a file made under this name is a segment of the journal."""
    return ".journal" in name


def is_snapshot(name: str) -> bool:
    """Whether a file made under this name is a snapshot."""
    return ".snapshot" in name


def is_temporary(name: str) -> bool:
    """Whether a start removes the file without a look into it."""
    return name.endswith(".tmp")


def in_words(event: Event) -> str:
    """Short, for reports."""
    match event:
        case Written(file, offset, data):
            return f"Written(file={file}, offset={offset}, {len(data)} bytes{'' if any(data) else ' of zeros'})"
        case _:
            return str(event)
