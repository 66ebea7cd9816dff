"""Starting afresh in a child, whichever way it was forked."""

import copy
import gc
import os
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from statestore import forks
from statestore.dial import OpenSockets
from statestore.forks import Descriptor, ProcessBound, detect_fork, reset_after_fork
from statestore.pool import Pool
from statestore.session import Session
from statestore.store import Store
from tests.client.scripts import run_script


class Thing:
    def __init__(self) -> None:
        self.resets = 0
        self.has_sockets = False

    def after_fork_in_child(self) -> None:
        self.resets += 1


def test_all_things_start_afresh_in_a_child_those_with_sockets_first_then_the_newest() -> None:
    order: list[Thing] = []

    class Noted(Thing):
        def after_fork_in_child(self) -> None:
            order.append(self)

    things = [Noted() for _ in range(10)]
    things[5].has_sockets = True
    for thing in things:
        reset_after_fork(thing)
    forks._after_fork_in_child()
    assert order == [things.pop(5), *reversed(things)]


def test_it_is_done_again_at_the_next_use_if_a_signal_handler_raises_meanwhile() -> None:
    class Interrupted(Thing):
        def after_fork_in_child(self) -> None:
            super().after_fork_in_child()
            if self.resets == 1:
                raise KeyboardInterrupt

    things = [Thing(), Interrupted(), Thing()]
    for thing in things:
        reset_after_fork(thing)
    with pytest.raises(KeyboardInterrupt):
        forks._after_fork_in_child()
    detect_fork()
    assert all(thing.resets for thing in things)
    resets = [thing.resets for thing in things]
    detect_fork()
    assert [thing.resets for thing in things] == resets


def test_a_signal_handler_that_uses_a_client_meanwhile_has_all_of_it_done() -> None:
    """And what the handler used is not reset again afterwards."""
    used: list[list[int]] = []

    class Interrupted(Thing):
        def after_fork_in_child(self) -> None:
            super().after_fork_in_child()
            if self.resets == 1:
                detect_fork()
                used.append([thing.resets for thing in things])

    things = [Thing(), Thing(), Interrupted(), Thing(), Thing()]
    for thing in things:
        reset_after_fork(thing)
    forks._after_fork_in_child()
    (seen,) = used
    assert all(seen)
    assert [thing.resets for thing in things] == seen


def test_what_nobody_needs_is_forgotten() -> None:
    thing = Thing()
    reset_after_fork(thing)
    size = len(forks._inherited)
    forgotten = weakref.ref(thing)
    del thing
    gc.collect()
    assert forgotten() is None
    assert len(forks._inherited) < size


# Real children. The page of memory is the kernel's (Linux 4.14); without it the process id is compared.

