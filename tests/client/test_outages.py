"""`RemoteStorage` where the daemon is away, slow, cut off, restarted or another: deadlines hold, and no answer lies."""

import asyncio
import logging
import random
import signal
import socket
import sys
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgpack
import pytest

from statestore import START, RemoteStorage, StateStoreError, Unavailable, Uncertain
from statestore.connection import Connection
from tests.client.servers import (
    WELCOME,
    Cut,
    Messages,
    Proxy,
    Server,
    answers,
    black_hole,
    dripping_after_the_hello,
    dripping_from_the_first_byte,
    found,
    hanging_look_up,
    hanging_up,
    never_accepting,
    nobody,
    punctual,
    refused,
    says,
    silent,
    write_all,
)
from tests.client.timing import READ_DEADLINE, WRITE_DEADLINE, at_once, takes
from tests.daemon import Daemon
from tests.server.waiting import wait_until

PATIENCE = 60.0  # seconds after which a test has hung


@pytest.fixture
def proxy(shared_daemon: Daemon) -> Iterator[Proxy]:
    with Proxy(shared_daemon.address) as proxy:
        yield proxy


@pytest.fixture
def remote(proxy: Proxy, store: RemoteStorage) -> Iterator[RemoteStorage]:
    """Goes through `proxy`; `store` goes by another way, to see what came of it."""
    with RemoteStorage(proxy.address, namespace=store._settings.namespace) as remote:
        remote.set("m", "a", "BEFORE")
        proxy.methods.clear()
        yield remote


def once_back(call: Callable[[], Any]) -> Any:
    """What it answers as soon as a store that was away for long is found again."""
    found = []

    def succeeds() -> bool:
        with suppress(Unavailable):
            found.append(call())
        return bool(found)

    wait_until(succeeds)
    return found[0]


# The deadline


@pytest.mark.parametrize(
    ("outage", "error"),
    [
        (nobody, Unavailable),
        (black_hole, Unavailable),
        (never_accepting, Unavailable),
        (silent, Unavailable),
        (hanging_up, Unavailable),
        (dripping_from_the_first_byte, Unavailable),
        (dripping_after_the_hello, Uncertain),
    ],
)
def test_a_call_ends_at_its_deadline(
    outage: Callable[[], AbstractContextManager[str]], error: type[StateStoreError]
) -> None:
    with (
        outage() as address,
        RemoteStorage(address, deadline=READ_DEADLINE, write_deadline=WRITE_DEADLINE) as storage,
    ):
        with takes(READ_DEADLINE), pytest.raises(Unavailable) as caught:
            storage.get("m", "a")
        assert caught.value.detail.startswith(f"{address}: ")
        assert caught.value.detail.endswith("gave up after 0.4 s")
        with takes(WRITE_DEADLINE), pytest.raises(error, match=r"gave up after 0\.7 s"):
            storage.set("m", "a", "A")


def test_a_daemon_that_stands_still_is_given_up_at_the_deadline(daemon: Daemon) -> None:
    with RemoteStorage(daemon.address, deadline=READ_DEADLINE, write_deadline=WRITE_DEADLINE) as storage:
        storage.set("m", "a", "A")
        daemon.send_signal(signal.SIGSTOP)
        with takes(READ_DEADLINE), pytest.raises(Unavailable):
            storage.get("m", "a")
        with takes(WRITE_DEADLINE), pytest.raises((Unavailable, Uncertain)):
            storage.set_many([("m", "a", "B")])
        daemon.send_signal(signal.SIGCONT)
        assert once_back(lambda: storage.get("m", "a")) in ("A", "B")


def test_the_deadline_holds_however_many_signals_come(daemon: Daemon) -> None:
    """A system call that a signal breaks off is begun anew: it must not have its time anew."""
    with RemoteStorage(daemon.address, deadline=READ_DEADLINE) as storage:
        storage.set("m", "a", "A")
        daemon.send_signal(signal.SIGSTOP)
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        try:
            with takes(READ_DEADLINE), pytest.raises(Unavailable):
                storage.get("m", "a")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        daemon.send_signal(signal.SIGCONT)


