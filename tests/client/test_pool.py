"""The pool, over connections that the test answers for."""

import gc
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast
from unittest.mock import Mock

import pytest

from statestore import Limits, ShuttingDown, Unavailable, forks
from statestore import pool as pool_module
from statestore.calls import WRITES, Call
from statestore.connection import Connection
from statestore.deadline import Deadline
from statestore.pool import BY, Place, Pool
from statestore.protocol import ConnectionLost, Response, Welcome
from statestore.store import Store
from tests.client.scripts import run_script
from tests.client.timing import Clock
from tests.server.waiting import wait_until

PATIENCE = 20.0  # seconds after which a test has hung


class FakeConnection:
    def __init__(self, answer: Callable[[str], Any], welcome: Welcome) -> None:
        self._answer = answer
        self.welcome = welcome
        self.calls: list[str] = []
        self.is_stale = False
        self.closed = 0

    def call(self, method: str, _params: tuple[Any, ...], _deadline: Deadline | None, _patience: Any) -> Response:
        assert not self.closed
        self.calls.append(method)
        answer = self._answer(method)
        return Response(1, answer, None) if isinstance(answer, Exception) else Response(1, None, answer)

    def close(self) -> None:
        self.closed += 1


class Factory:
    """Makes connections that answer with `answer(method)`, unless `failure` says that they cannot be made."""

    def __init__(self) -> None:
        self.made: list[FakeConnection] = []
        self.answer: Callable[[str], Any] = str.upper
        self.failure: BaseException | None = None
        self.welcome = Welcome("s1", 1, Limits())

    def __call__(self, _call: Call) -> Connection:
        if self.failure is not None:
            raise self.failure
        self.made.append(FakeConnection(lambda method: self.answer(method), self.welcome))
        return cast(Connection, self.made[-1])

    def open(self) -> int:
        return sum(1 for connection in self.made if not connection.closed)


@pytest.fixture
def factory() -> Factory:
    return Factory()


def ask(pool: Pool, method: str = "get", seconds: float = PATIENCE, store: Store | None = None) -> Any:
    return pool.call(Call(store or reached(), method, (), Deadline(seconds))).result


def reached() -> Store:
    store = Store("there")
    store.answered(writing=False)
    return store


