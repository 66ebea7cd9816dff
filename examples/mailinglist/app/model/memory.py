"""Salmon's own storage, with the two things beside get and set that a mailing list asks for, and a record of it."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from salmon.routing import MemoryStorage


class Entry(NamedTuple):
    module: str
    sender: str | None
    state: str


class OneProcessStorage(MemoryStorage):
    """Right for one process; in several, each has its own subscribers.

    How many entries each (module, state) has is noted in `directory`, since nobody outside can ask for it.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._record = directory / f"states-{os.getpid()}.json"

    def set(self, key: str, sender: str | None, state: str) -> None:
        super().set(key, sender, state)
        self._note()

    def key(self, key: str, sender: str | None) -> tuple[str, str | None]:
        return key, sender

    def scan(self, module: str, state: str) -> Iterator[Entry]:
        entries = [Entry(*key, its_state) for key, its_state in self.states.items()]
        return (entry for entry in entries if (entry.module, entry.state) == (module, state))

    def set_all(self, sender: str, state: str) -> int:
        keys = [key for key in self.states if key[1] == sender]
        self.states.update(dict.fromkeys(keys, state))
        self._note()
        return len(keys)

    def _note(self) -> None:
        counts = Counter((module, state) for (module, _), state in self.states.items())
        rows = [[module, state, count] for (module, state), count in counts.items()]
        self._record.write_text(json.dumps(rows), encoding="utf-8")
