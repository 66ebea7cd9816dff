"""Group commit: nobody is told of a write before the disk has it (D1); where it cannot, all is as before (D6)."""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import msgpack
import pytest
from structlog.testing import capture_logs

from statestore.errors import Unavailable
from statestored import files
from statestored import journal as journal_module
from statestored.datadir import DataDirectory
from statestored.engines import commits as commits_module
from statestored.engines.base import START
from statestored.engines.commits import Batch, Fsync, GroupCommit
from statestored.engines.recovery import recover
from statestored.engines.states import CLEAR, MS_A_DAY, PUT, Effect, States
from statestored.errors import DiskFailed, NoRoom
from statestored.journal import Journal
from tests.faults.workload import is_marked
from tests.server.fakes import Disk, Gate, listen, some_turns
from tests.server.models import TODAY, content, small_buckets
from tests.server.waiting import eventually

LAZY = (Fsync.EVERYSEC, Fsync.NEVER)


@pytest.fixture(autouse=True)
def _small_buckets() -> Iterator[None]:
    with small_buckets():
        yield


TIMES = {name: getattr(commits_module, name) for name in ("SYNC_EVERY", "IDLE", "RETRY_EVERY")}


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TIMES:
        monkeypatch.setattr(commits_module, name, 0.002)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch, Journal, "sync")


@pytest.fixture
def appends(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch, Journal, "append")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


class Running:
    """A group commit on a directory, and the work that it needs done."""

    def __init__(self, path: Path, fsync: Fsync) -> None:
        self.directory = DataDirectory(path)
        self.fsync = fsync
        self.states = States()
        self.journal: Journal
        self.commits: GroupCommit
        self.failed: list[BaseException] = []

    async def open(self) -> None:
        self.directory.open()
        self.journal = await recover(self.directory, self.states)
        self.commits = GroupCommit(self.states, self.journal, self.fsync, self.failed.append)
        await self.commits.begin()
        if self.directory.is_new:
            self.directory.save_identity()

    async def close(self) -> None:
        """In order, unless the disk has failed."""
        if not self.failed:
            await self.commits.durable()
            await self.commits.close()
        self.directory.close()

    def put(self, sender: bytes, state: bytes = b"POSTING") -> Batch:
        batch = self.commits.commit([effect(sender, state)])
        assert batch is not None
        return batch

    async def put_durably(self, sender: bytes, state: bytes = b"POSTING") -> None:
        told = listen(self.put(sender, state))
        await eventually(lambda: told)
        assert told == [None]

    def get(self, sender: bytes) -> bytes:
        return self.states.table(b"default").get(b"lists", sender)


@asynccontextmanager
async def running(path: Path, fsync: Fsync = Fsync.ALWAYS) -> AsyncIterator[Running]:
    run = Running(path, fsync)
    await run.open()
    try:
        yield run
    finally:
        await run.close()


@asynccontextmanager
async def kept_up(run: Running) -> AsyncIterator[None]:
    """What has to be done besides is done."""
    tasks = [asyncio.create_task(work) for work in (run.commits.keep_up(), run.commits.find_room_again())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(how, asyncio.CancelledError) for how in ended), ended


def effect(sender: bytes, state: bytes = b"POSTING") -> Effect:
    return (PUT, b"default", b"lists", sender, state)


def batches(appends: Gate) -> list[list[bytes]]:
    """The senders of all that were written."""
    return [[effect[3] for effect in msgpack.unpackb(payload)] for _, _, payload in appends.passed if payload]


def marks(appends: Gate) -> int:
    return sum(not payload for _, _, payload in appends.passed)


def on_disk(path: Path) -> bytes:
    """What the system has, whether it is on the disk yet or not."""
    return b"".join(file.read_bytes() for file in path.glob("*.journal"))


# When those who wait are told


async def test_with_always_nobody_is_told_before_the_sync_has_returned(tmp_path: Path, syncs: Gate) -> None:
    """D1."""
    async with running(tmp_path) as run:
        with syncs:
            told = listen(run.put(b"ann", b"CONFIRMING"))
            await eventually(lambda: syncs.waiting)
            await some_turns()
            assert b"CONFIRMING" in on_disk(tmp_path)
            assert told == []
        await eventually(lambda: told)
        assert told == [None]


