"""Salmon's own storage, with the two things beside get and set that a mailing list asks for."""

from collections.abc import Iterator
from typing import NamedTuple

from salmon.routing import MemoryStorage


class Entry(NamedTuple):
    module: str
    sender: str | None
    state: str


class OneProcessStorage(MemoryStorage):
    """Right for one process; in several, each has its own subscribers."""

    def key(self, key: str, sender: str | None) -> tuple[str, str | None]:
        return key, sender

    def scan(self, module: str, state: str) -> Iterator[Entry]:
        entries = [Entry(*key, its_state) for key, its_state in self.states.items()]
        return (entry for entry in entries if (entry.module, entry.state) == (module, state))

    def set_all(self, sender: str, state: str) -> int:
        keys = [key for key in self.states if key[1] == sender]
        self.states.update(dict.fromkeys(keys, state))
        return len(keys)
