"""The machines of a run: the daemon, which is started again whatever ends it, and its clients."""

import random
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from statestore.address import TcpAddress
from statestored import app
from statestored.app import STOP_SECONDS
from tests.simulation import checks, loop, patches
from tests.simulation.clients import Actor, Client
from tests.simulation.disk import LONGEST_SYNC, Disk
from tests.simulation.disk_faults import SYNC_SLOWNESS
from tests.simulation.history import History
from tests.simulation.kernel import Kernel, Machine, Process
from tests.simulation.network import Network
from tests.simulation.plan import Plan, Trouble, loses_acknowledged_writes
from tests.simulation.reader import Reader
from tests.simulation.wire import WireTrace

ADDRESSES = (TcpAddress("10.0.0.9", 7828), TcpAddress("10.0.1.9", 7828))
TOKEN = "a-token-of-the-simulation"
RESTART_AFTER = (0.01, 0.1, 0.7)  # seconds
SLOWNESS = 20.0  # how many times as long a call on a slow disk takes
POWER_IS_OFF = (0.05, 0.5, 2.0)  # seconds
STOP_SLACK = 1.0  # seconds that a stop may take beyond its limit
CLIENT_NAMES = "xyz"  # of the actors of a client


@dataclass(frozen=True, slots=True)
class Outage:
    """A power loss, and how late the journal could have been synced before: all until then.

    has_failed: a call on the disk has.
    """

    time: float
    longest_sync: float
    seconds_stopped: float
    has_failed: bool


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
        self.took_effect: Counter[Trouble] = Counter()
        self.life: checks.Life | None = None  # of the daemon, the present one
        self.lives: list[checks.Life] = []
        self.killed: dict[Process, None] = {}  # processes that have not ended in order
        self.power_losses: list[Outage] = []
        self.seconds_stopped = 0.0  # in which the server's machine or the daemon did not run
        self.disk_was_slow = False
        self.valid_tokens = {TOKEN} if plan.tokens else None  # None: the daemon asks for none
        self.at_start: list[Callable[[], object]] = []  # what to do at the next starts of the daemon, one at each
        self._is_restart_due = False
        self._client_lives = [0] * plan.clients

    # The daemon

    def start_daemon(self) -> None:
        self._is_restart_due = False
        if not self.server.is_on or self.is_up:
            return
        self.starts += 1
        daemon = self.daemon = Process(self.kernel, f"daemon{self.starts}", self.server)
        daemon.on_exit = self._daemon_ended
        daemon.ignore(signal.SIGUSR1)  # as `statestored.__main__` does it
        early_reloads: list[int] = []
        daemon.handlers[signal.SIGHUP] = lambda: early_reloads.append(signal.SIGHUP)  # as `statestored.app.run` does it

        async def serve() -> str:
            settings = patches.settings_of(self.plan, self.addresses)
            await app._until_signalled(settings, patches.access_by(self.valid_tokens), None, early_reloads)
            return checks.STOPPED

        self.life = checks.Life(daemon, self.kernel.now, self.disk.faults.failures_taken)
        self.lives.append(self.life)
        loop.run(daemon, serve)
        if self.at_start:
            self.at_start.pop(0)()

    @property
    def is_up(self) -> bool:
        return self.daemon is not None and self.daemon.alive

    def _daemon_ended(self, status: object) -> None:
        """Whatever ends the daemon, it is started again; some ends must not happen."""
        life = self.life
        assert life is not None
        life.ended = self.kernel.now
        if (wrong := checks.wrong_end(status, self.disk.faults, life)) is not None:
            self.kernel.fail(wrong)
        if status != checks.STOPPED:
            self.killed[life.daemon] = None
        else:
            life.stopped_in_order = True
            checks.check_nothing_is_kept(self.kernel, life.daemon, open_connections=None)
        self.restart_later()

    def restart_later(self, seconds: float | None = None) -> None:
        if not self._is_restart_due:
            self._is_restart_due = True
            self.kernel.after(self.rng.choice(RESTART_AFTER) if seconds is None else seconds, self.start_daemon)

    def kill(self) -> bool:
        """Return whether there was a daemon to kill."""
        if self.daemon is None or not self.daemon.alive:
            return False
        self.kernel.note("trouble", "SIGKILL", self.daemon.name)
        self.daemon.kill()
        self._life_is_over()
        self.restart_later()
        return True

    def lose_power(self) -> bool:
        """Return whether there was any."""
        if not self.server.is_on:
            return False
        self.kernel.note("trouble", "power off")
        self._life_is_over()
        self.server.power_off()
        self.disk.power_loss()
        longest_sync = LONGEST_SYNC * self.plan.sync_time * (SLOWNESS * SYNC_SLOWNESS if self.disk_was_slow else 1.0)
        has_failed = bool(self.disk.faults.failures_taken)
        self.power_losses.append(Outage(self.kernel.now, longest_sync, self.seconds_stopped, has_failed))
        self.kernel.after(self.rng.choice(POWER_IS_OFF), self._power_on)
        return True

    def _life_is_over(self) -> None:
        if self.life is not None and self.life.ended is None:
            self.life.ended = self.kernel.now
            self.killed[self.life.daemon] = None

    def end_service(self) -> None:
        """The last outage: the power fails, if plans of this kind may lose power, or else the daemon is killed."""
        self.history.first_trouble_at = min(self.history.first_trouble_at, self.kernel.now)
        if self.plan.fsync == "always" or loses_acknowledged_writes(self.plan):
            self.lose_power()
        else:
            self.kill()

    def ask_to_stop(self) -> bool:
        """Send SIGTERM. The daemon has to end in time, and at once if this is the second signal."""
        life = self.life
        if life is None or not life.daemon.alive:
            return False
        life.signals += 1
        if life.stop_asked is None:
            life.stop_asked = self.kernel.now
            self.kernel.after(STOP_SECONDS + STOP_SLACK, self._check_stopped, life)
        life.daemon.signal(signal.SIGTERM)
        return True

    def _check_stopped(self, life: checks.Life) -> None:
        """Fail if the daemon has not stopped, unless it has not run all the time."""
        daemon, limit = life.daemon, STOP_SECONDS + STOP_SLACK
        has_not_run = max(daemon.stopped_until, daemon.machine.suspended_until)
        if not daemon.alive:
            return
        if has_not_run > self.kernel.now - limit:
            self.kernel.at(max(has_not_run, self.kernel.now) + limit, self._check_stopped, life)
        else:
            self.kernel.fail(f"{daemon.name} does not stop within {limit:g} s")

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
        stopped = [process.stopped_until for process in self.kernel.processes if process.alive]
        suspended = [machine.suspended_until for machine in (self.server, *self.machines)]
        return max(self.kernel.now, *stopped, *suspended)

    def change_tokens(self, *, valid: bool) -> None:
        """Make the clients' token valid or not, and let the daemon read its tokens again."""
        if self.valid_tokens is not None:
            self.valid_tokens.clear()
            if valid:
                self.valid_tokens.add(TOKEN)
            stopped_until = 0.0 if self.daemon is None else self.daemon.stopped_until
            runs_from = max(self.kernel.now, stopped_until, self.server.suspended_until)
            self.history.token.change(valid=valid, daemon_runs_from=runs_from)
            if self.daemon is not None and self.daemon.alive:
                self.daemon.signal(signal.SIGHUP)

    # Clients

    def start_clients(self) -> None:
        self.clients = [self._new_client(number) for number in range(self.plan.clients)]
        for number, client in enumerate(self.clients):
            self._start(number, client, list(self.plan.calls[number]))

    def crash_client(self, number: int) -> bool:
        """Its calls under way have no answer; another process goes on, with a session of its own.

        Returns whether it was running.
        """
        client = self.clients[number]
        if not client.is_running or not client.process.alive:
            return False
        self.kernel.note("trouble", "crash", client.process.name)
        self.killed[client.process] = None
        for actor in client.actors:
            actor.crashed()
        client.process.kill()
        client.end()
        self.clients[number] = self._new_client(number)
        self._start(number, self.clients[number], [actor.calls_left for actor in client.actors])
        return True

    def have_last_answer(self) -> bool:
        """Whether all calls of all clients have ended."""
        return all(
            not actor.calls_left and actor._under_way is None for client in self.clients for actor in client.actors
        )

    def _new_client(self, number: int) -> Client:
        self._client_lives[number] += 1
        return Client(self.history, f"client{number}", self.machines[number], self._addresses(), self._token())

    def _start(self, number: int, client: Client, calls: list[int]) -> None:
        life = "" if self._client_lives[number] == 1 else f"'{self._client_lives[number]}"
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
