"""How long a session lasts: as long as a connection is open that named it, and some time after.

Kept in memory only. After a start all sessions have just been left: the time in which the daemon was away is not
counted, for nobody could have come back.
"""

from collections import Counter
from collections.abc import Iterable

LIFETIME = 3600.0  # seconds without a connection
MAX_SESSIONS = 10_000  # then the one that was left first goes, to make room


class Leases:
    """Times are seconds of any clock that is never set back."""

    def __init__(self, sessions: Iterable[int], now: float) -> None:
        self._connections: Counter[int] = Counter()
        self._left = dict.fromkeys(sessions, now)  # those without a connection, in the order in which they were left

    def take(self, session: int) -> None:
        """One more connection is open for it."""
        self._connections[session] += 1
        self._left.pop(session, None)

    def leave(self, session: int, now: float) -> None:
        """One less."""
        if session not in self._connections:
            return  # it is forgotten
        self._connections[session] -= 1
        if not self._connections[session]:
            del self._connections[session]
            self._left[session] = now

    def forget(self, session: int) -> None:
        """There is no such session."""
        self._connections.pop(session, None)
        self._left.pop(session, None)

    def end(self, now: float) -> list[int]:
        """Those that have expired by now; they are not looked after any more."""
        ended = []
        for session, left in self._left.items():
            if now - left < LIFETIME:
                break
            ended.append(session)
        for session in ended:
            del self._left[session]
        return ended

    def end_one(self) -> int | None:
        """The one that was left first, where there is one without a connection."""
        first = next(iter(self._left), None)
        if first is not None:
            del self._left[first]
        return first
