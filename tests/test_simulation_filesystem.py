"""The product's own code for a data directory runs on the simulated disk as on a real one."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace

import pytest

from statestored import datadir, files, framing, journal, locks, segment, snapshot, trust
from statestored.datadir import DataDirectory
from statestored.errors import DiskFailed, NoRoom, StartError
from statestored.framing import Frame, Sequence
from statestored.journal import Journal, JournalReader
from statestored.snapshot import SnapshotWriter, verify_snapshot
from tests.simulation.disk_faults import Call
from tests.simulation.filesystem import DATA_DIRECTORY, DataPath, Fcntl, Os
from tests.simulation.rig import Rig

SMALL_RESERVE = 2**12
SEEDS = range(20)


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    system = Os()
    for module in (files, locks, trust, datadir, segment, snapshot, framing):
        monkeypatch.setattr(module, "os", system)
    monkeypatch.setattr(locks, "fcntl", Fcntl())
    monkeypatch.setattr(locks, "socket", SimpleNamespace(gethostname=lambda: "sim"))
    monkeypatch.setattr(journal, "boot_id", lambda: b"one boot after another"[:16])
    monkeypatch.setattr(segment, "RESERVE", SMALL_RESERVE)


class DirectoryRig(Rig):
    """A machine with a data directory."""

    def __init__(self, seed: int = 1, *, has_directory: bool = True) -> None:
        super().__init__(seed, has_directory=has_directory)
        self.acknowledged: list[bytes] = []

    def append(self, *payloads: bytes) -> None:
        """What a daemon does from its start to a stop: `payloads` are batches, each of which it syncs."""
        with opened() as (_, found):
            for payload in payloads:
                found.reserve()
                found.append(0, payload)
                found.sync()
                self.acknowledged.append(payload)
            found.close(0)

    def payloads(self) -> list[bytes]:
        """What the next start finds, without the batches that are empty."""

        def read() -> list[bytes]:
            with closing(DataDirectory(DataPath(DATA_DIRECTORY))) as directory:
                directory.open()
                return [frame.payload for frame in replay(directory)[1] if frame.payload]

        return self.call(read)


@contextmanager
def opened() -> Iterator[tuple[DataDirectory, Journal]]:
    with closing(DataDirectory(DataPath(DATA_DIRECTORY))) as directory:
        directory.open()
        found = Journal(directory, replay(directory)[0])
        found.begin()
        if directory.is_new:
            directory.save_identity()
        yield directory, found


def replay(directory: DataDirectory) -> tuple[JournalReader, list[Frame]]:
    snapshots = directory.snapshots()
    reader = JournalReader(directory, datadir.number_of(snapshots[-1]) if snapshots else 0)
    return reader, list(reader.batches())


def write_snapshot() -> None:
    with opened() as (directory, found):
        found.rotate()
        path = directory.snapshot(found.number)
        with SnapshotWriter(path, directory.store_id, 0) as writer:
            writer.finish(0, Sequence(0, 0))
        directory.remove_before(found.number)
        verify_snapshot(path, directory.store_id)
        assert directory.look_after() == []


@pytest.fixture
def rig() -> DirectoryRig:
    return DirectoryRig()


@pytest.mark.parametrize("has_directory", [True, False])
def test_what_was_synced_outlives_every_power_loss(has_directory: bool) -> None:
    for seed in SEEDS:
        rig = DirectoryRig(seed, has_directory=has_directory)
        for payload in (b"first", b"second"):
            rig.call(lambda: rig.append(payload, payload))  # noqa: B023
            rig.disk.power_loss()
        assert rig.payloads() == [b"first", b"first", b"second", b"second"]


@pytest.mark.parametrize("call", ["open", "write", "sync", "rename", "truncate", "remove", "lock", "list", "stat"])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_kill_and_a_power_loss_at_any_call_lose_nothing_acknowledged(call: Call, is_before: bool) -> None:
    kills = 0
    for number in range(1, 30):
        rig = DirectoryRig(number)
        rig.call(lambda: rig.append(b"first"))  # noqa: B023
        process = rig.start(lambda: rig.append(b"second", b"third"))  # noqa: B023
        rig.disk.faults.on_call(lambda: process.kill(), number, call, before=is_before)  # noqa: B023
        rig.run()
        if process.alive:
            process.kill()
        else:
            kills += 1
        if number % 2:
            rig.disk.power_loss()
        found = rig.payloads()
        assert found[: len(rig.acknowledged)] == rig.acknowledged
        assert found == [b"first", b"second", b"third"][: len(found)]
    assert kills or call == "remove"  # the journal removes nothing


@pytest.mark.parametrize("call", ["mkdir", "open", "write", "sync", "rename", "lock", "list", "stat"])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_kill_of_the_first_start_and_a_later_power_loss_lose_nothing_acknowledged(
    call: Call, is_before: bool
) -> None:
    """What the first start has made is made durable by the second one, which finds it."""
    kills = 0
    for number in range(1, 30):
        rig = DirectoryRig(number, has_directory=False)
        process = rig.start(lambda: rig.append(b"first"))  # noqa: B023
        rig.disk.faults.on_call(lambda: process.kill(), number, call, before=is_before)  # noqa: B023
        rig.run()
        if process.alive:
            break
        kills += 1
        rig.call(lambda: rig.append(b"second"))  # noqa: B023
        rig.disk.power_loss()
        found = rig.payloads()
        assert found in (rig.acknowledged, [b"first", b"second"])
    assert kills


def test_a_snapshot_is_written_read_back_and_replaces_what_was_before(rig: DirectoryRig) -> None:
    rig.call(lambda: rig.append(b"first"))
    rig.call(write_snapshot)
    rig.disk.power_loss()
    assert rig.payloads() == []
    names = sorted(rig.disk.model.shown())
    assert [name for name in names if name.endswith(".snapshot")] == ["00000003.snapshot"]
    assert names[-2:] == ["lock", "store.json"]


def test_a_second_process_does_not_get_the_directory(rig: DirectoryRig) -> None:
    def hold() -> None:
        with opened():
            rig.kernel.block(None)

    process = rig.start(hold)
    rig.run()
    with pytest.raises(StartError, match=r"in use by another statestored \(process 1 on sim\)"):
        rig.call(lambda: rig.append(b"first"))
    process.kill()
    rig.call(lambda: rig.append(b"first"))
    assert rig.payloads() == [b"first"]


def test_a_full_disk_refuses_a_batch_and_leaves_the_ones_before(rig: DirectoryRig) -> None:
    def write() -> None:
        with opened() as (directory, found):
            found.append(0, b"first")
            rig.disk.faults.fill(10.0, room=100)
            assert files.free_space(directory.path) == 100
            found.reserve()  # takes the room, which is not enough
            with pytest.raises(NoRoom):
                found.append(0, bytes(500))
            found.append(0, b"second")
            rig.kernel.block(11.0)
            found.append(0, bytes(500))
            found.sync()

    rig.call(write)
    assert rig.payloads() == [b"first", b"second", bytes(500)]


@pytest.mark.parametrize("call", ["write", "sync"])
def test_a_failing_disk_is_told_from_a_full_one(rig: DirectoryRig, call: Call) -> None:
    def write() -> None:
        with opened() as (_, found):
            rig.disk.faults.fail_next(call)
            found.append(0, b"first")
            found.sync()

    with pytest.raises(DiskFailed):
        rig.call(write)


def test_a_file_that_is_open_shows_what_is_written_to_it_later(rig: DirectoryRig) -> None:
    def use() -> None:
        path = DataPath(DATA_DIRECTORY) / "file"
        with files.create(path) as writer, files.open_to_read(path, buffering=0) as reader:
            files.write_at(writer, b"one", 0)
            assert reader.read(10) == b"one"
            files.write_at(writer, b"two", 3)
            assert reader.read(10) == b"two"
            with files.open_to_read(path) as buffered:
                assert buffered.read(1) == b"o"
                files.write_at(writer, b"NEW", 0)
                assert buffered.read(2) == b"ne"  # was in the buffer
            files.discard(path)
            reader.seek(0)
            assert reader.read(10) == b"NEWtwo"  # without a name
        assert not path.exists()

    rig.call(use)


def test_a_large_file_is_removed_in_steps(rig: DirectoryRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "REMOVED_AT_ONCE", 10)

    def remove() -> None:
        path = DataPath(DATA_DIRECTORY) / "file"
        with files.create(path) as file:
            files.write_at(file, bytes(35), 0)
        files.remove_in_steps(path)
        assert not path.exists()

    rig.call(remove)
    assert rig.disk.faults.counts["truncate"] == 3


def test_a_file_of_tokens_can_be_placed_and_read(rig: DirectoryRig) -> None:
    path = DataPath(DATA_DIRECTORY) / "tokens"

    def place() -> None:
        os = Os()
        os.pwrite(os.open(path, os.O_WRONLY | os.O_CREAT), "[näme]\n".encode(), 0)

    rig.call(place)
    assert rig.call(path.read_text) == "[näme]\n"


def test_a_run_can_end_in_the_middle_of_any_call() -> None:
    for calls in range(1, 150):
        rig = DirectoryRig()
        process = rig.start(lambda: rig.append(b"first"))  # noqa: B023
        rig.kernel.run(rig.kernel.now + 60.0, lambda: rig.disk.faults.calls == calls)  # noqa: B023
        rig.kernel.end()
        assert process.threads == []
        assert not rig.kernel.failures
    assert rig.disk.faults.calls < calls


def test_the_same_seed_gives_the_same_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest() -> int:
        rig = DirectoryRig(7)
        monkeypatch.setattr("os.urandom", rig.kernel.bytes.randbytes)  # `uuid4` takes it from there
        rig.call(lambda: rig.append(b"first"))
        rig.call(write_snapshot)
        rig.disk.power_loss()
        rig.payloads()
        return rig.kernel.digest

    assert digest() == digest()