def test_a_look_up_that_hangs_is_given_up_at_the_deadline() -> None:
    storage = RemoteStorage("states.example", deadline=READ_DEADLINE)
    with (
        hanging_look_up(),
        takes(READ_DEADLINE),
        pytest.raises(Unavailable, match=r"looking up states\.example took longer"),
    ):
        storage.get("m", "a")


def test_a_pool_that_is_busy_is_waited_for_until_the_deadline() -> None:
    connected = threading.Event()

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        messages = Messages(reader)
        await messages.read()
        writer.write(msgpack.packb([1, 1, None, WELCOME]))
        await messages.read()
        connected.set()
        await reader.read()

    with (
        Server(serve) as server,
        RemoteStorage(server.address, deadline=READ_DEADLINE, write_deadline=WRITE_DEADLINE, pool=1) as storage,
        ThreadPoolExecutor(1) as threads,
    ):
        busy = threads.submit(storage.set, "m", "a", "A")
        assert connected.wait(PATIENCE)
        with takes(READ_DEADLINE), pytest.raises(Unavailable, match="all 1 connections were busy"):
            storage.get("m", "a")
        with pytest.raises(Uncertain):
            busy.result(PATIENCE)


def test_a_daemon_that_comes_back_just_before_the_deadline_is_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the pauses between attempts have become."""
    monkeypatch.setattr(random, "uniform", lambda _, high: high)
    attempts, look_up = [], found(refused())

    def note_and_look_up(*args: Any, **kwargs: Any) -> list[Any]:
        attempts.append(time.monotonic())
        return look_up(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", note_and_look_up)
    with RemoteStorage("states.example", deadline=1.2) as storage, takes(1.2), pytest.raises(Unavailable):
        storage.get("m", "a")
    assert attempts[-1] - attempts[0] == pytest.approx(1.2, abs=0.2)
    assert len(attempts) < 15


def test_a_fault_of_ours_is_a_store_that_is_away_as_well(caplog: pytest.LogCaptureFixture) -> None:
    """Any other exception would make Salmon answer 250 to a mail that nobody handled."""
    storage = RemoteStorage(refused())
    for _ in range(2):
        with (
            patch.object(Connection, "__init__", side_effect=ZeroDivisionError("x")),
            pytest.raises(Unavailable) as caught,
        ):
            storage.get("m", "a")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(caplog.messages) == 1


# Failing at once


@contextmanager
def hanging_up_at_once(connects: list[float]) -> Iterator[socket.socket]:
    """Notes when somebody connects."""

    def serve() -> None:
        with suppress(OSError):  # the test is over
            while True:
                accepted, _ = listening.accept()
                connects.append(time.monotonic())
                accepted.close()

    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


def test_a_hundred_clients_do_not_keep_a_store_from_coming_back() -> None:
    """R6: fewer than 200 connects in any second, however many calls there are, and these fail at once."""
    connects: list[float] = []
    took: list[float] = []

    def work(storage: RemoteStorage, end: float) -> None:
        while (started := time.monotonic()) < end:
            with pytest.raises(Unavailable):
                storage.get("m", "a")
            took.append(time.monotonic() - started)
            time.sleep(0.1)

    with hanging_up_at_once(connects) as listening, ThreadPoolExecutor(300) as threads:
        address = "{}:{}".format(*listening.getsockname())
        storages = [RemoteStorage(address, deadline=1.5) for _ in range(100)]
        end = time.monotonic() + 4
        for done in [threads.submit(work, storage, end) for storage in storages for _ in range(3)]:
            done.result(PATIENCE)
    assert len(connects) > 200
    windows = [sum(1 for at in connects if start <= at < start + 1) for start in connects]
    assert max(windows) <= 200
    assert sorted(took)[len(took) // 2] < 0.1
    assert max(took) < PATIENCE


def test_whoever_is_interrupted_while_it_connects_keeps_nobody_waiting() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with black_hole() as address, RemoteStorage(address) as storage:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                storage.get("m", "a")
            outage = storage._store.outage
            assert outage is not None
            assert outage.wait("the next call") == 0
    finally:
        signal.signal(signal.SIGALRM, before)


def test_the_first_that_finds_the_store_again_releases_all(daemon: Daemon) -> None:
    with RemoteStorage(daemon.address, deadline=0.3) as storage, ThreadPoolExecutor(16) as threads:
        storage.set("m", "a", "A")
        daemon.stop()
        with pytest.raises(Unavailable):
            storage.get("m", "a")
        daemon.start()
        assert once_back(lambda: storage.get("m", "a")) == "A"
        assert set(threads.map(lambda _: storage.get("m", "a"), range(64))) == {"A"}


def test_many_threads_of_a_client_make_one_attempt_at_a_time() -> None:
    connects: list[float] = []
    with (
        hanging_up_at_once(connects) as listening,
        RemoteStorage("{}:{}".format(*listening.getsockname()), deadline=1) as storage,
        ThreadPoolExecutor(32) as threads,
    ):
        for called in [threads.submit(storage.get, "m", "a") for _ in range(32)]:
            assert isinstance(called.exception(PATIENCE), Unavailable)
        assert len(connects) <= 4 + 2  # one when the time of all is nearly over, or two where a turn lies in between


# Restarts


# Each keeps to a module of its own, in which the sender "a" is in state A.
CALLS: dict[str, tuple[Callable[[RemoteStorage], Any], Any, str]] = {
    "get": (lambda storage: storage.get("get", "a"), "A", "A"),
    "get_many": (lambda storage: storage.get_many([("get_many", "a")]), ["A"], "A"),
    "scan": (lambda storage: [entry.sender for entry in storage.scan("scan")], ["a"], "A"),
    "count": (lambda storage: storage.count("count"), 1, "A"),
    "set": (lambda storage: storage.set("set", "a", "B"), None, "B"),
    "set_many": (lambda storage: storage.set_many([("set_many", "a", "B")]), None, "B"),
    "set_all": (lambda storage: storage.set_all("b", "B"), 1, "A"),
    "ping": (lambda storage: storage.ping(), None, "A"),
}


def test_a_restart_within_the_deadline_is_invisible(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    with RemoteStorage(daemon.address, deadline=20) as storage, ThreadPoolExecutor(len(CALLS)) as threads:
        storage.set_many([("set_all", "b", "A"), *((module, "a", "A") for module in CALLS)])
        daemon.stop()
        calling = {module: threads.submit(call, storage) for module, (call, _, _) in CALLS.items()}
        daemon.start()
        results = {module: (called.result(PATIENCE), storage.get(module, "a")) for module, called in calling.items()}
        assert results == {module: (result, state) for module, (_, result, state) in CALLS.items()}
        assert storage.get("set_all", "b") == "B"
    assert caplog.messages == []


def connect_at_once(storage: RemoteStorage, connections: int) -> None:
    """Leaves so many connections open and idle."""
    everybody, call = threading.Barrier(connections, timeout=PATIENCE), Connection.call

    def call_together(*args: Any) -> Any:
        everybody.wait()
        return call(*args)

    with patch.object(Connection, "call", call_together), ThreadPoolExecutor(connections) as threads:
        list(threads.map(lambda _: storage.ping(), range(connections)))


def test_connections_that_a_restart_broke_are_replaced_without_a_word(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    with RemoteStorage(daemon.address) as storage:
        connect_at_once(storage, 8)
        assert storage.info()["connections"] == 8
        for state in ("A", "B"):
            daemon.stop()
            daemon.start()
            with at_once():
                storage.set("m", "a", state)
                assert storage.get("m", "a") == state
    assert caplog.messages == []


def test_after_one_connection_fell_silent_the_others_are_not_trusted(proxy: Proxy) -> None:
    """As after a firewall has forgotten them all."""
    dead: set[StreamWriter] = set()

    async def remember(writer: StreamWriter, data: bytes) -> None:
        dead.add(writer)
        writer.write(data)

    async def forget(writer: StreamWriter, data: bytes) -> None:
        if writer not in dead:
            writer.write(data)

    with RemoteStorage(proxy.address, namespace="silent", deadline=0.3) as storage:
        proxy.write_reply = remember
        connect_at_once(storage, 4)
        assert len(dead) == 4
        proxy.write_reply = forget
        with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
            storage.get("m", "a")
        assert storage.get("m", "a") == START


def test_a_compare_and_set_on_a_connection_that_was_closed_before_is_made_on_another(daemon: Daemon) -> None:
    """That the server has hung up can be seen before anything is sent."""
    with RemoteStorage(daemon.address) as storage:
        storage.set("m", "a", "A")
        daemon.stop()
        daemon.start()
        assert storage.compare_and_set("m", "a", "A", "B") == (True, "A")


def test_a_scan_goes_on_after_a_restart(daemon: Daemon) -> None:
    with RemoteStorage(daemon.address) as storage:
        triples = [("m", f"{number}@b.example", "A") for number in range(12_000)]
        for start in range(0, len(triples), 1000):
            storage.set_many(triples[start : start + 1000])
        entries = storage.scan()
        seen = {next(entries).sender}
        daemon.stop()
        daemon.start()
        seen |= {entry.sender for entry in entries}
    assert seen == {sender for _, sender, _ in triples}


@pytest.mark.parametrize("code", ["shutting_down", "unavailable"])
def test_an_address_that_cannot_answer_now_is_passed_over(
    shared_daemon: Daemon, store: RemoteStorage, code: str
) -> None:
    with answers(lambda *_: (f"{code}: not now", None)) as server:
        addresses = f"{server.address},{shared_daemon.address}"
        with RemoteStorage(addresses, namespace=store._settings.namespace, deadline=0.3) as storage:
            assert storage.get("m", "a") == START


def test_a_daemon_about_to_end_is_waited_for() -> None:
    """It may say so to a request, or to the hello of a connection that it took just before."""
    said = []

    def answer(method: str, _: list[Any]) -> tuple[str | None, Any]:
        said.append(method)
        if said.count(method) == 1:
            return "shutting_down: the server is about to end", None
        return None, WELCOME if method == "hello" else "POSTING"

    with answers(answer) as server, RemoteStorage(server.address) as storage:
        assert storage.get("m", "a") == "POSTING"
    assert said == ["hello", "hello", "get", "hello", "get"]  # and who is about to end is not asked again


# Cuts


@pytest.mark.parametrize("cut", [lambda size: Cut(request=size), lambda size: Cut(reply=size)])
def test_a_call_that_is_cut_at_any_byte_is_repeated(
    remote: RemoteStorage, proxy: Proxy, cut: Callable[[int], Cut]
) -> None:
    for size in range(20):
        proxy.cuts["get"] = [cut(size)]
        proxy.cuts["set"] = [cut(size)]
        remote.set("m", "a", str(size))
        assert remote.get("m", "a") == str(size)
        assert proxy.cuts == {"get": [], "set": [], "hello": []}


def test_a_hello_that_is_cut_at_any_byte_is_repeated(
    remote: RemoteStorage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statestore.outage.PAUSES", ((0.0, 0.0),))
    for size in range(0, 200, 7):
        proxy.cuts["hello"] = [Cut(request=size), Cut(reply=size)]
        remote.close()
        assert remote.get("m", "a") == "BEFORE"


def test_a_set_that_is_cut_is_repeated_once(remote: RemoteStorage, proxy: Proxy, store: RemoteStorage) -> None:
    proxy.cuts["set"] = [Cut(reply=0)]
    remote.set("m", "a", "AFTER")
    assert proxy.methods == ["set", "set"]
    assert store.get("m", "a") == "AFTER"


@pytest.mark.parametrize("cut", [Cut(request=10), Cut(reply=0), Cut(reply=1), Cut(reply=4)])
def test_a_write_that_is_cut_is_applied_once_and_answered_what_it_did(
    remote: RemoteStorage, proxy: Proxy, store: RemoteStorage, cut: Cut
) -> None:
    """K2"""
    proxy.cuts["compare_and_set"] = [cut, cut]
    assert remote.compare_and_set("m", "a", "BEFORE", "AFTER") == (True, "BEFORE")
    proxy.cuts["set_all"] = [cut, cut]
    assert remote.set_all("a", START) == 1
    assert proxy.methods == ["compare_and_set"] * 3 + ["set_all"] * 3
    assert store.get("m", "a") == START


def test_a_write_that_is_repeated_does_not_undo_anothers(
    remote: RemoteStorage, proxy: Proxy, store: RemoteStorage
) -> None:
    """K2: the other one comes between the first attempt and the second."""

    async def keep(_: StreamWriter, __: bytes) -> None:
        proxy.write_reply = write_all
        await asyncio.get_running_loop().run_in_executor(None, store.set, "m", "a", "OTHER")
        raise ConnectionResetError

    proxy.write_reply = keep
    remote.set("m", "a", "AFTER")
    assert proxy.methods == ["set", "set"]
    assert store.get("m", "a") == "OTHER"


def test_a_write_is_applied_once_across_a_restart(daemon: Daemon) -> None:
    """K2"""
    with Proxy(daemon.address) as proxy, RemoteStorage(proxy.address) as remote:
        remote.set("m", "a", "BEFORE")

        async def restart(_: StreamWriter, __: bytes) -> None:
            proxy.write_reply = write_all
            await asyncio.get_running_loop().run_in_executor(None, daemon.kill)
            await asyncio.get_running_loop().run_in_executor(None, daemon.start)
            raise ConnectionResetError

        proxy.write_reply = restart
        assert remote.compare_and_set("m", "a", "BEFORE", "AFTER") == (True, "BEFORE")
        assert proxy.methods == ["set", "compare_and_set", "compare_and_set"]


def without_sessions(answer: Callable[[str], tuple[Any, Any]]) -> Server:
    """A server that knows none, and answers anything but a `hello` with `answer(method)`."""
    return answers(lambda method, _: (None, WELCOME) if method == "hello" else answer(method))


def test_where_there_are_no_sessions_a_compare_and_set_that_is_cut_is_uncertain_and_not_repeated() -> None:
    methods = []

    def hang_up(method: str) -> tuple[Any, Any]:
        methods.append(method)
        raise ConnectionResetError

    with without_sessions(hang_up) as server, RemoteStorage(server.address, write_deadline=0.3) as storage:
        with pytest.raises(Uncertain, match="compare_and_set may have been applied"):
            storage.compare_and_set("m", "a", "BEFORE", "AFTER")
        assert methods == ["compare_and_set"]
        with pytest.raises(Uncertain, match=r"set may have been applied"):
            storage.set("m", "a", "AFTER")
        assert "set" in methods


def test_a_write_that_was_sent_in_a_session_that_is_lost_is_uncertain_and_the_next_is_not() -> None:
    sessions, writes = iter([7, 8, 8]), []

    def answer(method: str, params: list[Any]) -> tuple[Any, Any]:
        if method == "hello":
            return None, WELCOME | {"features": ["sessions"], "session": next(sessions)}
        writes.append(params)
        if len(writes) == 1:
            raise ConnectionResetError
        return None, None

    with answers(answer) as server, RemoteStorage(server.address) as storage:
        with pytest.raises(Uncertain, match="the session in which it was sent is lost"):
            storage.set("m", "a", "A")
        storage.set("m", "a", "B")
    assert writes == [["m", "a", "A", {"seq": 1, "oldest": 1}], ["m", "a", "B", {"seq": 2, "oldest": 2}]]


@pytest.mark.parametrize("outage", [nobody, hanging_up])
def test_a_compare_and_set_that_could_not_be_sent_is_not_uncertain(
    outage: Callable[[], AbstractContextManager[str]],
) -> None:
    with (
        outage() as address,
        RemoteStorage(address, write_deadline=0.1) as storage,
        pytest.raises(Unavailable),
    ):
        storage.compare_and_set("m", "a", START, "A")


@pytest.mark.parametrize(
    "write",
    [
        lambda storage: storage.set("m", "a", "AFTER"),
        lambda storage: storage.set_many([("m", "a", "AFTER")]),
        lambda storage: storage.set_all("a", "AFTER"),
        lambda storage: storage.compare_and_set("m", "a", "BEFORE", "AFTER"),
    ],
)
@pytest.mark.parametrize("first_bytes", [b"", b"\x94\x01"])
def test_a_write_whose_answer_comes_too_late_is_uncertain(
    remote: RemoteStorage,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    first_bytes: bytes,
    write: Callable[[RemoteStorage], None],
) -> None:
    """It has been applied, whether the deadline passes while nothing comes or between two bytes of the answer."""
    late = 0.0
    monkeypatch.setattr(
        "statestore.deadline.time", SimpleNamespace(monotonic=lambda: time.monotonic() + late, sleep=time.sleep)
    )

    async def too_late(writer: StreamWriter, _: bytes) -> None:
        nonlocal late
        late += 1000.0
        writer.write(first_bytes)

    monkeypatch.setattr("statestore.calls.FIRST_PATIENCE", 0.3)  # then it is looked how late it is
    proxy.write_reply = too_late
    with pytest.raises(Uncertain):
        write(remote)
    proxy.write_reply = write_all
    assert once_back(lambda: remote.get("m", "a")) == "AFTER"


def test_a_write_that_is_always_cut_is_uncertain(remote: RemoteStorage, proxy: Proxy, store: RemoteStorage) -> None:
    proxy.cuts["set"] = [Cut(reply=0)] * 1000
    remote._settings = replace(remote._settings, write_deadline=0.2)
    with pytest.raises(Uncertain, match="set may have been applied"):
        remote.set("m", "a", "AFTER")
    assert store.get("m", "a") == "AFTER"


def test_a_write_that_was_cut_stays_uncertain_whatever_is_there_afterwards() -> None:
    """One store took the request, then another stood at its address."""
    hellos = []

    def answer(method: str, _: list[Any]) -> tuple[None, Any]:
        if method != "hello":
            raise ConnectionResetError
        hellos.append(method)
        return None, WELCOME | {"store_id": f"s{len(hellos)}"}

    with answers(answer) as server, RemoteStorage(server.address) as storage, pytest.raises(Uncertain):
        storage.set("m", "a", "A")


def test_garbage_in_place_of_an_answer_leaves_a_write_uncertain(remote: RemoteStorage, proxy: Proxy) -> None:
    async def garbage(writer: StreamWriter, _: bytes) -> None:
        writer.write(b"\xc1\xc1\xc1")

    proxy.write_reply = garbage
    remote._settings = replace(remote._settings, write_deadline=0.3)
    with pytest.raises(Uncertain):
        remote.compare_and_set("m", "a", "BEFORE", "AFTER")


def test_after_the_machine_was_suspended_writes_are_not_too_late() -> None:
    """The server's clock went on meanwhile, and ours did not; nor do the connections that were idle know of it."""
    suspended = 0.0
    with (
        punctual(lambda: time.monotonic() + suspended) as server,
        RemoteStorage(server.address, write_deadline=20) as storage,
        ThreadPoolExecutor(4) as threads,
    ):
        connect_at_once(storage, 4)
        suspended = 3600.0
        list(threads.map(lambda number: storage.set("m", str(number), "A"), range(20)))
        assert 4 < server.connections <= 8


