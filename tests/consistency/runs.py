"""A run: a new daemon, clients that call it through proxies, troubles; and what is wrong with what they saw."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from random import Random

from statestore import RemoteStorage
from tests.consistency.clients import MODULES, SENDERS, Clients, Job
from tests.consistency.history import Operation
from tests.consistency.linearizability import Undecided, linearize
from tests.consistency.shrink import shrink
from tests.consistency.troubles import Troubles
from tests.daemon import Daemon
from tests.proxy import Proxy

PROXIES = 4
TROUBLES = 20  # in a run, at most
WRITE_DEADLINES = (0.5, 1.0, 5.0)  # seconds


@dataclass
class Result:
    """faults: of the daemon itself. wrong: for each sender whose history is not linearizable, the shortest of it."""

    history: list[Operation]
    refused: int = 0
    troubles: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    wrong: list[list[Operation]] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)


def run(
    directory: Path, clients: Clients, *, seed: str, operations: int, troubles: int = TROUBLES, fsync: str = "always"
) -> Result:
    """The same seed gives the same calls and troubles, not the same times."""
    random = Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(directory, f"--fsync={fsync}"))
        proxies = [stack.enter_context(Proxy(daemon.address)) for _ in range(PROXIES)]
        running = clients.start(list(_jobs(random, proxies, seed, len(clients), operations)))
        trouble = Troubles(random, daemon, proxies)
        trouble.make(lambda: not all(future.done() for future in running), troubles)
        records = [future.result() for future in running]
        history = [operation for record in records for operation in record.history]
        history += _look(daemon.address)
        result = Result(history, sum(record.refused for record in records), trouble.made)
        if code := daemon.stop():
            result.faults.append(f"exit code {code}")
        result.faults += re.findall(r"^.* level=(?:error|critical) .*$", daemon.log(), re.M)
    judge(result)
    return result


def judge(result: Result) -> None:
    for sender, history in _by_sender(result.history):
        try:
            if linearize(history) is None:
                result.wrong.append(shrink(history))
        except Undecided as error:
            result.undecided.append(f"{sender}: {error}")


def _jobs(random: Random, proxies: Sequence[Proxy], seed: str, count: int, operations: int) -> Iterator[Job]:
    for number in range(count):
        addresses = ",".join(proxy.address for proxy in random.sample(proxies, 2))
        write_deadline = random.choice(WRITE_DEADLINES)
        yield Job(f"c{number}", addresses, seed, operations // count, write_deadline, is_async=number % 2 == 1)


def _look(address: str) -> Iterator[Operation]:
    """What there is at the end."""
    with RemoteStorage(address) as storage:
        for sender in SENDERS:
            for module in MODULES:
                called = time.monotonic()
                state = storage.get(module, sender)
                yield Operation("end", "get", sender, (module,), called, time.monotonic(), True, state)


def _by_sender(history: Sequence[Operation]) -> Iterator[tuple[str, list[Operation]]]:
    for sender, operations in groupby(sorted(history, key=_sender), key=_sender):
        yield sender, list(operations)


def _sender(operation: Operation) -> str:
    return str(operation.sender)
