"""What all connections together may hold."""

from statestored.budget import Budget


class Holder:
    def __init__(self, budget: Budget, size: int = 0) -> None:
        self.budget = budget
        self.resumed = self.dropped = 0
        budget.hold(self, size)

    def resume(self) -> None:
        self.resumed += 1

    def drop_for_room(self) -> None:
        self.dropped += 1


def test_what_is_held_is_counted_once() -> None:
    budget = Budget(100)
    one, other = Holder(budget, 10), Holder(budget, 20)
    assert budget.used == 30
    budget.hold(one, 15)
    assert budget.used == 35
    budget.forget(one)
    budget.forget(one)
    assert budget.used == 20
    budget.hold(other, 0)
    assert budget.used == 0


def test_it_is_used_up_until_an_eighth_is_free() -> None:
    budget = Budget(80)
    one = Holder(budget, 79)
    assert not budget.used_up
    budget.hold(one, 80)
    assert budget.used_up
    budget.hold(one, 71)
    assert budget.used_up
    budget.hold(one, 70)
    assert not budget.used_up


def test_whoever_waits_is_resumed_once_in_the_order_of_coming() -> None:
    budget = Budget(80)
    hog, first, second = Holder(budget, 90), Holder(budget), Holder(budget)
    gone = Holder(budget)
    for waiting in (first, gone, second, first):
        budget.wait(waiting)
    budget.forget(gone)
    budget.hold(hog, 75)
    assert (first.resumed, second.resumed) == (0, 0)
    budget.forget(hog)
    assert (first.resumed, second.resumed, gone.resumed) == (1, 1, 0)
    Holder(budget, 90)
    assert budget.used_up
    assert first.resumed == 1


def test_those_that_hold_most_are_dropped_where_it_stays_used_up() -> None:
    budget = Budget(80)
    small, large, larger = Holder(budget, 10), Holder(budget, 30), Holder(budget, 45)
    budget.tick()
    assert (small.dropped, large.dropped, larger.dropped) == (0, 0, 0)  # it may pass
    budget.tick()
    assert (small.dropped, large.dropped, larger.dropped) == (0, 0, 1)  # that is enough
    budget.forget(larger)
    budget.tick()
    budget.tick()
    assert (small.dropped, large.dropped) == (0, 0)


def test_what_passed_within_a_second_is_no_reason_to_drop_anybody() -> None:
    budget = Budget(80)
    one = Holder(budget, 90)
    budget.tick()
    budget.hold(one, 0)
    budget.tick()
    budget.hold(one, 90)
    budget.tick()
    assert not one.dropped
