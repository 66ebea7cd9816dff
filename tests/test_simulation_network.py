"""The network of the simulation, seen through its sockets and its event loop."""

import asyncio
import errno
import inspect
import select
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulation import loop
from tests.simulation.kernel import START, Kernel, Machine, Process
from tests.simulation.network import Network
from tests.simulation.sockets import Poll, Socket, getaddrinfo
from tests.simulation.tcp import End, Segment
from tests.simulation.transports import Server

SERVER = ("10.0.0.9", 7828)


class Bed:
    """A server's machine and a client's, with a process that runs one coroutine or function at a time on each."""

    def __init__(self) -> None:
        self.kernel = Kernel("test")
        self.network = Network(self.kernel)
        self.network.outliers = 0.0
        self.server = Machine(self.kernel, "server")
        self.client = Machine(self.kernel, "client")
        self.network.attach(self.server, SERVER[0], "10.0.1.9")
        self.network.attach(self.client, "10.0.0.1")
        self.received: list[tuple[int, bytes]] = []  # by the server: the number of the connection, and data
        self.network.tap = self._tap
        self.daemon = self.start_server()

    def start_server(self, make_protocol: Callable[[], asyncio.BaseProtocol] | None = None) -> Process:
        """Start an echo server, or another."""
        daemon = Process(self.kernel, "daemon", self.server)

        async def serve() -> None:
            await listen(make_protocol or Echo)
            await asyncio.Event().wait()

        loop.run(daemon, serve)
        return daemon

    def call(self, function: Callable[[], object], within: float = 1000.0) -> Process:
        """Run a function in a thread of the client, and all that is under way beside it."""
        process = Process(self.kernel, "client", self.client)
        process.spawn(function)
        self.run(within)
        return process

    def call_async(self, main: Callable[[], Coroutine[Any, Any, object]], within: float = 1000.0) -> None:
        process = Process(self.kernel, "client", self.client)
        statuses: list[object] = []
        process.on_exit = statuses.append
        loop.run(process, main)
        self.run(within)
        assert statuses == [None]

    def run(self, seconds: float = 1000.0) -> None:
        self.kernel.run(self.kernel.now + seconds)
        assert self.kernel.failures == []

    def _tap(self, what: str, end: End, segment: Segment) -> None:
        if what == "receives" and end is end.connection.server and isinstance(segment, bytes):
            self.received.append((end.connection.number, segment))

    def received_by(self, number: int) -> bytes:
        return b"".join(data for connection, data in self.received if connection == number)


@pytest.fixture
def bed() -> Iterator[Bed]:
    bed = Bed()
    yield bed
    bed.kernel.end()


class Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def listen(make_protocol: Callable[[], asyncio.BaseProtocol], address: tuple[str, int] = SERVER) -> Server:
    sock = Socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    running = asyncio.get_running_loop()
    assert isinstance(running, loop.Loop)
    return await running.create_server(make_protocol, sock=sock, backlog=10)


def connected() -> Socket:
    sock = Socket()
    sock.connect(SERVER)
    return sock


def test_what_is_sent_in_pieces_arrives_in_order(bed: Bed) -> None:
    bed.network.pieces = 1.0
    data = bytes(range(256)) * 40  # more than the smallest window
    got = bytearray()

    def talk() -> None:
        with connected() as sock:
            sock.sendall(data)
            while len(got) < len(data):
                got.extend(sock.recv(1000))

    bed.call(talk)
    assert bytes(got) == data
    assert len(bed.received) > 1


def test_connecting_is_refused_where_nobody_listens_and_times_out_where_nothing_passes(bed: Bed) -> None:
    errors: list[OSError] = []

    def connect(sock: Socket, port: int) -> None:
        try:
            sock.connect((SERVER[0], port))
        except OSError as error:
            errors.append(error)
        sock.close()

    def talk() -> None:
        connect(Socket(), 1)
        bed.network.block(bed.server, bed.client, 100.0)
        sock = Socket()
        sock.settimeout(2.0)
        connect(sock, SERVER[1])
        connect(Socket(), SERVER[1])

    bed.call(talk)
    assert [type(error) for error in errors] == [ConnectionRefusedError, TimeoutError, TimeoutError]
    assert [error.errno for error in errors] == [errno.ECONNREFUSED, None, errno.ETIMEDOUT]


