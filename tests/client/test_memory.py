"""The store in a dict, under threads."""

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from statestore import START, MemoryStorage
from tests.client.scripts import run_script

THREADS, ROUNDS = 8, 300


@pytest.fixture
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def increment(store: MemoryStorage) -> None:
    """By one, as an application without a lock has to do it."""
    swapped = False
    while not swapped:
        state = store.get("m", "counter")
        number = 0 if state == START else int(state)
        swapped, _ = store.compare_and_set("m", "counter", state, str(number + 1))


@pytest.mark.usefixtures("_threads_take_turns_often")
def test_threads_lose_nothing() -> None:
    store = MemoryStorage()

    def work(thread: int) -> None:
        for number in range(ROUNDS):
            increment(store)
            store.set(f"m{thread}", f"s{number % 3}", str(number))
            store.set("shared", str(thread), "A")
            store.set_all(str(thread), START)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert store.get("m", "counter") == str(THREADS * ROUNDS)
    assert store.count() == 1 + 3 * THREADS
    assert [store.get(f"m{thread}", "s0") for thread in range(THREADS)] == ["297"] * THREADS


@pytest.mark.usefixtures("_threads_take_turns_often")
def test_a_scan_is_one_moment_whatever_others_do() -> None:
    store = MemoryStorage()
    store.set_many([("m", str(number), "A") for number in range(200)])

    def change() -> None:
        for _ in range(100):
            store.set_many([("m", str(number), START) for number in range(200)])
            store.set_many([("m", str(number), "A") for number in range(200)])

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        seen = {len(list(store.scan()))}
        while not changing.done():
            seen.add(len(list(store.scan())))
        changing.result()
    assert seen <= {0, 200}


@pytest.mark.skipif(sys.platform == "win32", reason="no fork here")
@pytest.mark.parametrize("fork", ["os.fork", "fork(2)"])
def test_a_child_can_use_it_that_was_forked_while_a_thread_was_within_a_call(fork: str) -> None:
    run_script(
        """
        import ctypes, os, signal, sys, threading
        from statestore import MemoryStorage

        fork = {"os.fork": os.fork, "fork(2)": ctypes.PyDLL(None).fork}[sys.argv[1]]
        store = MemoryStorage()
        store.set("m", "a", "A")
        inside, leave = threading.Event(), threading.Event()

        def stay():
            with store._held():
                inside.set()
                leave.wait(0.5 if fork is os.fork else 20)  # os.fork waits until it is outside

        thread = threading.Thread(target=stay)
        thread.start()
        inside.wait(20)
        if (child := fork()) == 0:
            signal.alarm(10)  # ends a child that waits for its parent's thread
            os._exit(store.get("m", "a") != "A")
        assert os.waitpid(child, 0)[1] == 0
        leave.set()
        thread.join()
        """,
        fork,
    )


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_it_cannot_be_copied(how: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="MemoryStorage cannot be copied or pickled: it belongs to the process"):
        how(MemoryStorage())


def test_two_stores_are_two() -> None:
    one, other = MemoryStorage(), MemoryStorage()
    one.set("m", "a", "A")
    assert other.get("m", "a") == START
