"""Whose turn it is to look whether the store is back, on a clock that the test turns."""

import random
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from statestore.deadline import Deadline
from statestore.outage import LONGEST_TURN, Outage
from tests.client.timing import Clock

FAILURE = ConnectionRefusedError("refused")


def begin(*, is_slip: bool) -> Outage:
    """A store was reached, and then no more."""
    outage = Outage()
    outage.failed(None, FAILURE, is_slip=is_slip)
    return outage


@pytest.fixture(autouse=True)
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statestore.outage.random", SimpleNamespace(uniform=lambda _, longest: longest))


def test_the_next_attempt_is_soon_and_those_after_it_about_one_a_second(clock: Clock) -> None:
    outage = begin(is_slip=False)
    for pause in (0.5, 1.4, 1.4, 1.4):
        assert outage.wait("a") == pytest.approx(pause)
        clock.now += pause
        assert outage.wait("a") == 0
        outage.failed("a", FAILURE, is_slip=False)


def test_after_a_slip_the_next_attempt_is_at_once(clock: Clock) -> None:
    outage = begin(is_slip=True)
    assert outage.wait("a") == 0
    outage.failed("a", FAILURE, is_slip=False)
    assert outage.wait("a") == pytest.approx(0.5)
    assert clock.now == 1000


def test_a_client_begins_with_one_attempt_that_the_others_wait_for(clock: Clock) -> None:
    outage = Outage()
    assert outage.wait("a") == 0
    assert outage.wait("b") > 0
    clock.now += 1000
    assert not outage.is_hopeless(Deadline(5))
    outage.failed("a", FAILURE, is_slip=False)
    assert outage.since == clock.now
    assert outage.wait("b") == pytest.approx(0.5)


def test_one_call_has_the_turn_and_the_others_wait(clock: Clock) -> None:
    outage = begin(is_slip=True)
    assert outage.wait("a") == outage.wait("a") == 0
    assert outage.wait("b") > 0
    assert (outage.is_turn_of("a"), outage.is_turn_of("b")) == (True, False)
    outage.failed("a", FAILURE, is_slip=False)
    clock.now += 0.5
    assert outage.wait("b") == 0
    assert outage.wait("a") > 0


def test_of_many_threads_one_has_the_turn() -> None:
    for _ in range(20):
        outage = begin(is_slip=True)
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(outage.wait, range(8))).count(0) == 1


def test_whoever_was_interrupted_in_its_turn_keeps_nobody_waiting_for_ever(clock: Clock) -> None:
    outage = begin(is_slip=True)
    assert outage.wait("a") == 0
    clock.now += LONGEST_TURN + 0.1
    assert outage.wait("b") == 0
    assert outage.wait("a") > 0


def test_a_turn_that_came_to_nothing_is_the_next_ones(clock: Clock) -> None:
    outage = begin(is_slip=True)
    assert outage.wait("a") == 0
    outage.left_by("b")
    assert outage.wait("b") > 0
    outage.left_by("a")
    assert outage.wait("b") == 0
    assert clock.now == 1000


def test_an_attempt_out_of_turn_leaves_the_turn_where_it_is(clock: Clock) -> None:
    outage = begin(is_slip=True)
    assert outage.wait("a") == 0
    outage.failed("b", last := TimeoutError("silent"), is_slip=False)
    assert outage.failure is last
    assert outage.is_turn_of("a")
    assert clock.now == 1000


def test_of_all_calls_whose_time_is_nearly_over_one_makes_an_attempt_out_of_turn(clock: Clock) -> None:
    outage = begin(is_slip=False)
    assert outage.allows_last("a")
    assert not outage.allows_last("b")
    clock.now += 0.2
    outage.failed("a", FAILURE, is_slip=False)
    assert outage.wait("b") == pytest.approx(1.4)
    assert not outage.allows_last("b")
    clock.now += 1.4
    assert outage.wait("b") == 0
    outage.failed("b", FAILURE, is_slip=False)
    assert outage.allows_last("c")


def test_a_call_that_begins_when_nobody_has_answered_for_as_long_as_it_may_take_is_hopeless(clock: Clock) -> None:
    outage = begin(is_slip=False)
    clock.now += 4.9
    in_time = Deadline(5)
    clock.now += 0.2
    assert outage.is_hopeless(Deadline(5))
    assert not outage.is_hopeless(Deadline(6))
    assert not outage.is_hopeless(in_time)


def test_clients_do_not_come_all_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statestore.outage.random", random)
    waits = [begin(is_slip=False).wait("a") for _ in range(100)]
    assert 0.1 <= min(waits) < 0.2 < 0.4 < max(waits) <= 0.5
    assert clock.now == 1000
