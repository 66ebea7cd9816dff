"""One call of RemoteStorage from one thread, beside the other clients and stores that an application could take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import pymemcache
import redis
import salmon.routing

import statestore
from benchmarks import processes
from benchmarks.errors import BenchmarkError
from benchmarks.prebuilt import MODULE, STATES, redis_key, senders
from benchmarks.tables import table

# The shelves open and close their file for each call: a thousand keys are enough to wait for.
KEYS = 1_000
CALLS_BETWEEN_LOOKS = 16  # at the clock, so that it costs nothing
REFERENCE = "redis-py (hiredis)"

Get = Callable[[str], object]
Set = Callable[[str, str], object]


@dataclass(frozen=True)
class Store:
    """Answers `str`, as the Router needs it, and returns from `set` when the store has it."""

    name: str
    get: Get
    set: Set


@contextmanager
def remote_storage() -> Iterator[Store]:
    with processes.statestored() as server, statestore.RemoteStorage(server.address) as storage:
        yield _of_module("RemoteStorage", storage)


@contextmanager
def redis_py() -> Iterator[Store]:
    with processes.redis() as server:
        client = redis.Redis(server.host, server.port, decode_responses=True)
        yield Store(
            REFERENCE,
            lambda sender: client.get(redis_key(sender)),
            lambda sender, state: client.set(redis_key(sender), state),
        )
        client.close()


@contextmanager
def pymemcache_client() -> Iterator[Store]:
    """Not as it comes: Nagle's algorithm off, and `set` waits for its answer, as the others do."""
    with processes.memcached() as server:
        client = pymemcache.Client((server.host, server.port), no_delay=True, default_noreply=False)
        yield Store(
            "pymemcache",
            lambda sender: client.get(redis_key(sender)).decode(),
            lambda sender, state: client.set(redis_key(sender), state),
        )
        client.close()


@contextmanager
def our_shelf() -> Iterator[Store]:
    with TemporaryDirectory() as directory:
        yield _of_module("statestore.ShelveStorage", statestore.ShelveStorage(str(Path(directory, "states"))))


@contextmanager
def salmons_shelf() -> Iterator[Store]:
    with TemporaryDirectory() as directory:
        yield _of_module("salmon.routing.ShelveStorage", salmon.routing.ShelveStorage(str(Path(directory, "states"))))


STORES = (remote_storage, redis_py, pymemcache_client, our_shelf, salmons_shelf)


def _of_module(name: str, storage: statestore.StateStorage) -> Store:
    get, set_ = storage.get, storage.set
    return Store(name, lambda sender: get(MODULE, sender), lambda sender, state: set_(MODULE, sender, state))


class Contender:
    """A store with all keys in it, and the calls to come, round and round: no `set` is of the state already there."""

    def __init__(self, store: Store) -> None:
        self.name = store.name
        keys = senders(KEYS)
        for sender in keys:
            store.set(sender, STATES[-1])
            if store.get(sender) != STATES[-1]:
                raise BenchmarkError(f"{store.name} does not keep what it is given")
        gets, sets = cycle(keys), cycle([(sender, state) for state in STATES for sender in keys])
        self.calls: dict[str, Callable[[], object]] = {
            "get": lambda: store.get(next(gets)),
            "set": lambda: store.set(*next(sets)),
        }


def measure(rounds: int, seconds: float) -> list[Outcome]:
    with ExitStack() as stack:
        contenders = [Contender(stack.enter_context(store())) for store in STORES]
        outcomes = [Outcome(contender.name, {"get": [], "set": []}) for contender in contenders]
        for operation in ("get", "set"):
            for _ in range(rounds):
                for contender, outcome in zip(contenders, outcomes, strict=True):
                    outcome.microseconds[operation].append(_time(contender.calls[operation], seconds))
    return outcomes


@dataclass(frozen=True)
class Outcome:
    """Microseconds a call, for each operation a figure from each round."""

    name: str
    microseconds: dict[str, list[float]]

    def ratio(self, operation: str, reference: Outcome) -> float:
        pairs = zip(self.microseconds[operation], reference.microseconds[operation], strict=True)
        return median(own / other for own, other in pairs)


def _time(call: Callable[[], object], seconds: float) -> float:
    """Calls it for so many seconds. Returns microseconds a call."""
    calls = 0
    start = now = perf_counter()
    while now - start < seconds:
        for _ in range(CALLS_BETWEEN_LOOKS):
            call()
        calls += CALLS_BETWEEN_LOOKS
        now = perf_counter()
    return (now - start) / calls * 1e6


def report(outcomes: list[Outcome]) -> str:
    """Time beside time: below 1 is faster than redis-py."""
    reference = next(outcome for outcome in outcomes if outcome.name == REFERENCE)
    head = ["one thread, µs a call", "get", "to redis-py", "set", "to redis-py"]
    return table(
        head, ([each.name, *_cells(each, "get", reference), *_cells(each, "set", reference)] for each in outcomes)
    )


def _cells(outcome: Outcome, operation: str, reference: Outcome) -> list[str]:
    return [f"{median(outcome.microseconds[operation]):.1f}", f"{outcome.ratio(operation, reference):.2f}"]
