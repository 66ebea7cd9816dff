"""All pieces of work together get a two-hundredth of the time, one after the other."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from statestored.pacer import BURST_SECONDS, MAX_CHARGED_SECONDS, MIN_REST_SECONDS, REST_FACTOR, Pacer, Urgency
from tests.server.fakes import some_turns


class Rests:
    """The time that pieces of work take, and the rests after them, which end when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0  # seconds
        self.worked = 0.0
        self.begun: list[float] = []
        self.faults: list[Exception] = []
        self._ends: list[asyncio.Future[None]] = []

    def clock(self) -> float:
        return self.now

    def work_clock(self) -> float:
        return self.worked

    async def sleep(self, seconds: float) -> None:
        self.begun.append(seconds)
        self._ends.append(asyncio.get_running_loop().create_future())
        await self._ends[-1]

    async def end(self) -> None:
        """The rest is over; the next piece runs, and is followed by its own rest."""
        self.now += self.begun[-1]
        self._ends[-1].set_result(None)
        await some_turns()

    def piece(self, seconds: float, done: list[float]) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            await asyncio.sleep(0)
            self.worked += seconds
            done.append(seconds)

        return work


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Pacer, Rests]]:
    rests = Rests()
    pacer = Pacer(rests.faults.append, rests.work_clock, rests.clock, rests.sleep)
    task = asyncio.create_task(pacer.run())
    try:
        yield pacer, rests
    finally:
        task.cancel()
        await asyncio.wait([task])


async def use_up_the_burst(pacer: Pacer, rests: Rests) -> None:
    pieces = round(BURST_SECONDS / (REST_FACTOR * MAX_CHARGED_SECONDS)) + 1
    for _ in range(pieces):
        pacer.submit(rests.piece(MAX_CHARGED_SECONDS, []))
    await some_turns()
    for _ in range(pieces):
        await rests.end()
    rests.begun.clear()


async def test_after_each_piece_it_rests_a_multiple_of_the_time_it_took() -> None:
    done: list[float] = []
    times = [0.0001, 0.00045, 0.0003]
    async with running() as (pacer, rests):
        await use_up_the_burst(pacer, rests)
        for seconds in times:
            pacer.submit(rests.piece(seconds, done))
        await some_turns()
        for number in range(1, 4):
            assert done == times[:number], "one piece for each rest, in the order in which they came"
            await rests.end()
        assert rests.begun == pytest.approx([REST_FACTOR * seconds for seconds in times])


async def test_in_the_long_run_the_share_holds_whatever_the_pieces_take() -> None:
    async with running() as (pacer, rests):
        began = rests.now
        for number in range(500):
            pacer.submit(rests.piece(0.00001 + number % 5 / 10_000, []))
        await some_turns()
        for _ in range(500):
            await rests.end()
        allowed = (rests.now - began + BURST_SECONDS) / REST_FACTOR
        assert rests.worked == pytest.approx(allowed) or rests.worked < allowed


async def test_after_a_quiet_while_some_pieces_need_not_wait() -> None:
    """As when a browser loads a page."""
    async with running() as (pacer, rests):
        for _ in range(2):
            for _ in range(40):
                pacer.submit(rests.piece(0.0002, []))
            await some_turns()
            for _ in range(40):
                await rests.end()
            assert max(rests.begun) == MIN_REST_SECONDS
            rests.now += BURST_SECONDS


async def test_a_rest_has_bounds() -> None:
    """A piece that waited for a busy loop has not worked all the time; and timers have no finer steps."""
    async with running() as (pacer, rests):
        await use_up_the_burst(pacer, rests)
        pacer.submit(rests.piece(60.0, []))
        await some_turns()
        pacer.submit(rests.piece(0.0, []))
        await rests.end()
        assert rests.begun == pytest.approx([REST_FACTOR * MAX_CHARGED_SECONDS, MIN_REST_SECONDS])


async def test_what_is_urgent_comes_first() -> None:
    done: list[float] = []
    async with running() as (pacer, rests):
        pacer.submit(rests.piece(0.1, done))
        await some_turns()
        for number, urgency in enumerate((Urgency.LATER, Urgency.USUAL, Urgency.PROBE, Urgency.USUAL, Urgency.PROBE)):
            pacer.submit(rests.piece(number, done), urgency)
        for _ in range(5):
            await rests.end()
        assert done == [0.1, 2, 4, 1, 3, 0]


async def test_what_comes_while_it_rests_waits() -> None:
    done: list[float] = []
    async with running() as (pacer, rests):
        pacer.submit(rests.piece(1.0, done))
        await some_turns()
        pacer.submit(rests.piece(2.0, done))
        await some_turns()
        assert done == [1.0]
        await rests.end()
        assert done == [1.0, 2.0]


async def test_a_piece_that_fails_is_reported_and_is_followed_by_the_next() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    done: list[float] = []
    async with running() as (pacer, rests):
        pacer.submit(fail)
        pacer.submit(rests.piece(1.0, done))
        await some_turns()
        await rests.end()
        assert [type(fault) for fault in rests.faults] == [ZeroDivisionError]
        assert done == [1.0]
