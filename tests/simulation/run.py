"""One run of a plan: the daemon, its clients, what goes wrong, and what is wrong with what came of it."""

import asyncio
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from statestore.address import TcpAddress
from statestored import app
from statestored.errors import DamagedFile, DiskFailed, Exit, StartError
from tests.consistency.history import Operation
from tests.consistency.linearizability import Undecided, linearize
from tests.consistency.shrink import shrink
from tests.simulation import loop, patches
from tests.simulation.clients import Actor, Client, History, Reader
from tests.simulation.disk import Disk
from tests.simulation.kernel import START, Kernel, Machine, Process
from tests.simulation.network import Network
from tests.simulation.plan import Plan, loses_acknowledged_writes
from tests.simulation.wire import WireTrace

ADDRESSES = (TcpAddress("10.0.0.9", 7828), TcpAddress("10.0.1.9", 7828))
TOKEN = "a-token-of-the-simulation"
LIMIT = 300.0  # virtual seconds that the clients may take
MOST_STEPS = 100_000  # of the search for an order that explains a history: a second or two
MOST_EVENTS = 150_000  # with more than that, something spins
RESTART_AFTER = (0.01, 0.1, 0.7)  # seconds
POWER_IS_OFF = (0.05, 0.5, 2.0)  # seconds
CLIENT_NAMES = "xyz"  # of the actors of a client


@dataclass(slots=True)
class Outcome:
    plan: Plan
    failures: list[str]
    digest: int  # of the trace: two runs of a plan have the same one
    virtual: float  # seconds
    counts: dict[str, int]
    trace: list[str] = field(default_factory=list)
    violation: list[Operation] = field(default_factory=list)  # the shortest history that shows what is wrong


