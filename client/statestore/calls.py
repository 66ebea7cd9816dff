"""One call, from its first attempt to its end: what to send, what a failed attempt means, when to try again. No I/O."""

import random
import time
from typing import Any

from statestore.deadline import Deadline
from statestore.errors import (
    BadRequest,
    Forbidden,
    Full,
    Internal,
    NumberReused,
    StateStoreError,
    TooLong,
    Unauthorized,
    Unavailable,
    Uncertain,
    UnknownMethod,
)
from statestore.outage import Outage
from statestore.protocol import ConnectionLost, Response, Welcome, WrongServer
from statestore.results import fits
from statestore.store import Store

# Seconds from an answer that it cannot be done now to the next attempt; each is drawn from half of it to all of it.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
FIRST_PATIENCE = 2.0  # seconds that a connection may be silent; twice as many in each further attempt
STEP = 0.05  # seconds after which a waiting call looks whether another has found the store
MOST_ATTEMPTS = 20  # that are counted: what doubles with each is at its longest by then
LAST_ATTEMPT = 0.05  # seconds before the deadline in which there is time for one more attempt

WRITES = frozenset({"set", "set_all", "set_many", "compare_and_set", "clear"})
# Doing these twice comes to the same, unless somebody else wrote in between: what is left to do without a session.
HARMLESS_TWICE = WRITES - {"compare_and_set"}

FAULTS_OF_THE_CALLER = (BadRequest, UnknownMethod, TooLong)
REFUSALS = (Unauthorized, Forbidden, Full, Internal, Uncertain)


