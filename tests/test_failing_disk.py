"""D6, D8, D9 and D7: the disk fails, or is full; a load that takes long; two daemons on one directory."""

import re
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from signal import SIGUSR1

import msgpack
import pytest

from statestore.base import START
from statestored.datadir import DataDirectory
from statestored.engines.states import PUT
from statestored.errors import Exit
from statestored.journal import Journal, JournalReader
from tests.daemon import STATESTORED, Daemon
from tests.faults.filesystem import fill, small_filesystem
from tests.faults.strace import Call, Strace, Trace
from tests.faults.sweep import Life
from tests.faults.workload import batches, behind_batches, newest_segment
from tests.server.rpc import RawClient, code_of, request
from tests.server.waiting import wait_until
from tests.torture import pipeline

pytestmark = pytest.mark.timeout(300)

MIB = 2**20
MODULE = "app.join"
FAILS_WITHIN = 1.0  # seconds
GOES_ON_WITHIN = 5.0  # seconds

# D6: the disk fails

SEGMENT, DIRECTORY = "00000001.journal", "."
# The fsync setting, what the daemon lives through after its start, and which call on which file fails.
FAILURES = [
    ("always", (), "lock", "openat", 1),
    ("always", (), f"{SEGMENT}.tmp", "openat", 1),
    ("always", (), f"{SEGMENT}.tmp", "pwrite64", 1),
    ("always", (), f"{SEGMENT}.tmp", "fdatasync", 1),
    ("always", (), f"{SEGMENT}.tmp", "rename", 1),
    ("always", (), DIRECTORY, "fsync", 1),
    ("always", (), "store.json.tmp", "openat", 1),
    ("always", (), "store.json.tmp", "pwrite64", 1),
    ("always", (), "store.json.tmp", "fdatasync", 1),
    ("always", (), "store.json.tmp", "rename", 1),
    ("always", ("write",), SEGMENT, "pwrite64", 1),
    ("always", ("write",), SEGMENT, "pwrite64", 2),
    ("always", ("write",), SEGMENT, "pwrite64", 4),
    ("always", ("write",), SEGMENT, "fdatasync", 1),
    ("always", ("write",), SEGMENT, "fdatasync", 3),
    ("always", ("write", "idle"), SEGMENT, "fdatasync", 4),
    ("always", ("write", "idle"), SEGMENT, "pwrite64", 5),
    ("always", ("rotate",), "00000002.journal.tmp", "openat", 1),
    ("always", ("rotate",), "00000002.journal.tmp", "pwrite64", 1),
    ("always", ("rotate",), "00000002.journal.tmp", "fdatasync", 1),
    ("always", ("rotate",), "00000002.journal.tmp", "rename", 1),
    ("always", ("rotate", "snapshot"), DIRECTORY, "fsync", 3),
    ("always", ("rotate",), SEGMENT, "ftruncate", 1),
    ("always", ("snapshot",), "00000002.snapshot.tmp", "openat", 1),
    ("always", ("snapshot",), "00000002.snapshot.tmp", "pwrite64", 1),
    ("always", ("snapshot",), "00000002.snapshot.tmp", "fdatasync", 1),
    ("always", ("snapshot",), "00000002.snapshot.tmp", "rename", 1),
    ("always", ("snapshot",), SEGMENT, "rename", 1),
    ("always", ("snapshot",), f"{SEGMENT}.tmp", "unlink", 1),
    ("always", ("stop",), SEGMENT, "fdatasync", 1),
    ("always", ("stop",), SEGMENT, "ftruncate", 1),
    ("everysec", ("write",), SEGMENT, "pwrite64", 1),
    ("everysec", ("write",), SEGMENT, "pwrite64", 3),
    ("everysec", ("write", "idle"), SEGMENT, "fdatasync", 1),
    ("everysec", ("stop",), SEGMENT, "fdatasync", 1),
]


@pytest.mark.parametrize(("fsync", "phases", "file", "name", "number"), FAILURES)
def test_a_failure_of_the_disk_ends_the_daemon_at_once_and_nothing_acknowledged_is_lost(
    tmp_path: Path, fsync: str, phases: tuple[str, ...], file: str, name: str, number: int
) -> None:
    with closing(Life(tmp_path / "life", fsync)) as life:
        strace = trace_failure(life.daemon, file, f"{name}:error=EIO:when={number}")
        life.run("start", *phases)
        check_failed(life, strace)


