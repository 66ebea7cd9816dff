"""The commands `check` and `repair`, on directories that real daemons left, and what a daemon makes of them then."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from statestore import RemoteStorage
from tests.daemon import STATESTORED, Daemon
from tests.faults.strace import Strace
from tests.server.damaged import bytes_of, flip, flip_frame
from tests.server.journals import frames
from tests.server.waiting import wait_until

SENDERS = 40
WRITTEN = {
    "early@example.org": "IN THE SNAPSHOT",
    **{f"sender{number}@example.org": f"STATE {number}" for number in range(SENDERS)},
    "late@example.org": "IN THE SECOND LIFE",
}


def run(*arguments: object, under: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*under, *STATESTORED, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Killed. It left a snapshot, a segment with a batch for each sender, and one of its second life."""
    with Daemon(tmp_path) as daemon:
        with RemoteStorage(daemon.address) as store:
            store.set("lists", "early@example.org", WRITTEN["early@example.org"])
            daemon.send_signal(signal.SIGUSR1)
            wait_until(lambda: "snapshot written" in daemon.log())
            for sender in [*WRITTEN][1:-1]:
                store.set("lists", sender, WRITTEN[sender])
        daemon.kill()
        daemon.start()
        with RemoteStorage(daemon.address) as store:
            store.set("lists", "late@example.org", WRITTEN["late@example.org"])
        daemon.kill()
        yield daemon


def in_it(daemon: Daemon) -> dict[str | None, str]:
    """What it says, started again."""
    daemon.start()
    with RemoteStorage(daemon.address) as store:
        found = {entry.sender: entry.state for entry in store.scan()}
    assert daemon.stop() == 0
    return found


def test_a_store_whose_daemon_was_killed_is_sound_and_stays_as_it_is(daemon: Daemon) -> None:
    before = bytes_of(daemon.data_dir)
    done = run("check", daemon.data_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Sound: {len(WRITTEN)} entries in 1 namespace." in done.stdout
    assert bytes_of(daemon.data_dir) == before
    done = run("repair", daemon.data_dir)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Nothing to repair.\n", "")
    assert in_it(daemon) == WRITTEN


def test_a_damaged_store_is_refused_described_repaired_and_used_again(daemon: Daemon) -> None:
    """Each says the same."""
    segment = daemon.data_dir / "00000002.journal"
    # Between the batches there may be some that only say what is on the disk.
    lost = flip_frame(segment, next(i for i, frame in enumerate(frames(segment)) if b"STATE 7" in frame.payload))
    refused = daemon.run()
    assert refused.returncode == 3
    assert f"{segment} is damaged at byte {lost.offset}" in refused.stderr

    checked = run("check", daemon.data_dir)
    assert (checked.returncode, checked.stderr) == (3, "")
    assert f"at byte {lost.offset:,}" in checked.stdout
    assert f"Repair would save {len(WRITTEN) - 1} entries in 1 namespace." in checked.stdout
    assert "It would lose 1 batch, going by their numbers." in checked.stdout

    repaired = run("repair", daemon.data_dir)
    assert (repaired.returncode, repaired.stderr) == (0, "")
    assert repaired.stdout.startswith(f"Repaired: {len(WRITTEN) - 1} entries in 1 namespace")

    assert run("check", daemon.data_dir).returncode == 0
    assert in_it(daemon) == {sender: state for sender, state in WRITTEN.items() if state != "STATE 7"}


def test_what_is_written_after_a_repair_survives_the_next_kill_and_the_next_repair(daemon: Daemon) -> None:
    flip(daemon.data_dir / "00000003.journal", 100)
    assert run("repair", daemon.data_dir).returncode == 0
    daemon.start()
    with RemoteStorage(daemon.address) as store:
        store.set("lists", "after@example.org", "REPAIRED")
    daemon.kill()
    flip(daemon.data_dir / "store.json", 3)
    assert run("check", daemon.data_dir).returncode == 3
    assert run("repair", daemon.data_dir).returncode == 0
    assert in_it(daemon) == {**WRITTEN, "after@example.org": "REPAIRED"}


def test_where_nothing_can_be_read_it_says_so(daemon: Daemon) -> None:
    for path in daemon.data_dir.glob("0*"):
        path.write_bytes(bytes(5000))
    for command in ("check", "repair"):
        done = run(command, daemon.data_dir)
        assert done.returncode == 3
        assert "Nothing in it can be read" in done.stdout


def test_a_running_daemon_is_not_disturbed(daemon: Daemon) -> None:
    """D9"""
    daemon.start()
    for command in ("check", "repair"):
        done = run(command, daemon.data_dir)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"in use by another statestored (process {daemon.pid} on " in done.stderr
        assert done.stderr.count("\n") == 1
    with RemoteStorage(daemon.address) as store:
        assert store.get("lists", "late@example.org") == WRITTEN["late@example.org"]


@pytest.mark.parametrize("command", ["check", "repair"])
def test_what_cannot_be_done_has_its_exit_code(command: str, tmp_path: Path) -> None:
    done = run(command, tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("statestored: there is no directory ")
    assert run(command, tmp_path).returncode == 1
    assert run(command).returncode == 2
    assert run(command, "--data-dir", tmp_path).returncode == 2
    (tmp_path / "store.json").write_text('{"format": 2}')
    done = run(command, tmp_path)
    assert done.returncode == 1
    assert "start a newer one" in done.stderr


@pytest.mark.parametrize("command", ["check", "repair"])
def test_the_settings_of_the_daemon_are_none_of_their_business(command: str, daemon: Daemon) -> None:
    done = run(command, daemon.data_dir, STATESTORED_MAX_STATE="many", STATESTORED_CONFIG="/nowhere.toml")
    assert (done.returncode, done.stderr) == (0, "")


def test_help_lists_them() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "  check   Say what is in a data directory" in done.stdout
    assert "  repair  Save what can be read" in done.stdout
    for command, flag in (("check", "-h"), ("repair", "--help")):
        done = run(command, flag)
        assert done.returncode == 0
        assert f"Usage: statestored {command} [OPTIONS] DIR" in done.stdout
        assert "Exit codes: 0 " in done.stdout


@pytest.mark.parametrize("command", ["check", "repair"])
def test_an_end_by_a_signal_is_not_taken_for_a_good_one(command: str, tmp_path: Path) -> None:
    """The daemon's is: who asks it to stop while it starts gets 0."""
    fifo = tmp_path / "data" / "store.json"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    with (
        subprocess.Popen([*STATESTORED, command, str(fifo.parent)], stdout=subprocess.PIPE) as process,
        fifo.open("wb"),
    ):  # opens when the other side does
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT


@pytest.mark.parametrize("command", ["check", "repair"])
def test_a_disk_that_cannot_be_read_has_its_exit_code(command: str, daemon: Daemon, tmp_path: Path) -> None:
    """D6: it is no damage, which a repair could mend."""
    segment = daemon.data_dir / "00000002.journal"
    strace = Strace(tmp_path / "trace", [segment], calls="read", tamper="read:error=EIO:when=1+")
    done = run(command, daemon.data_dir, under=strace.command())
    assert (done.returncode, done.stdout) == (4, "")
    assert "Input/output error" in done.stderr
    assert not [*daemon.data_dir.glob("damaged-*")]
