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
Question = tuple[str, tuple[Any, ...], Deadline | None, Callable[[], Deadline]]  # what `Connection.call` takes


class Place:
    """For one connection. It is of whoever stands in `taken`: `taken.setdefault(BY, who) is who`, one call into C.

    connection: None while it is in use, and where there is none. So what breaks off in the middle of an exchange leaves
    no connection on which its answer may still come.
    """

    __slots__ = ("connection", "taken")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.taken: dict[str, object] = {}

    def ask(self, question: Question) -> Response | None:
        """What the connection that is here answers; None where there is none. Raises what `Connection.call` raises."""
        connection = self.connection
        if connection is None:
            return None
        self.connection = None
        try:
            method, params, deadline, patience = question
            response = connection.call(method, params, deadline, patience)
        except BaseException:
            connection.close()
            raise
        # Where it cannot be done now, another connection may find a server that can; and its `hello` tells the server's
        # time anew, for ours stands still while this machine is suspended, and what is sent then seems to be too late.
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
        self.waiting: dict[object, None] = {}  # for a place; who comes later leaves it to them first
        self._left: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes them

    @property
    def free(self) -> int:
        """Places that nobody is in."""
        return sum(1 for place in self._places if not place.taken)

    def use(self, use: Callable[[Place, T], R | None], who: T) -> R | None:
        """`use(place, who)` in one place after the other that nobody is in, until it is not None.

        who: an object that no other call has.
        """
        for place in self._places:
            taken = place.taken
            try:
                if taken.setdefault(BY, who) is who and (outcome := use(place, who)) is not None:
                    return outcome
            finally:
                # No call comes before it is left, so no handler does.
                if BY in taken and taken[BY] is who:
                    del taken[BY]
                    if self.waiting:
                        self._left.put(None)
        return None

    def call(self, call: Call) -> Response:
        """One attempt. Raises what `Connection` raises, and TimeoutError where no connection is free in time."""
        behind = bool(self.waiting)
        try:
            while True:
                if not behind:
                    response = self.use(self._ask_if_open, call) or self.use(self._ask, call)
                    if response is not None:
                        return response
                if call not in self.waiting:
                    self.waiting[call] = None
                    if not behind:
                        continue  # one may have left just before
                self._wait(call)
                behind = False
        finally:
            self.waiting.pop(call, None)

    def drop_idle(self) -> None:
        """Close what is not in use: after one connection broke, the others have most likely broken too."""
        self.use(_close, object())

    def _ask_if_open(self, place: Place, call: Call) -> Response | None:
        """Where there is a connection."""
        return None if place.connection is None else self._ask(place, call)

    def _ask(self, place: Place, call: Call) -> Response | None:
        self.waiting.pop(call, None)
        connection = place.connection
        if connection is not None and call.must_not_be_lost(connection.welcome) and connection.is_stale:
            _close(place, call)
            connection = None
        if connection is None:
            call.check_turn()
            connection = place.connection = self._connect(call)
        return place.ask((call.method, call.parameters(connection.welcome), call.deadline, call.patience))

    def _wait(self, call: Call) -> None:
        try:
            left = call.deadline.left()
        except TimeoutError:
            raise TimeoutError(f"all {self._size} connections were busy for {call.deadline.seconds:g} s") from None
        with suppress(queue.Empty):
            self._left.get(timeout=min(left, STEP))  # STEP: whoever left may have been interrupted


def _close(place: Place, _who: object) -> None:
    connection, place.connection = place.connection, None
    if connection is not None:
        connection.close()
