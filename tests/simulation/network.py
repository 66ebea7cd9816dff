"""The network of a run: which machine has which address, what can pass, and how connections are made."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.kernel import Kernel, Machine
from tests.simulation.tcp import Address, Connection, End, Segment, os_error

if TYPE_CHECKING:
    from tests.simulation.sockets import Socket

Connected = Callable[[OSError | None], object]  # called with the error of an attempt to connect, or None

SYN_RETRIES = (1.0, 2.0, 4.0, 8.0)  # seconds until an attempt to connect is repeated
TIME_WAIT = 60.0  # seconds in which an address counts as used after a connection to it
FIRST_DESCRIPTOR = 1_000_000  # no real file descriptor is as large
FIRST_PORT = 40_000  # of clients


class Network:
    """The network of one run.

    Attributes:
        slowest: Seconds of latency that few segments exceed.
        outliers: The share of segments with a latency of up to `OUTLIER` times that, but at most `longest` seconds.
        pieces: The share of writes that arrive in two pieces.
        bound, listeners: Sockets by the address to which they are bound, or on which they listen.
        descriptors: Sockets by their file descriptors.
        tap: Called with "sends" or "receives", an end of a connection and what it sends or receives, if it is set.
    """

    OUTLIER = 50

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        kernel.network = self
        self.rng = kernel.stream("network")
        self.slowest = 0.001
        self.outliers = 0.02
        self.longest = 0.4
        self.pieces = 0.2
        self.bound: dict[Address, Socket] = {}
        self.listeners: dict[Address, Socket] = {}
        self.descriptors: dict[int, Socket] = {}
        self.tap: Callable[[str, End, Segment], object] | None = None
        self._machines: dict[str, Machine] = {}
        self._blocked: dict[tuple[str, str], float] = {}  # from one host to another, until when
        self._connections: list[Connection] = []
        self._last_connection = 0
        self._last_descriptor = FIRST_DESCRIPTOR
        self._time_wait: dict[Address, tuple[bytes, float]] = {}  # the boot id of the machine, and until when

    # Machines and their addresses

    def attach(self, machine: Machine, *hosts: str) -> None:
        """Give a machine its addresses. It connects to others from the first."""
        for host in hosts:
            self._machines[host] = machine

    def machine_of(self, host: str) -> Machine:
        return self._machines[host]

    def hosts_of(self, machine: Machine) -> list[str]:
        return [host for host, other in self._machines.items() if other is machine]

    # Faults

    def block(self, sender: Machine, receiver: Machine, seconds: float) -> None:
        """Let nothing pass from one machine to another for a while, by any of their addresses."""
        for source in self.hosts_of(sender):
            for target in self.hosts_of(receiver):
                self.block_hosts(source, target, seconds)

    def block_hosts(self, source: str, target: str, seconds: float) -> None:
        """Let nothing pass from one address to another for a while."""
        self._blocked[source, target] = self.kernel.now + seconds

    def heal(self) -> None:
        """End all blocks. What is on its way for long arrives when it would have arrived anyway."""
        self._blocked.clear()

    def connections(self) -> list[Connection]:
        """Return the connections that at least one side has not closed, the oldest first."""
        self._connections = [one for one in self._connections if not (one.client.closed and one.server.closed)]
        return list(self._connections)

    # Below: for sockets and connections

    def latency(self) -> float:
        chance = self.rng.random()
        if chance < self.outliers:
            return self.rng.uniform(0.0, min(self.OUTLIER * self.slowest, self.longest))
        return 2e-5 + self.rng.random() ** 2 * self.slowest

    def can_pass(self, source: str, target: str) -> bool:
        """Whether what is sent from one address to another arrives."""
        if self._blocked and self._blocked.get((source, target), 0.0) > self.kernel.now:
            return False
        return self._machines[target].is_reachable

    def new_descriptor(self, sock: Socket) -> int:
        self._last_descriptor += 1
        self.descriptors[self._last_descriptor] = sock
        return self._last_descriptor

    def is_in_time_wait(self, address: Address) -> bool:
        boot_id, until = self._time_wait.get(address, (b"", 0.0))
        return until > self.kernel.now and boot_id == self.machine_of(address[0]).boot_id

    def enter_time_wait(self, address: Address) -> None:
        self._time_wait[address] = self.machine_of(address[0]).boot_id, self.kernel.now + TIME_WAIT

    def connect(self, sock: Socket, target: Address, connected: Connected) -> None:
        """Connect a socket. `connected` is called in the hub, unless the socket is closed before."""
        self.kernel.after(self.latency(), self._syn, sock, target, connected, 0)

    def _syn(self, sock: Socket, target: Address, connected: Connected, attempt: int) -> None:
        if sock.is_closed:
            return
        source = self.hosts_of(sock.process.machine)[0]
        if target[0] not in self._machines:
            self._finish(sock, connected, errno.EHOSTUNREACH)
            return
        listener = self.listeners.get(target)
        if not self._is_open(source, target[0]) or (listener is not None and listener.is_full):
            if attempt < len(SYN_RETRIES):
                self.kernel.after(SYN_RETRIES[attempt], self._syn, sock, target, connected, attempt + 1)
            else:
                self._finish(sock, connected, errno.ETIMEDOUT)
        elif listener is None:
            self.kernel.after(self.latency(), self._finish, sock, connected, errno.ECONNREFUSED)
        else:
            self._last_connection += 1
            client = source, FIRST_PORT + self._last_connection
            connection = Connection(self, self._last_connection, (sock.process, client), (listener.process, target))
            self._connections.append(connection)
            self.kernel.note("network", "connects", f"{connection} {sock.process.name} -> {listener.process.name}")
            listener.enqueue(connection.server)
            self.kernel.after(self.latency(), self._finish, sock, connected, 0, connection.client)

    def _is_open(self, one: str, other: str) -> bool:
        return self.can_pass(one, other) and self.can_pass(other, one)

    def _finish(self, sock: Socket, connected: Connected, error: int, end: End | None = None) -> None:
        if sock.is_closed:
            if end is not None:
                end.close()
        elif end is None:
            connected(os_error(error))
        else:
            sock.attach(end)
            connected(None)
