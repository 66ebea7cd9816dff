"""`RemoteStorage` and a real daemon: what it answers, to many threads and processes at once."""

import logging
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from statestore import (
    START,
    BadRequest,
    Entry,
    Forbidden,
    RemoteStorage,
    StateStoreError,
    Swap,
    TooLong,
    Unauthorized,
    Unavailable,
)
from statestore.connection import Connection
from statestore.protocol import Response
from tests.client.scripts import run_script
from tests.client.servers import WELCOME, Proxy, answers, black_hole, refused
from tests.daemon import Daemon
from tests.server.waiting import wait_until

TOKEN = "a-secret-of-the-site"
PATIENCE = 60.0  # seconds after which a test has hung


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that asks for a token, and does not allow `clear`."""
    with Daemon(tmp_path_factory.mktemp("guarded"), environment={"STATESTORED_TOKEN": TOKEN}) as daemon:
        yield daemon


@pytest.mark.parametrize(
    "settings",
    [
        {"address": ""},
        {"address": "mx.example:port"},
        {"address": "127.0.0.1,"},
        {"deadline": 0},
        {"deadline": -1.0},
        {"deadline": float("nan")},
        {"deadline": float("inf")},
        {"write_deadline": 0},
        {"write_deadline": float("inf")},
        {"pool": 0},
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"address|deadline|pool"):
        RemoteStorage(**settings)


def test_nobody_is_asked_before_the_first_call() -> None:
    with RemoteStorage(refused()):
        pass


def test_a_repr_says_where_but_not_the_token() -> None:
    storage = RemoteStorage("mx.example, unix:/run/s", namespace="shop", token=TOKEN)
    assert repr(storage) == "<RemoteStorage mx.example:7828,unix:/run/s namespace='shop'>"


def test_results_are_of_the_types_that_are_promised(store: RemoteStorage) -> None:
    store.set_many([("m", "a", "A"), ("m", None, "A"), ("n", "a", "B")])
    swap = store.compare_and_set("n", "a", "B", "C")
    assert isinstance(swap, Swap)
    assert swap == (True, "B")
    entries = sorted(store.scan("m", "a"))
    assert isinstance(entries[0], Entry)
    assert entries == [("m", "a", "A", entries[0].day)]
    assert store.get_many(iter([("m", None), ("n", "a"), ("x", "a")])) == ["A", "C", START]
    assert store.counts() == {("m", "A"): 2, ("n", "C"): 1}
    assert store.set_all("a", START) == 2
    store.ping()


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.get(None, "a"),
        lambda store: store.get("m", 5),
        lambda store: store.set("m", "a", b"A"),
        lambda store: store.set_all(5, "A"),
        lambda store: store.compare_and_set("m", "a", None, "A"),
        lambda store: store.get_many([("m", "a", "A")]),
        lambda store: store.set_many([("m", "a")]),
        lambda store: store.scan(5),
        lambda store: store.scan(state=5),
        lambda store: store.count(5),
    ],
)
def test_a_bad_request_is_refused_without_asking(call: Callable[[Any], Any]) -> None:
    with RemoteStorage(refused()) as nowhere, pytest.raises(BadRequest):
        call(nowhere)


def test_info_says_what_the_daemon_is(store: RemoteStorage) -> None:
    info = store.info()
    assert len(info["store_id"]) >= 32
    assert info["server"].startswith("statestored ")
    assert info["limits"] == {"module": 1024, "sender": 4096, "state": 1024, "items": 1000}


def test_the_limits_are_the_daemons_from_the_first_call_on(tmp_path: Path) -> None:
    """A sender that the daemon takes must not be refused for good (553) by a client that has not asked it yet."""
    with Daemon(tmp_path, "--max-sender=8000", "--max-state=10", "--max-modules=50") as daemon:
        with RemoteStorage(daemon.address) as store:
            store.set("m", "x" * 8000, "A")
            assert store.get("m", "x" * 8000) == "A"
        with RemoteStorage(daemon.address) as store, pytest.raises(TooLong, match="sender is 8001"):
            store.get("m", "x" * 8001)
        with RemoteStorage(daemon.address) as store, pytest.raises(TooLong, match="state is 11"):
            store.set("m", "a", "A" * 11)


def test_what_is_too_long_is_not_sent_where_the_limits_are_known(shared_daemon: Daemon) -> None:
    with Proxy(shared_daemon.address) as proxy, RemoteStorage(proxy.address) as store:
        store.ping()
        with pytest.raises(TooLong, match="sender is 5000"):
            store.get("m", "x" * 5000)
        assert proxy.methods == ["ping"]


def test_a_bulk_call_that_no_message_can_hold_is_refused(shared_daemon: Daemon) -> None:
    triples = [("m" * 1024, f"{number:04}".ljust(4096), "A") for number in range(1000)]
    with RemoteStorage(shared_daemon.address, namespace="bulk", write_deadline=2) as store:
        with pytest.raises(TooLong):
            store.set_many(triples)
        assert store.count() == 0
        store.set_many(triples[:100])
        assert store.count() == 100


def test_the_largest_answer_comes_through(store: RemoteStorage) -> None:
    states = [f"{number:04}".ljust(1024, "s") for number in range(1000)]
    pairs = [("m", f"{number}") for number in range(1000)]
    for start in range(0, 1000, 500):
        chunk = slice(start, start + 500)
        store.set_many([(*pair, state) for pair, state in zip(pairs[chunk], states[chunk], strict=True)])
    assert store.get_many(pairs) == states


def test_namespaces_do_not_see_each_other(shared_daemon: Daemon) -> None:
    with (
        RemoteStorage(shared_daemon.address, namespace="one") as one,
        RemoteStorage(shared_daemon.address, namespace="\ud83d") as other,
    ):
        one.set("m", "a", "ONE")
        other.set("m", "a", "OTHER")
        other.set("m", "b", "OTHER")
        assert (one.get("m", "a"), one.get("m", "b"), one.count(), list(one.counts())) == (
            "ONE",
            START,
            1,
            [("m", "ONE")],
        )
        one.clear()
        assert one.get("m", "a") == START
        assert {entry[:3] for entry in other.scan()} == {("m", "a", "OTHER"), ("m", "b", "OTHER")}


def test_a_namespace_that_is_too_long_is_refused(shared_daemon: Daemon) -> None:
    with RemoteStorage(shared_daemon.address, namespace="x" * 256) as store, pytest.raises(TooLong, match="namespace"):
        store.get("m", "a")


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + " ", TOKEN[:-1], "é\ud83d"])
def test_without_the_right_token_nothing_is_answered(guarded: Daemon, token: str | None) -> None:
    with RemoteStorage(guarded.address, token=token) as store:
        for _ in range(3):
            with pytest.raises(Unauthorized) as caught:
                store.get("m", "a")
        assert TOKEN not in caught.value.detail


def test_a_refused_token_is_in_the_log(guarded: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    """The mail's 451 leaves no trace in Salmon's, so this is all that the site sees."""
    with caplog.at_level(logging.WARNING, "statestore"), RemoteStorage(guarded.address, token="wrong") as store:
        for _ in range(3):
            with pytest.raises(Unauthorized):
                store.get("m", "a")
    assert len(caplog.messages) == 1
    assert guarded.address in caplog.messages[0]
    assert "wrong" not in caplog.messages[0].replace("the token is wrong", "")


def test_with_the_right_token_everything_is(guarded: Daemon) -> None:
    with RemoteStorage(guarded.address, token=TOKEN) as store:
        store.set("m", "a", "A")
        assert store.get("m", "a") == "A"
        with pytest.raises(Forbidden, match="--allow-clear"):
            store.clear()
        assert store.get("m", "a") == "A"


def test_a_scan_gives_every_entry_of_many(store: RemoteStorage) -> None:
    triples = [(f"m{number % 3}", f"{number}@b.example", f"S{number % 7}") for number in range(12_000)]
    for start in range(0, len(triples), 1000):
        store.set_many(triples[start : start + 1000])
    assert sorted(entry[:3] for entry in store.scan()) == sorted(triples)
    wanted = [triple for triple in triples if triple[0] == "m1" and triple[1].startswith("11") and triple[2] == "S3"]
    assert sorted(entry[:3] for entry in store.scan("m1", "11", "S3")) == sorted(wanted)
    assert store.count() == 12_000


def test_counts_are_exact_for_more_pairs_than_one_answer_has(store: RemoteStorage) -> None:
    triples = [(f"m{number}", f"a{number % 20}", f"S{number % 2}") for number in range(1500)]
    triples += [(f"m{number}", f"b{number % 20}", "S0") for number in range(700)]
    for start in range(0, len(triples), 1000):
        store.set_many(triples[start : start + 1000])
    counts = store.counts()
    assert len(counts) == 1500 + 350
    assert sum(counts.values()) == store.count() == 2200
    assert (counts["m0", "S0"], counts["m1", "S0"], counts["m1", "S1"], counts["m1499", "S1"]) == (2, 1, 1, 1)
    assert (store.count(state="S0"), store.count(state="S1")) == (750 + 700, 750)
    assert (store.count("m1"), store.count("m1", "S0"), store.count("m1", "none")) == (2, 1, 0)


def test_an_address_after_others_that_are_away_is_found(shared_daemon: Daemon) -> None:
    with black_hole() as swallows:
        addresses = ",".join([refused(), "unix:/nonexistent/socket", swallows, shared_daemon.address])
        with RemoteStorage(addresses, namespace="several", deadline=2) as store:
            assert store.get("m", "a") == START


def test_where_all_addresses_are_away_each_is_named() -> None:
    addresses = [refused(), "unix:/nonexistent/socket"]
    with RemoteStorage(",".join(addresses), deadline=0.1) as store, pytest.raises(Unavailable) as caught:
        store.get("m", "a")
    assert all(address in caught.value.detail for address in addresses)
    assert "connection refused" in caught.value.detail
    assert "no such file or directory" in caught.value.detail


def test_a_closed_client_can_be_used_again(shared_daemon: Daemon) -> None:
    with Proxy(shared_daemon.address) as proxy:
        store = RemoteStorage(proxy.address, namespace="closed")
        for connections in (1, 2, 3):
            store.set("m", "a", str(connections))
            assert store.get("m", "a") == str(connections)
            assert proxy.connections == connections
            store.close()
        store.close()


def test_many_threads_share_few_connections_and_each_gets_its_own_answers(shared_daemon: Daemon) -> None:
    def work(store: RemoteStorage, thread: int) -> None:
        for number in range(25):
            state = f"{thread}-{number}"
            store.set("m", f"s{thread}", state)
            assert store.get("m", f"s{thread}") == state
            assert store.get_many([("m", f"s{thread}"), ("n", f"s{thread}")]) == [state, START]
            assert store.compare_and_set("m", f"s{thread}", state, state + "!") == (True, state)

    with Proxy(shared_daemon.address) as proxy, RemoteStorage(proxy.address, namespace="threads", pool=8) as store:
        with ThreadPoolExecutor(64) as threads:
            for done in [threads.submit(work, store, thread) for thread in range(64)]:
                done.result(PATIENCE)
        assert proxy.connections <= 8
        assert store.count() == 64


def test_a_read_waits_behind_those_who_wait_already() -> None:
    with (
        answers(lambda method, _: (None, WELCOME if method == "hello" else "AT ONCE")) as server,
        RemoteStorage(server.address) as storage,
    ):
        assert storage.get("m", "a") == "AT ONCE"
        storage._pool.waiting[object()] = queue.SimpleQueue()
        with patch.object(storage._pool, "call", return_value=Response(1, None, "IN TURN")):
            assert storage.get("m", "a") == "IN TURN"


def test_calls_without_parameters_do_not_get_into_each_others_place() -> None:
    """Their empty tuples are one and the same object."""
    with (
        answers(lambda method, _: (None, WELCOME if method == "hello" else None)) as server,
        RemoteStorage(server.address, pool=1) as storage,
        ThreadPoolExecutor(1) as threads,
    ):
        storage.ping()
        call, others = Connection.call, []

        def call_while_another_does(*args: Any) -> Any:
            if not others:
                others.append(threads.submit(storage.ping))
                wait_until(lambda: storage._pool.waiting or others[0].done())
            return call(*args)

        with patch.object(Connection, "call", call_while_another_does):
            storage.ping()
            others[0].result(PATIENCE)
        assert server.connections == 1


@pytest.fixture
def interrupts_are_raised() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt. A process that a shell script started with `&` inherits it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts_are_raised")
def test_an_interrupt_between_question_and_answer_gives_nobody_a_wrong_answer(shared_daemon: Daemon) -> None:
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    with Proxy(shared_daemon.address) as proxy, RemoteStorage(proxy.address, namespace="interrupt", pool=1) as store:
        store.set_many([("m", "a", "OF A"), ("m", "b", "OF B")])

        async def interrupt(writer: Any, reply: bytes) -> None:
            signal.pthread_kill(main_thread, signal.SIGINT)
            writer.write(reply)  # to nobody, or to the wrong one

        for _ in range(5):
            proxy.write_reply, usual = interrupt, proxy.write_reply
            with pytest.raises(KeyboardInterrupt):
                store.get("m", "a")
            proxy.write_reply = usual
            assert store.get("m", "b") == "OF B"


def test_interrupts_at_any_moment_give_nobody_a_wrong_answer(shared_daemon: Daemon) -> None:
    printed = run_script(
        """
        import random, signal, sys
        from statestore import RemoteStorage

        class Interrupt(BaseException):
            pass

        def interrupt(*_):
            raise Interrupt

        store = RemoteStorage(sys.argv[1], namespace="interrupts", pool=64)
        store.set_many([("m", str(number), f"S{number}") for number in range(100)])
        signal.signal(signal.SIGALRM, interrupt)
        interrupts = answers = number = 0
        while interrupts < 300:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, 0.001))
                while True:
                    number = (number + 1) % 100
                    state = store.get("m", str(number))
                    assert state == f"S{number}", (state, number)
                    answers += 1
            except Interrupt:
                interrupts += 1
        print(answers)
        """,
        shared_daemon.address,
    )
    assert int(printed) > 0


def test_a_fork_shares_no_connection(shared_daemon: Daemon) -> None:
    """Parent and child, each with what it had before, ask at the same time and again and again."""
    run_script(
        """
        import os, sys
        from concurrent.futures import ThreadPoolExecutor
        from statestore import RemoteStorage

        def sockets():
            links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
            targets = {os.readlink(link) for link in links if os.path.islink(link)}
            return {target for target in targets if target.startswith("socket:")}

        def work(name):
            for number in range(200):
                store.set("m", name, f"{name} {number}")
                assert store.get("m", name) == f"{name} {number}"

        store = RemoteStorage(sys.argv[1], namespace="fork", pool=4)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, ["w", "x", "y", "z"]))
        before = sockets()
        child = os.fork()
        if child == 0:
            try:
                assert sockets() == set()
                work("child")
                assert sockets() & before == set()
                os._exit(0)
            finally:
                os._exit(1)
        work("parent")
        assert sockets() == before
        assert os.waitpid(child, 0)[1] == 0
        assert store.get("m", "child") == "child 199"
        """,
        shared_daemon.address,
    )


def test_a_fork_in_the_middle_of_a_call_shares_no_connection(shared_daemon: Daemon) -> None:
    with Proxy(shared_daemon.address) as proxy:
        run_script(
            """
            import os, sys, threading
            from statestore import RemoteStorage
            from statestore.connection import Connection

            in_call, forked = threading.Event(), threading.Event()
            call = Connection.call

            def slow_call(*args):
                response = call(*args)
                if threading.current_thread() is asking:
                    in_call.set()
                    forked.wait(20)
                return response

            Connection.call = slow_call
            store = RemoteStorage(sys.argv[1], namespace="fork", pool=1)
            asking = threading.Thread(target=store.get, args=["m", "a"])
            asking.start()
            in_call.wait(20)
            child = os.fork()
            if child == 0:
                links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
                shared = [link for link in links if os.path.islink(link) and "socket:" in os.readlink(link)]
                store.get("m", "b")
                os._exit(len(shared))
            forked.set()
            asking.join()
            assert os.waitpid(child, 0)[1] == 0, "a socket is shared"
            """,
            proxy.address,
        )


def test_every_error_is_one_of_ours(store: RemoteStorage) -> None:
    """Whatever the daemon says to what the client lets through."""
    with pytest.raises(StateStoreError):
        store._read("no_such_method")
    with pytest.raises(BadRequest):
        store._read("scan", "no cursor", None, "", None)
    assert store.get("m", "a") == START
