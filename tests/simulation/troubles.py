"""What goes wrong: each event of a plan, done to the system."""

import random
import signal
from collections.abc import Callable
from functools import partial

from tests.simulation.disk_faults import Call
from tests.simulation.plan import Event, Trouble
from tests.simulation.system import SLOWNESS, System
from tests.simulation.tcp import Connection

NEXT_CALLS = 60  # of the disk, among which one is chosen for a kill
NEXT_CALLS_OF_KIND: dict[Call, int] = {"sync": 12, "write": 20, "rename": 3, "remove": 4, "truncate": 3, "open": 12}
FAILING_CALLS: dict[Trouble, Call] = {
    Trouble.FAILING_WRITE: "write",
    Trouble.FAILING_SYNC: "sync",
    Trouble.FAILING_RENAME: "rename",
    Trouble.FAILING_OPEN: "open",
    Trouble.FAILING_READ: "read",
    Trouble.FAILING_TRUNCATE: "truncate",
    Trouble.FAILING_REMOVE: "remove",
    Trouble.FAILING_LIST: "list",
}
AFTER_RENAME = 12  # calls
START_CALLS = 40  # of the disk, that a start makes, or some more
SLOW_LATENCY = 0.2  # seconds
OUTAGES = (0.05, 0.5, 2.0)  # seconds
CLOCK_STEPS = (-86400.0, -30.0, -0.5, 0.5, 30.0, 86400.0)  # seconds
TRY_AGAIN = 0.03  # seconds, if there is nothing yet to which the trouble can be done
TRIES = 50

Effect = Callable[[], None]  # to be called when the trouble has taken effect


