"""Where the daemon listens, and how all connections end."""

import asyncio
import gc
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest

from statestore.address import Address, TcpAddress, UnixAddress
from statestored import connection as connection_module
from statestored import listener as listener_module
from statestored import sockets, timeouts
from statestored import tls as tls_module
from statestored.budget import Budget
from statestored.commands import Service
from statestored.connection import Connection
from statestored.errors import StartError
from statestored.listener import Listener
from statestored.tls import ServerTls, TlsFiles
from tests.certificates import Authority
from tests.server.fakes import HoldingEngine, Wire, make_service
from tests.server.rpc import code_of, messages, request
from tests.server.waiting import PATIENCE, eventually
from tests.tokenfile import TokenFile

PONG = msgpack.packb([1, 1, None, None])
SCANS = 200  # of 256 KB each: far more than the system buffers for one connection
ANY_PORT = TcpAddress("127.0.0.1", 0)


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket's path may have 108 bytes; pytest's directories are longer."""
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        yield Path(directory) / "s"


@asynccontextmanager
async def listening(*addresses: Address, service: Service | None = None) -> AsyncIterator[list[Address]]:
    listener = Listener(service or make_service())
    try:
        yield await listen(listener, *addresses)
    finally:
        await listener.close()


async def listen(listener: Listener, *addresses: Address) -> list[Address]:
    await listener.bind(addresses)
    return await listener.listen()


def has_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


async def connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, UnixAddress):
        return await asyncio.open_unix_connection(address.path)
    return await asyncio.open_connection(address.host, address.port)


async def pings(address: Address) -> bool:
    """Whether somebody of ours answers there."""
    reader, writer = await connect(address)
    writer.write(request(1, "ping"))
    answer = await reader.readexactly(len(PONG))
    writer.close()
    return answer == PONG


async def test_port_0_is_any_free_one() -> None:
    async with listening(ANY_PORT, ANY_PORT) as addresses:
        assert all(isinstance(address, TcpAddress) and address.port > 0 for address in addresses)
        assert len(set(addresses)) == 2
        for address in addresses:
            assert await pings(address)


async def test_several_addresses_share_one_store(path: Path) -> None:
    async with listening(ANY_PORT, UnixAddress(str(path))) as (tcp, unix):
        reader, writer = await connect(tcp)
        writer.write(request(1, "set", "lists", "ann", "A"))
        await reader.readexactly(len(PONG))
        reader, other = await connect(unix)
        other.write(request(1, "get", "lists", "ann"))
        assert messages(await reader.readuntil(b"A")) == [[1, 1, None, "A"]]
        writer.close()
        other.close()


async def test_a_name_stands_for_all_its_addresses() -> None:
    async with listening(TcpAddress("localhost", 0)) as addresses:
        assert addresses
        for address in addresses:
            assert address.is_local
            assert await pings(address)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_an_ipv6_address_is_shown_as_it_is_written() -> None:
    async with listening(TcpAddress("::1", 0)) as (address,):
        assert str(address).startswith("[::1]:")
        assert await pings(address)


async def test_a_port_in_use_is_refused_with_its_name() -> None:
    async with listening(ANY_PORT) as (address,):
        with pytest.raises(StartError) as refusal:
            async with listening(address):
                pass
    assert str(refusal.value) == f"cannot listen on {address} (--listen): address already in use"


async def test_a_name_that_stands_for_nothing_is_refused() -> None:
    with pytest.raises(StartError, match=r"nowhere\.invalid"):
        async with listening(TcpAddress("nowhere.invalid", 0)):
            pass


async def test_a_unix_socket_goes_with_its_listener(path: Path) -> None:
    for _ in range(2):
        async with listening(UnixAddress(str(path))) as (address,):
            assert await pings(address)
        assert not path.exists()


async def test_a_socket_of_another_process_in_the_place_of_its_own_stays(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        async with listening(UnixAddress(str(path))):
            path.unlink()
            other.bind(str(path))
        assert path.exists()


async def test_a_unix_socket_that_answers_is_left_alone(path: Path) -> None:
    async with listening(UnixAddress(str(path))) as (address,):
        with pytest.raises(StartError, match="another process listens on it"):
            async with listening(address):
                pass
        assert await pings(address)


async def test_closing_tells_clients_that_nothing_more_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "DRAIN", 10)
    service = make_service()
    listener = Listener(service)
    (address,) = await listen(listener, ANY_PORT)
    reader, writer = await connect(address)
    writer.write(request(1, "ping"))
    await reader.readexactly(len(PONG))
    closing = asyncio.create_task(listener.close())
    await asyncio.sleep(0)
    writer.write(request(2, "set", "lists", "ann", "A"))
    ((_, msgid, error, _),) = messages(await reader.readuntil(b"end\xc0"))
    assert (msgid, code_of(error)) == (2, "shutting_down")
    writer.close()
    await closing  # at once, since the last client has gone
    assert service.engine.space(b"default").get(b"lists", b"ann") == b"START"


@asynccontextmanager
async def stuck_client(address: Address, service: Service) -> AsyncIterator[socket.socket]:
    """A client that has asked for more than all buffers on the way hold, and has read nothing yet."""
    assert isinstance(address, TcpAddress)
    with socket.create_connection((address.host, address.port)) as client:
        client.setblocking(False)
        client.send(request(1, "scan", None, None, None, None) * SCANS)
        await no_more_scans(service)
        assert service.calls[b"scan"] < SCANS
        yield client


async def no_more_scans(service: Service) -> None:
    """For a while: whoever asked for them does not take the answers."""
    answered = [-1] * 20

    def is_stuck() -> bool:
        answered.append(service.calls[b"scan"])
        return 0 < answered[-20] == answered[-1]

    await eventually(is_stuck)


async def read_all(client: socket.socket) -> bytes:
    data = b""
    while received := await asyncio.get_running_loop().sock_recv(client, 2**20):
        data += received
    return data


def service_with_long_pages() -> Service:
    service = make_service()
    service.engine.space(b"default").set_many([(b"m", b"s%d" % number, b"A" * 1000) for number in range(400)])
    return service


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when a session was told to close. The listener soon does so, and is patient then."""
    closed, close = asyncio.Event(), Connection.close
    monkeypatch.setattr(Connection, "close", lambda session: (close(session), closed.set()))
    monkeypatch.setattr(listener_module, "DRAIN", 0.01)
    monkeypatch.setattr(listener_module, "PATIENCE", 10)
    return closed


