"""What a client did, when, and what it was answered; and what a store would answer that does one thing at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from statestore.base import START, Sender

# The modules of a sender with their states; those in START are not there.
States = frozenset[tuple[str, str]]
NO_STATES: States = frozenset()


@dataclass(frozen=True, slots=True)
class Operation:
    """Of one sender. Times are seconds of CLOCK_MONOTONIC, which all processes of a machine share.

    arguments: those of the method, without the sender.
    answered: else it may have taken effect at any time between `called` and `returned`, or never.
    """

    client: str
    method: str
    sender: Sender
    arguments: tuple[str, ...]
    called: float
    returned: float
    answered: bool
    result: Any = None

    @property
    def writes(self) -> bool:
        return self.method != "get"


def apply(states: States, operation: Operation) -> tuple[States, Any]:
    """The contract: the states afterwards, and the answer."""
    match operation.method, operation.arguments:
        case "get", [module]:
            return states, _state(states, module)
        case "set", [module, state]:
            return _put(states, [module], state), None
        case "compare_and_set", [module, expected, state]:
            present = _state(states, module)
            if present != expected:
                return states, (False, present)
            return _put(states, [module], state), (True, present)
        case "set_all", [state]:
            return _put(states, [module for module, _ in states], state), len(states)
    raise ValueError(f"{operation.method} is not modelled")


def lines(history: Iterable[Operation]) -> Iterator[str]:
    """For a reader: in the order of the calls, in milliseconds since the first of them."""
    ordered = sorted(history, key=lambda operation: operation.called)
    start = ordered[0].called if ordered else 0.0
    for operation in ordered:
        span = f"{_ms(operation.called - start)} .. {_ms(operation.returned - start)}"
        arguments = ", ".join(operation.arguments)
        yield f"{span}  {operation.client:5}  {operation.method}({arguments}) -> {outcome_text(operation)}"


def outcome_text(operation: Operation) -> str:
    if not operation.answered:
        return "no answer"
    return str(operation.result) if operation.method in ("get", "compare_and_set") else "done"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:10.3f}"


def _state(states: States, module: str) -> str:
    return next((state for name, state in states if name == module), START)


def _put(states: States, modules: list[str], state: str) -> States:
    others = frozenset(entry for entry in states if entry[0] not in modules)
    return others if state == START else others | {(module, state) for module in modules}