@pytest.mark.parametrize("fsync", LAZY)
async def test_with_less_they_are_told_once_the_system_has_it(tmp_path: Path, syncs: Gate, fsync: Fsync) -> None:
    async with running(tmp_path, fsync) as run:
        with syncs:
            batch = run.put(b"ann", b"CONFIRMING")
            written: list[bool] = []
            batch.then(lambda written, _: written.append(b"CONFIRMING" in on_disk(tmp_path)), written)
            await eventually(lambda: written)
            assert written == [True]
            assert syncs.passed == []


@pytest.mark.parametrize("fsync", Fsync)
async def test_nobody_is_told_in_the_turn_in_which_he_asked(tmp_path: Path, fsync: Fsync) -> None:
    """Others may have sent something as well, and go into the same batch."""
    async with running(tmp_path, fsync) as run:
        told = listen(run.put(b"ann"))
        assert told == []
        assert not run.commits.batch.is_settled
        await eventually(lambda: told)


async def test_the_memory_has_it_at_once(tmp_path: Path, syncs: Gate) -> None:
    async with running(tmp_path) as run:
        with syncs:
            run.put(b"ann", b"CONFIRMING")
            assert run.get(b"ann") == b"CONFIRMING"


async def test_all_who_wait_are_told(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        batch = run.put(b"ann")
        told = [listen(batch) for _ in range(3)]
        await eventually(lambda: all(told))
        assert told == [[None]] * 3


# Batches


@pytest.mark.parametrize("fsync", Fsync)
async def test_what_is_committed_in_one_turn_is_written_in_one_piece(
    tmp_path: Path, appends: Gate, fsync: Fsync
) -> None:
    async with running(tmp_path, fsync) as run:
        senders = [b"s%d" % number for number in range(50)]
        told = [listen(run.put(sender)) for sender in senders]
        await eventually(lambda: all(told))
        assert batches(appends) == [senders]


async def test_what_is_committed_while_a_batch_is_written_goes_together_into_the_next(
    tmp_path: Path, appends: Gate, syncs: Gate
) -> None:
    async with running(tmp_path) as run:
        with syncs:
            order: list[bytes] = []
            for sender in (b"one", b"two", b"three", b"four"):
                run.put(sender).then(lambda sender, _: order.append(sender), sender)
                if sender == b"one":
                    await eventually(lambda: syncs.waiting)
                await some_turns()
        await eventually(lambda: len(order) == 4)
        assert batches(appends) == [[b"one"], [b"two", b"three", b"four"]]
        assert order == [b"one", b"two", b"three", b"four"]


async def test_with_always_the_loop_listens_once_more_before_the_next_batch_is_written(
    tmp_path: Path, appends: Gate, syncs: Gate
) -> None:
    """Who waited for the one before goes into it."""
    async with running(tmp_path) as run:
        with syncs:
            first = run.put(b"one")
            first.then(lambda sender, _: asyncio.get_running_loop().call_soon(run.put, sender) and None, b"again")
            await eventually(lambda: syncs.waiting)
            run.put(b"two")
        await eventually(lambda: len(batches(appends)) == 2)
        assert batches(appends)[1] == [b"two", b"again"]


async def test_what_changes_nothing_is_not_written(tmp_path: Path, appends: Gate) -> None:
    async with running(tmp_path) as run:
        for effects in ([effect(b"ann", START), effect(b"ben", START)], [(CLEAR, b"default")]):
            assert run.commits.commit(effects) is None
        await run.put_durably(b"ann")
        assert run.commits.commit([effect(b"ann")]) is None
        await some_turns()
        assert batches(appends) == [[b"ann"]]


async def test_the_day_is_that_of_the_batch_also_when_it_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    midnight = TODAY * MS_A_DAY
    async with running(tmp_path) as run:
        for number, time in enumerate((midnight - 1, midnight)):
            monkeypatch.setattr(commits_module, "now", lambda time=time: time)
            await run.put_durably(b"s%d" % number, b"A")
        monkeypatch.setattr(commits_module, "now", lambda: midnight + 10 * MS_A_DAY)
        before = content(run.states)
    assert before == {b"default": {(b"lists", b"s0"): (b"A", TODAY - 1), (b"lists", b"s1"): (b"A", TODAY)}}
    async with running(tmp_path) as run:
        assert content(run.states) == before


@pytest.mark.parametrize("fsync", Fsync)
async def test_the_next_start_finds_what_was_written(tmp_path: Path, fsync: Fsync) -> None:
    async with running(tmp_path, fsync) as run:
        for number in range(20):
            await run.put_durably(b"s%d" % number, b"S%d" % number)
        run.commits.commit([(CLEAR, b"default")])
        run.commits.commit([effect(b"s3"), effect(b"ann"), effect(b"s3", START)])
        run.commits.commit([(PUT, b"other", b"lists", b"ann", b"A")])
        before = content(run.states)
    async with running(tmp_path, fsync) as run:
        assert content(run.states) == before


@pytest.mark.parametrize("fsync", Fsync)
async def test_a_full_segment_is_followed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync
) -> None:
    monkeypatch.setattr(journal_module, "SEGMENT_SIZE", 700)
    async with running(tmp_path, fsync) as run, kept_up(run):
        count = 0
        while run.journal.number < 4:
            count += 1
            await run.put_durably(b"s%d" % count)
    assert len([*tmp_path.glob("*.journal")]) > 3
    async with running(tmp_path, fsync) as run:
        assert len(run.states) == count


