"""Whether a history is linearizable: Wing and Gong's search, with Lowe's memory of where it has been.

Linearizable: there is one order of the operations in which each answer is the one that the contract gives, and in
which no operation comes before another that had returned when it was called. Operations without an answer may be left
out. The search builds such an order from its beginning: it takes one of those that can come next, and steps back where
none can.

What makes it fast where many got no answer: one of these is taken only where the next one looks at what it has changed.
For if that is overwritten, unseen, it may as well be left out; and what has to do with other modules may as well come
before it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tests.consistency.history import NO_STATES, Operation, States, apply

MAX_STEPS = 300_000  # some seconds


class Undecided(Exception):
    """It would take too long to find out."""


@dataclass(frozen=True, slots=True)
class Node:
    """A beginning of an order. Two that have done the same, and have come to the same states, have the same future.

    latest: of the calls in it; the next one is not executed before that.
    unseen: modules that were changed by what got no answer; `until` then that can be executed.
    """

    done: int  # a bit for each operation
    states: States = NO_STATES
    latest: float = -math.inf
    unseen: frozenset[str] = frozenset()
    until: float = math.inf


def linearize(history: Iterable[Operation], max_steps: int = MAX_STEPS) -> list[Operation] | None:
    """The history of one sender in an order that explains it, or None where there is none. Raises Undecided."""
    operations = sorted(history, key=lambda operation: operation.called)
    needed = sum(1 << place for place, operation in enumerate(operations) if operation.answered)
    start = Node(0)
    been = {start}
    path: list[tuple[int, Iterator[tuple[int, Node]]]] = [(-1, _next(operations, start))]
    node = start
    while node.done & needed != needed:
        found = next(((place, node) for place, node in path[-1][1] if node not in been), None)
        if found is not None:
            place, node = found
            been.add(node)
            if len(been) > max_steps:
                raise Undecided(f"{len(operations)} operations, no answer after {max_steps} steps")
            path.append((place, _next(operations, node)))
            continue
        path.pop()
        if not path:
            return None
    return [operations[place] for place, _ in path[1:]]


def _next(operations: Sequence[Operation], node: Node) -> Iterator[tuple[int, Node]]:
    """All that can come next, what was answered first."""
    candidates = _candidates(operations, node)
    steps = [(place, _step(operations, node, place)) for place in candidates]
    possible = [(place, after) for place, after in steps if after is not None]
    for place, after in possible:
        # One that only looks can as well come now, unless it is too late then for one without an answer.
        if _only_looks(operations[place]) and not any(
            not operations[other].answered and operations[other].returned < after.latest for other in candidates
        ):
            return iter([(place, after)])
    # Of one without an answer that changes nothing there is nothing to gain.
    return iter([step for step in possible if operations[step[0]].answered or step[1].states != node.states])


def _candidates(operations: Sequence[Operation], node: Node) -> list[int]:
    """Those that were called before any other had returned, of what is not done."""
    first_return, candidates = math.inf, []
    for place in range(_lowest_zero(node.done), len(operations)):
        operation = operations[place]
        if operation.called > first_return:
            break
        if node.done >> place & 1 or (not operation.answered and operation.returned < node.latest):
            continue
        if operation.answered:
            first_return = min(first_return, operation.returned)
        candidates.append(place)
    return sorted(candidates, key=lambda place: (not operations[place].answered, operations[place].returned))


def _step(operations: Sequence[Operation], node: Node, place: int) -> Node | None:
    """None where it cannot come next."""
    operation = operations[place]
    if operation.called > node.until:  # it has to be behind what nobody has looked at
        node = replace(node, unseen=frozenset(), until=math.inf)
    if not _looks_at(operation, node.unseen):
        return None
    states, result = apply(node.states, operation)
    if operation.answered and result != operation.result:
        return None
    done, latest = node.done | 1 << place, max(node.latest, operation.called)
    if operation.answered or operation.method == "set_all":
        return Node(done, states, latest)
    unseen = node.unseen | {operation.arguments[0]}
    return Node(done, states, latest, unseen, min(node.until, operation.returned))


def _looks_at(operation: Operation, unseen: frozenset[str]) -> bool:
    """At all of these modules. One without an answer may also be another whose change is to be looked at."""
    if operation.method == "set_all" or not unseen:
        return True
    module = operation.arguments[0]
    if not operation.answered and module not in unseen:
        return True
    return operation.method != "set" and unseen == {module}


def _only_looks(operation: Operation) -> bool:
    return not operation.writes or (
        operation.method == "compare_and_set" and operation.answered and not operation.result[0]
    )


def _lowest_zero(bits: int) -> int:
    return (~bits & (bits + 1)).bit_length() - 1