class System:
    """The machines and what runs on them."""

    def __init__(self, plan: Plan, *, keep_trace: bool) -> None:
        self.plan = plan
        self.kernel = Kernel(plan.seed)
        self.kernel.keep_trace = keep_trace
        self.rng = random.Random(f"system/{plan.seed}")
        self.network = Network(self.kernel)
        self.network.slowest = plan.latency
        if keep_trace:
            self.network.tap = WireTrace(self.kernel)
        self.disk = Disk(self.kernel, has_directory=False)
        self.disk.sync_seconds = plan.sync_time
        self.server = Machine(self.kernel, "server", self.disk)
        self.machines = [Machine(self.kernel, f"machine{number}") for number in range(plan.clients)]
        self.network.attach(self.server, *(address.host for address in ADDRESSES))
        for number, machine in enumerate(self.machines):
            self.network.attach(machine, f"10.0.0.{100 + number}")
        self.daemon: Process | None = None
        self.history = History(self.kernel, plan)
        self.clients: list[Client] = []
        self.is_healed = False
        self.starts = 0
        self.troubles = 0
        self.undecided = 0  # histories that would take too long to judge
        self.valid_tokens = {TOKEN} if plan.tokens else None  # None: the daemon asks for none
        self.at_start: list[Callable[[], object]] = []  # what to do at the next starts of the daemon, one at each
        self._is_restart_due = False
        self._lives = [0] * plan.clients

    # The daemon

    def start_daemon(self) -> None:
        self._is_restart_due = False
        if not self.server.is_on or self.is_up:
            return
        self.starts += 1
        daemon = self.daemon = Process(self.kernel, f"daemon{self.starts}", self.server)
        daemon.on_exit = self._daemon_ended
        for ignored in (signal.SIGHUP, signal.SIGUSR1):  # as `statestored.__main__` does it
            daemon.ignore(ignored)

        async def serve() -> str:
            serving = asyncio.current_task()
            assert serving is not None
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
            with suppress(asyncio.CancelledError):
                settings = patches.settings_of(self.plan, self.addresses)
                await app.serve(settings, patches.access_by(self.valid_tokens), None)
            return "stopped"

        loop.run(daemon, serve)
        if self.at_start:
            self.at_start.pop(0)()

    @property
    def is_up(self) -> bool:
        return self.daemon is not None and self.daemon.alive

    def _daemon_ended(self, code: object) -> None:
        """Whatever ends the daemon, it is started again; some ends must not happen."""
        if isinstance(code, DamagedFile):
            self.kernel.fail(f"the daemon does not start: {code}")
        elif isinstance(code, StartError):
            if self.is_healed:
                self.kernel.fail(f"the daemon does not start: {code}")
        elif not (code == "stopped" or code == Exit.DISK_FAILED or isinstance(code, DiskFailed)):
            self.kernel.fail(f"the daemon ended: {code!r}")
        elif self.is_healed and code != "stopped":
            self.kernel.fail(f"the daemon ended on a healthy disk: {code!r}")
        self.restart_later()

    def restart_later(self, seconds: float | None = None) -> None:
        if not self._is_restart_due:
            self._is_restart_due = True
            self.kernel.after(self.rng.choice(RESTART_AFTER) if seconds is None else seconds, self.start_daemon)

    def kill(self) -> None:
        if self.daemon is not None and self.daemon.alive:
            self.kernel.note("trouble", "SIGKILL", self.daemon.name)
            self.daemon.kill()
            self.restart_later()

    def lose_power(self) -> None:
        if not self.server.is_on:
            return
        self.kernel.note("trouble", "power off")
        self.server.power_off()
        self.disk.power_loss()
        self.kernel.after(self.rng.choice(POWER_IS_OFF), self._power_on)

    def _power_on(self) -> None:
        self.kernel.note("trouble", "power on")
        self.server.power_on()
        self.restart_later(0.01)

    def heal(self) -> None:
        """Nothing goes wrong any more: from now on the daemon has to start, and to serve."""
        self.is_healed = True
        self.kernel.note("trouble", "heal")
        self.network.heal()
        self.disk.faults.heal()
        self.at_start.clear()
        self.change_tokens(valid=True)
        self.kernel.run(self._all_awake())
        if self.server.is_on and not self.is_up:
            self.restart_later()

    def _all_awake(self) -> float:
        """Return when nothing is stopped or suspended any more."""
        processes = [process for process in self.kernel.processes if process.alive]
        return max([self.kernel.now, *(max(p.stopped_until, p.machine.suspended_until) for p in processes)])

    def change_tokens(self, *, valid: bool) -> None:
        """Make the clients' token valid or not, and let the daemon read its tokens again."""
        if self.valid_tokens is not None:
            self.valid_tokens.clear()
            if valid:
                self.valid_tokens.add(TOKEN)
            if self.daemon is not None and self.daemon.alive:
                self.daemon.signal(signal.SIGHUP)

    # Clients

    def start_clients(self) -> None:
        self.clients = [self._new_client(number) for number in range(self.plan.clients)]
        for number, client in enumerate(self.clients):
            self._start(number, client, [self.plan.calls] * self.plan.actors)

    def crash_client(self, number: int) -> None:
        """Its calls under way have no answer; another process goes on, with a session of its own."""
        client = self.clients[number]
        if not client.is_running or not client.process.alive:
            return
        self.kernel.note("trouble", "crash", client.process.name)
        for actor in client.actors:
            actor.crashed()
        client.process.kill()
        client.end()
        self.clients[number] = self._new_client(number)
        self._start(number, self.clients[number], [actor.calls_left for actor in client.actors])

    def _new_client(self, number: int) -> Client:
        self._lives[number] += 1
        return Client(self.history, f"client{number}", self.machines[number], self._addresses(), self._token())

    def _start(self, number: int, client: Client, calls: list[int]) -> None:
        life = "" if self._lives[number] == 1 else f"'{self._lives[number]}"
        actors = [
            Actor(self.history, f"{number}{name}{life}", client.process, left)
            for name, left in zip(CLIENT_NAMES, calls, strict=False)
        ]
        client.start(actors, blocking=number < self.plan.blocking)

    def start_reader(self) -> None:
        reader = Reader(self.history, "reader", self.machines[0], self._addresses(), self._token())
        self.clients.append(reader)
        reader.start_reading(self.history)

    @property
    def addresses(self) -> tuple[TcpAddress, ...]:
        return ADDRESSES[: self.plan.addresses]

    def _addresses(self) -> str:
        return ",".join(map(str, self.addresses))

    def _token(self) -> str | None:
        return TOKEN if self.plan.tokens else None


