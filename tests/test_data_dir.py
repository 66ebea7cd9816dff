"""What other programs and users do to the files of real daemons and commands, and what these make of it (D9)."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGUSR1

import pytest

from statestored.datadir import IDENTITY
from statestored.errors import Exit
from statestored.locks import LOCK_FILE as LOCK
from statestored.tokens import digest_of, read_tokens
from tests.daemon import STATESTORED, Daemon
from tests.server.damaged import bytes_of
from tests.server.rpc import RawClient
from tests.server.waiting import wait_until

MODULE = "app.join"
SENDERS = [f"sender{number}@example.org" for number in range(20)]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as daemon:
        yield daemon


def write_all(daemon: Daemon, state: str) -> None:
    with RawClient(daemon.address) as client:
        for sender in SENDERS:
            client.ask("set", MODULE, sender, state)


def read_all(daemon: Daemon) -> set[str]:
    with RawClient(daemon.address) as client:
        return set(client.ask("get_many", [(MODULE, sender) for sender in SENDERS]))


def make_snapshot(daemon: Daemon) -> None:
    before = daemon.log().count("snapshot written")
    daemon.send_signal(SIGUSR1)
    wait_until(lambda: daemon.log().count("snapshot written") > before)


def restart_after_kill(daemon: Daemon) -> Daemon:
    daemon.kill()
    return daemon.start()


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STATESTORED, name, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


# The lock


def test_without_its_lock_file_a_running_daemon_still_has_its_directory(tmp_path: Path, daemon: Daemon) -> None:
    """A cleaner of old files removes the lock file; nobody else may come in for that."""
    write_all(daemon, "FIRST")
    second = Daemon(tmp_path)
    for _ in range(3):
        (daemon.data_dir / LOCK).unlink(missing_ok=True)
        refused = second.run()
        assert refused.returncode == Exit.CANNOT_START
        assert f"data directory {daemon.data_dir} is in use" in refused.stderr
    second.close()
    for name in ("check", "repair"):
        (daemon.data_dir / LOCK).unlink(missing_ok=True)
        done = command(name, daemon.data_dir)
        assert (done.returncode, done.stdout) == (Exit.CANNOT_START, "")
        assert f"data directory {daemon.data_dir} is in use" in done.stderr
    write_all(daemon, "SECOND")
    assert read_all(restart_after_kill(daemon)) == {"SECOND"}


def test_a_daemon_of_an_older_release_that_locks_the_file_alone_keeps_a_new_one_out(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    with (daemon.data_dir / LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = daemon.run()
        assert refused.returncode == Exit.CANNOT_START
        assert "is in use" in refused.stderr
        for name in ("check", "repair"):
            assert command(name, daemon.data_dir).returncode == Exit.CANNOT_START
    daemon.start()


def test_a_removed_lock_file_is_made_and_locked_again(daemon: Daemon) -> None:
    """For daemons of older releases, which look at nothing else."""
    lock = daemon.data_dir / LOCK
    lock.unlink()
    wait_until(lambda: lock.exists() and lock.read_text().startswith(f"{daemon.pid} on "))
    with lock.open("r+") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_daemon_ends_if_an_older_release_has_taken_its_lock_file(daemon: Daemon) -> None:
    lock = daemon.data_dir / LOCK
    with (daemon.data_dir / "new").open("w") as new:
        fcntl.flock(new, fcntl.LOCK_EX)
        (daemon.data_dir / "new").rename(lock)
        assert daemon.wait() == Exit.DISK_FAILED
    assert str(lock) in daemon.log()
    assert "Traceback" not in daemon.log()


# Files removed or replaced while the daemon runs


@pytest.mark.parametrize("pattern", ["*.journal", "*.snapshot", "*", "[!0]*"])
def test_what_was_removed_while_the_daemon_runs_is_written_again(daemon: Daemon, pattern: str) -> None:
    """Otherwise nothing would be there after the next start, or it would refuse to start."""
    write_all(daemon, "FIRST")
    make_snapshot(daemon)
    write_all(daemon, "SECOND")
    store_id = (daemon.data_dir / IDENTITY).read_text()
    for path in daemon.data_dir.glob(pattern):
        path.unlink()
    wait_until(lambda: command_would_succeed(daemon.data_dir))
    daemon = restart_after_kill(daemon)
    assert read_all(daemon) == {"SECOND"}
    assert (daemon.data_dir / IDENTITY).read_text() == store_id


@pytest.mark.parametrize("pattern", ["*.journal", "*.snapshot", "[!0]*", "*"])
def test_what_was_removed_just_before_the_daemon_stops_is_written_again(daemon: Daemon, pattern: str) -> None:
    """Sooner than the daemon's next look. Otherwise it ended as if all were well, and a new store was made."""
    write_all(daemon, "FIRST")
    make_snapshot(daemon)
    write_all(daemon, "SECOND")
    for path in daemon.data_dir.glob(pattern):
        path.unlink()
    assert daemon.stop() == Exit.STOPPED
    assert read_all(daemon.start()) == {"SECOND"}