# Marks and later syncs


async def test_with_always_the_last_batch_is_marked_when_nothing_more_comes(
    tmp_path: Path, appends: Gate, syncs: Gate
) -> None:
    async with running(tmp_path) as run, kept_up(run):
        for number in (1, 2):
            await run.put_durably(b"s%d" % number)
            await eventually(lambda number=number: marks(appends) == number and len(syncs.passed) == 2 * number)


async def test_with_everysec_what_was_written_is_synced_and_then_marked(
    tmp_path: Path, appends: Gate, syncs: Gate
) -> None:
    async with running(tmp_path, Fsync.EVERYSEC) as run, kept_up(run):
        for number in (1, 2):
            with syncs:
                await run.put_durably(b"s%d" % number)
                await eventually(lambda: syncs.waiting)
                assert marks(appends) == number - 1
                assert await told_soon(run.put(b"meanwhile", b"S%d" % number))
            await eventually(lambda number=number: marks(appends) == number)


async def told_soon(batch: Batch) -> bool:
    told = listen(batch)
    await eventually(lambda: told)
    return told == [None]


def test_times_are_what_is_promised() -> None:
    assert TIMES["SYNC_EVERY"] == 1  # a power loss takes so much
    assert TIMES["RETRY_EVERY"] < 5


async def test_with_everysec_nothing_is_synced_where_nothing_was_written(tmp_path: Path, syncs: Gate) -> None:
    async with running(tmp_path, Fsync.EVERYSEC) as run, kept_up(run):
        await asyncio.sleep(0.01)  # to go wrong, if it does
        assert syncs.passed == []


async def test_with_never_the_system_does_as_it_likes(tmp_path: Path, appends: Gate, syncs: Gate) -> None:
    async with running(tmp_path, Fsync.NEVER) as run, kept_up(run):
        await run.put_durably(b"ann")
        await asyncio.sleep(0.01)  # to go wrong, if it does
        assert (marks(appends), syncs.passed) == (0, [])


@pytest.mark.parametrize("fsync", Fsync)
async def test_closing_marks_the_last_batch(tmp_path: Path, fsync: Fsync, appends: Gate, syncs: Gate) -> None:
    async with running(tmp_path, fsync) as run:
        await run.put_durably(b"ann")
    assert (batches(appends), marks(appends)) == ([[b"ann"]], 1)
    assert syncs.passed


# Waiting for all of it


@pytest.mark.parametrize("fsync", Fsync)
async def test_durable_means_that_all_so_far_has_been_synced(tmp_path: Path, syncs: Gate, fsync: Fsync) -> None:
    async with running(tmp_path, fsync) as run:
        with syncs:
            told = listen(run.put(b"ann"))
            waiting = asyncio.create_task(run.commits.durable())
            await eventually(lambda: syncs.waiting)
            await some_turns()
            assert not waiting.done()
        last = await waiting
        assert told == [None]
        assert last == run.journal.last == await run.commits.durable()


async def test_durable_says_where_it_was_taken_back(tmp_path: Path, disk: Disk) -> None:
    async with running(tmp_path) as run:
        disk.fill()
        run.put(b"ann")
        with pytest.raises(Unavailable):
            await run.commits.durable()
        disk.make_room()


