"""How much may be stored. An entry that takes no more room is never refused, and nothing ever goes to make room.

A state that others in the module have takes none: what is there can always be changed to such a one, and removed. For
a change to a state of its own, which has to be kept, there is some room beyond that for entries, and an end to it.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from statestore.base import Limits
from statestore.errors import Full
from statestored.engines.base import START, Sender
from statestored.engines.states import Effect, States
from statestored.engines.table import Table, entry_memory, sender_memory, state_memory

FOR_CHANGES = 16  # one part in so many of the memory, beyond it: far more than an application has states


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
        last = {(module, sender): state for _, _, module, sender, state in puts if state != START}
        brought = {(module, state) for (module, _), state in last.items()}
        modules: Counter[Sender] = Counter()
        growth = 0
        for (module, sender), state in last.items():
            held = table.held(module, sender)
            if held is None:
                modules[sender] += 1
                if len(table.modules(sender)) + modules[sender] > self.modules:
                    raise Full(f"a sender has entries in {self.modules} modules, and no more are allowed")
                growth += sender_memory(sender, 1)
            elif held.state == state:
                continue
            elif held.count.entries == 1 and (module, held.state) not in brought:
                growth -= state_memory(module, held.state)
            if not table.has_state(module, state):
                growth += state_memory(module, state)
        room = self.memory if modules else self.memory + self.memory // FOR_CHANGES
        if growth > 0 and states.memory + growth > room:
            raise Full(f"the states take the {self.memory >> 20} MiB that they may, and this would take more")
