"""The numbers of writes: each once, whatever threads and signals do, and none passed over while it has no answer."""

import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from statestore import forks
from statestore.session import MOST_APART, Session
from tests.client.scripts import run_script


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """They take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_whether_a_session_was_refused_is_what_the_last_hello_was_told() -> None:
    session = Session()
    assert not session.is_refused
    for asked, given, is_refused in ((0, None, True), (0, 7, False), (7, None, True), (7, 7, False), (7, 8, False)):
        assert session.joins(asked, given)
        assert session.is_refused == is_refused


def test_writes_have_numbers_in_their_order() -> None:
    session = Session()
    assert [session.number(object()) for _ in range(3)] == [1, 2, 3]


def test_the_oldest_is_the_first_without_an_answer() -> None:
    session = Session()
    for write in "abc":
        session.number(write)
    assert session.oldest(3) == 1
    session.unanswered.pop("b")
    assert session.oldest(3) == 1
    session.unanswered.pop("a")
    assert session.oldest(3) == 3
    session.unanswered.pop("c")
    assert session.number("d") == session.oldest(4) == 4


def test_a_write_waits_while_the_server_would_not_remember_so_many() -> None:
    session = Session()
    for number in range(1, MOST_APART + 3):
        session.number(number)
    assert session.oldest(MOST_APART + 1) == 1
    with pytest.raises(TimeoutError, match="more than 1023 writes wait for their answers"):
        session.oldest(MOST_APART + 2)
    session.unanswered.pop(1)
    assert session.oldest(MOST_APART + 2) == 2


@pytest.mark.usefixtures("busy_threads")
def test_no_thread_passes_over_a_number_of_anothers() -> None:
    """Else the server would forget its answer, or refuse to apply it."""
    session = Session()
    ended: set[int] = set()
    passed_over: list[int] = []

    def work() -> None:
        seen = 1
        for _ in range(2000):
            write = object()
            number = session.number(write)
            oldest = min(session.unanswered.copy().values())
            passed_over.extend(number for number in range(seen, oldest) if number not in ended)
            seen = max(seen, oldest)
            ended.add(number)
            session.unanswered.pop(write)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed_over == []
    assert ended == set(range(1, 16_001))


def test_without_the_gil_a_number_is_given_and_noted_under_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated by a counter within which other threads run."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    session = Session()
    given: list[int] = []

    class Counter:
        last = 0

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            number = self.last + 1
            time.sleep(0)
            self.last = number
            return number

    session._numbers = Counter()  # type: ignore[assignment]
    threads = [
        threading.Thread(target=lambda: given.extend([session.number(object()) for _ in range(200)])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == list(range(1, 1601))
    assert list(session.unanswered.values()) == sorted(given)


def test_interrupts_at_any_moment_leave_no_number_without_an_end() -> None:
    run_script(
        """
        import random, signal, sys
        from statestore.session import Session

        class Interrupt(BaseException):
            pass

        def interrupt(*_):
            raise Interrupt

        def write():
            key = object()
            try:
                session.number(key)
            finally:
                session.unanswered.pop(key, None)

        session = Session()
        signal.signal(signal.SIGALRM, interrupt)
        for _ in range(2000):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-4))
                while True:
                    write()
            except Interrupt:
                pass
            assert not session.unanswered
        assert session.oldest(number := session.number("last")) == number
        """
    )


def test_a_session_is_gone_on_with() -> None:
    session = Session()
    assert session.id == 0
    assert session.joins(0, 77)
    assert session.id == 77
    assert session.joins(77, 77)
    assert session.id == 77


def test_of_two_connections_that_asked_for_a_new_one_the_second_asks_again() -> None:
    session = Session()
    assert session.joins(0, 77)
    assert not session.joins(0, 88)
    assert session.id == 77
    assert session.joins(77, 77)


def test_a_session_that_is_lost_is_replaced_by_one_for_all() -> None:
    session = Session()
    assert session.joins(0, 77)
    assert session.joins(77, 99)
    assert not session.joins(77, 100)
    assert session.id == 99
    assert session.joins(99, 101)
    assert not session.joins(99, 102)
    assert not session.joins(77, 103)  # a latecomer's news is old
    assert session.joins(session.id, session.id)


def test_a_connection_without_a_session_changes_nothing() -> None:
    session = Session()
    assert session.joins(0, 77)
    assert session.joins(77, None)
    assert session.id == 77


def test_a_child_has_a_session_of_its_own() -> None:
    session = Session()
    session.joins(0, 77)
    session.number("its parent's")
    forks._after_fork_in_child()
    assert session.id == 0
    assert session.number("its own") == session.oldest(2) == 2


def test_a_write_that_has_its_number_when_its_process_forks_has_it_to_itself() -> None:
    """It may go on in the child, in a session in which other writes have come before it."""
    session = Session()
    for write in "abc":
        session.number(write)
    forks._after_fork_in_child()
    assert session.number("the child's") == 4
    assert session.number("c") == 5
    assert session.oldest(5) == 4


def test_a_write_keeps_its_number() -> None:
    session = Session()
    assert [session.number(write) for write in "abab"] == [1, 2, 1, 2]


def test_a_session_that_is_left_is_replaced_by_a_new_one_for_all() -> None:
    session = Session()
    assert session.joins(0, 77)
    assert session.is_current(77)
    assert session.leave(77)
    assert session.id == 0
    assert not session.is_current(77)
    assert session.joins(0, 88)
    assert session.id == 88
    assert not session.joins(0, 99)
    assert not session.leave(77)  # somebody else of ours has left it before
    assert session.id == 88


class Overtaken(int):
    """A session that another thread leaves, to join the next one, while this thread looks whether it is current."""

    overtake: Callable[[], object] | None = None

    def __ne__(self, other: object) -> bool:
        if self.overtake is not None:
            overtake, self.overtake = self.overtake, None
            overtake()
        return int(self) != other


def test_of_two_threads_that_leave_a_session_at_once_one_does() -> None:
    session, current, left = Session(), Overtaken(77), []
    session.joins(0, current)

    def overtake() -> None:
        left.append(session.leave(77))
        session.joins(0, 88)

    current.overtake = overtake
    left.append(session.leave(77))
    assert left == [True, False]
    assert session.id == 88


def test_a_connection_without_a_session_leaves_none() -> None:
    session = Session()
    session.joins(0, 77)
    assert not session.leave(None)
    assert session.is_current(None)
    assert session.id == 77


def test_the_numbers_go_on_in_another_session() -> None:
    session = Session()
    session.joins(0, 77)
    assert session.number("a") == 1
    session.leave(77)
    assert session.number("b") == 2
    assert session.oldest(2) == 1
