"""How long sessions last, by a clock that the tests turn."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from statestored.engines.leases import LIFETIME, Leases

HOUR = 3600.0


def test_a_session_lasts_an_hour_without_a_connection() -> None:
    assert LIFETIME == HOUR
    leases = Leases((), 0)
    leases.take(7)
    leases.leave(7, 100)
    assert leases.end(100 + HOUR - 1) == []
    assert leases.end(100 + HOUR) == [7]
    assert leases.end(100 + 2 * HOUR) == []


def test_it_does_not_end_while_any_connection_is_open() -> None:
    leases = Leases((), 0)
    leases.take(7)
    leases.take(7)
    leases.leave(7, 0)
    assert leases.end(10 * HOUR) == []
    assert leases.end_one() is None
    leases.leave(7, 10 * HOUR)
    assert leases.end(11 * HOUR) == [7]


def test_who_comes_back_has_it_again() -> None:
    leases = Leases((), 0)
    leases.take(7)
    leases.leave(7, 0)
    leases.take(7)
    assert leases.end(2 * HOUR) == []
    leases.leave(7, 2 * HOUR)
    assert leases.end(3 * HOUR - 1) == []


def test_after_a_start_all_have_just_been_left() -> None:
    leases = Leases([7, 8], 5000)
    leases.take(8)
    assert leases.end(5000 + HOUR - 1) == []
    assert leases.end(5000 + HOUR) == [7]


def test_the_one_that_was_left_first_makes_room() -> None:
    leases = Leases([7, 8, 9], 0)
    leases.take(7)
    leases.leave(7, 1)
    assert [leases.end_one() for _ in range(4)] == [8, 9, 7, None]


def test_one_that_is_forgotten_is_not_heard_of_again() -> None:
    leases = Leases([8], 0)
    leases.take(7)
    leases.forget(7)
    leases.leave(7, 0)
    leases.forget(8)
    assert leases.end(HOUR) == []
    assert leases.end_one() is None


class LeasesAgainstAModel(RuleBasedStateMachine):
    """Looked at one by one, in any order of calls, while the time goes on."""

    sessions = st.integers(1, 4)

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.leases = Leases([1, 2], 0)
        self.left = {1: 0.0, 2: 0.0}
        self.connections: Counter[int] = Counter()

    @rule(session=sessions)
    def take(self, session: int) -> None:
        self.leases.take(session)
        self.connections[session] += 1
        self.left.pop(session, None)

    @rule(session=sessions)
    def leave(self, session: int) -> None:
        if self.connections[session]:
            self.leases.leave(session, self.now)
            self.connections[session] -= 1
            if not self.connections[session]:
                self.left[session] = self.now

    @rule(seconds=st.sampled_from([1.0, HOUR / 2, HOUR]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        ended = {session for session, left in self.left.items() if self.now - left >= HOUR}
        assert set(self.leases.end(self.now)) == ended
        self.left = {session: left for session, left in self.left.items() if session not in ended}

    @rule()
    def make_room(self) -> None:
        ended = self.leases.end_one()
        if ended is None:
            assert not self.left
        else:
            assert self.left.pop(ended) <= min(self.left.values(), default=self.now)


def test_leases_are_as_their_model() -> None:
    run = LeasesAgainstAModel.TestCase()
    run.settings = settings(max_examples=100, stateful_step_count=30)
    run.runTest()