async def test_from_a_rotation_on_batches_go_into_a_new_segment(tmp_path: Path, syncs: Gate) -> None:
    async with running(tmp_path) as run:
        with syncs:
            told = listen(run.put(b"ann", b"BEFORE"))
            await eventually(lambda: syncs.waiting)
            rotating = asyncio.create_task(run.commits.rotate())
            await some_turns()
        number, size = await rotating
        assert told == [None]
        assert await told_soon(run.put(b"ben", b"BEHIND"))
        assert number == run.journal.number == 2
        assert 0 < size < run.journal.size
    first, second = sorted(tmp_path.glob("*.journal"))
    assert (b"BEFORE" in first.read_bytes(), b"BEFORE" in second.read_bytes()) == (True, False)
    assert (b"BEHIND" in first.read_bytes(), b"BEHIND" in second.read_bytes()) == (False, True)


# What was cleared


async def test_what_was_cleared_is_freed_over_several_turns_of_the_loop(
    tmp_path: Path, syncs: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7."""
    monkeypatch.setattr(commits_module, "FREED_AT_ONCE", 3)
    async with running(tmp_path) as run:
        for _ in range(3):
            run.commits.commit([effect(b"s%d" % number) for number in range(30)])
            await run.commits.durable()
            with syncs:
                run.commits.commit([(CLEAR, b"default")])
                await eventually(lambda: syncs.waiting)
                await some_turns()
                assert run.states.garbage == []  # it may still have to come back
            await run.commits.durable()
            left = [sum(map(len, run.states.garbage))]
            while run.states.garbage:
                await asyncio.sleep(0)
                left.append(sum(map(len, run.states.garbage)))
            assert {before - after for before, after in pairwise(left)} <= {0, 1, 2, 3}


# Where there is no room


@pytest.mark.parametrize("fsync", Fsync)
async def test_where_there_is_no_room_those_who_wait_are_refused_and_all_is_as_before(
    tmp_path: Path, disk: Disk, fsync: Fsync
) -> None:
    """D6."""
    async with running(tmp_path, fsync) as run:
        for sender, state in ((b"ann", b"A"), (b"ben", b"B")):
            await run.put_durably(sender, state)
        before, written = content(run.states), on_disk(tmp_path).rstrip(b"\0")
        disk.fill()
        told = listen(run.put(b"ann", b"REFUSED"))
        for effects in ([effect(b"ben", START), effect(b"dora")], [(CLEAR, b"default")], [effect(b"cleo")]):
            run.commits.commit(effects)
        with capture_logs() as logs:
            await eventually(lambda: told)
        assert [type(error) for error in told] == [Unavailable]
        assert "No space left" in str(told[0])
        assert content(run.states) == before
        assert len(run.states) == 2
        assert run.commits.reverts == 1
        assert on_disk(tmp_path).rstrip(b"\0") == written
        assert [entry["event"] for entry in logs] == ["writes are refused"]
        disk.make_room()


async def test_what_came_while_the_batch_without_room_was_written_is_refused_with_it(
    tmp_path: Path, appends: Gate, disk: Disk
) -> None:
    """D6: it was applied to what has been taken back."""
    async with running(tmp_path) as run:
        await run.put_durably(b"ann", b"A")
        with appends:
            told = listen(run.put(b"ann", b"B"))
            await eventually(lambda: appends.waiting)
            next_told = listen(run.put(b"ann", b"C"))
            listen_again = listen(run.put(b"ben", b"C"))
            disk.fill()
        await eventually(lambda: told)
        assert [type(error) for error in (*told, *next_told, *listen_again)] == [Unavailable] * 3
        assert (run.get(b"ann"), run.get(b"ben")) == (b"A", START)
        disk.make_room()


async def test_who_tries_again_as_soon_as_he_is_refused_is_refused_again(
    tmp_path: Path, appends: Gate, disk: Disk
) -> None:
    """As a session does that had stopped for its many answers: D6, all has been taken back by then."""
    async with running(tmp_path) as run:
        again: list[Batch | None] = []

        def try_again(sender: bytes, _: object) -> None:
            with suppress(Unavailable):
                again.append(run.commits.commit([effect(sender)]))

        with appends:
            run.put(b"ann").then(try_again, b"cleo")
            await eventually(lambda: appends.waiting)
            told = listen(next_batch := run.put(b"ben"))
            next_batch.then(try_again, b"dora")
            disk.fill()
        await eventually(lambda: told)
        assert again == []
        assert len(run.states) == 0
        disk.make_room()


@pytest.mark.parametrize("fsync", Fsync)
async def test_writes_are_refused_until_there_is_room_again(tmp_path: Path, disk: Disk, fsync: Fsync) -> None:
    """D6: without a restart, and what was refused is not there afterwards."""
    async with running(tmp_path, fsync) as run, kept_up(run):
        await run.put_durably(b"ann", b"A")
        disk.fill()
        told = listen(run.put(b"ann", b"REFUSED"))
        await eventually(lambda: told)
        for _ in range(3):
            with pytest.raises(Unavailable, match="no room"):
                run.put(b"ben")
            assert run.get(b"ann") == b"A"
            await asyncio.sleep(0.003)  # attempts are made
        disk.make_room()
        with capture_logs() as logs:
            await eventually(lambda: is_taken(run, b"ben"))
        assert "writes are taken again" in [entry["event"] for entry in logs]
        await run.put_durably(b"cleo")
    async with running(tmp_path, fsync) as run:
        assert [run.get(sender) for sender in (b"ann", b"ben", b"cleo")] == [b"A", b"POSTING", b"POSTING"]


def is_taken(run: Running, sender: bytes) -> bool:
    try:
        run.put(sender)
    except Unavailable:
        return False
    return True


@pytest.mark.parametrize("fsync", Fsync)
async def test_a_start_without_room_has_what_is_there_and_refuses_writes(
    tmp_path: Path, disk: Disk, fsync: Fsync
) -> None:
    """D6."""
    async with running(tmp_path, fsync) as run:
        await run.put_durably(b"ann", b"A")
    disk.fill()
    before = on_disk(tmp_path)
    async with running(tmp_path, fsync) as run, kept_up(run):
        assert run.get(b"ann") == b"A"
        with pytest.raises(Unavailable, match="no room"):
            run.put(b"ben")
        assert on_disk(tmp_path) == before
        disk.make_room()
        await eventually(lambda: is_taken(run, b"ben"))
        assert await told_soon(run.put(b"cleo"))
    async with running(tmp_path, fsync) as run:
        assert len(run.states) == 3


async def test_a_start_without_room_can_end_without_having_had_any(tmp_path: Path, disk: Disk) -> None:
    async with running(tmp_path) as run:
        await run.put_durably(b"ann", b"A")
    disk.fill()
    async with running(tmp_path):
        pass
    disk.make_room()
    async with running(tmp_path) as run:
        assert run.get(b"ann") == b"A"


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.EVERYSEC])
async def test_without_room_for_a_mark_nothing_is_refused_and_it_comes_later(
    tmp_path: Path, disk: Disk, appends: Gate, fsync: Fsync
) -> None:
    """D5: without it, damage to the last batch would be taken for a write that was broken off."""
    async with running(tmp_path, fsync) as run:
        await run.put_durably(b"ann")
        disk.fill()
        async with kept_up(run):
            await eventually(lambda: marks(appends) > 1)
            run.commits.check()
            disk.make_room()
            await eventually(lambda: is_marked(tmp_path))
            await run.put_durably(b"ben")


async def test_without_room_for_a_new_segment_the_old_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D6."""
    monkeypatch.setattr(journal_module, "SEGMENT_SIZE", 1)
    creates = Gate(monkeypatch, files, "create")
    async with running(tmp_path) as run, kept_up(run):
        creates.error = NoRoom(28, "No space left on device")
        with capture_logs() as logs:
            await run.put_durably(b"ann")
            await eventually(lambda: logs)
            for number in range(3):
                tried = len(creates.passed)
                await run.put_durably(b"s%d" % number)
                await eventually(lambda tried=tried: len(creates.passed) > tried)  # type: ignore[misc]
        assert [entry["event"] for entry in logs] == ["no new segment of the journal"], "however often it is tried"
        assert run.journal.number == 1
        creates.error = None
        await run.put_durably(b"ben")
        await eventually(lambda: run.journal.number > 1)
    async with running(tmp_path) as run:
        assert len(run.states) == 5


# Where the disk fails


@pytest.mark.parametrize("fsync", Fsync)
async def test_a_write_that_fails_ends_it_and_nobody_is_told_anything(tmp_path: Path, disk: Disk, fsync: Fsync) -> None:
    """D6."""
    async with running(tmp_path, fsync) as run:
        await run.put_durably(b"ann")
        disk.fail()
        told = listen(run.put(b"ben"))
        told_of_next = listen(run.put(b"cleo"))
        await eventually(lambda: run.failed)
        await some_turns()
        assert [type(error) for error in run.failed] == [DiskFailed]
        assert told == told_of_next == []


async def test_with_always_a_sync_that_fails_ends_it_and_nobody_is_told_anything(tmp_path: Path, syncs: Gate) -> None:
    """D6."""
    async with running(tmp_path) as run:
        with syncs:
            told = listen(run.put(b"ann"))
            await eventually(lambda: syncs.waiting)
            told_of_next = listen(run.put(b"ben"))
            syncs.error = DiskFailed(OSError(5, "Input/output error"))
        await eventually(lambda: run.failed)
        await some_turns()
        assert [type(error) for error in run.failed] == [DiskFailed]
        assert told == told_of_next == []
        assert len(syncs.passed) == 1


async def test_a_segment_without_batches_is_the_new_one_already(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        assert [await run.commits.rotate() for _ in range(3)] == [(1, 0)] * 3
        assert await told_soon(run.put(b"ann"))
        assert [(await run.commits.rotate())[0] for _ in range(3)] == [2] * 3
        run.journal.mark(commits_module.now())
        assert (await run.commits.rotate())[0] == 2
        assert await told_soon(run.put(b"ben"))
        assert (await run.commits.rotate())[0] == 3
    assert len(list(tmp_path.glob("*.journal"))) == 3


@pytest.mark.parametrize("fsync", Fsync)
async def test_after_a_rotation_that_failed_nobody_is_told_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync
) -> None:
    """D6: the new segment may have its name, and whatever went into the old one after that would be void."""
    async with running(tmp_path, fsync) as run:
        assert await told_soon(run.put(b"before"))
        names = Gate(monkeypatch, files, "sync_directory")
        with names:
            rotating = asyncio.create_task(run.commits.rotate())
            await eventually(lambda: names.waiting)
            told = listen(run.put(b"ann"))
            names.error_once = DiskFailed(OSError(5, "Input/output error"))
        with pytest.raises(DiskFailed):
            await rotating
        await some_turns()
        assert told == []
        assert len(run.failed) == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("fsync", Fsync)
async def test_a_rotation_that_cannot_open_what_it_needs_has_changed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync, number: int
) -> None:
    """D2: batches go on into the old segment, and are there after a kill."""
    path = tmp_path / "data"
    async with running(path, fsync) as run:
        await run.put_durably(b"ann")
        with monkeypatch.context() as patch:
            too_many_open(patch, path, number)
            with pytest.raises(NoRoom):
                await run.commits.rotate()
            await run.put_durably(b"ben")
        shutil.copytree(path, tmp_path / "killed")
        await run.commits.rotate()
        await run.put_durably(b"cleo")
    for killed, senders in ((tmp_path / "killed", 2), (path, 3)):
        async with running(killed, fsync) as run:
            assert len(run.states) == senders


