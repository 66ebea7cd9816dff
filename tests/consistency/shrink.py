"""The shortest part of a history that still shows what is wrong with it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import ANY

from statestore.base import START
from tests.consistency.history import Operation
from tests.consistency.linearizability import Undecided, linearize

MAX_STEPS = 20_000


def shrink(history: Sequence[Operation]) -> list[Operation]:
    """Of one that is not linearizable. Each step is one that would leave a linearizable history linearizable."""
    shown = _first_violation(_of_one_module(history))
    for get in [operation for operation in shown if not operation.writes]:
        shown = _smaller(shown, _without(shown, get))
    for write in [operation for operation in shown if operation.answered and operation.writes]:
        shown = _smaller(shown, [*_without(shown, write), _unanswered(write)])
    for write in sorted(shown, key=lambda operation: operation.method != "set_all"):
        if _is_unseen(write, shown):
            shown = _smaller(shown, _without(shown, write))
    return sorted(shown, key=lambda operation: operation.called)


def _of_one_module(history: Sequence[Operation]) -> list[Operation]:
    """Where that is enough; of what is done to all modules nothing is known then of the others."""
    for module in dict.fromkeys(operation.arguments[0] for operation in history if operation.method != "set_all"):
        of_it = [
            replace(operation, result=ANY if operation.answered else None)
            if operation.method == "set_all"
            else operation
            for operation in history
            if operation.method == "set_all" or operation.arguments[0] == module
        ]
        if _is_wrong(of_it):
            return of_it
    return list(history)


def _smaller(shown: list[Operation], smaller: list[Operation]) -> list[Operation]:
    return smaller if _is_wrong(smaller) else shown


def _without(history: Sequence[Operation], operation: Operation) -> list[Operation]:
    return [other for other in history if other is not operation]


def _first_violation(history: Sequence[Operation]) -> list[Operation]:
    """What had happened when the first answer came that cannot be explained."""
    returns = sorted(operation.returned for operation in history if operation.answered)
    low, high = 0, len(returns) - 1
    while low < high:
        middle = (low + high) // 2
        if _is_wrong(_until(history, returns[middle])):
            high = middle
        else:
            low = middle + 1
    return _until(history, returns[low])


def _until(history: Sequence[Operation], time: float) -> list[Operation]:
    return [
        operation if operation.returned <= time or not operation.answered else _unanswered(operation)
        for operation in history
        if operation.called <= time and (operation.returned <= time or operation.writes)
    ]


def _unanswered(operation: Operation) -> Operation:
    return replace(operation, answered=False, returned=math.inf, result=None)


def _is_unseen(operation: Operation, history: Sequence[Operation]) -> bool:
    """A write without an answer of which no other operation tells, so that it explains nothing."""
    value, others = operation.arguments[-1], _without(history, operation)
    if operation.answered or any(value in (*_told(other), *other.arguments) for other in others):
        return False
    # It may have made an entry, or removed it.
    return (operation.method == "set_all" and value != START) or all(other.method != "set_all" for other in others)


def _told(operation: Operation) -> tuple[object, ...]:
    if operation.result is ANY:
        return ()
    return operation.result if isinstance(operation.result, tuple) else (operation.result,)


def _is_wrong(history: Sequence[Operation]) -> bool:
    try:
        return linearize(history, MAX_STEPS) is None
    except Undecided:
        return False
