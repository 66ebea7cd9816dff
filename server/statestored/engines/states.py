"""All namespaces in memory, and the effects by which they change: live, and when a file is loaded."""

from collections.abc import Sequence
from typing import Literal

from statestored.engines.base import Sender
from statestored.engines.table import Bucket, Table

PUT: Literal[1] = 1
CLEAR: Literal[2] = 2
MS_A_DAY = 86_400_000  # a batch has a time; its entries, the day of that

# What a write comes down to, absolute, so that applying it twice does no harm:
#   (PUT, namespace, module, sender, state)   START as the state removes the entry
#   (CLEAR, namespace)
Effect = tuple[Literal[1], bytes, bytes, Sender, bytes] | tuple[Literal[2], bytes]


class States:
    """Changed by `apply` only; `changes` counts what it applied.

    What was applied can be taken back until it is settled, in two steps: `cut` when it is about to be written, `settle`
    when it has been. Meanwhile more may be applied.
    """

    def __init__(self) -> None:
        self.tables: dict[bytes, Table] = {}
        self.changes = 0
        self.garbage: list[Bucket] = []  # cleared, and to be freed a bucket at a time: all at once takes too long
        self._changed: set[Table] = set()  # since the last cut
        self._cut: set[Table] = set()  # before that, and not settled

    def table(self, namespace: bytes) -> Table:
        table = self.tables.get(namespace)
        if table is None:
            table = self.tables[namespace] = Table()
        return table

    def apply(self, effects: Sequence[Effect], day: int) -> bool:
        """Returns whether anything changed. `day` is that of the commit (since 1970-01-01), also when loaded later."""
        changed = False
        for effect in effects:
            table = self.tables.get(effect[1])
            if table is None:
                table = self.table(effect[1])
            if effect[0] == PUT:
                if not table.put(effect[2], effect[3], effect[4], day):
                    continue
            elif effect[0] == CLEAR:
                if not len(table):
                    continue
                table.clear()
            else:
                raise ValueError(f"an effect of the unknown kind {effect[0]}")
            changed = True
            self.changes += 1
            self._changed.add(table)
        return changed

    def cut(self) -> None:
        """What was applied since the last cut is about to be written. What was cut before is settled."""
        for table in self._changed:
            table.cut()
        self._cut, self._changed = self._changed, set()

    def settle(self) -> None:
        """What was cut has been written, and stays."""
        for table in self._cut:
            self.garbage += table.settle()
        self._cut = set()

    def revert(self) -> None:
        """All that is not settled is taken back."""
        for table in self._changed | self._cut:
            table.revert()
        self._changed, self._cut = set(), set()

    def __len__(self) -> int:
        """How many entries there are."""
        return sum(map(len, self.tables.values()))
