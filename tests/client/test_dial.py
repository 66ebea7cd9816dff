"""Sockets: connected in time, never waiting for long, and closed in a child."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from statestore import forks
from statestore.address import Address, parse_address, parse_addresses
from statestore.deadline import Deadline
from statestore.dial import CONNECT_PATIENCE, TICK, Candidates, connect
from statestore.errors import ShuttingDown, Unauthorized, Unavailable
from statestore.protocol import ConnectionLost, WrongServer, WrongStore
from tests.client.scripts import run_script
from tests.client.servers import WELCOME, answers, black_hole, found, refused, says
from tests.client.timing import Clock

A, B = parse_addresses("a:1, b:2")
REFUSED = ConnectionLost("refused", sent=False)


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield "{}:{}".format(*server.getsockname())


def dial(address: str, seconds: float = 20) -> socket.socket:
    return connect(parse_address(address), Deadline(seconds))


def test_a_receive_that_has_nothing_comes_back_soon(listening: str) -> None:
    with dial(listening) as sock:
        started = time.monotonic()
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        assert time.monotonic() - started == pytest.approx(TICK, abs=TICK)


def test_a_send_that_is_not_taken_comes_back_soon(listening: str) -> None:
    with dial(listening) as sock:
        started = time.monotonic()
        with suppress(BlockingIOError):
            while sock.send(b"x" * 2**24):
                pass
        assert time.monotonic() - started < 15 * TICK


def test_nothing_waits_for_more_to_send_and_a_dead_peer_is_noticed(listening: str) -> None:
    with dial(listening) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_what_cannot_be_reached_is_said_in_time() -> None:
    with pytest.raises(ConnectionLost, match="connection refused") as caught:
        dial(refused())
    assert not caught.value.sent
    with black_hole() as address, pytest.raises(ConnectionLost, match="timed out"):
        dial(address, 0.1)


def test_the_next_address_of_a_name_has_its_turn(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", found(refused(), listening))
    with dial("states.example") as sock:
        assert "{}:{}".format(*sock.getpeername()) == listening


class NoThread(threading.Thread):
    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def test_a_name_that_no_thread_can_look_up_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Thread", NoThread)
    with pytest.raises(ConnectionLost, match="looking up localhost: can't start new thread"):
        dial("localhost:1")


def test_a_process_at_its_end_looks_a_name_up_without_a_thread(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 starts no more threads then."""
    monkeypatch.setattr(threading, "Thread", NoThread)
    monkeypatch.setattr(threading, "main_thread", lambda: threading.Thread())
    with dial(listening.replace("127.0.0.1", "localhost")) as sock:
        assert "{}:{}".format(*sock.getpeername()) == listening


@pytest.mark.parametrize(
    "at_the_end",
    [
        "atexit.register(lambda: (last(), asyncio.run(last_async())))",
        "threading.Thread(target=lambda: (threading.main_thread().join(), last(), asyncio.run(last_async()))).start()",
        "ThreadPoolExecutor(1).submit(lambda: (time.sleep(0.2), last(), asyncio.run(last_async())))",
    ],
)
def test_a_process_at_its_end_reaches_a_store_by_its_name(at_the_end: str) -> None:
    script = f"""
        import asyncio, atexit, sys, threading, time
        from concurrent.futures import ThreadPoolExecutor
        from statestore import AsyncRemoteStorage, RemoteStorage

        def last():
            print(RemoteStorage(sys.argv[1]).get("m", "a"))

        async def last_async():
            async with AsyncRemoteStorage(sys.argv[1]) as storage:
                print(await storage.get("m", "b"))

        {at_the_end}
        """
    with answers(lambda method, params: (None, WELCOME if method == "hello" else params[1])) as server:
        assert run_script(script, server.address.replace("127.0.0.1", "localhost")).split() == ["a", "b"]


def test_each_of_many_addresses_has_its_share_of_the_time(clock: Clock) -> None:
    shares = []
    for address, share in (candidates := Candidates(parse_addresses("a:1, b:2, c:3"), None, Deadline(6))):
        shares.append((str(address), share.left()))
        clock.now += 0.5
        assert candidates.may_go_on(address, ConnectionLost("refused", sent=False))
    assert shares == [("a:1", 2.0), ("b:2", 2.75), ("c:3", CONNECT_PATIENCE)]
    assert str(candidates.exhausted()) == "a:1: refused; b:2: refused; c:3: refused"


@pytest.mark.parametrize(
    ("first", "order"), [(None, ["a:1", "b:2", "c:3"]), ("a:1", ["a:1", "b:2", "c:3"]), ("b:2", ["b:2", "a:1", "c:3"])]
)
def test_it_begins_where_it_is_told_to(first: str | None, order: list[str]) -> None:
    address = None if first is None else parse_address(first)
    candidates = Candidates(parse_addresses("a:1, b:2, c:3"), address, Deadline(6))
    assert [str(address) for address, _ in candidates] == order


