"""Clients: processes whose actors make one call after the other, and note what comes of each.

No two calls write the same state, so a state that is read says which call wrote it.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import ANY

from statestore import AsyncRemoteStorage, RemoteStorage
from statestore.base import START, Entry
from statestore.errors import StateStoreError
from tests.consistency.history import Operation
from tests.simulation import loop
from tests.simulation.kernel import Kernel, Machine, Process
from tests.simulation.plan import Plan, keeps_sessions
from tests.simulation.stand_ins import sleep

MODULES = ("a", "b")
READ_DEADLINE = 1.0  # seconds
LATE = 0.15  # seconds that a call may take beyond its deadline
REFUSED_PAUSE = 0.25  # seconds before the next call, or an actor would be done before the store is back
CANCEL_AFTER = (0.0, 0.0005, 0.01, 0.2)  # seconds
CLOCK_ERROR = 0.02  # seconds by which a client may take the server's clock to be behind
LARGE = 40  # senders in a large bulk call

READS = frozenset({"get", "get_many", "scan", "count"})
WEIGHTS = {"get": 25, "get_many": 15, "set": 30, "set_many": 5, "compare_and_set": 25, "set_all": 5}
BULK_WEIGHTS = {"scan": 4, "count": 3, "clear": 2, "set_many_large": 3, "get_many_large": 3}


@dataclass(frozen=True, slots=True)
class Call:
    """What an actor asks of its storage. arguments: without the sender. senders: of the whole call."""

    method: str
    sender: str = ""
    arguments: tuple[str, ...] = ()

    @property
    def reads(self) -> bool:
        return self.method.removesuffix("_large") in READS

    def __str__(self) -> str:
        return f"{self.method} {self.sender} {', '.join(self.arguments)}".rstrip()


class History:
    """What all clients did, for the checker; and how often what came of it."""

    def __init__(self, kernel: Kernel, plan: Plan) -> None:
        self.kernel = kernel
        self.plan = plan
        self.operations: list[Operation] = []
        self.refused = 0  # calls that were certainly not carried out
        self.unanswered = 0  # writes that may have been
        self.calls = 0
        self.clients_running = 0  # so many have calls to make

    def senders(self) -> list[str]:
        return [f"s{number}" for number in range(self.plan.senders)]

    def add(self, actor: str, call: Call, called: float, returned: float, *, answered: bool, result: Any) -> None:
        """Note a call, as operations of one sender each."""
        for sender, method, arguments, told in _operations(call, result, self.senders(), answered=answered):
            operation = Operation(actor, method, sender, arguments, called, returned, answered, told)
            self.operations.append(operation)


_Parts = Iterator[tuple[str, str, tuple[str, ...], Any]]  # sender, method, arguments and result


def _operations(call: Call, result: Any, senders: list[str], *, answered: bool) -> _Parts:
    """What a call means for each sender.

    Of a call that concerns several entries no more is asked here than that it does to each what it should. An entry
    that is missing from a scan may have been made meanwhile, so nothing follows from it.
    """
    match call.method:
        case "get_many":
            for module, state in zip(call.arguments, result, strict=True):
                yield call.sender, "get", (module,), state
        case "get_many_large":
            for (module, sender), state in zip(_large_pairs(senders), result, strict=True):
                if sender in senders:
                    yield sender, "get", (module,), state
        case "set_many":
            for module, state in zip(MODULES, call.arguments, strict=True):
                yield call.sender, "set", (module, state), None
        case "set_many_large":
            for module, sender in _large_pairs(senders):
                if sender in senders:
                    yield sender, "set", (module, f"{call.arguments[0]}{module}"), None
        case "clear":
            for sender in senders:
                yield sender, "set_all", (START,), ANY if answered else None
        case "scan":
            for entry in result:
                if entry.sender in senders:
                    yield entry.sender, "get", (entry.module,), entry.state
        case "count":
            pass
        case "compare_and_set":
            yield call.sender, call.method, call.arguments, tuple(result) if answered else None
        case method:
            yield call.sender, method, call.arguments, result


def _large_pairs(senders: list[str]) -> list[tuple[str, str]]:
    """Pairs of module and sender, far more than the senders that are checked."""
    others = [f"other{number}" for number in range(LARGE)]
    return [(module, sender) for sender in (*senders, *others) for module in MODULES]


class Actor:
    """A thread or a coroutine of a client: it makes calls, one after the other."""

    def __init__(self, history: History, name: str, process: Process, calls: int, *, is_reader: bool = False) -> None:
        self.name = name
        self.calls_left = calls
        self._history = history
        self._kernel = history.kernel
        self._plan = history.plan
        self._process = process
        self._is_reader = is_reader
        self._rng = random.Random(f"{history.plan.seed}/{name}")
        self._seen: dict[tuple[str, str], str] = {}  # the last state that was read, by module and sender
        self._written = 0
        self._under_way: tuple[Call, float] | None = None
        self._begun = 0.0  # on the clock of its machine

    async def work(self, storage: AsyncRemoteStorage) -> None:
        for call, pause in self._calls():
            await asyncio.sleep(pause)
            if not await self.ask(storage, call):
                await asyncio.sleep(REFUSED_PAUSE)

    def work_blocking(self, storage: RemoteStorage) -> None:
        for call, pause in self._calls():
            sleep(pause)
            if not self._ask_blocking(storage, call):
                sleep(REFUSED_PAUSE)

    async def ask(self, storage: AsyncRemoteStorage, call: Call) -> bool:
        """Make a call, and note what comes of it. Returns whether it had an answer, or was cancelled."""
        called = self._begin(call)
        is_cancelled = self._plan.cancelled and not self._is_reader and self._rng.random() < self._plan.cancelled
        try:
            if is_cancelled:
                async with asyncio.timeout(self._rng.choice(CANCEL_AFTER)):
                    result = await _ask(storage, call, self._history.senders())
            else:
                result = await _ask(storage, call, self._history.senders())
        except TimeoutError:
            self._kernel.note(self.name, "cancelled", str(call))
            self._no_answer(call, called)
            if self._rng.random() < 0.1:
                await storage.close()
            return True
        except StateStoreError as error:
            self._failed(call, called, error)
            return False
        self._answered(call, called, result)
        return True

    def _ask_blocking(self, storage: RemoteStorage, call: Call) -> bool:
        called = self._begin(call)
        try:
            result = _method(storage, call)(*_parameters(call, self._history.senders()))
            if call.method == "scan":
                result = list(result)
        except StateStoreError as error:
            self._failed(call, called, error)
            return False
        self._answered(call, called, result)
        return True

    def crashed(self) -> None:
        """Its process is gone: its call will have no answer."""
        if self._under_way is not None:
            self._no_answer(*self._under_way)

    def _calls(self) -> Iterator[tuple[Call, float]]:
        """Each call, and the seconds to wait before it."""
        while self.calls_left > 0:
            self.calls_left -= 1
            yield self._draw(), self._rng.expovariate(1 / self._plan.think)

    def _draw(self) -> Call:
        rng = self._rng
        sender, module = rng.choice(self._history.senders()), rng.choice(MODULES)
        self._written += 1
        new = START if rng.random() < 0.1 else f"{self.name}.{self._written}"
        weights = WEIGHTS | BULK_WEIGHTS if self._plan.bulk else WEIGHTS
        (method,) = rng.choices(list(weights), list(weights.values()))
        match method:
            case "get":
                return Call(method, sender, (module,))
            case "get_many":
                return Call(method, sender, MODULES)
            case "set":
                return Call(method, sender, (module, new))
            case "set_many":
                return Call(method, sender, (new, new if new == START else f"{new}b"))
            case "compare_and_set":
                return Call(method, sender, (module, self._seen.get((module, sender), START), new))
            case "set_all":
                return Call(method, sender, (new,))
            case "set_many_large":
                return Call(method, "", (f"{self.name}.{self._written}",))
            case _:
                return Call(method)

    def _begin(self, call: Call) -> float:
        self._history.calls += 1
        self._under_way = call, self._kernel.now
        self._begun = self._process.machine.monotonic()
        return self._kernel.now

    def _answered(self, call: Call, called: float, result: Any) -> None:
        self._end(call, "answered", f"-> {result}")
        self._history.add(self.name, call, called, self._kernel.now, answered=True, result=result)
        if call.method in ("get", "compare_and_set"):
            self._seen[call.arguments[0], call.sender] = result if call.method == "get" else result[1]

    def _failed(self, call: Call, called: float, error: StateStoreError) -> None:
        self._end(call, "failed", f": {type(error).__name__} {error}")
        if self._is_reader:
            self._kernel.fail(f"the store cannot be read: {error!r}")
        elif error.applied == "no":
            self._history.refused += 1
        else:
            self._check_time_was_used(call, error)
            self._no_answer(call, called)

    def _check_time_was_used(self, call: Call, error: StateStoreError) -> None:
        """A write is repeated until its deadline, so before that its outcome is known, unless its session is lost."""
        took = self._process.machine.monotonic() - self._begun
        if not call.reads and took < self._plan.write_deadline - CLOCK_ERROR and keeps_sessions(self._plan):
            self._kernel.fail(f"the outcome of a write of {self.name} is unknown after {took:.3f} s: {error}")

    def _no_answer(self, call: Call, called: float) -> None:
        """A write may be carried out until its deadline, which a suspension of its machine puts off."""
        self._under_way = None
        if not call.reads:
            self._history.unanswered += 1
            left = self._plan.write_deadline - (self._process.machine.monotonic() - self._begun)
            until = self._kernel.now + max(left, 0.0) + CLOCK_ERROR
            self._history.add(self.name, call, called, until, answered=False, result=None)

    def _end(self, call: Call, what: str, detail: str) -> None:
        self._under_way = None
        self._kernel.note(self.name, what, f"{call} {detail}")
        took = self._process.machine.monotonic() - self._begun
        deadline = READ_DEADLINE if call.reads else self._plan.write_deadline
        # A scan has a deadline for each of its pages.
        if not self._is_reader and call.method != "scan" and took > deadline + LATE:
            self._kernel.fail(f"{call.method} of {self.name} took {took:.3f} s, its deadline was {deadline:g} s")


def _method(storage: Any, call: Call) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(storage, call.method.removesuffix("_large"))
    return method


async def _ask(storage: AsyncRemoteStorage, call: Call, senders: list[str]) -> Any:
    outcome = _method(storage, call)(*_parameters(call, senders))
    return await _collected(outcome) if call.method == "scan" else await outcome


async def _collected(entries: AsyncIterator[Entry]) -> list[Entry]:
    return [entry async for entry in entries]


def _parameters(call: Call, senders: list[str]) -> tuple[Any, ...]:
    match call.method:
        case "get_many":
            return ([(module, call.sender) for module in call.arguments],)
        case "get_many_large":
            return (_large_pairs(senders),)
        case "set_many":
            return ([(module, call.sender, state) for module, state in zip(MODULES, call.arguments, strict=True)],)
        case "set_many_large":
            return ([(module, sender, f"{call.arguments[0]}{module}") for module, sender in _large_pairs(senders)],)
        case "scan" | "count" | "clear":
            return ()
        case "set_all":
            return call.sender, *call.arguments
        case _:
            return call.arguments[0], call.sender, *call.arguments[1:]


class Client:
    """A process on a machine of its own, and its actors."""

    def __init__(self, history: History, name: str, machine: Machine, address: str, token: str | None) -> None:
        self.process = Process(history.kernel, name, machine)
        self.actors: list[Actor] = []
        self.is_running = False
        self._actors_running = 0
        self._history = history
        self._kernel = history.kernel
        self._plan = history.plan
        self._options: dict[str, Any] = {
            "address": address,
            "token": token,
            "deadline": READ_DEADLINE,
            "write_deadline": history.plan.write_deadline,
        }

    def start(self, actors: list[Actor], *, blocking: bool) -> None:
        self.actors, self._actors_running = actors, len(actors)
        self._begin()
        if blocking:
            self._start_threads()
        else:
            self._start_loop()

    def end(self) -> None:
        """Its process has ended, or all its calls have."""
        if self.is_running:
            self.is_running = False
            self._history.clients_running -= 1

    def _begin(self) -> None:
        self.is_running = True
        self._history.clients_running += 1

    def _start_threads(self) -> None:
        storage: list[RemoteStorage] = []

        def work(actor: Actor) -> None:
            if not storage:
                storage.append(RemoteStorage(pool=2, **self._options))
            actor.work_blocking(storage[0])
            self._actors_running -= 1
            if not self._actors_running:
                self.end()
                storage[0].close()
                self._check_nothing_is_kept(storage[0])

        for actor in self.actors:
            self.process.spawn(work, actor)

    def _start_loop(self) -> None:
        async def main() -> None:
            async with AsyncRemoteStorage(**self._options) as storage:
                await asyncio.gather(*(actor.work(storage) for actor in self.actors))
            self._check_nothing_is_kept(storage)

        def ended(code: object) -> None:
            self.end()
            if code is not None:
                self._kernel.fail(f"{self.process.name} raised {code!r}")

        self.process.on_exit = ended
        loop.run(self.process, main)

    def _check_nothing_is_kept(self, storage: RemoteStorage | AsyncRemoteStorage) -> None:
        """When all calls have ended and the storage is closed, it keeps no call and no connection."""
        kept = [*storage._store.session.unanswered]
        open_sockets = [sock for sock in self._kernel.network.descriptors.values() if sock.process is self.process]
        if kept or open_sockets:
            self._kernel.fail(f"{self.process.name} keeps {len(kept)} calls and {len(open_sockets)} sockets")


class Reader(Client):
    """Looks at everything when all is over, and compares what the different methods say."""

    def start_reading(self, history: History) -> None:
        actor = Actor(history, self.process.name, self.process, 0, is_reader=True)
        self._options["deadline"] = 30.0
        self._begin()

        async def main() -> None:
            async with AsyncRemoteStorage(**self._options) as storage:
                for sender in history.senders():
                    for module in MODULES:
                        await actor.ask(storage, Call("get", sender, (module,)))
                await self._compare(storage)

        def ended(code: object) -> None:
            self.end()
            if code is not None:
                self._kernel.fail(f"the reader raised {code!r}")

        self.process.on_exit = ended
        loop.run(self.process, main)

    async def _compare(self, storage: AsyncRemoteStorage) -> None:
        """Nobody writes now, so all methods must agree."""
        entries = {(entry.module, entry.sender): entry.state async for entry in storage.scan()}
        count = await storage.count()
        pairs = sorted(entries, key=str)
        states = await storage.get_many(pairs)
        if states != [entries[pair] for pair in pairs] or count != len(entries):
            self._kernel.fail(f"scan says {entries}, get_many {states}, count {count}")
