"""One call after each attempt: tried again, or ended with what the caller gets; on a clock that the test turns."""

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from statestore import (
    BadRequest,
    Forbidden,
    Full,
    Internal,
    Limits,
    NumberReused,
    ShuttingDown,
    StateStoreError,
    TooLong,
    Unauthorized,
    Unavailable,
    Uncertain,
    UnknownMethod,
)
from statestore.address import parse_addresses
from statestore.calls import FIRST_PATIENCE, LAST_ATTEMPT, STEP, WRITES, Call
from statestore.deadline import Deadline
from statestore.errors import from_wire
from statestore.protocol import ConnectionLost, NotSent, Response, Welcome, WrongServer
from statestore.store import CALM, Store
from tests.client.timing import Clock

KEY = ("m", "a", "A")
RESULTS = {"get": "A", "set_all": 1, "compare_and_set": [True, "A"]}
SESSIONS = frozenset({"sessions", "not_after"})
LOST, REFUSED = ConnectionLost("reset", sent=True), ConnectionLost("refused", sent=False)
UNSENT, LATE = NotSent("reset"), NotSent("no answer within 2 s")
NO_ROOM, READ_ONLY = Unavailable("no room"), Forbidden("needs the role write")


@pytest.fixture(autouse=True)
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda _, longest: longest)


@pytest.fixture
def store(clock: Clock) -> Store:
    assert clock.now
    store = Store("there:1")
    store.answered(writing=False)
    return store


def call(store: Store, method: str = "set", seconds: float = 10) -> Call:
    return Call(store, method, KEY, Deadline(seconds))


def welcome(
    session: int | None = 7, features: frozenset[str] = SESSIONS, error: StateStoreError | None = None
) -> Welcome:
    return Welcome("s1", 1, Limits(), session, features, 5000.0, time.monotonic(), error)


def wait(call: Call, clock: Clock) -> float:
    """How long it waits for its next attempt."""
    started = clock.now
    while pause := call.pause():
        assert pause <= STEP
        clock.now += pause
    return clock.now - started


# What is sent


def test_a_write_has_a_number_the_oldest_and_the_end_of_its_time(store: Store, clock: Clock) -> None:
    greeted = welcome()
    clock.now += 100
    first, second = call(store, seconds=3), call(store, "clear", seconds=4)
    assert first.parameters(greeted) == (*KEY, {"seq": 1, "oldest": 1, "not_after": 5103.0})
    assert second.parameters(greeted) == (*KEY, {"seq": 2, "oldest": 1, "not_after": 5104.0})


def test_a_write_keeps_its_number_in_all_attempts(store: Store) -> None:
    first, second = call(store), call(store, "compare_and_set")
    first.parameters(welcome())
    for oldest in (1, 1, 2):
        if oldest == 2:
            store.session.unanswered.pop(first)
        options = second.parameters(welcome())[-1]
        assert (options["seq"], options["oldest"]) == (2, oldest)
        second.failed(LOST)


@pytest.mark.parametrize("method", ["get", "get_many", "scan", "count", "info", "ping"])
def test_a_read_has_no_options(store: Store, method: str) -> None:
    assert call(store, method).parameters(welcome()) == KEY


def test_a_server_is_sent_what_it_knows(store: Store) -> None:
    assert call(store).parameters(welcome(None, frozenset())) == KEY
    assert set(call(store).parameters(welcome(None))[-1]) == {"not_after"}
    assert set(call(store).parameters(welcome(7, frozenset({"sessions"})))[-1]) == {"seq", "oldest"}


# Each combination of what is asked, the connection's greeting, and what becomes of the first attempt

GREETINGS: dict[str, Callable[[], Welcome]] = {
    "a session": welcome,
    "no sessions known": lambda: welcome(None, frozenset()),
    "may not write": lambda: welcome(None, error=READ_ONLY),
}
# What becomes of an attempt, and what the caller gets; None: another attempt is made. The last of them is the caller's
# only if the call cannot be repeated: if it is a write without a number.
ATTEMPTS: dict[str, tuple[Exception, type[StateStoreError] | None]] = {
    "no connection": (REFUSED, None),
    "broken before it was sent": (UNSENT, None),
    "too late to be sent": (LATE, None),
    "refused for now": (NO_ROOM, None),
    "refused for good": (Full("no"), Full),
    "no answer": (LOST, Uncertain),
}


