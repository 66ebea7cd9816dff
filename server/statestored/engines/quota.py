"""How much may be stored. What is there can always be changed and removed, and nothing ever goes to make room."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from statestore.base import Limits
from statestore.errors import Full
from statestored.engines.base import START, Sender
from statestored.engines.states import Effect, States
from statestored.engines.table import Table, entry_memory


@dataclass(frozen=True, slots=True)
class Quota:
    """memory: bytes of all states, as the tables estimate them; modules: that one sender may have entries in.

    largest: bytes that one entry may take.
    """

    memory: int = sys.maxsize
    modules: int = 100
    largest: int = 0

    @classmethod
    def of(cls, limits: Limits, memory: int, modules: int) -> "Quota":
        text = [b"x" * size for size in (limits.module, limits.sender, limits.state)]
        return cls(memory, modules, entry_memory(*text))

    def check(self, states: States, table: Table, puts: Sequence[Effect]) -> None:
        """Raises Full where they would go over it, all together."""
        # Far from both limits, which is nearly always, numbers say enough.
        count, modules_left = len(puts), self.modules - table.most_modules
        if states.memory + count * self.largest > self.memory or (
            count > modules_left and len({put[2] for put in puts}) > modules_left
        ):
            self._check_each(states, table, puts)

    def _check_each(self, states: States, table: Table, puts: Sequence[Effect]) -> None:
        new: set[tuple[bytes, Sender]] = set()
        modules: Counter[Sender] = Counter()
        memory = states.memory
        for _, _, module, sender, state in puts:
            if state == START or (module, sender) in new or table.get(module, sender) != START:
                continue
            new.add((module, sender))
            modules[sender] += 1
            memory += entry_memory(module, sender, b"" if table.has_kind(module, state) else state)
            if len(table.modules(sender)) + modules[sender] > self.modules:
                raise Full(f"a sender has entries in {self.modules} modules, and no more are allowed")
        if new and memory > self.memory:
            raise Full(f"the states take the {self.memory >> 20} MiB that they may: nothing new can be stored")
