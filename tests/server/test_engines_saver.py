"""When a snapshot is due, and that nothing goes before the new one was read back (D7)."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from statestore.errors import Unavailable
from statestored import files
from statestored import snapshot as snapshot_module
from statestored.datadir import DataDirectory
from statestored.engines import commits as commits_module
from statestored.engines import saver as saver_module
from statestored.engines.commits import Fsync, now
from statestored.engines.embedded import EmbeddedEngine, EmbeddedSpace
from statestored.engines.saver import Saver, SnapshotSchedule
from statestored.errors import DamagedFile, DiskFailed, Displaced, FilesMissing, NoRoom, TemporaryFileRemoved
from statestored.framing import FRAME_SIZE
from statestored.journal import Journal
from statestored.segment import SegmentWriter
from statestored.snapshot import SnapshotWriter, verify_snapshot
from tests.server.fakes import NEVER, Disk, Gate, settled, some_turns
from tests.server.models import small_buckets
from tests.server.waiting import eventually

ANN = (b"lists", b"ann")
FULL = NoRoom(28, "No space left on device")


@pytest.fixture(autouse=True)
def _small_buckets() -> Iterator[None]:
    with small_buckets():
        yield


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "LOOK_EVERY", 0.002)
    monkeypatch.setattr(saver_module, "WATCH_SECONDS", 0.002)
    monkeypatch.setattr(saver_module, "RETRY_AFTER", 0.002)
    monkeypatch.setattr(commits_module, "RETRY_EVERY", 0.002)


@pytest.fixture
def verifies(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch, snapshot_module, "verify_snapshot")


@asynccontextmanager
async def opened(
    path: Path, schedule: SnapshotSchedule = NEVER, fsync: Fsync = Fsync.ALWAYS
) -> AsyncIterator[EmbeddedEngine]:
    directory = DataDirectory(path)
    directory.open()
    engine = EmbeddedEngine(directory, fsync, schedule, 1000)
    try:
        await engine.open()
        yield engine
    finally:
        await engine.close()
        directory.close()


def space(engine: EmbeddedEngine) -> EmbeddedSpace:
    return engine.space(b"default")


async def put(engine: EmbeddedEngine, state: bytes, sender: bytes = b"ann") -> None:
    await settled(space(engine).set(b"lists", sender, state))


def names(path: Path) -> list[str]:
    """Of the snapshots and the segments, unfinished ones included."""
    return sorted(file.name for file in path.iterdir() if file.name[:1].isdigit())


def unsaved(engine: EmbeddedEngine) -> int:
    changes: int = engine.info()["changes_since_snapshot"]
    return changes


def replace_directory(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.mkdir()


def replace_segment(path: Path) -> None:
    copy = path / "copy"
    copy.write_bytes((path / "00000001.journal").read_bytes())
    copy.rename(path / "00000001.journal")


# When


@pytest.mark.parametrize(
    ("interval", "journal_size", "seconds", "journal", "snapshot", "is_due"),
    [
        (10, 0, 9.9, 10**12, 0, False),
        (10, 0, 10, 0, 0, True),
        (10, 0, 10, 0, 10**12, True),
        (0, 0, 10**9, 10**12, 0, False),
        (0, 100, 10**9, 99, 0, False),
        (0, 100, 0, 100, 0, True),
        (0, 100, 0, 100, 100, True),
        (0, 100, 0, 100, 101, False),
        (0, 100, 0, 500, 501, False),
        (0, 100, 0, 501, 501, True),
        (10, 100, 10, 0, 10**12, True),
        (10, 100, 0, 100, 100, True),
        (10, 100, 9, 99, 0, False),
    ],
)
def test_a_snapshot_is_due_by_time_or_where_the_journal_has_outgrown_the_last(
    interval: float, journal_size: int, seconds: float, journal: int, snapshot: int, is_due: bool
) -> None:
    assert SnapshotSchedule(interval, journal_size).is_due(seconds, journal, snapshot) is is_due


async def test_a_snapshot_is_due_after_an_interval(tmp_path: Path) -> None:
    async with opened(tmp_path, SnapshotSchedule(0.01, 0)) as engine:
        for number in (2, 3):
            await put(engine, b"S%d" % number)
            await eventually(lambda: unsaved(engine) == 0)
            assert names(tmp_path) == [f"0000000{number}.journal", f"0000000{number}.snapshot"]


async def test_a_snapshot_is_due_when_the_journal_is_large(tmp_path: Path) -> None:
    async with opened(tmp_path, SnapshotSchedule(0, 1000)) as engine:
        await put(engine, b"S")
        await some_turns()
        assert names(tmp_path) == ["00000001.journal"]
        await put(engine, b"S" * 1000)
        await eventually(lambda: unsaved(engine) == 0)
        assert names(tmp_path) == ["00000002.journal", "00000002.snapshot"]
        assert engine.info()["journal_bytes"] < 1000


async def test_a_snapshot_is_made_on_demand(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        engine.snapshot_soon()
        await eventually(lambda: unsaved(engine) == 0)
        assert names(tmp_path) == ["00000002.journal", "00000002.snapshot"]


@pytest.mark.parametrize("asked", [False, True])
async def test_where_nothing_has_changed_none_is_made(tmp_path: Path, asked: bool) -> None:
    creates: list[Path] = []
    async with opened(tmp_path, SnapshotSchedule(0 if asked else 0.001, 0)) as engine:
        await put(engine, b"A")
        await engine.saver.snapshot()
        before = names(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saver_module, "SnapshotWriter", lambda path, *_: creates.append(path))
            if asked:
                engine.snapshot_soon()
            await engine.saver.snapshot()
            await asyncio.sleep(0.01)  # to go wrong, if it does
    assert creates == []
    assert names(tmp_path) == before


async def test_what_was_replayed_is_in_no_snapshot_yet(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
    async with opened(tmp_path) as engine:
        assert unsaved(engine) == 1
        assert engine.info()["journal_bytes"] > 0
        await engine.saver.snapshot()
    async with opened(tmp_path) as engine:
        assert unsaved(engine) == 0
        assert space(engine).get(*ANN) == b"A"


async def test_what_is_committed_during_a_snapshot_is_left_for_the_next(tmp_path: Path, verifies: Gate) -> None:
    async with opened(tmp_path, SnapshotSchedule(0, 1000)) as engine:
        with verifies:
            await put(engine, b"S" * 1000)
            await eventually(lambda: verifies.waiting)
            await put(engine, b"T")
        await eventually(lambda: unsaved(engine) == 1)
        await some_turns()
        assert names(tmp_path) == ["00000002.journal", "00000002.snapshot"]


async def test_two_who_ask_at_once_get_one_after_the_other(tmp_path: Path, verifies: Gate) -> None:
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        with verifies:
            one = asyncio.create_task(engine.saver.snapshot())
            await eventually(lambda: verifies.waiting)
            await put(engine, b"B")
            other = asyncio.create_task(engine.saver.snapshot())
            await some_turns()
            assert verifies.waiting == 1
        await asyncio.gather(one, other)
        assert names(tmp_path) == ["00000003.journal", "00000003.snapshot"]


# How one takes the place of another


async def test_the_old_generation_goes_only_after_the_new_one_was_read_back(tmp_path: Path, verifies: Gate) -> None:
    """D7."""
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        await engine.saver.snapshot()
        await put(engine, b"B")
        with verifies:
            saving = asyncio.create_task(engine.saver.snapshot())
            await eventually(lambda: verifies.waiting)
            await some_turns()
            assert names(tmp_path) == [
                "00000002.journal",
                "00000002.snapshot",
                "00000003.journal",
                "00000003.snapshot.tmp",
            ]
        await saving
        assert names(tmp_path) == ["00000003.journal", "00000003.snapshot"]
        verify_snapshot(tmp_path / "00000003.snapshot", engine._directory.store_id)


async def test_one_that_cannot_be_read_back_goes_and_the_older_one_stays(tmp_path: Path, verifies: Gate) -> None:
    """D7: the next start would find it, and not the good one."""
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        await engine.saver.snapshot()
        await put(engine, b"B")
        verifies.error = DamagedFile(tmp_path / "00000003.snapshot", "as told to be")
        with pytest.raises(DamagedFile):
            await engine.saver.snapshot()
        assert names(tmp_path) == ["00000002.journal", "00000002.snapshot", "00000003.journal"]
        assert unsaved(engine) == 1
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"B"


@pytest.mark.parametrize("fsync", Fsync)
async def test_it_gets_its_name_when_the_journal_is_on_the_disk_as_far_as_it_may_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync
) -> None:
    """D1, D7: it has what was committed while it was written, and the journal must not lack that after a power loss."""
    buckets = saver_module.write_states
    async with opened(tmp_path, fsync=fsync) as engine:
        await put(engine, b"A")
        syncs, finishes = Gate(monkeypatch, Journal, "sync"), Gate(monkeypatch, SnapshotWriter, "finish")
        with syncs:

            async def write_states(*arguments: Any) -> int:
                space(engine).set(*ANN, b"MEANWHILE")
                return await buckets(*arguments)

            monkeypatch.setattr(saver_module, "write_states", write_states)
            saving = asyncio.create_task(engine.saver.snapshot())
            await eventually(lambda: syncs.waiting)
            await some_turns()
            assert finishes.passed == []
        await saving
        assert len(finishes.passed) == 1


async def test_the_newest_is_loaded(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await put(engine, b"old")
        await engine.saver.snapshot()
        old = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
        await put(engine, b"new")
        await engine.saver.snapshot()
    for name, content in old.items():  # as a kill between two steps leaves it
        (tmp_path / name).write_bytes(content)
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"new"


# Where it fails


async def test_one_that_fails_is_logged_counted_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finishes = Gate(monkeypatch, SnapshotWriter, "finish")
    finishes.error = FULL
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        with capture_logs() as logs:
            engine.snapshot_soon()
            await eventually(lambda: engine.info()["snapshot_failures"] >= 3)
            finishes.error = None
            await eventually(lambda: unsaved(engine) == 0)
            failures = engine.info()["snapshot_failures"]
        *failed, written = [entry for entry in logs if "snapshot" in entry["event"]]
        assert written["event"] == "snapshot written"
        assert len(failed) == failures
        assert all(entry["event"] == "snapshot failed" and "No space left" in entry["error"] for entry in failed)
        assert len(names(tmp_path)) == 2
        assert await settled(space(engine).set(*ANN, b"B")) is None  # writes go on
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"B"


async def test_the_pauses_between_attempts_grow_until_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def until_asked(_: Saver, seconds: float) -> None:
        if seconds != saver_module.LOOK_EVERY:
            pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(saver_module, "RETRY_AFTER", 5.0)
    monkeypatch.setattr(Saver, "_until_asked", until_asked)
    finishes = Gate(monkeypatch, SnapshotWriter, "finish")
    finishes.error = FULL
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        engine.snapshot_soon()
        await eventually(lambda: len(pauses) >= 9)
        assert pauses[:9] == [5, 10, 20, 40, 80, 160, 300, 300, 300]
        finishes.error = None
        await eventually(lambda: unsaved(engine) == 0)
        await put(engine, b"B")
        finishes.error_once = FULL
        engine.snapshot_soon()
        await eventually(lambda: unsaved(engine) == 0)
        assert pauses[-1] == 5


async def test_who_asks_in_such_a_pause_does_not_wait_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "RETRY_AFTER", 3600.0)
    finishes = Gate(monkeypatch, SnapshotWriter, "finish")
    finishes.error_once = FULL
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        engine.snapshot_soon()
        await eventually(lambda: engine.info()["snapshot_failures"])
        await some_turns()
        assert unsaved(engine) == 1
        engine.snapshot_soon()
        await eventually(lambda: unsaved(engine) == 0)


async def test_one_is_not_begun_where_there_is_less_room_than_the_last_one_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fill the disk up, and writes would be refused."""
    free = 10**9
    monkeypatch.setattr(files, "free_space", lambda _: free)
    writers = Gate(monkeypatch, saver_module, "SnapshotWriter")
    async with opened(tmp_path) as engine:
        await asyncio.gather(*[put(engine, b"A", b"s%d" % number) for number in range(100)])
        await engine.saver.snapshot()
        (last,) = tmp_path.glob("*.snapshot")
        free = last.stat().st_size - 1
        await put(engine, b"B")
        before = names(tmp_path)
        for _ in range(2):
            with pytest.raises(NoRoom, match="No space left on device"):
                await engine.saver.snapshot()
        assert len(writers.passed) == 1
        assert names(tmp_path) == before
        free += 1
        await engine.saver.snapshot()
        assert unsaved(engine) == 0