class Call:
    """`method(*params)`, asked of the store until there is an answer or the deadline passes.

    A client repeats these steps:

    1. wait as long as `pause()` says, until it says 0;
    2. take a connection, or make one after `check_turn()`;
    3. send `method` with `parameters()`, and wait for the response until `patience()` is over;
    4. hand the response to `answered`, or the exception that came of the attempt to `failed`.

    Whatever ends the call, the client removes it from `store.session.unanswered` afterwards, and says so to
    `store.outage` (`left_by`), where there is one.
    """

    __slots__ = (
        "_attempts",
        "_failure",
        "_is_last",
        "_not_before",
        "_number",
        "_sent",
        "_session",
        "_store",
        "deadline",
        "method",
        "params",
    )

    def __init__(self, store: Store, method: str, params: tuple[Any, ...], deadline: Deadline) -> None:
        self._store = store
        self.method = method
        self.params = params
        self.deadline = deadline
        self._attempts = 0  # that failed
        self._failure: Exception | None = None
        self._not_before = 0.0
        self._is_last = False
        self._sent = False  # whether it is a write that may have reached the server
        self._session: int | None = None  # in which it was sent last
        self._number = 0

    # Step 1

    def pause(self) -> float:
        """Seconds to wait before asking again; 0: make an attempt.

        Raises Unavailable, or what refuses us there, where the store has been away for longer than the call may take.
        """
        outage = self._store.outage
        if outage is None and not self._attempts:
            return 0.0
        left = self.deadline.at - (now := time.monotonic())
        wait = self._not_before - now
        if outage is not None and wait <= 0:
            self._failure = outage.failure
            wait = outage.wait(self)
            if wait > 0 and outage.is_hopeless(self.deadline):
                raise self._end(outage)
        if wait <= 0:
            return 0.0
        if left <= LAST_ATTEMPT:
            if self._is_last or left <= 0:
                return max(left, 0.0)
            self._is_last = outage is None or outage.allows_last(self)
            return 0.0 if self._is_last else max(left, 0.0)
        return min(wait, STEP, left - LAST_ATTEMPT)

    # Step 2

    def check_turn(self) -> None:
        """Before making a connection: of an outage that began meanwhile one call at a time finds out the end.

        Raises ConnectionLost where it is another's turn.
        """
        outage = self._store.outage
        if outage is not None and not self._is_last and not outage.is_turn_of(self):
            raise ConnectionLost(getattr(outage.failure, "detail", str(outage.failure)), sent=False)

    # Step 3

    def parameters(self, welcome: Welcome) -> tuple[Any, ...]:
        """What to send on a connection that was greeted so.

        Raises Uncertain where it was sent before, in a session that is no more, and TimeoutError where too many writes
        wait for their answers: hand both to `failed`.
        """
        if self.method not in WRITES:
            return self.params
        options: dict[str, Any] = {}
        if self._session != welcome.session:
            if self._sent and self._session is not None:
                raise Uncertain("the session in which it was sent is lost")
            self._session = welcome.session
        if self._session is not None:
            self._number = self._number or self._store.session.number(self)
            options["seq"] = self._number
            options["oldest"] = self._store.session.oldest(self._number)
        if "not_after" in welcome.features:
            options["not_after"] = welcome.server_time(self.deadline.at)
        return (*self.params, options) if options else self.params

    def patience(self) -> Deadline:
        """Until when to bear with a silent connection: less than the whole deadline where it can be asked once more."""
        if self.method in WRITES and self._session is None:
            return self.deadline
        return self.deadline.within(FIRST_PATIENCE * 2**self._attempts)

    def must_not_be_lost(self, welcome: Welcome) -> bool:
        """Whether it cannot be repeated once it was sent on such a connection, so that it pays to look before."""
        return welcome.session is None and self.method in WRITES and self.method not in HARMLESS_TWICE

    def may_use(self, welcome: Welcome) -> bool:
        """Return whether to send it on a connection that was greeted so: a write goes only by one in our session."""
        return self.method not in WRITES or self._store.session.is_current(welcome.session)

    # Step 4

    def answered(self, response: Response) -> bool:
        """Whether `response.result` is what the caller gets; False: try again. Raises the error it gets instead."""
        error, writing = response.error, self.method in WRITES
        if error is None:
            if fits(self.method, self.params, response.result):
                self._store.answered(writing=writing)
                return True
            error = WrongServer(f"the answer to {self.method} has another form than ours")
            self._sent = writing
        self._failure = error
        if self._leaves_session(error) and not self.deadline.passed:
            self._store.reached()
            self._back_off()
            return False
        if error.retry:
            if self._store.outage is not None:
                self._store.unreached(self, error)
            if not self.deadline.passed:
                self._back_off()
                return False
        elif isinstance(error, FAULTS_OF_THE_CALLER):
            self._store.answered(writing=writing)
            if not self._sent:
                raise error
        else:
            self._store.reached()
        # Where an earlier attempt had no answer, this is not its: it may still be under way, and be applied.
        raise self._end(None) from error

    def failed(self, failure: Exception) -> None:
        """An attempt had no answer. Returns where another is to be made; else raises what the caller gets."""
        outage = self._store.outage
        if outage is not None and not _is_of_the_store(failure):
            outage.left_by(self)
        if isinstance(failure, TooLong):
            raise failure
        if self._failure is None or not isinstance(failure, TimeoutError):
            self._failure = failure  # else what was wrong before says more
        was_sent = isinstance(failure, ConnectionLost) and failure.sent
        self._sent = self._sent or (was_sent and self.method in WRITES)
        again = self._is_repeatable(failure) and not self.deadline.passed
        if _is_of_the_store(failure) and not (outage is None and was_sent and again):
            outage = self._store.unreached(self, failure, is_slip=not isinstance(failure, ConnectionLost))
        if not again or (outage is not None and outage.is_hopeless(self.deadline)):
            raise self._end(outage) from self._failure
        self._back_off()

    def closed(self, failure: Exception) -> StateStoreError:
        """The error to raise where the client itself was closed meanwhile, which says nothing of the store."""
        if self._sent or (isinstance(failure, ConnectionLost) and failure.sent and self.method in WRITES):
            return Uncertain(f"{self._store.where}: the client was closed; {self.method} may have been applied")
        return Unavailable(f"{self._store.where}: the client was closed")

    def _leaves_session(self, error: StateStoreError) -> bool:
        """Leave the session if the error says that another client is in it. Return whether to repeat in a new one.

        A number that is another write's was never ours, so no copy of this write was or will be applied. A number that
        the server takes for given up (`uncertain`) may have been, but only if there was an earlier copy.
        """
        if self._session is None or not isinstance(error, NumberReused | Uncertain):
            return False
        self._store.leave_session(self._session)
        if self._sent and isinstance(error, Uncertain):
            return False
        self._sent, self._session = False, None
        return True

    def _is_repeatable(self, failure: Exception) -> bool:
        if isinstance(failure, StateStoreError):
            return failure.retry
        if not isinstance(failure, ConnectionLost | TimeoutError):
            return False  # a fault of ours: to a mail server it must be a store that is away, as any other
        return not self._sent or self._session is not None or self.method in HARMLESS_TWICE

    def _back_off(self) -> None:
        """A connection that a restart has broken deserves a second attempt at once; then the pauses grow."""
        self._attempts = min(self._attempts + 1, MOST_ATTEMPTS)
        pause = min(FIRST_PAUSE * 2 ** (self._attempts - 2), LONGEST_PAUSE) if self._attempts > 1 else 0.0
        self._not_before = time.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311  # guards nothing

    def _end(self, outage: Outage | None) -> StateStoreError:
        """The error to raise when the store did not do it, for whatever reason."""
        failure = self._failure
        text = f"{self._store.where}: {getattr(failure, 'detail', failure)}"
        if self.deadline.passed:
            text += f"; gave up after {self.deadline.seconds:g} s"
        refusal = failure if isinstance(failure, StateStoreError) and _says_more(failure) else None
        if refusal is not None and outage is None:
            self._store.refused(refusal.wire_code, text)
        else:
            self._store.gone(text, outage, writing=self.method in WRITES)
        if self._sent:
            return Uncertain(f"{text}; {self.method} may have been applied")
        return Unavailable(text) if refusal is None else type(refusal)(text)


def _is_of_the_store(failure: Exception) -> bool:
    """Whether it was asked in vain, or is not to be asked by us; else the fault lies with this call or client."""
    return isinstance(failure, ConnectionLost | StateStoreError) and not isinstance(failure, Uncertain | TooLong)


def _says_more(error: StateStoreError) -> bool:
    """More than that the store is away: the caller gets it as it is. So one that we do not know (it has no code)."""
    return isinstance(error, REFUSALS) or not error.wire_code