def command_would_succeed(data_dir: Path) -> bool:
    """Whether a copy of the directory is sound."""
    copy = data_dir.with_name("copy")
    shutil.copytree(data_dir, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.tmp"))
    done = command("check", copy)
    shutil.rmtree(copy)
    return done.returncode == 0 and f"Sound: {len(SENDERS)} entries" in done.stdout


def test_a_daemon_whose_directory_was_moved_ends_and_leaves_it_whole(daemon: Daemon) -> None:
    write_all(daemon, "FIRST")
    moved = daemon.data_dir.rename(daemon.data_dir.with_name("moved"))
    daemon.data_dir.mkdir(0o700)
    assert daemon.wait() == Exit.DISK_FAILED
    assert f"data directory {daemon.data_dir}" in daemon.log()
    assert "Traceback" not in daemon.log()
    assert list(daemon.data_dir.iterdir()) == []
    daemon.data_dir.rmdir()
    moved.rename(daemon.data_dir)
    assert read_all(daemon.start()) == {"FIRST"}


def test_a_daemon_whose_directory_was_removed_ends(daemon: Daemon) -> None:
    shutil.rmtree(daemon.data_dir)
    assert daemon.wait() == Exit.DISK_FAILED
    assert f"data directory {daemon.data_dir}" in daemon.log()
    assert not daemon.data_dir.exists()


def test_a_daemon_whose_segment_was_replaced_ends_and_leaves_the_other_file_alone(daemon: Daemon) -> None:
    """Such as by a backup that is restored without stopping it."""
    write_all(daemon, "FIRST")
    backup = shutil.copytree(daemon.data_dir, daemon.data_dir.with_name("backup"))
    write_all(daemon, "SECOND")
    for path in backup.glob("*.journal"):
        path.rename(daemon.data_dir / path.name)
    assert daemon.wait() == Exit.DISK_FAILED
    assert "00000001.journal" in daemon.log()
    assert "Traceback" not in daemon.log()
    assert read_all(daemon.start()) == {"FIRST"}


# A directory that is not the daemon's own


def test_a_directory_with_other_files_is_refused_and_stays_as_it_is(daemon: Daemon) -> None:
    daemon.stop()
    home = daemon.data_dir.with_name("home")
    home.mkdir()
    (home / "thesis.tex").write_text("precious")
    daemon.data_dir = home
    done = daemon.run()
    assert done.returncode == Exit.CANNOT_START
    assert f"data directory {home}" in done.stderr
    assert "thesis.tex" in done.stderr
    assert bytes_of(home) == {"thesis.tex": b"precious"}


def test_a_store_is_made_beside_the_file_of_tokens_that_the_daemon_is_given(tmp_path: Path) -> None:
    tokens = tmp_path / "data" / "tokens.toml"
    tokens.parent.mkdir(0o700)
    token = command("token", tokens, "one").stdout.strip()
    with Daemon(tmp_path, f"--tokens={tokens}") as daemon:
        assert command("token", tokens, "two").returncode == 0  # although the daemon has locked the directory
        with RawClient(daemon.address) as client:
            client.ask("hello", {"token": token})


@pytest.mark.parametrize("name", ["store.json", "00000001.journal", "lock"])
def test_a_link_in_the_directory_is_not_followed(daemon: Daemon, name: str) -> None:
    write_all(daemon, "FIRST")
    daemon.stop()
    elsewhere = daemon.data_dir.with_name("elsewhere")
    (daemon.data_dir / name).rename(elsewhere)
    (daemon.data_dir / name).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    done = daemon.run()
    assert done.returncode == Exit.CANNOT_START
    assert f"{daemon.data_dir / name} is a symbolic link" in done.stderr
    for offline in ("check", "repair"):
        done = command(offline, daemon.data_dir)
        assert done.returncode == Exit.CANNOT_START
        assert f"{daemon.data_dir / name} is a symbolic link" in done.stderr
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("name", ["00000002.journal.tmp", "store.json.tmp", "00000001.journal.tmp"])
def test_a_link_for_a_temporary_name_is_removed_and_not_followed(tmp_path: Path, name: str) -> None:
    victim, data_dir = tmp_path / "victim", tmp_path / "data"
    victim.write_text("precious")
    data_dir.mkdir(0o700)
    (data_dir / name).symlink_to(victim)
    with Daemon(tmp_path) as daemon:
        (data_dir / "00000002.snapshot.tmp").symlink_to(victim)
        write_all(daemon, "FIRST")
        make_snapshot(daemon)
        assert read_all(restart_after_kill(daemon)) == {"FIRST"}
    assert victim.read_text() == "precious"


def test_a_directory_that_is_a_link_is_followed(tmp_path: Path) -> None:
    """As systemd makes one for DynamicUser=, and people do to put it on another disk."""
    (tmp_path / "disk").mkdir(0o700)
    (tmp_path / "data").symlink_to("disk")
    with Daemon(tmp_path) as daemon:
        write_all(daemon, "FIRST")
        assert read_all(restart_after_kill(daemon)) == {"FIRST"}


def test_a_directory_that_everybody_may_change_is_refused(daemon: Daemon) -> None:
    daemon.stop()
    daemon.data_dir.chmod(0o777)
    done = daemon.run()
    assert done.returncode == Exit.CANNOT_START
    assert f"chmod o-w {daemon.data_dir}" in done.stderr
    daemon.data_dir.chmod(0o1777)  # as in the container image
    daemon.start()


# Tokens


def test_tokens_that_are_made_at_the_same_time_are_all_in_the_file(tmp_path: Path) -> None:
    path, names = tmp_path / "tokens.toml", [f"token{number}" for number in range(8)]
    for _ in range(2):
        with ThreadPoolExecutor(len(names)) as threads:
            done = list(threads.map(lambda name: command("token", path, name), names))
        assert [each.returncode for each in done] == [0] * len(names)
        printed = {digest_of(each.stdout.strip().encode()) for each in done}
        assert printed <= {token.digest for token in read_tokens(path)}
        names = [f"{name}-more" for name in names]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["tokens.toml.tmp", "tokens.toml"])
@pytest.mark.skipif(os.geteuid() != 0, reason="takes a directory of another user")
def test_root_is_not_led_to_another_file_by_a_link_of_the_directorys_owner(tmp_path: Path, name: str) -> None:
    victim, theirs = tmp_path / "victim", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / name).symlink_to(victim)
    os.chown(theirs, 10001, 10001)
    os.chown(theirs / name, 10001, 10001, follow_symlinks=False)
    victim.write_text("# of root")
    done = command("token", theirs / "tokens.toml", "one")
    assert victim.read_text() == "# of root"
    if name == "tokens.toml":
        assert done.returncode == Exit.CANNOT_START
        assert "belongs to user 10001" in done.stderr
    else:
        assert done.returncode == 0
