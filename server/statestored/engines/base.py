"""What the daemon asks of the thing that holds the states.

Text is bytes here, exactly as the clients sent it; a sender may also be None. Every answer is the value, or `Held`, or
a future of the value: the embedded engine answers at once, but nobody may see some of it before the disk has what it
follows from; one on a network answers later.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, Union

from statestore.errors import StateStoreError
from statestore.wire import START as START_TEXT

START = START_TEXT.encode()
DEFAULT_NAMESPACE = b"default"  # of clients that name none; every engine has it
MAX_NAMESPACE = 255  # bytes of a namespace's name

Sender = bytes | None
T = TypeVar("T")


class Commit(Protocol):
    """Writes that become durable together. `is_settled`: they are, or have been taken back, because of `error`."""

    is_settled: bool
    error: StateStoreError | None

    def then(self, callback: Callable[[T, StateStoreError | None], None], argument: T) -> None:
        """Calls back once they are durable; with an error where they have been taken back instead."""


class Held(Generic[T]):
    """An answer that nobody may see before the writes that it follows from are durable.

    packed: its form on the wire, once somebody has made it: the writes of one commit can share one answer.
    """

    __slots__ = ("packed", "until", "value")

    def __init__(self, value: T, until: Commit) -> None:
        self.value = value
        self.until = until
        self.packed: bytes | None = None


Answer = Union[T, Held[T], "Future[T]"]
# An answer in its form on the wire; where it is held, `packed` is that.
Reply = Union[bytes, Held[Any], "Future[bytes]"]


MAX_NUMBER = 2**63 - 1  # of a session, and of a write
MAX_NEW_SESSION = 2**53 - 1  # of those that are given out: a client may have no integers but those in a double
# Session, `seq`, `oldest` (the client has the answers to all writes before that one), and the write's fingerprint (see
# `writes`), which tells a repeated write from another one under the same number.
Number = tuple[int, int, int, int]


class Entry(NamedTuple):
    """One stored state; `day` of its last change, in days since 1970-01-01 (UTC)."""

    module: bytes
    sender: Sender
    state: bytes
    day: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries a scan is about; None stands for any. The prefix b'' matches the sender None too."""

    module: bytes | None = None
    prefix: bytes = b""
    state: bytes | None = None


class Page(NamedTuple):
    """Some entries of a scan, and the cursor to go on with: None after the last."""

    cursor: bytes | None
    entries: list[Entry]


class Counts(NamedTuple):
    """How many entries there are.

    total: of the module and the state asked for.
    rows: `(module, state, entries)` for the largest of the pairs asked for.
    uncounted: how many more entries `rows` should hold, at most, since there are too many pairs to count each. Where
        a state was asked for, `total` may lack them too.
    """

    total: int
    rows: list[tuple[bytes, bytes, int]]
    uncounted: int


class Space(Protocol):
    """The states of one namespace. Where a method raises a `StateStoreError`, nothing has changed."""

    def get(self, module: bytes, sender: Sender) -> Answer[bytes]:
        """START where nothing is stored."""

    def set(self, module: bytes, sender: Sender, state: bytes) -> Answer[None]:
        """START removes the entry."""

    def set_all(self, sender: Sender, state: bytes) -> Answer[int]:
        """How many entries of the sender there were; all have `state` now."""

    def compare_and_set(
        self, module: bytes, sender: Sender, expected: bytes, state: bytes
    ) -> Answer[tuple[bool, bytes]]:
        """Whether it swapped, and the state it found."""

    def get_many(self, pairs: Sequence[tuple[bytes, Sender]]) -> Answer[list[bytes]]:
        """In the order of the pairs."""

    def set_many(self, triples: Sequence[tuple[bytes, Sender, bytes]]) -> Answer[None]:
        """Atomic per sender at least; a later triple wins."""

    def scan(self, cursor: bytes | None, wanted: Filter) -> Answer[Page]:
        """A bounded amount of work. Raises BadRequest for a cursor that no scan gave."""

    def count(self, module: bytes | None, state: bytes | None) -> Answer[Counts]:
        """A bounded amount of work."""

    def clear(self) -> Answer[None]:
        """Forget all states of this namespace."""


class Engine(Protocol):
    """Opened before the daemon listens, closed after the last client has gone."""

    name: str
    bulk_is_atomic: bool  # whether set_many is, as a whole

    async def open(self) -> None:
        """Ready to be asked when it returns. Raises StartError or DamagedFile."""

    async def close(self) -> None:
        """Everything acknowledged is kept when it returns. Raises DiskFailed where it could not be."""

    async def failure(self) -> None:
        """Returns never. Raises, DiskFailed for one, when nothing more may be answered."""

    def snapshot_soon(self) -> None:
        """On demand; the log says when it is done."""

    def space(self, name: bytes) -> Space:
        """Raises Full where there are too many namespaces."""

    def open_session(self, asked: int) -> int | Held[int]:
        """Return the session that one more connection is in: the one that it asked for if it is known, else a new one.

        If the opening of a new one is rolled back, there is no such session. Raises Unavailable if it is not known and
        no new one can be opened now.
        """

    def leave_session(self, session: int) -> None:
        """The connection has been closed."""

    def once(self, number: Number, write: Callable[[], Reply]) -> Reply:
        """Carry the write out, unless it was before: then this is the answer it had.

        Raises what the write does; NumberReused if the number is that of another write; Uncertain if its session has
        expired, or the client has had its answer; Unavailable if no more answers can be remembered.
        """

    def once_together(self, numbers: Sequence[Number], write: Callable[[], Reply | None]) -> Reply | None:
        """Carry out the write that is all of these; each has its answer.

        None, and nothing carried out, where they have to come one by one, for not all are new, or the write says so.
        """

    def info(self) -> dict[str, Any]:
        """Figures for `info` and for the metrics: plain numbers and strings under fixed names."""
