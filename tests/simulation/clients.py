"""Clients: processes whose actors make one call after the other, and note how each ends."""

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any

from statestore import AsyncRemoteStorage, RemoteStorage
from statestore.base import START, Entry
from statestore.errors import StateStoreError
from tests.simulation import loop
from tests.simulation.endings import LATE, Circumstances, objection_to
from tests.simulation.history import MODULES, Call, History, large_pairs
from tests.simulation.kernel import Machine, Process
from tests.simulation.stand_ins import sleep

READ_DEADLINE = 1.0  # seconds
REFUSED_PAUSE = 0.25  # seconds before the next call, or an actor would be done before the store is back
CANCEL_AFTER = (0.0, 0.0005, 0.01, 0.2)  # seconds

# Seconds by which a write may be applied after its deadline: the clocks have the seconds since 1970, of which a float
# keeps fractions of 0.24 microseconds, and a deadline goes through several sums of them.
CLOCK_ERROR = 1e-5

WEIGHTS = {"get": 25, "get_many": 15, "set": 30, "set_many": 5, "compare_and_set": 25, "set_all": 5}
BULK_WEIGHTS = {"scan": 4, "count": 3, "clear": 2, "set_many_large": 3, "get_many_large": 3}
ALL_WEIGHTS = WEIGHTS | BULK_WEIGHTS


