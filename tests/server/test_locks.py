"""A lock is held by one process, and cannot be taken away by removing a file."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from statestored import files, locks
from statestored.errors import Displaced, StartError
from statestored.locks import LOCK_FILE, DataDirectoryLock, file_locked, lock_directory, lock_file

UNSUPPORTED = [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP]


@pytest.fixture
def without_directory_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some file systems: files can be locked, and directories cannot."""
    flock = fcntl.flock

    def refuse_directories(fd: int, operation: int) -> None:
        if os.path.isdir(f"/dev/fd/{fd}"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(fd, operation)

    monkeypatch.setattr(locks.fcntl, "flock", refuse_directories)


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[DataDirectoryLock]:
    """Held by a writer."""
    with closing(DataDirectoryLock(tmp_path)) as lock:
        lock.lock_directory("stop it")
        lock.lock_file("stop it")
        yield lock


# Files


def test_a_locked_file_is_refused_to_others_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    fd = lock_file(path)
    with pytest.raises(BlockingIOError):
        lock_file(path)
    os.close(fd)
    os.close(lock_file(path))


def test_a_file_that_was_removed_while_it_was_being_locked_is_not_the_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock, removed = tmp_path / "lock", fcntl.flock, []

    def remove_and_lock(fd: int, operation: int) -> None:
        if not removed:
            path.unlink()
            removed.append(path)
        flock(fd, operation)

    monkeypatch.setattr(locks.fcntl, "flock", remove_and_lock)
    fd = lock_file(path)
    assert files.is_at(path, fd)
    os.close(fd)


def test_a_link_is_not_followed_to_the_file_that_is_locked(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        lock_file(tmp_path / "lock")
    assert not (tmp_path / "victim").exists()


def test_those_who_wait_for_a_file_take_turns(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def enter() -> None:
        for _ in range(20):
            with file_locked(tmp_path / "lock", 20):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert [*tmp_path.iterdir()] == []


def test_nobody_waits_for_a_file_without_end(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_locked(path, 1), pytest.raises(TimeoutError), file_locked(path, 0.05):
        pass


# Directories


def test_a_locked_directory_is_refused_to_others(tmp_path: Path) -> None:
    with files.open_directory(tmp_path) as one, files.open_directory(tmp_path) as other:
        assert lock_directory(one, shared=True)
        assert lock_directory(other, shared=True)
        with pytest.raises(BlockingIOError):
            lock_directory(other)


@pytest.mark.parametrize("number", UNSUPPORTED)
def test_a_file_system_without_locks_of_directories_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with files.open_directory(tmp_path) as fd:
        assert not lock_directory(fd)


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from statestored.locks import DataDirectoryLock\n"
        "lock = DataDirectoryLock(Path(sys.argv[1])); lock.lock_directory(''); lock.lock_file('')\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with closing(DataDirectoryLock(tmp_path)) as other:
            with pytest.raises(StartError, match=f"process {process.pid} on "):
                other.lock_directory("stop it")
            process.kill()
            process.wait()
            other.lock_directory("stop it")
            other.lock_file("stop it")


# A data directory


@pytest.mark.usefixtures("without_directory_locks", "lock")
def test_the_file_alone_keeps_others_out_if_the_directory_cannot_be_locked(tmp_path: Path) -> None:
    with closing(DataDirectoryLock(tmp_path)) as other:
        other.lock_directory("stop it")
        with pytest.raises(StartError, match=f"process {os.getpid()} on .*: stop it$"):
            other.lock_file("stop it")
        with pytest.raises(StartError, match=f"process {os.getpid()} on .*: stop it$"):
            other.share_file("stop it")


@pytest.mark.usefixtures("without_directory_locks")
def test_one_of_two_that_both_took_the_lock_file_is_told(tmp_path: Path, lock: DataDirectoryLock) -> None:
    """The file was removed in between, and there is no other lock."""
    (tmp_path / LOCK_FILE).unlink()
    with closing(DataDirectoryLock(tmp_path)) as other:
        other.lock_directory("stop it")
        other.lock_file("stop it")
        other.check_in_place()
        with pytest.raises(Displaced, match="another process has locked it"):
            lock.check_in_place()


@pytest.mark.usefixtures("lock")
@pytest.mark.parametrize("shared", [False, True])
def test_the_file_is_not_needed_to_keep_others_out(tmp_path: Path, shared: bool) -> None:
    (tmp_path / LOCK_FILE).unlink()
    with (
        closing(DataDirectoryLock(tmp_path)) as other,
        pytest.raises(StartError, match="is in use by another process: stop it"),
    ):
        other.lock_directory("stop it", shared=shared)


def test_a_removed_file_is_made_and_locked_again(tmp_path: Path, lock: DataDirectoryLock) -> None:
    path = tmp_path / LOCK_FILE
    lock.check_in_place()
    path.unlink()
    with capture_logs() as logs:
        lock.check_in_place()
        lock.check_in_place()
    assert [entry["path"] for entry in logs] == [str(path)]
    assert path.read_text().startswith(f"{os.getpid()} on ")
    with pytest.raises(BlockingIOError):
        lock_file(path)


@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_directory_that_is_no_longer_at_its_path_is_noticed(tmp_path: Path, is_made_again: bool) -> None:
    path = tmp_path / "data"
    path.mkdir()
    with closing(DataDirectoryLock(path)) as lock:
        lock.lock_directory("stop it")
        lock.check_in_place()
        path.rename(tmp_path / "moved")
        if is_made_again:
            path.mkdir()
        with pytest.raises(Displaced, match=str(path)):
            lock.check_in_place()


def test_readers_share_it_and_make_no_file(tmp_path: Path) -> None:
    with closing(DataDirectoryLock(tmp_path)) as one, closing(DataDirectoryLock(tmp_path)) as other:
        for reader in (one, other):
            reader.lock_directory("stop it", shared=True)
            reader.share_file("stop it")
        one.check_in_place()
    assert [*tmp_path.iterdir()] == []


def test_the_owner_is_not_written_into_a_file_that_has_another_name(tmp_path: Path) -> None:
    """It may be any file, to which somebody made a link."""
    victim = tmp_path.with_name(f"{tmp_path.name}-victim")
    victim.write_text("precious")
    (tmp_path / LOCK_FILE).hardlink_to(victim)
    with closing(DataDirectoryLock(tmp_path)) as lock:
        lock.lock_directory("stop it")
        lock.lock_file("stop it")
    assert victim.read_text() == "precious"


def test_its_descriptors_are_closed_with_it(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with closing(DataDirectoryLock(tmp_path)) as lock:
            lock.lock_directory("stop it")
            lock.lock_file("stop it")
            (tmp_path / LOCK_FILE).unlink()
            lock.check_in_place()
    assert len(os.listdir("/dev/fd")) == before
