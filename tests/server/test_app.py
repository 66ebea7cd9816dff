"""The daemon as a process of its own: how it starts, or says why not; how it ends, and what is there afterwards."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from statestore.address import Address, parse_address
from statestored import files
from statestored.access import Access
from statestored.app import check_addresses, check_reach, serve
from statestored.errors import DiskFailed, Exit, StartError
from statestored.framing import Kind, Sequence
from statestored.listener import Listener
from statestored.settings import Settings
from statestored.snapshot import SnapshotWriter, verify_snapshot
from tests.daemon import Daemon
from tests.server.fakes import Gate, some_turns
from tests.server.rpc import RawClient, code_of, messages, request
from tests.server.waiting import eventually, wait_until

ANN = ("lists", "ann@a.example")
NO_SNAPSHOTS = ("--snapshot-interval=0", "--snapshot-journal-size=0")
TOKEN = "open-sesame-5f0c"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Daemons in directories of their own, unless told otherwise; not started yet."""
    with contextlib.ExitStack() as stack:

        def make(*arguments: str, name: str = "one", environment: dict[str, str] | None = None) -> Daemon:
            directory = tmp_path / name
            directory.mkdir(exist_ok=True)
            daemon = Daemon(directory, *arguments, environment=environment)
            stack.callback(daemon.__exit__)
            return daemon

        yield make


Make = Callable[..., Daemon]


def ask(daemon: Daemon, method: str, *params: Any) -> Any:
    with RawClient(daemon.address) as client:
        return client.ask(method, *params)


def snapshots(daemon: Daemon) -> list[Path]:
    return sorted(daemon.data_dir.glob("*.snapshot"))


def segments(daemon: Daemon) -> list[Path]:
    return sorted(daemon.data_dir.glob("*.journal"))


def make_snapshot(daemon: Daemon) -> None:
    """On demand."""
    before = daemon.log().count('event="snapshot written"')
    daemon.send_signal(signal.SIGUSR1)
    wait_until(lambda: daemon.log().count('event="snapshot written"') > before)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"}


def refusal(daemon: Daemon, code: Exit) -> str:
    """The one line with which it refuses to start."""
    done = daemon.run()
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("timestamp=")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("statestored: ")
    return said[0]


# How it ends


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_keeps_all_and_is_successful(make: Make, signum: int) -> None:
    """O1: without a snapshot, for the journal suffices."""
    daemon = make(*NO_SNAPSHOTS).start()
    ask(daemon, "set", *ANN, "CONFIRMING")
    store_id = ask(daemon, "info")["store_id"]
    assert daemon.stop(signum) == Exit.STOPPED
    assert snapshots(daemon) == []
    daemon.start()
    assert ask(daemon, "get", *ANN) == "CONFIRMING"
    assert ask(daemon, "info")["store_id"] == store_id
    assert daemon.stop() == Exit.STOPPED


@pytest.mark.parametrize("fsync", ["always", "everysec", "never"])
def test_stopping_under_load_takes_nothing_that_was_acknowledged(make: Make, fsync: str) -> None:
    """O1: within five seconds, however busy it is."""
    daemon = make(*NO_SNAPSHOTS, f"--fsync={fsync}").start()
    writers = [Writer(daemon.address, f"sender{number}") for number in range(8)]
    wait_until(lambda: all(writer.acknowledged > 20 for writer in writers))
    started = time.monotonic()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait() == Exit.STOPPED
    assert time.monotonic() - started < 5
    daemon.start()
    for writer in writers:
        writer.join()
        found = int(ask(daemon, "get", "lists", writer.sender))
        assert writer.acknowledged <= found <= writer.sent


@pytest.mark.parametrize("fsync", ["always", "everysec", "never"])
def test_a_kill_under_load_takes_nothing_that_was_acknowledged(make: Make, fsync: str) -> None:
    """D1, D2."""
    daemon = make("--snapshot-interval=0.1", f"--fsync={fsync}").start()
    for _ in range(2):
        writers = [Writer(daemon.address, f"sender{number}") for number in range(8)]
        wait_until(lambda writers=writers: all(writer.acknowledged > 20 for writer in writers))  # type: ignore[misc]
        daemon.kill()
        daemon.start()
        for writer in writers:
            writer.join()
            found = int(ask(daemon, "get", "lists", writer.sender))
            assert writer.acknowledged <= found <= writer.sent