def test_a_receive_ends_after_its_timeout(bed: Bed) -> None:
    times: list[float] = []

    def talk() -> None:
        sock = connected()
        start = bed.kernel.now
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 100_000))
        with pytest.raises(BlockingIOError):
            sock.recv(10)
        times.append(bed.kernel.now - start)
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(10)
        times.append(bed.kernel.now - start)

    bed.call(talk)
    assert times == pytest.approx([0.1, 0.6], abs=1e-4)


def test_a_send_takes_what_there_is_room_for_and_then_nothing(bed: Bed) -> None:
    sent: list[int] = []

    def talk() -> None:
        sock = connected()
        bed.daemon.stop(100.0)
        assert sock.end is not None
        window = sock.end.connection.window
        sent.append(sock.send(bytes(window + 1)) - window)
        with pytest.raises(BlockingIOError):
            sock.send(b"x", socket.MSG_DONTWAIT)
        poll = Poll()
        poll.register(sock, select.POLLOUT)
        sent.append(len(poll.poll(100)))

    bed.call(talk)
    assert sent == [0, 0]


def test_a_poll_tells_that_the_peer_has_hung_up(bed: Bed) -> None:
    found: list[int] = []

    def talk() -> None:
        sock = connected()
        poll = Poll()
        poll.register(sock.fileno(), select.POLLRDHUP)
        for _ in range(2):
            found.append(sum(events for _, events in poll.poll(0)))
            bed.daemon.kill()
            bed.kernel.block(1.0)

    bed.call(talk)
    assert found == [0, select.POLLRDHUP]


def test_a_reset_comes_behind_what_was_received_before(bed: Bed) -> None:
    seen: list[object] = []

    def talk() -> None:
        sock = connected()
        sock.sendall(b"echo")
        bed.kernel.block(1.0)
        (connection,) = bed.network.connections()
        connection.client.reset()
        seen.append(sock.recv(10))
        with pytest.raises(ConnectionResetError):
            sock.recv(10)
        seen.append(connection.server.error)
        with pytest.raises(ConnectionResetError):
            sock.send(b"x")

    bed.call(talk)
    assert seen == [b"echo", 0]  # the server does not know of it


def test_the_side_that_knows_nothing_of_a_cut_learns_of_it_when_it_sends(bed: Bed) -> None:
    seen: list[object] = []

    def talk() -> None:
        sock = connected()
        bed.kernel.block(1.0)
        bed.network.connections()[0].server.reset()
        bed.kernel.block(1.0)
        sock.send(b"lost")
        with pytest.raises(ConnectionResetError):
            sock.recv(10)
        seen.append(bed.received_by(1))

    bed.call(talk)
    assert seen == [b"lost"]


def test_a_silent_connection_is_ended_by_the_servers_system_after_a_while(bed: Bed) -> None:
    ends: list[tuple[float, object]] = []

    class Noting(Echo):
        def connection_lost(self, error: Exception | None) -> None:
            ends.append((bed.kernel.now - START, error))

    bed.daemon.kill()
    bed.start_server(Noting)

    def talk() -> None:
        sock = connected()
        bed.network.connections()[0].silence()
        sock.send(b"lost")
        sock.settimeout(100.0)
        with pytest.raises(TimeoutError):
            sock.recv(10)

    bed.call(talk)
    assert bed.received == []
    ((when, error),) = ends
    assert isinstance(error, TimeoutError)
    assert when == pytest.approx(50, abs=1)


def test_what_a_client_gave_up_arrives_behind_what_it_sent_again(bed: Bed) -> None:
    def talk() -> None:
        old = connected()
        assert old.end is not None
        old.end.delay(5.0)
        old.send(b"old")
        old.close()
        new = connected()
        new.send(b"new")
        assert new.recv(10)

    bed.call(talk)
    assert bed.received[0][0] == 2
    assert (bed.received_by(1), bed.received_by(2)) == (b"old", b"new")


def test_a_stranded_client_can_send_again_before_the_first_copy_arrives(bed: Bed) -> None:
    def talk() -> None:
        old = connected()
        old.send(b"one")
        bed.network.connections()[0].strand(5.0)
        with pytest.raises(ConnectionResetError):
            old.recv(10)
        old.close()
        new = connected()
        new.send(b"two")
        assert new.recv(10)

    bed.call(talk)
    assert bed.received[0][0] == 2
    assert (bed.received_by(1), bed.received_by(2)) == (b"one", b"two")


def test_what_is_delayed_twice_arrives_in_order(bed: Bed) -> None:
    def talk() -> None:
        sock = connected()
        assert sock.end is not None
        sock.end.delay(1.0)
        sock.send(b"A")
        bed.kernel.block(0.5)
        sock.end.delay(2.0)
        sock.send(b"B")
        bed.kernel.block(0.6)
        sock.end.delay(2.0)

    bed.call(talk)
    assert bed.received == [(1, b"A"), (1, b"B")]


