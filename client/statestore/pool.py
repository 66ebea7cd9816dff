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
from statestore.forks import ProcessBound, detect_fork, reset_after_fork
from statestore.protocol import Response
from statestore.renewal import Renewal

BY = "by"
# Seconds that a call leaves what is free to those who came before it. The first of them may be held up by a signal's
# handler in its thread, or stand below this very call, which such a handler makes.
GIVE_WAY = 0.2
T = TypeVar("T")
R = TypeVar("R")
Question = tuple[str, tuple[Any, ...], Deadline | None, Callable[[], Deadline]]  # what `Connection.call` takes


class Place:
    """For one connection. It is of whoever stands in `taken`: `taken.setdefault(BY, who) is who`, one call into C.

    connection: None while it is in use, and where there is none. So what breaks off in the middle of an exchange leaves
    no connection on which its answer may still come.
    """

    __slots__ = ("_renewal", "connection", "taken")

    def __init__(self, renewal: Renewal) -> None:
        self._renewal = renewal
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
        if response.error is None or not self._renewal.is_due_after(response.error):
            self.connection = connection
        else:
            connection.close()
        return response


class Pool(ProcessBound):
    """At most `size` connections, made by `connect` when first needed; of those that are free the first is used.

    renewal: decides when a connection that brings refusals is replaced.
    """

    def __init__(self, connect: Callable[[Call], Connection], size: int, renewal: Renewal | None = None) -> None:
        self._connect = connect
        self._size = size
        self._renewal = renewal or Renewal()
        self.after_fork_in_child()
        reset_after_fork(self)

    def after_fork_in_child(self) -> None:
        """The connections are the parent's, and its threads are in places that they will not leave here."""
        self._places = [Place(self._renewal) for _ in range(self._size)]
        # For a place, in the order of coming, and what wakes them: who comes later leaves it to them first. Or a thread
        # that asks again and again would take the place that it has just left, for ever.
        self.waiting: dict[object, queue.SimpleQueue[None]] = {}

    @property
    def free(self) -> int:
        """Places that nobody is in."""
        return sum(1 for place in self._places if not place.taken)

    def use(self, use: Callable[[Place, T], R | None], who: T) -> R | None:
        """`use(place, who)` in one place after the other that nobody is in, until it is not None.

        who: an object that no other call has.
        """
        detect_fork()
        for place in self._places:
            taken = place.taken
            try:
                if taken.setdefault(BY, who) is who and (outcome := use(place, who)) is not None:
                    return outcome
            finally:
                # Nothing is called before the place is left, so no signal handler runs. The place is looked at once:
                # on a free-threaded build another thread may leave it at any moment.
                try:
                    is_ours = taken[BY] is who
                except KeyError:
                    is_ours = False
                if is_ours:
                    del taken[BY]
                    if self.waiting:
                        self._wake_first()
        return None

    def call(self, call: Call) -> Response:
        """One attempt. Raises what `Connection` raises, and TimeoutError where no connection is free in time."""
        gives_way = Deadline(GIVE_WAY)
        try:
            while True:
                if self._comes_first(call) or gives_way.passed:
                    response = self.use(self._ask_if_open, call) or self.use(self._ask, call)
                    if response is not None:
                        return response
                if (woken := self.waiting.get(call)) is not None:
                    self._wait(call, woken)
                else:
                    self.waiting[call] = queue.SimpleQueue()  # and once more, for one may have left just before
        finally:
            self.waiting.pop(call, None)

    def drop_idle(self) -> None:
        """Close what is not in use: after one connection broke, the others have most likely broken too."""
        self.use(_close, object())

    def _ask_if_open(self, place: Place, call: Call) -> Response | None:
        """Where there is a connection."""
        return None if place.connection is None else self._ask(place, call)

    def _ask(self, place: Place, call: Call) -> Response | None:
        if self.waiting.pop(call, None) is not None and self.waiting:
            self._wake_first()  # there may be more than one place
        connection = place.connection
        if connection is not None and call.writes and connection.is_stale:
            _close(place, call)
            self.drop_idle()
            connection = None
        if connection is None or call.needs_another(connection.welcome):
            connection = self._replace(place, call)
        refusal = call.refusal(connection.welcome)
        if refusal is not None:
            return refusal
        return place.ask((call.method, call.parameters(connection.welcome), call.deadline, call.patience))

    def _replace(self, place: Place, call: Call) -> Connection:
        """Return a new connection, or the one that is there if it is to be kept."""
        replaced = place.connection
        try:
            call.check_turn()
            connection = self._connect(call)
        except Exception as failure:
            if replaced is not None and call.goes_on_by(replaced.welcome, failure):
                return replaced
            raise
        place.connection = connection
        if replaced is not None:
            replaced.close()  # not before: if there is no other, reads go on by it
        return connection

    def _comes_first(self, call: Call) -> bool:
        """Nobody has waited for longer."""
        waiting = list(self.waiting)
        return not waiting or waiting[0] is call

    def _wake_first(self) -> None:
        for woken in list(self.waiting.values())[:1]:
            woken.put(None)

    def _wait(self, call: Call, woken: "queue.SimpleQueue[None]") -> None:
        try:
            left = call.deadline.left()
        except TimeoutError:
            raise TimeoutError(f"all {self._size} connections were busy for {call.deadline.seconds:g} s") from None
        with suppress(queue.Empty):
            woken.get(timeout=min(left, STEP))  # STEP: whoever left may have been interrupted


def _close(place: Place, _who: object) -> None:
    connection, place.connection = place.connection, None
    if connection is not None:
        connection.close()
