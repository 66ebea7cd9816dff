"""A TCP connection between two simulated processes: in order, with any latency and in any pieces.

Late duplicates are possible: what a client has given up may still arrive, behind what it has sent since on another
connection. If the way is blocked, a segment is lost, and the sender's system sends it again later, also after the
process has closed the connection, but not after a reset or a loss of power. And the network itself can hold back what
is on its way (`End.delay`), even if the sender's side is reset meanwhile (`Connection.strand`).
"""

from __future__ import annotations

import errno
import os
import zlib
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING

from tests.simulation.kernel import Process

if TYPE_CHECKING:
    from tests.simulation.network import Network

Address = tuple[str, int]

WINDOWS = (4096, 65536, 262144)  # bytes that the other side need not have read
RETRANSMISSION = (0.05, 0.3)  # seconds until lost segments are sent again, for the first time; then twice as many
MAX_RETRANSMISSION = 2.0  # seconds
KEEPALIVE_SECONDS = 50.0  # `statestored.sockets.KEEP_ALIVE`: until a connection to nobody is given up


class Mark(Enum):
    """What a segment may be besides data."""

    FIN = auto()
    RST = auto()


Segment = bytes | Mark


class Connection:
    """A TCP connection: two ends, and what is on the way between them."""

    def __init__(
        self, network: Network, number: int, client: tuple[Process, Address], server: tuple[Process, Address]
    ) -> None:
        self.network = network
        self.number = number
        self.window = network.rng.choice(WINDOWS)
        self.is_silent = False
        self.client = End(self, *client)
        self.server = End(self, *server)
        self.client.peer, self.server.peer = self.server, self.client

    def __str__(self) -> str:
        return f"#{self.number}"

    def silence(self) -> None:
        """Lose everything that either side sends from now on, without an error, as a forgetful router does.

        The server's system notices it after a while, because its keepalive probes are not answered.
        """
        self.is_silent = True
        self.network.kernel.after(KEEPALIVE_SECONDS, self.server.fail, errno.ETIMEDOUT)

    def strand(self, seconds: float) -> None:
        """Reset the client's side, if it is open, while what it has sent is on its way for some time more.

        If the client sends it again on another connection, what arrives by this one is a late duplicate.
        """
        if not (self.client.error or self.client.closed):
            self.client.delay(seconds)
            self.client.reset()


