"""When a client replaces a connection because the server refuses its calls for now."""

import random
import time

from statestore.errors import ShuttingDown, StateStoreError

PAUSE = (1.0, 1.4)  # seconds; a hundred clients then make at most a hundred connections a second


class Renewal:
    """One for each client, for all its connections and calls.

    A new connection may find what an old one lacks: its `hello` may be given a session, tells the server's time (the
    client's clock stands still while the machine is suspended, and then its writes seem to come too late), and may
    reach another server.
    """

    def __init__(self) -> None:
        self._due = 0.0  # monotonic

    def is_due(self) -> bool:
        """Return whether the caller may replace a connection now; if so, the next replacement is due after a pause.

        Two threads that ask at the same moment may both be allowed to, which does no harm.
        """
        if time.monotonic() < self._due:
            return False
        self.put_off()
        return True

    def is_due_after(self, refusal: StateStoreError) -> bool:
        """Return whether to replace the connection by which `refusal` came: at once if the server is about to end."""
        return refusal.retry and (isinstance(refusal, ShuttingDown) or self.is_due())

    def put_off(self) -> None:
        """A connection has just been made: another would find nothing else."""
        self._due = time.monotonic() + random.uniform(*PAUSE)  # noqa: S311  # guards nothing
