"""What may not last, and why connections are dropped.

Connections are looked at once a second, and only those in a state that may not last. Time is counted in these looks,
not by the clock: a daemon that was stopped for a while has itself to blame for what did not happen meanwhile.
"""

import errno
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

EVERY = 1.0  # seconds from one look to the next

# In looks, which are seconds.
HANDSHAKE = 5  # until a TLS handshake is complete
HELLO = 5  # until a stranger has shown a token
REST_OF_MESSAGE = 10  # from a message's first byte to its last
# Until a client takes some of what waits for it. The system's own limit (sockets.KEEP_ALIVE) also ends connections of
# peers that are gone; it is longer, so that this one comes first: it knows what it was.
READING = 45
CLOSING = 5  # until it takes the last of it, once the connection is to be closed


class Dropped(StrEnum):
    """Why the daemon closed a connection; the names are those in `info` and in the metrics."""

    GARBAGE = "garbage"  # what came is no request
    TOO_MANY = "too_many"  # connections
    NO_HELLO = "no_hello"  # within its time, or before too many others came
    UNFINISHED = "unfinished"  # a message was, for too long
    NOT_READING = "not_reading"  # answers were not taken for too long, or too many wait
    DEAD_PEER = "dead_peer"  # it did not answer when the system asked whether it is there
    NO_BUFFERS = "no_buffers"  # the budget of all was used up, and this one held most
    REVOKED = "revoked"  # its token is gone, or does not open its namespace any more
    TOO_MANY_ADMIN = "too_many_admin"  # connections to the admin address


# What the system says of a connection that it has given up, as opposed to one that the peer has reset.
GIVEN_UP = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}


class Watched(Protocol):
    def look(self, now: int) -> bool:
        """End what has lasted too long. Returns whether there is anything to look at the next time."""


@dataclass(slots=True)
class Since:
    """The looks at which something began that may not last."""

    connected: int = 0
    message: int = 0
    paused: int = 0
    closing: int = 0


class Watch:
    """Those whose state may not last, in the order in which they were added; `now` is the number of looks so far."""

    def __init__(self) -> None:
        self.now = 0
        self._watched: dict[Watched, None] = {}

    def add(self, watched: Watched) -> int:
        """Returns `now`."""
        self._watched[watched] = None
        return self.now

    def discard(self, watched: Watched) -> None:
        self._watched.pop(watched, None)

    def tick(self) -> None:
        self.now += 1
        for watched in list(self._watched):
            if not watched.look(self.now):
                self.discard(watched)
