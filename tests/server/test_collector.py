"""Nothing waits for the garbage collector: what is dropped is freed at once."""

import asyncio
import errno
import gc
import socket
import ssl
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from statestore.address import TcpAddress
from statestore.errors import Unavailable
from statestored import collector, files
from statestored import listener as listener_module
from statestored.commands import Service
from statestored.datadir import DataDirectory
from statestored.engines.base import Held
from statestored.engines.commits import Fsync
from statestored.engines.embedded import EmbeddedEngine
from statestored.engines.recovery import recover
from statestored.engines.states import CLEAR, PUT, States
from statestored.engines.table import BUCKET_SIZE
from statestored.errors import NoRoom
from statestored.listener import Listener
from statestored.reload import Reload
from statestored.tls import ServerTls, TlsFiles
from tests.certificates import Authority
from tests.server.fakes import NEVER, make_service, settled
from tests.server.models import TODAY
from tests.server.rpc import RawClient, request
from tests.server.waiting import eventually

TIMES = 5
ANY_PORT = TcpAddress("127.0.0.1", 0)
Client = Callable[[], RawClient]


@contextmanager
def nothing_is_left() -> Iterator[None]:
    """What was made and dropped meanwhile has been freed without the collector."""
    gc.unfreeze()  # what a start, or a bucket that was split, has frozen; nothing of it would be found
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # files that other tests have left open
        gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    before = set(map(id, gc.get_objects()))  # a thread of an earlier test may end, and drop some of these, meanwhile
    try:
        yield
        gc.unfreeze()
        gc.collect()
        assert Counter(type(each).__qualname__ for each in gc.garbage if id(each) not in before) == {}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


# The states


def put(sender: int, state: str, module: bytes = b"lists") -> tuple[int, bytes, bytes, bytes, bytes]:
    return PUT, b"default", module, b"s%d" % sender, state.encode()


def settle(states: States) -> None:
    states.cut()
    states.settle()


def fill(states: States, of: str = "OWN", count: int = 3 * BUCKET_SIZE) -> None:
    """With a state for each sender; buckets split, and there are more states than are counted apart."""
    states.apply([put(number, f"{of}-{number}") for number in range(count)], TODAY)
    settle(states)


def changed(states: States) -> None:
    fill(states)
    fill(states, "OTHER")
    states.apply([put(number, f"NEXT-{number}") for number in range(1000)], TODAY + 1)
    settle(states)


def removed(states: States) -> None:
    fill(states)
    states.apply([put(number, "START") for number in range(3 * BUCKET_SIZE)], TODAY)
    settle(states)
    assert len(states) == 0


def of_several_modules(states: States) -> None:
    for module in (b"a", b"b", b"c"):
        states.apply([put(number, f"{module!r}-{number}", module) for number in range(500)], TODAY)
    settle(states)
    states.apply([put(number, "START", b"b") for number in range(500)], TODAY)
    settle(states)


def cleared(states: States) -> None:
    fill(states)
    states.apply([(CLEAR, b"default")], TODAY)
    settle(states)
    states.garbage.clear()


def taken_back(states: States) -> None:
    fill(states)
    states.apply([put(number, "TAKEN BACK") for number in range(1000)], TODAY)
    states.cut()
    states.apply([(CLEAR, b"default"), put(1, "AFTER"), (CLEAR, b"default"), put(2, "LAST")], TODAY)
    states.revert()
    assert len(states) == 3 * BUCKET_SIZE


@pytest.mark.parametrize("count_apart", [True, False])
@pytest.mark.parametrize("change", [changed, removed, of_several_modules, cleared, taken_back])
def test_states_that_are_dropped(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[States], None], count_apart: bool
) -> None:
    monkeypatch.setattr("statestored.engines.table.MAX_COUNTED_STATES", 10**6 if count_apart else 10)
    with nothing_is_left():
        states = States()
        change(states)
        del states


# A whole engine


@asynccontextmanager
async def opened(path: Path, fsync: Fsync = Fsync.NEVER) -> AsyncIterator[EmbeddedEngine]:
    directory = DataDirectory(path)
    directory.open()
    engine = EmbeddedEngine(directory, fsync, NEVER, 1000)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()
        directory.close()