def test_a_connection_whose_client_is_gone_is_not_stranded_again(bed: Bed) -> None:
    def talk() -> None:
        sock = connected()
        sock.send(b"late")
        (connection,) = bed.network.connections()
        connection.strand(1.0)
        bed.kernel.block(0.9)
        connection.strand(5.0)
        bed.kernel.block(0.2)

    bed.call(talk, within=1.2)
    assert bed.received_by(1) == b"late"


def test_nothing_is_delivered_behind_what_a_reset_has_lost(bed: Bed) -> None:
    def talk() -> None:
        sock = connected()
        assert sock.end is not None
        bed.network.block(bed.client, bed.server, 0.01)
        sock.send(b"A")
        bed.kernel.block(0.005)  # it is lost, and will be sent again
        sock.send(b"B")
        sock.end._last_arrival += 0.01  # behind the end of the block
        sock.send(b"C")
        sock.end.reset()

    bed.call(talk)
    assert bed.received == []


# Steps of a client: what it does, and for how many seconds if that lasts.
HARMLESS = ("send", "send", "send", "wait", "delay", "delay", "delay back", "block", "block back")
BREAKING = ("strand", "cut", "cut back", "close", "suspend")
Steps = list[tuple[str, float]]


def steps_of(*kinds: str) -> st.SearchStrategy[Steps]:
    return st.lists(st.tuples(st.sampled_from(kinds), st.sampled_from((0.01, 0.2, 1.5))), min_size=5, max_size=20)


def received_and_sent(steps: Steps) -> list[tuple[bytes, bytes]]:
    """Return what the server has received of a client's bytes and all of them, and the same for the answers."""
    bed = Bed()
    bed.network.pieces = 0.5
    heard: dict[str, bytes] = {"client": b"", "daemon": b""}
    told: dict[str, bytes] = {"client": b"", "daemon": b""}

    def note(what: str, end: End, segment: Segment) -> None:
        if isinstance(segment, bytes):
            log = heard if what == "receives" else told
            log[end.process.name] += segment

    def talk() -> None:
        sock = connected()
        for number, (what, seconds) in enumerate(steps):
            with suppress(OSError):  # the connection may be broken already
                take_step(bed, sock, what, seconds, bytes([2 * number, 2 * number + 1]))
            bed.kernel.block(0.002)

    bed.network.tap = note
    try:
        bed.call(talk)
    finally:
        bed.kernel.end()
    return [(heard["daemon"], told["client"]), (heard["client"], told["daemon"])]


def take_step(bed: Bed, sock: Socket, what: str, seconds: float, data: bytes) -> None:
    end = sock.end
    assert end is not None
    match what:
        case "send":
            sock.send(data)
        case "wait":
            bed.kernel.block(seconds)
        case "delay":
            end.delay(seconds)
        case "delay back":
            end.peer.delay(seconds)
        case "block":
            bed.network.block(bed.client, bed.server, seconds)
        case "block back":
            bed.network.block(bed.server, bed.client, seconds)
        case "strand":
            end.connection.strand(seconds)
        case "cut":
            end.reset()
        case "cut back":
            end.peer.reset()
        case "suspend":
            bed.server.suspend(seconds)
        case "close":
            sock.close()


@given(steps_of(*HARMLESS, *BREAKING))
def test_what_is_received_is_a_prefix_of_what_was_sent(steps: Steps) -> None:
    for received, sent in received_and_sent(steps):
        assert sent.startswith(received)


@given(steps_of(*HARMLESS))
def test_everything_is_received_if_nothing_breaks_the_connection(steps: Steps) -> None:
    for received, sent in received_and_sent(steps):
        assert received == sent


def test_what_is_sent_into_a_block_arrives_when_it_is_over_also_from_a_closed_connection(bed: Bed) -> None:
    def talk() -> None:
        sock = connected()
        bed.network.block(bed.client, bed.server, 3.0)
        sock.send(b"late")
        sock.close()
        bed.kernel.block(2.9)
        assert bed.received == []

    bed.call(talk)
    assert bed.received_by(1) == b"late"


def test_a_machine_without_power_sends_nothing_again(bed: Bed) -> None:
    def talk() -> None:
        sock = connected()
        bed.network.block(bed.client, bed.server, 3.0)
        sock.send(b"never")
        bed.kernel.after(1.0, bed.client.power_off)
        bed.kernel.after(2.0, bed.client.power_on)
        bed.kernel.block(2.5)

    bed.call(talk)
    assert bed.received == []


