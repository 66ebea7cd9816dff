"""An outage: from the first attempt that reached nobody to the first answer. Who tries next, and when."""

import math
import random
import time
from typing import Any

from statestore.deadline import Deadline

# Seconds from one attempt to the next, of all calls of a client together. The first is at once where it may be a slip,
# the second soon, for a restart takes little; then about one a second: a hundred clients make at most 200, also where
# each makes one out of turn.
PAUSES = ((0.0, 0.0), (0.1, 0.5), (1.0, 1.4))
LONGEST_TURN = 10.0  # seconds; whoever has not said by then what came of it was interrupted

_NOT_TAKEN = (object(), math.inf)


def is_first(noted: dict[Any, object], what: object) -> bool:
    """Note `what`, and return whether it was not noted before: one call into C, so one of many threads is the first."""
    mine = object()
    return noted.setdefault(what, mine) is mine


class Turn:
    """The next attempt, from `due` on (monotonic): that of the first call to take it."""

    def __init__(self, due: float) -> None:
        self.due = due
        self._taken: dict[str, tuple[object, float]] = {}

    # Each of these is one call into C, so that of all threads one gets it.

    def take(self, call: object, now: float) -> bool:
        return self._taken.setdefault("by", (call, now))[0] is call

    def take_as_last(self, call: object, now: float) -> bool:
        return self._taken.setdefault("last", (call, now))[0] is call

    def is_last_of(self, call: object) -> bool:
        return self._taken.get("last", _NOT_TAKEN)[0] is call

    def is_of(self, call: object) -> bool:
        return self._taken.get("by", _NOT_TAKEN)[0] is call

    def is_forgotten(self, now: float) -> bool:
        return now > self._taken.get("by", _NOT_TAKEN)[1] + LONGEST_TURN


class Outage:
    """A client begins with one: it has reached nobody yet.

    failure: why the last attempt reached nobody. since: the first that did, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.failure: Exception = TimeoutError("the first attempt to reach it has not ended yet")
        self.since = math.inf
        self._reports: dict[str, object] = {}
        self._failures = 0
        self._turn = Turn(0.0)

    @property
    def reported(self) -> bool:
        """Whether it is in the log."""
        return bool(self._reports)

    def report(self) -> bool:
        """Return whether the caller is the first to report it, and is to log it."""
        return is_first(self._reports, "log")

    def is_hopeless(self, deadline: Deadline) -> bool:
        """Whether a call should not wait for its end: when it began, nobody had answered for as long as it may take."""
        return deadline.at - 2 * deadline.seconds > self.since

    def wait(self, call: object) -> float:
        """Seconds until the next attempt may be made; 0: `call` is to make it."""
        now = time.monotonic()
        if self._turn.is_forgotten(now):
            self._turn = Turn(now)
        turn = self._turn
        if now < turn.due:
            return turn.due - now
        return 0.0 if turn.take(call, now) else LONGEST_TURN

    def allows_last(self, call: object) -> bool:
        """Whether `call`, whose time is nearly over, may make an attempt before the next one's turn.

        Of all calls one may until then: else each of many threads would make one.
        """
        return self._turn.take_as_last(call, time.monotonic())

    def is_turn_of(self, call: object) -> bool:
        return self._turn.is_of(call)

    def failed(self, call: object, failure: Exception, *, is_slip: bool) -> None:
        """`call` made an attempt, and reached nobody. is_slip: if it is the first, the next may be made at once."""
        self.failure = failure
        now = time.monotonic()
        is_first = self.since == math.inf
        if is_first:
            self.since = now
        was_last = self._turn.is_last_of(call)
        if is_first or was_last or self._turn.is_of(call):
            self._failures += not (is_first and is_slip)
            shortest, longest = PAUSES[min(self._failures, len(PAUSES) - 1)]
            self._turn = Turn(now + random.uniform(shortest, longest))  # noqa: S311  # guards nothing
            if was_last:
                self._turn.take_as_last(call, now)  # there are not two of them without a turn in between

    def left_by(self, call: object) -> None:
        """`call` has ended; where it was to make the next attempt and did not, another may."""
        if self._turn.is_of(call):
            self._turn = Turn(self._turn.due)