class Troubles:
    def __init__(self, system: System) -> None:
        self._system = system
        self._kernel = system.kernel
        self._disk = system.disk.faults

    def happen(self, event: Event, tries: int = TRIES) -> None:
        """Called by the kernel when it is time. What finds nothing to be done to comes again a little later."""
        if self._system.is_healed:
            return
        if self._method(event.trouble)(random.Random(event.seed), self._count_once(event.trouble)):
            self._kernel.note("trouble", event.trouble, str(event.seed))
        elif tries > 1:
            self._kernel.after(TRY_AGAIN, self.happen, event, tries - 1)

    def _method(self, trouble: Trouble) -> Callable[[random.Random, Effect], bool]:
        if trouble in FAILING_CALLS:
            return partial(self._next_call_fails, FAILING_CALLS[trouble])
        method: Callable[[random.Random, Effect], bool] = getattr(self, f"_{trouble}")
        return method

    def _count_once(self, trouble: Trouble) -> Effect:
        is_counted = False

        def count() -> None:
            nonlocal is_counted
            if not is_counted:
                is_counted = True
                self._system.took_effect[trouble] += 1

        return count

    # Each returns whether it was done, or is to be done at a later call on the disk.

    # The daemon and its machine

    def _power(self, _rng: random.Random, effect: Effect) -> bool:
        return _done(self._system.lose_power(), effect)

    def _kill(self, _rng: random.Random, effect: Effect) -> bool:
        return _done(self._system.kill(), effect)

    def _power_at_call(self, rng: random.Random, effect: Effect) -> bool:
        return self._at_call(rng, self._system.lose_power, effect)

    def _kill_at_call(self, rng: random.Random, effect: Effect) -> bool:
        return self._at_call(rng, self._system.kill, effect)

    def _power_at_kind(self, rng: random.Random, effect: Effect) -> bool:
        return self._at_kind(rng, self._system.lose_power, effect)

    def _kill_at_kind(self, rng: random.Random, effect: Effect) -> bool:
        return self._at_kind(rng, self._system.kill, effect)

    def _at_call(self, rng: random.Random, action: Callable[[], bool], effect: Effect) -> bool:
        number = rng.randint(1, NEXT_CALLS)
        self._disk.on_call(lambda: _done(action(), effect), number, before=rng.random() < 0.5)
        return True

    def _at_kind(self, rng: random.Random, action: Callable[[], bool], effect: Effect) -> bool:
        (kind,) = rng.choices(list(NEXT_CALLS_OF_KIND), (5, 2, 1, 1, 1, 1))
        number = rng.randint(1, NEXT_CALLS_OF_KIND[kind])
        self._disk.on_call(lambda: _done(action(), effect), number, kind, before=rng.random() < 0.5)
        return True

    def _power_after_rename(self, rng: random.Random, effect: Effect) -> bool:
        return self._after_rename(rng, self._system.lose_power, effect)

    def _kill_after_rename(self, rng: random.Random, effect: Effect) -> bool:
        return self._after_rename(rng, self._system.kill, effect)

    def _after_rename(self, rng: random.Random, action: Callable[[], bool], effect: Effect) -> bool:
        number, before = rng.randint(1, AFTER_RENAME), rng.random() < 0.5
        self._disk.on_call(lambda: _done(action(), effect), number, before=before, after_next="rename")
        return True

    def _kill_starts(self, rng: random.Random, effect: Effect) -> bool:
        return self._at_starts(rng, self._system.kill, effect)

    def _power_starts(self, rng: random.Random, effect: Effect) -> bool:
        return self._at_starts(rng, self._system.lose_power, effect)

    def _at_starts(self, rng: random.Random, action: Callable[[], bool], effect: Effect) -> bool:
        """Twice in a row: what one start has begun, the next one finds."""
        if not action():
            return False
        for is_second in (False, True):
            calls = rng.randint(1, START_CALLS)

            def end(is_second: bool = is_second) -> None:
                _done(action() and is_second, effect)

            if rng.random() < 0.5:
                trigger = partial(self._disk.on_call, end, calls)
            else:  # between a rename and the sync of the directory
                trigger = partial(self._disk.on_call, end, after_next="rename")
            self._system.at_start.append(trigger)
        return True

    def _terminate(self, _rng: random.Random, effect: Effect) -> bool:
        return self._can_take(signal.SIGTERM) and _done(self._system.ask_to_stop(), effect)

    def _terminate_twice(self, rng: random.Random, effect: Effect) -> bool:
        if not self._can_take(signal.SIGTERM):
            return False
        life = self._system.life
        self._system.ask_to_stop()

        def end_at_once() -> None:
            if self._system.life is life:
                _done(self._system.ask_to_stop(), effect)

        self._kernel.after(rng.choice((0.0001, 0.01, 0.1)), end_at_once)
        return True

    def _snapshot(self, _rng: random.Random, effect: Effect) -> bool:
        daemon = self._system.daemon
        if daemon is None or not self._can_take(signal.SIGUSR1):
            return False
        daemon.signal(signal.SIGUSR1)
        return _done(True, effect)

    def _can_take(self, number: signal.Signals) -> bool:
        """Whether the daemon runs, and has come so far that it handles the signal."""
        daemon = self._system.daemon
        return daemon is not None and daemon.alive and daemon.handlers.get(number) is not None

    def _pause(self, rng: random.Random, effect: Effect) -> bool:
        daemon, seconds = self._system.daemon, rng.choice((0.05, 0.6, 3.0))
        if daemon is None or not daemon.alive:
            return False
        daemon.stop(seconds)
        self._system.seconds_stopped += seconds
        return _done(True, effect)

    def _suspend(self, rng: random.Random, effect: Effect) -> bool:
        machine, seconds = rng.choice((self._system.server, *self._system.machines)), rng.choice((0.3, 3.0, 100.0))
        if not machine.is_on:
            return False
        machine.suspend(seconds)
        if machine is self._system.server:
            self._system.seconds_stopped += seconds
        return _done(True, effect)

    def _clock_step(self, rng: random.Random, effect: Effect) -> bool:
        machine = rng.choice((self._system.server, *self._system.machines))
        machine.wall_error += rng.choice(CLOCK_STEPS)
        return _done(True, effect)

    def _revoke_token(self, rng: random.Random, effect: Effect) -> bool:
        if not (self._system.valid_tokens and self._can_take(signal.SIGHUP)):
            return False
        self._system.change_tokens(valid=False)
        self._kernel.after(rng.choice(OUTAGES), partial(self._system.change_tokens, valid=True))
        return _done(True, effect)

    # The disk

    def _slow_disk(self, rng: random.Random, effect: Effect) -> bool:
        self._disk.slow_down(rng.choice((0.1, 1.0)), SLOWNESS)
        self._system.disk_was_slow = True
        self._disk.on_call(effect)
        return True

    def _full_disk(self, rng: random.Random, effect: Effect) -> bool:
        self._disk.fill(rng.choice((0.1, 1.5, 4.0)), taken=effect)
        return True

    def _nearly_full_disk(self, rng: random.Random, effect: Effect) -> bool:
        self._disk.fill(rng.choice((0.1, 1.5, 4.0)), room=rng.choice((1, 40, 200, 700, 3000)), taken=effect)
        return True

    def _next_call_fails(self, call: Call, _rng: random.Random, effect: Effect) -> bool:
        self._disk.fail_next(call, taken=effect)
        return True

    def _failing_disk(self, rng: random.Random, effect: Effect) -> bool:
        seconds = rng.choice((0.1, 1.0, 3.0))
        kinds: tuple[Call, ...] = rng.choice((("write",), ("sync",), ("write", "sync")))
        for call in kinds:
            self._disk.fail_next(call, and_for=seconds, taken=effect)
        return True

    # The network and the clients

    def _cut(self, rng: random.Random, effect: Effect) -> bool:
        connections = self._some_connections(rng)
        for connection in connections:
            for end in rng.choice(((connection.client, connection.server), (connection.client,), (connection.server,))):
                end.reset()
        return _done(bool(connections), effect)

    def _silence(self, rng: random.Random, effect: Effect) -> bool:
        connections = self._some_connections(rng)
        for connection in connections:
            connection.silence()
        return _done(bool(connections), effect)

    def _late_copies(self, rng: random.Random, effect: Effect) -> bool:
        """What is on its way arrives when the clients have most likely sent it again."""
        connections = self._some_connections(rng)
        for connection in connections:
            connection.strand(rng.choice((0.05, 0.3, 1.2, 4.0)))
        return _done(bool(connections), effect)

    def _some_connections(self, rng: random.Random) -> list[Connection]:
        return [connection for connection in self._system.network.connections() if rng.random() < 0.5]

    def _partition(self, rng: random.Random, effect: Effect) -> bool:
        self._block(rng, there=True, back=True)
        return _done(True, effect)

    def _one_way(self, rng: random.Random, effect: Effect) -> bool:
        there = rng.random() < 0.5
        self._block(rng, there=there, back=not there)
        return _done(True, effect)

    def _block(self, rng: random.Random, *, there: bool, back: bool) -> None:
        network, server = self._system.network, self._system.server
        for machine in rng.sample(self._system.machines, rng.randint(1, len(self._system.machines))):
            seconds = rng.choice(OUTAGES)
            if there:
                network.block(machine, server, seconds)
            if back:
                network.block(server, machine, seconds)

    def _address_down(self, rng: random.Random, effect: Effect) -> bool:
        """Nothing passes from or to one address of the server."""
        network, seconds = self._system.network, rng.choice(OUTAGES)
        server = rng.choice(self._system.addresses).host
        for machine in self._system.machines:
            for client in network.hosts_of(machine):
                network.block_hosts(client, server, seconds)
                network.block_hosts(server, client, seconds)
        return _done(self._system.plan.addresses > 1, effect)

    def _slow_network(self, rng: random.Random, effect: Effect) -> bool:
        network, slowest = self._system.network, self._system.plan.latency
        network.slowest = SLOW_LATENCY
        self._kernel.after(rng.choice((0.1, 0.5)), setattr, network, "slowest", slowest)
        return _done(True, effect)

    def _client_crash(self, rng: random.Random, effect: Effect) -> bool:
        return _done(self._system.crash_client(rng.randrange(len(self._system.machines))), effect)


def _done(is_done: bool, effect: Effect) -> bool:
    if is_done:
        effect()
    return is_done