def run(plan: Plan, *, keep_trace: bool = False) -> Outcome:
    """Carry the plan out, and judge what came of it."""
    random.seed(plan.seed)  # the product draws its pauses from the one generator of the module
    with patches.sizes_of(plan):
        system = System(plan, keep_trace=keep_trace)
        try:
            _live(system)
            violation = [] if system.kernel.failures else _judge(system)
            return _outcome(system, violation)
        finally:
            system.kernel.end()


def _live(system: System) -> None:
    from tests.simulation.troubles import Troubles

    kernel, plan = system.kernel, system.plan
    system.start_daemon()
    if not plan.cold:
        kernel.run(kernel.now + LIMIT, lambda: system.network.listeners)
    system.start_clients()
    troubles = Troubles(system)
    for event in plan.events:
        kernel.after(event.seconds, troubles.happen, event)
    _run_until_done(system, "the clients have")
    for is_last in (False, True):
        if kernel.failures:
            return
        system.heal()
        system.start_reader()
        _run_until_done(system, "the reader has")
        if kernel.failures or is_last or not plan.last_outage:
            break
        if plan.fsync == "always":
            system.lose_power()
        else:
            system.kill()
    if not kernel.failures:
        _check_nothing_is_kept(system)


def _check_nothing_is_kept(system: System) -> None:
    """When all clients are gone, the daemon keeps nothing for them."""
    kernel = system.kernel
    kernel.run(kernel.now + 1.0)
    assert system.daemon is not None
    service = patches.services.get(system.daemon)
    open_ends = sum(not connection.server.closed for connection in system.network.connections())
    if service is None or service.connections > open_ends:
        kernel.fail(f"the daemon does not count its connections well: there are {open_ends}, and it has {service}")
        return
    if service.connections == 0 and service.budget.used:
        kernel.fail(f"the daemon keeps {service.budget.used} bytes for clients that are gone")


def _run_until_done(system: System, who: str) -> None:
    kernel, history = system.kernel, system.history

    def is_over() -> bool:
        if kernel.events > MOST_EVENTS and not kernel.failures:
            kernel.fail(f"more than {MOST_EVENTS} events: something spins")
        return bool(kernel.failures) or not history.clients_running

    kernel.run(kernel.now + LIMIT, is_over)
    if history.clients_running and not kernel.failures:
        kernel.fail(f"{who} not come to an end within {LIMIT:g} s")


def _judge(system: System) -> list[Operation]:
    """See whether each sender's history is linearizable. Returns a short one that is not, if the trace is kept."""
    if loses_acknowledged_writes(system.plan):
        return []
    for sender, history in _by_sender(system.history.operations):
        try:
            if linearize(history, MOST_STEPS) is None:
                system.kernel.fail(f"the history of {sender} is not linearizable")
                return shrink(history) if system.kernel.keep_trace else []
        except Undecided as error:
            system.undecided += 1
            system.kernel.note("checker", "undecided", f"{sender}: {error}")
    return []


def _by_sender(operations: list[Operation]) -> Iterator[tuple[Any, list[Operation]]]:
    ordered = sorted(operations, key=lambda operation: str(operation.sender))
    for sender, group in groupby(ordered, key=lambda operation: operation.sender):
        yield sender, list(group)


def _outcome(system: System, violation: list[Operation]) -> Outcome:
    kernel, history = system.kernel, system.history
    counts = {
        "calls": history.calls,
        "refused": history.refused,
        "without an answer": history.unanswered,
        "starts": system.starts,
        "power losses": system.disk.losses,
        "troubles": system.troubles,
        "histories undecided": system.undecided,
        "events": kernel.events,
    }
    return Outcome(system.plan, kernel.failures, kernel.digest, kernel.now - START, counts, kernel.trace, violation)
