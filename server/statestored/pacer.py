"""A bounded share of the event loop's time, for work that must not cost others anything."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import IntEnum
from itertools import count

# All pieces of work together get a two-hundredth of the loop's time in the long run: then fewer than one of a hundred
# requests of the others meet a piece.
REST_FACTOR = 200
# After a quiet while a few come at once, as when a browser loads a page: so much of the rests need not be kept, which
# is 10 ms of work, or some 20 requests.
BURST_SECONDS = 2.0
# A piece that waits for its turn in a busy loop counts as longer than it is, but not as longer than this: otherwise the
# health checks of a busy daemon would have to wait for seconds. The longest piece is to write the metrics: 0.3 ms.
MAX_CHARGED_SECONDS = 0.0005
MIN_REST_SECONDS = 0.001  # a timer of the loop has no finer steps

Piece = Callable[[], Awaitable[None]]


class Urgency(IntEnum):
    """A lower number comes first."""

    PROBE = 0
    USUAL = 1
    LATER = 2


class Pacer:
    """Runs pieces of work one after the other, the most urgent first, and rests after each.

    on_fault: told of an exception of a piece; the next piece runs all the same.
    work_clock: counts the seconds that this thread has worked, so that being preempted does not count.
    """

    def __init__(
        self,
        on_fault: Callable[[Exception], None],
        work_clock: Callable[[], float] = time.thread_time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._on_fault = on_fault
        self._work_clock = work_clock
        self._clock = clock
        self._sleep = sleep
        self._pieces: asyncio.PriorityQueue[tuple[Urgency, int, Piece]] = asyncio.PriorityQueue()
        self._submitted = count()
        self._paid_until = 0.0  # when the rests for all pieces so far are over

    def submit(self, piece: Piece, urgency: Urgency = Urgency.USUAL) -> None:
        """Run `piece` before those of less urgency. The caller bounds how many wait."""
        self._pieces.put_nowait((urgency, next(self._submitted), piece))

    async def run(self) -> None:
        """Run what is submitted, until cancelled."""
        while True:
            _, _, piece = await self._pieces.get()
            began = self._work_clock()
            try:
                await piece()
            except Exception as error:
                self._on_fault(error)
            await self._sleep(self._rest_after(self._work_clock() - began))

    def _rest_after(self, seconds: float) -> float:
        now = self._clock()
        self._paid_until = max(self._paid_until, now) + REST_FACTOR * min(seconds, MAX_CHARGED_SECONDS)
        return max(self._paid_until - BURST_SECONDS - now, MIN_REST_SECONDS)
