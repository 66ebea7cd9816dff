"""A bounded pool of connections, for threads, across forks, and whatever a signal's handler raises at any moment.

Python runs such a handler between two steps of the interpreter, never within a call into C. So what must not come apart
is one such call, and what must happen in the end is the first call of a `finally`.
"""

import queue
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from statestore.calls import STEP, Call
from statestore.connection import Connection
from statestore.deadline import Deadline
from statestore.forks import begin_anew_in_child
from statestore.protocol import Response

BY = "by"
T = TypeVar("T")
R = TypeVar("R")


class Place:
    """For one connection. It is of whoever stands in `taken`: `taken.setdefault(BY, who) is who`, one call into C.

    connection: None while it is in use, and where there is none. So what breaks off in the middle of an exchange leaves
    no connection on which its answer may still come.
    """

    __slots__ = ("connection", "taken")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.taken: dict[str, object] = {}

    def call(
        self,
        connection: Connection,
        method: str,
        params: tuple[Any, ...],
        deadline: Deadline | None,
        patience: Callable[[], Deadline],
    ) -> Response:
        """`connection.call`; the connection is the one that is here."""
        self.connection = None
        try:
            response = connection.call(method, params, deadline, patience)
        except BaseException:
            connection.close()
            raise
        # Where it cannot be done now, another connection may find a server that can.
        if response.error is None or not response.error.retry:
            self.connection = connection
        else:
            connection.close()
        return response


class Pool:
    """At most `size` connections, made by `connect` when first needed; of those that are free the first is used."""

    def __init__(self, connect: Callable[[Call], Connection], size: int) -> None:
        self._connect = connect
        self._size = size
        self.after_fork_in_child()
        begin_anew_in_child(self)

    def after_fork_in_child(self) -> None:
        """The connections are the parent's, and its threads are in places that they will not leave here."""
        self._places = [Place() for _ in range(self._size)]
        self._waiting: dict[object, None] = {}  # for a place
        self._left: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes them

    @property
    def free(self) -> int:
        """Places that nobody is in."""
        return sum(1 for place in self._places if not place.taken)

    def ask(self, method: str, params: tuple[Any, ...], patience: Callable[[], Deadline]) -> Response | None:
        """One attempt at a read on a connection that is free; None where there is none.

        params: a tuple that no other call has. Raises what `Connection.call` raises.
        """
        if self._waiting:
            return None
        for place in self._places:
            # As in `_use`: the usual way is short.
            try:
                if place.taken.setdefault(BY, params) is params and (connection := place.connection) is not None:
                    return place.call(connection, method, params, None, patience)
            finally:
                if BY in place.taken and place.taken[BY] is params:
                    del place.taken[BY]
                    if self._waiting:
                        self._left.put(None)
        return None

    def call(self, call: Call) -> Response:
        """One attempt. Raises what `Connection` raises, and TimeoutError where no connection is free in time."""
        places = self._places  # a handler may fork, and its child have others
        behind = bool(self._waiting)  # then it is their turn first
        try:
            while True:
                if not behind:
                    for place in sorted(places, key=_is_empty):
                        response = self._use(place, call, self._attempt)
                        if response is not None:
                            return response
                if call not in self._waiting:
                    self._waiting[call] = None
                    if not behind:
                        continue  # one may have left just before
                self._wait(call)
                behind = False
        finally:
            self._waiting.pop(call, None)

    def drop_idle(self) -> None:
        """Close what is not in use: after one connection broke, the others have most likely broken too."""
        for place in self._places:
            self._use(place, object(), _close)

    def _use(self, place: Place, who: T, use: Callable[[Place, T], R]) -> R | None:
        """`use(place, who)`, unless somebody else is in it."""
        try:
            if place.taken.setdefault(BY, who) is who:
                return use(place, who)
        finally:
            # No call comes before it is left, so no handler does.
            if BY in place.taken and place.taken[BY] is who:
                del place.taken[BY]
                if self._waiting:
                    self._left.put(None)
        return None

    def _attempt(self, place: Place, call: Call) -> Response:
        self._waiting.pop(call, None)
        connection = place.connection
        if connection is not None and call.must_not_be_lost(connection.welcome) and connection.is_stale:
            _close(place, call)
            connection = None
        if connection is None:
            call.check_turn()
            connection = place.connection = self._connect(call)
        params = call.parameters(connection.welcome)
        return place.call(connection, call.method, params, call.deadline, call.patience)

    def _wait(self, call: Call) -> None:
        try:
            left = call.deadline.left()
        except TimeoutError:
            raise TimeoutError(f"all {self._size} connections were busy for {call.deadline.seconds:g} s") from None
        with suppress(queue.Empty):
            self._left.get(timeout=min(left, STEP))  # STEP: whoever left may have been interrupted


def _is_empty(place: Place) -> bool:
    return place.connection is None


def _close(place: Place, _who: object) -> None:
    connection, place.connection = place.connection, None
    if connection is not None:
        connection.close()
