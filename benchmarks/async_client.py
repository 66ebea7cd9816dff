"""A hundred tasks of one event loop that ask AsyncRemoteStorage, beside redis-py's asyncio client.

This part alone: `python -m benchmarks --only async_client`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from statistics import median
from time import perf_counter, process_time
from typing import Any, Self

import redis.asyncio
import uvloop

import statestore
from benchmarks import processes
from benchmarks.errors import BenchmarkError
from benchmarks.prebuilt import MODULE, STATES, redis_key, senders
from benchmarks.tables import table

TASKS = 100
KEYS = 1_000
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Get = Callable[[str], Awaitable[str]]
Set = Callable[[str, str], Awaitable[object]]
Run = Callable[[Coroutine[Any, Any, Any]], Any]
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True)
class Store:
    name: str
    get: Get
    set: Set


@contextmanager
def remote_storage(run: Run) -> Iterator[Store]:
    with processes.statestored() as server:
        storage = statestore.AsyncRemoteStorage(server.address)
        yield Store(
            "AsyncRemoteStorage",
            lambda sender: storage.get(MODULE, sender),
            lambda sender, state: storage.set(MODULE, sender, state),
        )
        run(storage.close())


@contextmanager
def redis_py(run: Run) -> Iterator[Store]:
    """As it comes: a connection for each task that asks, which is faster than a smaller pool, or one connection."""
    with processes.redis() as server:
        client = redis.asyncio.Redis(host=server.host, port=server.port, decode_responses=True)
        yield Store(
            "redis-py (hiredis)",
            lambda sender: client.get(redis_key(sender)),
            lambda sender, state: client.set(redis_key(sender), state),
        )
        run(client.aclose())


StoreOf = Callable[[Run], AbstractContextManager[Store]]


class Contender:
    """A store with all keys in it, asked in a loop of its own, which stands still while others are measured."""

    def __init__(self, run: Run, store: Store) -> None:
        self._run = run
        keys = senders(KEYS)
        gets, sets = cycle(keys), cycle([(sender, state) for state in STATES for sender in keys])
        self._calls: dict[str, Callable[[], Awaitable[object]]] = {
            "get": lambda: store.get(next(gets)),
            "set": lambda: store.set(*next(sets)),
        }
        run(_fill(store))

    @classmethod
    def in_loop(cls, new_loop: NewLoop, store: StoreOf, stack: ExitStack) -> Self:
        run = stack.enter_context(asyncio.Runner(loop_factory=new_loop)).run
        return cls(run, stack.enter_context(store(run)))

    def measure(self, operation: str, seconds: float) -> Measured:
        measured: Measured = self._run(_ask(self._calls[operation], seconds))
        return measured


async def _fill(store: Store) -> None:
    for sender in senders(KEYS):
        await store.set(sender, STATES[-1])
        if await store.get(sender) != STATES[-1]:
            raise BenchmarkError(f"{store.name} does not keep what it is given")


@dataclass(frozen=True)
class Measured:
    rate: float  # operations a second
    cpu: float  # microseconds of this process for each


async def _ask(call: Callable[[], Awaitable[object]], seconds: float) -> Measured:
    """All tasks ask, one call after the other each, until the time is over."""
    calls = 0
    start, cpu = perf_counter(), process_time()
    end = start + seconds

    async def work() -> None:
        nonlocal calls
        while perf_counter() < end:
            await call()
            calls += 1

    await asyncio.gather(*(work() for _ in range(TASKS)))
    return Measured(calls / (perf_counter() - start), (process_time() - cpu) / calls * 1e6)


@dataclass(frozen=True)
class Outcome:
    """Of one kind of loop and one operation; from each round one of ours and one of theirs."""

    loop: str
    operation: str
    ours: list[Measured]
    theirs: list[Measured]

    @property
    def ratio(self) -> float:
        return median(own.rate / other.rate for own, other in zip(self.ours, self.theirs, strict=True))


def measure(rounds: int, seconds: float) -> list[Outcome]:
    outcomes = []
    for name, new_loop in LOOPS.items():
        with ExitStack() as stack:
            ours, theirs = (Contender.in_loop(new_loop, store, stack) for store in (remote_storage, redis_py))
            for operation in ("get", "set"):
                outcome = Outcome(name, operation, [], [])
                for _ in range(rounds):
                    outcome.ours.append(ours.measure(operation, seconds))
                    outcome.theirs.append(theirs.measure(operation, seconds))
                outcomes.append(outcome)
    return outcomes


def report(outcomes: list[Outcome]) -> str:
    """Rate beside rate: above 1 is faster than redis-py."""
    head = [f"{TASKS} tasks, operations a second", "AsyncRemoteStorage", "redis-py (hiredis)", "ratio"]
    return table([*head, "CPU µs each", "redis-py"], map(_row, outcomes))


def _row(outcome: Outcome) -> list[str]:
    ours, theirs = outcome.ours, outcome.theirs
    rates = [f"{median(each.rate for each in runs):,.0f}" for runs in (ours, theirs)]
    cpu = [f"{median(each.cpu for each in runs):.1f}" for runs in (ours, theirs)]
    return [f"{outcome.operation}, {outcome.loop}", *rates, f"{outcome.ratio:.2f}", *cpu]
