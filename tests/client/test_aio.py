"""`AsyncRemoteStorage`: the answers of a real daemon, to many coroutines that come, go and are cancelled."""

import asyncio
import math
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

from statestore import (
    START,
    AsyncRemoteStorage,
    BadRequest,
    Entry,
    Forbidden,
    RemoteStorage,
    StateStoreError,
    Swap,
    TooLong,
    Unauthorized,
    Unavailable,
    Uncertain,
)
from statestore.address import Address
from statestore.aio_connection import AsyncConnection, connect
from statestore.calls import Call
from tests.client.scripts import run_script
from tests.client.servers import (
    PATIENCE,
    WELCOME,
    Severing,
    answers,
    black_hole,
    dripping_after_the_hello,
    dripping_from_the_first_byte,
    hanging_look_up,
    hanging_up,
    nobody,
    punctual,
    refused,
    says,
    silent,
    silent_after_the_hello,
)
from tests.client.timing import READ_DEADLINE, WRITE_DEADLINE, at_once, takes
from tests.daemon import Daemon
from tests.server.waiting import eventually

TASKS = 100
OPERATIONS = 20_000
SEED = 20

Storages = Callable[..., AsyncRemoteStorage]


@asynccontextmanager
async def storage_at(address: str, **settings: Any) -> AsyncIterator[AsyncRemoteStorage]:
    async with AsyncRemoteStorage(address, **settings) as storage:
        yield storage