class Actor:
    """A thread or a coroutine of a client: it makes calls, one after the other.

    Attributes:
        client: Set when the client starts its actors.
        seen: The last state that it has read, by module and sender.
    """

    client: "Client"

    def __init__(self, history: History, name: str, process: Process, calls: int, *, is_reader: bool = False) -> None:
        self.name = name
        self.calls_left = calls
        self.read_deadline = READ_DEADLINE
        self.seen: dict[tuple[str, str], str] = {}
        self._history = history
        self._kernel = history.kernel
        self._plan = history.plan
        self._machine = process.machine
        self._is_reader = is_reader
        self._rng = random.Random(f"{history.plan.seed}/{name}")
        self._written = 0
        self._under_way: tuple[Call, float] | None = None
        self._begun = 0.0  # when the deadline began to run, on the clock of its machine
        self._silent_for = 0.0  # seconds that its client had had no answer then
        self._closings = 0  # of the storage, until the call began

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
        """Make a call, and note how it ends. Return whether it had an answer, or was cancelled."""
        called = self._begin(call)
        is_cancelled = self._plan.cancelled and not self._is_reader and self._rng.random() < self._plan.cancelled
        try:
            if is_cancelled:
                return await self._ask_and_cancel(storage, call, called, self._rng.choice(CANCEL_AFTER))
            result = await self._result(storage, call)
        except StateStoreError as error:
            self._failed(call, called, error)
            return False
        self._answered(call, called, result)
        return True

    async def _ask_and_cancel(self, storage: AsyncRemoteStorage, call: Call, called: float, seconds: float) -> bool:
        """Make a call that is cancelled unless it ends earlier. Raises StateStoreError."""
        timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                result = await self._result(storage, call)
        except TimeoutError as error:
            if not (timeout.expired() and isinstance(error.__context__, asyncio.CancelledError)):
                raise  # it is an error of the client
            self._end(call, "cancelled", "", deadline=seconds)
            self._no_answer(call, called)
            if self._rng.random() < 0.1:
                self.client.closings += 1
                await storage.close()
            return True
        self._answered(call, called, result)
        return True

    async def _result(self, storage: AsyncRemoteStorage, call: Call) -> Any:
        outcome = _method(storage, call)(*_parameters(call, self._history.senders()))
        if call.method != "scan":
            return await outcome
        entries: list[Entry] = []
        async for entry in outcome:
            entries.append(entry)
            self._restart_deadline(call)
        return entries

    def _ask_blocking(self, storage: RemoteStorage, call: Call) -> bool:
        called = self._begin(call)
        try:
            result = _method(storage, call)(*_parameters(call, self._history.senders()))
            if call.method == "scan":
                result = list(self._each_in_time(call, result))
        except StateStoreError as error:
            self._failed(call, called, error)
            return False
        self._answered(call, called, result)
        return True

    def _each_in_time(self, call: Call, entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            yield entry
            self._restart_deadline(call)

    def crashed(self) -> None:
        """Its process is gone: its call will have no answer."""
        if self._under_way is not None:
            self._no_answer(*self._under_way)

    def _calls(self) -> Iterator[tuple[Call, float]]:
        """Yield each call, and the seconds to wait before it."""
        while self.calls_left > 0:
            self.calls_left -= 1
            yield self._draw(), self._rng.expovariate(1 / self._plan.think)

    def _draw(self) -> Call:
        rng = self._rng
        sender, module = rng.choice(self._history.senders()), rng.choice(MODULES)
        self._written += 1
        new = START if rng.random() < 0.1 else f"{self.name}.{self._written}"
        weights = {name: weight for name, weight in ALL_WEIGHTS.items() if name in self._plan.methods}
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
                return Call(method, sender, (module, self.seen.get((module, sender), START), new))
            case "set_all":
                return Call(method, sender, (new,))
            case "set_many_large":
                return Call(method, "", (f"{self.name}.{self._written}",))
            case _:
                return Call(method)

    def _begin(self, call: Call) -> float:
        self._history.calls += 1
        self._kernel.note(self.name, "calls", str(call))
        self._under_way = call, self._kernel.now
        self._closings = self.client.closings
        self._begun = self._machine.monotonic()
        self._silent_for = self._begun - self.client.answered_at
        return self._kernel.now

    def _restart_deadline(self, call: Call) -> None:
        """An entry of a scan has come, so the page that has the next one has its whole deadline."""
        self._check_time(call, self._deadline_of(call))
        self.client.heard()
        self._begun = self.client.answered_at
        self._silent_for = 0.0

    def _answered(self, call: Call, called: float, result: Any) -> None:
        self._end(call, "answered", f"-> {result}")
        self.client.heard()
        self._history.add(self.name, call, called, self._kernel.now, answered=True, result=result)
        if call.method in ("get", "compare_and_set"):
            self.seen[call.arguments[0], call.sender] = result if call.method == "get" else result[1]

    def _failed(self, call: Call, called: float, error: StateStoreError) -> None:
        self._end(call, "failed", f": {type(error).__name__} {error}")
        if self._is_reader:
            self._kernel.fail(f"the store cannot be read: {error!r}", error)
        elif (objection := objection_to(error, self._circumstances(call, called))) is not None:
            self._kernel.fail(f"{call.method} of {self.name} raised {error!r}: {objection}", error)
        elif error.applied == "no":
            self._history.refused += 1
        else:
            self._no_answer(call, called)

    def _circumstances(self, call: Call, called: float) -> Circumstances:
        deadline = self._deadline_of(call)
        return Circumstances(
            writes=not call.reads,
            took=self._machine.monotonic() - self._begun,
            deadline=deadline,
            is_calm=self._kernel.now < self._history.first_trouble_at,
            was_closed=self.client.closings > self._closings,
            was_revoked=self._history.token.was_revoked_since(min(called, self.client.heard_at)),
            was_hopeless=self._silent_for >= deadline,
            may_lack_room=self._history.may_lack_room,
            is_session_safe=self._history.are_sessions_safe,
        )

    def _no_answer(self, call: Call, called: float) -> None:
        """A write may be carried out until its deadline, which a suspension of its machine puts off."""
        self._under_way = None
        if not call.reads:
            self._history.unanswered += 1
            left = self._plan.write_deadline - (self._machine.monotonic() - self._begun)
            until = self._kernel.now + max(left, 0.0) + CLOCK_ERROR
            self._history.add(self.name, call, called, until, answered=False, result=None)

    def _end(self, call: Call, what: str, detail: str, *, deadline: float | None = None) -> None:
        self._under_way = None
        self._kernel.note(self.name, what, f"{call} {detail}".rstrip())
        self._check_time(call, self._deadline_of(call) if deadline is None else deadline)

    def _deadline_of(self, call: Call) -> float:
        return self.read_deadline if call.reads else self._plan.write_deadline

    def _check_time(self, call: Call, deadline: float) -> None:
        """Fail if the call is late. Only a suspension stops a client, and its clock does not count that."""
        took = self._machine.monotonic() - self._begun
        if took > deadline + LATE:
            self._kernel.fail(f"{call.method} of {self.name} took {took:.3f} s, its deadline was {deadline:g} s")


def _method(storage: Any, call: Call) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(storage, call.method.removesuffix("_large"))
    return method


def _parameters(call: Call, senders: list[str]) -> tuple[Any, ...]:
    match call.method:
        case "get_many":
            return ([(module, call.sender) for module in call.arguments],)
        case "get_many_large":
            return (large_pairs(senders),)
        case "set_many":
            return ([(module, call.sender, state) for module, state in zip(MODULES, call.arguments, strict=True)],)
        case "set_many_large":
            return ([(module, sender, f"{call.arguments[0]}{module}") for module, sender in large_pairs(senders)],)
        case "scan" | "count" | "clear":
            return ()
        case "set_all":
            return call.sender, *call.arguments
        case _:
            return call.arguments[0], call.sender, *call.arguments[1:]


class Client:
    """A process on a machine of its own, and its actors.

    Attributes:
        is_running: It has calls to make.
        answered_at: When one of its calls was answered last, or else when it began, on the clock of its machine.
        heard_at: The same in virtual time.
        closings: How often an actor has closed the storage.
    """

    def __init__(self, history: History, name: str, machine: Machine, address: str, token: str | None) -> None:
        self.process = Process(history.kernel, name, machine)
        self.actors: list[Actor] = []
        self.is_running = False
        self._machine = machine
        self._kernel = history.kernel
        self.heard()
        self.closings = 0
        self._actors_running = 0
        self._history = history
        self._plan = history.plan
        self._options: dict[str, Any] = {
            "address": address,
            "token": token,
            "deadline": READ_DEADLINE,
            "write_deadline": history.plan.write_deadline,
        }

    def start(self, actors: list[Actor], *, blocking: bool) -> None:
        self.actors, self._actors_running = actors, len(actors)
        for actor in actors:
            actor.client = self
        self._begin()
        if blocking:
            self._start_threads()
        else:
            self._start_loop()

    def heard(self) -> None:
        """Note that one of its calls was answered."""
        self.answered_at, self.heard_at = self._machine.monotonic(), self._kernel.now

    def end(self) -> None:
        """Note that its process has ended, or that its actors have made all their calls."""
        if self.is_running:
            self.is_running = False
            self._history.clients_running -= 1

    def _begin(self) -> None:
        self.is_running = True
        self._history.clients_running += 1
        self._history.clients_began()

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