def attempt(asking: Call, greeting: Welcome, outcome: Exception) -> None:
    """Raises what ends the call."""
    asking.parameters(greeting)
    if isinstance(outcome, StateStoreError):
        assert not asking.answered(Response(1, outcome, None))
    else:
        asking.failed(outcome)


@pytest.mark.parametrize("outcome", ATTEMPTS)
@pytest.mark.parametrize("greeting", GREETINGS)
@pytest.mark.parametrize("method", [*sorted(WRITES), "get"])
def test_what_becomes_of_a_call_after_its_first_attempt(
    store: Store, clock: Clock, method: str, greeting: str, outcome: str
) -> None:
    asking, greeted = call(store, method), GREETINGS[greeting]()
    happens, error = ATTEMPTS[outcome]
    is_repeatable = method == "get" or greeting == "a session"
    if error is Uncertain and is_repeatable:
        error = None
    if error is not None:
        with pytest.raises(error):
            attempt(asking, greeted, happens)
        return
    attempt(asking, greeted, happens)
    is_in_doubt = happens is LOST and method in WRITES
    options: Any = asking.parameters(greeted)[-1]
    if method in WRITES and greeting == "a session":
        assert options["seq"] == 1, "it keeps its number"
    clock.now += 10
    with pytest.raises(Uncertain if is_in_doubt else Unavailable, match=r"gave up after 10 s"):
        asking.failed(REFUSED)


@pytest.mark.parametrize("outcome", [outcome for outcome, (_, error) in ATTEMPTS.items() if error is not Full])
@pytest.mark.parametrize("then", ["another session", "no session now", "no session for it", "no sessions known"])
@pytest.mark.parametrize("method", sorted(WRITES))
def test_what_becomes_of_a_write_whose_session_is_gone_at_its_second_attempt(
    store: Store, method: str, then: str, outcome: str
) -> None:
    asking, happens = call(store, method), ATTEMPTS[outcome][0]
    attempt(asking, welcome(7), happens)
    greeted = {
        "another session": lambda: welcome(8),
        "no session now": lambda: welcome(None, error=NO_ROOM),
        "no session for it": lambda: welcome(None, error=READ_ONLY),
        "no sessions known": lambda: welcome(None, frozenset()),
    }[then]()
    if then == "no session now":
        refusal = asking.refusal(greeted)
        assert refusal is not None
        assert not asking.answered(refusal), "it waits for a session, and whether that is its own"
        attempt(asking, welcome(7), UNSENT)
    elif happens is LOST:
        with pytest.raises(Uncertain) as caught:
            asking.parameters(greeted)
        with pytest.raises(Uncertain, match=rf"the session in which it was sent is lost; {method} may have been"):
            asking.failed(caught.value)
    else:
        options: dict[str, Any] = dict(*asking.parameters(greeted)[len(KEY) :])
        assert options.get("seq") == (2 if then == "another session" else None)