def too_many_open(patch: pytest.MonkeyPatch, directory: Path, number: int) -> None:
    """The first file can still be opened; for the directory there is no more room."""
    open_ = os.open

    def open_all_but_it(path: Path, *arguments: int) -> int:
        if path == directory:
            raise OSError(number, os.strerror(number))
        return open_(path, *arguments)

    patch.setattr(os, "open", open_all_but_it)


async def test_with_everysec_a_sync_that_fails_ends_it(tmp_path: Path, syncs: Gate) -> None:
    async with running(tmp_path, Fsync.EVERYSEC) as run:
        syncs.error = DiskFailed(OSError(5, "Input/output error"))
        run.put(b"ann")
        with pytest.raises(DiskFailed):
            await run.commits.keep_up()
        assert len(syncs.passed) == 1
        syncs.error = None


@pytest.mark.parametrize("fsync", Fsync)
async def test_a_fault_of_ours_ends_it_as_well(tmp_path: Path, appends: Gate, fsync: Fsync) -> None:
    """Rather than to go on without ever answering anybody."""
    async with running(tmp_path, fsync) as run:
        appends.error_once = ZeroDivisionError()
        told = listen(run.put(b"ann"))
        await eventually(lambda: run.failed)
        assert [type(error) for error in run.failed] == [ZeroDivisionError]
        assert told == []


async def test_an_error_that_is_not_about_room_is_a_failed_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as run:
        assert await told_soon(run.put(b"ann"))
        rotates = Gate(monkeypatch, Journal, "rotate")
        rotates.error = OSError(5, "Input/output error")
        with pytest.raises(DiskFailed, match="Input/output error"):
            await run.commits.rotate()
