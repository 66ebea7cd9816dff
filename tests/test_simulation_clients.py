"""The actors of simulated clients, and what they note; the storages that they use here are made up."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from statestore.base import Entry
from statestore.errors import Forbidden, StateStoreError, Unavailable
from tests.simulation.clients import READ_DEADLINE, Actor, Client
from tests.simulation.endings import LATE
from tests.simulation.history import Call, History
from tests.simulation.kernel import Kernel, Machine
from tests.simulation.plan import Event, Trouble, plan_of
from tests.simulation.reader import Reader

GET = Call("get", "s0", ("a",))
NOT_CANCELLED = replace(
    plan_of(1), senders=("s0",), cold=False, latency=0.002, cancelled=0.0, events=(Event(0.0, Trouble.CUT, 1),)
)
CANCELLED = replace(NOT_CANCELLED, cancelled=1.0)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel("test")


def _actor(kernel: Kernel, plan: Any = NOT_CANCELLED) -> Actor:
    history = History(kernel, plan)
    client = Client(history, "client0", Machine(kernel, "machine"), "10.0.0.9", None)
    history.clients_began()
    actor = Actor(history, "0x", client.process, 0)
    actor.client = client
    return actor


def _ask(actor: Actor, get: Callable[..., Awaitable[str]], call: Call = GET) -> bool:
    async def close() -> None: ...

    storage: Any = SimpleNamespace(get=get, scan=get, close=close)
    return asyncio.run(actor.ask(storage, call))


def _raising(error: Exception, kernel: Kernel | None = None, seconds: float = 0.0) -> Callable[..., Awaitable[str]]:
    async def get(*_: object) -> str:
        if kernel is not None:
            kernel.now += seconds
        raise error

    return get


def test_a_call_has_a_line_when_it_begins_and_one_when_it_ends(kernel: Kernel) -> None:
    async def get(*_: object) -> str:
        return "x"

    assert _ask(_actor(kernel), get)
    lines = [line.split(maxsplit=2)[1:] for line in kernel.trace]
    assert [rest.split(maxsplit=1) for _, rest in lines] == [["calls", "get s0 a"], ["answered", "get s0 a -> x"]]
    assert kernel.failures == []


def test_a_timeout_of_the_client_is_not_taken_for_a_cancelled_call(kernel: Kernel) -> None:
    for plan in (NOT_CANCELLED, CANCELLED):
        with pytest.raises(TimeoutError, match="leaked"):
            _ask(_actor(kernel, plan), _raising(TimeoutError("leaked")))


def test_a_call_may_be_cancelled(kernel: Kernel) -> None:
    async def get(*_: object) -> str:
        await asyncio.sleep(60)
        return "x"

    assert _ask(_actor(kernel, CANCELLED), get)
    assert kernel.failures == []
    assert "cancelled" in kernel.trace[-1]


@pytest.mark.parametrize(
    ("error", "seconds", "failures"),
    [
        (Unavailable("x"), READ_DEADLINE, 0),
        (Unavailable("x"), READ_DEADLINE + LATE - 0.001, 0),
        (Unavailable("x"), READ_DEADLINE + LATE + 0.001, 1),
        (Unavailable("x"), READ_DEADLINE - 0.001, 1),
        (Forbidden("x"), READ_DEADLINE, 1),
    ],
)
def test_an_error_at_the_wrong_time_or_of_the_wrong_kind_is_a_failure(
    kernel: Kernel, error: StateStoreError, seconds: float, failures: int
) -> None:
    actor = _actor(kernel)
    assert not _ask(actor, _raising(error, kernel, seconds))
    assert len(kernel.failures) == failures, kernel.failures


def test_each_page_of_a_scan_has_a_deadline(kernel: Kernel) -> None:
    async def _scan(pauses: Iterable[float]) -> AsyncIterator[Entry]:
        for pause in pauses:
            kernel.now += pause
            yield Entry("a", "s0", "x", 1)

    def scan_with(*pauses: float) -> Callable[..., Any]:
        return lambda: _scan(pauses)

    assert _ask(_actor(kernel), scan_with(0.9, 0.9, 0.9), Call("scan"))
    assert kernel.failures == []
    assert _ask(_actor(kernel), scan_with(0.1, 1.2, 0.1), Call("scan"))
    assert len(kernel.failures) == 1


def test_the_reader_compares_gets_with_the_other_methods(kernel: Kernel) -> None:
    entries = [Entry("a", "s0", "x", 1)]

    async def scan() -> AsyncIterator[Entry]:
        for entry in entries:
            yield entry

    async def count() -> int:
        return len(entries)

    async def get_many(pairs: list[tuple[str, str]]) -> list[str]:
        return ["x" if pair == ("a", "s0") else "START" for pair in pairs]

    storage: Any = SimpleNamespace(scan=scan, count=count, get_many=get_many)
    history = History(kernel, NOT_CANCELLED)
    reader = Reader(history, "reader", Machine(kernel, "machine"), "10.0.0.9", None)
    asyncio.run(reader._compare(storage, {("a", "s0"): "x", ("b", "s0"): "START"}))
    assert kernel.failures == []
    for gotten in ({("a", "s0"): "y"}, {("a", "s0"): "x", ("b", "s0"): "z"}):
        asyncio.run(reader._compare(storage, gotten))
        assert kernel.failures
        kernel.failures.clear()
