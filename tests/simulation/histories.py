"""Whether the histories of the clients are what a store may have answered, power losses included."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from statestored.engines.commits import SYNC_EVERY
from tests.consistency.history import Operation
from tests.consistency.linearizability import Undecided, linearize
from tests.consistency.shrink import shrink
from tests.simulation.checks import Life
from tests.simulation.plan import Trouble, loses_acknowledged_writes
from tests.simulation.system import Outage, System

MOST_STEPS = 100_000  # of the search for an order that explains a history: a second or two
SYNCS_IN_BETWEEN = 6  # of a rotation and a snapshot, for which the sync of the journal may have to wait
SLACK = 0.1  # seconds


@dataclass(frozen=True, slots=True)
class Loss:
    """A power loss. What was acknowledged until `kept_until` must be there afterwards.

    heard_until: until then answers from before it may still reach the clients.
    """

    time: float
    kept_until: float
    heard_until: float

    def may_take(self, operation: Operation) -> bool:
        """Whether the operation was perhaps carried out and answered before it, and is perhaps gone after it.

        A read may be a part of a longer one, such as a scan, which had other answers before. A write has one answer:
        what was heard later is from the next daemon.
        """
        if operation.called > self.time or operation.returned <= self.kept_until:
            return False
        return not operation.writes or operation.returned <= self.heard_until


class Judge:
    """Judges the histories of one run. judged, undecided: how many; those would take too long to judge."""

    def __init__(self, system: System) -> None:
        self.judged = self.undecided = 0
        self._system = system

    def find_violation(self) -> list[Operation]:
        """Note as a failure that a sender's history is not linearizable.

        Returns a short history that is not, if the trace is kept.
        """
        for sender, history in _by_sender(self._system.history.operations):
            for what, judged in self._parts(history):
                self.judged += 1
                try:
                    if linearize(judged, MOST_STEPS) is None:
                        self._system.kernel.fail(f"the history of {sender} is not linearizable{what}")
                        return shrink(judged) if self._system.kernel.keep_trace else []
                except Undecided as error:
                    self.undecided += 1
                    self._system.kernel.note("checker", "undecided", f"{sender}: {error}")
        return []

    def _parts(self, history: list[Operation]) -> Iterator[tuple[str, list[Operation]]]:
        """What is to be judged of a history: all of it, unless a power loss may take acknowledged writes.

        Then it is what was before the first one, and all of it without what may have been lost.
        """
        losses = self._losses()
        if not losses:
            yield "", history
            return
        yield " before the first power loss", until(history, losses[0].time)
        yield " without what a power loss may have taken", without_lost(history, losses)

    def _losses(self) -> list[Loss]:
        system = self._system
        if not loses_acknowledged_writes(system.plan):
            return []
        losses = [(outage.time, self._kept_until(outage)) for outage in system.power_losses]
        return [Loss(time, kept, self._heard_until(time)) for time, kept in losses]

    def _kept_until(self, outage: Outage) -> float:
        """With `everysec`: at a start all that is found is synced, and later it takes a second, and what a sync takes.

        After a sync that failed nothing is certain: the system may have forgotten what it should have written.
        """
        if self._system.plan.fsync != "everysec" or outage.has_failed:
            return -math.inf
        bound = SYNC_EVERY + SYNCS_IN_BETWEEN * outage.longest_sync + outage.seconds_stopped + SLACK
        return kept_until(self._system.lives, outage.time, bound)

    def _heard_until(self, time: float) -> float:
        """Without power nothing is sent again, but what is on its way arrives; and a client may be suspended."""
        plan = self._system.plan
        if any(event.trouble is Trouble.SUSPEND for event in plan.events):
            return math.inf
        return time + max(self._system.network.longest, plan.latency) + SLACK


def kept_until(lives: list[Life], time: float, bound: float) -> float:
    """Until when all that was acknowledged has been synced, if the power is lost at `time`.

    Args:
        bound: Seconds that a daemon may take until what it has acknowledged is synced.
    """
    kept = -math.inf
    for life in lives:
        if life.ready is None or life.ready > time:
            continue
        ended = time if life.ended is None else min(life.ended, time)
        kept = max(kept, life.ready, ended if life.stopped_in_order and ended < time else ended - bound)
    return kept


def until(history: list[Operation], time: float) -> list[Operation]:
    """What the clients knew at a time: what had no answer yet may have been done or not."""
    return [
        operation if operation.returned <= time or not operation.answered else _unanswered(operation)
        for operation in history
        if operation.called <= time and (operation.returned <= time or operation.writes)
    ]


def without_lost(history: list[Operation], losses: list[Loss]) -> list[Operation]:
    """Leave out reads of what may have been lost afterwards, and ask no write to be there that may have been."""
    judged = []
    for operation in history:
        if not (operation.answered and any(loss.may_take(operation) for loss in losses)):
            judged.append(operation)
        elif operation.writes:
            judged.append(_unanswered(operation))
    return judged


def _unanswered(operation: Operation) -> Operation:
    return replace(operation, answered=False, result=None)


def _by_sender(operations: list[Operation]) -> Iterator[tuple[Any, list[Operation]]]:
    ordered = sorted(operations, key=lambda operation: str(operation.sender))
    for sender, group in groupby(ordered, key=lambda operation: operation.sender):
        yield sender, list(group)
