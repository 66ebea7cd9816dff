"""Each process, and each copy of a client, is a client of its own: no answer reaches another, and no write is lost.

Here two clients have the same past. If they shared their session, the daemon would take the writes of one for
repetitions of the other's, and acknowledge them without applying them.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from statestore import RemoteStorage
from tests.certificates import Authority
from tests.client.scripts import run_script
from tests.daemon import Daemon

WRITES = 50  # of each client
TOKEN = "a-secret-of-the-site"
PATIENCE = 60.0  # seconds after which it hangs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork here")

# What a script begins with. `fork` is os.fork or fork(2); `work` writes, and checks what it has written.
PRELUDE = """
    import asyncio, ctypes, os, sys, threading
    from statestore import AsyncRemoteStorage, RemoteStorage

    address, tls, fork, kind = sys.argv[1:5]
    fork = {"os.fork": os.fork, "fork(2)": ctypes.PyDLL(None).fork}[fork]
    tls = tls or None

    def new_storage(**settings):
        cls = {"blocking": RemoteStorage, "async": AsyncRemoteStorage}[kind]
        return cls(address, tls=tls, namespace="identity", **settings)

    def work(storage, name):
        if kind == "async":
            return asyncio.run(work_async(storage, name))
        for number in range(WRITES):
            storage.set("m", f"{name} {number}", name)
            assert storage.get("m", f"{name} {number}") == name

    async def work_async(storage, name):
        async with storage:
            for number in range(WRITES):
                await storage.set("m", f"{name} {number}", name)
                assert await storage.get("m", f"{name} {number}") == name

    def in_child(function, *arguments):
        if (child := fork()) == 0:
            try:
                function(*arguments)
                os._exit(0)
            finally:
                os._exit(1)
        return child

    def join(*children):
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
""".replace("WRITES", str(WRITES))

FORKS = pytest.mark.parametrize("fork", ["os.fork", "fork(2)"])
KINDS = pytest.mark.parametrize("kind", ["blocking", "async"])


def run(source: str, *arguments: str) -> str:
    return run_script(PRELUDE + source, *arguments)


def check(store: RemoteStorage, *names: str) -> None:
    """All that was acknowledged is there."""
    expected = {f"{name} {number}": name for name in names for number in range(WRITES)}
    found = {entry.sender: entry.state for entry in store.scan("m")}
    assert {sender: state for sender, state in found.items() if sender in expected} == expected


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    """A daemon with TLS, and the file of its authority."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    server = authority.issue("server")
    flags = [f"--tls-cert={server.certificate}", f"--tls-key={server.key}"]
    with Daemon(tmp_path_factory.mktemp("encrypted"), *flags) as daemon:
        yield daemon, str(authority.certificate)


# Forks

TWO_CHILDREN_AND_THEIR_PARENT = """
    storage = new_storage()
    work(storage, "parent")
    children = [in_child(work, storage, "first"), in_child(work, storage, "second")]
    work(storage, "parent again")
    join(*children)
"""


@KINDS
@FORKS
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_children_and_their_parent_lose_nothing(daemon: Daemon, transport: str, fork: str, kind: str) -> None:
    address = daemon.address if transport == "tcp" else daemon.unix_address
    run(TWO_CHILDREN_AND_THEIR_PARENT, address, "", fork, kind)
    with RemoteStorage(daemon.address, namespace="identity") as store:
        check(store, "parent", "first", "second", "parent again")


@KINDS
@FORKS
def test_children_and_their_parent_lose_nothing_with_tls(encrypted: tuple[Daemon, str], fork: str, kind: str) -> None:
    daemon, certificate = encrypted
    run(TWO_CHILDREN_AND_THEIR_PARENT, daemon.address, certificate, fork, kind)
    with RemoteStorage(daemon.address, tls=certificate, namespace="identity") as store:
        check(store, "parent", "first", "second", "parent again")


@KINDS
@FORKS
def test_a_grandchild_whose_parent_did_not_use_the_client_is_its_own(daemon: Daemon, fork: str, kind: str) -> None:
    run(
        """
    def fork_again(storage):
        grandchild = in_child(work, storage, "grandchild")
        work(storage, "child")
        join(grandchild)

    storage = new_storage()
    work(storage, "parent")
    join(in_child(lambda: join(in_child(work, storage, "grandchild of an idle one"))), in_child(fork_again, storage))
    """,
        daemon.address,
        "",
        fork,
        kind,
    )
    with RemoteStorage(daemon.address, namespace="identity") as store:
        check(store, "grandchild of an idle one", "grandchild", "child")