class Writer(threading.Thread):
    """Writes one number after the other, some at a time, until it gets no answer any more."""

    def __init__(self, address: str, sender: str) -> None:
        super().__init__()
        self.sender = sender
        self.sent = self.acknowledged = 0
        self._client = RawClient(address)
        self.start()

    def run(self) -> None:
        with self._client, contextlib.suppress(ConnectionError):
            while True:
                numbers = range(self.sent + 1, self.sent + 6)
                self.sent = numbers[-1]
                self._client.send(*[request(number, "set", "lists", self.sender, str(number)) for number in numbers])
                for number in numbers:
                    answer = self._client.next()
                    if answer is None or answer[2] is not None:
                        return
                    assert answer[1] == number
                    self.acknowledged = number


def test_stopping_keeps_what_was_acknowledged_and_nothing_else(make: Make) -> None:
    """Its client writes on and on, until it is told that the daemon is about to end, or is left without an answer."""
    daemon = make(*NO_SNAPSHOTS).start()
    with RawClient(daemon.address) as client:
        for number in itertools.count(1):
            with contextlib.suppress(BrokenPipeError):
                client.send(request(number, "set", *ANN, f"S{number}"))
            _, _, error, _ = client.next() or (1, number, "shutting_down: without a word", None)
            if error is not None:
                break
            if number == 10:
                daemon.send_signal(signal.SIGTERM)
        assert code_of(error) == "shutting_down"
        assert client.is_closed()
    assert daemon.wait() == Exit.STOPPED
    assert ask(daemon.start(), "get", *ANN) == f"S{number - 1}"


def test_a_second_signal_ends_it_at_once(make: Make) -> None:
    daemon = make().start()
    with RawClient(daemon.address) as client:
        client.ask("set_many", [["m", f"s{number}", "A" * 500] for number in range(400)])
        client.send(request(1, "scan", None, None, None, None) * 100)  # and never read: stopping takes its time
        wait_until(lambda: ask(daemon, "info")["calls"]["scan"] > 0)
        daemon.send_signal(signal.SIGTERM)
        wait_until(lambda: "event=stopping" in daemon.log())
        assert daemon.stop(signal.SIGINT) == 128 + signal.SIGINT


@pytest.mark.parametrize("fsync", ["always", "everysec", "never"])
def test_what_was_acknowledged_survives_a_kill(make: Make, fsync: str) -> None:
    """D1."""
    daemon = make(*NO_SNAPSHOTS, f"--fsync={fsync}").start()
    ask(daemon, "set", *ANN, "CONFIRMING")
    make_snapshot(daemon)
    ask(daemon, "set", "lists", None, "POSTING")
    daemon.kill()
    daemon.start()
    assert ask(daemon, "get_many", [ANN, ["lists", None]]) == ["CONFIRMING", "POSTING"]


def test_snapshots_are_written_from_time_to_time(make: Make) -> None:
    daemon = make("--snapshot-interval=0.02", "--snapshot-journal-size=0").start()
    for state in ("CONFIRMING", "POSTING"):
        ask(daemon, "set", *ANN, state)
        wait_until(lambda: ask(daemon, "info")["changes_since_snapshot"] == 0)
        assert len(snapshots(daemon)) == len(segments(daemon)) == 1
    wait_until(lambda: daemon.log().count('event="snapshot written"') == 2)
    daemon.kill()
    assert ask(daemon.start(), "get", *ANN) == "POSTING"


def test_a_snapshot_is_written_when_the_journal_is_large(make: Make) -> None:
    daemon = make("--snapshot-interval=0", "--snapshot-journal-size=1").start()
    with RawClient(daemon.address) as client:
        for number in range(3):
            client.ask("set_many", [["lists", f"s{sender}", str(number) * 900] for sender in range(500)])
    wait_until(lambda: ask(daemon, "info")["changes_since_snapshot"] < 1000)
    assert len(snapshots(daemon)) == 1
    assert daemon.stop() == Exit.STOPPED


def test_a_snapshot_is_made_on_demand(make: Make) -> None:
    daemon = make(*NO_SNAPSHOTS).start()
    ask(daemon, "set", *ANN, "CONFIRMING")
    make_snapshot(daemon)
    assert len(snapshots(daemon)) == len(segments(daemon)) == 1
    assert ask(daemon, "info")["changes_since_snapshot"] == 0