# The file that a start after a kill needs or makes, and the call that fails.
FAILURES_AFTER_A_KILL = [
    ("store.json", "openat"),
    (SEGMENT, "openat"),
    (SEGMENT, "ftruncate"),
    ("00000002.journal.tmp", "openat"),
    ("00000002.journal.tmp", "pwrite64"),
    ("00000002.journal.tmp", "fdatasync"),
    ("00000002.journal.tmp", "rename"),
    ("00000009.journal.tmp", "unlink"),
    (DIRECTORY, "fsync"),
]


@pytest.mark.parametrize(("file", "name"), FAILURES_AFTER_A_KILL)
def test_a_failure_of_the_disk_ends_a_start_after_a_kill_and_takes_nothing(
    tmp_path: Path, file: str, name: str
) -> None:
    with closing(Life(tmp_path / "life", "everysec")) as life:
        life.run("start", "write")
        life.end()
        (life.daemon.data_dir / "00000009.journal.tmp").touch()
        strace = trace_failure(life.daemon, file, f"{name}:error=EIO:when=1")
        life.run("start")
        check_failed(life, strace)


def test_a_sync_that_finds_no_room_is_a_failure_of_the_disk(tmp_path: Path) -> None:
    with closing(Life(tmp_path / "life", "always")) as life:
        strace = trace_failure(life.daemon, SEGMENT, "fdatasync:error=ENOSPC:when=2")
        life.run("start", "write")
        check_failed(life, strace)


def check_failed(life: Life, strace: Strace) -> None:
    """It has ended by that, at once, and finds everything when it is started again."""
    assert life.daemon.wait() == Exit.DISK_FAILED
    trace = strace.trace()
    failed = failed_call(trace)
    assert trace.ended - failed.time < FAILS_WITHIN
    assert re.search("Input/output error|No space left on device", life.daemon.log())
    assert life.restart() == []


CLIENTS, WINDOW = 4, 16
FAILING = 40  # number of the call


@pytest.mark.parametrize("name", ["pwrite64", "fdatasync"])
def test_nothing_is_acknowledged_that_the_disk_has_not_confirmed(tmp_path: Path, name: str) -> None:
    """D1, D6: by the trace, the answers to several clients, and what is in the journal up to the last good sync."""
    daemon = Daemon(tmp_path)
    strace = trace_failure(daemon, SEGMENT, f"{name}:error=EIO:when={FAILING}")
    with daemon:
        writers = [Writer(f"writer{number}") for number in range(CLIENTS)]
        clients = [pipeline.connect(daemon.address, writer.name) for writer in writers]
        with ThreadPoolExecutor(CLIENTS) as threads:
            list(threads.map(Writer.run, writers, clients))
        assert daemon.wait() == Exit.DISK_FAILED
        acknowledged = {state for writer in writers for state in writer.acknowledged}
        durable = states_before(durable_end(strace.trace(), daemon.data_dir), daemon.data_dir)
        assert acknowledged - durable == set()
        assert len(acknowledged) >= FAILING / 2