@FORKS
def test_a_child_that_is_forked_while_threads_are_within_calls_is_its_own(daemon: Daemon, fork: str) -> None:
    """Each place of the pool is taken.

    No thread runs Python code at that moment: if one did, Python itself could hang in the child of a fork(2), because a
    thread that is not there would have the lock of the GIL.
    """
    run(
        """
    from statestore.connection import Connection

    storage = new_storage(pool=2)
    work(storage, "parent")
    within, leave = threading.Semaphore(0), threading.Event()
    call = Connection.call

    def stay(*arguments):
        response = call(*arguments)
        if threading.current_thread() in threads:
            within.release()
            leave.wait()
        return response

    Connection.call = stay
    threads = [threading.Thread(target=work, args=[storage, f"thread {number}"]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        within.acquire()
    children = [in_child(work, storage, "child"), in_child(work, storage, "other child")]
    join(*children)
    leave.set()
    for thread in threads:
        thread.join()
    """,
        daemon.address,
        "",
        fork,
        "blocking",
    )
    with RemoteStorage(daemon.address, namespace="identity") as store:
        check(store, "parent", "child", "other child", "thread 0", "thread 1")


@FORKS
def test_a_call_in_the_middle_of_which_its_process_forks_is_made_in_both(daemon: Daemon, fork: str) -> None:
    """As a signal handler does it, at any step of a call: while it connects, asks, or waits."""
    run(
        """
    import random, signal

    storage = new_storage()
    children = []
    is_child = False

    def handle(*_):
        global is_child
        child = fork()
        if child == 0:
            is_child = True
            children.clear()
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            children.append(child)

    signal.signal(signal.SIGALRM, handle)
    number = 0
    while len(children) < 60 and not is_child:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-3))
        while signal.getitimer(signal.ITIMER_REAL)[0] and not is_child:
            number += 1
            if number % 7 == 0:
                storage.close()
            try:
                storage.set("straddling", f"{number}", f"S{number}")
                assert storage.get("straddling", f"{number}") == f"S{number}"
            except Exception as error:
                # The write was sent by the parent, in the parent's session: what came of it only the parent can tell.
                assert is_child and type(error).__name__ == "Uncertain", repr(error)
    if is_child:
        code = 1
        try:
            work(storage, f"child {os.getpid()}")
            for write in range(WRITES):
                assert storage.get("m", f"child {os.getpid()} {write}") == f"child {os.getpid()}"
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    join(*children)
    for written in range(1, number + 1):
        assert storage.get("straddling", f"{written}") == f"S{written}"
    """.replace("WRITES", str(WRITES)),
        daemon.address,
        "",
        fork,
        "blocking",
    )


def test_a_fork_at_any_line_that_has_to_do_with_a_socket_leaves_two_clients(daemon: Daemon) -> None:
    """Each line of these files that a first call and one on its connection run is interrupted by a fork once."""
    run(
        """
    FILES = ("dial.py", "connection.py")
    forked_at = set()

    class Forks:
        child = None

        def __call__(self, frame, event, _):
            if not frame.f_code.co_filename.endswith(FILES):
                return None
            line = frame.f_code.co_filename, frame.f_lineno
            if event == "line" and line not in forked_at:
                forked_at.add(line)
                sys.settrace(None)
                self.child = fork()
            return self

    def call(name):
        storage = new_storage()
        for _ in range(2):
            try:
                storage.set("m", name, "A")
            except Exception as error:
                # The parent sent it, in its session: what came of it only the parent can tell.
                assert forks.child == 0 and type(error).__name__ == "Uncertain", repr(error)
            else:
                assert storage.get("m", name) == "A"
        storage.close()

    children = []
    while True:
        forks = Forks()
        code = 1
        try:
            sys.settrace(forks)
            try:
                call(f"straddling {len(forked_at)}")
            finally:
                sys.settrace(None)
            if forks.child == 0:
                call(f"child {len(forked_at)}")
            code = 0
        finally:
            if forks.child == 0:
                if code:
                    print(repr(sys.exception()), file=sys.stderr, flush=True)
                os._exit(code)
        if forks.child is None:
            break
        children.append(forks.child)
        if len(children) == 8:
            join(*children)
            children.clear()
    join(*children)
    assert len(forked_at) > 80, len(forked_at)
    """,
        daemon.address,
        "",
        "os.fork",
        "blocking",
    )


