"""Both clients: each write, what becomes of its first attempt, and what the server sees and the caller gets."""

import asyncio
import signal
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import Mock

import msgpack
import pytest

from statestore import (
    AsyncRemoteStorage,
    Forbidden,
    Full,
    RemoteStorage,
    StateStorage,
    StateStoreError,
    Swap,
    Unavailable,
    Uncertain,
)
from statestore.calls import WRITES
from statestore.wire import RESPONSE
from tests.client.blocking import Blocking
from tests.client.servers import WELCOME, Server, answers
from tests.client.timing import WRITE_DEADLINE, takes
from tests.server.waiting import eventually, wait_until

PATIENCE = 30.0  # seconds after which a test has hung
KNOWS_SESSIONS = {"features": ["sessions", "not_after"], "time": 5000.0}

Connect = Callable[..., Any]


def blocking(address: str, **settings: Any) -> RemoteStorage:
    return RemoteStorage(address, **settings)


def coroutines(address: str, **settings: Any) -> Blocking:
    return Blocking(AsyncRemoteStorage(address, **settings))


both_clients = pytest.mark.parametrize("connect", [blocking, coroutines])

# What a caller does, what the server answers when it does it, and what the caller gets.
CALLS: dict[str, tuple[Callable[[StateStorage], Any], Any, Any]] = {
    "set": (lambda storage: storage.set("m", "a", "A"), None, None),
    "set_all": (lambda storage: storage.set_all("a", "A"), 1, 1),
    "set_many": (lambda storage: storage.set_many([("m", "a", "A")]), None, None),
    "compare_and_set": (lambda storage: storage.compare_and_set("m", "a", "B", "A"), [True, "B"], Swap(True, "B")),
    "clear": (lambda storage: storage.clear(), None, None),  # type: ignore[attr-defined]
    "get": (lambda storage: storage.get("m", "a"), "A", "A"),
}


class Scripted:
    """A server that does with the first call, but for a `ping`, what `happens` says, and answers all others.

    sessions: what the connections get, one after the other, the last one for all that follow; None: it knows none.
    seen: the sessions in which calls came, and the options that they had.
    """

    def __init__(self, happens: str, sessions: list[int | None]) -> None:
        self._happens = happens
        self._sessions = sessions
        self.hung_up = 0
        self.seen: list[tuple[int | None, dict[str, Any]]] = []

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        requests = msgpack.Unpacker()
        session = self._sessions.pop(0) if len(self._sessions) > 1 else self._sessions[0]
        while received := await reader.read(2**16):
            requests.feed(received)
            for _, msgid, method, params in requests:
                answer = self._answer(method, params, session)
                if answer is None:
                    return
                writer.write(msgpack.packb((RESPONSE, msgid, *answer)))
                if self._happens == "broken before it is sent" and method == "ping":
                    await writer.drain()
                    writer.close()
                    self.hung_up += 1
                    self._happens = ""
                    return

    def _answer(self, method: str, params: list[Any], session: int | None) -> tuple[Any, Any] | None:
        """Its error and its result; None: hang up."""
        if method == "hello":
            return None, WELCOME if session is None else WELCOME | KNOWS_SESSIONS | {"session": session}
        if method == "ping":
            return None, None
        self.seen.append((session, params[-1] if params and isinstance(params[-1], dict) else {}))
        happens, self._happens = self._happens, ""
        if happens == "no answer":
            return None
        refusals = {"refused for now": "unavailable: no room", "refused for good": "full: no room"}
        return refusals.get(happens), CALLS[method][1]


# What happens to the first attempt; what the caller gets (None: its result), and how many attempts come to the server:
# of what can be repeated (a read, or a write with a number), and of a write that cannot.
Outcome = tuple[type[StateStoreError] | None, int]
OUTCOMES: dict[str, tuple[Outcome, Outcome]] = {
    "nothing": ((None, 1), (None, 1)),
    "broken before it is sent": ((None, 1), (None, 1)),
    "refused for now": ((None, 2), (None, 2)),
    "refused for good": ((Full, 1), (Full, 1)),
    "no answer": ((None, 2), (Uncertain, 1)),
}
SESSIONS: dict[str, list[int | None]] = {"kept": [7], "lost": [7, 8], "unknown": [None]}


@both_clients
@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("happens", OUTCOMES)
@pytest.mark.parametrize("sessions", SESSIONS)
def test_what_becomes_of_a_call(connect: Connect, method: str, happens: str, sessions: str) -> None:
    script = Scripted(happens, [*SESSIONS[sessions]])
    call, _, result = CALLS[method]
    is_repeatable = method == "get" or sessions == "kept"
    error, attempts = OUTCOMES[happens][0 if is_repeatable else 1]
    with Server(script.serve) as server, connect(server.address) as client:
        client.ping()
        if happens == "broken before it is sent":
            wait_until(lambda: script.hung_up)
        if error is None:
            assert call(client) == result
        else:
            with pytest.raises(error):
                call(client)
        assert len(script.seen) == attempts
        unanswered = client._storage if isinstance(client, Blocking) else client
        assert unanswered._store.session.unanswered == {}
    numbers = {(session, options.get("seq")) for session, options in script.seen}
    has_number = method in WRITES and sessions != "unknown"
    in_session = 8 if sessions == "lost" and "broken" in happens else SESSIONS[sessions][0]
    if method != "get":
        assert numbers == {(in_session, 1 if has_number else None)}, "one number, in one session"