async def test_a_start_that_replays_a_journal_and_loads_a_snapshot(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        for count in range(6):
            triples = [(b"lists", b"s%d" % number, b"%d-%d" % (count, number)) for number in range(3000)]
            await settled(engine.space(b"default").set_many(triples))
            await settled(engine.space(b"other").set_many(triples[:100]))
            if count == 2:
                await engine.saver.snapshot()
        await settled(engine.space(b"other").clear())
    directory = DataDirectory(tmp_path)
    directory.open()
    with nothing_is_left():
        states = States()
        await recover(directory, states)
        assert len(states) == 3000
        gc.disable()  # recovery has switched it on
        del states
    directory.close()


async def test_snapshots_and_segments_and_sessions_that_end(tmp_path: Path) -> None:
    async with opened(tmp_path, Fsync.ALWAYS) as engine:

        async def once(number: int) -> None:
            session = await settled(engine.open_session(0))
            space = engine.space(b"default")
            for seq in range(1, 50):
                space.set(b"lists", b"s%d" % seq, b"%d-%d" % (seq, number))
            await engine.saver.snapshot()
            await engine.commits.rotate()
            engine.leave_session(session)
            engine._end_one()
            await engine.commits.durable()

        await once(0)
        with nothing_is_left():
            for number in range(1, TIMES):
                await once(number)


async def test_writes_for_which_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_full = False
    write_at = files.write_at

    def write(file: BinaryIO, data: bytes, offset: int) -> None:
        if is_full:
            raise NoRoom(errno.ENOSPC, "No space left on device")  # a new one each time, as the system's are
        write_at(file, data, offset)

    monkeypatch.setattr(files, "write_at", write)
    async with opened(tmp_path, Fsync.ALWAYS) as engine:

        async def once(number: int) -> None:
            nonlocal is_full
            is_full = True
            answer = engine.space(b"default").set(b"lists", b"s", b"%d" % number)
            assert isinstance(answer, Held)
            with suppress(Unavailable):
                await engine.commits.durable()
                pytest.fail("there was room")
            is_full = False
            await engine.commits._find_room(engine.commits._journal.probe)
            await settled(engine.space(b"default").set(b"lists", b"s", b"after %d" % number))
            is_full = True
            with suppress(NoRoom):
                await engine.saver.snapshot()
                pytest.fail("there was room")
            is_full = False

        await once(0)
        with nothing_is_left():
            for number in range(1, TIMES):
                await once(number)


# Connections


def asks(client: RawClient) -> None:
    client.ask("hello", {"session": 0})
    for seq in range(1, 20):
        client.ask("set", "lists", f"s{seq}", f"STATE-{seq}", {"seq": seq, "oldest": seq})
    assert client.call("set", "lists", "s1", "LATE", {"seq": 1, "oldest": 1})[0] is not None
    client.ask("set_all", "s1", "ALL")
    client.ask("compare_and_set", "lists", "s1", "ALL", "SWAPPED")
    client.ask("set_many", [["lists", f"s{number}", "MANY"] for number in range(500)])
    client.ask("get_many", [["lists", "s1"]])
    client.ask("scan", None, None, None, None)
    client.ask("count", None, None)
    client.ask("info")
    client.ask("clear")


def is_refused(client: RawClient) -> None:
    for method, *params in (
        ("no_such_method",),
        ("get", "lists"),
        ("set", "m" * 5000, "s", "A"),
        ("set", 1, 2, 3),
        ("get", "lists", "s", {"unknown": 1}),
        ("set_many", [[1]]),
        ("scan", "no cursor", None, None, None),
        ("hello", {}),
    ):
        assert client.call(method, *params)[0] is not None, method


def sends(data: bytes) -> Callable[[RawClient], None]:
    def send(client: RawClient) -> None:
        client.send(data)
        while client.next() is not None:
            pass

    return send


def goes_in_between(client: RawClient) -> None:
    client.ask("ping")
    client.send(*(request(number, "scan", None, None, None, None) for number in range(50)), b"\x94\x00")


WAYS = {
    "asks": asks,
    "is refused": is_refused,
    "goes in between": goes_in_between,
    "speaks HTTP": sends(b"GET / HTTP/1.1\r\n\r\n"),
    "sends no MessagePack": sends(b"\xc1"),
    "sends no request": sends(b"\x91\x05"),
    "sends a map for a key": sends(b"\x94\x00\x01\xa3get\x91\x81\x80\x01"),
    "sends a hello that is refused": sends(request(1, "hello", {"namespace": "x" * 1000})),
}


@pytest.fixture
def tls(tmp_path: Path) -> ServerTls:
    identity = Authority(tmp_path).issue("server", "127.0.0.1")
    return ServerTls(TlsFiles(identity.certificate, identity.key))


@asynccontextmanager
async def served(service: Service) -> AsyncIterator[TcpAddress]:
    listener = Listener(service)
    await listener.bind([ANY_PORT])
    (address,) = await listener.listen()
    assert isinstance(address, TcpAddress)
    try:
        yield address
    finally:
        await listener.close()


async def repeat(service: Service, work: Callable[[], None]) -> None:
    """In a thread, as often as it takes to see whether something is left each time."""

    async def once() -> None:
        await asyncio.to_thread(work)
        await eventually(lambda: service.connections == 0)

    await once()
    with nothing_is_left():
        for _ in range(TIMES):
            await once()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("with_tls", [False, True])
async def test_a_connection(tmp_path: Path, tls: ServerTls, way: Callable[[RawClient], None], with_tls: bool) -> None:
    trusting = ssl.create_default_context(cafile=str(tmp_path / "authority.pem")) if with_tls else None
    async with opened(tmp_path / "data") as engine:
        service = make_service(engine, allow_clear=True, tls=tls if with_tls else None)
        async with served(service) as address:

            def work() -> None:
                with RawClient(str(address), trusting) as client:
                    way(client)

            await repeat(service, work)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_handshake_that_fails(tls: ServerTls, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(listener_module, "EVERY", 0.01)
    service = make_service(tls=tls)
    async with served(service) as address:

        def work() -> None:
            with socket.create_connection((address.host, address.port)) as client, suppress(ConnectionResetError):
                client.sendall(sent)
                client.recv(1000)

        async def once() -> None:
            await asyncio.to_thread(work)
            await eventually(lambda: tls.under_way == 0)

        await once()
        with nothing_is_left():
            for _ in range(TIMES):
                await once()


async def test_certificates_that_are_read_again(tls: ServerTls, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = []
    monkeypatch.setattr("statestored.audit.read_again", lambda what, **_: readings.append(what))
    service = make_service(tls=tls)
    reload = Reload(service.access, tls, Listener(service).renew)

    async def once() -> None:
        readings.clear()
        reload.request()
        await eventually(lambda: "certificates" in readings)
        await asyncio.sleep(0)

    await once()
    with nothing_is_left():
        for _ in range(TIMES):
            await once()


# The collector itself

SCRIPT = """
import gc
from statestored import collector
from statestored.engines.table import Table

collector.tune()
looked_at = []
gc.callbacks.append(lambda phase, info: looked_at.append(info["generation"]))
table = Table()
for start in range(0, 600_000, 1000):
    numbers = range(start, start + 1000)
    table.put([(1, b"default", b"lists", b"s%d" % number, b"OWN-%d" % number) for number in numbers], 1)
    table.cut()
    table.settle()
print(len(looked_at) > 10, set(looked_at))
"""


def test_it_looks_at_what_is_new_only() -> None:
    """D7: what a growing store has is looked at once, if ever."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "True {0}\n"


class Knot:
    """A cycle."""

    alive = 0

    def __init__(self) -> None:
        self.self = self
        Knot.alive += 1

    def __del__(self) -> None:
        Knot.alive -= 1


@pytest.mark.parametrize("keep_away", [collector.freeze, collector.empty_free_lists])
def test_what_is_dead_is_freed_before_it_cannot_be_found_any_more(keep_away: Callable[[], None]) -> None:
    gc.collect()
    Knot()
    assert Knot.alive == 1
    keep_away()
    assert Knot.alive == 0
