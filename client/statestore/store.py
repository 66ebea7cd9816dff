"""What one client knows of its store: which it is, how long things may be there, whether it is away."""

import logging
import sys
import time

from statestore.address import Address
from statestore.base import Limits
from statestore.errors import NumberReused, Uncertain
from statestore.forks import ProcessBound, reset_after_fork
from statestore.outage import Outage, is_first
from statestore.protocol import Welcome, WrongStore
from statestore.renewal import Renewal
from statestore.session import Session

log = logging.getLogger("statestore")

NOW = "now"  # the key of an outage
CALM = 60.0  # seconds without a refusal after which the log says that they are over

# Until the daemon has said what its limits are; it refuses itself what is over them.
UNLIMITED = Limits(sys.maxsize, sys.maxsize, sys.maxsize, sys.maxsize)


class Store(ProcessBound):
    """The store at `where`: with the id `store_id`, or that of the first which answers."""

    def __init__(self, where: str, store_id: str | None = None) -> None:
        self.where = where
        self._ids: dict[str, str] = {} if store_id is None else {"of": store_id}
        self.address: Address | None = None  # where it answered last, and is looked for first
        self.limits = UNLIMITED
        self.session = Session()
        self.renewal = Renewal()
        self.after_fork_in_child()
        reset_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Nobody has been reached yet; so one connection is made before all others, and gives them their session.

        Nothing is in the child's log yet. Which store it is, where it is and what its limits are stays known.
        """
        self.outages: dict[str, Outage] = {NOW: Outage()}  # the one that goes on, if any
        self.unable: dict[bool, object] = {}  # now, as it says: to write (True), to read (False)
        self._refused: dict[str, object] = {}  # for which reasons, since it was calm last
        self._refused_last = 0.0  # when, on the monotonic clock

    @property
    def store_id(self) -> str | None:
        """The id that was given, or that of the first store which answered; None if there is neither."""
        return self._ids.get("of")

    @property
    def outage(self) -> Outage | None:
        return self.outages.get(NOW)

    def accepts(self, address: Address, welcome: Welcome, asked: int) -> bool:
        """Whether a connection that was greeted so at `address`, having asked for the session `asked`, can be used.

        False: make it again, and ask for `session.id`. Raises WrongStore where another store answers: it is not ours
        come back, and to it every sender would be a stranger.
        """
        store_id = self._ids.setdefault("of", welcome.store_id)  # one call into C: of all threads one says which
        if welcome.store_id != store_id:
            raise WrongStore(f"the store {welcome.store_id} answers where {store_id} was expected")
        self.address = address
        self.limits = welcome.limits
        self.renewal.put_off()
        outage = self.outage
        if outage is not None and not outage.reported:
            self._ends_outage()  # else the log's next word on it is for its first answer
        return self.session.joins(asked, welcome.session)

    def leave_session(self, session: int | None, refusal: NumberReused | Uncertain) -> None:
        """Go on in a new session, because the server does not accept a number of ours in this one.

        Only `number_reused` proves that another client writes in it. `uncertain` may also mean that it has expired.
        """
        if not self.session.leave(session):
            return
        why = refusal.detail
        if isinstance(refusal, NumberReused):
            why = "another client writes in the session of this one, as a copy of this process or machine would"
        log.warning("%s: %s; this client goes on in a new session", self.where, why)

    def unreached(self, call: object, failure: Exception, *, is_slip: bool = False) -> Outage:
        """`call` made an attempt that nobody answered."""
        outage = self.outages.setdefault(NOW, Outage())
        outage.failed(call, failure, is_slip=is_slip)
        return outage

    def gone(self, why: str, outage: Outage | None, *, writing: bool) -> None:
        """A call was given up. The log has one line of it, for the mail's 451 leaves none in Salmon's.

        outage: None where the store does answer, but that it cannot do it now.
        """
        if is_first(self.unable, writing) if outage is None else outage.report():
            log.warning("state store unavailable: %s", why)

    def reached(self) -> None:
        """It answers, whatever that is."""
        if self._ends_outage():
            log.warning("state store is back: %s", self.where)

    def refused(self, code: str, why: str) -> None:
        """It answers, but will not do this, until somebody changes something. Others it may do: that is no outage.

        As some calls are refused and some are not, the log has one line, and one when all has been calm for a while.
        """
        if is_first(self._refused, code):
            log.warning("state store refuses: %s", why)
        self._refused_last = time.monotonic()

    def answered(self, *, writing: bool) -> None:
        """It did what it was asked for, or will never, as the request is wrong."""
        if not self.outages and not self.unable and not self._refused:
            return
        was_away = self._ends_outage()
        was_unable = self.unable.pop(writing, None) is not None
        if was_away or was_unable:
            log.warning("state store is back: %s", self.where)
        if self._refused and time.monotonic() - self._refused_last > CALM:
            self._refused = {}
            log.warning("state store has refused nothing for %g s: %s", CALM, self.where)

    def _ends_outage(self) -> bool:
        """Whether there was one that is in the log."""
        outage = self.outages.pop(NOW, None)
        return outage is not None and outage.reported