class Writer:
    """Sets one value after the other, until the daemon is gone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.acknowledged: list[str] = []
        self._number = 0

    def run(self, client: RawClient) -> None:
        pipeline.run(client, WINDOW, self._next, self._take)

    def _next(self) -> bytes:
        self._number += 1
        return request(self._number, "set", MODULE, f"user{self._number % 50}", self._state(self._number))

    def _take(self, number: int, error: str | None, _result: object) -> None:
        assert error is None
        self.acknowledged.append(self._state(number))

    def _state(self, number: int) -> str:
        return f"{self.name}-{number}"


def durable_end(trace: Trace, data_dir: Path) -> int:
    """How much of the segment was written when its last good sync began."""
    ends = {frame.end for frame in batches(data_dir / SEGMENT)}
    written = durable = 0
    for call in trace.calls:
        if call.name == "fdatasync" and call.succeeded:
            durable = written
        elif call.name == "pwrite64":
            length, offset = map(int, call.arguments.split(", ")[-2:])
            if offset + length in ends:  # else it is room ahead
                written = offset + length
    return durable


def states_before(end: int, data_dir: Path) -> set[str]:
    payloads = [frame.payload for frame in batches(data_dir / SEGMENT) if frame.end <= end and frame.payload]
    return {effect[-1].decode() for payload in payloads for effect in msgpack.unpackb(payload, raw=True)}


def trace_failure(daemon: Daemon, file: str, tamper: str) -> Strace:
    strace = Strace(daemon.directory / "trace", [daemon.data_dir / file], tamper=tamper)
    daemon.wrapper = strace.command()
    return strace


def failed_call(trace: Trace) -> Call:
    return next(call for call in trace.calls if "(INJECTED)" in call.result)


# D6: the disk is full

VALUES = 100  # in one call
LONG = "x" * 900


class Store:
    """What a client knows to be stored: it was acknowledged, or, where it was not, refused."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}  # by sender
        self.refused: set[str] = set()  # senders
        self._number = 0

    def write(self, client: RawClient) -> str | None:
        """Many values at once, all of them new. Returns the code of the refusal, None where there was none."""
        self._number += 1
        senders = [f"{self._number}.{number}@example.org" for number in range(VALUES)]
        new = {sender: f"{sender} {LONG}" for sender in senders} | {"ann": str(self._number)}
        error, _ = client.call("set_many", [(MODULE, sender, state) for sender, state in new.items()])
        if error is None:
            self.states |= new
            return None
        self.refused |= set(senders)
        return code_of(error)

    def write_until_refused(self, client: RawClient) -> None:
        while (code := self.write(client)) is None:
            assert self._number < 1000, "there seems to be room without end"
        assert code == "unavailable"

    def write_until_taken(self, client: RawClient) -> None:
        deadline = time.monotonic() + GOES_ON_WITHIN
        while (code := self.write(client)) is not None:
            assert code == "unavailable"
            assert time.monotonic() < deadline, "writes are still refused"
            time.sleep(0.05)

    def check(self, client: RawClient) -> None:
        """It can be read, all of it, and nothing else."""
        for senders in in_parts([*self.states, *self.refused]):
            found = client.ask("get_many", [(MODULE, sender) for sender in senders])
            assert found == [self.states.get(sender, START) for sender in senders]
        assert client.ask("count", MODULE, None)["total"] == len(self.states)


def in_parts(items: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(items), 500):
        yield items[start : start + 500]


def restart(daemon: Daemon) -> None:
    daemon.kill()
    daemon.wrapper, daemon.address = (), "127.0.0.1:0"
    daemon.start()


def check_full_disk(daemon: Daemon, make_full: Callable[[], None], free: Callable[[], None]) -> None:
    store = Store()
    with daemon.start(), RawClient(daemon.address) as client:
        assert store.write(client) is None
        make_full()
        store.write_until_refused(client)
        store.check(client)
        assert behind_batches(newest_segment(daemon.data_dir)).strip(b"\0") == b"", "half a batch"
        assert store.write(client) == "unavailable", "it stays so"
        store.check(client)
        check_writes_are_refused(daemon, client)
        free()
        store.write_until_taken(client)
        assert client.ask("info")["writes_refused"] == ""
        assert get(f"{daemon.admin}/ready") == "ready\n"
        assert "\nstatestored_writes_refused 0.0\n" in get(f"{daemon.admin}/metrics")
        store.check(client)
        restart(daemon)
        with RawClient(daemon.address) as again:
            store.check(again)
            assert store.write(again) is None
        assert "writes are refused" in daemon.log()
        wait_until(lambda: "writes are taken again" in daemon.log())


def check_writes_are_refused(daemon: Daemon, client: RawClient) -> None:
    """The operator is told, by every means."""
    assert "the data directory has no room" in client.ask("info")["writes_refused"]
    assert "\nstatestored_writes_refused 1.0\n" in get(f"{daemon.admin}/metrics")
    assert get(f"{daemon.admin}/ready").startswith("ready, but writes are refused: the data directory has no room")
    assert get(f"{daemon.admin}/live") == "live\n"


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_full_disk_refuses_writes_until_there_is_room_again(tmp_path: Path, fsync: str) -> None:
    with small_filesystem(tmp_path / "small", 8 * MIB) as place:
        daemon = Daemon(tmp_path, f"--fsync={fsync}")
        daemon.data_dir = place / "data"
        check_full_disk(daemon, lambda: fill(place) and None, lambda: (place / "filler").unlink())


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_limit_on_the_size_of_files_is_like_a_full_disk(tmp_path: Path, fsync: str) -> None:
    """There the last write before the refusal is taken in part."""
    daemon = Daemon(tmp_path, f"--fsync={fsync}")

    def limit(size: int) -> None:
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (size, hard))

    check_full_disk(daemon, lambda: limit(2 * MIB + 777), lambda: limit(resource.RLIM_INFINITY))


