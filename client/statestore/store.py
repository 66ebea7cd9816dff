"""What one client knows of its store: which it is, how long things may be there, whether it is away."""

import logging
import sys

from statestore.base import Limits
from statestore.protocol import Welcome, WrongServer
from statestore.session import Session

log = logging.getLogger("statestore")

# Until the daemon has said what its limits are; it refuses itself what is over them.
UNLIMITED = Limits(sys.maxsize, sys.maxsize, sys.maxsize, sys.maxsize)


class Store:
    """The store at `where`: with the id `store_id`, or that of the first which answers."""

    def __init__(self, where: str, store_id: str | None = None) -> None:
        self.where = where
        self.store_id = store_id
        self.limits = UNLIMITED
        self.session = Session()
        self._away = False

    def accepts(self, welcome: Welcome, asked: int) -> bool:
        """Whether a connection that was greeted so, having asked for the session `asked`, can be used.

        False: make it again, and ask for `session.id`. Raises WrongServer where another store answers: it is not ours
        come back, and to it every sender would be a stranger.
        """
        if self.store_id is None:
            self.store_id = welcome.store_id
        if welcome.store_id != self.store_id:
            raise WrongServer(f"the store {welcome.store_id} answers where {self.store_id} was expected")
        self.limits = welcome.limits
        return self.session.joins(asked, welcome.session)

    def gone(self, why: str) -> None:
        """It could not be asked; the log has one line of it, for a mail's 451 leaves none in Salmon's."""
        if not self._away:
            self._away = True
            log.warning("state store unavailable: %s", why)

    def back(self) -> None:
        """It has answered."""
        if self._away:
            self._away = False
            log.warning("state store is back: %s", self.where)
