"""What is asked of a history if a power loss may have taken acknowledged writes."""

import math
from typing import Any

from tests.consistency.history import Operation
from tests.consistency.linearizability import linearize
from tests.simulation.checks import Life, kind_of
from tests.simulation.histories import Loss, kept_until, until, without_lost


def call(
    method: str, *arguments: str, at: float, returned: float = 0.0, result: object = None, answered: bool = True
) -> Operation:
    return Operation("0x", method, "s0", arguments, at, returned or at + 0.1, answered, result)


def loss(time: float, kept_until: float) -> Loss:
    return Loss(time, kept_until, time + 0.5)


WRITTEN, READ = call("set", "a", "one", at=1.0), call("get", "a", at=2.0, result="one")
GONE = call("get", "a", at=9.0, result="START")


def is_explained(history: list[Operation]) -> bool:
    return linearize(history) is not None


def test_what_was_lost_may_be_gone_if_it_was_acknowledged_late() -> None:
    history = [WRITTEN, READ, GONE]
    assert not is_explained(history)
    assert is_explained(without_lost(history, [loss(5.0, -math.inf)]))
    assert is_explained(without_lost(history, [loss(5.0, 1.05)]))
    assert not is_explained(without_lost(history, [loss(5.0, 1.2)]))


def test_what_was_lost_does_not_come_back() -> None:
    back = call("get", "a", at=10.0, result="one")
    assert not is_explained(without_lost([WRITTEN, GONE, back], [loss(5.0, 0.0)]))


def test_an_answer_may_arrive_after_the_power_loss_that_takes_the_write() -> None:
    on_its_way = call("set", "a", "one", at=4.9, returned=5.01)
    assert is_explained(without_lost([on_its_way, GONE], [loss(5.0, 3.0)]))
    of_the_next_daemon = call("set", "a", "one", at=4.9, returned=5.6)
    assert not is_explained(without_lost([of_the_next_daemon, GONE], [loss(5.0, 3.0)]))
    called_afterwards = call("set", "a", "one", at=5.01)
    assert not is_explained(without_lost([called_afterwards, GONE], [loss(5.0, 3.0)]))


def test_a_read_may_have_seen_what_is_lost_however_long_it_takes() -> None:
    scan = call("get", "a", at=4.95, returned=8.0, result="one")
    written = call("set", "a", "one", at=4.8)
    assert is_explained(without_lost([written, scan, GONE], [loss(5.0, 3.0)]))
    later = call("get", "a", at=5.05, returned=8.0, result="one")
    assert not is_explained(without_lost([written, later, GONE], [loss(5.0, 3.0)]))


def test_all_is_asked_until_the_first_power_loss() -> None:
    wrong = call("get", "a", at=3.0, result="two")
    assert is_explained(until([WRITTEN, READ, GONE], 5.0))
    assert not is_explained(until([WRITTEN, wrong, GONE], 5.0))
    assert is_explained(until([WRITTEN, wrong, GONE], 3.05))  # it had no answer yet


def lives(*spans: tuple[float, float | None, bool]) -> list[Life]:
    """Each is ready at once."""

    class Known(Life):
        @property
        def ready(self) -> float:
            return self.began

    nobody: Any = None
    return [Known(nobody, began, 0, ended, stopped_in_order=in_order) for began, ended, in_order in spans]


def test_a_write_is_kept_when_it_was_acknowledged_longer_ago_than_a_sync_takes() -> None:
    assert kept_until(lives((1.0, None, False)), 10.0, 2.0) == 8.0
    assert kept_until(lives((1.0, 7.0, False)), 10.0, 2.0) == 5.0
    assert kept_until(lives((1.0, 7.0, True)), 10.0, 2.0) == 7.0
    assert kept_until(lives((1.0, 7.0, False), (9.0, None, False)), 10.0, 2.0) == 9.0  # found, and synced
    assert kept_until(lives((11.0, None, False)), 10.0, 2.0) == -math.inf


def test_failures_are_of_the_same_kind_whatever_names_and_times_are_in_them() -> None:
    assert kind_of("at 4.1: the history of s3 is not linearizable") == kind_of(
        "at 7.25: the history of s0 is not linearizable"
    )
    assert kind_of("at 1.0: set of 0x took 1.2 s, its deadline was 1 s") == "its deadline was"
    assert kind_of("at 1.0: client1 raised ValueError('a')") == kind_of("at 2.0: client3 raised ValueError('b')")
    assert kind_of("at 1.0: client1 raised ValueError('a')") != kind_of("at 1.0: client1 raised KeyError('a')")