# Another store


def test_another_store_at_the_same_address_is_refused_at_once(daemon: Daemon, tmp_path: Path) -> None:
    with RemoteStorage(daemon.address) as storage:
        storage.set("m", "a", "A")
        expected = storage.info()["store_id"]
        daemon.stop()
        other = Daemon(tmp_path / "other")
        other.directory.mkdir()
        other.address = daemon.address
        with other, RemoteStorage(other.address) as newcomer:
            found = newcomer.info()["store_id"]
            for _ in range(2):
                with at_once(), pytest.raises(Unavailable) as caught:
                    storage.get("m", "a")
                assert f"the store {found} answers where {expected} was expected" in caught.value.detail
            with pytest.raises(Unavailable):
                storage.set("m", "a", "B")
            assert newcomer.count() == 0
        daemon.start()
        assert storage.get("m", "a") == "A"


def test_a_store_can_be_named_beforehand(shared_daemon: Daemon, store: RemoteStorage) -> None:
    store_id = store.info()["store_id"]
    with RemoteStorage(shared_daemon.address, namespace=store._settings.namespace, store_id=store_id) as ours:
        ours.set("m", "a", "A")
    another = RemoteStorage(shared_daemon.address, namespace=store._settings.namespace, store_id="another")
    with at_once(), pytest.raises(Unavailable, match="answers where another was expected"):
        another.get("m", "a")