@pytest.mark.parametrize("name", ["openat", "pwrite64", "rename"])
def test_where_there_is_no_room_for_a_new_segment_the_old_one_takes_more_until_there_is(
    tmp_path: Path, name: str
) -> None:
    with closing(Life(tmp_path / "life", "always")) as life:
        strace = trace_failure(life.daemon, "00000002.journal.tmp", f"{name}:error=ENOSPC:when=1")
        life.run("start")
        life.fill_segment()
        wait_until(lambda: "no new segment of the journal" in life.daemon.log())
        life.workload.write(life.workload.set("ben"))
        wait_until(lambda: newest_segment(life.daemon.data_dir).name == "00000002.journal")
        life.workload.write(life.workload.set("cid"))
        life.end()
        assert failed_call(strace.trace()).name == name
        assert life.restart() == []


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_disk_that_is_full_for_a_few_writes(tmp_path: Path, fsync: str) -> None:
    """Whoever tries the disk, the loop or the thread, is refused three times."""
    daemon = Daemon(tmp_path, f"--fsync={fsync}")
    trace_failure(daemon, SEGMENT, "pwrite64:error=ENOSPC:when=3..5")
    store = Store()
    with daemon.start(), RawClient(daemon.address) as client:
        store.write_until_refused(client)
        store.check(client)
        deadline = time.monotonic() + 20
        taken = 0
        while taken < 5:
            taken = taken + 1 if store.write(client) is None else 0
            store.check(client)
            assert time.monotonic() < deadline, "writes are still refused"
            time.sleep(0.05)
        restart(daemon)
        with RawClient(daemon.address) as again:
            store.check(again)


def test_a_daemon_that_is_started_on_a_full_disk_serves_reads_and_takes_writes_later(tmp_path: Path) -> None:
    store = Store()
    with small_filesystem(tmp_path / "small", 8 * MIB) as place:
        daemon = Daemon(tmp_path)
        daemon.data_dir = place / "data"
        with daemon.start():
            with RawClient(daemon.address) as client:
                assert store.write(client) is None
            daemon.kill()
            filler = fill(place)
            restart(daemon)
            with RawClient(daemon.address) as client:
                store.check(client)
                assert store.write(client) == "unavailable"
                daemon.send_signal(SIGUSR1)
                wait_until(lambda: "snapshot failed" in daemon.log())
                store.check(client)
                filler.unlink()
                store.write_until_taken(client)
                store.check(client)
            restart(daemon)
            with RawClient(daemon.address) as client:
                store.check(client)


def test_a_new_store_on_a_full_disk_is_not_begun(tmp_path: Path) -> None:
    with small_filesystem(tmp_path / "small", MIB) as place:
        daemon = Daemon(tmp_path)
        daemon.data_dir = place / "data"
        daemon.data_dir.mkdir()
        filler = fill(place)
        done = daemon.run()
        assert done.returncode == Exit.CANNOT_START
        assert str(daemon.data_dir) in done.stderr
        assert "No space left on device" in done.stderr
        filler.unlink()
        with daemon.start(), RawClient(daemon.address) as client:
            assert Store().write(client) is None


def test_a_snapshot_that_finds_no_room_leaves_the_old_one_and_is_tried_again(tmp_path: Path) -> None:
    """D6, D7."""
    store = Store()
    with small_filesystem(tmp_path / "small", 16 * MIB) as place:
        daemon = Daemon(tmp_path, "--snapshot-interval=0", "--snapshot-journal-size=0")
        daemon.data_dir = place / "data"
        with daemon.start(), RawClient(daemon.address) as client:
            assert store.write(client) is None
            daemon.send_signal(SIGUSR1)
            wait_until(lambda: client.ask("info")["last_snapshot_time"])
            (old,) = daemon.data_dir.glob("*.snapshot")
            for _ in range(40):
                assert store.write(client) is None  # 4 MB
            segments = {*daemon.data_dir.glob("*.journal")}
            filler = fill(place, leave=MIB)
            daemon.send_signal(SIGUSR1)
            wait_until(lambda: "snapshot failed" in daemon.log())
            store.check(client)
            assert old.exists()
            assert segments <= {*daemon.data_dir.glob("*.journal")}
            filler.unlink()
            wait_until(lambda: {*daemon.data_dir.glob("*.snapshot")} not in ({old}, set()) and not old.exists())
            store.write_until_taken(client)
            assert client.ask("info")["snapshot_failures"] >= 1
            assert [*daemon.data_dir.glob("*.tmp")] == []
            restart(daemon)
            with RawClient(daemon.address) as again:
                store.check(again)


