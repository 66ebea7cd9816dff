"""K2: a write that is repeated is applied once, and its caller gets the answer of that one time.

The network fails right when it matters: the request was executed, and its answer is lost.
"""

import asyncio
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from statestore import AsyncRemoteStorage, RemoteStorage
from statestore.base import START, Swap
from statestore.errors import Unavailable, Uncertain
from statestored.datadir import DataDirectory
from statestored.engines.base import Held
from statestored.engines.commits import Fsync
from statestored.engines.embedded import EmbeddedEngine
from statestored.journal import Journal
from tests import daemon as daemon_module
from tests.consistency import faults
from tests.consistency.faulty import program_with
from tests.daemon import Daemon
from tests.proxy import Cut, Direction, Proxy
from tests.server.fakes import NEVER, Gate
from tests.server.rpc import RawClient, request
from tests.server.waiting import wait_until

REQUESTS, REPLIES = Direction.REQUESTS, Direction.REPLIES
M, N = "app.join", "app.post"
ANN, BOB = "ann@example.org", "bob@example.org"
SOON = 0.5  # seconds, for a call that is to be given up
LATE = 20.0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all tests; it may be killed and started again."""
    with Daemon(tmp_path_factory.mktemp("exactly_once"), "--allow-clear") as daemon:
        yield daemon


@pytest.fixture
def proxy(daemon: Daemon) -> Iterator[Proxy]:
    with Proxy(daemon.address) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[RemoteStorage]:
    """Connected, through the proxy."""
    with RemoteStorage(proxy.address, write_deadline=LATE) as client:
        client.ping()
        yield client


@pytest.fixture
def other(daemon: Daemon) -> Iterator[RemoteStorage]:
    """Another client; its network does not fail. Nothing is stored."""
    with RemoteStorage(daemon.unix_address) as other:
        other.clear()
        yield other


@contextmanager
def lost(proxy: Proxy, call: Callable[[], Any]) -> "Iterator[Future[Any]]":
    """The call has been executed, and its answer has not come; it is repeated when this ends."""
    proxy.stop_accepting()
    cut = proxy.cut_after(REPLIES, 0)
    with ThreadPoolExecutor(1) as thread:
        repeated = thread.submit(call)
        try:
            cut.wait()
            yield repeated
        finally:
            proxy.accept_again()


def nothing(_daemon: Daemon, _proxy: Proxy) -> None:
    pass


def kill(daemon: Daemon, proxy: Proxy) -> None:
    daemon.kill()
    proxy.target = daemon.start().address


def stop(daemon: Daemon, proxy: Proxy) -> None:
    daemon.stop()
    proxy.target = daemon.start().address


def snapshot_and_kill(daemon: Daemon, proxy: Proxy) -> None:
    """It starts from the snapshot then, for the journal before it is gone."""
    first = min(daemon.data_dir.glob("*.journal"))
    daemon.send_signal(signal.SIGUSR1)
    wait_until(lambda: not first.exists())
    kill(daemon, proxy)


meanwhile = pytest.mark.parametrize("meanwhile", [nothing, kill, stop, snapshot_and_kill])
meanwhile_killed = pytest.mark.parametrize("meanwhile", [nothing, kill])
Meanwhile = Callable[[Daemon, Proxy], None]


# A write is applied once, and its answer is the one of that time


@meanwhile
def test_set(daemon: Daemon, proxy: Proxy, client: RemoteStorage, other: RemoteStorage, meanwhile: Meanwhile) -> None:
    with lost(proxy, lambda: client.set(M, ANN, "mine")) as repeated:
        assert other.get(M, ANN) == "mine"
        other.set(M, ANN, "newer")
        meanwhile(daemon, proxy)
    assert repeated.result() is None
    assert other.get(M, ANN) == "newer"


@meanwhile
def test_compare_and_set(
    daemon: Daemon, proxy: Proxy, client: RemoteStorage, other: RemoteStorage, meanwhile: Meanwhile
) -> None:
    with lost(proxy, lambda: client.compare_and_set(M, ANN, START, "mine")) as repeated:
        assert other.get(M, ANN) == "mine"
        other.set(M, ANN, "newer")
        meanwhile(daemon, proxy)
    assert repeated.result() == Swap(True, START)
    assert other.get(M, ANN) == "newer"


@meanwhile_killed
def test_compare_and_set_that_could_swap_again(
    daemon: Daemon, proxy: Proxy, client: RemoteStorage, other: RemoteStorage, meanwhile: Meanwhile
) -> None:
    with lost(proxy, lambda: client.compare_and_set(M, ANN, START, "mine")) as repeated:
        other.set(M, ANN, START)
        meanwhile(daemon, proxy)
    assert repeated.result() == Swap(True, START)
    assert other.get(M, ANN) == START


@meanwhile
def test_set_all(
    daemon: Daemon, proxy: Proxy, client: RemoteStorage, other: RemoteStorage, meanwhile: Meanwhile
) -> None:
    other.set_many([(M, ANN, "x"), (N, ANN, "y")])
    with lost(proxy, lambda: client.set_all(ANN, "mine")) as repeated:
        other.set(M, ANN, START)
        other.set(N, ANN, "newer")
        meanwhile(daemon, proxy)
    assert repeated.result() == 2
    assert other.get_many([(M, ANN), (N, ANN)]) == [START, "newer"]


@meanwhile_killed
def test_set_many(
    daemon: Daemon, proxy: Proxy, client: RemoteStorage, other: RemoteStorage, meanwhile: Meanwhile
) -> None:
    with lost(proxy, lambda: client.set_many([(M, ANN, "mine"), (M, BOB, "mine")])) as repeated:
        other.set(M, ANN, "newer")
        meanwhile(daemon, proxy)
    assert repeated.result() is None
    assert other.get_many([(M, ANN), (M, BOB)]) == ["newer", "mine"]


@meanwhile_killed
def test_clear(daemon: Daemon, proxy: Proxy, client: RemoteStorage, other: RemoteStorage, meanwhile: Meanwhile) -> None:
    other.set(M, BOB, "old")
    with lost(proxy, client.clear) as repeated:
        other.set(M, ANN, "newer")
        meanwhile(daemon, proxy)
    assert repeated.result() is None
    assert other.get_many([(M, ANN), (M, BOB)]) == ["newer", START]


def test_a_swap_that_was_refused_is_not_made_later(proxy: Proxy, client: RemoteStorage, other: RemoteStorage) -> None:
    other.set(M, ANN, "x")
    with lost(proxy, lambda: client.compare_and_set(M, ANN, "y", "mine")) as repeated:
        other.set(M, ANN, "y")
    assert repeated.result() == Swap(False, "x")
    assert other.get(M, ANN) == "y"


@meanwhile_killed
def test_what_did_not_arrive_is_applied(
    daemon: Daemon, proxy: Proxy, client: RemoteStorage, other: RemoteStorage, meanwhile: Meanwhile
) -> None:
    """The other half: a number that is not known is no reason to do nothing."""
    proxy.stop_accepting()
    cut = proxy.cut_after(REQUESTS, 10)
    with ThreadPoolExecutor(1) as thread:
        repeated = thread.submit(client.compare_and_set, M, ANN, START, "mine")
        cut.wait()
        meanwhile(daemon, proxy)
        proxy.accept_again()
        assert repeated.result() == Swap(True, START)
    assert other.get(M, ANN) == "mine"


def test_lost_again_and_again(daemon: Daemon, proxy: Proxy, client: RemoteStorage, other: RemoteStorage) -> None:
    for number in range(5):
        with lost(proxy, lambda: client.compare_and_set(M, ANN, START, "mine")) as repeated:
            other.set(M, ANN, START)
            (kill if number % 2 else nothing)(daemon, proxy)
        assert repeated.result() == Swap(True, START)
        assert other.get(M, ANN) == START


@meanwhile_killed
def test_coroutines(daemon: Daemon, proxy: Proxy, other: RemoteStorage, meanwhile: Meanwhile) -> None:
    armed: Future[Cut] = Future()

    def arm() -> Cut:
        proxy.stop_accepting()
        return proxy.cut_after(REPLIES, 0)

    async def swap() -> Swap:
        async with AsyncRemoteStorage(proxy.address, write_deadline=LATE) as client:
            await client.ping()
            armed.set_result(arm())
            return await client.compare_and_set(M, ANN, START, "mine")

    with ThreadPoolExecutor(1) as thread:
        repeated = thread.submit(asyncio.run, swap())
        armed.result(LATE).wait()
        other.set(M, ANN, START)
        meanwhile(daemon, proxy)
        proxy.accept_again()
        assert repeated.result() == Swap(True, START)
    assert other.get(M, ANN) == START


# Several ways to the daemon: what is repeated on one is late on another


class Ways:
    """A client whose connection goes by `first`; it takes `second` where that refuses."""

    def __init__(self, first: Proxy, second: Proxy, client: RemoteStorage) -> None:
        self.first, self.second, self.client = first, second, client


@pytest.fixture
def ways(daemon: Daemon, proxy: Proxy) -> Iterator[Ways]:
    with Proxy(daemon.address) as second, RemoteStorage(f"{proxy.address},{second.address}") as client:
        client.ping()
        proxy.stop_accepting()
        yield Ways(proxy, second, client)


def test_one_without_an_answer_while_others_have_theirs(ways: Ways, other: RemoteStorage) -> None:
    """They have higher numbers, and its answer is kept for it nevertheless."""
    ways.first.hold(REPLIES)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(ways.client.compare_and_set, M, ANN, START, "mine")
        wait_until(lambda: other.get(M, ANN) == "mine")
        for number in range(10):
            ways.client.set(M, BOB, str(number))
        other.set(M, ANN, "newer")
        ways.first.cut()
        assert waiting.result() == Swap(True, START)
    assert other.get_many([(M, ANN), (M, BOB)]) == ["newer", "9"]


def test_out_of_order(ways: Ways, other: RemoteStorage) -> None:
    """The first of two writes comes when the second is done."""
    ways.first.hold(REQUESTS)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(ways.client.compare_and_set, M, ANN, START, "mine")
        wait_until(lambda: ways.first.came[REQUESTS] > ways.first.passed[REQUESTS])
        ways.client.set(M, BOB, "mine")
        ways.first.heal()
        assert waiting.result() == Swap(True, START)
    assert other.get(M, ANN) == "mine"


LATE_CALLS: dict[str, tuple[str, str]] = {  # what is there before it, and afterwards
    "set": ("old", "mine"),
    "set of what is there": ("mine", "mine"),
    "swap": ("old", "mine"),
    "vain swap": ("x", "x"),
    "set_all": ("old", "mine"),
}


def call_late(client: RemoteStorage, name: str) -> Any:
    if name == "set_all":
        return client.set_all(ANN, "mine")
    return client.compare_and_set(M, ANN, "old", "mine") if "swap" in name else client.set(M, ANN, "mine")


@pytest.mark.parametrize("went_on", [False, True], ids=["last", "and went on"])
@pytest.mark.parametrize("name", LATE_CALLS)
def test_a_late_copy(ways: Ways, other: RemoteStorage, name: str, went_on: bool) -> None:
    """It comes when its caller has had the answer to another copy, and somebody else has written."""
    before, after = LATE_CALLS[name]
    other.set(M, ANN, before)
    ways.first.hold(REQUESTS)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(call_late, ways.client, name)
        wait_until(lambda: ways.first.came[REQUESTS] > ways.first.passed[REQUESTS])
        ways.first.hang_up()
        waiting.result()
    assert other.get(M, ANN) == after
    if went_on:  # and so has told the server that it has that answer
        ways.client.set(M, BOB, "mine")
    other.set(M, ANN, "old")
    _let_through(ways.first, other)
    assert other.get(M, ANN) == "old"


def _let_through(held: Proxy, other: RemoteStorage) -> None:
    """Returns when the one write that it holds has been looked at."""
    before = _writes(other)
    held.heal()
    wait_until(lambda: _writes(other) == before + 1)


def _writes(other: RemoteStorage) -> int:
    calls: dict[str, int] = other.info()["calls"]
    return sum(calls[method] for method in ("set", "set_all", "compare_and_set"))


# Two clients in one session, as after a copy of a process or of a virtual machine

WRITES_EACH = 100


@pytest.fixture
def twins(daemon: Daemon) -> Iterator[tuple[RemoteStorage, RemoteStorage]]:
    """Their numbers are the same."""
    with RemoteStorage(daemon.address) as first, RemoteStorage(daemon.address) as second:
        first.ping()
        second._store.session.id = first._store.session.id
        second.ping()
        assert second._store.session.id == first._store.session.id != 0
        yield first, second


def test_two_clients_in_one_session_lose_nothing(
    twins: tuple[RemoteStorage, RemoteStorage], other: RemoteStorage, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(WRITES_EACH):
        for name, client in zip("ab", twins, strict=True):
            client.set(M, f"{number} of {name}", name)
    assert other.counts() == {(M, "a"): WRITES_EACH, (M, "b"): WRITES_EACH}
    assert [client._store.session.id == twins[0]._store.session.id for client in twins] == [True, False]
    assert caplog.text.count("another client writes in the session") == 1


def test_two_clients_in_one_session_lose_nothing_whatever_they_write(
    twins: tuple[RemoteStorage, RemoteStorage], other: RemoteStorage
) -> None:
    first, second = twins
    first.set(M, ANN, "of first")
    assert second.compare_and_set(M, ANN, "of first", "of second") == Swap(True, "of first")
    assert first.set_all(ANN, "of first again") == 1
    second.set_many([(M, BOB, "of second")])
    second.clear()
    assert other.count() == 0


def test_a_client_whose_session_is_ahead_of_it_goes_on_in_another(
    twins: tuple[RemoteStorage, RemoteStorage], other: RemoteStorage
) -> None:
    """To the server its numbers are those of copies that come late."""
    first, second = twins
    for number in range(20):
        first.set(M, BOB, str(number))
    second.set(M, ANN, "of second")
    assert other.get_many([(M, ANN), (M, BOB)]) == ["of second", "19"]


@pytest.mark.parametrize("threads", [1, 8])
def test_twins_with_threads_lose_nothing(
    twins: tuple[RemoteStorage, RemoteStorage], other: RemoteStorage, threads: int
) -> None:
    def write(client: RemoteStorage, name: str) -> None:
        for number in range(WRITES_EACH // threads):
            client.set(M, f"{number} of {name}", "x")

    writers = [(client, f"{thread} of {name}") for name, client in enumerate(twins) for thread in range(threads)]
    with ThreadPoolExecutor(len(writers)) as pool:
        list(pool.map(write, *zip(*writers, strict=True)))
    assert other.count() == len(writers) * (WRITES_EACH // threads)


def test_coroutines_of_two_clients_in_one_session_lose_nothing(daemon: Daemon, other: RemoteStorage) -> None:
    """None of those that are under way in the session that is left, either."""

    async def write() -> set[int]:
        async with AsyncRemoteStorage(daemon.address) as first, AsyncRemoteStorage(daemon.address) as second:
            await first.ping()
            second._store.session.id = first._store.session.id
            twins = (first, second)
            writes = [
                client.set(M, f"{number} of {name}", "x")
                for number in range(WRITES_EACH)
                for name, client in enumerate(twins)
            ]
            await asyncio.gather(*writes)
            return {client._store.session.id for client in twins}

    sessions = asyncio.run(write())
    assert len(sessions) == 2
    assert other.count() == 2 * WRITES_EACH


@meanwhile
def test_twins_that_repeat_the_write_that_they_had_begun(
    daemon: Daemon, proxy: Proxy, client: RemoteStorage, other: RemoteStorage, meanwhile: Meanwhile
) -> None:
    """Its answer was lost when they became two: it is applied once, for both, and then each goes on."""
    with lost(proxy, lambda: client.set(M, ANN, "mine")) as repeated:
        meanwhile(daemon, proxy)
        twin = RemoteStorage(daemon.address)
        twin._store.session.id = client._store.session.id
        twin.set(M, ANN, "mine")
        other.set(M, ANN, "newer")
    assert repeated.result() is None
    with twin:
        twin.set(M, BOB, "of the twin")
        client.set(M, BOB, "of the client")
    assert other.get_many([(M, ANN), (M, BOB)]) == ["newer", "of the client"]


# What its client gave up is not applied any more


def test_given_up_while_the_daemon_was_stopped(daemon: Daemon, proxy: Proxy, other: RemoteStorage) -> None:
    other.set(M, ANN, "old")
    with RemoteStorage(proxy.address, write_deadline=SOON) as client:
        client.ping()
        before = _writes(other)
        daemon.send_signal(signal.SIGSTOP)
        with pytest.raises(Uncertain):
            client.set(M, ANN, "mine")
        daemon.send_signal(signal.SIGCONT)
        wait_until(lambda: _writes(other) > before)
    assert other.get(M, ANN) == "old"


def test_given_up_while_it_was_under_way(proxy: Proxy, other: RemoteStorage) -> None:
    other.set(M, ANN, "old")
    with RemoteStorage(proxy.address, write_deadline=SOON) as client:
        client.ping()
        proxy.hold(REQUESTS)
        with pytest.raises(Uncertain):
            client.set(M, ANN, "mine")
    _let_through(proxy, other)
    assert other.get(M, ANN) == "old"


def test_not_given_up_and_late(daemon: Daemon, client: RemoteStorage, other: RemoteStorage) -> None:
    daemon.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.set, M, ANN, "mine")
        daemon.send_signal(signal.SIGCONT)
        waiting.result()
    assert other.get(M, ANN) == "mine"


# Sessions that are no more


@pytest.fixture
def short_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the daemons of a test: they end as soon as nobody is connected."""
    monkeypatch.setattr(daemon_module, "STATESTORED", program_with(faults.sessions_end_soon))


