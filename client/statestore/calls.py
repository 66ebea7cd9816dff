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
from statestore.forks import detect_fork
from statestore.outage import Outage
from statestore.protocol import ConnectionLost, NotSent, Response, Welcome, WrongServer
from statestore.results import fits
from statestore.store import Store

# Seconds from an answer that it cannot be done now to the next attempt; each is drawn from half of it to all of it.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
FIRST_PATIENCE = 2.0  # seconds that a connection may be silent; twice as many in each further attempt
STEP = 0.05  # seconds after which a waiting call looks whether another has found the store
MOST_ATTEMPTS = 20  # that are counted: what doubles with each is at its longest by then
LAST_ATTEMPT = 0.05  # seconds before the deadline in which there is time for one more attempt

WRITES = frozenset({"set", "set_all", "set_many", "compare_and_set", "clear"})

FAULTS_OF_THE_CALLER = (BadRequest, UnknownMethod, TooLong)
REFUSALS = (Unauthorized, Forbidden, Full, Internal, Uncertain)


class Call:
    """`method(*params)`, asked of the store until there is an answer or the deadline passes.

    A client repeats these steps:

    1. wait as long as `pause()` says, until it says 0;
    2. take a connection, or make one after `check_turn()`; replace the one that is there if `needs_another()`, and keep
       it if that fails and the call `goes_on_by` it;
    3. take the `refusal()` for the response if there is one; else send `method` with `parameters()`, and wait for the
       response until `patience()` is over;
    4. hand the response to `answered`, or the exception that came of the attempt to `failed`.

    A write is in doubt from the first attempt that may have been sent and had no answer until the end of the call. An
    attempt may have been sent from `parameters()` on, unless its failure says that it was not (`NotSent`). Then it is
    sent again only under the number that it was sent with, in the same session; else it is `Uncertain`. An attempt that
    the server refused was not executed (but for the error `uncertain`), and leaves no doubt.

    Whatever ends the call, the client removes it from `store.session.unanswered` afterwards, and says so to
    `store.outage` (`left_by`), where there is one.
    """

    __slots__ = (
        "_attempts",
        "_failure",
        "_is_in_doubt",
        "_is_last",
        "_may_be_sent",
        "_not_before",
        "_session",
        "_store",
        "deadline",
        "method",
        "params",
        "writes",
    )

    def __init__(self, store: Store, method: str, params: tuple[Any, ...], deadline: Deadline) -> None:
        self._store = store
        self.method = method
        self.params = params
        self.writes = method in WRITES
        self.deadline = deadline
        self._attempts = 0  # that failed
        self._failure: Exception | None = None
        self._not_before = 0.0
        self._is_last = False
        self._is_in_doubt = False
        self._may_be_sent = False  # this attempt
        self._session: int | None = None  # in which it was sent last

    # Step 1

    def pause(self) -> float:
        """Return the seconds to wait before the next attempt; 0: make it now.

        Raises Unavailable, or what refused the attempts, if the deadline has passed, or if the store has been away for
        longer than the call may take; Uncertain for a write that is in doubt.
        """
        detect_fork()
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
        if left <= 0:
            raise self._end(outage) from self._failure
        if wait <= 0:
            return 0.0
        if left <= LAST_ATTEMPT:
            if self._is_last:
                return left
            self._is_last = outage is None or outage.allows_last(self)
            return 0.0 if self._is_last else left
        return min(wait, STEP, left - LAST_ATTEMPT)

    # Step 2

    def check_turn(self) -> None:
        """Before making a connection: of an outage that began meanwhile one call at a time finds out the end.

        Raises ConnectionLost where it is another's turn.
        """
        outage = self._store.outage
        if outage is not None and not self._is_last and not outage.is_turn_of(self):
            raise ConnectionLost(getattr(outage.failure, "detail", str(outage.failure)), sent=False)

    def needs_another(self, welcome: Welcome) -> bool:
        """Return whether to replace a connection that was greeted so: a write goes only by one in our session.

        If it has none, the next may be given one. All calls of a client together ask for one about once a second, until
        there is one. A client that was not allowed to write may be by now.
        """
        session = self._store.session
        if not self.writes:
            return False
        if welcome.session_error is None:
            return not session.is_current(welcome.session)
        return not session.is_refused or self._store.renewal.is_due()

    def goes_on_by(self, welcome: Welcome, failure: Exception) -> bool:
        """Return whether to stay with a connection that was greeted so, because `failure` kept it from being replaced.

        That a connection without a session could not be replaced is no outage: reads go on by it, and a write takes its
        `refusal()`. The next replacement is due after a pause.
        """
        if self.refusal(welcome) is None or not _may_pass(failure):
            return False
        self._store.session.is_refused = True
        return True

    # Step 3

    def refusal(self, welcome: Welcome) -> Response | None:
        """Return what the server has answered to a write with its `hello`: there is no session now. None: send it.

        Without a number it could not be repeated if its answer was lost. If the server does not allow this client to
        write, it is sent as it is, and the server says so.
        """
        error = welcome.session_error
        return None if error is None or not (error.retry and self.writes) else Response(0, error, None)

    def parameters(self, welcome: Welcome) -> tuple[Any, ...]:
        """Return what to send on a connection that was greeted so.

        Raises Uncertain if it is in doubt and has no number in this session, and TimeoutError if too many writes wait
        for their answers: hand both to `failed`.
        """
        if not self.writes:
            return self.params
        self._may_be_sent = False
        options: dict[str, Any] = {}
        if self._is_in_doubt and (self._session is None or self._session != welcome.session):
            raise Uncertain("the session in which it was sent is lost")
        if self._session != welcome.session:
            self._session = welcome.session
            self._store.session.unanswered.pop(self, None)  # it gets a number of its own there
        if self._session is not None:
            number = self._store.session.number(self)
            options["seq"] = number
            options["oldest"] = self._store.session.oldest(number)
        if "not_after" in welcome.features:
            options["not_after"] = welcome.server_time(self.deadline.at)
        self._may_be_sent = True
        return (*self.params, options) if options else self.params

    def patience(self) -> Deadline:
        """Return until when to wait for a silent connection: not the whole deadline if the call can be sent again."""
        if self.writes and self._session is None:
            return self.deadline
        return self.deadline.within(FIRST_PATIENCE * 2**self._attempts)

    # Step 4

    def answered(self, response: Response) -> bool:
        """Return whether `response.result` is what the caller gets; False: try again. Raises the error it gets."""
        error, writing, self._may_be_sent = response.error, self.writes, False
        if error is None:
            if fits(self.method, self.params, response.result):
                self._store.answered(writing=writing)
                return True
            error = WrongServer(f"the answer to {self.method} has another form than ours")
            self._is_in_doubt = writing
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
            if not self._is_in_doubt:
                raise error
        else:
            self._store.reached()
        # If an earlier attempt had no answer, this is not its answer: that one may still be applied.
        raise self._end(None) from error

    def failed(self, failure: Exception) -> None:
        """An attempt had no answer. Return if another is to be made; else raise what the caller gets."""
        outage = self._store.outage
        if outage is not None and not _is_of_the_store(failure):
            outage.left_by(self)
        if isinstance(failure, TooLong):
            raise failure
        if self._failure is None or not isinstance(failure, TimeoutError | NotSent):
            self._failure = failure  # else what was wrong before says more
        was_sent = isinstance(failure, ConnectionLost) and failure.sent
        self._is_in_doubt = self._is_in_doubt or self._leaves_in_doubt(failure)
        self._may_be_sent = False
        again = self._is_repeatable(failure) and not self.deadline.passed
        if _is_of_the_store(failure) and not (outage is None and was_sent and again):
            outage = self._store.unreached(self, failure, is_slip=not isinstance(failure, ConnectionLost))
        if not again or (outage is not None and outage.is_hopeless(self.deadline)):
            raise self._end(outage) from self._failure
        self._back_off()

    def closed(self, failure: Exception) -> StateStoreError:
        """Return the error to raise if the client itself was closed meanwhile, which says nothing of the store."""
        if self._is_in_doubt or self._leaves_in_doubt(failure):
            return Uncertain(f"{self._store.where}: the client was closed; {self.method} may have been applied")
        return Unavailable(f"{self._store.where}: the client was closed")

    def _leaves_in_doubt(self, failure: Exception) -> bool:
        """Return whether an attempt that failed so may be applied.

        Not only a lost connection may end it before its answer: a signal handler may raise anything at any moment.
        """
        if isinstance(failure, ConnectionLost):
            return failure.sent and self.writes
        return self._may_be_sent and not isinstance(failure, TooLong)

    def _leaves_session(self, error: StateStoreError) -> bool:
        """Leave the session if the server did not accept the write's number. Return whether to repeat in a new one.

        A number that is another write's was never ours, so no copy of this write was or will be applied. A number that
        the server takes for given up (`uncertain`) may have been, but only if there was an earlier copy.
        """
        if self._session is None or not isinstance(error, NumberReused | Uncertain):
            return False
        self._store.leave_session(self._session, error)
        if self._is_in_doubt and isinstance(error, Uncertain):
            return False
        self._is_in_doubt, self._session = False, None
        return True

    def _is_repeatable(self, failure: Exception) -> bool:
        if isinstance(failure, StateStoreError):
            if not failure.retry:
                return False
        elif not isinstance(failure, ConnectionLost | TimeoutError):
            return False  # a fault of ours: to a mail server it must be a store that is away, as any other
        return not self._is_in_doubt or self._session is not None

    def _back_off(self) -> None:
        """A connection that a restart has broken deserves a second attempt at once; then the pauses grow."""
        self._attempts = min(self._attempts + 1, MOST_ATTEMPTS)
        pause = min(FIRST_PAUSE * 2 ** (self._attempts - 2), LONGEST_PAUSE) if self._attempts > 1 else 0.0
        self._not_before = time.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311  # guards nothing

    def _end(self, outage: Outage | None) -> StateStoreError:
        """Log that the call failed, if it is the first to fail for this reason, and return the error to raise."""
        failure = self._failure
        text = f"{self._store.where}: {getattr(failure, 'detail', failure)}"
        if self.deadline.passed:
            text += f"; gave up after {self.deadline.seconds:g} s"
        refusal = failure if isinstance(failure, StateStoreError) and _says_more(failure) else None
        if refusal is not None and outage is None:
            self._store.refused(refusal.wire_code, text)
        else:
            self._store.gone(text, outage, writing=self.writes)
        if self._is_in_doubt:
            return Uncertain(f"{text}; {self.method} may have been applied")
        return Unavailable(text) if refusal is None else type(refusal)(text)


def _is_of_the_store(failure: Exception) -> bool:
    """Whether it was asked in vain, or is not to be asked by us; else the fault lies with this call or client."""
    if isinstance(failure, NotSent | Uncertain | TooLong):
        return False
    return isinstance(failure, ConnectionLost | StateStoreError)


def _may_pass(failure: Exception) -> bool:
    """Whether a later attempt to connect may succeed."""
    return failure.retry if isinstance(failure, StateStoreError) else isinstance(failure, ConnectionLost)


def _says_more(error: StateStoreError) -> bool:
    """More than that the store is away: the caller gets it as it is. So one that we do not know (it has no code)."""
    return isinstance(error, REFUSALS) or not error.wire_code