# D9: two daemons


def test_a_second_daemon_ends_within_a_second_and_leaves_the_first_alone(tmp_path: Path) -> None:
    store = Store()
    first, second = Daemon(tmp_path), Daemon(tmp_path)
    with first.start(), RawClient(first.address) as client:
        assert store.write(client) is None
        lock = (first.data_dir / "lock").read_text()
        took = []
        for _ in range(3):
            # Python's own start is not the daemon's; and a busy machine may hold up one of them.
            started = time.monotonic()
            subprocess.run([*STATESTORED, "--version"], check=True, capture_output=True)
            python = time.monotonic() - started
            refused = second.run()
            took.append(time.monotonic() - started - 2 * python)
            assert refused.returncode == Exit.CANNOT_START
            assert str(first.data_dir) in refused.stderr
        assert min(took) < 1.0
        assert (first.data_dir / "lock").read_text() == lock
        assert store.write(client) is None
        store.check(client)
        restart(first)
        with RawClient(first.address) as again:
            store.check(again)
    second.close()


# D8: a long load

BATCHES, EFFECTS = 300, 1000
# It begins to replay when there is the file that is named first on the command line.
REPLAYING_WHEN_TOLD = """
import asyncio, sys
from pathlib import Path
from statestored.engines import recovery

async def replay_when_told(*arguments, replay=recovery._replay, told=Path(sys.argv.pop(1))):
    while not told.exists():
        await asyncio.sleep(0.001)
    await replay(*arguments)

recovery._replay = replay_when_told
from statestored.__main__ import main
main()
"""


def test_nobody_is_let_in_before_the_journal_is_replayed(tmp_path: Path) -> None:
    daemon, told = Daemon(tmp_path), tmp_path / "told"
    daemon.program = (sys.executable, "-c", REPLAYING_WHEN_TOLD, str(told))
    write_journal(daemon.data_dir)
    seen = []
    with daemon.launch().wait_until_live():
        ready = 0
        while ready != 200:
            listens = answers(daemon.unix_address)
            ready = status(f"{daemon.admin}/ready")
            seen.append((listens, ready, status(f"{daemon.admin}/live")))
            if listens or ready == 200:
                wait_until(lambda: "event=replayed" in daemon.log())
            if len(seen) == 3:
                assert "\nstatestored_ready 0.0\n" in get(f"{daemon.admin}/metrics")
                told.touch()
        daemon.wait_until_listening()
        assert {live for _, _, live in seen} == {200}
        assert seen[:3] == [(False, 503, 200)] * 3
        with RawClient(daemon.unix_address) as client:
            assert client.ask("count", None, None)["total"] == BATCHES * EFFECTS
        wait_until(lambda: re.search(r"event=replaying .*bytes=\d{8} entries=\d{6}", daemon.log()))
        assert "level=error" not in daemon.log()


def write_journal(data_dir: Path) -> None:
    """More than 64 MiB of it: then a load says how far it is."""
    directory = DataDirectory(data_dir)
    directory.open()
    found = JournalReader(directory, 0)
    assert [*found.batches()] == []
    journal = Journal(directory, found)
    journal.begin()
    for batch in range(BATCHES):
        senders = [f"{batch}.{number}.{LONG[:200]}" for number in range(EFFECTS)]
        effects = [(PUT, b"default", MODULE.encode(), sender.encode(), b"CONFIRMING") for sender in senders]
        journal.append(int(time.time() * 1000), msgpack.packb(effects))
    directory.save_identity()
    journal.close(int(time.time() * 1000))
    directory.close()


def answers(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as attempt:
        return attempt.connect_ex(address.removeprefix("unix:")) == 0


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()  # type: ignore[no-any-return]


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