@pytest.mark.parametrize("method", [*sorted(WRITES), "get"])
def test_only_a_write_waits_for_the_session_that_a_server_cannot_give_now(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    asking, greeted = call(store, method), welcome(None, error=NO_ROOM)
    refusal = asking.refusal(greeted)
    if method == "get":
        assert refusal is None
        return
    assert refusal is not None
    deadline = clock.now + 10

    def attempts() -> None:
        while not asking.answered(refusal):
            wait(asking, clock)

    with pytest.raises(Unavailable, match=r"^there:1: no room; gave up after 10 s$"):
        attempts()
    assert clock.now == pytest.approx(deadline)
    assert store.outage is None, "that a store accepts no writes is no outage"
    assert caplog.messages == ["state store unavailable: there:1: no room; gave up after 10 s"]


def test_a_session_is_asked_for_about_once_a_second_while_there_is_none(store: Store, clock: Clock) -> None:
    lacking = welcome(None, error=NO_ROOM)
    store.accepts(parse_addresses("there:1")[0], lacking, 0)
    asked = 0
    for _ in range(1000):  # 10 s
        asked += sum(call(store).needs_another(lacking) for _ in range(10))
        clock.now += 0.01
    assert 7 <= asked <= 10
    assert not call(store, "get").needs_another(lacking)


def test_once_there_is_a_session_all_connections_without_one_are_replaced(store: Store) -> None:
    lacking, there = welcome(None, error=NO_ROOM), parse_addresses("there:1")[0]
    store.accepts(there, lacking, 0)
    store.accepts(there, welcome(7), 0)
    assert all(call(store).needs_another(lacking) for _ in range(8))
    assert not call(store).needs_another(welcome(7))
    assert not call(store).needs_another(welcome(None, frozenset()))


def test_a_client_that_was_not_allowed_to_write_looks_about_once_a_second_whether_it_is_now(
    store: Store, clock: Clock
) -> None:
    greeted = welcome(None, error=READ_ONLY)
    store.accepts(parse_addresses("there:1")[0], greeted, 0)
    assert not any(call(store).needs_another(greeted) for _ in range(8))
    clock.now += 2
    assert [call(store).needs_another(greeted) for _ in range(3)] == [True, False, False]
    assert call(store).refusal(greeted) is None


# A failed attempt


@pytest.mark.parametrize("method", [*sorted(WRITES), "get"])
def test_a_lost_connection_is_no_reason_to_give_up(store: Store, method: str) -> None:
    asking = call(store, method)
    for _ in range(20):
        asking.parameters(welcome())
        asking.failed(LOST)
    assert asking.answered(Response(1, None, RESULTS.get(method)))


@pytest.mark.parametrize("method", sorted(WRITES))
def test_without_a_session_a_write_is_uncertain_once_it_was_sent(store: Store, method: str) -> None:
    asking = call(store, method)
    asking.parameters(welcome(None))
    asking.failed(REFUSED)
    asking.parameters(welcome(None))
    with pytest.raises(Uncertain, match=rf"^there:1: reset; {method} may have been applied$"):
        asking.failed(LOST)
    with pytest.raises(Uncertain):
        asking.parameters(welcome(7))


def test_what_was_sent_in_a_session_that_is_lost_is_uncertain(store: Store) -> None:
    asking = call(store)
    asking.parameters(welcome(7))
    asking.failed(LOST)
    with pytest.raises(Uncertain, match="session") as caught:
        asking.parameters(welcome(8))
    with pytest.raises(Uncertain, match=r"the session in which it was sent is lost; set may have been applied"):
        asking.failed(caught.value)


def test_what_was_not_sent_goes_into_the_new_session(store: Store) -> None:
    asking = call(store)
    asking.parameters(welcome(7))
    asking.failed(REFUSED)
    assert asking.parameters(welcome(8))[-1] == {"seq": 2, "oldest": 2, "not_after": 5010.0}
    assert list(store.session.unanswered.values()) == [2]


def test_what_was_sent_with_a_number_is_not_sent_without(store: Store) -> None:
    asking = call(store)
    asking.parameters(welcome(7))
    asking.failed(LOST)
    with pytest.raises(Uncertain):
        asking.parameters(welcome(None))


def test_a_write_that_was_sent_is_uncertain_when_the_time_is_over(store: Store, clock: Clock) -> None:
    asking, reading = call(store), call(store, "get")
    asking.parameters(welcome())
    asking.failed(LOST)
    reading.failed(LOST)
    clock.now += 10
    with pytest.raises(Uncertain, match=r"^there:1: refused; gave up after 10 s; set may have been applied$"):
        asking.failed(REFUSED)
    with pytest.raises(Unavailable, match=r"^there:1: refused; gave up after 10 s$"):
        reading.failed(REFUSED)


def test_another_store_ends_the_call_at_once(store: Store) -> None:
    with pytest.raises(Unavailable, match=r"^there:1: it is another$"):
        call(store).failed(WrongServer("it is another"))
    sent = call(store)
    sent.parameters(welcome())
    sent.failed(LOST)
    with pytest.raises(Uncertain):
        sent.failed(WrongServer("it is another"))


@pytest.mark.parametrize("refusal", [Unauthorized, Full])
def test_whoever_is_refused_is_told_so(store: Store, refusal: type[StateStoreError]) -> None:
    with pytest.raises(refusal, match=r"^there:1: no$"):
        call(store).failed(refusal("no"))


def test_what_no_message_can_hold_is_refused_as_it_is(store: Store) -> None:
    error = TooLong("message is too long")
    with pytest.raises(TooLong) as caught:
        call(store).failed(error)
    assert caught.value is error
    assert store.outage is None


class Alarm(Exception):
    """What the handler of a signal raises to end a call."""


# What may end an attempt after it was sent, and whether the write is repeated if it has a number.
ENDINGS = [(Alarm("x"), False), (MemoryError("x"), False), (TimeoutError("x"), True), (Unavailable("x"), True)]


@pytest.mark.parametrize(("ending", "is_repeated"), ENDINGS)
@pytest.mark.parametrize("session", [None, 7])
@pytest.mark.parametrize("method", [*sorted(WRITES), "get"])
def test_a_write_that_may_have_been_sent_is_in_doubt_whatever_ended_its_attempt(
    store: Store, clock: Clock, method: str, session: int | None, ending: Exception, is_repeated: bool
) -> None:
    asking = call(store, method)
    asking.parameters(welcome(session))
    if is_repeated and (session is not None or method == "get"):
        asking.failed(ending)
        asking.parameters(welcome(session))
        clock.now += 10
        ending = UNSENT
    with pytest.raises(Unavailable if method == "get" else Uncertain):
        asking.failed(ending)


def test_what_ends_an_attempt_before_it_was_sent_leaves_no_doubt(store: Store) -> None:
    with pytest.raises(Unavailable):
        call(store).failed(Alarm("while it connects"))
    again = call(store)
    again.parameters(welcome())
    assert not again.answered(Response(1, NO_ROOM, None))
    with pytest.raises(Unavailable):
        again.failed(Alarm("after an answer"))


def test_a_client_that_is_closed_after_a_write_was_sent_leaves_it_in_doubt(store: Store) -> None:
    asking = call(store)
    asking.parameters(welcome())
    assert type(asking.closed(Alarm("x"))) is Uncertain


def test_a_fault_of_ours_is_a_store_that_is_away(store: Store) -> None:
    with pytest.raises(Unavailable, match="division"):
        call(store).failed(ZeroDivisionError("division by zero"))


@pytest.mark.parametrize(
    ("method", "sent", "error"), [("set", True, Uncertain), ("set", False, Unavailable), ("get", True, Unavailable)]
)
def test_a_client_that_was_closed_says_nothing_of_the_store(
    store: Store, caplog: pytest.LogCaptureFixture, method: str, sent: bool, error: type[StateStoreError]
) -> None:
    closed = call(store, method).closed(ConnectionLost("it was closed", sent=sent))
    assert type(closed) is error
    assert "the client was closed" in closed.detail
    assert caplog.messages == []


def test_that_all_connections_are_busy_says_nothing_of_the_store(store: Store, clock: Clock) -> None:
    asking = call(store)
    asking.failed(TimeoutError("all 8 connections were busy"))
    clock.now += 10
    with pytest.raises(Unavailable, match="busy"):
        asking.failed(TimeoutError("all 8 connections were busy"))
    assert store.outage is None


def test_what_was_wrong_before_says_more_than_that_the_time_is_over(store: Store, clock: Clock) -> None:
    asking = call(store)
    asking.failed(REFUSED)
    clock.now += 10
    with pytest.raises(Unavailable, match="refused"):
        asking.failed(TimeoutError("no answer within 10 s"))


# An answer


def test_an_error_that_passes_is_asked_again(store: Store) -> None:
    asking = call(store)
    assert not asking.answered(Response(1, ShuttingDown("soon"), None))
    assert asking.answered(Response(1, None, None))


@pytest.mark.parametrize("session", [None, 7])
def test_an_error_that_stays_is_the_callers(store: Store, session: int | None) -> None:
    asking, error = call(store), BadRequest("no")
    asking.parameters(welcome(session))
    with pytest.raises(BadRequest) as caught:
        asking.answered(Response(1, error, None))
    assert caught.value is error


@pytest.mark.parametrize("refusal", [Full, Forbidden, TooLong])
def test_that_a_repeated_write_is_refused_says_nothing_of_its_first_attempt(
    store: Store, refusal: type[StateStoreError]
) -> None:
    """That may still be under way: a server remembers the numbers of what it applied, not of what it refused."""
    asking = call(store)
    asking.parameters(welcome())
    asking.failed(LOST)
    with pytest.raises(Uncertain, match=r"^there:1: no; set may have been applied$"):
        asking.answered(Response(1, refusal("no"), None))


@pytest.mark.parametrize("refusal", [Full, Forbidden, Unauthorized, Internal, Uncertain])
def test_that_some_is_refused_while_other_is_done_is_one_line_and_another_when_it_is_over(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture, refusal: type[StateStoreError]
) -> None:
    for _ in range(3):
        with pytest.raises(refusal, match=r"^there:1: no$"):
            call(store).answered(Response(1, refusal("no"), None))
        clock.now += CALM
        assert call(store, "get").answered(Response(1, None, "A"))
        assert call(store).answered(Response(1, None, None))
    assert caplog.messages == ["state store refuses: there:1: no"]
    clock.now += 1
    for _ in range(3):
        assert call(store).answered(Response(1, None, None))
    assert caplog.messages[1:] == ["state store has refused nothing for 60 s: there:1"]


REUSED = NumberReused("1 is the number of another write")


@pytest.mark.parametrize("was_lost", [False, True])
def test_a_write_with_the_number_of_another_is_repeated_in_a_new_session(store: Store, was_lost: bool) -> None:
    """Also if an earlier copy had no answer: no copy can have been applied under a number that was never its own."""
    asking = call(store)
    store.session.joins(0, 7)
    asking.parameters(welcome(7))
    if was_lost:
        asking.failed(LOST)
        asking.parameters(welcome(7))
    assert not asking.answered(Response(1, REUSED, None))
    assert store.session.id == 0
    assert asking.needs_another(welcome(7))
    store.session.joins(0, 8)
    assert not asking.needs_another(welcome(8))
    assert asking.parameters(welcome(8))[-1]["seq"] == 2
    assert asking.answered(Response(2, None, None))


def test_a_write_that_the_server_takes_for_given_up_is_repeated_unless_it_was_sent_before(store: Store) -> None:
    passed = Response(1, Uncertain("before number 9"), None)
    once, twice = call(store), call(store)
    store.session.joins(0, 7)
    for each in (once, twice):
        each.parameters(welcome(7))
    assert not once.answered(passed)
    assert store.session.id == 0
    twice.failed(LOST)
    twice.parameters(welcome(7))
    with pytest.raises(Uncertain, match=r"before number 9; set may have been applied$"):
        twice.answered(passed)


def test_a_session_is_left_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A call that is refused in it after that finds the new one."""
    first, second = call(store), call(store)
    store.session.joins(0, 7)
    for each in (first, second):
        each.parameters(welcome(7))
    assert not first.answered(Response(1, REUSED, None))
    store.session.joins(0, 8)
    assert not second.answered(Response(1, REUSED, None))
    assert store.session.id == 8
    assert len(caplog.messages) == 1
    assert "another client writes in the session of this one" in caplog.messages[0]


def test_no_other_client_is_blamed_for_a_session_that_has_expired(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    asking = call(store)
    store.session.joins(0, 7)
    asking.parameters(welcome(7))
    assert not asking.answered(Response(1, Uncertain("the session has expired"), None))
    assert store.session.id == 0
    assert caplog.messages == ["there:1: the session has expired; this client goes on in a new session"]


def test_a_number_that_is_always_refused_ends_at_the_deadline(store: Store, clock: Clock) -> None:
    asking, sessions = call(store, seconds=10), 0

    def ask_again_and_again() -> None:
        nonlocal sessions
        while True:
            wait(asking, clock)
            sessions += 1
            store.session.joins(0, sessions)
            asking.parameters(welcome(sessions))
            assert not asking.answered(Response(1, REUSED, None))

    with pytest.raises(Unavailable, match=r"another write; gave up after 10 s$"):
        ask_again_and_again()
    assert 5 < sessions < 30


def test_a_read_goes_by_any_connection(store: Store) -> None:
    store.session.joins(0, 7)
    store.session.leave(7)
    assert not call(store, "get").needs_another(welcome(7))
    assert call(store, "set").needs_another(welcome(7))
    assert not call(store, "set").needs_another(welcome(None))


def test_each_reason_of_a_refusal_is_in_the_log(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    for refusal in (Full("no room"), Forbidden("not you"), Full("no room")):
        with pytest.raises(type(refusal)):
            call(store).answered(Response(1, refusal, None))
    assert caplog.messages == ["state store refuses: there:1: no room", "state store refuses: there:1: not you"]


@pytest.mark.parametrize("method", ["get", "set"])
@pytest.mark.parametrize(
    "ended_by",
    [lambda asking, error: asking.failed(error), lambda asking, error: asking.answered(Response(1, error, None))],
    ids=["hello", "request"],
)
def test_an_error_that_we_do_not_know_is_no_reason_to_ask_again(
    store: Store, caplog: pytest.LogCaptureFixture, method: str, ended_by: Callable[[Call, StateStoreError], Any]
) -> None:
    """As any refusal: it is said as it is, and not that the store is away."""
    asking, error = call(store, method), from_wire("out_of_cheese: again")
    with pytest.raises(StateStoreError, match=r"^there:1: out_of_cheese: again$") as caught:
        ended_by(asking, error)
    assert type(caught.value) is StateStoreError
    assert not caught.value.retry
    assert len(caplog.messages) == 1


def test_an_error_that_we_do_not_know_says_nothing_of_an_earlier_attempt(store: Store) -> None:
    asking = call(store)
    asking.parameters(welcome())
    asking.failed(LOST)
    with pytest.raises(Uncertain, match=r"out_of_cheese: again; set may have been applied$"):
        asking.answered(Response(1, from_wire("out_of_cheese: again"), None))


@pytest.mark.parametrize("refusal", [BadRequest, TooLong, UnknownMethod])
def test_a_fault_of_the_caller_says_nothing_of_the_store(
    store: Store, caplog: pytest.LogCaptureFixture, refusal: type[StateStoreError]
) -> None:
    with pytest.raises(refusal):
        call(store).answered(Response(1, refusal("no"), None))
    assert caplog.messages == []


def test_whoever_refuses_answers(store: Store, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    asking = call(store)
    asking.failed(REFUSED)
    clock.now += 10
    with pytest.raises(Unavailable):
        asking.failed(REFUSED)
    with pytest.raises(Full):
        call(store).answered(Response(1, Full("no room"), None))
    assert store.outage is None
    assert caplog.messages[1:] == ["state store is back: there:1", "state store refuses: there:1: no room"]


@pytest.mark.parametrize(("method", "error"), [("get", Unavailable), ("set_all", Uncertain)])
def test_an_answer_of_another_form_is_none(store: Store, method: str, error: type[StateStoreError]) -> None:
    with pytest.raises(error, match=rf"^there:1: the answer to {method} has another form than ours"):
        call(store, method).answered(Response(1, None, None))


def test_what_is_refused_until_the_time_is_over_is_unavailable(store: Store, clock: Clock) -> None:
    asking = call(store)
    clock.now += 10
    with pytest.raises(Unavailable, match=r"^there:1: the disk is full; gave up after 10 s$"):
        asking.answered(Response(1, Unavailable("the disk is full"), None))
    assert store.outage is None


def test_what_was_sent_and_had_no_answer_is_uncertain_though_all_later_attempts_are_refused(
    store: Store, clock: Clock
) -> None:
    asking = call(store)
    asking.parameters(welcome())
    asking.failed(LOST)
    for _ in range(5):
        asking.parameters(welcome())
        assert not asking.answered(Response(1, Unavailable("the disk is full"), None))
    clock.now += 10
    with pytest.raises(Uncertain, match="the disk is full; gave up after 10 s; set may have been applied"):
        asking.answered(Response(1, Unavailable("the disk is full"), None))


def test_no_attempt_is_made_after_the_deadline(store: Store, clock: Clock) -> None:
    asking = call(store)
    assert not asking.answered(Response(1, Unavailable("the disk is full"), None))
    clock.now += 10
    with pytest.raises(Unavailable, match=r"^there:1: the disk is full; gave up after 10 s$"):
        asking.pause()
    assert store.outage is None


# Pauses


def test_a_connection_that_broke_before_a_call_was_sent_is_replaced_at_once(store: Store, clock: Clock) -> None:
    asking = call(store)
    asking.failed(UNSENT)
    assert store.outage is None
    assert wait(asking, clock) == 0


def test_a_lost_connection_is_replaced_at_once_and_then_the_pauses_grow(store: Store, clock: Clock) -> None:
    asking = call(store, "get")
    waits = []
    for _ in range(9):
        asking.failed(LOST)
        waits.append(wait(asking, clock))
    assert waits == pytest.approx([0, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1, 1])


def test_the_longest_pause_stays_after_however_many_attempts(store: Store, clock: Clock) -> None:
    asking = call(store, "get", seconds=1e6)
    for _ in range(1100):
        asking.failed(LOST)
    assert wait(asking, clock) == pytest.approx(1)
    assert asking.patience() is asking.deadline


def test_of_all_calls_one_at_a_time_connects_while_the_store_is_away(store: Store, clock: Clock) -> None:
    first, second = call(store), call(store)
    first.failed(REFUSED)
    assert wait(first, clock) == pytest.approx(0.5)
    first.check_turn()
    assert second.pause() > 0
    with pytest.raises(ConnectionLost, match="refused") as caught:
        second.check_turn()
    assert not caught.value.sent
    assert first.answered(Response(1, None, None))
    assert second.pause() == 0
    second.check_turn()


def test_a_last_attempt_is_made_just_before_the_end(store: Store, clock: Clock) -> None:
    asking, other = call(store, seconds=1), call(store, seconds=10)
    other.failed(REFUSED)
    clock.now += 0.5
    assert other.pause() == 0  # and takes long
    assert wait(asking, clock) == pytest.approx(0.5 - LAST_ATTEMPT)
    asking.check_turn()
    asking.failed(REFUSED)
    last = clock.now
    with pytest.raises(Unavailable, match=r"refused; gave up after 1 s"):
        wait(asking, clock)
    assert clock.now - last == pytest.approx(LAST_ATTEMPT)


def test_a_call_fails_at_once_where_the_store_has_been_away_for_longer_than_it_may_take(
    store: Store, clock: Clock
) -> None:
    call(store, seconds=60).failed(REFUSED)
    clock.now += 11
    prober = call(store)
    assert prober.pause() == 0
    with pytest.raises(Unavailable, match=r"^there:1: refused$"):
        call(store).pause()
    assert call(store, seconds=12).pause() > 0
    with pytest.raises(Unavailable):
        prober.failed(REFUSED)
    with pytest.raises(Unavailable):
        call(store).pause()
    clock.now += 1.4
    prober = call(store)
    assert prober.pause() == 0
    assert prober.answered(Response(1, None, None))
    assert call(store).pause() == 0


@pytest.mark.parametrize(
    "end",
    [
        lambda prober: prober.answered(Response(1, BadRequest("no"), None)),
        lambda prober: prober.answered(Response(1, Full("no room"), None)),
        lambda prober: prober.failed(TooLong("message")),
        lambda prober: prober.failed(Uncertain("the session is lost")),
    ],
)
def test_whatever_its_end_whoever_had_the_turn_does_not_keep_it(store: Store, clock: Clock, end: Any) -> None:
    first = call(store, seconds=60)
    first.failed(REFUSED)
    clock.now += 1
    prober = call(store)
    assert prober.pause() == 0
    assert call(store).pause() > 0
    with pytest.raises(StateStoreError):
        end(prober)
    assert call(store).pause() == 0


def test_a_store_that_cannot_answer_now_has_the_next_turn_later(store: Store, clock: Clock) -> None:
    call(store, seconds=60).failed(REFUSED)
    clock.now += 1
    prober = call(store)
    assert prober.pause() == 0
    assert not prober.answered(Response(1, ShuttingDown("soon"), None))
    assert prober.pause() > 0
    clock.now += 1.4
    assert call(store).pause() == 0


def test_what_refuses_us_is_said_as_it_is_while_failing_at_once(store: Store, clock: Clock) -> None:
    with pytest.raises(Unauthorized):
        call(store).failed(Unauthorized("the token is wrong"))
    clock.now += 11
    assert call(store).pause() == 0
    with pytest.raises(Unauthorized, match=r"^there:1: the token is wrong$"):
        call(store).pause()


def test_a_silent_connection_is_given_up_before_the_deadline_where_that_does_no_harm(store: Store) -> None:
    asking = call(store, "get", seconds=100)
    assert asking.patience().seconds == FIRST_PATIENCE
    asking.failed(LOST)
    assert asking.patience().seconds == 2 * FIRST_PATIENCE
    writing: dict[int | None, Any] = {session: call(store, seconds=100) for session in (None, 7)}
    for session, asking in writing.items():
        asking.parameters(welcome(session))
    assert writing[7].patience().seconds == FIRST_PATIENCE
    assert writing[None].patience().seconds == 100
