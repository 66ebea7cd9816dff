"""One connection for many coroutines: who gets which answer, what cancelling leaves, and how it ends."""

import asyncio
import os
import random
import ssl
import stat
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import patch

import msgpack
import pytest

from statestore import BadRequest, TooLong, Unauthorized, aio_connection
from statestore.address import parse_address
from statestore.aio_connection import AsyncConnection, connect
from statestore.deadline import Deadline
from statestore.dial import open_sockets
from statestore.protocol import ConnectionLost, NotSent, WrongServer
from statestore.tls import client_context
from tests.certificates import Authority
from tests.client.servers import (
    WELCOME,
    Server,
    answers,
    black_hole,
    found,
    hanging_look_up,
    refused,
    says,
    server_context,
)
from tests.daemon import Daemon
from tests.server.waiting import eventually, wait_until

PATIENCE = 20.0  # seconds after which a test has hung
AT_ONCE = "at once"


@asynccontextmanager
async def connected(
    address: str, seconds: float = PATIENCE, tls: ssl.SSLContext | None = None
) -> AsyncIterator[AsyncConnection]:
    connection = await connect(parse_address(address), "default", None, Deadline(seconds), tls=tls)
    try:
        yield connection
    finally:
        connection.close()


class Requests:
    """A server whose answers the test gives, one by one and in any order, but to what is asked as AT_ONCE."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=2**30)
        self.may_read = asyncio.Event()
        self.may_read.set()
        self._writer: StreamWriter
        self._loop: asyncio.AbstractEventLoop
        self.reads: list[int] = []  # how many requests came at once
        self.ids: dict[Any, int] = {}  # of what was asked for with this first parameter

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._writer, self._loop = writer, asyncio.get_running_loop()
        while data := await reader.read(2**20):
            await self.may_read.wait()
            self._unpacker.feed(data)
            requests = list(self._unpacker)
            for _, msgid, method, params in requests:
                if method == "hello":
                    writer.write(msgpack.packb([1, msgid, None, WELCOME]))
                elif params[0] == AT_ONCE:
                    writer.write(msgpack.packb([1, msgid, None, AT_ONCE]))
                else:
                    self.ids[params[0]] = msgid
            if requests:
                self.reads.append(len(requests))

    def answer(self, what: str) -> None:
        """What was asked for is the answer."""
        self.send(msgpack.packb([1, self.ids.pop(what), None, what]))

    def send(self, data: bytes) -> None:
        self.in_loop(self._writer.write, data)

    def hang_up(self) -> None:
        self.in_loop(self._writer.close)

    def in_loop(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)


@asynccontextmanager
async def answered_by_hand(
    server_tls: ssl.SSLContext | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Requests, AsyncConnection]]:
    requests = Requests()
    with Server(requests.serve, server_tls) as server:
        async with connected(server.address, tls=tls) as connection:
            yield requests, connection


def ask(connection: AsyncConnection, what: str, seconds: float = PATIENCE) -> "asyncio.Task[Any]":
    async def result() -> Any:
        return (await connection.call("get", (what, None), Deadline(seconds))).result

    return asyncio.create_task(result())


# Greeting


@pytest.mark.parametrize("kind", ["address", "unix_address"])
async def test_a_greeted_connection_answers(shared_daemon: Daemon, kind: str) -> None:
    async with connected(getattr(shared_daemon, kind)) as connection:
        assert (await connection.call("get", ("m", None), Deadline(PATIENCE))).result == "START"
        info = await connection.call("info", (), Deadline(PATIENCE))
        assert connection.welcome.store_id == info.result["store_id"]
        assert isinstance((await connection.call("get", (), Deadline(PATIENCE))).error, BadRequest)


async def test_nobody_there_means_nothing_was_sent() -> None:
    for address in (refused(), "unix:/nonexistent/socket"):
        with pytest.raises(ConnectionLost, match=r"connection refused|no such file") as caught:
            async with connected(address):
                pass
        assert not caught.value.sent


async def test_a_refused_hello_is_raised_and_the_connection_closed() -> None:
    closed = threading.Event()

    async def refuse(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.read(1000)
        writer.write(msgpack.packb([1, 1, "unauthorized: the token is wrong", None]))
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        closed.set()

    with Server(refuse) as server:
        with pytest.raises(Unauthorized):
            async with connected(server.address):
                pass
        await eventually(closed.is_set)


async def test_a_connection_whose_hello_could_not_be_sent_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statestore.aio_connection._hang_up_detector", lambda _: lambda: True)
    made: list[AsyncConnection] = []

    async def note(connection: AsyncConnection, *target: Any) -> None:
        made.append(connection)
        await open_target(connection, *target)

    open_target = aio_connection._open_target
    monkeypatch.setattr(aio_connection, "_open_target", note)
    closed = threading.Event()

    async def serve(reader: StreamReader, _: StreamWriter) -> None:
        with suppress(ConnectionResetError):
            await reader.read()
        closed.set()

    with Server(serve) as server:
        with pytest.raises(ConnectionLost, match="the server closed the connection"):
            await connect(parse_address(server.address), "default", None, Deadline(PATIENCE))
        assert [connection.lost is not None for connection in made] == [True]
        await eventually(closed.is_set)


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", WrongServer, "an HTTP server"),
        (b"\x94\x01\x05\xc0\xc0", WrongServer, "an answer came to request 5, which nobody made"),
        (b"\x94\xc1", WrongServer, "not MessagePack"),
    ],
)
async def test_what_is_not_statestored_is_named(said: bytes, error: type[Exception], words: str) -> None:
    with says(said) as server, pytest.raises(error, match=words):
        async with connected(server.address):
            pass


async def test_what_answers_a_hello_with_something_else_is_not_ours() -> None:
    with answers(lambda *_: (None, None)) as server, pytest.raises(WrongServer, match="its hello lacks"):
        async with connected(server.address):
            pass


async def test_what_is_silent_is_asked_what_it_is() -> None:
    """A server of a line-based protocol takes our hello for half a line."""

    async def memcached(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readline()
        writer.write(b"ERROR\r\n")
        await reader.read()

    with (
        Server(memcached) as server,
        patch("statestore.aio_connection.HELLO_PATIENCE", 0.1),
        pytest.raises(WrongServer, match="a memcached server"),
    ):
        async with connected(server.address):
            pass


@pytest.mark.parametrize("seconds", [0.2, 0.5])
async def test_connecting_ends_at_the_deadline(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    with black_hole() as hole, says(b"") as silent, hanging_look_up():
        for address in (hole, silent.address, "states.example"):
            started = loop.time()
            with pytest.raises((ConnectionLost, TimeoutError)):
                async with connected(address, seconds):
                    pass
            assert seconds - 0.05 < loop.time() - started < seconds + 1.0


async def test_every_address_of_a_name_is_tried(shared_daemon: Daemon) -> None:
    with black_hole() as hole, patch("socket.getaddrinfo", found(hole, refused(), shared_daemon.address)):
        async with connected("states.example", 1.0) as connection:
            assert (await connection.call("ping", (), Deadline(PATIENCE))).error is None


async def test_connecting_can_be_cancelled_and_leaves_nothing() -> None:
    with black_hole() as hole, says(b"") as silent, hanging_look_up():
        for address in (hole, silent.address, "states.example"):
            connecting = asyncio.create_task(connect(parse_address(address), "default", None, Deadline(PATIENCE)))
            await asyncio.sleep(0)
            if address == silent.address:
                await eventually(lambda: silent.connections)
            elif address != hole:
                await eventually(is_looking_up)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting


def is_looking_up() -> bool:
    return any(thread.name == "statestore-look-up" and thread.is_alive() for thread in threading.enumerate())


# Many at once


async def test_what_is_asked_in_one_turn_leaves_in_one_write() -> None:
    async with answered_by_hand() as (_, connection):
        written: list[bytes] = []
        with patch.object(connection, "_transport") as transport:
            transport.write = written.append
            asked = [ask(connection, str(number)) for number in range(100)]
            await eventually(lambda: written)
            await asyncio.sleep(0)
        assert [len(list(unpacked(data))) for data in written] == [100]
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)


def unpacked(data: bytes) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    return unpacker


async def test_answers_find_their_callers_in_any_order() -> None:
    async with answered_by_hand() as (requests, connection):
        asked = {str(number): ask(connection, str(number)) for number in range(200)}
        await eventually(lambda: len(requests.ids) == 200)
        for what in random.sample(list(asked), 200):
            requests.answer(what)
        assert [await each for each in asked.values()] == list(asked)


async def test_an_answer_in_pieces_and_many_in_one_piece() -> None:
    async with answered_by_hand() as (requests, connection):
        asked = [ask(connection, what) for what in "abc"]
        await eventually(lambda: len(requests.ids) == 3)
        data = b"".join(msgpack.packb([1, requests.ids[what], None, what * 300_000]) for what in "abc")
        for byte in data[:20]:
            connection.data_received(bytes([byte]))
        connection.data_received(data[20:])  # more than `feed` takes at once
        assert [await each for each in asked] == [what * 300_000 for what in "abc"]


async def test_what_no_message_can_hold_is_refused_and_disturbs_nobody() -> None:
    async with answered_by_hand() as (requests, connection):
        asked = ask(connection, "a")
        with pytest.raises(TooLong, match="ask in parts"):
            await connection.call("set", ("m", "a", "x" * 2**20), Deadline(PATIENCE))
        await eventually(lambda: requests.ids)
        requests.answer("a")
        assert await asked == "a"


# Cancelling


async def test_what_is_cancelled_before_it_was_sent_never_is() -> None:
    async with answered_by_hand() as (requests, connection):
        connection.pause_writing()
        asked = ask(connection, "a")
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        connection.resume_writing()
        other = ask(connection, "b")
        await eventually(lambda: requests.ids)
        assert list(requests.ids) == ["b"]
        requests.answer("b")
        assert await other == "b"
        assert connection._asked == {}


async def test_the_answer_to_what_was_cancelled_is_dropped() -> None:
    async with answered_by_hand() as (requests, connection):
        asked = {what: ask(connection, what) for what in "abc"}
        await eventually(lambda: len(requests.ids) == 3)
        asked["a"].cancel()
        for what in "abc":
            requests.answer(what)
        assert [await asked[what] for what in "bc"] == ["b", "c"]
        assert connection._asked == {}


# Deadlines


async def test_a_call_that_is_not_answered_ends_at_its_deadline_and_the_others_go_on() -> None:
    async with answered_by_hand() as (requests, connection):
        late, other = ask(connection, "late", 0.2), ask(connection, "other")
        await eventually(lambda: len(requests.ids) == 2)
        requests.answer("other")
        assert await other == "other"
        with pytest.raises(ConnectionLost, match=r"no answer within 0\.2 s") as caught:
            await late
        assert caught.value.sent
        after = ask(connection, "after")
        await eventually(lambda: len(requests.ids) == 2)
        requests.answer("late")
        requests.answer("after")
        assert await after == "after"


async def test_each_ends_at_its_own_deadline() -> None:
    """Whichever was asked first."""
    async with answered_by_hand() as (_, connection):
        patient, hasty = ask(connection, "patient", PATIENCE), ask(connection, "hasty", 0.1)
        while not hasty.done():
            assert await ask(connection, AT_ONCE) == AT_ONCE  # it is not silent
        assert not patient.done()
        with pytest.raises(ConnectionLost, match=r"no answer within 0\.1 s"):
            await hasty
        patient.cancel()
        await asyncio.wait([patient])


async def test_a_connection_that_has_fallen_silent_is_given_up_for_all() -> None:
    """So that the others can go on at another one, long before their own deadlines."""
    async with answered_by_hand() as (_, connection):
        first, patient = ask(connection, "first", 0.2), ask(connection, "patient")
        for each in (first, patient):
            with pytest.raises(ConnectionLost, match=r"no answer within 0\.2 s") as caught:
                await each
            assert caught.value.sent
        with pytest.raises(ConnectionLost) as caught:
            await ask(connection, "next")
        assert not caught.value.sent


def block(seconds: float) -> None:
    """What runs in the loop takes so long."""
    time.sleep(seconds)


async def test_what_is_late_before_it_leaves_is_not_sent() -> None:
    """The loop was blocked meanwhile."""
    async with answered_by_hand() as (requests, connection):
        late, other = ask(connection, "late", 0.05), ask(connection, "other")
        await asyncio.sleep(0)
        assert len(connection._unsent) == 2
        block(0.1)
        with pytest.raises(NotSent, match=r"no answer within 0\.05 s"):
            await late
        await eventually(lambda: requests.ids)
        requests.answer("other")
        assert await other == "other"


async def test_an_answer_that_came_in_time_is_taken_however_late_the_loop_is() -> None:
    async with answered_by_hand() as (_, connection):
        asked = ask(connection, AT_ONCE, 0.2)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert connection._unsent == {}
        block(0.4)
        assert await asked == AT_ONCE


async def test_nothing_is_sent_where_the_server_has_hung_up_while_the_loop_was_blocked() -> None:
    async with answered_by_hand() as (requests, connection):
        sent = ask(connection, "sent")
        await eventually(lambda: requests.ids)
        unsent = ask(connection, "unsent")
        await asyncio.sleep(0)
        requests.hang_up()
        wait_until(connection._has_hung_up)
        with pytest.raises(NotSent, match="the server closed the connection"):
            await unsent
        with pytest.raises(ConnectionLost, match="the server closed the connection") as caught:
            await sent
        assert caught.value.sent


# Back-pressure


async def test_while_the_peer_does_not_read_requests_wait_within_their_deadlines() -> None:
    large = [(str(number), "x" * 500_000) for number in range(60)]
    async with answered_by_hand() as (requests, connection), stalled(requests) as go_on:
        asked = [ask_large(connection, *each) for each in large]
        late, cancelled = ask(connection, "late", 0.3), ask(connection, "cancelled")
        await eventually(lambda: connection._is_paused)
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 2_000_000
        cancelled.cancel()
        connection._answers += 1  # as if there were some
        with pytest.raises(ConnectionLost, match=r"no answer within 0\.3 s") as caught:
            await late
        assert not caught.value.sent
        assert not any(each.done() for each in asked)
        go_on()
        await eventually(lambda: len(requests.ids) == len(large))
        assert requests.ids.keys() == {what for what, _ in large}
        for what, _ in large:
            requests.answer(what)
        assert [await each for each in asked] == [what for what, _ in large]


def ask_large(connection: AsyncConnection, what: str, more: str) -> "asyncio.Task[Any]":
    async def result() -> Any:
        return (await connection.call("set", (what, more), Deadline(PATIENCE))).result

    return asyncio.create_task(result())


@asynccontextmanager
async def stalled(requests: Requests) -> AsyncIterator[Callable[[], None]]:
    """The server does not read, until what this gives is called."""
    requests.may_read.clear()
    try:
        yield lambda: requests.in_loop(requests.may_read.set)
    finally:
        requests.in_loop(requests.may_read.set)


# TLS


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_what_is_said_over_tls_comes_through(authority: Authority, version: ssl.TLSVersion) -> None:
    own = authority.issue("client")
    server_tls = server_context(authority.issue("server"), authority.certificate)
    server_tls.minimum_version = server_tls.maximum_version = version
    tls = client_context(authority.certificate, str(own.certificate), str(own.key))
    async with answered_by_hand(server_tls, tls) as (requests, connection):
        words = [str(size) + "x" * size for size in (0, 1, 1000, 60_000, 600_000)] + [
            f"number {number}" for number in range(100)
        ]
        asked = {what: ask(connection, what) for what in words}
        await eventually(lambda: len(requests.ids) == len(words))
        for what in random.sample(words, len(words)):
            requests.answer(what)
        assert [await each for each in asked.values()] == words


@pytest.mark.parametrize(
    ("name", "expired", "asks", "words"),
    [
        ("states.example", False, False, r"certificate is not for 127\.0\.0\.1"),
        ("127.0.0.1", True, False, "certificate has expired"),
        ("127.0.0.1", False, True, "tls_cert"),
    ],
)
async def test_who_does_not_agree_is_told_why(
    authority: Authority, name: str, expired: bool, asks: bool, words: str
) -> None:
    identity = authority.issue(f"{name} {expired}", name, expired=expired)
    server_tls = server_context(identity, authority.certificate if asks else None)
    with pytest.raises((WrongServer, ConnectionLost), match=words):
        async with answered_by_hand(server_tls, client_context(authority.certificate)):
            pass


async def test_tls_with_a_server_that_does_not_speak_it(authority: Authority) -> None:
    tls = client_context(authority.certificate)
    with says(b"220 mx.example ESMTP\r\n") as server, pytest.raises(WrongServer, match="does not speak TLS"):
        async with connected(server.address, tls=tls):
            pass
    with says(b"") as silent, pytest.raises(ConnectionLost, match=r"no answer|does not answer|TLS"):
        async with connected(silent.address, 0.3, tls):
            pass


async def test_a_tls_server_that_is_asked_without_it_is_named(authority: Authority) -> None:
    with pytest.raises((WrongServer, ConnectionLost), match=r"a TLS server|closed the connection"):
        async with answered_by_hand(server_context(authority.issue("server"))):
            pass


# Endings


async def test_a_broken_connection_tells_each_call_whether_it_was_sent() -> None:
    async with answered_by_hand() as (requests, connection):
        sent = [ask(connection, what) for what in "abc"]
        await eventually(lambda: len(requests.ids) == 3)
        connection.pause_writing()
        unsent = [ask(connection, what) for what in "def"]
        await asyncio.sleep(0)
        requests.hang_up()
        for each in sent + unsent:
            with pytest.raises(ConnectionLost, match="the server closed the connection") as caught:
                await each
            assert caught.value.sent == (each in sent)


async def test_garbage_ends_it_for_all() -> None:
    async with answered_by_hand() as (requests, connection):
        asked = [ask(connection, what) for what in "abc"]
        await eventually(lambda: len(requests.ids) == 3)
        requests.send(b"\xc1")
        for each in asked:
            with pytest.raises(ConnectionLost):
                await each


async def test_closing_ends_what_is_under_way_at_once() -> None:
    async with answered_by_hand() as (requests, connection):
        asked = [ask(connection, what) for what in "abc"]
        await eventually(lambda: len(requests.ids) == 3)
        connection.close()
        connection.close()
        for each in asked:
            with pytest.raises(ConnectionLost, match="closed"):
                await each


async def test_a_connection_that_is_retired_answers_what_was_asked_and_then_closes() -> None:
    async with answered_by_hand() as (requests, connection):
        calls = {what: ask(connection, what) for what in "abc"}
        await eventually(lambda: len(requests.ids) == 3)
        calls["d"] = ask(connection, "d")
        await asyncio.sleep(0)
        connection.retire()
        await eventually(lambda: len(requests.ids) == 4)
        calls["b"].cancel()
        for what in "acd":
            assert connection.lost is None
            requests.answer(what)
            assert await calls[what] == what
        assert connection.lost is not None, "nobody waits for the answer that is missing"


@pytest.mark.parametrize("how", ["idle", "cancelled", "late"])
async def test_a_connection_that_is_retired_closes_though_an_answer_is_missing(how: str) -> None:
    async with answered_by_hand() as (requests, connection):
        if how == "idle":
            connection.retire()
        else:
            asked = ask(connection, "a", PATIENCE if how == "cancelled" else 0.2)
            await eventually(lambda: requests.ids)
            assert await ask(connection, AT_ONCE) == AT_ONCE
            connection.retire()
            assert connection.lost is None
            if how == "cancelled":
                asked.cancel()
            with suppress(asyncio.CancelledError, ConnectionLost):
                await asked
        assert connection.lost is not None
        with pytest.raises(NotSent):
            await ask(connection, "next")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_a_child_of_a_fork_gives_its_copy_back_and_leaves_the_parents_alone() -> None:
    async with answered_by_hand() as (requests, connection):
        assert connection._transport is not None
        number = connection._transport.get_extra_info("socket").fileno()
        assert stat.S_ISSOCK(os.fstat(number).st_mode)
        assert in_child(lambda: connection.lost is not None and not stat.S_ISSOCK(os.fstat(number).st_mode))
        asked = ask(connection, "a")
        await eventually(lambda: requests.ids)
        requests.answer("a")
        assert await asked == "a"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_a_socket_that_is_still_connecting_does_not_get_into_a_child() -> None:
    with black_hole() as address:
        attempt = asyncio.create_task(connect(parse_address(address), "default", None, Deadline(PATIENCE)))
        await eventually(lambda: list(open_sockets))
        number = next(iter(open_sockets)).fileno()
        assert in_child(lambda: not os.path.exists(f"/proc/self/fd/{number}"))
        assert stat.S_ISSOCK(os.fstat(number).st_mode)
        attempt.cancel()
        with suppress(asyncio.CancelledError):
            await attempt


def in_child(holds: Callable[[], bool]) -> bool:
    """Whether it is so in the child of a fork."""
    if (child := os.fork()) == 0:
        code = 2
        with suppress(BaseException):
            code = 0 if holds() else 1
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
