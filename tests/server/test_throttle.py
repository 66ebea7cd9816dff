"""How many wrong tokens one address may give, and how soon it is forgiven."""

import pytest

from statestored import throttle as throttle_module
from statestored.throttle import AT_ONCE, SECONDS_EACH, Throttle, shared_address

ANN, BEN = "192.0.2.1", "192.0.2.2"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> Throttle:
    return Throttle(clock)


def fail(throttle: Throttle, address: str, times: int = AT_ONCE) -> None:
    for _ in range(times):
        throttle.failed(address)


def test_a_few_wrong_tokens_cost_nothing(throttle: Throttle) -> None:
    fail(throttle, ANN, AT_ONCE - 1)
    assert not throttle.is_shut(ANN)


def test_too_many_of_them_shut_the_address_out_and_no_other(throttle: Throttle) -> None:
    fail(throttle, ANN)
    assert throttle.is_shut(ANN)
    assert not throttle.is_shut(BEN)


def test_it_is_not_for_long(throttle: Throttle, clock: Clock) -> None:
    fail(throttle, ANN)
    clock.now += SECONDS_EACH * 1.01
    assert not throttle.is_shut(ANN)
    throttle.failed(ANN)
    assert throttle.is_shut(ANN), "what was not paid off yet still counts"


def test_in_the_long_run_an_address_gets_so_many_tries_a_second(throttle: Throttle, clock: Clock) -> None:
    tries, seconds = 0, 100
    for _ in range(seconds * 1000):
        clock.now += 0.001
        if not throttle.is_shut(ANN):
            throttle.failed(ANN)
            tries += 1
    assert tries == pytest.approx(AT_ONCE + seconds / SECONDS_EACH, rel=0.01)


def test_who_owes_nothing_is_forgotten(throttle: Throttle, clock: Clock) -> None:
    for number in range(100):
        throttle.failed(f"192.0.2.{number}")
    assert len(throttle._paid) == 100
    clock.now += SECONDS_EACH
    throttle.failed(BEN)
    assert list(throttle._paid) == [BEN]


def test_no_more_is_remembered_than_there_is_room_for(throttle: Throttle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle_module, "MAX_KEPT", 10)
    fail(throttle, ANN)
    fail(throttle, BEN)
    for number in range(100):
        throttle.failed(f"198.51.100.{number}")
        if number % 5 == 0:
            throttle.failed(BEN)
        assert len(throttle._paid) <= 10
    assert throttle.is_shut(BEN), "who failed last is kept"
    assert not throttle.is_shut(ANN)


@pytest.mark.parametrize(
    ("peer", "shared"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1:2:3", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_address_stands_for_all_that_one_peer_may_have(peer: str, shared: str) -> None:
    assert shared_address(peer) == shared
