"""Who calls: processes, each with one client that is shared by several threads, or by several coroutines."""

import asyncio
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from statestore import AsyncRemoteStorage, RemoteStorage
from statestore.base import START, Pair
from statestore.errors import StateStoreError
from tests.consistency.history import Operation

MODULES = ("a", "b")
SENDERS = tuple(f"sender{number}" for number in range(8))
ACTORS = 2  # in a process
DEADLINE = 1.0  # seconds for a get
AFTER_REFUSAL = 0.02  # seconds
LIMIT = 120.0  # seconds; then the daemon does not come back
# Seconds, from before a call to where its deadline begins: after that the daemon does not execute it any more.
SLACK = 0.02


@dataclass(frozen=True)
class Job:
    """What one process does in a run. operations: that are not refused; write_deadline: in seconds."""

    name: str
    addresses: str
    seed: str
    operations: int
    write_deadline: float
    is_async: bool


@dataclass
class Record:
    """refused: calls that were answered by an error, and so have not taken effect; they are no part of the history."""

    history: list[Operation]
    refused: int = 0


class Call(NamedTuple):
    method: str
    sender: str
    arguments: tuple[str, ...]  # without the sender

    @property
    def parameters(self) -> tuple[str, ...]:
        """As the method takes them."""
        modules = 0 if self.method == "set_all" else 1
        return (*self.arguments[:modules], self.sender, *self.arguments[modules:])


class Actor:
    """Says what to call, one call after the other, and notes what comes of it. Writes no value that another does."""

    def __init__(self, job: Job, name: str) -> None:
        self.record = Record([])
        self._wanted = job.operations // ACTORS
        self._write_deadline = job.write_deadline
        self._name = name
        self._random = Random(f"{job.seed}/{name}")
        self._seen: dict[Pair, str] = {}
        self._written = 0

    def calls(self) -> Iterator[Call]:
        end = time.monotonic() + LIMIT
        while len(self.record.history) < self._wanted and time.monotonic() < end:
            yield self._draw()

    def answered(self, call: Call, called: float, result: Any) -> None:
        returned = time.monotonic()
        result = tuple(result) if call.method == "compare_and_set" else result
        self.record.history.append(Operation(self._name, *call, called, returned, True, result))
        if call.method in ("get", "compare_and_set"):
            self._seen[call.arguments[0], call.sender] = result if call.method == "get" else result[1]

    def failed(self, call: Call, called: float, error: StateStoreError) -> float:
        """Seconds to wait before the next call."""
        if error.applied == "no":
            self.record.refused += 1
            return AFTER_REFUSAL
        until = max(time.monotonic(), called + self._write_deadline) + SLACK
        self.record.history.append(Operation(self._name, *call, called, until, False))
        return 0.0

    def _draw(self) -> Call:
        random = self._random
        sender, module = random.choice(SENDERS), random.choice(MODULES)
        self._written += 1
        new = START if random.random() < 0.1 else f"{self._name}.{self._written}"
        (method,) = random.choices(["get", "set", "compare_and_set", "set_all"], [40, 30, 25, 5])
        match method:
            case "get":
                return Call(method, sender, (module,))
            case "set":
                return Call(method, sender, (module, new))
            case "compare_and_set":
                return Call(method, sender, (module, self._seen.get((module, sender), START), new))
            case _:
                return Call(method, sender, (new,))


def work(job: Job) -> Record:
    """In a process of its own."""
    logging.getLogger("statestore").propagate = False
    logging.getLogger("statestore").addHandler(logging.NullHandler())
    actors = [Actor(job, f"{job.name}{letter}") for letter in "xyz"[:ACTORS]]
    if job.is_async:
        asyncio.run(_run_coroutines(job, actors))
    else:
        _run_threads(job, actors)
    history = [operation for actor in actors for operation in actor.record.history]
    return Record(history, sum(actor.record.refused for actor in actors))


def _run_threads(job: Job, actors: Sequence[Actor]) -> None:
    with (
        RemoteStorage(job.addresses, deadline=DEADLINE, write_deadline=job.write_deadline) as storage,
        ThreadPoolExecutor(ACTORS) as threads,
    ):
        for running in [threads.submit(_run, actor, storage) for actor in actors]:
            running.result()


def _run(actor: Actor, storage: RemoteStorage) -> None:
    for call in actor.calls():
        called = time.monotonic()
        try:
            result = getattr(storage, call.method)(*call.parameters)
        except StateStoreError as error:
            time.sleep(actor.failed(call, called, error))
        else:
            actor.answered(call, called, result)


async def _run_coroutines(job: Job, actors: Sequence[Actor]) -> None:
    async with AsyncRemoteStorage(job.addresses, deadline=DEADLINE, write_deadline=job.write_deadline) as storage:
        await asyncio.gather(*(_run_async(actor, storage) for actor in actors))


async def _run_async(actor: Actor, storage: AsyncRemoteStorage) -> None:
    for call in actor.calls():
        called = time.monotonic()
        try:
            result = await getattr(storage, call.method)(*call.parameters)
        except StateStoreError as error:
            await asyncio.sleep(actor.failed(call, called, error))
        else:
            actor.answered(call, called, result)


class Clients:
    """The processes, which live through all runs: each takes one job of every run."""

    def __init__(self, pools: Sequence[ProcessPoolExecutor]) -> None:
        self._pools = pools

    def __len__(self) -> int:
        return len(self._pools)

    def start(self, jobs: Sequence[Job]) -> "list[Future[Record]]":
        return [pool.submit(work, job) for pool, job in zip(self._pools, jobs, strict=True)]


@contextmanager
def client_processes(count: int) -> Iterator[Clients]:
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(count)]
    try:
        for started in [pool.submit(os.getpid) for pool in pools]:
            started.result()
        yield Clients(pools)
    finally:
        for pool in pools:
            pool.shutdown()