def test_two_stores_behind_one_list_of_addresses_are_found_out(
    daemon: Daemon, shared_daemon: Daemon, store: RemoteStorage
) -> None:
    addresses = f"{daemon.address},{shared_daemon.address}"
    with RemoteStorage(addresses, namespace=store._settings.namespace) as storage:
        storage.set("m", "a", "A")
        daemon.stop()
        with at_once(), pytest.raises(Unavailable, match="was expected"):
            storage.get("m", "a")
    assert store.count() == 0


# The log


def test_the_log_has_one_line_when_the_store_goes_and_one_when_it_is_back(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "statestore"), RemoteStorage(daemon.address, deadline=0.5) as storage:
        storage.get("m", "a")
        for _ in range(2):
            caplog.clear()
            daemon.stop()
            for _ in range(3):
                with pytest.raises(Unavailable):
                    storage.get("m", "secret@b.example")
            (gone,) = caplog.records
            assert gone.levelno == logging.WARNING
            assert gone.getMessage().startswith(f"state store unavailable: {daemon.address}: connection refused")
            assert "secret" not in gone.getMessage()
            daemon.start()
            once_back(lambda: storage.get("m", "a"))
            storage.get("m", "a")
            assert caplog.messages[1:] == [f"state store is back: {daemon.address}"]