async def test_the_room_that_one_took_before_it_failed_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10**9
    monkeypatch.setattr(files, "free_space", lambda _: free)
    finishes = Gate(monkeypatch, SnapshotWriter, "finish")
    async with opened(tmp_path) as engine:
        await asyncio.gather(*[put(engine, b"A", b"s%d" % number) for number in range(100)])
        free, finishes.error_once = 600, FULL
        for _ in range(2):
            with pytest.raises(NoRoom):
                await engine.saver.snapshot()
        assert len(finishes.passed) == 1
        free = 10**6
        await engine.saver.snapshot()
        assert unsaved(engine) == 0


async def test_a_store_that_was_cleared_needs_no_room_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 10**9
    monkeypatch.setattr(files, "free_space", lambda _: free)
    async with opened(tmp_path) as engine:
        await asyncio.gather(*[put(engine, b"A", b"s%d" % number) for number in range(100)])
        await engine.saver.snapshot()
        free = 600
        await settled(space(engine).clear())
        await engine.saver.snapshot()
        assert unsaved(engine) == 0


async def test_those_that_fail_leave_no_segment_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finishes = Gate(monkeypatch, SnapshotWriter, "finish")
    finishes.error = FULL
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        for _ in range(3):
            with pytest.raises(NoRoom):
                await engine.saver.snapshot()
        assert names(tmp_path) == ["00000001.journal", "00000002.journal"]
        finishes.error = None
        await engine.saver.snapshot()
        await put(engine, b"B")
    assert names(tmp_path) == ["00000002.journal", "00000002.snapshot"]
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"B"