def test_a_kill_while_a_snapshot_is_written_leaves_the_one_before(make: Make) -> None:
    daemon = make(*NO_SNAPSHOTS).start()
    ask(daemon, "set", *ANN, "CONFIRMING")
    make_snapshot(daemon)
    daemon.stop()
    unfinished = daemon.data_dir / "00000009.snapshot.tmp"
    unfinished.write_bytes(snapshots(daemon)[0].read_bytes()[:50])
    assert ask(daemon.start(), "get", *ANN) == "CONFIRMING"
    assert not unfinished.exists()


def test_a_directory_that_has_gone_ends_it_with_the_code_of_a_failed_disk(make: Make) -> None:
    daemon = make(*NO_SNAPSHOTS).start()
    ask(daemon, "set", *ANN, "CONFIRMING")
    shutil.rmtree(daemon.data_dir)
    daemon.send_signal(signal.SIGUSR1)
    assert daemon.wait() == Exit.DISK_FAILED
    assert "Traceback" not in daemon.log()
    assert str(daemon.data_dir) in daemon.log().splitlines()[-1]


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes with which the process was to end at once."""
    codes: list[int] = []
    monkeypatch.setattr("statestored.app.os._exit", codes.append)
    monkeypatch.setattr("statestored.listener.DRAIN", 0.01)
    monkeypatch.setattr("statestored.listener.PATIENCE", 0.01)
    return codes


@pytest.mark.parametrize("fsync", ["always", "everysec"])
async def test_a_disk_that_fails_ends_it_at_once_and_nothing_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[int], fsync: str
) -> None:
    """D6."""
    monkeypatch.setattr("statestored.engines.commits.SYNC_EVERY", 0.01)
    async with serving(tmp_path, fsync) as (serving_, path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(request(1, "set", *ANN, "CONFIRMING"))
        assert messages(await reader.readexactly(5)) == [[1, 1, None, None]]

        def fail(_: object) -> None:
            raise DiskFailed(OSError(5, "Input/output error"))

        with capture_logs() as logs:
            monkeypatch.setattr(files, "sync_file", fail)
            writer.write(request(2, "set", *ANN, "POSTING"))
            await eventually(lambda: ended)
        assert ended == [Exit.DISK_FAILED]
        serving_.cancel()  # what a process that is no more cannot do
        answers = messages(await reader.read())
        assert answers == ([] if fsync == "always" else [[1, 2, None, None]])
        assert [entry["event"] for entry in logs if entry["log_level"] == "critical"] == ["ended by a failure"]
        writer.close()


async def test_a_fault_of_its_own_where_it_stores_ends_it_as_a_failed_disk_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[int]
) -> None:
    """It does not know what is on the disk then, either. The log says whose fault it is."""
    async with serving(tmp_path, "always") as (serving_, path):
        reader, writer = await asyncio.open_unix_connection(path)
        with capture_logs() as logs:
            monkeypatch.setattr(files, "write_at", lambda *_: len(None))  # type: ignore[arg-type]
            writer.write(request(1, "set", *ANN, "CONFIRMING"))
            await eventually(lambda: ended)
        assert ended == [Exit.DISK_FAILED]
        serving_.cancel()  # what a process that is no more cannot do
        assert messages(await reader.read()) == []
        assert [type(entry["exc_info"]) for entry in logs if entry["log_level"] == "critical"] == [TypeError]
        writer.close()


async def test_a_disk_that_fails_while_it_stops_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[int]
) -> None:
    """D6, O1."""
    async with serving(tmp_path, "always") as (serving_, path):
        reader, writer = await asyncio.open_unix_connection(path)
        syncs = Gate(monkeypatch, files, "sync_file")
        syncs.shut()
        writer.write(request(1, "set", *ANN, "CONFIRMING"))
        await eventually(lambda: syncs.waiting)
        serving_.cancel()
        syncs.error = DiskFailed(OSError(5, "Input/output error"))
        syncs.open()
        await eventually(lambda: ended)
        assert ended == [Exit.DISK_FAILED]
        assert messages(await reader.read()) == []
        writer.close()


async def test_a_stop_closes_its_connections_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[int]
) -> None:
    """Also one that does not read within the time limit for that."""
    closed = []

    async def close(listener: Listener, close: Callable[[Listener], Any] = Listener.close) -> None:
        await close(listener)
        closed.append(listener)

    monkeypatch.setattr(Listener, "close", close)
    async with serving(tmp_path, "always") as (serving_, path):
        _, writer = await asyncio.open_unix_connection(path)
        serving_.cancel()
        await asyncio.wait([serving_])
        writer.transport.abort()
        await some_turns()  # a loop with connections that nobody has closed is not closed either
        assert len(closed) == 1
        assert serving_.cancelled()
    assert ended == []


@contextlib.asynccontextmanager
async def serving(directory: Path, fsync: str) -> AsyncIterator[tuple["asyncio.Task[None]", str]]:
    """The daemon as a task, and the path on which it listens."""
    with tempfile.TemporaryDirectory(prefix="ss-") as short:
        path = f"{short}/s"
        asked = replace(settings([f"unix:{path}"], f"unix:{short}/a"), data_dir=directory, fsync=fsync)
        asked = replace(asked, max_module=9, max_sender=99, max_state=99, max_namespaces=9)
        asked = replace(asked, max_modules=9, max_memory=0, max_connections=99, max_buffers=4 * 2**20)
        asked = replace(asked, snapshot_interval=0, snapshot_journal_size=0)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1)}
        task = asyncio.create_task(serve(asked, Access(), None))
        try:
            await eventually(lambda: task.done() or answers(path))
            yield task, path
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # that of a disk that failed, perhaps
            for number, handler in handlers.items():  # the end of uvloop's loop does not remove its own
                signal.signal(number, handler)


def answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


# What it refuses to start with


def test_a_data_directory_in_use_is_named_with_its_owners_pid(make: Make) -> None:
    first = make().start()
    second = make()
    assert second.data_dir == first.data_dir
    assert first.process is not None
    said = refusal(second, Exit.CANNOT_START)
    assert str(first.data_dir) in said
    assert re.search(rf"\bprocess {first.process.pid}\b", said)
    first.kill()
    assert second.start().stop() == Exit.STOPPED


def test_a_second_daemon_ends_soon_and_leaves_all_as_it_is(make: Make) -> None:
    """D9."""
    first = make(*NO_SNAPSHOTS).start()
    ask(first, "set", *ANN, "CONFIRMING")
    before = sorted(path.name for path in first.data_dir.iterdir())
    started = time.monotonic()
    assert str(first.data_dir) in refusal(make(), Exit.CANNOT_START)
    assert time.monotonic() - started < 5  # a second, and a slow machine's time to start Python
    assert sorted(path.name for path in first.data_dir.iterdir()) == before
    assert ask(first, "get", *ANN) == "CONFIRMING"


def test_an_address_in_use_is_named(make: Make) -> None:
    first = make().start()
    second = make(name="two")
    second.address = first.address
    assert f"cannot listen on {first.address} (--listen): address already in use" in refusal(second, Exit.CANNOT_START)
    unix = make(name="three")
    unix.unix_address = first.unix_address
    assert f"cannot listen on {first.unix_address} (--listen): another process" in refusal(unix, Exit.CANNOT_START)
    admin = make(f"--admin-listen={first.admin.removeprefix('http://')}", name="four")
    assert "--admin-listen" in refusal(admin, Exit.CANNOT_START)
    assert ask(first, "ping") is None


def test_a_bad_setting_is_named(make: Make, tmp_path: Path) -> None:
    toml = tmp_path / "statestored.toml"
    toml.write_text("max-states = 5")
    assert "is it 'max-state'?" in refusal(make(f"--config={toml}"), Exit.CANNOT_START)
    said = refusal(make(environment={"STATESTORED_MAX_STATE": "0"}), Exit.CANNOT_START)
    assert said.startswith("statestored: STATESTORED_MAX_STATE: 0 is not")
    toml.write_text('tokens = "/none"')
    said = refusal(make(f"--config={toml}"), Exit.CANNOT_START)
    assert said.startswith("statestored: --tokens /none cannot be read: ")
    assert said.endswith(f" (--tokens was set by {toml}: tokens)")
    done = make("--max-state=0").run()
    assert done.returncode == Exit.USAGE
    assert "--max-state" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.fixture
def stopped(make: Make) -> Daemon:
    """A daemon that has run, and left a state in a snapshot and another in the journal."""
    daemon = make(*NO_SNAPSHOTS).start()
    ask(daemon, "set", *ANN, "CONFIRMING")
    make_snapshot(daemon)
    ask(daemon, "set", "lists", "ben", "POSTING")
    assert daemon.stop() == Exit.STOPPED
    return daemon


def store_id_of(daemon: Daemon) -> uuid.UUID:
    return uuid.UUID(json.loads((daemon.data_dir / "store.json").read_text())["store_id"])


def test_a_damaged_snapshot_is_named_and_left_as_it_is(stopped: Daemon) -> None:
    (path,) = snapshots(stopped)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = contents(stopped.data_dir)
    for _ in range(2):
        assert f"{path} is damaged at byte" in refusal(stopped, Exit.DAMAGED)
    assert contents(stopped.data_dir) == before


def test_a_damaged_segment_is_named_and_left_as_it_is(stopped: Daemon) -> None:
    """D5."""
    path = segments(stopped)[-1]
    data = bytearray(path.read_bytes())
    data[data.index(b"POSTING")] ^= 1
    path.write_bytes(data)
    before = contents(stopped.data_dir)
    for _ in range(2):
        assert f"{path} is damaged at byte" in refusal(stopped, Exit.DAMAGED)
    assert contents(stopped.data_dir) == before


def test_a_torn_end_is_left_out_with_a_word_about_it(stopped: Daemon) -> None:
    """D4."""
    with segments(stopped)[-1].open("ab") as file:
        file.write(b"\1" * 77)
    stopped.start()
    assert ask(stopped, "get", "lists", "ben") == "POSTING"
    assert re.search(r"warning .*no whole batch.*bytes=77", stopped.log())


def test_what_could_be_read_of_a_damaged_snapshot_does_not_take_its_place(stopped: Daemon) -> None:
    path = stopped.data_dir / "00000009.snapshot"
    with SnapshotWriter(path, store_id_of(stopped), 0) as writer:
        writer.add(Kind.BUCKET, (b"default", 0, 0, [[(b"lists", b"POSTING", 20_000)]], [b"ben"], [0]))
        writer.finish(2, Sequence(0, 0))  # there is only one
    before = contents(stopped.data_dir)
    for _ in range(2):
        assert str(path) in refusal(stopped, Exit.DAMAGED)
    assert contents(stopped.data_dir) == before


def test_a_snapshot_of_another_store_is_named(stopped: Daemon, make: Make) -> None:
    other = make(name="two").start()
    other.stop()
    shutil.copy(snapshots(stopped)[0], other.data_dir)
    said = refusal(other, Exit.DAMAGED)
    assert str(snapshots(other)[0]) in said
    assert str(store_id_of(stopped)) in said


def test_a_snapshot_of_a_later_release_is_no_damage(stopped: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped.data_dir / "00000009.snapshot"
    monkeypatch.setattr("statestored.framing.FORMAT", 3)
    with SnapshotWriter(path, store_id_of(stopped), 0) as writer:
        writer.finish(0, Sequence(0, 0))
    assert f"{path} has format 3" in refusal(stopped, Exit.CANNOT_START)


def test_an_identity_of_a_later_release_is_no_damage(stopped: Daemon) -> None:
    path = stopped.data_dir / "store.json"
    path.write_text('{"format": 2}')
    assert f"{path} has format 2" in refusal(stopped, Exit.CANNOT_START)


def test_a_store_without_its_identity_is_not_made_anew(stopped: Daemon) -> None:
    (stopped.data_dir / "store.json").unlink()
    said = refusal(stopped, Exit.DAMAGED)
    assert "store.json" in said
    assert "journal" in said


# Who may come


def test_beyond_this_machine_a_token_is_needed_and_the_line_that_is_printed_works(tmp_path: Path) -> None:
    """It is the same store then, not a new one somewhere else."""
    data_dir = tmp_path / "data dir"
    scripts = sysconfig.get_path("scripts")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STATE")}
    environment |= {"HOME": str(tmp_path), "PATH": f"{scripts}:{os.environ['PATH']}"}
    environment |= {"STATESTORED_ADMIN_LISTEN": "127.0.0.1:0"}
    command = ["statestored", "--listen=0.0.0.0:0", f"--data-dir={data_dir}", "--max-state=77"]
    refused = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=False)
    assert refused.returncode == Exit.CANNOT_START
    assert "Traceback" not in refused.stderr
    assert "--listen 0.0.0.0:0 can be reached from other machines, and that needs tokens" in refused.stderr
    line = refused.stderr.splitlines()[-1]
    with subprocess.Popen(
        ["/bin/sh", "-c", line],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        process_group=0,
    ) as started:
        try:
            assert started.stdout is not None
            said = [started.stdout.readline() for _ in range(3)]
        finally:
            os.killpg(started.pid, signal.SIGTERM)
    assert said[0] == f"data directory {data_dir}\n"
    assert said[2].startswith("listening on 0.0.0.0:")


def settings(listen: list[str], admin: str = "127.0.0.1:0", client_ca: Path | None = None) -> Settings:
    addresses: tuple[Address, ...] = tuple(map(parse_address, listen))
    defaults = dict.fromkeys(Settings.__dataclass_fields__)
    return replace(
        Settings(**defaults),  # type: ignore[arg-type]
        listen=addresses,
        admin_listen=parse_address(admin),
        tls_client_ca=client_ca,
    )


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "unix:/run/s"])
def test_clients_and_the_admin_need_an_address_each(address: str) -> None:
    with pytest.raises(StartError, match=re.escape(f"--listen and --admin-listen are both {address}")):
        check_addresses(settings(["127.0.0.1:2", address], admin=address))
    check_addresses(settings(["127.0.0.1:2", "127.0.0.1:0"], admin=address))
    check_addresses(settings(["127.0.0.1:0", address], admin="127.0.0.1:0"))


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.0.2.7:1", "mail.example:1", "[::ffff:192.0.2.7]:1"])
def test_every_address_that_others_can_reach_needs_a_token(address: str) -> None:
    for setting, asked in (
        ("--listen", settings(["127.0.0.1:0", address])),
        ("--admin-listen", settings(["127.0.0.1:0"], admin=address)),
    ):
        with pytest.raises(StartError, match=re.escape(f"{setting} {address}")):
            check_reach(asked, Access())
        check_reach(asked, Access(own=TOKEN))


def test_certificates_of_the_clients_will_do_but_not_for_the_admin_address() -> None:
    check_reach(settings(["0.0.0.0:1"], client_ca=Path("/ca")), Access())
    with pytest.raises(StartError, match=re.escape("--admin-listen 0.0.0.0:2")):
        check_reach(settings(["0.0.0.0:1"], "0.0.0.0:2", client_ca=Path("/ca")), Access())


def test_this_machines_own_addresses_need_nothing() -> None:
    check_reach(
        settings(["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/run/s"], "unix:/run/a"), Access()
    )


def test_only_the_right_token_opens(make: Make) -> None:
    daemon = make(environment={"STATESTORED_TOKEN": TOKEN}).start()
    with RawClient(daemon.address) as client:
        client.ask("hello", {"token": TOKEN})
        client.ask("set", *ANN, "CONFIRMING")
    for about in ({}, {"token": "guess"}, {"token": TOKEN + "x"}):
        with RawClient(daemon.unix_address) as client:
            error, _ = client.call("hello", about)
            assert code_of(error) == "unauthorized"
            assert client.is_closed()
    with RawClient(daemon.address) as client:
        assert code_of(client.call("get", *ANN)[0]) == "unauthorized"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        http(daemon, "/metrics")
    assert daemon.stop() == Exit.STOPPED
    assert TOKEN not in daemon.log()


# What it says and shows


def http(daemon: Daemon, path: str) -> str:
    with urllib.request.urlopen(daemon.admin + path, timeout=10) as response:
        return response.read().decode()  # type: ignore[no-any-return]


def test_the_admin_address_answers(make: Make) -> None:
    daemon = make().start()
    wait_until(lambda: "event=ready" in daemon.log())
    assert (http(daemon, "/live"), http(daemon, "/ready")) == ("live\n", "ready\n")
    ask(daemon, "set", *ANN, "CONFIRMING")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(http(daemon, "/metrics"))
        for sample in family.samples
    }
    assert samples["statestored_entries",] == 1
    assert samples["statestored_requests_total", "set"] == 1


def test_it_says_where_the_states_are_and_where_it_listens(make: Make) -> None:
    daemon = make().start()
    assert daemon.process is not None
    daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: "event=stopped" in daemon.log())
    assert re.fullmatch(r"127\.0\.0\.1:\d+", daemon.address)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", daemon.admin)
    assert f"data_dir={daemon.data_dir}" in daemon.log()


def test_only_a_new_store_is_warned_about(make: Make) -> None:
    daemon = make().start()
    daemon.stop()
    assert 'level=warning event="a new, empty store was made"' in daemon.log()
    daemon.start().stop()
    assert daemon.log().count("a new, empty store") == 1


def test_a_variable_that_means_nothing_is_warned_about(make: Make) -> None:
    daemon = make(environment={"STATESTORED_LISTENS": "x", "STATESTORED_LOG_FORMAT": "json"}).start()
    daemon.stop()
    warnings = [entry for entry in map(json.loads, daemon.log().splitlines()) if entry["level"] == "warning"]
    assert [entry.get("variable") for entry in warnings] == ["STATESTORED_LISTENS", None]


def test_a_flag_goes_before_the_environment_that_before_the_file_and_that_before_the_default(
    make: Make, tmp_path: Path
) -> None:
    toml = tmp_path / "statestored.toml"
    toml.write_text("max-module = 11\nmax-sender = 11\nmax-state = 11\n")
    environment = {"STATESTORED_CONFIG": str(toml), "STATESTORED_MAX_SENDER": "22", "STATESTORED_MAX_STATE": "22"}
    daemon = make("--max-state=33", environment=environment).start()
    assert ask(daemon, "hello", {})["limits"] == {"module": 11, "sender": 22, "state": 33, "items": 1000}


def test_systemds_directory_is_used_where_none_is_named(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STATE")}
    environment |= {"STATE_DIRECTORY": str(tmp_path / "systemd"), "STATESTORED_LISTEN": "127.0.0.1:0"}
    environment |= {"STATESTORED_ADMIN_LISTEN": "127.0.0.1:0"}
    command = [sys.executable, "-m", "statestored"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == f"data directory {tmp_path / 'systemd'}\n".encode()
        started.terminate()


@pytest.mark.parametrize("format_", ["text", "json"])
def test_the_log_has_nothing_of_what_is_stored(make: Make, format_: str) -> None:
    secrets = ["module-secret", "sender-secret", "STATE-SECRET", "method-secret", "namespace-secret"]
    module, sender, state, method, namespace = secrets
    daemon = make("--log-level=debug", f"--log-format={format_}", "--snapshot-interval=0.02").start()
    with RawClient(daemon.address) as client:
        client.ask("hello", {"namespace": namespace, "client": "client-secret"})
        client.ask("set", module, sender, state)
        client.ask("scan", None, module, sender, state)
        for params in (("get", module, sender, state), (method, sender), ("set", module, sender, 5)):
            assert client.call(*params)[0] is not None
        client.send(f"GET /{sender} HTTP/1.1\r\n\r\n".encode())
        assert client.is_closed()
    wait_until(lambda: "snapshot written" in daemon.log())
    daemon.stop()
    daemon.start().stop()
    assert "connection dropped" in daemon.log()
    assert "secret" not in daemon.log().lower()


def test_files_are_for_their_owner_only(make: Make) -> None:
    umask = os.umask(0)
    try:
        daemon = make(*NO_SNAPSHOTS).start()
    finally:
        os.umask(umask)
    socket_path = Path(daemon.unix_address.removeprefix("unix:"))
    assert socket_path.stat().st_mode & 0o777 == 0o600
    ask(daemon, "set", *ANN, "CONFIRMING")
    make_snapshot(daemon)
    daemon.stop()
    assert not socket_path.exists()
    assert daemon.data_dir.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in daemon.data_dir.iterdir()} == {
        "lock": 0o600,
        "store.json": 0o600,
        "00000002.snapshot": 0o600,
        "00000002.journal": 0o600,
    }
    verify_snapshot(snapshots(daemon)[0], store_id_of(daemon))


def test_a_socket_that_a_kill_left_is_replaced(make: Make) -> None:
    daemon = make().start()
    daemon.kill()
    assert Path(daemon.unix_address.removeprefix("unix:")).exists()
    daemon.start()
    with RawClient(daemon.unix_address) as client:
        assert client.ask("ping") is None


# Limits that contradict each other


def test_more_modules_than_fit_into_an_answer_are_refused_with_their_name(make: Make) -> None:
    """L1."""
    said = refusal(make("--max-modules=101", "--max-sender=16384"), Exit.CANNOT_START)
    assert "--max-modules 101" in said
    assert "--max-sender 16384" in said


def test_without_a_setting_the_states_may_take_half_of_the_memory(daemon: Daemon) -> None:
    """L5."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < ask(daemon, "info")["max_memory"] <= machine // 2
