"""The store in a dict, under threads."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from statestore import START, MemoryStorage

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


def test_two_stores_are_two() -> None:
    one, other = MemoryStorage(), MemoryStorage()
    one.set("m", "a", "A")
    assert other.get("m", "a") == START
