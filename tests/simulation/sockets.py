"""What stands in for `socket.socket` and `select.poll`. Each call that may wait is a switch to the kernel's hub."""

from __future__ import annotations

import errno
import select
import socket
import struct
from asyncio.events import _get_running_loop
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from greenlet import getcurrent

from tests.simulation.kernel import ThreadGreenlet, World
from tests.simulation.network import Connected
from tests.simulation.tcp import Address, End, os_error
from tests.simulation.threads import current_process

CALL_SECONDS = 3e-6  # what a system call takes
ALMOST_NOTHING = 1e-9  # seconds that are not worth waiting for


class Socket:
    """A TCP socket: blocking, or listening, or the handle that an event loop uses.

    Attributes:
        family: AF_INET or AF_INET6.
        process: The process that has it.
        end: The side of a connection that it stands for, once it is connected.
        backlog: Connections to a listening socket that were not accepted yet.
        on_connection: Called in the hub when a connection was added to the backlog.
    """

    def __init__(self, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM, proto: int = 0) -> None:  # noqa: A002, ARG002
        self.family = family
        self.process = current_process()
        self.end: End | None = None
        self.backlog: deque[End] = deque()
        self.on_connection: Callable[[], object] | None = None
        self._network = World.kernel.network
        self._kernel = World.kernel
        self._descriptor = self._network.new_descriptor(self)
        self._address: Address | None = None  # to which it is bound
        self._backlog_size = 0
        self._timeout: float | None = None
        self._receive_timeout: float | None = None  # SO_RCVTIMEO
        self._send_timeout: float | None = None  # SO_SNDTIMEO
        self._may_reuse = False
        self._waiting: ThreadGreenlet | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_closed(self) -> bool:
        return self._descriptor < 0 or not self.process.alive

    def fileno(self) -> int:
        return self._descriptor

    def setblocking(self, flag: bool) -> None:
        self._timeout = None if flag else 0.0

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def gettimeout(self) -> float | None:
        return self._timeout

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        if level != socket.SOL_SOCKET:
            return
        if option == socket.SO_REUSEADDR:
            self._may_reuse = bool(value)
        elif isinstance(value, bytes):
            seconds, microseconds = struct.unpack("@ll", value)
            if option == socket.SO_RCVTIMEO:
                self._receive_timeout = seconds + microseconds / 1e6
            elif option == socket.SO_SNDTIMEO:
                self._send_timeout = seconds + microseconds / 1e6

    def getsockname(self) -> Address:
        return self._address or (("0.0.0.0", 0) if self.end is None else self.end.address)

    def getpeername(self) -> Address:
        if self.end is None:
            raise os_error(errno.ENOTCONN)
        return self.end.peer.address

    @property
    def unacknowledged(self) -> int:
        """How many sent bytes the peer has not read, as the ioctl TIOCOUTQ returns them."""
        return 0 if self.end is None else self.end.in_flight

    def close(self) -> None:
        if self._descriptor < 0:
            return
        del self._network.descriptors[self._descriptor]
        self._descriptor = -1
        if self.end is not None:
            self.end.close()
        if self._address is not None:
            self._unbind()
        self._wake()

    # Listening

    def bind(self, place: tuple[Any, ...]) -> None:
        address: Address = place[0], place[1]
        network = self._network
        if address[0] not in network.hosts_of(self.process.machine):
            raise os_error(errno.EADDRNOTAVAIL)
        other = network.bound.get(address)
        is_shared = self._may_reuse and (other is None or (other._may_reuse and address not in network.listeners))
        if not is_shared and (other is not None or network.is_in_time_wait(address)):
            raise os_error(errno.EADDRINUSE)
        self._address = address
        network.bound[address] = self
        self.process.resources[self] = None

    def listen(self, backlog: int = 128) -> None:
        if self._address is None:
            raise os_error(errno.EDESTADDRREQ)
        if self._network.listeners.setdefault(self._address, self) is not self:
            raise os_error(errno.EADDRINUSE)
        self._backlog_size = backlog

    @property
    def is_full(self) -> bool:
        """Whether no more connections can wait to be accepted."""
        return len(self.backlog) >= self._backlog_size

    def enqueue(self, end: End) -> None:
        """Called by the network, with a new connection."""
        self.backlog.append(end)
        if self.on_connection is not None:
            self.on_connection()

    def process_ended(self, *, power_lost: bool) -> None:
        """Called by the kernel."""
        if power_lost:
            self.backlog.clear()
        self._unbind()

    def _unbind(self) -> None:
        for sockets in (self._network.bound, self._network.listeners):
            if self._address is not None and sockets.get(self._address) is self:
                del sockets[self._address]
        self.process.resources.pop(self, None)
        while self.backlog:
            self.backlog.popleft().close(with_reset=True)  # as the system does with those that nobody has accepted

    # Connected

    def attach(self, end: End) -> None:
        """Called by the network when it is connected, and by a server with a connection that it accepts."""
        self.end = end
        end.on_readable = end.on_room = self._wake

    def begin_to_connect(self, target: tuple[Any, ...], connected: Connected) -> None:
        """Connect without waiting. `connected` is called in the hub, unless the socket is closed before."""
        self._network.connect(self, (target[0], target[1]), connected)

    def connect(self, target: tuple[Any, ...]) -> None:
        outcome: list[OSError | None] = []
        me = getcurrent()

        def connected(error: OSError | None) -> None:
            if self._waiting is me:
                outcome.append(error)
                self._wake()

        self._waiting = me
        self.begin_to_connect(target, connected)
        self._kernel.block(self._timeout)
        self._waiting = None
        if not outcome:
            raise TimeoutError("timed out")
        if outcome[0] is not None:
            raise outcome[0]

    def send(self, data: bytes, flags: int = 0) -> int:
        end = self._wait_until_ready(select.POLLOUT, 0.0 if flags & socket.MSG_DONTWAIT else self._send_timeout)
        self._kernel.block(CALL_SECONDS)
        if end.error:
            raise os_error(end.error)
        part = bytes(data[: end.room])
        end.send(part)
        return len(part)

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[self.send(data) :]

    def recv(self, size: int) -> bytes:
        end = self._wait_until_ready(select.POLLIN, self._receive_timeout)
        self._kernel.block(CALL_SECONDS)
        if not end.received and end.error:
            raise os_error(end.error)
        return end.read(size)

    def events(self) -> int:
        """Return the events that `poll` reports for it now."""
        if self.is_closed:
            return select.POLLNVAL
        end = self.end
        if end is None:
            return select.POLLIN if self.backlog else 0
        if end.error:
            return select.POLLIN | select.POLLOUT | select.POLLRDHUP | select.POLLERR | select.POLLHUP
        events = select.POLLOUT if end.in_flight < end.connection.window else 0
        if end.eof:
            events |= select.POLLIN | select.POLLRDHUP
        return events | select.POLLIN if end.received else events

    def wait(self, events: int, seconds: float | None) -> int:
        """Wait until `poll` tells one of these events. Return which, or 0 when the time is over."""
        machine, kernel = self.process.machine, self._kernel
        until = None if seconds is None else machine.monotonic() + seconds
        while not (found := self.events() & events):
            left = None if until is None else until - machine.monotonic()
            if left is not None and left <= ALMOST_NOTHING:
                return 0
            if events & select.POLLOUT and self.end is not None:
                self.end.needs_room = True
            self._waiting = getcurrent()
            kernel.block(left)
            self._waiting = None
        return found

    def _wait_until_ready(self, event: int, option: float | None) -> End:
        """Wait as the timeout of the socket says, or else the option. Raises OSError, as TimeoutError."""
        if self.is_closed or self.end is None:
            raise os_error(errno.EBADF if self.is_closed else errno.ENOTCONN)
        events = event | select.POLLERR | select.POLLNVAL
        if not self.wait(events, option if self._timeout is None else self._timeout):
            if self._timeout:
                raise TimeoutError("timed out")
            raise os_error(errno.EAGAIN)
        return self.end

    def _wake(self) -> None:
        if self._waiting is not None:
            self._kernel.wake(self._waiting)