async def test_closing_gives_clients_time_to_read_what_was_answered(closed: asyncio.Event) -> None:
    service = service_with_long_pages()
    listener = Listener(service)
    (address,) = await listen(listener, ANY_PORT)
    async with stuck_client(address, service) as client:
        closing = asyncio.create_task(listener.close())
        await closed.wait()
        data = await read_all(client)
        await closing
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(data)
    whole = list(unpacker)
    assert unpacker.tell() == len(data)
    assert sum(error is None for _, _, error, _ in whole) == service.calls[b"scan"]


async def test_closing_waits_for_answers_that_are_held_until_the_disk_has_their_writes(closed: asyncio.Event) -> None:
    """O1: what is written is acknowledged."""
    engine = HoldingEngine()
    listener = Listener(make_service(engine))
    (address,) = await listen(listener, ANY_PORT)
    reader, writer = await connect(address)
    writer.write(request(1, "set", "lists", "ann", "A"))
    await eventually(lambda: engine.asked)
    closing = asyncio.create_task(listener.close())
    await closed.wait()
    engine.commit.settle()
    assert messages(await reader.read()) == [[1, 1, None, None]]
    writer.close()
    await closing


async def test_closing_does_not_wait_for_a_client_that_never_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "DRAIN", 0.01)
    monkeypatch.setattr(listener_module, "PATIENCE", 0.01)
    service = service_with_long_pages()
    listener = Listener(service)
    (address,) = await listen(listener, ANY_PORT)
    async with stuck_client(address, service):
        await listener.close()
        await eventually(lambda: service.connections == 0)