async def test_without_room_nothing_unfinished_is_left_and_the_journal_goes_on(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        async with opened(tmp_path) as engine:
            await put(engine, b"A")
            disk = Disk(patch)
            disk.fill()
            with pytest.raises(NoRoom):
                await engine.saver.snapshot()
            disk.make_room()
            assert names(tmp_path) == ["00000001.journal"]
            await put(engine, b"B")
        async with opened(tmp_path) as engine:
            assert space(engine).get(*ANN) == b"B"


async def test_one_is_given_up_where_writes_that_it_may_have_were_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D6: it would bring them back."""
    buckets = saver_module.write_states
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        appends = Gate(monkeypatch, Journal, "append")
        with appends:

            async def write_states(*arguments: Any) -> int:
                space(engine).set(*ANN, b"TAKEN BACK")
                return await buckets(*arguments)

            monkeypatch.setattr(saver_module, "write_states", write_states)
            saving = asyncio.create_task(engine.saver.snapshot())
            await eventually(lambda: appends.waiting)
            appends.error = FULL
        with pytest.raises(Unavailable):
            await saving
        appends.error = None
        assert space(engine).get(*ANN) == b"A"
        assert not [name for name in names(tmp_path) if "snapshot" in name]
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"A"


async def test_one_is_given_up_also_where_the_writes_that_were_taken_back_have_been_followed_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D6: by its end all is durable again, and yet it has what never was."""
    buckets = saver_module.write_states
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        appends = Gate(monkeypatch, Journal, "append")

        async def write_states(*arguments: Any) -> int:
            appends.error = FULL
            answer = space(engine).set(*ANN, b"TAKEN BACK")
            written = await buckets(*arguments)
            with pytest.raises(Unavailable):
                await settled(answer)
            appends.error = None
            await eventually(lambda: is_taken(engine))
            return written

        monkeypatch.setattr(saver_module, "write_states", write_states)
        with pytest.raises(Unavailable, match="taken back"):
            await engine.saver.snapshot()
        assert not [name for name in names(tmp_path) if "snapshot" in name]
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"A"
        assert space(engine).get(b"lists", b"ben") == b"B"


def is_taken(engine: EmbeddedEngine) -> bool:
    try:
        space(engine).set(b"lists", b"ben", b"B")
    except Unavailable:
        return False
    return True


async def test_a_disk_that_fails_ends_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D6."""
    finishes = Gate(monkeypatch, SnapshotWriter, "finish")
    finishes.error = DiskFailed(OSError(5, "Input/output error"))

    async def serve() -> None:
        async with opened(tmp_path) as engine:
            await put(engine, b"A")
            engine.snapshot_soon()
            with pytest.raises(DiskFailed):
                await engine.failure()

    with pytest.raises(DiskFailed):
        await serve()
    assert len(finishes.passed) == 1


async def test_a_snapshot_that_is_asked_for_before_there_is_room_for_a_journal_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D6: a daemon that was started on a full disk serves reads."""
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
    disk = Disk(monkeypatch)
    disk.fill()
    async with opened(tmp_path) as engine:
        engine.snapshot_soon()
        await eventually(lambda: engine.info()["snapshot_failures"])
        assert space(engine).get(*ANN) == b"A"
        disk.make_room()
        await eventually(lambda: unsaved(engine) == 0)
        await eventually(lambda: is_taken(engine))


async def test_closing_waits_for_what_is_under_way_and_loses_nothing(tmp_path: Path, verifies: Gate) -> None:
    """O1: SIGTERM comes on a busy disk."""
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        verifies.shut()
        engine.snapshot_soon()
        await eventually(lambda: verifies.waiting)
        space(engine).set(*ANN, b"B")
        asyncio.get_running_loop().call_later(0.01, verifies.open)
    assert verifies.passed
    async with opened(tmp_path) as engine:
        assert space(engine).get(*ANN) == b"B"


async def test_closing_while_one_is_written_leaves_nothing_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statestored.engines.snapshots.FLUSH_EVERY", 1)
    flushes = Gate(monkeypatch, SnapshotWriter, "flush")
    async with opened(tmp_path) as engine:
        await asyncio.gather(*[put(engine, b"A", b"s%d" % number) for number in range(20)])
        flushes.shut()
        engine.snapshot_soon()
        await eventually(lambda: flushes.waiting)
        asyncio.get_running_loop().call_later(0.01, flushes.open)
    assert names(tmp_path) == ["00000001.journal", "00000002.journal"]
    async with opened(tmp_path) as engine:
        assert engine.info()["entries"] == 20


async def test_info_says_when_the_last_one_was_and_how_long_it_took(tmp_path: Path) -> None:
    before = now() / 1000
    async with opened(tmp_path) as engine:
        assert engine.info()["last_snapshot_time"] == 0
        await put(engine, b"A")
        await engine.saver.snapshot()
        info = engine.info()
        assert before <= info["last_snapshot_time"] <= time.time()
        assert 0 < info["last_snapshot_seconds"] < 10
        assert info["journal_bytes"] in (0, FRAME_SIZE)  # a mark, where the disk is slow
        assert all(isinstance(value, int | float | str) for value in info.values())


async def test_after_a_start_info_still_says_when_the_last_one_was(tmp_path: Path) -> None:
    """A copy of the directory, or a restored one, has other times of its files."""
    async with opened(tmp_path) as engine:
        await put(engine, b"A")
        await engine.saver.snapshot()
        written = engine.info()["last_snapshot_time"]
    (path,) = DataDirectory(tmp_path).snapshots()
    os.utime(path, (1, 1))
    for _ in range(2):
        async with opened(tmp_path) as engine:
            assert engine.info()["last_snapshot_time"] == written > 0
            assert engine.info()["last_snapshot_seconds"] == 0, "nobody knows any more how long it took"


# Files that others remove


@pytest.mark.parametrize("is_fresh", [False, True])
@pytest.mark.parametrize("removed", [".journal", ".snapshot", ""])
async def test_what_another_program_removes_is_written_again(tmp_path: Path, removed: str, is_fresh: bool) -> None:
    """Although nothing has changed since the last snapshot, and also if the segment that is removed is empty."""
    with capture_logs() as logs:
        async with opened(tmp_path) as engine:
            await put(engine, b"FIRST")
            await engine.saver.snapshot()
            assert names(tmp_path) == ["00000002.journal", "00000002.snapshot"]
            if not is_fresh:
                await put(engine, b"SECOND")
            gone = [name for name in names(tmp_path) if removed in name]
            for name in gone:
                (tmp_path / name).unlink()
            last = "00000002.snapshot" if is_fresh and removed == ".snapshot" else "00000003.snapshot"
            await eventually(lambda: (tmp_path / last).exists() and engine.saver._one_at_a_time.locked() is False)
            assert len(names(tmp_path)) == 2
    errors = [entry for entry in logs if entry["log_level"] == "error"]
    assert {entry["event"] for entry in errors} == {"files were removed by another program, a snapshot replaces them"}
    assert sorted(name for entry in errors for name in entry["files"]) == gone
    async with opened(tmp_path) as again:
        assert space(again).get(*ANN) == (b"FIRST" if is_fresh else b"SECOND")


async def test_a_removal_during_a_snapshot_is_made_good_by_the_next(tmp_path: Path, verifies: Gate) -> None:
    async with opened(tmp_path) as engine:
        await put(engine, b"FIRST")
        verifies.shut()
        running = asyncio.create_task(engine.saver.snapshot())
        await eventually(lambda: verifies.waiting)
        (tmp_path / "00000002.journal").unlink()
        await eventually(lambda: engine.saver._missing == {"00000002.journal"})
        verifies.open()
        await running
        await eventually(lambda: (tmp_path / "00000003.snapshot").exists())
    async with opened(tmp_path) as again:
        assert space(again).get(*ANN) == b"FIRST"


async def test_what_cannot_be_written_again_for_want_of_room_is_so_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as engine:
        await put(engine, b"FIRST")
        disk = Disk(monkeypatch)
        disk.fill()
        (tmp_path / "00000001.journal").unlink()
        await eventually(lambda: engine.info()["snapshot_failures"])
        disk.make_room()
        await eventually(lambda: names(tmp_path)[-1:] == ["00000002.snapshot"])
    async with opened(tmp_path) as again:
        assert space(again).get(*ANN) == b"FIRST"


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("removed", [".journal", ".snapshot", ""])
async def test_what_was_removed_just_before_the_daemon_stops_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str, fsync: Fsync
) -> None:
    monkeypatch.setattr(saver_module, "WATCH_SECONDS", 3600.0)
    async with opened(tmp_path, fsync=fsync) as engine:
        await put(engine, b"FIRST")
        await engine.saver.snapshot()
        await put(engine, b"SECOND")
        for name in names(tmp_path):
            if removed in name:
                (tmp_path / name).unlink()
    async with opened(tmp_path) as again:
        assert space(again).get(*ANN) == b"SECOND"


