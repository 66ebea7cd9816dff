"""The shortest part of a history that still shows what is wrong with it."""

import math
from collections.abc import Sequence
from dataclasses import replace

from tests.consistency.history import Operation
from tests.consistency.linearizability import Undecided, linearize


def shrink(history: Sequence[Operation]) -> list[Operation]:
    """Of one that is not linearizable. Each step is one that would leave a linearizable history linearizable."""
    shown = _first_violation(history)
    for get in [operation for operation in shown if not operation.writes]:
        shown = _smaller(shown, _without(shown, get))
    for write in [operation for operation in shown if operation.answered and operation.writes]:
        shown = _smaller(shown, [*_without(shown, write), _unanswered(write)])
    for write in list(shown):
        if _is_unseen(write, shown):
            shown = _smaller(shown, _without(shown, write))
    return sorted(shown, key=lambda operation: operation.called)


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
    if operation.answered or any(other.method == "set_all" for other in history):
        return False
    value = operation.arguments[-1]
    return not any(value in (*_told(other), *other.arguments) for other in history if other is not operation)


def _told(operation: Operation) -> tuple[object, ...]:
    return operation.result if isinstance(operation.result, tuple) else (operation.result,)


def _is_wrong(history: Sequence[Operation]) -> bool:
    try:
        return linearize(history) is None
    except Undecided:
        return False