async def in_all_tasks(work: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(TASKS):
            tasks.create_task(work(number))


# What it is


@pytest.mark.parametrize(
    "settings",
    [
        {"address": ""},
        {"address": "mx.example:port"},
        {"deadline": 0},
        {"deadline": float("nan")},
        {"write_deadline": float("inf")},
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"address|deadline"):
        AsyncRemoteStorage(**settings)


def test_a_repr_says_where_but_not_the_token() -> None:
    storage = AsyncRemoteStorage("mx.example, unix:/run/s", namespace="shop", token="a-secret")
    assert repr(storage) == "<AsyncRemoteStorage mx.example:7828,unix:/run/s namespace='shop'>"


def test_importing_the_package_does_not_import_asyncio() -> None:
    script = """
        import sys, statestore
        assert "asyncio" not in sys.modules
        from statestore import AsyncRemoteStorage
        assert "asyncio" in sys.modules
        try:
            statestore.nothing
        except AttributeError as error:
            print(error)
    """
    assert run_script(script) == "module 'statestore' has no attribute 'nothing'\n"


def test_it_has_what_the_storage_for_threads_has() -> None:
    def public(cls: type) -> set[str]:
        return {name for name in vars(cls) if not name.startswith("_")} - {"after_fork_in_child"}

    assert public(AsyncRemoteStorage) == public(RemoteStorage)


async def test_results_are_of_the_types_that_are_promised(shared_daemon: Daemon, namespace: str) -> None:
    async with storage_at(shared_daemon.address, namespace=namespace) as store:
        await store.set_many([("m", "a", "A"), ("m", None, "A"), ("n", "a", "B")])
        swap = await store.compare_and_set("n", "a", "B", "C")
        assert isinstance(swap, Swap)
        assert swap == (True, "B")
        entries = sorted([entry async for entry in store.scan("m", "a")])
        assert isinstance(entries[0], Entry)
        assert entries == [("m", "a", "A", entries[0].day)]
        assert await store.get_many(iter([("m", None), ("n", "a"), ("x", "a")])) == ["A", "C", START]
        assert await store.count("m", "A") == 2
        assert await store.counts() == {("m", "A"): 2, ("n", "C"): 1}
        assert await store.set_all("a", START) == 2
        assert (await store.info())["connections"] >= 1
        await store.ping()
        await store.clear()
        assert await store.count() == 0


async def test_all_share_one_connection(daemon: Daemon) -> None:
    async with storage_at(daemon.address) as storage:
        await in_all_tasks(lambda number: storage.set("m", str(number), "A"))
        info = await storage.info()
        assert (info["connections"], info["connections_total"]) == (1, 1)


async def test_a_scan_of_many_pages(shared_daemon: Daemon, namespace: str) -> None:
    async with storage_at(shared_daemon.address, namespace=namespace) as store:
        senders = [f"{number}@b.example" for number in range(5000)]
        for start in range(0, len(senders), 1000):
            await store.set_many([("m", sender, "A") for sender in senders[start : start + 1000]])
        assert sorted([entry.sender async for entry in store.scan()]) == sorted(senders)


@pytest.mark.parametrize("as_salmon_sees_it", [False, True])
async def test_the_errors_are_those_of_the_other_storage(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, as_salmon_sees_it: bool
) -> None:
    smtp_error = type("SMTPError", (Exception,), {})
    if as_salmon_sees_it:
        salmon_server = ModuleType("salmon.server")
        salmon_server.SMTPError = smtp_error  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "salmon.server", salmon_server)
    async with storage_at(daemon.address) as store, storage_at(refused(), deadline=0.1) as nowhere:
        for error, call in {
            TooLong: lambda: store.get("m", "x" * 5000),
            BadRequest: lambda: store.set("m", "a", 5),  # type: ignore[arg-type]
            Unavailable: lambda: nowhere.get("m", "a"),
        }.items():
            with pytest.raises(error) as caught:
                await call()
            assert isinstance(caught.value, smtp_error) == as_salmon_sees_it
        with pytest.raises(BadRequest):
            store.scan(5)  # type: ignore[arg-type]
        with pytest.raises(TooLong) as caught:
            await store.set_many([("m", f"{number}@{'x' * 3000}", "A") for number in range(1000)])
        assert "ask in parts" in caught.value.detail


async def test_a_token_is_given_and_a_wrong_one_refused_at_once(tmp_path: Path) -> None:
    with Daemon(tmp_path, environment={"STATESTORED_TOKEN": "open sesame, please"}) as daemon:
        async with storage_at(daemon.address, token="open sesame, please") as storage:
            await storage.set("m", "a", "A")
            with pytest.raises(Forbidden):
                await storage.clear()
        async with storage_at(daemon.address, token="open barley") as storage:
            for _ in range(2):
                with at_once(), pytest.raises(Unauthorized):
                    await storage.get("m", "a")


# Cancelling


class Customer:
    """One of many, with senders of its own: what it reads can only be what it wrote.

    is_safe: no write is applied late, so that what was read after a cancelled write stays so.
    """

    def __init__(self, storage: AsyncRemoteStorage, name: str, *, is_safe: bool) -> None:
        self.storage = storage
        self.name = name
        self.is_safe = is_safe
        self.possible = {START}
        self.random = random.Random(f"{SEED} {name}")
        self.cancelled = 0
        self._count = 0

    async def call(self) -> None:
        new = f"{self.name}-{self._count}"
        self._count += 1
        match self.random.choice(["get", "get_many", "set", "set_many", "compare_and_set"]):
            case "get":
                self.saw(await self.unless_cancelled(self.storage.get("m", self.name)))
            case "get_many":
                states = await self.unless_cancelled(self.storage.get_many([("m", self.name), ("n", "nobody")]))
                if states is not None:
                    assert states[1:] == [START]
                    self.saw(states[0])
            case "compare_and_set":
                expected = self.random.choice(sorted(self.possible))
                self.possible.add(new)
                swap = await self.unless_cancelled(self.storage.compare_and_set("m", self.name, expected, new))
                if swap is not None:
                    assert swap.swapped == (swap.previous == expected)
                    self.possible.discard(new)
                    self.saw(swap.previous)
                    if swap.swapped:
                        self.possible = {new}
            case method:
                self.possible.add(new)
                call = self.storage.set("m", self.name, new)
                if method == "set_many":
                    call.close()
                    call = self.storage.set_many([("m", self.name, new)])
                if await self.unless_cancelled(call, done=True):
                    self.possible = {new}

    async def unless_cancelled(self, call: Coroutine[Any, Any, Any], *, done: Any = None) -> Any:
        """What it gave (`done` in its place); None where it was cancelled before."""
        if self.random.random() < 0.6:
            return await call if done is None else (await call, done)[1]
        task = asyncio.ensure_future(call)
        for _ in range(self.random.randrange(8)):
            await asyncio.sleep(0)
        task.cancel()
        try:
            result = await task
        except asyncio.CancelledError:
            self.cancelled += 1
            return None
        return result if done is None else done

    def saw(self, state: str | None) -> None:
        if state is None:
            return
        assert state in self.possible
        if self.is_safe:
            self.possible = {state}


async def test_cancelling_disturbs_nobody(shared_daemon: Daemon, namespace: str) -> None:
    async with storage_at(shared_daemon.address, namespace=namespace) as storage:
        customers = [Customer(storage, f"{number}@b.example", is_safe=True) for number in range(TASKS)]

        async def work(number: int) -> None:
            for _ in range(OPERATIONS // TASKS):
                await customers[number].call()

        await in_all_tasks(work)
        assert sum(each.cancelled for each in customers) > OPERATIONS / 20
        assert storage._store.session.unanswered == {}
        connection = storage._connection
        assert connection is not None
        await eventually(lambda: connection._asked == connection._unsent == {})  # what was cancelled is answered, too


async def test_cancelling_while_connections_break_disturbs_nobody(shared_daemon: Daemon, namespace: str) -> None:
    randomly = random.Random(SEED)
    with Severing(shared_daemon.address, lambda: randomly.randrange(300, 60_000)) as severing:
        async with storage_at(severing.address, namespace=namespace, deadline=20.0) as storage:
            customers = [Customer(storage, f"{number}@b.example", is_safe=False) for number in range(TASKS)]

            async def work(number: int) -> None:
                for _ in range(40):
                    await customers[number].call()

            await in_all_tasks(work)
            assert severing.connections > 5
            assert storage._store.session.unanswered == {}


async def test_a_write_that_was_cancelled_does_not_hold_up_the_numbers() -> None:
    """Its number counts as given up: the next write's `oldest` is above it, so that a late copy is refused."""
    sent: list[dict[str, Any]] = []

    def answer(method: str, params: list[Any]) -> tuple[None, Any]:
        if method == "set":
            sent.append(params[-1])
        return None, WELCOME | {"session": 7, "features": ["sessions"]} if method == "hello" else None

    with answers(answer) as server:
        async with storage_at(server.address) as storage:
            await storage.ping()
            writing = asyncio.create_task(storage.set("m", "a", "A"))
            await eventually(lambda: sent)
            writing.cancel()
            await asyncio.wait([writing])
            await storage.set("m", "a", "B")
        first, second = sent
        assert (first["seq"], first["oldest"]) == (1, 1)
        assert second["oldest"] == second["seq"] > 1


async def test_who_waits_for_a_connection_can_be_cancelled_and_the_others_go_on(daemon: Daemon) -> None:
    daemon.stop()
    async with storage_at(daemon.address, deadline=20.0) as storage:
        waiting = [asyncio.create_task(storage.get("m", str(number))) for number in range(TASKS)]
        await asyncio.sleep(0)
        for each in waiting[::2]:
            each.cancel()
        await asyncio.to_thread(daemon.start)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert results[1::2] == [START] * (TASKS // 2)
        assert all(isinstance(each, asyncio.CancelledError) for each in results[::2])


async def test_who_was_to_find_out_whether_the_store_is_back_may_be_cancelled() -> None:
    """Another does it then, at once."""

    def finding_out() -> object:
        outage = storage._store.outage
        return outage and outage._turn._taken.get("by")

    with says(b"") as server:
        async with storage_at(server.address) as storage:
            calls = [asyncio.create_task(storage.get("m", "a")) for _ in range(2)]
            await eventually(finding_out)
            first = finding_out()
            calls[0].cancel()
            with at_once():
                await eventually(lambda: finding_out() not in (None, first))
            await eventually(lambda: server.connections)
            calls[1].cancel()
            await asyncio.wait(calls)


# Once


async def test_a_write_that_finds_no_room_until_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statestore.aio.WRITES_AT_ONCE", 2)
    with silent_after_the_hello() as address:
        async with storage_at(address, write_deadline=WRITE_DEADLINE) as storage:
            calls = (storage.set("m", str(number), "A") for number in range(4))
            with takes(WRITE_DEADLINE):
                results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(each) for each in results] == [Uncertain, Uncertain, Unavailable, Unavailable]
            assert "2 other writes had no answer for 0.7 s" in str(results[-1])


async def test_a_task_that_is_cancelled_can_still_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to Python 3.11.3 `asyncio.timeout` raises CancelledError there, in place of TimeoutError."""
    monkeypatch.setattr("statestore.aio.WRITES_AT_ONCE", 1)
    async with storage_at("127.0.0.1:1", write_deadline=0.2) as storage:
        storage._enter_loop()
        await storage._room.acquire()
        ended: list[BaseException] = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    await storage.set("m", "a", "A")
                except BaseException as error:
                    ended.append(error)

        working = asyncio.create_task(work())
        await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait([working])
        assert [type(error) for error in ended] == [Unavailable]


async def test_each_write_is_applied_once_however_connections_break(shared_daemon: Daemon, namespace: str) -> None:
    """Each counts on by itself: applied twice, or never, a swap would find another state than the last."""
    randomly = random.Random(SEED)
    with Severing(shared_daemon.address, lambda: randomly.randrange(300, 40_000)) as severing:
        async with storage_at(severing.address, namespace=namespace) as storage:

            async def count(number: int) -> None:
                state = START
                for step in range(40):
                    assert await storage.compare_and_set("m", str(number), state, f"{step}") == (True, state)
                    state = f"{step}"

            await in_all_tasks(count)
            assert severing.connections > 5
            assert await storage.count("m", "39") == TASKS


async def test_more_writes_at_once_than_a_session_bears_take_turns(shared_daemon: Daemon, namespace: str) -> None:
    async with storage_at(shared_daemon.address, namespace=namespace) as storage:
        with patch.object(Call, "failed") as failed:
            await asyncio.gather(*(storage.set("m", str(number), "A") for number in range(3000)))
        failed.assert_not_called()
        assert await storage.count("m", "A") == 3000


# Outages


async def test_a_restart_within_the_deadline_is_invisible(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    async with storage_at(daemon.address, deadline=20.0) as storage:
        is_over = False

        async def count(number: int) -> None:
            state, step = START, 0
            while not is_over or step < 20:
                step += 1
                assert await storage.compare_and_set("m", str(number), state, f"{step}") == (True, state)
                state = f"{step}"
                assert await storage.get("m", str(number)) == state

        working = asyncio.create_task(in_all_tasks(count))
        await eventually(lambda: storage._connection)
        for stop in (daemon.stop, daemon.kill):
            await asyncio.to_thread(stop)
            await asyncio.to_thread(daemon.start)
        is_over = True
        await working
    assert caplog.messages == []


async def once_back(call: Callable[[], Coroutine[Any, Any, str]]) -> str:
    """What it answers as soon as a store that was away for long is found again."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(Unavailable):
                return await call()
            await asyncio.sleep(0.01)


@contextmanager
def no_name_server() -> Iterator[str]:
    with hanging_look_up():
        yield "states.example:7828"


@pytest.mark.parametrize(
    ("outage", "error"),
    [
        (nobody, Unavailable),
        (black_hole, Unavailable),
        (silent, Unavailable),
        (hanging_up, Unavailable),
        (no_name_server, Unavailable),
        (silent_after_the_hello, Uncertain),
        (dripping_from_the_first_byte, Unavailable),
        (dripping_after_the_hello, Uncertain),
    ],
)
async def test_a_call_ends_at_its_deadline(
    outage: Callable[[], AbstractContextManager[str]], error: type[StateStoreError]
) -> None:
    with outage() as address:
        async with storage_at(address, deadline=READ_DEADLINE, write_deadline=WRITE_DEADLINE) as storage:
            with takes(READ_DEADLINE), pytest.raises(Unavailable) as caught:
                await storage.get("m", "a")
            assert caught.value.detail.startswith(f"{address}: ")
            assert caught.value.detail.endswith("gave up after 0.4 s")
        async with storage_at(address, deadline=READ_DEADLINE, write_deadline=WRITE_DEADLINE) as storage:
            with takes(WRITE_DEADLINE), pytest.raises(error, match=r"gave up after 0\.7 s"):
                await storage.set("m", "a", "A")


async def test_a_daemon_that_stands_still_is_given_up_at_the_deadline(daemon: Daemon) -> None:
    async with storage_at(daemon.address, deadline=READ_DEADLINE, write_deadline=WRITE_DEADLINE) as storage:
        await storage.set("m", "a", "A")
        daemon.send_signal(signal.SIGSTOP)
        with takes(READ_DEADLINE), pytest.raises(Unavailable):
            await storage.get("m", "a")
        with takes(WRITE_DEADLINE), pytest.raises((Unavailable, Uncertain)):
            await storage.set("m", "a", "B")
        daemon.send_signal(signal.SIGCONT)
        assert await once_back(lambda: storage.get("m", "a")) in ("A", "B")


async def test_the_next_address_is_tried(shared_daemon: Daemon, namespace: str) -> None:
    with black_hole() as hole:
        addresses = f"{refused()},{hole},{shared_daemon.address}"
        async with storage_at(addresses, namespace=namespace, deadline=2.0) as storage:
            await storage.set("m", "a", "A")
            assert await storage.get("m", "a") == "A"


def count_attempts(monkeypatch: pytest.MonkeyPatch) -> list[Address]:
    """Where it was tried to connect."""
    attempts: list[Address] = []

    async def note_and_connect(address: Address, *arguments: Any) -> AsyncConnection:
        attempts.append(address)
        return await connect(address, *arguments)

    monkeypatch.setattr("statestore.aio.connect", note_and_connect)
    return attempts


async def test_while_the_store_is_known_to_be_away_calls_fail_at_once_and_few_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = count_attempts(monkeypatch)
    async with storage_at(refused(), deadline=0.2) as storage:
        with pytest.raises(Unavailable):
            await storage.get("m", "a")
        await eventually(lambda: storage._store.outage and time.monotonic() - storage._store.outage.since > 0.3)
        attempts.clear()

        async def fail(number: int) -> None:
            for _ in range(20):
                with pytest.raises(Unavailable, match="connection refused"):
                    await storage.get("m", str(number))

        started = time.monotonic()
        await in_all_tasks(fail)
        assert time.monotonic() - started < 20 * 0.2 / 2  # else they would have waited for their deadlines
        assert len(attempts) <= 3


async def test_after_the_machine_was_suspended_writes_are_not_too_late() -> None:
    """The server's clock went on meanwhile, and ours did not."""
    suspended = 0.0
    with punctual(lambda: time.monotonic() + suspended) as server:
        async with storage_at(server.address, write_deadline=20.0) as storage:
            await storage.set("m", "a", "A")
            suspended = 3600.0
            await in_all_tasks(lambda number: storage.set("m", str(number), "A"))
            assert server.connections == 2


async def test_a_store_that_cannot_write_now_is_not_asked_on_ever_new_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("statestore.renewal.PAUSE", (1000.0, 1000.0))
    refusals = iter(range(2 * TASKS))

    def answer(method: str, _: list[Any]) -> tuple[str | None, Any]:
        if method == "hello":
            return None, WELCOME
        return None if next(refusals, None) is None else "unavailable: no disk", None

    with answers(answer) as server:
        async with storage_at(server.address) as storage:
            await in_all_tasks(lambda number: storage.set("m", str(number), "A"))
            assert server.connections == 1


async def test_another_store_is_refused_at_once(daemon: Daemon, tmp_path: Path) -> None:
    async with storage_at(daemon.address) as storage:
        await storage.set("m", "a", "A")
        expected = (await storage.info())["store_id"]
        await asyncio.to_thread(daemon.stop)
        other = Daemon(tmp_path / "other")
        other.directory.mkdir()
        other.address = daemon.address
        with other:
            for _ in range(2):
                with at_once(), pytest.raises(Unavailable, match=f"answers where {expected} was expected"):
                    await storage.get("m", "a")
        await asyncio.to_thread(daemon.start)
        assert await storage.get("m", "a") == "A"
    async with storage_at(daemon.address, store_id="another") as storage:
        with at_once(), pytest.raises(Unavailable, match="answers where another was expected"):
            await storage.get("m", "a")


async def is_back(storage: AsyncRemoteStorage) -> None:
    """Asks until the store is there, which is looked for about once a second."""
    while True:
        try:
            return await storage.ping()
        except Unavailable:
            await asyncio.sleep(0.01)


async def test_the_log_has_one_line_when_the_store_goes_and_one_when_it_is_back(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    async with storage_at(daemon.address, deadline=0.1) as storage:
        await storage.get("m", "a")
        await asyncio.to_thread(daemon.stop)
        for _ in range(3):
            results = await asyncio.gather(*(storage.get("m", "secret") for _ in range(5)), return_exceptions=True)
            assert [type(each) for each in results] == [Unavailable] * 5
        (gone,) = caplog.messages
        assert gone.startswith(f"state store unavailable: {daemon.address}: connection refused")
        assert "secret" not in gone
        await asyncio.to_thread(daemon.start)
        await is_back(storage)
        await asyncio.gather(*(storage.get("m", "a") for _ in range(5)))
        assert caplog.messages[1:] == [f"state store is back: {daemon.address}"]


# Loops, forks, endings


def test_it_can_be_used_in_one_loop_after_the_other(shared_daemon: Daemon, namespace: str) -> None:
    storage = AsyncRemoteStorage(shared_daemon.address, namespace=namespace)

    async def use(state: str) -> None:
        async with storage:
            await storage.set("m", "a", state)
            assert await storage.get("m", "a") == state

    for state in "AB":
        asyncio.run(use(state))


def test_writes_that_a_closed_loop_has_broken_off_do_not_hold_up_the_numbers_in_the_next() -> None:
    numbers: list[tuple[int, int]] = []

    def answer(method: str, params: list[Any]) -> tuple[str | None, Any]:
        if method == "hello":
            return None, WELCOME | {"features": ["sessions"], "session": 7}
        if method == "set":
            numbers.append((params[-1]["seq"], params[-1]["oldest"]))
        return None, None

    async def break_off(storage: AsyncRemoteStorage) -> None:
        """As if a write were under way when the loop is closed: its number stays."""
        await storage.ping()
        storage._store.session.number("broken off")
        assert storage._connection is not None
        storage._connection.close()
        await storage._connection.wait_closed()

    async def write(storage: AsyncRemoteStorage) -> None:
        async with storage:
            await storage.set("m", "a", "A")

    with answers(answer) as server:
        storage = AsyncRemoteStorage(server.address)
        asyncio.run(break_off(storage))
        asyncio.run(write(storage))
    assert numbers == [(2, 2)]
    assert storage._store.session.unanswered == {}


async def test_it_cannot_be_used_in_two_loops_at_once(shared_daemon: Daemon, namespace: str) -> None:
    async with storage_at(shared_daemon.address, namespace=namespace) as storage:
        await storage.set("m", "a", "A")
        with pytest.raises(BadRequest, match="another event loop"):
            await asyncio.to_thread(asyncio.run, storage.get("m", "a"))
        assert await storage.get("m", "a") == "A"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_has_a_connection_and_a_session_of_its_own(daemon: Daemon) -> None:
    script = """
        import asyncio, os, sys
        from statestore import AsyncRemoteStorage

        storage = AsyncRemoteStorage(sys.argv[1])
        loop = asyncio.new_event_loop()

        async def child():
            async with storage:
                await storage.set("m", "child", "A")
                info = await storage.info()
                return info["connections"], storage._store.session.id

        async def parent():
            await storage.set("m", "parent", "A")
            ours = storage._store.session.id
            if (pid := os.fork()) == 0:
                return None
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
            assert await storage.get("m", "child") == "A"
            for _ in range(100):
                await storage.set("m", "parent", "B")
            info = await storage.info()
            assert info["connections_total"] == 2, info
            await storage.close()
            return ours

        ours = loop.run_until_complete(parent())
        if ours is None:
            sessions = storage._store.session
            connections, theirs = asyncio.run(child())
            assert connections == 2, connections
            os._exit(0)
        print(ours > 0)
        loop.close()
    """
    assert run_script(script, daemon.address) == "True\n"


@pytest.mark.parametrize(("outage", "error"), [(silent_after_the_hello, Uncertain), (black_hole, Unavailable)])
async def test_closing_ends_what_is_under_way_and_leaves_nothing(
    outage: Callable[[], AbstractContextManager[str]], error: type[StateStoreError], caplog: pytest.LogCaptureFixture
) -> None:
    with outage() as address:
        storage = AsyncRemoteStorage(address)
        reading = asyncio.create_task(storage.get("m", "a"))
        writing = asyncio.create_task(storage.set("m", "a", "A"))
        if outage == silent_after_the_hello:
            await eventually(lambda: storage._connection and len(storage._connection._asked) == 2)
            await asyncio.sleep(0)
        else:
            await eventually(lambda: storage._attempt)
        connection = storage._connection
        with at_once():
            await storage.close()
            assert connection is None or connection._closed.is_set()
            for call, expected in ((reading, Unavailable), (writing, error)):
                with pytest.raises(expected, match="the client was closed"):
                    await call
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert caplog.messages == []


async def test_what_waits_for_another_attempt_or_for_room_ends_with_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not connect anew afterwards."""
    monkeypatch.setattr("statestore.aio.WRITES_AT_ONCE", 2)
    attempts = count_attempts(monkeypatch)
    storage = AsyncRemoteStorage(refused())
    waiting = [asyncio.create_task(storage.set("m", str(number), "A")) for number in range(5)]
    await eventually(lambda: storage._store.outage and storage._store.outage.since < math.inf)
    await storage.close()
    so_far = len(attempts)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in results] == [Unavailable] * 5
    assert all("the client was closed" in str(each) for each in results)
    assert len(attempts) == so_far


async def test_a_call_may_begin_while_the_client_is_being_closed() -> None:
    with says(b"") as server:
        storage = AsyncRemoteStorage(server.address)
        before = asyncio.create_task(storage.get("m", "a"))
        await eventually(lambda: server.connections == 1)
        closing = asyncio.create_task(storage.close())
        await asyncio.sleep(0)
        after = asyncio.create_task(storage.get("m", "a"))
        await closing
        with pytest.raises(Unavailable, match="the client was closed"):
            await before
        await eventually(lambda: server.connections == 2)
        assert not after.done()
        await storage.close()
        with pytest.raises(Unavailable, match="the client was closed"):
            await after


async def test_a_client_that_was_closed_connects_anew(shared_daemon: Daemon, namespace: str) -> None:
    storage = AsyncRemoteStorage(shared_daemon.address, namespace=namespace)
    for state in "AB":
        await storage.set("m", "a", state)
        await storage.close()
        await storage.close()
    assert await storage.get("m", "a") == "B"
    await storage.close()


@pytest.mark.parametrize("step", ["connect", "Call.parameters"])
async def test_a_fault_of_ours_is_a_store_that_is_away_as_well(shared_daemon: Daemon, step: str) -> None:
    """Any other exception would make Salmon answer 250 to a mail that nobody handled."""
    async with storage_at(shared_daemon.address) as storage:
        with patch(f"statestore.aio.{step}", side_effect=ZeroDivisionError("x")), pytest.raises(Unavailable) as caught:
            await storage.get("m", "a")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert await storage.get("m", "a") == START