@FORKS
def test_a_child_that_is_forked_within_a_coroutine_is_its_own(daemon: Daemon, fork: str) -> None:
    """It leaves its parent's loop alone, and its parent goes on."""
    run(
        """
    storage = new_storage()
    loop = asyncio.new_event_loop()

    async def parent():
        await storage.set("m", "parent", "A")
        calls = [asyncio.create_task(storage.get("m", "parent")) for _ in range(10)]
        await asyncio.sleep(0)
        if (child := fork()) == 0:
            code = 1
            try:
                asyncio._set_running_loop(None)
                thread = threading.Thread(target=work, args=[storage, "child"])
                thread.start()
                thread.join()
                code = 0
            finally:
                os._exit(code)
        assert await asyncio.gather(*calls) == ["A"] * 10
        join(child)
        await storage.set("m", "parent", "B")
        assert await storage.get("m", "parent") == "B"
        await storage.close()

    loop.run_until_complete(parent())
    loop.close()
    """,
        daemon.address,
        "",
        fork,
        "async",
    )
    with RemoteStorage(daemon.address, namespace="identity") as store:
        check(store, "child")


# Copies

TWO_COPIES = """
    import copy, multiprocessing, pickle

    def duplicate(storage):
        return {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": by_pickle}[sys.argv[5]](storage)

    def by_pickle(storage):
        return pickle.loads(pickle.dumps(storage))
"""


@KINDS
@pytest.mark.parametrize("way", ["copy", "deepcopy", "pickle"])
def test_copies_of_a_client_lose_nothing(daemon: Daemon, kind: str, way: str) -> None:
    run(
        TWO_COPIES
        + """
    storage = new_storage()
    work(storage, "original")
    if kind == "blocking":
        storage.ping()  # it has a connection now
    first, second = duplicate(storage), duplicate(storage)
    work(first, "first")
    work(second, "second")
    work(storage, "original again")
    """,
        daemon.address,
        "",
        "os.fork",
        kind,
        way,
    )
    with RemoteStorage(daemon.address, namespace="identity") as store:
        check(store, "original", "first", "second", "original again")


@KINDS
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_workers_that_are_handed_a_client_lose_nothing(tmp_path: Path, kind: str, method: str) -> None:
    """The token is not in what they are handed, but in their environment."""
    with Daemon(tmp_path, environment={"STATESTORED_TOKEN": TOKEN}) as daemon:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.workers", daemon.address, kind, method, str(WRITES)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "STATESTORE_TOKEN": TOKEN},
        )
        assert ended.returncode == 0, ended.stderr
        with RemoteStorage(daemon.address, token=TOKEN, namespace="identity") as store:
            check(store, "parent", "first", "second")


# uWSGI


def test_the_workers_of_uwsgi_lose_nothing(daemon: Daemon) -> None:
    """With its defaults, by which it calls none of Python's hooks."""
    pytest.importorskip("pyuwsgi")
    with tempfile.TemporaryDirectory(prefix="ss-") as directory, Path(directory, "log").open("w+") as log:
        path = f"{directory}/s"
        command = [sys.executable, "-c", "import sys, pyuwsgi; pyuwsgi.run(sys.argv[1:])"]
        command += [f"--http-socket={path}", "--wsgi-file=tests/uwsgi_application.py"]
        command += ["--master", "--processes=4", "--need-app"]
        environment = {**os.environ, "STATESTORE_ADDRESS": daemon.address}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            wait_for(server, path)
            with ThreadPoolExecutor(8) as threads:
                answers = list(threads.map(lambda number: ask(path, f"/{number}"), range(200)))
        except Exception as error:
            log.seek(0)
            raise AssertionError(log.read()) from error
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # while it starts it takes no notice of SIGTERM
            server.wait(PATIENCE)
        assert len({pid for _, pid in answers}) > 1
        assert [state for state, _ in answers] == [f"/{number}" for number in range(200)]
    with RemoteStorage(daemon.address, namespace="uwsgi") as store:
        assert {entry.sender for entry in store.scan()} == {f"/{number}" for number in range(200)}


def wait_for(server: "subprocess.Popen[bytes]", path: str) -> None:
    """Until it listens there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with suppress(FileNotFoundError, ConnectionRefusedError), connected(path):
            return
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def ask(path: str, sender: str) -> tuple[str, str]:
    """What the application at the unix socket `path` answers: a state, and the process that read it."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = connected(path)
    try:
        connection.request("GET", sender)
        state, pid = connection.getresponse().read().decode().split()
    finally:
        connection.close()
    return state, pid