@pytest.mark.parametrize("what", ["drain", "close", "abort"])
async def test_closing_takes_connections_in_the_order_in_which_they_came(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(listener_module, "DRAIN", 0)
    monkeypatch.setattr(listener_module, "PATIENCE", 0)
    service, order = make_service(), list[Connection]()
    listener = Listener(service)
    wires = [Wire(service, connections=listener._connections) for _ in range(50)]
    wires.pop(7).hang_up()
    wires.append(Wire(service, connections=listener._connections))
    monkeypatch.setattr(Connection, what, lambda connection: order.append(connection))
    await listener.close()
    assert order == [wire.connection for wire in wires]


async def test_closing_takes_no_new_connections() -> None:
    async with listening(ANY_PORT) as (address,):
        assert await pings(address)
    with pytest.raises(ConnectionRefusedError):
        await connect(address)


# With TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls(authority: Authority) -> ServerTls:
    identity = authority.issue("server")
    return ServerTls(TlsFiles(identity.certificate, identity.key))


async def connect_by_tls(
    address: Address, authority: Authority, **more: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    assert isinstance(address, TcpAddress)
    context = ssl.create_default_context(cafile=authority.certificate)
    return await asyncio.open_connection(
        address.host, address.port, ssl=context, server_hostname="localhost", ssl_shutdown_timeout=1, **more
    )


async def test_with_a_certificate_tcp_addresses_speak_tls_and_unix_sockets_do_not(
    authority: Authority, tls: ServerTls, path: Path
) -> None:
    async with listening(ANY_PORT, UnixAddress(str(path)), service=make_service(tls=tls)) as (tcp, unix):
        assert await pings(unix)
        reader, writer = await connect_by_tls(tcp, authority)
        writer.write(request(1, "ping"))
        assert await reader.readexactly(len(PONG)) == PONG
        writer.close()


async def test_a_client_without_tls_is_not_answered_there(tls: ServerTls) -> None:
    service = make_service(tls=tls)
    async with listening(ANY_PORT, service=service) as (address,):
        reader, writer = await connect(address)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        assert (tls.failures, service.connections_total) == (1, 0)


async def test_a_handshake_that_is_not_completed_ends(tls: ServerTls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "EVERY", 0.01)
    async with listening(ANY_PORT, service=make_service(tls=tls)) as (address,):
        reader, writer = await connect(address)
        writer.write(b"\x16\x03\x01\x02\x00\x01")  # the beginning of one
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        await eventually(lambda: tls.failures == 1)


async def test_handshakes_that_are_given_up_leave_nothing_behind(tls: ServerTls) -> None:
    """The collector may come much later."""
    async with listening(ANY_PORT, service=make_service(tls=tls)) as (address,):
        gc.disable()
        try:
            writers = [(await connect(address))[1] for _ in range(20)]
            await eventually(lambda: tls.under_way == 20)
            for writer in writers:
                writer.close()
            await eventually(lambda: tls.under_way == 0)
            assert tls.failures == 20
        finally:
            gc.enable()


async def test_who_completes_no_handshake_keeps_nobody_out(
    authority: Authority, tls: ServerTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_module, "MAX_HANDSHAKES", 2)
    async with listening(ANY_PORT, service=make_service(tls=tls)) as (address,):
        silent = [await connect(address) for _ in range(2)]
        await eventually(lambda: tls.under_way == 2)
        reader, writer = await connect_by_tls(address, authority)
        writer.write(request(1, "ping"))
        assert await reader.readexactly(len(PONG)) == PONG
        assert await silent[0][0].read() == b"", "the oldest goes"
        assert (tls.under_way, tls.failures) == (1, 1)
        for each in (writer, *(writer for _, writer in silent)):
            each.close()


async def test_requests_larger_than_what_is_read_at_once_come_through_tls(authority: Authority, tls: ServerTls) -> None:
    """The connection makes pauses in between, for the others."""
    async with listening(ANY_PORT, service=make_service(tls=tls)) as (address,):
        reader, writer = await connect_by_tls(address, authority)
        triples = [["m", f"s{number}", "A" * 900] for number in range(1000)]
        writer.write(request(1, "set_many", triples) + request(2, "get_many", [pair[:2] for pair in triples]))
        unpacker = msgpack.Unpacker()
        answers: list[Any] = []
        while len(answers) < 2:
            unpacker.feed(await reader.read(65536))
            answers += unpacker
        assert answers == [[1, 1, None, None], [1, 2, None, ["A" * 900] * 1000]]
        writer.close()


async def test_a_client_that_does_not_read_is_not_answered_on_over_tls(authority: Authority, tls: ServerTls) -> None:
    """And all that it asked for comes when it does."""
    service = service_with_long_pages()
    service.tls = tls
    async with listening(ANY_PORT, service=service) as (address,):
        reader, writer = await connect_by_tls(address, authority, limit=1024)
        writer.write(request(1, "scan", None, None, None, None) * SCANS)
        await no_more_scans(service)
        assert service.calls[b"scan"] < SCANS / 2
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        came = 0
        while came < SCANS:
            unpacker.feed(await reader.read(65536))
            came += sum(1 for _ in unpacker)
        writer.close()


async def test_who_ends_a_tls_connection_ends_both_sides(
    authority: Authority, tls: ServerTls, caplog: pytest.LogCaptureFixture
) -> None:
    """What still waits for the disk is executed, and not answered any more. Nothing is logged about it."""
    engine = HoldingEngine()
    service = make_service(engine, tls=tls)
    async with listening(ANY_PORT, service=service) as (address,):
        _, writer = await connect_by_tls(address, authority)
        writer.write(request(1, "set", "lists", "ann", "A"))
        await eventually(lambda: engine.asked)
        writer.close()
        await eventually(lambda: service.connections == 0)
        engine.commit.settle()
    assert caplog.messages == []


@pytest.mark.parametrize("with_tls", [False, True])
@pytest.mark.parametrize("ends", ["client", "server"])
async def test_a_connection_that_has_ended_leaves_nothing_behind(
    authority: Authority, tls: ServerTls, with_tls: bool, ends: str
) -> None:
    """The collector may come much later, and with TLS there is a lot behind each."""

    def connections() -> int:
        return sum(isinstance(each, Connection) for each in gc.get_objects())

    gc.collect()
    before = connections()
    service = make_service(tls=tls if with_tls else None)
    async with listening(ANY_PORT, service=service) as (address,):
        gc.disable()
        try:
            for _ in range(10):
                reader, writer = await (connect_by_tls(address, authority) if with_tls else connect(address))
                writer.write(request(1, "ping"))
                await reader.readexactly(len(PONG))
                if ends == "server":
                    writer.write(b"\xc1")
                    assert await reader.read() == b""
                writer.close()
            await eventually(lambda: service.connections == 0)
            await eventually(lambda: connections() == before)
        finally:
            gc.enable()


@pytest.mark.parametrize("with_tls", [False, True])
async def test_closing_ends_connections_that_are_idle(
    authority: Authority, tls: ServerTls, monkeypatch: pytest.MonkeyPatch, with_tls: bool
) -> None:
    monkeypatch.setattr(listener_module, "DRAIN", 0.01)
    async with listening(ANY_PORT, service=make_service(tls=tls if with_tls else None)) as (address,):
        reader, writer = await (connect_by_tls(address, authority) if with_tls else connect(address))
        writer.write(request(1, "ping"))
        await reader.readexactly(len(PONG))
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("when", ["while it stops", "afterwards"])
async def test_a_handshake_that_is_completed_too_late_lets_nobody_in(
    authority: Authority, tls: ServerTls, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """O1: what it would ask for could be committed while the engine closes."""
    monkeypatch.setattr(listener_module, "DRAIN", 10 if when == "while it stops" else 0.01)
    service = make_service(tls=tls)
    listener = Listener(service)
    (address,) = await listen(listener, ANY_PORT)
    assert isinstance(address, TcpAddress)
    idle_reader, idle = await connect_by_tls(address, authority)  # it keeps `close` waiting
    idle.write(request(1, "ping"))
    await idle_reader.readexactly(len(PONG))
    raw = socket.create_connection((address.host, address.port))
    raw.setblocking(False)
    await eventually(lambda: tls.under_way == 1)
    closing = asyncio.create_task(listener.close())
    await asyncio.sleep(0)
    if when == "afterwards":
        await closing
    context = ssl.create_default_context(cafile=authority.certificate)
    with suppress(ConnectionError):
        reader, late = await asyncio.open_connection(sock=raw, ssl=context, server_hostname="localhost")
        late.write(request(1, "set", "lists", "ann", "A"))
        assert await reader.read() == b""
        late.close()
    assert (service.connections_total, service.calls[b"set"]) == (1, 0)
    idle.close()
    await closing


async def test_new_tokens_reach_every_connection(tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path / "tokens.toml")
    given = [tokens.add(name) for name in ("one", "two", "three")]
    service = make_service(tokens=tokens.path)
    listener = Listener(service)
    try:
        (address,) = await listen(listener, ANY_PORT)
        connections = [await connect(address) for _ in given]
        for (reader, writer), token in zip(connections, given, strict=True):
            writer.write(request(1, "hello", {"token": token}) + request(1, "ping"))
            await reader.readuntil(PONG)
        tokens.remove("two")
        service.access.read()
        listener.renew()
        assert await asyncio.wait_for(connections[1][0].read(), PATIENCE) == b""
        assert service.dropped["revoked"] == sum(service.dropped.values()) == 1
        for reader, writer in (connections[0], connections[2]):
            writer.write(request(1, "ping"))
            assert await reader.readexactly(len(PONG)) == PONG
        for _, writer in connections:
            writer.close()
    finally:
        await listener.close()


@pytest.mark.parametrize("limit", [1, 3])
async def test_one_connection_too_many_is_closed_and_the_others_notice_nothing(limit: int) -> None:
    """L4."""
    service = make_service(max_connections=limit)
    async with listening(ANY_PORT, service=service) as (address,):
        clients = [await connect(address) for _ in range(limit)]
        await eventually(lambda: service.connections == limit)
        for number in range(1, 4):
            reader, writer = await connect(address)
            assert await reader.read() == b""
            writer.close()
            assert service.dropped["too_many"] == number
        for reader, writer in clients:
            writer.write(request(1, "ping"))
            assert await reader.readexactly(len(PONG)) == PONG
        clients.pop()[1].close()
        await eventually(lambda: service.connections == limit - 1)
        assert await pings(address)
        for _, writer in clients:
            writer.close()
    assert service.connections == 0


async def hello_is_answered(address: Address, token: str = "sesame") -> asyncio.StreamWriter:
    reader, writer = await connect(address)
    writer.write(request(1, "hello", {"token": token}) + request(1, "ping"))
    assert (await reader.readuntil(PONG)).endswith(PONG)
    return writer


async def test_who_has_no_token_keeps_nobody_out() -> None:
    """L4: where the connections are used up, whoever said nothing for longest goes for one that comes."""
    service = make_service(token="sesame", max_connections=3)
    async with listening(ANY_PORT, service=service) as (address,):
        known = [await hello_is_answered(address)]
        silent = [await connect(address) for _ in range(2)]
        await eventually(lambda: service.connections == 3)
        known.append(await hello_is_answered(address))
        assert await silent[0][0].read() == b""
        assert service.dropped["no_hello"] == 1
        known.append(await hello_is_answered(address))
        assert await silent[1][0].read() == b""
        reader, writer = await connect(address)
        assert await reader.read() == b"", "those who are known stay"
        assert (service.dropped["no_hello"], service.dropped["too_many"]) == (2, 1)
        for each in (writer, *known, *(writer for _, writer in silent)):
            each.close()


async def test_there_are_not_many_who_have_no_token_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_STRANGERS", 2)
    service = make_service(token="sesame")
    async with listening(ANY_PORT, service=service) as (address,):
        known = [await hello_is_answered(address) for _ in range(5)]
        silent = [await connect(address) for _ in range(5)]
        for reader, _ in silent[:3]:
            assert await reader.read() == b""
        await eventually(lambda: service.connections == 5 + 2)
        known.append(await hello_is_answered(address))
        assert (service.dropped["no_hello"], service.dropped["too_many"]) == (4, 0)
        for each in (*known, *(writer for _, writer in silent)):
            each.close()


async def test_dead_peers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """L3: within a minute, by what a connection inherits from the socket that listens."""
    options: list[int] = []

    def look(connection: Connection, transport: asyncio.Transport) -> None:
        sock = transport.get_extra_info("socket")
        options.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"):
            options.append(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)))
        connection_made(connection, transport)

    connection_made = Connection.connection_made
    monkeypatch.setattr(Connection, "connection_made", look)
    async with listening(ANY_PORT) as (address,):
        assert await pings(address)
    alive, idle, interval, count, unacknowledged = options
    assert alive
    assert idle + interval * count <= 60
    assert unacknowledged <= 60_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says how a connection ended")
@pytest.mark.parametrize("asked", [1, SCANS], ids=["a little", "much"])
async def test_a_client_that_does_not_read_is_told_from_one_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    """Also if the system has all that it was answered, and ends the connection by its own limit."""
    monkeypatch.setitem(sockets.KEEP_ALIVE, "TCP_USER_TIMEOUT", 1000)
    service = service_with_long_pages()
    async with listening(ANY_PORT, service=service) as (address,):
        assert isinstance(address, TcpAddress)
        with socket.socket() as client:
            client.connect((address.host, address.port))
            client.setblocking(False)
            client.send(request(1, "scan", None, None, None, None) * asked)
            await eventually(lambda: sum(service.dropped.values()))
        assert {why: number for why, number in service.dropped.items() if number} == {"not_reading": 1}


async def test_a_client_takes_some_answers_in_a_time_that_is_shorter_than_the_systems() -> None:
    """So the daemon's own limit comes first, which knows what it was."""
    assert sockets.KEEP_ALIVE["TCP_USER_TIMEOUT"] / 1000 > timeouts.READING + 2


async def test_connections_are_looked_at_while_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """L3, and with a budget that is used up, L1."""
    monkeypatch.setattr(listener_module, "EVERY", 0.01)
    service = make_service(token="sesame", budget=Budget(100))
    async with listening(ANY_PORT, service=service) as (address,):
        reader, writer = await connect(address)
        assert await reader.read() == b""
        assert service.dropped["no_hello"] == 1
        writer.close()
        reader, writer = await connect(address)
        writer.write(request(1, "hello", {"token": "sesame"}) + request(2, "set", "lists", "x" * 900, "A")[:-1])
        await eventually(lambda: service.dropped["no_buffers"] == 1)
        writer.close()