def test_a_one_way_block_lets_the_other_direction_pass(bed: Bed) -> None:
    seen: list[object] = []

    def talk() -> None:
        sock = connected()
        bed.network.block(bed.server, bed.client, 2.0)
        sock.send(b"echo")
        bed.kernel.block(1.0)
        seen.append((bed.received_by(1), sock.events() & select.POLLIN))
        sock.settimeout(10.0)
        seen.append(sock.recv(1))

    bed.call(talk)
    assert seen == [(b"echo", 0), b"e"]


def test_one_address_of_a_machine_can_be_blocked_alone(bed: Bed) -> None:
    second = ("10.0.1.9", 7828)

    async def serve() -> None:
        await listen(Echo, second)
        await asyncio.Event().wait()

    loop.run(Process(bed.kernel, "daemon2", bed.server), serve)
    bed.network.block_hosts("10.0.0.1", SERVER[0], 100.0)
    seen: list[object] = []

    def talk() -> None:
        with Socket() as sock:
            sock.settimeout(1.0)
            with pytest.raises(TimeoutError):
                sock.connect(SERVER)
        with Socket() as sock:
            sock.connect(second)
            seen.append(sock.getpeername())

    bed.call(talk)
    assert seen == [second]
    assert bed.network.machine_of(second[0]) is bed.network.machine_of(SERVER[0]) is bed.server


def test_a_stopped_process_still_accepts_connections_and_a_suspended_machine_does_not(bed: Bed) -> None:
    seen: list[float] = []

    def talk() -> None:
        bed.kernel.block(0.1)
        for fault in (bed.daemon.stop, bed.server.suspend):
            start = bed.kernel.now
            fault(0.5)
            connected()
            seen.append(bed.kernel.now - start)
            bed.kernel.block(5.0)

    bed.call(talk)
    assert seen == pytest.approx([0.0, 1.0], abs=0.02)


def test_an_address_in_use_cannot_be_bound_and_that_of_a_killed_process_can_when_it_may_be_reused(bed: Bed) -> None:
    seen: list[object] = []

    def bind(*, reuse: bool) -> int | None:
        sock = Socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        try:
            sock.bind(SERVER)
        except OSError as error:
            return error.errno
        finally:
            sock.close()
        return 0

    def other_daemon() -> None:
        seen.extend([bind(reuse=False), bind(reuse=True)])
        bed.daemon.kill()
        seen.extend([bind(reuse=False), bind(reuse=True)])  # there was a connection a moment ago
        with pytest.raises(OSError, match="assign requested address"):
            Socket().bind(("10.0.0.1", 1))

    bed.call(lambda: connected() and None, within=1.0)
    Process(bed.kernel, "other", bed.server).spawn(other_daemon)
    bed.run()
    assert seen == [errno.EADDRINUSE, errno.EADDRINUSE, errno.EADDRINUSE, 0]


