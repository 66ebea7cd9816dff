"""The lock between processes and threads."""

import os
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from statestore.filelock import locked
from tests.client.scripts import finish, run_script, start_script

if sys.platform != "win32":
    import fcntl

INCREMENTS = 150
INCREMENT = f"""
import sys
from pathlib import Path
from statestore.filelock import locked

lock, counter = sys.argv[1], Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for _ in range({INCREMENTS}):
    with locked(lock):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_processes_take_turns(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [start_script(INCREMENT, str(tmp_path / "lock"), str(counter)) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        finish(process)
    assert counter.read_text() == str(3 * INCREMENTS)


def test_threads_take_turns(tmp_path: Path) -> None:
    lock, entered, leave, order = str(tmp_path / "lock"), threading.Event(), threading.Event(), []

    def hold() -> None:
        with locked(lock):
            entered.set()
            leave.wait(20)
            order.append("first")

    def wait() -> None:
        with locked(lock):
            order.append("second")

    with ExitStack() as stack:
        for run in (hold, wait):
            thread = threading.Thread(target=run)
            thread.start()
            stack.callback(thread.join)
            assert entered.wait(20)
        leave.set()
    assert order == ["first", "second"]


def test_an_exception_gives_it_back_and_closes_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), locked(path):
            raise KeyboardInterrupt
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no fork here")
def test_a_child_that_was_forked_inside_does_not_keep_it(tmp_path: Path) -> None:
    printed = run_script(
        """
        import os, signal, sys
        from statestore.filelock import locked

        reading, writing = os.pipe()
        with locked(sys.argv[1]):
            if os.fork() == 0:
                os.close(writing)
                os.read(reading, 1)  # lives as long as its parent
                os._exit(0)
        signal.alarm(3)  # ends us where we wait in vain
        with locked(sys.argv[1]):
            print("ours again")
        """,
        str(tmp_path / "lock"),
    )
    assert printed == "ours again\n"


FORKS = pytest.mark.parametrize("fork", ["os.fork", "fork(2)"])


@pytest.mark.skipif(sys.platform == "win32", reason="no fork here")
@FORKS
def test_a_child_does_not_have_it_when_its_parent_was_killed_inside(tmp_path: Path, fork: str) -> None:
    """The child may live for long: nobody else would get the lock until it ends."""
    printed = run_script(
        """
        import ctypes, os, signal, sys, threading
        from statestore import forks
        from statestore.filelock import locked

        fork = {"os.fork": os.fork, "fork(2)": ctypes.PyDLL(None).fork}[sys.argv[2]]
        reading, writing = os.pipe()
        if (parent := os.fork()) == 0:
            inside = threading.Event()

            def stay():
                with locked(sys.argv[1]):
                    inside.set()
                    threading.Event().wait()

            threading.Thread(target=stay, daemon=True).start()
            inside.wait(20)
            if fork() == 0:
                forks.detect_fork()
                os.write(writing, str(os.getpid()).encode())
                threading.Event().wait(20)
                os._exit(0)
            threading.Event().wait()
        child = int(os.read(reading, 20))
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        signal.alarm(5)  # ends us if we wait in vain
        with locked(sys.argv[1]):
            print("ours")
        os.kill(child, signal.SIGKILL)
        """,
        str(tmp_path / "lock"),
        fork,
    )
    assert printed == "ours\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no fork here")
@FORKS
def test_a_child_that_was_forked_inside_by_the_same_thread_does_not_unlock_its_parents(
    tmp_path: Path, fork: str
) -> None:
    printed = run_script(
        """
        import ctypes, os, subprocess, sys
        from statestore.filelock import locked

        fork = {"os.fork": os.fork, "fork(2)": ctypes.PyDLL(None).fork}[sys.argv[2]]
        parent = os.getpid()
        try:
            with locked(sys.argv[1]):
                if child := fork():
                    assert os.waitpid(child, 0)[1] == 0
                    import fcntl
                    with open(sys.argv[1]) as other:
                        try:
                            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        except BlockingIOError:
                            print("still ours")
        except OSError as error:
            assert os.getpid() != parent
            assert str(error) == "the process was forked while it held the lock"
            os._exit(0)
        """,
        str(tmp_path / "lock"),
        fork,
    )
    assert printed == "still ours\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open cannot be removed there")
def test_one_that_waited_for_a_file_that_was_removed_does_not_enter_beside_another(tmp_path: Path) -> None:
    """A cleaner of old files removed it: the next process makes a new file, and locks that."""
    lock = tmp_path / "lock"
    wait = """
        import sys
        from statestore import filelock

        flock = filelock._lock

        def lock_aloud(fd):
            print("waits", flush=True)
            flock(fd)

        filelock._lock = lock_aloud
        with filelock.locked(sys.argv[1]):
            print("entered", flush=True)
            sys.stdin.readline()
        """
    waiting = start_script(wait, str(lock))
    assert waiting.stdout is not None
    with locked(str(lock)):
        assert waiting.stdout.readline() == "waits\n"
        lock.unlink()
    # The first one is out. The file that the other one waited for is nobody's any more.
    assert waiting.stdout.readline() == "waits\n"
    assert waiting.stdout.readline() == "entered\n"
    with lock.open("r+") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finish(waiting)


def test_a_file_that_is_used_is_never_old(tmp_path: Path) -> None:
    """For cleaners that remove what was not changed for a long time."""
    path = tmp_path / "lock"
    with locked(str(path)):
        pass
    os.utime(path, (1, 1))
    with locked(str(path)):
        assert path.stat().st_mtime > 1_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="links take a privilege there")
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"), locked(str(tmp_path / "lock")):
        raise AssertionError("entered")
    assert not (tmp_path / "victim").exists()


def test_the_file_is_for_its_owner_only_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(str(path)):
        pass
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_path_that_cannot_be_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(str(tmp_path / "missing" / "lock")):
        raise AssertionError("entered")