class End:
    """One side of a connection: what its system knows of it.

    Attributes:
        process, address: The process that has this side, and its address.
        received: The bytes that have arrived and have not been read.
        eof: The other side sends no more.
        error: The errno of what ended the connection, or 0. What arrived before can still be read, as on Linux.
        closed: The process has closed this side, or has ended.
        in_flight: How many sent bytes the other side has not read.
        needs_room: The process waits until more can be sent. Set it before waiting for `on_room`.
        on_readable, on_room: Called in the hub when something has arrived, or when more can be sent.
        delayed_until: Until this time the network holds back what this side sends.
    """

    peer: End

    def __init__(self, connection: Connection, process: Process, address: Address) -> None:
        self.connection = connection
        self.process = process
        self.address = address
        self.received = bytearray()
        self.eof = False
        self.error = 0
        self.closed = False
        self.in_flight = 0
        self.needs_room = False
        self.on_readable: Callable[[], object] | None = None
        self.on_room: Callable[[], object] | None = None
        self.delayed_until = 0.0
        self._network = connection.network
        self._kernel = connection.network.kernel
        self._boot_id = process.machine.boot_id
        self._on_the_way: deque[Segment] = deque()  # sent and not delivered, the lost ones included
        self._lost = 0  # how many of the first of them were lost; for each of the others `_arrive` will be called
        self._last_arrival = 0.0
        self._retransmission = 0.0
        self._has_sent_reset = False
        process.resources[self] = None

    @property
    def room(self) -> int:
        """How many bytes can be sent."""
        return self.connection.window - self.in_flight

    def send(self, data: bytes) -> None:
        network, kernel = self._network, self._kernel
        kernel.digest = zlib.crc32(data, kernel.digest)
        if network.tap is not None:
            network.tap("sends", self, data)
        self.in_flight += len(data)
        if len(data) > 1 and network.rng.random() < network.pieces:
            cut = network.rng.randrange(1, len(data))
            self._post(data[:cut])
            data = data[cut:]
        self._post(data)

    def read(self, size: int) -> bytes:
        data = bytes(self.received[:size])
        del self.received[:size]
        peer = self.peer
        peer.in_flight -= len(data)
        if peer.needs_room:
            peer.needs_room = False
            self._kernel.after(self._network.latency(), peer._has_room)
        return data

    def close(self, *, with_reset: bool = False) -> None:
        """Close it. As the system does it, the peer gets a reset if something that it has sent was not read."""
        if self.closed:
            return
        self.closed = True
        self.on_readable = self.on_room = None
        self.process.resources.pop(self, None)
        if self is self.connection.server:
            self._network.enter_time_wait(self.address)
        if self.error:
            return
        self._post(Mark.RST if self.received or with_reset else Mark.FIN)

    def fail(self, error: int) -> None:
        """Break the connection on this side only; the other side learns of it when it sends something."""
        if not (self.error or self.closed):
            self.error = error
            self._tell_readable()

    def reset(self) -> None:
        """As if the peer had reset the connection; so does a box between the two that has forgotten it."""
        self.fail(errno.ECONNRESET)

    def delay(self, seconds: float) -> None:
        """Let the network hold back what is on its way to the peer, and what is sent from now on."""
        self.delayed_until = max(self.delayed_until, self._kernel.now + seconds)

    def process_ended(self, *, power_lost: bool) -> None:
        """Close it, as the system does it when the process ends. A machine without power sends nothing."""
        if power_lost:
            self.closed = True
            self.on_readable = self.on_room = None
        else:
            self.close()

    # The way to the peer

    def _post(self, segment: Segment) -> None:
        if segment is Mark.RST:
            self._has_sent_reset = True
        kernel = self._kernel
        self._last_arrival = arrival = max(self._last_arrival + 1e-9, kernel.now + self._network.latency())
        self._on_the_way.append(segment)
        kernel.at(arrival, self._arrive)

    def _arrive(self) -> None:
        """Deliver the next segment, or lose it. Only the order of the queue decides which one it is."""
        if self._kernel.now < self.delayed_until:
            self._kernel.at(self.delayed_until, self._arrive)
        elif self._on_the_way[self._lost] is Mark.RST:
            del self._on_the_way[self._lost]
            if self._can_pass():  # it is sent once, and counts even if what was sent before it is missing
                self.peer._take(Mark.RST)
        elif not self._lost and self._can_pass():
            self.peer._take(self._on_the_way.popleft())
        else:
            self._lost += 1
            if self._lost == 1:
                self._retransmission = self._network.rng.uniform(*RETRANSMISSION)
                self._kernel.after(self._retransmission, self._retransmit)

    def _can_pass(self) -> bool:
        return self._network.can_pass(self.address[0], self.peer.address[0])

    def _retransmit(self) -> None:
        """Deliver the lost segments, unless nothing sends them again: then nothing behind them is delivered either."""
        machine = self.process.machine
        if self.error or self._has_sent_reset or machine.boot_id != self._boot_id:
            return
        if self._kernel.now < self.delayed_until:
            self._kernel.at(self.delayed_until, self._retransmit)
        elif machine.is_reachable and self._can_pass():
            lost, self._lost = self._lost, 0
            for _ in range(lost):
                self.peer._take(self._on_the_way.popleft())
        else:
            self._retransmission = min(2 * self._retransmission, MAX_RETRANSMISSION)
            self._kernel.after(self._retransmission, self._retransmit)

    def _take(self, segment: Segment) -> None:
        if self.connection.is_silent:
            return
        if self._network.tap is not None:
            self._network.tap("receives", self, segment)
        if self.closed or self.error:
            if not isinstance(segment, Mark):
                self._post(Mark.RST)
        elif segment is Mark.RST:
            self.reset()
        else:
            if segment is Mark.FIN:
                self.eof = True
            else:
                self.received += segment
            self._tell_readable()

    def _tell_readable(self) -> None:
        if self.on_readable is not None:
            self.on_readable()
        if self.error and self.on_room is not None:
            self.on_room()

    def _has_room(self) -> None:
        if self.on_room is not None:
            self.on_room()


def os_error(number: int) -> OSError:
    """Return an exception of the class that belongs to this errno."""
    return OSError(number, os.strerror(number))