@pytest.mark.parametrize("failure", [TimeoutError("what it says"), WrongServer("what it says")])
def test_where_no_time_is_left_for_the_others_it_says_what_became_of_the_first(
    clock: Clock, failure: Exception
) -> None:
    candidates = Candidates((A, B), None, Deadline(6))
    addresses = iter(candidates)
    next(addresses)
    candidates.may_go_on(A, failure)
    clock.now += 10
    with pytest.raises(ConnectionLost, match=r"^a:1: what it says$"):  # also of what is no store: B was not asked
        next(addresses)
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        next(iter(Candidates((A,), None, Deadline(0))))


@pytest.mark.parametrize(
    ("failure", "may_go_on"),
    [
        (TimeoutError("late"), True),
        (ConnectionLost("late", sent=False), True),
        (ShuttingDown("late"), True),
        (Unavailable("late"), True),
        (WrongServer("late"), True),
        (WrongStore("late"), False),
        (Unauthorized("late"), False),
        (ZeroDivisionError("late"), False),
    ],
)
def test_another_address_is_of_no_use_where_the_store_refuses_us_or_is_another(
    failure: Exception, may_go_on: bool
) -> None:
    candidates = Candidates((A, B), None, Deadline(20))
    assert candidates.may_go_on(A, failure) == may_go_on
    assert str(candidates.exhausted()) == ("a:1: late" if may_go_on else "")


@pytest.mark.parametrize(
    ("failures", "error", "said"),
    [
        ({A: REFUSED}, ConnectionLost, "refused"),
        ({A: WrongServer("HTTP")}, WrongServer, "HTTP"),
        ({A: WrongServer("HTTP"), B: REFUSED}, ConnectionLost, "a:1: HTTP; b:2: refused"),
        ({A: REFUSED, B: WrongServer("HTTP")}, ConnectionLost, "a:1: refused; b:2: HTTP"),
        ({A: WrongServer("HTTP"), B: WrongServer("expired")}, WrongServer, "a:1: HTTP; b:2: expired"),
    ],
)
def test_asking_again_is_of_no_use_where_all_are_something_else(
    failures: dict[Address, Exception], error: type[Exception], said: str
) -> None:
    candidates = Candidates(list(failures), None, Deadline(20))
    for address, failure in failures.items():
        assert candidates.may_go_on(address, failure)
    assert type(candidates.exhausted()) is error
    assert str(candidates.exhausted()) == said


def test_a_child_closes_what_it_has_inherited(listening: str) -> None:
    sock = dial(listening)
    forks._after_fork_in_child()
    assert sock.fileno() == -1


@pytest.mark.skipif(sys.platform == "win32", reason="no fork here")
@pytest.mark.parametrize("fork", ["os.fork", "fork(2)"])
def test_a_socket_in_the_making_of_which_its_thread_forks_is_made_again_in_the_child(fork: str) -> None:
    """Else both would connect it, and talk to the server on one connection."""
    run_script(
        """
        import ctypes, os, socket, sys
        from statestore import dial

        fork = {"os.fork": os.fork, "fork(2)": ctypes.PyDLL(None).fork}[sys.argv[1]]
        children = []

        class ForkingSocket(dial.ClientSocket):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                if not children:
                    children.append(fork())

        dial.ClientSocket = ForkingSocket
        reading, writing = os.pipe()
        with dial.open_sockets.new(socket.AF_INET) as sock:
            ours = os.fstat(sock.fileno()).st_ino
            if children[0] == 0:
                os.write(writing, str(ours).encode())
                os._exit(0)
            assert os.waitpid(children[0], 0)[1] == 0
            assert int(os.read(reading, 100)) != ours
        """,
        fork,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no fork here")
def test_a_child_that_closed_them_before_its_first_use_keeps_the_files_that_have_their_numbers_now() -> None:
    """As a daemon does it that closes all that it has inherited, and opens its log."""
    script = """
        import ctypes, os, sys
        from statestore import forks
        from statestore.address import parse_address
        from statestore.deadline import Deadline
        from statestore.dial import connect

        sock = connect(parse_address(sys.argv[1]), Deadline(20))
        if (child := ctypes.PyDLL(None).fork()) == 0:
            number = sock.fileno()
            os.close(number)
            log = os.open(os.devnull, os.O_WRONLY)
            assert log == number
            forks.detect_fork()
            os.fstat(log)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        sock.close()
        """
    with says(b"") as server:
        run_script(script, server.address)


def test_sockets_that_other_threads_are_about_to_make_do_not_get_into_a_child() -> None:
    script = """
        import os, sys, threading, time
        from statestore import dial
        from statestore.address import parse_address, parse_addresses
        from statestore.deadline import Deadline
        from statestore.dial import connect

        class SlowSocket(dial.ClientSocket):
            def __init__(self, *args):
                super().__init__(*args)
                time.sleep(0.001)

        dial.ClientSocket = SlowSocket

        def sockets():
            links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
            return [link for link in links if os.path.islink(link) and "socket:" in os.readlink(link)]

        def work():
            while not done.is_set():
                connect(parse_address(sys.argv[1]), Deadline(20)).close()

        done = threading.Event()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(100):
                child = os.fork()
                if child == 0:
                    os._exit(len(sockets()))
                assert os.waitpid(child, 0)[1] == 0, "a socket is shared"
        finally:
            done.set()
        """
    with says(b"") as server:
        run_script(script, server.address)