class Gate:
    """Calls wait in it; `entered` counts those that do."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, method: str) -> str:
        self.entered.release()
        assert self.open.wait(PATIENCE)
        return method.upper()


@pytest.fixture
def gate(factory: Factory) -> Iterator[Gate]:
    """All calls wait in it."""
    gate = factory.answer = Gate()
    yield gate
    gate.open.set()


def test_one_connection_is_enough_for_one_caller(factory: Factory) -> None:
    pool = Pool(factory, 8)
    assert [ask(pool, method) for method in ("get", "set", "get")] == ["GET", "SET", "GET"]
    assert [connection.calls for connection in factory.made] == [["get", "set", "get"]]


def test_no_connection_is_made_before_it_is_needed(factory: Factory) -> None:
    Pool(factory, 8)
    assert factory.made == []


def test_callers_at_once_have_a_connection_each_and_the_last_used_is_used_next(factory: Factory, gate: Gate) -> None:
    pool = Pool(factory, 2)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(ask, pool) for _ in range(2)]
        assert all(gate.entered.acquire(timeout=PATIENCE) for _ in calls)
        gate.open.set()
        assert [call.result() for call in calls] == ["GET", "GET"]
    assert [len(connection.calls) for connection in factory.made] == [1, 1]
    for _ in range(3):
        ask(pool)
    assert sorted(len(connection.calls) for connection in factory.made) == [1, 4]


def test_more_callers_wait_and_are_refused_at_their_deadline(factory: Factory, gate: Gate) -> None:
    pool = Pool(factory, 2)
    with ThreadPoolExecutor(3) as threads:
        busy = [threads.submit(ask, pool) for _ in range(2)]
        assert all(gate.entered.acquire(timeout=PATIENCE) for _ in busy)
        with pytest.raises(TimeoutError, match=r"all 2 connections were busy for 0\.1 s"):
            ask(pool, seconds=0.1)
        waiting = threads.submit(ask, pool)
        gate.open.set()
        assert waiting.result(PATIENCE) == "GET"
    assert len(factory.made) == 2


@pytest.mark.parametrize("error", [ConnectionLost("x", sent=True), ValueError(), KeyboardInterrupt()])
def test_a_connection_that_failed_is_closed_and_its_place_is_free(factory: Factory, error: BaseException) -> None:
    pool = Pool(factory, 1)

    def fail(_: str) -> None:
        raise error

    for _ in range(3):
        factory.answer = fail
        with pytest.raises(type(error)):
            ask(pool)
        factory.answer = str.upper
        assert ask(pool, seconds=0.5) == "GET"
    assert [connection.closed for connection in factory.made] == [1, 1, 1, 0]


@pytest.mark.parametrize("error", [ConnectionLost("x", sent=False), TimeoutError(), KeyboardInterrupt()])
def test_a_connection_that_cannot_be_made_leaves_its_place_free(factory: Factory, error: BaseException) -> None:
    pool = Pool(factory, 1)
    for _ in range(3):
        factory.failure = error
        with pytest.raises(type(error)):
            ask(pool)
    factory.failure = None
    assert ask(pool, seconds=0.5) == "GET"


def ask_at_once(pool: Pool, key: str = "a") -> Response | None:
    return pool.use(Place.ask, ("get", ("m", key), None, lambda: Deadline(PATIENCE)))


def test_at_once_only_a_connection_that_is_open_is_asked(factory: Factory) -> None:
    pool = Pool(factory, 2)
    assert ask_at_once(pool) is None
    assert factory.made == []
    ask(pool, "set")
    assert ask_at_once(pool) == Response(1, None, "GET")
    assert [connection.calls for connection in factory.made] == [["set", "get"]]
    assert pool.free == 2


def test_at_once_no_connection_in_use_is_asked(factory: Factory, gate: Gate) -> None:
    pool = Pool(factory, 2)
    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(ask, pool)
        assert gate.entered.acquire(timeout=PATIENCE)
        assert ask_at_once(pool) is None
        assert pool.free == 1
        gate.open.set()
        assert busy.result(PATIENCE) == "GET"
    for place in pool._places:
        place.taken[BY] = object()
    assert ask_at_once(pool) is None


def test_all_who_wait_have_their_turn(factory: Factory, gate: Gate) -> None:
    pool = Pool(factory, 1)
    with ThreadPoolExecutor(8) as threads:
        calls = []
        for others in range(8):
            calls.append(threads.submit(ask, pool))
            wait_until(lambda others=others: len(pool.waiting) == others)
        gate.open.set()
        assert [call.result(PATIENCE) for call in calls] == ["GET"] * 8
    assert pool.free == 1
    assert len(factory.made) == 1


def test_whoever_waits_comes_before_who_comes_later(factory: Factory) -> None:
    pool = Pool(factory, 1)
    with ThreadPoolExecutor(1) as threads:
        waiting: list[Future[Any]] = []

        def wait_for_another(method: str) -> str:
            factory.answer = str.upper
            waiting.append(threads.submit(ask, pool, "set"))
            wait_until(lambda: pool.waiting)
            return method

        factory.answer = wait_for_another
        ask(pool)
        ask(pool, "count")
        assert waiting[0].result(PATIENCE) == "SET"
        assert factory.made[0].calls == ["get", "set", "count"]


def test_the_first_that_waits_may_be_held_up(factory: Factory) -> None:
    """As by a handler in its thread, which may ask for something itself."""
    pool = Pool(factory, 1)
    pool.waiting[object()] = queue.SimpleQueue()
    assert ask(pool) == "GET"


@pytest.mark.parametrize("places", [1, 3])
def test_those_who_wait_are_served_in_their_order(
    factory: Factory, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "GIVE_WAY", PATIENCE)
    pool, number = Pool(factory, places), 20
    let_go, order = threading.Event(), list[str]()

    def answer(method: str) -> str:
        if method == "first":
            let_go.wait(PATIENCE)
        elif method.isdigit():
            order.append(method)
        return method.upper()

    factory.answer = answer
    with ThreadPoolExecutor(number + places) as threads:
        calls = [threads.submit(ask, pool, "first") for _ in range(places)]
        wait_until(lambda: pool.free == 0)
        for waiting in range(number):
            calls.append(threads.submit(ask, pool, str(waiting)))
            wait_until(lambda waiting=waiting: len(pool.waiting) == waiting + 1)
        let_go.set()
        for call in calls:
            call.result(PATIENCE)
    if places == 1:
        assert order == [str(waiting) for waiting in range(number)]
    assert sorted(order, key=int) == [str(waiting) for waiting in range(number)]
    assert (pool.free, len(pool.waiting)) == (places, 0)


@pytest.mark.parametrize("error", [ConnectionLost("x", sent=True), ValueError(), KeyboardInterrupt()])
def test_at_once_too_a_connection_that_failed_is_closed(factory: Factory, error: BaseException) -> None:
    pool = Pool(factory, 1)
    ask(pool)

    def fail(_: str) -> None:
        raise error

    factory.answer = fail
    with pytest.raises(type(error)):
        ask_at_once(pool)
    assert factory.open() == 0
    assert pool.free == 1
    assert ask_at_once(pool) is None


def test_at_once_too_whoever_cannot_answer_now_is_not_asked_again(factory: Factory) -> None:
    pool = Pool(factory, 1)
    ask(pool)
    factory.answer = lambda _: Unavailable("the disk is full")
    response = ask_at_once(pool)
    assert response is not None
    assert isinstance(response.error, Unavailable)
    assert factory.open() == 0


def test_what_fails_before_anything_was_sent_costs_no_connection(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(factory, 1)
    ask(pool)
    with monkeypatch.context() as patched:
        patched.setattr(Call, "parameters", Mock(side_effect=TimeoutError("too many writes wait for their answers")))
        with pytest.raises(TimeoutError):
            ask(pool, "set")
    ask(pool)
    assert [connection.calls for connection in factory.made] == [["get", "get"]]


@pytest.mark.parametrize(("method", "connections"), [("get", 2), *((method, 3) for method in sorted(WRITES))])
def test_a_write_is_not_sent_on_a_connection_on_which_the_server_has_hung_up(
    factory: Factory, gate: Gate, method: str, connections: int
) -> None:
    """It would be in doubt then. The other connections, which nobody uses, are not trusted either."""
    pool = Pool(factory, 2)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(ask, pool) for _ in range(2)]
        assert all(gate.entered.acquire(timeout=PATIENCE) for _ in calls)
        gate.open.set()
    factory.made[0].is_stale = True
    factory.made[1].is_stale = True
    ask(pool, method)
    assert len(factory.made) == connections
    assert method in factory.made[-1].calls or method == "get"
    assert factory.open() == (2 if method == "get" else 1)


def test_a_connection_without_a_session_is_for_reads_only(factory: Factory) -> None:
    """A write replaces it when a session may be had again, and the reads go on by it until then."""
    lacking = Welcome("s1", 1, Limits(), session_error=Unavailable("no room"))
    pool, store = Pool(factory, 1), reached()
    store.renewal.put_off()
    store.session.joins(0, None)
    factory.welcome = lacking
    ask(pool, store=store)
    response = pool.call(Call(store, "set", (), Deadline(PATIENCE)))
    assert isinstance(response.error, Unavailable)
    factory.failure = ConnectionLost("connection refused", sent=False)
    store.session.joins(0, 7)
    for _ in range(2):
        response = pool.call(Call(store, "set", (), Deadline(PATIENCE)))
        assert isinstance(response.error, Unavailable), "as before, because there is no other connection"
        assert ask(pool, store=store) == "GET"
    assert store.outage is None
    store.session.joins(0, 7)
    factory.failure, factory.welcome = None, Welcome("s1", 1, Limits(), session=7)
    assert ask(pool, "set", store=store) == "SET"
    assert [connection.calls for connection in factory.made] == [["get", "get", "get"], ["set"]]
    assert factory.open() == 1


def test_a_connection_that_brings_refusals_is_replaced_about_once_a_second(factory: Factory, clock: Clock) -> None:
    pool = Pool(factory, 1)
    factory.answer = lambda _: Unavailable("the disk is full")
    for _ in range(1000):  # 10 s
        ask(pool)
        clock.now += 0.01
    assert 7 <= len(factory.made) <= 11
    factory.answer = str.upper
    assert ask(pool, seconds=0.5) == "GET"


def test_a_server_that_is_about_to_end_is_not_asked_again(factory: Factory) -> None:
    pool = Pool(factory, 1)
    factory.answer = lambda _: ShuttingDown("soon")
    for _ in range(3):
        ask(pool)
    assert (len(factory.made), factory.open()) == (3, 0)


def test_dropping_what_is_idle_leaves_the_busy_alone(factory: Factory, gate: Gate) -> None:
    pool = Pool(factory, 2)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(ask, pool) for _ in range(2)]
        assert all(gate.entered.acquire(timeout=PATIENCE) for _ in calls)
        pool.drop_idle()
        assert factory.open() == 2
        gate.open.set()
        assert [call.result() for call in calls] == ["GET", "GET"]
    pool.drop_idle()
    pool.drop_idle()
    assert [connection.closed for connection in factory.made] == [1, 1]
    assert ask(pool) == "GET"
    assert len(factory.made) == 3


def test_a_child_begins_anew_even_where_the_parent_was_busy(factory: Factory) -> None:
    pool = Pool(factory, 2)
    ask(pool)
    for place in pool._places:
        place.taken[BY] = object()  # a thread of the parent's
    forks._after_fork_in_child()
    assert ask(pool, seconds=0.5) == "GET"
    assert len(factory.made) == 2


def test_a_place_that_another_thread_leaves_at_that_moment_is_just_free(factory: Factory) -> None:
    """On a free-threaded build it may do so between two looks at who is in it."""

    class Leaving(dict[str, object]):
        def __contains__(self, key: object) -> bool:
            return self.pop(key, None) is not None  # type: ignore[call-overload]

    pool = Pool(factory, 2)
    pool._places[0].taken = Leaving({BY: "another"})
    assert pool.use(lambda place, _: pool._places.index(place), "us") == 1


def test_a_call_that_forks_in_the_middle_brings_nothing_into_the_child(factory: Factory) -> None:
    """As a signal's handler can."""
    pool = Pool(factory, 1)

    def fork(method: str) -> str:
        forks._after_fork_in_child()
        return method

    factory.answer = fork
    ask(pool)
    factory.answer = str.upper
    assert ask(pool) == "GET"
    assert len(factory.made) == 2  # the first is the parent's
    assert pool.free == 1


