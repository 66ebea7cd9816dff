"""Exactly once: the session of one client with its store, and the numbers of its writes.

The server remembers what it answered to the numbers of a session, so a write may be repeated under its number.
Each step that others depend on is one call into C: a signal handler runs before or after it, never in the middle, and
under the GIL no other thread comes in between. A lock that an exception leaves held would stop all writing: so there is
one on a free-threaded build only, where another thread may come between a number and its note.
"""

import sys
import threading
from itertools import count

from statestore.forks import ProcessBound, detect_fork, reset_after_fork

MOST_APART = 1023  # the server remembers the answers of so many numbers behind a write's own


def _has_gil() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())  # there is no such function before Python 3.13


class Session(ProcessBound):
    """One for each client; its numbers are never given twice, in whatever session.

    unanswered: a write with its number, from when it has one until its call has ended, whichever way; in the order of
    the numbers. The client removes it at the end of the call: `unanswered.pop(write, None)`.
    """

    def __init__(self) -> None:
        self._numbers = count(1)
        self.after_fork_in_child()
        reset_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Use a new session in a child.

        Its numbers go on from its parent's: a call that was in the middle when the process forked may have one already.
        """
        self.id = 0  # what to ask for in the next `hello`; 0: a new one
        self.is_refused = False  # the last `hello` that asked for one was given none
        self._given: dict[int, int] = {}  # what was given instead of what was asked for
        self._left: dict[int, object] = {}
        self.unanswered: dict[object, int] = {}
        self._lock = None if _has_gil() else threading.RLock()

    def joins(self, asked: int, given: int | None) -> bool:
        """Whether a connection that asked for the session `asked` and was given another can be used.

        If not, another connection was faster, and this one has to be made again, asking for what `id` is then.
        """
        self.is_refused = given is None
        if given is None or given == asked:
            return True
        self.id = self._given.setdefault(asked, given)
        return self.id == given

    def is_current(self, session: int | None) -> bool:
        """Return whether writes may go by a connection in this session (None: it has none)."""
        return session is None or session == self.id

    def leave(self, session: int | None) -> bool:
        """Ask for a new session in the next `hello`, unless this one was left before. Return whether it was not."""
        mine = object()
        if session is None or session != self.id or self._left.setdefault(session, mine) is not mine:
            return False
        self._given = {}
        if self.id == session:
            self.id = 0
        return True

    def number(self, write: object) -> int:
        """Return the number of `write`: the next one, if it has none yet."""
        detect_fork()
        # One call into C: nobody's `oldest` may pass a number that is about to be noted, and they stand in their order.
        if self._lock is None:
            return self.unanswered.get(write) or next(map(self.unanswered.setdefault, (write,), self._numbers))
        with self._lock:
            return self.unanswered.get(write) or next(map(self.unanswered.setdefault, (write,), self._numbers))

    def oldest(self, number: int) -> int:
        """The lowest number without an answer, to go with `number`. Raises TimeoutError where it is too far behind."""
        while True:
            try:
                oldest = next(iter(self.unanswered.values()), number)
                break
            except RuntimeError:  # another thread has changed it just then
                continue
        if number - oldest > MOST_APART:
            raise TimeoutError(f"more than {MOST_APART} writes wait for their answers")
        return oldest
