"""Who calls: processes, each with a `RemoteStorage` that several threads share."""

import logging
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from statestore import RemoteStorage
from statestore.base import START, Pair
from statestore.errors import StateStoreError
from tests.consistency.history import Operation

MODULES = ("a", "b")
SENDERS = tuple(f"sender{number}" for number in range(8))
THREADS = 2
POOL = 2
DEADLINE = 1.0  # seconds for a get
AFTER_REFUSAL = 0.01  # seconds
MOST_REFUSED = 20  # for each call that counts: then the daemon does not come back
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


@dataclass
class Record:
    """refused: calls that were answered by an error, and so have not taken effect; they are no part of the history."""

    history: list[Operation]
    refused: int = 0


class Actor:
    """One thread's calls. Each writes a value that no other does."""

    def __init__(self, job: Job, name: str, storage: RemoteStorage) -> None:
        self.record = Record([])
        self._job = job
        self._name = name
        self._storage = storage
        self._random = Random(f"{job.seed}/{name}")
        self._seen: dict[Pair, str] = {}
        self._written = 0

    def run(self) -> Record:
        wanted, history = self._job.operations // THREADS, self.record.history
        while len(history) < wanted and self.record.refused < wanted * MOST_REFUSED:
            self._call(*self._draw())
        return self.record

    def _draw(self) -> tuple[str, str, tuple[str, ...]]:
        random = self._random
        sender, module = random.choice(SENDERS), random.choice(MODULES)
        self._written += 1
        new = START if random.random() < 0.1 else f"{self._name}.{self._written}"
        (method,) = random.choices(["get", "set", "compare_and_set", "set_all"], [40, 30, 25, 5])
        match method:
            case "get":
                return method, sender, (module,)
            case "set":
                return method, sender, (module, new)
            case "compare_and_set":
                return method, sender, (module, self._seen.get((module, sender), START), new)
            case _:
                return method, sender, (new,)

    def _call(self, method: str, sender: str, arguments: tuple[str, ...]) -> None:
        module, given = ((), arguments) if method == "set_all" else (arguments[:1], arguments[1:])
        called = time.monotonic()
        try:
            result: Any = getattr(self._storage, method)(*module, sender, *given)
        except StateStoreError as error:
            returned = time.monotonic()
            if error.applied == "maybe":
                until = max(returned, called + self._job.write_deadline) + SLACK
                self._note(method, sender, arguments, called, until, answered=False)
            else:
                self.record.refused += 1
                time.sleep(AFTER_REFUSAL)
            return
        returned = time.monotonic()
        result = tuple(result) if method == "compare_and_set" else result
        self._note(method, sender, arguments, called, returned, answered=True, result=result)
        if method in ("get", "compare_and_set"):
            self._seen[arguments[0], sender] = result if method == "get" else result[1]

    def _note(
        self,
        method: str,
        sender: str,
        arguments: tuple[str, ...],
        called: float,
        returned: float,
        *,
        answered: bool,
        result: Any = None,
    ) -> None:
        operation = Operation(self._name, method, sender, arguments, called, returned, answered, result)
        self.record.history.append(operation)


def work(job: Job) -> Record:
    """In a process of its own."""
    logging.getLogger("statestore").propagate = False
    logging.getLogger("statestore").addHandler(logging.NullHandler())
    with (
        RemoteStorage(job.addresses, deadline=DEADLINE, write_deadline=job.write_deadline, pool=POOL) as storage,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        actors = [Actor(job, f"{job.name}{'xyz'[number]}", storage) for number in range(THREADS)]
        records = [future.result() for future in [threads.submit(actor.run) for actor in actors]]
    history = [operation for record in records for operation in record.history]
    return Record(history, sum(record.refused for record in records))


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
