"""How a call of the simulation may end: which error it may raise, and when."""

from dataclasses import replace

import pytest

from statestore.errors import (
    BadRequest,
    Forbidden,
    Full,
    Internal,
    NumberReused,
    ShuttingDown,
    StateStoreError,
    TooLong,
    Unauthorized,
    Unavailable,
    Uncertain,
    UnknownMethod,
)
from statestore.protocol import ConnectionLost, WrongServer, WrongStore
from tests.simulation.endings import TOKEN_IS_KNOWN_AFTER, Circumstances, TokenRecord, objection_to

# A write that ended at its deadline, in the middle of troubles.
LAST_MOMENT = Circumstances(
    writes=True,
    took=1.0,
    deadline=1.0,
    is_calm=False,
    was_closed=False,
    was_revoked=False,
    was_hopeless=False,
    may_lack_room=False,
    is_session_safe=True,
)
EARLY = replace(LAST_MOMENT, took=0.9)


@pytest.mark.parametrize(
    "kind",
    [
        *(BadRequest, Forbidden, Full, Internal, NumberReused, ShuttingDown, StateStoreError, TooLong, UnknownMethod),
        *(WrongServer, WrongStore),
    ],
)
def test_errors_that_nothing_in_a_plan_explains_are_never_accepted(kind: type[StateStoreError]) -> None:
    most = replace(LAST_MOMENT, was_closed=True, was_revoked=True, was_hopeless=True, may_lack_room=True)
    assert objection_to(kind("x"), most) == "nothing explains it"


@pytest.mark.parametrize(
    ("error", "met"),
    [
        (Unavailable("x"), LAST_MOMENT),
        (Unavailable("x"), replace(EARLY, was_closed=True)),
        (Unavailable("x"), replace(EARLY, was_hopeless=True)),
        (Unavailable("x"), replace(EARLY, was_closed=True, is_calm=True)),
        (Unavailable("the data directory has no room"), replace(LAST_MOMENT, may_lack_room=True)),
        (Unauthorized("x"), replace(EARLY, was_revoked=True)),
        (Uncertain("x"), LAST_MOMENT),
        (Uncertain("x"), replace(EARLY, is_session_safe=False)),
        (Uncertain("x"), replace(EARLY, was_revoked=True)),
    ],
)
def test_errors_with_a_reason_are_accepted(error: StateStoreError, met: Circumstances) -> None:
    assert objection_to(error, met) is None


@pytest.mark.parametrize(
    ("error", "met", "objection"),
    [
        (Unavailable("x"), EARLY, "it came after 0.900 s, and the deadline was 1 s"),
        (Unavailable("x"), replace(EARLY, was_revoked=True), "it came after 0.900 s, and the deadline was 1 s"),
        (Unavailable("x"), replace(LAST_MOMENT, is_calm=True), "nothing has gone wrong yet"),
        (Unavailable("the data directory has no room"), LAST_MOMENT, "the disk was never full"),
        (Unauthorized("x"), LAST_MOMENT, "the token was valid"),
        (Uncertain("x"), replace(LAST_MOMENT, writes=False), "it was a read"),
        (Uncertain("x"), EARLY, "it came after 0.900 s, and the session was not lost"),
    ],
)
def test_errors_without_a_reason_are_not(error: StateStoreError, met: Circumstances, objection: str) -> None:
    assert objection_to(error, met) == objection


def _caused_by(cause: BaseException) -> Unavailable:
    error = Unavailable("x")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("cause", [OSError(), TimeoutError(), ConnectionLost("x", sent=True), Unavailable("x")])
def test_a_cause_may_be_the_systems_or_the_clients_own(cause: BaseException) -> None:
    assert objection_to(_caused_by(cause), LAST_MOMENT) is None


@pytest.mark.parametrize("cause", [KeyError("x"), AttributeError("x"), WrongServer("x"), _caused_by(KeyError("x"))])
def test_any_other_cause_is_a_fault(cause: BaseException) -> None:
    assert (objection_to(_caused_by(cause), LAST_MOMENT) or "").startswith("the cause is ")


def test_a_fault_that_was_hidden_by_from_none_is_one_too() -> None:
    error = _caused_by(KeyError("x"))
    error.__context__, error.__cause__ = error.__cause__, None
    error.__suppress_context__ = True
    assert objection_to(error, LAST_MOMENT) == "the cause is KeyError('x')"


def test_a_token_counts_as_revoked_until_the_daemon_must_have_read_it_again() -> None:
    token = TokenRecord()
    token.change(valid=True, daemon_runs_from=5.0)  # it was valid all along
    assert not token.was_revoked_since(0.0)
    token.change(valid=False, daemon_runs_from=10.0)
    assert token.was_revoked_since(9.0)
    token.change(valid=True, daemon_runs_from=20.0)
    assert token.was_revoked_since(20.0)
    assert not token.was_revoked_since(20.0 + TOKEN_IS_KNOWN_AFTER)
