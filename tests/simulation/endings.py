"""How a call may end: which errors it may raise, and when (R3 in docs/reliability.md)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from statestore.errors import StateStoreError, Unauthorized, Unavailable, Uncertain
from statestore.protocol import ConnectionLost, WrongServer

LATE = 0.1  # seconds that a call may take beyond its deadline
EARLY = 1e-6  # seconds; what adding up times may lose to rounding

# Seconds after which a token that is valid again must be accepted. Until then the daemon may not have read it, or a
# call may raise what the last attempt of its client was told: attempts are up to 1.4 seconds apart.
TOKEN_IS_KNOWN_AFTER = 2.0

NO_ROOM = "has no room"  # what the daemon says if it refuses a write because the disk is full
OWN_CAUSES = (OSError, StateStoreError, ConnectionLost)  # TimeoutError is an OSError; any other cause is a fault


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a call met, as far as it decides which errors it may raise.

    Attributes:
        writes: It is a write.
        took, deadline: In seconds of its machine's CLOCK_MONOTONIC.
        is_calm: No trouble had been injected when it ended.
        was_closed: The storage was closed during the call.
        was_revoked: The token was not valid during the call, or shortly before.
        was_hopeless: When it began, the client had had no answer for as long as the call may take.
        may_lack_room: The plan has a full disk.
        is_session_safe: No session expires or is evicted, so only the loss of a synced write can end one.
    """

    writes: bool
    took: float
    deadline: float
    is_calm: bool
    was_closed: bool
    was_revoked: bool
    was_hopeless: bool
    may_lack_room: bool
    is_session_safe: bool

    @property
    def is_early(self) -> bool:
        return self.took < self.deadline - EARLY


def objection_to(error: StateStoreError, met: Circumstances) -> str | None:
    """Return why a call must not end with this error, or None if it may."""
    if (cause := _foreign_cause(error)) is not None:
        return f"the cause is {cause!r}"
    if met.is_calm and not met.was_closed:
        return "nothing has gone wrong yet"
    if NO_ROOM in error.detail and not met.may_lack_room:
        return "the disk was never full"
    kind = type(error)  # not isinstance: WrongServer is an Unavailable
    if kind is Unauthorized:
        return None if met.was_revoked else "the token was valid"
    if kind is Unavailable:
        if met.is_early and not met.was_closed and not met.was_hopeless:
            return f"it came after {met.took:.3f} s, and the deadline was {met.deadline:g} s"
        return None
    if kind is Uncertain:
        if not met.writes:
            return "it was a read"
        if met.is_early and met.is_session_safe and not (met.was_closed or met.was_hopeless or met.was_revoked):
            return f"it came after {met.took:.3f} s, and the session was not lost"
        return None
    return "nothing explains it"


def _foreign_cause(error: BaseException) -> BaseException | None:
    """Return the first of an error's causes that neither the system nor the client raises on purpose."""
    for cause in _causes(error):
        if isinstance(cause, WrongServer) or not isinstance(cause, OWN_CAUSES):
            return cause
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the causes of an error, the context of one that was raised `from None` included."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


class TokenRecord:
    """When the clients' token was not valid."""

    def __init__(self) -> None:
        self._is_valid = True
        self._known_at = -math.inf  # when the daemon and the clients certainly know that it is valid again

    def change(self, *, valid: bool, daemon_runs_from: float) -> None:
        """Note that the token has become valid or not. A daemon that is stopped reads it later."""
        if valid and not self._is_valid:
            self._known_at = daemon_runs_from + TOKEN_IS_KNOWN_AFTER
        self._is_valid = valid

    def was_revoked_since(self, begun: float) -> bool:
        return not self._is_valid or begun < self._known_at
