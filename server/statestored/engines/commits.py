"""Group commit: what is committed while the disk is busy goes there together, and the answers wait for it.

One batch collects while the one before it is written. The order of events is the point:

1. A commit changes the states in memory, and its answer is held.
2. When the loop has heard everybody who has sent something, the batch is written, in one piece, and, with `always`,
   synced. No answer leaves before this.
3. Its answers leave. With `always` the loop listens as long as that makes the next batch larger, so that those who
   waited for this one are in it: otherwise a batch would hold half as much.

Where there is no room, all that is not settled is taken back and refused, and so is every write until there is room
again. Any other failure is for good: after a failed sync nobody knows what is on the disk.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any, TypeVar

import msgpack
import structlog

from statestore import wire
from statestore.errors import StateStoreError, Unavailable
from statestored import collector, framing
from statestored.engines.base import Held
from statestored.engines.states import MS_A_DAY, Effect, States
from statestored.engines.threads import in_thread
from statestored.engines.turns import Turns
from statestored.errors import AttemptFailed, NoRoom
from statestored.journal import Journal

log = structlog.get_logger()

SYNC_EVERY = 1.0  # seconds, with `everysec`
IDLE = 0.05  # seconds without a batch, after which, with `always`, the last one is marked as durable
RETRY_EVERY = 1.0  # seconds, where there is no room
MOST_TURNS = 16  # of the loop, in which a batch that is to be synced may grow; a few microseconds each
PACK_AT_ONCE = 1000  # effects; a fraction of a millisecond's work
FREED_AT_ONCE = 100  # senders; up to three milliseconds, of five million the last ones

T = TypeVar("T")


class Fsync(StrEnum):
    """When a write is acknowledged. A kill takes nothing that was; a power loss, as it says here."""

    ALWAYS = "always"  # once it is on the disk: nothing
    EVERYSEC = "everysec"  # once the system has it, which is made to write it every second: about a second
    NEVER = "never"  # once the system has it: what it had not written yet


class Batch:
    """Effects that become durable together, and whoever waits for that."""

    __slots__ = ("_waiting", "day", "effects", "error", "is_settled", "nothing", "time")

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.time = self.day = 0  # of the first of them: ms and days since 1970
        self.nothing: Held[None] = Held(None, self)
        self.is_settled = False
        self.error: StateStoreError | None = None
        self._waiting: list[tuple[Callable[[Any, StateStoreError | None], None], Any]] = []

    def begin(self) -> None:
        self.time = now()
        self.day = self.time // MS_A_DAY

    def then(self, callback: Callable[[T, StateStoreError | None], None], argument: T) -> None:
        self._waiting.append((callback, argument))

    def settle(self, error: StateStoreError | None) -> None:
        self.is_settled, self.error = True, error
        del self.nothing  # a cycle, which would keep all this until the collector came
        waiting, self._waiting = self._waiting, []
        for callback, argument in waiting:
            callback(argument, error)


class GroupCommit:
    """For the loop's thread; what may have to wait for the disk runs in a thread of its own.

    batch: collects what is committed; writing: the one before it, which may be settled already.
    reverts: how often something was taken back.
    `fail` is told, once, what nothing can go on after.
    """

    def __init__(self, states: States, journal: Journal, fsync: Fsync, fail: Callable[[BaseException], None]) -> None:
        self.batch = Batch()
        self.writing = Batch()
        self.writing.is_settled = True
        self.reverts = 0
        self._states = states
        self._journal = journal
        self._fsync = fsync
        self._fail = fail
        self._pack = wire.packer()
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._turns = Turns(when_free=self._flush_soon)  # at the journal, but for its `sync`
        self._flush_is_near = False
        self._unmarked = asyncio.Event()  # nothing in the journal says yet that the last batch is durable
        self._settled = journal.last  # the last batch that is
        self._failed = False  # nothing may be written or answered any more
        self._refused_because = ""  # nothing can be written now
        self._rotation_failed = False  # and the log says so
        self._refusing = asyncio.Event()  # set where there is a reason

    async def begin(self) -> None:
        """Raises DiskFailed. Where there is no room it goes on, and refuses writes until there is some."""
        await self._find_room(self._journal.begin)

    @property
    def refused_because(self) -> str:
        """Why nothing can be written now; empty while writes are accepted."""
        return self._refused_because

    def check(self) -> None:
        """Raises Unavailable where nothing can be written."""
        if self._refused_because:
            raise Unavailable(self._refused_because)

    def commit(self, effects: Sequence[Effect]) -> Batch | None:
        """The one way in which states change. Returns when: with this batch; None: nothing changed.

        The effects are of one kind, and in one namespace or of sessions. Raises Unavailable where nothing can be
        written.
        """
        batch = self.batch
        if not batch.effects:
            self.check()
            batch.begin()
            self._flush_soon()
        if not self._states.apply_run(effects, batch.day):
            return None
        batch.effects += effects
        return batch

    async def durable(self) -> framing.Sequence:
        """Wait until all that was committed so far is on the disk. Returns the last batch that is.

        Raises Unavailable where it was taken back, or DiskFailed.
        """
        batch = self.batch if self.batch.effects else self.writing
        if not batch.is_settled:
            settled: asyncio.Future[None] = self._loop.create_future()
            batch.then(_wake, settled)
            await settled
            if batch.error is not None:
                # A new one: the traceback of the batch's own would lead back to the batch.
                raise Unavailable(batch.error.detail)
        last = self._settled
        if self._fsync is not Fsync.ALWAYS:
            await self._in_thread(self._journal.sync)
        return last

    async def rotate(self) -> tuple[int, int]:
        """From now on batches go into a segment that has none. Returns its number, and the size of the journal before.

        That is the last one where it has none, so that snapshots that fail do not leave one each. Raises AttemptFailed
        or DiskFailed.
        """
        await self._in_thread(self._journal.sync)  # so that there is little left to sync while batches wait
        async with self._turns:
            if not (self._journal.is_fresh and await self._in_thread(self._journal.is_in_place)):
                await self._in_thread(self._journal.rotate)
            return self._journal.number, self._journal.size

    async def close(self) -> None:
        """After all is durable. Raises DiskFailed."""
        async with self._turns:
            await self._in_thread(self._journal.close, now())
        self._thread.shutdown()

    def give_up(self, error: BaseException) -> None:
        """At once: nothing is written or answered after this."""
        if not self._failed:
            self._failed = True
            self._fail(error)

    # Batches, one after the other

    def _flush_soon(self) -> None:
        """When the loop has heard everybody who has sent something."""
        if not self._flush_is_near:
            self._flush_is_near = True
            if self._fsync is Fsync.ALWAYS:
                self._loop.call_soon(self._listen, 0, MOST_TURNS)
            else:
                self._loop.call_soon(self._flush)

    def _listen(self, heard: int, turns: int) -> None:
        """Until a turn of the loop brings nothing more: what is synced together costs less of a sync each.

        heard: effects in the batch before this turn; turns: that may follow it.
        """
        effects = len(self.batch.effects)
        if effects > heard and turns:
            self._loop.call_soon(self._listen, effects, turns - 1)
        else:
            self._flush()

    def _flush(self) -> None:
        self._flush_is_near = False
        if self._failed or not self.batch.effects or not self._turns.take():
            return
        batch = self.writing = self.batch
        effects, batch.effects = batch.effects, []
        self.batch = Batch()
        self._states.cut()
        if self._fsync is Fsync.ALWAYS:
            job = self._thread.submit(self._append_and_sync, batch.time, effects)
            job.add_done_callback(lambda job: self._loop.call_soon_threadsafe(self._written, job.exception()))
            return
        try:
            self._journal.append(batch.time, self._packed(effects))
        except Exception as error:
            self._written(error)
        else:
            self._written(None)

    def _append_and_sync(self, time: int, effects: Sequence[Effect]) -> None:
        payload = self._packed(effects)
        self._journal.reserve()
        self._journal.append(time, payload)
        self._journal.sync()

    def _packed(self, effects: Sequence[Effect]) -> bytes:
        if len(effects) <= PACK_AT_ONCE:
            return self._pack(effects)
        packer = msgpack.Packer(autoreset=False)
        packer.pack_array_header(len(effects))
        for effect in effects:  # one by one: between two of them another thread can have its turn
            packer.pack(effect)
        packed: bytes = packer.bytes()
        return packed

    def _written(self, error: BaseException | None) -> None:
        """No answer leaves before this."""
        if self._failed:
            return
        try:
            if error is None:
                self._settle()
            elif isinstance(error, NoRoom):
                self._refuse(error)
            else:
                raise error
        except BaseException as failure:
            self.give_up(failure)
        else:
            self._turns.give_back()

    def _settle(self) -> None:
        self._settled = self._journal.last
        freeing = bool(self._states.garbage)
        self._states.settle()
        if not freeing:
            self._free_garbage()
        self._unmarked.set()
        self.writing.settle(None)

    def _free_garbage(self) -> None:
        """A little in each loop iteration. The last ones take longest: with them all that they lay between goes."""
        garbage = self._states.garbage
        if not garbage:
            return
        bucket = garbage[-1]
        for _ in range(min(len(bucket), FREED_AT_ONCE)):
            bucket.popitem()
        if not bucket:
            garbage.pop()
        if garbage:
            self._loop.call_soon(self._free_garbage)
        else:
            collector.empty_free_lists()

    # Where there is no room

    def _refuse(self, error: AttemptFailed) -> None:
        """Take back what is not settled, and refuse it."""
        what = "has no room" if isinstance(error, NoRoom) else "has no new segment"
        self._refused_because = f"the data directory {what} ({error.strerror}): nothing can be written"
        self._refusing.set()
        log.error("writes are refused", error=str(error))
        self.reverts += 1
        self._states.revert()
        # Whoever is told may go on at once, and then is to find the new batch.
        refused, self.batch = (self.writing, self.batch), Batch()
        for batch in refused:
            if not batch.is_settled:
                batch.settle(Unavailable(self._refused_because))

    async def find_room_again(self) -> None:
        """Whenever writes are refused. Until it is cancelled. Raises DiskFailed."""
        while True:
            await self._refusing.wait()
            await asyncio.sleep(RETRY_EVERY)
            await self._find_room(self._journal.probe)

    async def _find_room(self, attempt: Callable[[], None]) -> None:
        """Writes are taken from now on where the attempt succeeds."""
        try:
            async with self._turns:
                await self._in_thread(attempt)
        except AttemptFailed as error:
            if not self._refused_because:
                self._refuse(error)
            return
        if self._refused_because:
            self._refused_because = ""
            self._refusing.clear()
            log.info("writes are taken again")

    # What is not urgent

    async def keep_up(self) -> None:
        """Syncs, marks and new segments, in their time. Until it is cancelled. Raises DiskFailed."""
        while True:
            await self._unmarked.wait()
            last = self._journal.last
            await asyncio.sleep(IDLE if self._fsync is Fsync.ALWAYS else SYNC_EVERY)
            if self._fsync is Fsync.EVERYSEC or self._journal.is_full:
                await self._in_thread(self._journal.sync)
            async with self._turns:
                if self._journal.is_full:
                    await self._rotate_if_there_is_room()
                if last == self._journal.last and not self._refused_because:
                    await self._mark()

    async def _rotate_if_there_is_room(self) -> None:
        try:
            await self._in_thread(self._journal.rotate)
        except AttemptFailed as error:  # then the old one takes more
            if not self._rotation_failed:  # clients that write can have it tried 20 times a second
                log.warning("no new segment of the journal", error=str(error))
            self._rotation_failed = True
        else:
            self._rotation_failed = False

    async def _mark(self) -> None:
        """Nothing was written for a while, and all before that is on the disk."""
        if self._fsync is not Fsync.NEVER:
            try:
                await self._in_thread(self._journal.mark, now())
            except NoRoom:
                self._unmarked.clear()
                self._loop.call_later(RETRY_EVERY, self._unmarked.set)
                return
            if self._fsync is Fsync.ALWAYS:
                await self._in_thread(self._journal.sync)
        self._unmarked.clear()

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Raises AttemptFailed, or DiskFailed when everything has been given up: before anybody else has a turn."""
        try:
            return await in_thread(function, *arguments, executor=self._thread)
        except (AttemptFailed, asyncio.CancelledError):
            raise
        except BaseException as error:
            self.give_up(error)
            raise


def _wake(settled: "asyncio.Future[None]", _error: StateStoreError | None) -> None:
    if not settled.cancelled():
        settled.set_result(None)


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
