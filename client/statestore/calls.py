"""One call, from its first attempt to its end: what to send, what a failed attempt means, when to try again. No I/O."""

import random
import time
from typing import Any

from statestore.deadline import Deadline
from statestore.errors import Forbidden, Full, StateStoreError, TooLong, Unauthorized, Unavailable, Uncertain
from statestore.protocol import ConnectionLost, Response, Welcome
from statestore.store import Store

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0  # seconds between attempts; each is drawn from half of it to all of it
WRITES = frozenset({"set", "set_all", "set_many", "compare_and_set", "clear"})
# Doing these twice comes to the same, unless somebody else wrote in between: what is left to do without a session.
HARMLESS_TWICE = WRITES - {"compare_and_set"}


class Call:
    """`method(*params)`, asked of the store until there is an answer or the deadline passes.

    A client repeats: wait while `pause()` says so, take a connection, send what `parameters()` gives for it, and
    hand over what came of it to `answered` or `failed`. Whatever ends the call, it removes the call from
    `store.session.unanswered` afterwards.
    """

    __slots__ = (
        "_failure",
        "_not_before",
        "_number",
        "_pause",
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
        self._sent = False  # whether it is a write that may have reached the server
        self._session: int | None = None  # in which it was sent last
        self._number = 0
        self._failure: Exception = TimeoutError(f"no answer within {deadline.seconds:g} s")
        self._pause = 0.0  # a connection that a restart has broken deserves a second attempt at once
        self._not_before = 0.0

    def pause(self) -> float:
        """Seconds to wait, and then to ask again; 0: make an attempt now."""
        return max(0.0, self._not_before - time.monotonic()) if self._not_before else 0.0

    def parameters(self, welcome: Welcome) -> tuple[Any, ...]:
        """What to send on a connection that was greeted so.

        Raises Uncertain where it was sent before, in a session that is no more, and Unavailable where too many writes
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
            options["oldest"] = self._store.session.oldest()
        if "not_after" in welcome.features:
            options["not_after"] = welcome.server_time(self.deadline.at)
        return (*self.params, options) if options else self.params

    def must_not_be_lost(self, welcome: Welcome) -> bool:
        """Whether it cannot be repeated once it was sent on such a connection, so that it pays to look before."""
        return self.method in WRITES and self.method not in HARMLESS_TWICE and welcome.session is None

    def answered(self, response: Response) -> bool:
        """Whether `response.result` is what the caller gets; False: try again. Raises the error it gets instead."""
        if response.error is None:
            self._store.back()
            return True
        self._failure = response.error
        if response.error.retry and not self.deadline.passed:
            self._back_off()
            return False
        if response.error.retry or (self._sent and self._session is None):
            raise self._end() from response.error
        raise response.error

    def failed(self, failure: Exception) -> None:
        """An attempt had no answer. Returns where another is to be made; else raises what the caller gets."""
        if isinstance(failure, TooLong):
            raise failure
        if not isinstance(failure, TimeoutError) or isinstance(self._failure, TimeoutError):
            self._failure = failure  # else what was wrong before says more
        if isinstance(failure, ConnectionLost) and failure.sent and self.method in WRITES:
            self._sent = True
        if self.deadline.passed or not self._is_repeatable(failure):
            raise self._end() from self._failure
        self._back_off()

    def _is_repeatable(self, failure: Exception) -> bool:
        if isinstance(failure, StateStoreError):
            return failure.retry
        if not isinstance(failure, ConnectionLost | TimeoutError):
            return False  # a fault of ours: to a mail server it must be a store that is away, as any other
        return not self._sent or self._session is not None or self.method in HARMLESS_TWICE

    def _back_off(self) -> None:
        pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311  # spreads clients, guards nothing
        self._not_before = time.monotonic() + self.deadline.shorten(pause)
        self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)

    def _end(self) -> StateStoreError:
        """The error to raise when the store could not be asked."""
        failure = self._failure
        text = f"{self._store.where}: {getattr(failure, 'detail', failure)}"
        if self.deadline.passed:
            text += f"; gave up after {self.deadline.seconds:g} s"
        self._store.gone(text)
        if self._sent:
            return Uncertain(f"{text}; {self.method} may have been applied")
        return failure if isinstance(failure, Unauthorized | Forbidden | Full) else Unavailable(text)
