"""What is seen to where a process forks."""

import gc
import weakref

import pytest

from statestore import forks
from tests.client.scripts import run_script


class Thing:
    def __init__(self) -> None:
        self.begun_anew = 0
        self.has_sockets = False

    def after_fork_in_child(self) -> None:
        self.begun_anew += 1


def test_whoever_asked_for_it_begins_anew() -> None:
    things = [Thing(), Thing()]
    for thing in things:
        forks.begin_anew_in_child(thing)
    forks._after_fork_in_child()
    assert [thing.begun_anew for thing in things] == [1, 1]


def test_an_exception_keeps_nobody_from_beginning_anew_and_sockets_come_first() -> None:
    order: list[Thing] = []

    class Interrupted(Thing):
        def after_fork_in_child(self) -> None:
            order.append(self)
            if len(order) == 2:
                raise KeyboardInterrupt
            self.begun_anew += 1

    things = [Interrupted() for _ in range(10)]
    things[5].has_sockets = True
    for thing in things:
        forks.begin_anew_in_child(thing)
    with pytest.raises(KeyboardInterrupt):
        forks._after_fork_in_child()
    assert order[0] is things[5]
    assert [thing.begun_anew for thing in things] == [1] * 10


def test_what_always_fails_is_given_up() -> None:
    class Broken(Thing):
        def after_fork_in_child(self) -> None:
            raise ZeroDivisionError

    broken, thing = Broken(), Thing()
    for each in (broken, thing):
        forks.begin_anew_in_child(each)
    with pytest.raises(ZeroDivisionError):
        forks._after_fork_in_child()
    assert thing.begun_anew == 1


def test_what_nobody_needs_is_forgotten() -> None:
    thing = Thing()
    forks.begin_anew_in_child(thing)
    forgotten = weakref.ref(thing)
    del thing
    gc.collect()
    assert forgotten() is None


def test_a_child_begins_anew_and_its_parent_does_not() -> None:
    assert (
        run_script(
            """
            import os
            from statestore import forks

            class Thing:
                def after_fork_in_child(self):
                    self.pid = os.getpid()

            thing = Thing()
            forks.begin_anew_in_child(thing)
            child = os.fork()
            if child == 0:
                os._exit(thing.pid != os.getpid())
            assert os.waitpid(child, 0)[1] == 0
            print(hasattr(thing, "pid"))
            """
        ).strip()
        == "False"
    )


def test_nobody_is_within_the_lock_when_a_child_is_made() -> None:
    """The one who forks may be, in a signal's handler."""
    run_script(
        """
        import os, threading
        from statestore import forks

        lock, inside, leave = threading.RLock(), threading.Event(), threading.Event()
        forks.hold_while_forking(lock)

        def stay():
            with lock:
                inside.set()
                leave.wait(20)

        threading.Thread(target=stay).start()
        inside.wait(20)
        threading.Timer(0.1, leave.set).start()
        child = os.fork()
        if child == 0:
            os._exit(not (leave.is_set() and lock.acquire(blocking=False)))
        assert os.waitpid(child, 0)[1] == 0
        with lock:
            if (child := os.fork()) == 0:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        other = threading.Thread(target=lambda: print(lock.acquire(timeout=20)))
        other.start()
        other.join()
        """
    )