class Poll:
    """`select.poll`, for one socket, which may be given by its file descriptor."""

    def __init__(self) -> None:
        self._socket: Socket | None = None
        self._events = 0

    def register(self, target: Socket | int, events: int = select.POLLIN | select.POLLOUT) -> None:
        descriptor = target if isinstance(target, int) else target.fileno()
        if descriptor < 0:
            raise ValueError(f"file descriptor cannot be a negative integer ({descriptor})")
        self._socket = World.kernel.network.descriptors.get(descriptor)
        self._events = events | select.POLLERR | select.POLLHUP | select.POLLNVAL

    def poll(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
        """Return what is found, within this time. None: without a limit.

        If nothing is found this takes a little time, or a thread that asks again and again would stop the clock. The
        iterations of an event loop take time anyway, so that a call which does not wait takes none there.
        """
        sock = self._socket
        if sock is None:
            return [(-1, select.POLLNVAL)]
        if not milliseconds and milliseconds is not None:
            events = sock.events() & self._events
        else:
            events = sock.wait(self._events, None if milliseconds is None else milliseconds / 1000)
        if events:
            return [(sock.fileno(), events)]
        if milliseconds or _get_running_loop() is None:
            World.kernel.block(CALL_SECONDS)
        return []


def getaddrinfo(host: str | bytes, port: int, **_hints: int) -> list[tuple[Any, ...]]:
    """Return the one address that a numeric host stands for. Raises gaierror for a name: there are none."""
    text = host.decode() if isinstance(host, bytes) else host
    families: tuple[tuple[int, tuple[int, ...]], ...] = ((socket.AF_INET, ()), (socket.AF_INET6, (0, 0)))
    for family, rest in families:
        try:
            socket.inet_pton(family, text)
        except OSError:
            continue
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (text, port, *rest))]
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
