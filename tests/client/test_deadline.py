"""Time that runs out, on a clock that the test turns."""

import pytest

from statestore.deadline import Deadline
from tests.client.timing import Clock


def test_what_is_left_grows_less(clock: Clock) -> None:
    deadline = Deadline(5)
    assert deadline.left() == 5
    clock.now += 4.5
    assert deadline.left() == 0.5
    assert not deadline.passed


@pytest.mark.parametrize("late", [0.0, 0.1, 100.0])
def test_no_step_begins_when_nothing_is_left(clock: Clock, late: float) -> None:
    deadline = Deadline(2.5)
    clock.now += 2.5 + late
    assert deadline.passed
    with pytest.raises(TimeoutError, match=r"^no answer within 2\.5 s$"):
        deadline.left()


def test_within_a_deadline_there_may_be_an_earlier_one(clock: Clock) -> None:
    deadline = Deadline(5)
    clock.now += 1
    assert deadline.within(3).left() == 3
    assert deadline.within(3).seconds == 3
    assert deadline.within(4.5) is deadline
