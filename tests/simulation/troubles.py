"""What goes wrong: each event of a plan, done to the system."""

import random
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tests.simulation.disk_faults import Call
from tests.simulation.plan import Event
from tests.simulation.tcp import Connection

if TYPE_CHECKING:
    from tests.simulation.run import System

NEXT_CALLS = 60  # of the disk, among which one is chosen for a kill
NEXT_CALLS_OF_KIND: dict[Call, int] = {"sync": 12, "write": 20, "rename": 3, "remove": 4, "truncate": 3, "open": 12}
AFTER_RENAME = 12  # calls
START_CALLS = 40  # of the disk, that a start makes, or some more
SLOW_LATENCY = 0.2  # seconds
OUTAGES = (0.05, 0.5, 2.0)  # seconds
CLOCK_STEPS = (-86400.0, -30.0, -0.5, 0.5, 30.0, 86400.0)  # seconds


class Troubles:
    def __init__(self, system: "System") -> None:
        self._system = system
        self._kernel = system.kernel
        self._disk = system.disk.faults

    def happen(self, event: Event) -> None:
        """Called by the kernel when it is time."""
        if self._system.is_healed:
            return
        self._system.troubles += 1
        self._kernel.note("trouble", event.trouble, str(event.seed))
        method: Callable[[random.Random], None] = getattr(self, f"_{event.trouble}")
        method(random.Random(event.seed))

    # The daemon and its machine

    def _power(self, _rng: random.Random) -> None:
        self._system.lose_power()

    def _kill(self, _rng: random.Random) -> None:
        self._system.kill()

    def _power_at_call(self, rng: random.Random) -> None:
        self._at_call(rng, self._system.lose_power)

    def _kill_at_call(self, rng: random.Random) -> None:
        self._at_call(rng, self._system.kill)

    def _power_at_kind(self, rng: random.Random) -> None:
        self._at_kind(rng, self._system.lose_power)

    def _kill_at_kind(self, rng: random.Random) -> None:
        self._at_kind(rng, self._system.kill)

    def _at_call(self, rng: random.Random, action: Callable[[], None]) -> None:
        self._disk.on_call(action, rng.randint(1, NEXT_CALLS), before=rng.random() < 0.5)

    def _at_kind(self, rng: random.Random, action: Callable[[], None]) -> None:
        (kind,) = rng.choices(list(NEXT_CALLS_OF_KIND), (5, 2, 1, 1, 1, 1))
        number = rng.randint(1, NEXT_CALLS_OF_KIND[kind])
        self._disk.on_call(action, number, kind, before=rng.random() < 0.5)

    def _power_after_rename(self, rng: random.Random) -> None:
        self._after_rename(rng, self._system.lose_power)

    def _kill_after_rename(self, rng: random.Random) -> None:
        self._after_rename(rng, self._system.kill)

    def _after_rename(self, rng: random.Random, action: Callable[[], None]) -> None:
        self._disk.on_call(action, rng.randint(1, AFTER_RENAME), before=rng.random() < 0.5, after_next="rename")

    def _kill_starts(self, rng: random.Random) -> None:
        """Twice in a row: what one start has begun, the next one finds. The second time the power may fail instead."""
        last = (
            self._system.kill,
            self._system.lose_power if self._system.plan.fsync == "always" else self._system.kill,
        )
        for action in (self._system.kill, rng.choice(last)):
            if rng.random() < 0.5:
                call = partial(self._disk.on_call, action, rng.randint(1, START_CALLS))
            else:  # between a rename and the sync of the directory
                call = partial(self._disk.on_call, action, after_next="rename")
            self._system.at_start.append(call)
        self._system.kill()

    def _terminate(self, _rng: random.Random) -> None:
        self._signal(signal.SIGTERM)

    def _snapshot(self, _rng: random.Random) -> None:
        self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals) -> None:
        if self._system.daemon is not None:
            self._system.daemon.signal(number)

    def _pause(self, rng: random.Random) -> None:
        if self._system.daemon is not None:
            self._system.daemon.stop(rng.choice((0.05, 0.6, 3.0)))

    def _suspend(self, rng: random.Random) -> None:
        machine = rng.choice((self._system.server, *self._system.machines))
        machine.suspend(rng.choice((0.3, 3.0, 100.0)))

    def _clock_step(self, rng: random.Random) -> None:
        machine = rng.choice((self._system.server, *self._system.machines))
        machine.wall_error += rng.choice(CLOCK_STEPS)

    def _revoke_token(self, rng: random.Random) -> None:
        self._system.change_tokens(valid=False)
        self._kernel.after(rng.choice(OUTAGES), partial(self._system.change_tokens, valid=True))

    # The disk

    def _slow_disk(self, rng: random.Random) -> None:
        self._disk.slow_down(rng.choice((0.1, 1.0)))

    def _full_disk(self, rng: random.Random) -> None:
        self._disk.fill(rng.choice((0.1, 1.5, 4.0)))

    def _nearly_full_disk(self, rng: random.Random) -> None:
        self._disk.fill(rng.choice((0.1, 1.5, 4.0)), room=rng.choice((1, 40, 200, 700, 3000)))

    def _failing_write(self, _rng: random.Random) -> None:
        self._disk.fail_next("write")

    def _failing_sync(self, _rng: random.Random) -> None:
        self._disk.fail_next("sync")

    def _failing_rename(self, _rng: random.Random) -> None:
        self._disk.fail_next("rename")

    # The network and the clients

    def _cut(self, rng: random.Random) -> None:
        for connection in self._some_connections(rng):
            for end in rng.choice(((connection.client, connection.server), (connection.client,), (connection.server,))):
                end.reset()

    def _silence(self, rng: random.Random) -> None:
        for connection in self._some_connections(rng):
            connection.silence()

    def _late_copies(self, rng: random.Random) -> None:
        """What is on its way arrives when the clients have most likely sent it again."""
        for connection in self._some_connections(rng):
            connection.strand(rng.choice((0.05, 0.3, 1.2, 4.0)))

    def _some_connections(self, rng: random.Random) -> list[Connection]:
        return [connection for connection in self._system.network.connections() if rng.random() < 0.5]

    def _partition(self, rng: random.Random) -> None:
        self._block(rng, there=True, back=True)

    def _one_way(self, rng: random.Random) -> None:
        there = rng.random() < 0.5
        self._block(rng, there=there, back=not there)

    def _block(self, rng: random.Random, *, there: bool, back: bool) -> None:
        network, server = self._system.network, self._system.server
        for machine in rng.sample(self._system.machines, rng.randint(1, len(self._system.machines))):
            seconds = rng.choice(OUTAGES)
            if there:
                network.block(machine, server, seconds)
            if back:
                network.block(server, machine, seconds)

    def _address_down(self, rng: random.Random) -> None:
        """Nothing passes from or to one address of the server."""
        network, seconds = self._system.network, rng.choice(OUTAGES)
        server = rng.choice(network.hosts_of(self._system.server))
        for machine in self._system.machines:
            for client in network.hosts_of(machine):
                network.block_hosts(client, server, seconds)
                network.block_hosts(server, client, seconds)

    def _slow_network(self, rng: random.Random) -> None:
        network, slowest = self._system.network, self._system.plan.latency
        network.slowest = SLOW_LATENCY
        self._kernel.after(rng.choice((0.1, 0.5)), setattr, network, "slowest", slowest)

    def _client_crash(self, rng: random.Random) -> None:
        self._system.crash_client(rng.randrange(len(self._system.machines)))