def test_a_transport_asks_its_protocol_to_pause_and_keeps_the_rest_until_the_peer_reads(bed: Bed) -> None:
    calls: list[str] = []
    size = 400_000

    class Flood(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.set_write_buffer_limits(1000)
            transport.write(bytes(size))
            calls.append("closes")
            transport.close()

        def pause_writing(self) -> None:
            calls.append("pauses")

        def resume_writing(self) -> None:
            calls.append("resumes")

        def connection_lost(self, error: Exception | None) -> None:
            calls.append(f"lost {error}")

    bed.daemon.kill()
    bed.start_server(Flood)
    got = [0]

    def talk() -> None:
        sock = connected()
        bed.kernel.block(1.0)
        assert calls == ["pauses", "closes"]
        while data := sock.recv(10_000):
            got[0] += len(data)

    bed.call(talk)
    assert got == [size]
    assert calls == ["pauses", "closes", "resumes", "lost None"]


def test_a_buffered_protocol_gets_no_more_than_its_buffer_and_nothing_while_it_has_paused(bed: Bed) -> None:
    parts: list[bytes] = []

    class Buffered(asyncio.BufferedProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            self.buffer = bytearray(4)

        def get_buffer(self, _sizehint: int) -> memoryview:
            return memoryview(self.buffer)

        def buffer_updated(self, nbytes: int) -> None:
            parts.append(bytes(self.buffer[:nbytes]))
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(1.0, self.transport.resume_reading)

    bed.daemon.kill()
    bed.start_server(Buffered)

    def talk() -> None:
        sock = connected()
        sock.send(b"0123456789")
        bed.kernel.block(1.5)
        assert parts == [b"0123", b"4567"]

    bed.network.pieces = 0.0
    bed.call(talk)
    assert parts == [b"0123", b"4567", b"89"]


def test_an_asyncio_client_talks_and_learns_of_the_end(bed: Bed) -> None:
    calls: list[object] = []

    class Client(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost = asyncio.Event()

        def data_received(self, data: bytes) -> None:
            calls.append(data)
            bed.daemon.kill()

        def eof_received(self) -> None:
            calls.append("eof")

        def connection_lost(self, error: Exception | None) -> None:
            calls.append(error)
            self.lost.set()

    async def main() -> None:
        running = asyncio.get_running_loop()
        assert isinstance(running, loop.Loop)
        sock = Socket()
        sock.setblocking(False)
        await running.sock_connect(sock, SERVER)
        transport, protocol = await running.create_connection(Client, sock=sock)
        assert isinstance(protocol, Client)
        transport.write(b"x")
        await protocol.lost.wait()
        with pytest.raises(RuntimeError, match="closed"):
            transport.write(b"y")
        with pytest.raises(ConnectionRefusedError):
            await running.sock_connect(Socket(), SERVER)

    bed.call_async(main)
    assert calls == [b"x", "eof", None]


def test_a_cancelled_attempt_to_connect_leaves_no_connection(bed: Bed) -> None:
    async def main() -> None:
        running = asyncio.get_running_loop()
        assert isinstance(running, loop.Loop)
        sock = Socket()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await running.sock_connect(sock, SERVER)
        sock.close()

    bed.network.block(bed.client, bed.server, 3.0)
    bed.call_async(main)
    assert bed.network.connections() == []


def test_a_socket_that_is_closed_while_it_connects_leaves_no_connection(bed: Bed) -> None:
    def talk() -> None:
        sock = Socket()
        sock.begin_to_connect(SERVER, lambda _error: bed.kernel.fail("it was told"))
        while not bed.network.connections():
            bed.kernel.block(1e-6)
        sock.close()

    bed.call(talk)
    assert bed.network.connections() == []


def test_a_full_backlog_makes_clients_try_again(bed: Bed) -> None:
    done: list[float] = []
    address = SERVER[0], 1

    def serve() -> None:
        sock = Socket()
        sock.bind(address)
        sock.listen(1)
        bed.kernel.block(2.0)
        sock.backlog.popleft()  # accepts

    def connect() -> None:
        Socket().connect(address)
        done.append(bed.kernel.now - START)

    Process(bed.kernel, "other daemon", bed.server).spawn(serve)
    client = Process(bed.kernel, "client", bed.client)
    for _ in range(2):
        client.spawn(connect)
    bed.run()
    assert done == pytest.approx([0.0, 3.0], abs=0.01)


def test_at_the_end_of_a_run_nothing_is_left_of_a_coroutine(bed: Bed) -> None:
    steps: list[str] = []

    async def main() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            steps.append("finally")
            await asyncio.sleep(100)
            steps.append("never")

    coroutine = main()

    async def run_both() -> None:
        task = asyncio.create_task(coroutine)
        await asyncio.wait([task])

    loop.run(Process(bed.kernel, "client", bed.client), run_both)
    bed.run(1.0)
    bed.kernel.end()
    assert steps == ["finally"]
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_an_error_in_a_callback_of_a_loop_is_a_failure(bed: Bed) -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        bed.call_async(main)


def test_signals_reach_the_handlers_of_a_loop(bed: Bed) -> None:
    seen: list[object] = []

    async def main() -> None:
        running = asyncio.get_running_loop()
        running.add_signal_handler(10, seen.append, "handled")
        await asyncio.sleep(1)
        running.remove_signal_handler(10)
        await asyncio.sleep(10)

    process = Process(bed.kernel, "process", bed.client)
    process.on_exit = seen.append
    loop.run(process, main)
    bed.kernel.after(0.5, process.signal, 10)
    bed.kernel.after(2.0, process.signal, 10)
    bed.run()
    assert seen == ["handled", -10]


def test_numeric_hosts_stand_for_themselves_and_names_for_nothing() -> None:
    assert getaddrinfo(b"10.0.0.9", 1)[0][4] == ("10.0.0.9", 1)
    assert getaddrinfo("::1", 1)[0][0] == socket.AF_INET6
    with pytest.raises(socket.gaierror):
        getaddrinfo("example.org", 1)