def test_a_call_that_was_refused_says_nothing_about_the_store(
    store: RemoteStorage, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StateStoreError):
        store.get("m", "x" * 5000)
    assert caplog.messages == []


def test_the_answer_to_a_read_ends_an_outage_that_began_while_it_was_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else a later call would be given up at once, though the store had answered a moment ago."""
    asked, may_answer = threading.Event(), asyncio.Event()

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        if server.connections > 1:
            return  # a second connection gets no answer to its `hello`
        messages = Messages(reader)
        await messages.read()
        writer.write(msgpack.packb([1, 1, None, WELCOME]))
        while True:
            _, number, method, _ = msgpack.unpackb(await messages.read())
            if method == "get":
                asked.set()
                await may_answer.wait()
            writer.write(msgpack.packb([1, number, None, "POSTING" if method == "get" else None]))

    with (
        Server(serve) as server,
        RemoteStorage(server.address, deadline=PATIENCE, write_deadline=WRITE_DEADLINE) as storage,
        ThreadPoolExecutor(1) as threads,
    ):
        storage.ping()
        reading = threads.submit(storage.get, "m", "a")
        assert asked.wait(PATIENCE)
        with pytest.raises(Unavailable):
            storage.set("m", "a", "A")
        assert storage._store.outage is not None
        server.in_loop(may_answer.set)
        assert reading.result(PATIENCE) == "POSTING"
        assert storage._store.outage is None
        assert caplog.messages[1:] == [f"state store is back: {server.address}"]


def test_where_salmon_is_loaded_the_log_still_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There `str(error)` is for the mail's sender, and the log is all that the site has."""
    salmon_server = ModuleType("salmon.server")
    salmon_server.SMTPError = type("SMTPError", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "salmon.server", salmon_server)
    with says(b"HTTP/1.1 400 Bad Request\r\n") as server, RemoteStorage(server.address) as storage:
        with pytest.raises(Unavailable) as caught:
            storage.get("m", "a")
        assert str(caught.value).startswith("451 ")
        assert caught.value.detail == f"{server.address}: what answers is not statestored but an HTTP server"
        assert caplog.messages == [f"state store unavailable: {caught.value.detail}"]