PRELUDE = """
    import ctypes, mmap, os, sys, threading

    if sys.argv[1] == "process id":
        class Page:
            def __init__(self, *args, **kwargs):
                pass

            def madvise(self, _):
                raise OSError(22, "Invalid argument")

        mmap.mmap = Page
    from statestore import forks
    from statestore.forks import detect_fork, no_fork, reset_after_fork

    assert (type(forks._mark).__name__ == "_ProcessId") == (sys.argv[1] == "process id")
    fork = {"os.fork": os.fork, "fork(2)": ctypes.PyDLL(None).fork}[sys.argv[2]]

    class Thing:
        resets = 0

        def after_fork_in_child(self):
            self.resets += 1

    def in_child(function):
        if (child := fork()) == 0:
            try:
                function()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0

    thing = Thing()
    reset_after_fork(thing)
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
FORKS = pytest.mark.parametrize("fork", ["os.fork", "fork(2)"])
MARKS = pytest.mark.parametrize("mark", ["page", "process id"])


def run(source: str, mark: str, fork: str, *arguments: str) -> None:
    run_script(PRELUDE + source, mark, fork, *arguments)


@FORKS
@MARKS
def test_a_child_starts_afresh_once_and_its_parent_does_not(mark: str, fork: str) -> None:
    run(
        """
    def child():
        detect_fork()
        detect_fork()
        assert thing.resets == 1

    in_child(child)
    detect_fork()
    assert thing.resets == 0
    """,
        mark,
        fork,
    )


@FORKS
@MARKS
def test_each_generation_starts_afresh(mark: str, fork: str) -> None:
    run(
        """
    def grandchild():
        before = thing.resets
        detect_fork()
        assert thing.resets == max(before, 1 if before == 0 else 2)

    def child():
        in_child(grandchild)  # of a child that has used nothing
        detect_fork()
        in_child(grandchild)

    in_child(child)
    """,
        mark,
        fork,
    )


def test_a_child_with_the_process_id_of_its_parent_is_told_from_it() -> None:
    """An id is used again when its process has ended, and in another namespace at any time."""
    run(
        """
    os.getpid = lambda: 1

    def child():
        detect_fork()
        assert thing.resets == 1

    in_child(child)
    """,
        "page",
        "fork(2)",
    )


@MARKS
def test_of_the_threads_of_a_child_one_starts_afresh_and_the_others_wait(mark: str) -> None:
    run(
        """
    class Slow(Thing):
        is_done = False

        def after_fork_in_child(self):
            super().after_fork_in_child()
            threading.Event().wait(0.2)
            self.is_done = True

    slow = Slow()
    reset_after_fork(slow)

    def child():
        faults = []
        barrier = threading.Barrier(8)

        def use():
            barrier.wait()
            detect_fork()
            if not slow.is_done or slow.resets != 1:
                faults.append(slow.resets)

        threads = [threading.Thread(target=use) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert faults == []

    in_child(child)
    """,
        mark,
        "fork(2)",
    )


@MARKS
def test_a_lock_that_a_thread_of_the_parent_has_is_free_in_a_child(mark: str) -> None:
    """Also to fork again, for which the hooks take it."""
    run(
        """
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with no_fork():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(20)

    def child():
        with no_fork():
            pass
        if (grandchild := os.fork()) == 0:
            with no_fork():
                os._exit(0)
        assert os.waitpid(grandchild, 0)[1] == 0

    in_child(child)
    leave.set()
    thread.join()
    """,
        mark,
        "fork(2)",
    )


@FORKS
@MARKS
def test_the_thread_that_forks_within_the_lock_has_it_in_both_processes(mark: str, fork: str) -> None:
    """As a signal handler may do it."""
    run(
        """
    def is_free():
        found = []

        def look():
            found.append(forks._fork_lock.acquire(blocking=False))
            found[0] and forks._fork_lock.release()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return found[0]

    with no_fork():
        child = fork()
        detect_fork()
        assert not is_free()
    assert is_free()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """,
        mark,
        fork,
    )


def test_nobody_is_within_the_lock_when_a_child_is_made() -> None:
    run(
        """
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with no_fork():
            inside.set()
            leave.wait(20)

    threading.Thread(target=stay).start()
    inside.wait(20)
    threading.Timer(0.1, leave.set).start()

    def child():
        assert leave.is_set()

    in_child(child)
    """,
        "page",
        "os.fork",
    )


# What only one process may have


def test_a_descriptor_closes_its_own_file_and_no_other_that_has_the_number_by_now(tmp_path: Path) -> None:
    number = os.open(os.devnull, os.O_RDONLY)
    descriptor = Descriptor(number)
    os.close(number)
    assert not descriptor.is_open
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    if other != number:
        os.dup2(other, number)
        os.close(other)
    descriptor.close()
    descriptor.silence()
    os.write(number, b"still open")
    os.close(number)
    assert (tmp_path / "other").read_text() == "still open"


@pytest.mark.parametrize(("method", "is_null"), [("close", None), ("silence", True)])
def test_a_descriptor_gives_its_file_back(method: str, is_null: bool | None, tmp_path: Path) -> None:
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    descriptor = Descriptor(number)
    getattr(descriptor, method)()
    assert not descriptor.is_open
    if is_null:
        assert os.path.samestat(os.fstat(number), os.stat(os.devnull))
        os.close(number)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize(
    "make",
    [Session, lambda: Store("there"), lambda: Pool(lambda _: pytest.fail("it connects"), 1), OpenSockets],
    ids=["Session", "Store", "Pool", "OpenSockets"],
)
def test_what_belongs_to_one_process_cannot_be_copied(
    make: Callable[[], ProcessBound], how: Callable[[object], object]
) -> None:
    with pytest.raises(TypeError, match=r"^\w+ cannot be copied or pickled: it belongs to the process that made it$"):
        how(make())