# A signal handler raises an exception while a write waits for its answer


class Alarm(Exception):
    """What the handler raises."""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("session", [None, 7])
def test_a_write_that_a_signal_handler_ended_after_it_was_sent_is_uncertain(method: str, session: int | None) -> None:
    caller, over, seen = threading.get_ident(), threading.Event(), []

    def answer(method: str, _: list[Any]) -> tuple[str | None, Any]:
        if method == "hello":
            return None, WELCOME if session is None else WELCOME | KNOWS_SESSIONS | {"session": session}
        seen.append(method)
        signal.pthread_kill(caller, signal.SIGUSR1)
        over.wait(PATIENCE)
        raise ConnectionError

    def alarm(*_: object) -> None:
        raise Alarm("too long")

    before = signal.signal(signal.SIGUSR1, alarm)
    try:
        with answers(answer) as server, RemoteStorage(server.address) as client:
            try:
                with pytest.raises(Unavailable if method == "get" else Uncertain, match="too long"):
                    CALLS[method][0](client)
            finally:
                over.set()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [method]


# All attempts are refused


@both_clients
def test_a_write_that_was_refused_whenever_it_was_sent_is_not_uncertain(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it sent after its deadline."""
    monkeypatch.setattr("statestore.calls.LAST_ATTEMPT", 0.5)  # so that it has an answer, also on a busy machine
    came: list[float] = []

    def answer(method: str, _: list[Any]) -> tuple[str | None, Any]:
        if method == "hello":
            return None, WELCOME | KNOWS_SESSIONS | {"session": 7}
        came.append(time.monotonic())
        return "unavailable: no room", None

    with answers(answer) as server, connect(server.address, write_deadline=1.0) as client:
        deadline = time.monotonic() + 1.0
        with pytest.raises(Unavailable, match=r"no room; gave up after 1 s"):
            client.set("m", "a", "A")
    assert len(came) > 3
    assert max(came) < deadline


@both_clients
@pytest.mark.parametrize(("refusal", "pause"), [("shutting_down: soon", PATIENCE), ("unavailable: no room", 0.0)])
@pytest.mark.parametrize("method", CALLS)
def test_a_connection_that_brings_a_refusal_is_replaced_for_reads_and_writes(
    connect: Connect, method: str, refusal: str, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once if the server is about to end, else when the next replacement is due."""
    monkeypatch.setattr("statestore.renewal.PAUSE", (pause, pause))
    asked: list[str] = []

    def answer(method: str, _: list[Any]) -> tuple[str | None, Any]:
        asked.append(method)
        if method == "hello":
            return None, WELCOME | KNOWS_SESSIONS | {"session": 7}
        return (refusal, None) if len(asked) == 2 else (None, CALLS[method][1])

    with answers(answer) as server, connect(server.address) as client:
        CALLS[method][0](client)
    assert asked == ["hello", method, "hello", method]


# A server that can give no session now


def lacking(why: str | None, answered: Callable[[], str | None] = lambda: None) -> Server:
    """A server that knows sessions and gives none, because of `why`."""

    def answer(method: str, _: list[Any]) -> tuple[str | None, Any]:
        if method == "hello":
            reason = {} if why is None else {"session_error": why}
            return None, WELCOME | KNOWS_SESSIONS | {"session": None} | reason
        return answered() if method in WRITES else None, CALLS[method][1]

    return answers(answer)


@both_clients
@pytest.mark.parametrize("why", ["unavailable: no room", None])
@pytest.mark.parametrize("method", sorted(WRITES))
def test_without_a_session_a_write_is_not_sent_to_a_server_that_may_give_one(
    connect: Connect, why: str | None, method: str
) -> None:
    sent = []
    with (
        lacking(why, lambda: sent.append(method)) as server,
        connect(server.address, write_deadline=WRITE_DEADLINE) as client,
    ):
        words = "no room" if why else "the server gives no session now"
        with takes(WRITE_DEADLINE), pytest.raises(Unavailable, match=words):
            CALLS[method][0](client)
        assert client.get("m", "a") == "A"
        assert server.connections <= 2
    assert sent == []


@both_clients
@pytest.mark.parametrize("method", sorted(WRITES))
def test_a_client_that_may_not_write_is_told_by_the_server_itself(
    connect: Connect, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statestore.renewal.PAUSE", (PATIENCE, PATIENCE))
    why = "forbidden: a session is for writes"
    with lacking(why, lambda: "forbidden: set needs the role write") as server, connect(server.address) as client:
        for _ in range(3):
            with pytest.raises(Forbidden, match="needs the role write"):
                CALLS[method][0](client)
        assert server.connections == 1


@both_clients
def test_reads_go_on_while_a_connection_without_a_session_cannot_be_replaced(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the connection that there is; it is no outage."""
    monkeypatch.setattr("statestore.renewal.PAUSE", (0.0, 0.0))
    greeted, is_back = [], threading.Event()

    def answer(method: str, _: list[Any]) -> tuple[str | None, Any]:
        if method != "hello":
            return None, CALLS[method][1]
        greeted.append(method)
        if is_back.is_set():
            return None, WELCOME | KNOWS_SESSIONS | {"session": 7}
        if len(greeted) > 1:
            raise ConnectionError
        return None, WELCOME | KNOWS_SESSIONS | {"session_error": "unavailable: no room"}

    settings = {"pool": 1} if connect is blocking else {}
    with answers(answer) as server, connect(server.address, **settings) as client, ThreadPoolExecutor(1) as threads:
        assert client.get("m", "a") == "A"
        monkeypatch.setattr("statestore.store.Store.unreached", Mock(side_effect=AssertionError("an outage")))
        write = threads.submit(client.set, "m", "a", "A")
        for tries in range(2, 6):
            wait_until(lambda tries=tries: len(greeted) > tries)
            assert client.get("m", "a") == "A"
        is_back.set()
        assert write.result(PATIENCE) is None


# R6: while writes are refused, clients do not crowd the store


@contextmanager
def noting_connections(session: int | None) -> Iterator[tuple[Server, list[float]]]:
    """A server that refuses all writes, and notes when it was greeted. session: what it gives; None: nothing now."""
    greeted: list[float] = []

    def answer(method: str, _: list[Any]) -> tuple[str | None, Any]:
        if method != "hello":
            return ("unavailable: no room" if method in WRITES else None), "A"
        greeted.append(time.monotonic())
        return None, WELCOME | KNOWS_SESSIONS | {"session": session, "session_error": "unavailable: no room"}

    with answers(answer) as server:
        yield server, greeted


CLIENTS, THREADS, SECONDS = 100, 3, 4.0


@pytest.mark.parametrize("session", [None, 7])
def test_a_hundred_blocking_clients_make_few_connections_while_writes_are_refused(session: int | None) -> None:
    with noting_connections(session) as (server, greeted), ThreadPoolExecutor(CLIENTS * THREADS) as threads:
        storages = [RemoteStorage(server.address, write_deadline=SECONDS, pool=THREADS) for _ in range(CLIENTS)]

        calls = [threads.submit(storage.set, "m", "a", "A") for storage in storages for _ in range(THREADS)]
        assert all(isinstance(call.exception(PATIENCE), Unavailable | Uncertain) for call in calls)
        for storage in storages:
            storage.close()
    check_few(greeted, at_first=CLIENTS * THREADS)


@pytest.mark.parametrize("session", [None, 7])
async def test_a_hundred_asynchronous_clients_make_few_connections_while_writes_are_refused(
    session: int | None,
) -> None:
    with noting_connections(session) as (server, greeted):
        storages = [AsyncRemoteStorage(server.address, write_deadline=SECONDS) for _ in range(CLIENTS)]
        calls = (storage.set("m", "a", "A") for storage in storages for _ in range(THREADS))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, Unavailable | Uncertain) for each in results)
        for storage in storages:
            await storage.close()
    check_few(greeted, at_first=CLIENTS)


def check_few(greeted: list[float], at_first: int) -> None:
    """at_first: how many connections the clients need at all. Each makes at most one more a second, however late."""
    later = len(greeted) - at_first
    assert later > 0, "they go on looking"
    assert later <= CLIENTS * (SECONDS + 1)


# Another coroutine's write was refused


@pytest.mark.parametrize("sessions", [True, False])
async def test_a_write_that_is_under_way_is_not_repeated_because_another_was_refused(
    monkeypatch: pytest.MonkeyPatch, sessions: bool
) -> None:
    """The connection is replaced then: the clocks may differ. What was sent is still answered on the old one."""
    monkeypatch.setattr("statestore.renewal.PAUSE", (0.0, 0.0))
    came: list[str] = []
    slow_answers: list[Callable[[], None]] = []

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        requests = msgpack.Unpacker()
        while received := await reader.read(2**16):
            requests.feed(received)
            for _, msgid, method, params in requests:
                if method == "hello":
                    about = KNOWS_SESSIONS | {"session": 7} if sessions else {}
                    writer.write(msgpack.packb((RESPONSE, msgid, None, WELCOME | about)))
                    continue
                came.append(params[1])
                if params[1] == "slow":
                    slow_answers.append(partial(writer.write, msgpack.packb((RESPONSE, msgid, None, None))))
                else:
                    refusal = "unavailable: too late" if came.count("refused") < 4 else None
                    writer.write(msgpack.packb((RESPONSE, msgid, refusal, None)))

    with Server(serve) as server:
        async with AsyncRemoteStorage(server.address) as storage:
            slow = asyncio.create_task(storage.set("m", "slow", "A"))
            await eventually(lambda: slow_answers)
            await storage.set("m", "refused", "A")
            assert server.connections > 1
            assert not slow.done()
            server.in_loop(slow_answers[0])
            await slow
    assert came.count("slow") == 1