@pytest.mark.usefixtures("short_sessions")
def test_in_a_session_that_has_expired(tmp_path: Path) -> None:
    """Nobody knows any more whether it was applied."""
    with (
        Daemon(tmp_path) as daemon,
        Proxy(daemon.address) as proxy,
        RemoteStorage(daemon.address) as other,
        RemoteStorage(proxy.address, write_deadline=LATE) as client,
    ):
        client.ping()
        with lost(proxy, lambda: client.set(M, ANN, "mine")) as repeated:
            other.set(M, ANN, "newer")
            wait_until(lambda: other.info()["sessions"] == 1)
        with pytest.raises(Uncertain):
            repeated.result()
        assert other.get(M, ANN) == "newer"
        client.set(M, ANN, "newest")
        assert other.get(M, ANN) == "newest", "it goes on in another session"


@pytest.mark.usefixtures("short_sessions")
def test_a_session_that_is_used_does_not_expire(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, RawClient(daemon.address) as used:
        session = used.ask("hello", {"session": 0})["session"]
        with RawClient(daemon.address) as left:
            left.ask("hello", {"session": 0})
        wait_until(lambda: used.ask("info")["sessions"] == 1)
        with RawClient(daemon.address) as again:
            assert again.ask("hello", {"session": session})["session"] == session


def test_another_store_has_never_heard_of_the_session(tmp_path: Path, proxy: Proxy, client: RemoteStorage) -> None:
    with Daemon(tmp_path) as another, RemoteStorage(another.address) as other:
        with lost(proxy, lambda: client.set(M, ANN, "mine")) as repeated:
            proxy.target = another.address
        with pytest.raises(Uncertain):
            repeated.result()
        assert other.get(M, ANN) == START


# An answer goes to whoever asked, and not before it is true


def test_the_answer_to_a_call_that_was_given_up_reaches_nobody(proxy: Proxy, other: RemoteStorage) -> None:
    other.set_many([(M, ANN, "of ann"), (M, BOB, "of bob")])
    with RemoteStorage(proxy.address, deadline=2 * SOON) as client:
        client.ping()
        proxy.hold(REPLIES)
        with pytest.raises(Unavailable):
            client.get(M, ANN)
        proxy.heal()
        assert [client.get(M, BOB), client.get(M, ANN)] == ["of bob", "of ann"]


def test_many_at_once_get_their_own_answers(daemon: Daemon) -> None:
    keys = [(M, f"sender{number}") for number in range(200)]
    with RawClient(daemon.address) as raw:
        raw.ask("set_many", [(*key, f"of {key[1]}") for key in keys])
        raw.send(*(request(msgid, "get", *key) for msgid, key in enumerate(keys)))
        answers = {msgid: state for _, msgid, _, state in (raw.next() for _ in keys)}
    assert [answers[msgid] for msgid in range(len(keys))] == [f"of {sender}" for _, sender in keys]


def test_what_was_remembered_is_not_told_before_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Gate(monkeypatch, Journal, "sync")

    async def repeat() -> None:
        directory = DataDirectory(tmp_path)
        directory.open()
        engine = EmbeddedEngine(directory, Fsync.ALWAYS, NEVER, 10)
        await engine.open()
        session = engine.open_session(0)
        assert isinstance(session, Held)
        await engine.commits.durable()
        number, space = (session.value, 1, 1, 5), engine.space(b"default")
        with syncs:
            first, again = (engine.once(number, lambda: _packed(space.set(b"m", b"ann", b"x"))) for _ in range(2))
            assert isinstance(first, Held)
            assert isinstance(again, Held)
            assert not again.until.is_settled
        await engine.commits.durable()
        assert engine.once(number, lambda: b"another") == first.packed
        await engine.close()
        directory.close()

    asyncio.run(repeat())


def _packed(answer: Any) -> Any:
    answer.packed = msgpack.packb(answer.value)
    return answer
