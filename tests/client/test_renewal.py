"""How often connections are replaced, on a clock that the test turns."""

from statestore import Full, ShuttingDown, Unavailable
from statestore.renewal import PAUSE, Renewal
from tests.client.timing import Clock


def test_the_first_replacement_is_due_at_once_and_the_next_after_a_pause(clock: Clock) -> None:
    renewal = Renewal()
    assert [renewal.is_due() for _ in range(3)] == [True, False, False]
    clock.now += PAUSE[0] - 0.01
    assert not renewal.is_due()
    clock.now += PAUSE[1] - PAUSE[0] + 0.01
    assert [renewal.is_due() for _ in range(3)] == [True, False, False]


def test_after_a_refusal_a_replacement_is_due_if_another_connection_may_do_better(clock: Clock) -> None:
    renewal = Renewal()
    assert clock.now
    assert not renewal.is_due_after(Full("no room"))
    assert [renewal.is_due_after(Unavailable("no disk")) for _ in range(2)] == [True, False]
    assert [renewal.is_due_after(ShuttingDown("soon")) for _ in range(2)] == [True, True]


def test_a_connection_that_has_just_been_made_is_not_replaced(clock: Clock) -> None:
    renewal = Renewal()
    renewal.put_off()
    assert not renewal.is_due()
    clock.now += PAUSE[1]
    assert renewal.is_due()


def test_a_hundred_clients_make_at_most_two_hundred_connections_a_second(clock: Clock) -> None:
    """R6"""
    clients, made = [Renewal() for _ in range(100)], []
    for _ in range(500):
        made += [clock.now for client in clients if client.is_due()]
        clock.now += 0.01
    assert max(sum(start <= at < start + 1 for at in made) for start in made) <= 200
