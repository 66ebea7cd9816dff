"""What a client knows of its store, and what its log says of it."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from statestore import Limits, forks
from statestore.address import parse_addresses
from statestore.outage import Outage
from statestore.protocol import Welcome, WrongStore
from statestore.store import UNLIMITED, Store

SMALL = Limits(1, 2, 3, 4)
THERE, ELSEWHERE = parse_addresses("there:1, elsewhere:1")
FAILURE = ConnectionRefusedError("refused")


@pytest.fixture
def store() -> Store:
    store = Store("there:1")
    assert store.outage is not None  # until somebody has answered
    store.answered(writing=False)
    return store


def test_the_first_that_answers_is_the_store_from_then_on(store: Store) -> None:
    assert store.limits is UNLIMITED
    assert store.accepts(THERE, Welcome("s1", 1, SMALL), 0)
    assert store.limits is SMALL
    assert store.accepts(THERE, Welcome("s1", 1, SMALL), 0)
    with pytest.raises(WrongStore, match="the store s2 answers where s1 was expected"):
        store.accepts(THERE, Welcome("s2", 1, Limits()), 0)
    assert store.limits is SMALL


def test_of_two_threads_that_meet_different_stores_one_says_which_it_is() -> None:
    store, accepted = Store("there:1"), []

    class Slow(SimpleNamespace):
        """Another thread meets its store when this one is about to remember what it met."""

        @property
        def store_id(self) -> str:
            if not accepted:
                accepted.append("s2")
                assert store.accepts(THERE, Welcome("s2", 1, SMALL), 0)
            return "s1"

    with pytest.raises(WrongStore, match="the store s1 answers where s2 was expected"):
        store.accepts(THERE, cast(Any, Slow(limits=SMALL, session=None)), 0)
    assert store.accepts(THERE, Welcome("s2", 1, SMALL), 0)


def test_a_store_named_beforehand_is_the_only_one() -> None:
    with pytest.raises(WrongStore):
        Store("there:1", "s1").accepts(THERE, Welcome("s2", 1, SMALL), 0)


def test_it_is_looked_for_first_where_it_answered_last(store: Store) -> None:
    assert store.address is None
    for address in (THERE, ELSEWHERE, THERE):
        assert store.accepts(address, Welcome("s1", 1, SMALL), 0)
        assert store.address == address
    with pytest.raises(WrongStore):
        store.accepts(ELSEWHERE, Welcome("s2", 1, SMALL), 0)
    assert store.address == THERE


def test_all_connections_are_in_one_session(store: Store) -> None:
    assert store.accepts(THERE, Welcome("s1", 1, SMALL, session=7), 0)
    assert not store.accepts(THERE, Welcome("s1", 1, SMALL, session=8), 0)
    assert store.session.id == 7


def test_an_outage_that_nobody_suffers_from_is_not_in_the_log(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.unreached("a", FAILURE)
    assert store.outage is not None
    store.answered(writing=False)
    assert store.outage is None
    assert caplog.messages == []


def test_a_greeting_ends_what_the_log_does_not_know_of(store: Store) -> None:
    store.unreached("a", FAILURE)
    assert store.accepts(THERE, Welcome("s1", 1, SMALL), 0)
    assert store.outage is None
    store.gone("refused", store.unreached("a", FAILURE), writing=True)
    assert store.accepts(THERE, Welcome("s1", 1, SMALL), 0)
    assert store.outage is not None


def test_an_outage_is_in_the_log_when_it_begins_and_when_it_ends(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        for _ in range(3):
            store.gone("refused", store.unreached("a", FAILURE), writing=True)
        for _ in range(3):
            store.answered(writing=False)
        assert caplog.messages == ["state store unavailable: refused", "state store is back: there:1"]
        assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_a_store_that_cannot_be_written_is_not_back_because_it_can_be_read(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        store.gone("its disk is full", None, writing=True)
        store.answered(writing=False)
    assert caplog.messages == ["state store unavailable: its disk is full"]
    store.answered(writing=True)
    assert caplog.messages[1:] == ["state store is back: there:1"]


def test_of_one_outage_there_is_one_since_and_the_last_failure(store: Store) -> None:
    first = store.unreached("a", FAILURE)
    last = TimeoutError("silent")
    assert store.unreached("b", last) is first
    assert first.failure is last


def test_a_connection_that_was_just_greeted_is_not_replaced(store: Store) -> None:
    assert store.accepts(THERE, Welcome("s1", 1, SMALL), 0)
    assert not store.renewal.is_due()


def test_two_threads_that_reach_nobody_at_the_same_time_are_in_one_outage(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log has one line of it."""
    others: list[Outage] = []

    def outage() -> Outage:
        if not others:
            others.append(Outage())
            others[0] = store.unreached("b", FAILURE)  # the other thread comes in between
        return Outage()

    monkeypatch.setattr("statestore.store.Outage", outage)
    ours = store.unreached("a", FAILURE)
    assert [ours] == others
    assert store.outage is ours
    for thread in ("a", "b"):
        store.gone(f"refused {thread}", ours, writing=False)
    assert caplog.messages == ["state store unavailable: refused a"]


def test_a_greeting_may_come_while_another_thread_ends_the_outage() -> None:
    class Racing(Store):
        """Each look at its outage finds what another thread has made of it: the second that it is over."""

        looks = 0

        @property
        def outage(self) -> Outage | None:
            self.looks += 1
            return Outage() if self.looks == 1 else None

        @outage.setter
        def outage(self, _: Outage | None) -> None:
            pass

    assert Racing("there:1").accepts(THERE, Welcome("s1", 1, SMALL), 0)


def test_a_child_has_reached_nobody_yet_and_nothing_is_in_its_log(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.accepts(THERE, Welcome("s1", 1, SMALL), 0)
    for _ in range(2):
        store.gone("its disk is full", None, writing=True)
        store.refused("full", "it is full")
        forks._after_fork_in_child()
    assert caplog.messages == ["state store unavailable: its disk is full", "state store refuses: it is full"] * 2
    assert store.outage is not None
    assert store.session.id == 0
    assert (store.store_id, store.address, store.limits) == ("s1", THERE, SMALL)
