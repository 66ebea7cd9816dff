"""Time that runs out, on a clock that the test turns."""

import time

import pytest

from statestore.deadline import Deadline


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


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


@pytest.mark.parametrize(("pause", "slept"), [(0.5, 0.5), (1, 0.95), (1.5, 0.95)])
def test_a_pause_ends_with_the_deadline(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, pause: float, slept: float
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    deadline = Deadline(2)
    clock.now += 1
    deadline.sleep(pause)
    clock.now += 0.94
    deadline.sleep(pause)
    clock.now += 5
    deadline.sleep(pause)
    assert naps == pytest.approx([slept, 0.06, 0])
