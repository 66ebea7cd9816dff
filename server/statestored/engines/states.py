"""All namespaces and sessions in memory, and the effects by which they change: live, and when a file is loaded."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from statestored.engines.sessions import ClientSessions
from statestored.engines.table import Bucket, Table

PUT, CLEAR = 1, 2
MS_A_DAY = 86_400_000  # a batch has a time; its entries, the day of that

# What a write comes down to, absolute, so that applying it twice does no harm:
#   (PUT, namespace, module, sender, state)   START as the state removes the entry
#   (CLEAR, namespace)
# and those of sessions, which `sessions` has.
Effect = tuple[Any, ...]


class States:
    """Changed by `apply` only; `changes` counts what it applied, `memory` the bytes that all takes, about.

    What was applied can be taken back until it is settled, in two steps: `cut` when it is about to be written, `settle`
    when it has been. Meanwhile more may be applied.
    """

    def __init__(self) -> None:
        self.tables: dict[bytes, Table] = {}
        self.sessions = ClientSessions()
        self.changes = 0
        self.memory = 0
        self.garbage: list[Bucket] = []  # cleared, and to be freed little by little: all at once takes too long
        # Dicts, because the order of a set would depend on addresses in memory.
        self._changed: dict[Table | ClientSessions, None] = {}  # since the last cut
        self._cut: dict[Table | ClientSessions, None] = {}  # before that, and not settled

    def table(self, namespace: bytes) -> Table:
        table = self.tables.get(namespace)
        if table is None:
            table = self.tables[namespace] = Table()
        return table

    def apply(self, effects: Iterable[Effect], day: int) -> bool:
        """Returns whether anything changed. `day` is that of the commit (since 1970-01-01), also when loaded later."""
        runs = [self.apply_run(list(run), day) for _, run in groupby(effects, key=itemgetter(0, 1))]
        return any(runs)

    def apply_run(self, effects: Sequence[Effect], day: int) -> bool:
        """As `apply`, for effects of one kind in one namespace, or of sessions."""
        kind, of = effects[0][:2]
        where: Table | ClientSessions
        if kind == PUT:
            table = self.tables.get(of)
            where = self.table(of) if table is None else table
            before = where.memory
            changed = where.put(effects, day)
            self.memory += where.memory - before
        elif kind == CLEAR:
            where = self.table(of)
            before = where.memory
            changed = where.clear()
            self.memory += where.memory - before
        else:
            where = self.sessions
            changed = where.apply(effects)
        if changed:
            self.changes += changed
            self._changed[where] = None
        return changed > 0

    def cut(self) -> None:
        """What was applied since the last cut is about to be written. What was cut before is settled."""
        for each in self._changed:
            each.cut()
        self._cut, self._changed = self._changed, {}

    def settle(self) -> None:
        """What was cut has been written, and stays."""
        for each in self._cut:
            self.garbage += each.settle()
        self._cut = {}

    def revert(self) -> None:
        """All that is not settled is taken back."""
        for each in self._cut | self._changed:
            each.revert()
        self._changed, self._cut = {}, {}
        self.measure()

    def measure(self) -> None:
        """After something else than `apply` has changed a table."""
        self.memory = sum(table.memory for table in self.tables.values())

    def __len__(self) -> int:
        """How many entries there are."""
        return sum(map(len, self.tables.values()))