def test_interrupts_at_any_moment_lose_no_place() -> None:
    run_script(
        """
        import itertools, random, signal
        from statestore import Limits
        from statestore.calls import Call
        from statestore.deadline import Deadline
        from statestore.pool import Place, Pool
        from statestore.protocol import Response, Welcome
        from statestore.store import Store

        class Interrupt(BaseException):
            pass

        def interrupt(*_):
            raise Interrupt

        class Connection:
            welcome = Welcome("s1", 1, Limits())
            busy = False

            def call(self, method, params, deadline, patience):
                assert not self.busy
                self.busy = True
                response = Response(1, None, None)
                self.busy = False
                return response

            def close(self):
                pass

        store = Store("there")
        store.answered(writing=False)
        pool = Pool(lambda _: Connection(), 1)
        numbers = itertools.count()
        patience = lambda: Deadline(5)
        signal.signal(signal.SIGALRM, interrupt)
        for _ in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-4))
                while True:
                    pool.call(Call(store, "get", (), Deadline(5)))
                    pool.use(Place.ask, ("get", (next(numbers),), None, patience))
            except Interrupt:
                pass
            assert pool.free == 1
        """
    )


def test_a_pool_that_nobody_needs_is_forgotten(factory: Factory) -> None:
    pool = weakref.ref(Pool(factory, 1))
    gc.collect()
    assert pool() is None