async def test_a_look_that_the_stop_breaks_off_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Gate(monkeypatch, DataDirectory, "snapshots")
    async with opened(tmp_path) as engine:
        await put(engine, b"FIRST")
        looks.shut()
        (tmp_path / "00000001.journal").unlink()
        await eventually(lambda: looks.waiting)
        asyncio.get_running_loop().call_later(0.01, looks.open)
    async with opened(tmp_path) as again:
        assert space(again).get(*ANN) == b"FIRST"


async def test_a_stop_that_cannot_write_again_what_was_removed_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that says that all is well would hide that acknowledged writes are lost."""
    monkeypatch.setattr(saver_module, "WATCH_SECONDS", 3600.0)
    with closing(DataDirectory(tmp_path)) as directory:
        directory.open()
        engine = EmbeddedEngine(directory, Fsync.ALWAYS, NEVER, 1000)
        await engine.open()
        await put(engine, b"FIRST")
        (tmp_path / "00000001.journal").unlink()
        Disk(monkeypatch).fill()
        with pytest.raises(FilesMissing, match=r"00000001\.journal: removed by another program.*No space left"):
            await engine.close()


async def test_writes_do_not_wait_for_a_look_on_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Gate(monkeypatch, SegmentWriter, "is_in_place")
    async with opened(tmp_path) as engine:
        with looks:
            await eventually(lambda: looks.waiting)
            await put(engine, b"FIRST")
            assert looks.waiting == 1


async def test_a_look_at_a_segment_that_is_replaced_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Gate(monkeypatch, SegmentWriter, "is_in_place")
    async with opened(tmp_path) as engine:
        with looks:
            await eventually(lambda: looks.waiting)
            await put(engine, b"FIRST")
            await engine.saver.snapshot()  # removes the segment, and another file gets its name
            (tmp_path / "00000001.journal").touch()
        before = len(looks.passed)
        await eventually(lambda: len(looks.passed) > before)
        (tmp_path / "00000001.journal").unlink()
        assert not engine.commits._failed


@pytest.mark.parametrize("kind", ["snapshot", "journal"])
async def test_a_temporary_file_that_another_program_removes_is_a_failed_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    put_in_place = files.put_in_place
    removals = 2

    def removed_before(temporary: Path, path: Path) -> None:
        nonlocal removals
        if path.suffix == f".{kind}" and removals:
            removals -= 1
            temporary.unlink()
        put_in_place(temporary, path)

    async with opened(tmp_path) as engine:
        await put(engine, b"FIRST")
        monkeypatch.setattr(files, "put_in_place", removed_before)
        with capture_logs() as logs:
            engine.snapshot_soon()
            await eventually(lambda: unsaved(engine) == 0)
        assert engine.info()["snapshot_failures"] == 2
        assert all("removed by another program" in entry["error"] for entry in logs if "error" in entry)
        await put(engine, b"SECOND")
    async with opened(tmp_path) as again:
        assert space(again).get(*ANN) == b"SECOND"


async def test_a_snapshot_that_is_removed_before_it_is_read_back_is_a_failed_attempt(
    tmp_path: Path, verifies: Gate
) -> None:
    async with opened(tmp_path) as engine:
        await put(engine, b"FIRST")
        with verifies:
            saving = asyncio.create_task(engine.saver.snapshot())
            await eventually(lambda: verifies.waiting)
            (tmp_path / "00000002.snapshot.tmp").unlink()
        with pytest.raises(TemporaryFileRemoved):
            await saving
        await engine.saver.snapshot()


@pytest.mark.parametrize("replace", [replace_directory, replace_segment], ids=["directory", "segment"])
async def test_what_another_program_has_replaced_ends_the_daemon(
    tmp_path: Path, replace: Callable[[Path], None]
) -> None:
    path = tmp_path / "data"
    with closing(DataDirectory(path)) as directory:
        directory.open()
        engine = EmbeddedEngine(directory, Fsync.ALWAYS, NEVER, 1000)
        await engine.open()
        await put(engine, b"FIRST")
        replace(path)
        with pytest.raises(Displaced):
            await engine.failure()
        assert engine.commits._failed, "nothing is acknowledged any more"
        with pytest.raises(Displaced):
            await engine.close()
