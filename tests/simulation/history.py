"""What all clients did: their calls, as operations of one sender each, for the checker.

No two calls write the same state, so a state that is read says which call wrote it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import ANY

from statestore.base import START
from tests.consistency.history import Operation
from tests.simulation.disk import LONGEST_SYNC
from tests.simulation.endings import TokenRecord
from tests.simulation.kernel import Kernel
from tests.simulation.plan import FULL_DISKS, Plan

MODULES = ("a", "b")
LONG_LIFETIME = 1000.0  # seconds, of a session; no run lasts so long
MANY_SESSIONS = 100  # more than clients can have opened in one run
SYNCS_OF_A_ROTATION = 8  # for which a commit may have to wait, its own and that of the batch before it included
SMALL_LATENCY = 0.002  # seconds; the slowest packets take 50 times as long, which no call fails by
READS = frozenset({"get", "get_many", "scan", "count"})
OTHER_SENDERS = 40  # in a large bulk call, besides the senders that are checked


@dataclass(frozen=True, slots=True)
class Call:
    """A call that an actor makes.

    Attributes:
        method: The method of the storage; the suffix `_large` stands for one with many senders.
        sender: Empty if the call concerns several senders.
        arguments: Modules and states.
    """

    method: str
    sender: str = ""
    arguments: tuple[str, ...] = ()

    @property
    def reads(self) -> bool:
        return self.method.removesuffix("_large") in READS

    def __str__(self) -> str:
        return f"{self.method} {self.sender} {', '.join(self.arguments)}".rstrip()


class History:
    """The operations of all clients, and how many of their calls ended in which way."""

    def __init__(self, kernel: Kernel, plan: Plan) -> None:
        self.kernel = kernel
        self.plan = plan
        self.operations: list[Operation] = []
        self.calls = 0
        self.refused = 0  # calls that were certainly not carried out
        self.unanswered = 0  # writes that may have been carried out
        self.clients_running = 0  # clients that still have calls to make
        self.token = TokenRecord()
        self.first_trouble_at = 0.0 if _begins_in_trouble(plan) else math.inf
        self.writes_end_at = 0.0  # from then on no write that had no answer is carried out
        self.may_lack_room = any(event.trouble in FULL_DISKS for event in plan.events)
        self.are_sessions_safe = _are_sessions_safe(plan)

    def clients_began(self) -> None:
        """The times of the plan count from when the first client begins."""
        if self.first_trouble_at == math.inf and self.plan.events:
            self.first_trouble_at = self.kernel.now + self.plan.events[0].seconds

    def senders(self) -> list[str]:
        return list(self.plan.senders)

    def add(self, actor: str, call: Call, called: float, returned: float, *, answered: bool, result: Any) -> None:
        """Add the operations of a call. If it had no answer, it may be carried out until `returned`."""
        if not answered:
            self.writes_end_at = max(self.writes_end_at, returned)
        for sender, method, arguments, told in operations_of(call, result, self.senders(), answered=answered):
            operation = Operation(actor, method, sender, arguments, called, returned, answered, told)
            self.operations.append(operation)


def _begins_in_trouble(plan: Plan) -> bool:
    """Return whether calls may fail from the beginning: no daemon runs yet, or some packets or the disk are too slow.

    If the answer to `hello` takes long, the client takes the server's clock to be behind for as long, and the server
    refuses writes by so much before their deadline.
    """
    longest_commit = SYNCS_OF_A_ROTATION * LONGEST_SYNC * plan.sync_time
    return plan.cold or plan.latency > SMALL_LATENCY or longest_commit > plan.write_deadline / 2


def _are_sessions_safe(plan: Plan) -> bool:
    return plan.fsync == "always" and plan.max_sessions > MANY_SESSIONS and plan.session_lifetime > LONG_LIFETIME


_Parts = Iterator[tuple[str, str, tuple[str, ...], Any]]  # sender, method, arguments and result


def operations_of(call: Call, result: Any, senders: list[str], *, answered: bool) -> _Parts:
    """Yield what a call means for each sender.

    The operations of one call are independent of each other: the check is only that the call does to each entry what it
    should. If an entry is missing from a scan, nothing follows, because it may have been created during the scan.
    """
    match call.method:
        case "get_many":
            for module, state in zip(call.arguments, result, strict=True):
                yield call.sender, "get", (module,), state
        case "get_many_large":
            for (module, sender), state in zip(large_pairs(senders), result, strict=True):
                if sender in senders:
                    yield sender, "get", (module,), state
        case "set_many":
            for module, state in zip(MODULES, call.arguments, strict=True):
                yield call.sender, "set", (module, state), None
        case "set_many_large":
            for module, sender in large_pairs(senders):
                if sender in senders:
                    yield sender, "set", (module, f"{call.arguments[0]}{module}"), None
        case "clear":
            for sender in senders:
                yield sender, "set_all", (START,), ANY if answered else None
        case "scan":
            for entry in result:
                if entry.sender in senders:
                    yield entry.sender, "get", (entry.module,), entry.state
        case "count":
            pass
        case "compare_and_set":
            yield call.sender, call.method, call.arguments, tuple(result) if answered else None
        case method:
            yield call.sender, method, call.arguments, result


def large_pairs(senders: list[str]) -> list[tuple[str, str]]:
    """Return pairs of module and sender, many more than those of the senders that are checked."""
    others = [f"other{number}" for number in range(OTHER_SENDERS)]
    return [(module, sender) for sender in (*senders, *others) for module in MODULES]
