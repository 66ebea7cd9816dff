"""Attaching a store to a Router of Lamson's and Salmon's shape, so that each delivery sees one consistent picture.

The Router asks for the state once for each handler that matches, and runs other handlers in between. If another
process changes the state between two of these questions, no handler may fit, and the mail is accepted and lost.
"""

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any

from statestore.base import START, Pair, Sender, StateStorage, Swap, Triple

ATTACHED = "_statestore_deliver"  # where our `deliver` keeps the one that it stands for
# Where Salmon and Lamson keep what their decorators say about a handler.
SETTINGS_ATTRIBUTES = ("_salmon_settings", "_lamson_settings")


def attach(router: Any, storage: StateStorage) -> None:
    """Make `storage` the Router's STATE_STORE; call it in the boot module, in place of the assignment.

    Before any handler runs, one `get_many` fetches the states of all handlers that match; the delivery then uses
    these and what it sets itself. Where the store cannot be asked, `deliver` raises before anything has happened.
    """
    view = DeliveryView(storage)
    router.STATE_STORE = view
    router.deliver = _consistent(router, view)


class DeliveryView:
    """The store as one delivery (in its own thread) sees it; outside of a delivery, the store itself."""

    def __init__(self, storage: StateStorage) -> None:
        self._storage = storage
        self._delivery = threading.local()  # .states: dict[Pair, str], while this thread delivers

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy or a pickle is a view of the storage or its copy, with no delivery under way."""
        return type(self), (self._storage,)

    def get(self, module: str, sender: Sender) -> str:
        states = self._states
        if states is None:
            return self._storage.get(module, sender)
        if (module, sender) not in states:
            states[module, sender] = self._storage.get(module, sender)
        return states[module, sender]

    def set(self, module: str, sender: Sender, state: str) -> None:
        self._storage.set(module, sender, state)
        self._learn(module, sender, state)

    def set_all(self, sender: Sender, state: str) -> int:
        changed = self._storage.set_all(sender, state)
        for module, its_sender in [key for key, known in (self._states or {}).items() if known != START]:
            if its_sender == sender:
                self._learn(module, sender, state)
        return changed

    def compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> Swap:
        swap = self._storage.compare_and_set(module, sender, expected, state)
        self._learn(module, sender, state if swap.swapped else swap.previous)
        return swap

    def set_many(self, triples: Iterable[Triple]) -> None:
        triples = list(triples)
        self._storage.set_many(triples)
        for triple in triples:
            self._learn(*triple)

    def clear(self) -> None:
        self._storage.clear()
        if self._states is not None:
            self._states.clear()

    def __getattr__(self, name: str) -> Any:
        """What only looks, at more than the delivery: as the store has it. Copying is not among it."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._storage, name)

    def during_delivery(self, pairs: list[Pair], deliver: Callable[[], None]) -> None:
        """Fetch the states of `pairs`, then deliver; a delivery inside of another has its own picture."""
        states = dict(zip(pairs, self._storage.get_many(pairs), strict=True)) if pairs else {}
        outer, self._delivery.states = self._states, states
        try:
            deliver()
        finally:
            self._delivery.states = outer

    def _learn(self, module: str, sender: Sender, state: str) -> None:
        if self._states is not None:
            self._states[module, sender] = state

    @property
    def _states(self) -> dict[Pair, str] | None:
        return getattr(self._delivery, "states", None)


def _consistent(router: Any, view: DeliveryView) -> Callable[[Any], None]:
    deliver = getattr(router.deliver, ATTACHED, router.deliver)  # as it was, however often a store was attached

    @functools.wraps(deliver)
    def deliver_consistently(message: Any) -> None:
        view.during_delivery(_candidates(router, message), lambda: deliver(message))

    setattr(deliver_consistently, ATTACHED, deliver)
    return deliver_consistently


def _candidates(router: Any, message: Any) -> list[Pair]:
    """The keys of all handlers with a state that match the message, each once."""
    keys = {
        router.state_key(handler.__module__, message)
        for handlers, _ in router.match(message.To)
        for handler in handlers
        if not _is_stateless(handler)
    }
    return [(key, message.From) for key in sorted(keys)]


def _is_stateless(handler: Any) -> bool:
    return any(getattr(handler, name, {}).get("stateless") for name in SETTINGS_ATTRIBUTES)
