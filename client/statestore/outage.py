"""An outage: from the first attempt that reached nobody to the first answer. Who tries next, and when."""

import random
import time

from statestore.deadline import Deadline

# Seconds from one attempt to the next, of all calls of a client together. The first is at once where it may be a slip,
# the second soon, for a restart takes little; then about one a second: a hundred clients make fewer than 200.
PAUSES = ((0.0, 0.0), (0.1, 0.5), (0.9, 1.3))
LONGEST_TURN = 10.0  # seconds; whoever has not said by then what came of it was interrupted


class Turn:
    """The next attempt, from `due` on (monotonic): that of the first call to take it."""

    def __init__(self, due: float) -> None:
        self.due = due
        self._taken: dict[str, object] = {}

    def take(self, call: object) -> bool:
        return self._taken.setdefault("by", call) is call  # one call into C: of all threads one gets it

    def is_of(self, call: object) -> bool:
        return self._taken.get("by") is call


class Outage:
    """failure: why the last attempt reached nobody. reported: whether it is in the log."""

    def __init__(self, failure: Exception, *, is_slip: bool) -> None:
        """is_slip: the next attempt may be made at once."""
        self.since = time.monotonic()
        self.failure = failure
        self.reported = False
        self._failures = 0 if is_slip else 1
        self._turn = self._next_turn()

    def is_hopeless(self, deadline: Deadline) -> bool:
        """Whether a call should not wait for its end: when it began, nobody had answered for as long as it may take."""
        return deadline.at - 2 * deadline.seconds > self.since

    def wait(self, call: object) -> float:
        """Seconds until the next attempt may be made; 0: `call` is to make it."""
        now = time.monotonic()
        if now > self._turn.due + LONGEST_TURN:
            self._turn = Turn(now)
        turn = self._turn
        if now < turn.due:
            return turn.due - now
        return 0.0 if turn.take(call) else LONGEST_TURN

    def is_turn_of(self, call: object) -> bool:
        return self._turn.is_of(call)

    def failed(self, call: object, failure: Exception) -> None:
        """`call` made an attempt, and reached nobody."""
        self.failure = failure
        if self._turn.is_of(call):
            self._turn = self._next_turn()

    def _next_turn(self) -> Turn:
        shortest, longest = PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1
        return Turn(time.monotonic() + random.uniform(shortest, longest))  # noqa: S311  # guards nothing
