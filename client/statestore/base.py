"""The contract that every store keeps, and the rules for what may be stored."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from statestore.errors import BadRequest, TooLong
from statestore.wire import START, UNICODE_ERRORS

__all__ = ["START", "Entry", "Limits", "Pair", "Sender", "StateStorage", "Swap", "Triple"]

Sender = str | None
Pair = tuple[str, Sender]
Triple = tuple[str, Sender, str]


class Entry(NamedTuple):
    """One stored state; `day` of its last change, in days since 1970-01-01 (UTC)."""

    module: str
    sender: Sender
    state: str
    day: int


class Swap(NamedTuple):
    """What `compare_and_set` did: whether it swapped, and the state it found."""

    swapped: bool
    previous: str


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may be, in bytes, and how many items (pairs, triples) a bulk call may have."""

    module: int = 1024
    sender: int = 4096  # a mail address has at most 256 octets (RFC 5321); a raw From header has more
    state: int = 1024
    items: int = 1000

    def check_key(self, module: object, sender: object) -> None:
        if type(module) is type(sender) is str and len(module) * 4 <= self.module and len(sender) * 4 <= self.sender:
            return  # as nearly always
        _check_text("module", module, self.module)
        if sender is not None:
            _check_text("sender", sender, self.sender)

    def check_sender(self, sender: object) -> None:
        if sender is not None:
            _check_text("sender", sender, self.sender)

    def check_state(self, state: object) -> None:
        _check_text("state", state, self.state)

    def check_filter(self, module: object, prefix: object, state: object) -> None:
        """What a scan or a count asks for; None for a module or a state stands for any."""
        _check_text("module", "" if module is None else module, self.module)
        _check_text("prefix", prefix, self.sender)
        _check_text("state", "" if state is None else state, self.state)

    def check_pairs(self, pairs: Iterable[Pair]) -> list[Pair]:
        checked = self._check_items(pairs, "(module, sender)", 2)
        for module, sender in checked:
            self.check_key(module, sender)
        return checked

    def check_triples(self, triples: Iterable[Triple]) -> list[Triple]:
        checked = self._check_items(triples, "(module, sender, state)", 3)
        for module, sender, state in checked:
            self.check_key(module, sender)
            self.check_state(state)
        return checked

    def _check_items(self, items: Iterable[Any], shape: str, size: int) -> list[Any]:
        if not isinstance(items, Iterable):
            raise BadRequest(f"expected many {shape}, not {type(items).__name__}")
        checked = list(items)
        if len(checked) > self.items:
            raise TooLong(f"items are {len(checked)}, at most {self.items} are allowed in one call")
        for item in checked:
            if not isinstance(item, tuple | list) or len(item) != size:
                raise BadRequest(f"expected {shape}, not {type(item).__name__}")
        return checked


def _check_text(what: str, value: object, limit: int) -> None:
    if not isinstance(value, str):
        or_none = " or None" if what == "sender" else ""
        raise BadRequest(f"{what} must be a str{or_none}, not {type(value).__name__}")
    # A character has at most four bytes: most texts are too short to need counting.
    if len(value) * 4 > limit and (size := len(value.encode("utf-8", UNICODE_ERRORS))) > limit:
        raise TooLong(f"{what} is {size} bytes long, at most {limit} are allowed")


class StateStorage(ABC):
    """A store of conversation states, as Lamson's and Salmon's Router asks for it, and a little more.

    `module` and `state` are str, `sender` is a str or None; all are kept exactly as given. Every method raises
    `StateStoreError`: `BadRequest` for other types, `TooLong` over the limits, and what the store's own docs add.
    """

    @abstractmethod
    def get(self, module: str, sender: Sender) -> str:
        """The state of `sender` in `module`, `START` where none is stored. Stores nothing."""

    @abstractmethod
    def set(self, module: str, sender: Sender, state: str) -> None:
        """Store `state`; setting `START` removes the entry."""

    @abstractmethod
    def set_all(self, sender: Sender, state: str) -> int:
        """Set the state of every module that has an entry for `sender`, atomically. Returns how many those are."""

    @abstractmethod
    def compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> Swap:
        """Set `state` if the stored one is `expected`, atomically."""

    @abstractmethod
    def get_many(self, pairs: Iterable[Pair]) -> list[str]:
        """The states of many `(module, sender)`, in their order."""

    @abstractmethod
    def set_many(self, triples: Iterable[Triple]) -> None:
        """Set many `(module, sender, state)`: all are checked before any is applied; a later one wins."""

    @abstractmethod
    def scan(self, module: str | None = None, prefix: str = "", state: str | None = None) -> Iterator[Entry]:
        """The entries of `module`, of senders that begin with `prefix` and in `state`, in no order of yours.

        An entry present throughout appears at least once. The prefix '' matches the sender None too.
        """

    @abstractmethod
    def count(self, module: str | None = None, state: str | None = None) -> int:
        """How many entries there are, of `module` and in `state` where given."""

    @abstractmethod
    def counts(self) -> dict[tuple[str, str], int]:
        """How many entries each (module, state) has."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all states."""
