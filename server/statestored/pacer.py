"""A bounded share of the event loop's time, for work that must not cost others anything."""

import asyncio
import time
from collections.abc import Awaitable, Callable

# After each piece of work the pacer rests so many times as long as the piece took: all pieces together get at most a
# hundredth of the loop's time, so that at most one of a hundred requests of the others meets a piece.
REST_FACTOR = 100
# A piece that waits for its turn in a busy loop counts as longer than it is, but not as longer than this. It is more
# than the longest piece takes, which is to write the metrics: 0.3 ms.
MAX_CHARGED_SECONDS = 0.005
MIN_REST_SECONDS = 0.001  # a timer of the loop has no finer steps

Piece = Callable[[], Awaitable[None]]


class Pacer:
    """Runs pieces of work one after the other, in the order in which they came, and rests after each.

    on_fault: told of an exception of a piece; the next piece runs all the same.
    clock: counts the seconds that this thread has worked, so that being preempted does not count.
    """

    def __init__(
        self,
        on_fault: Callable[[Exception], None],
        clock: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._on_fault = on_fault
        self._clock = clock
        self._sleep = sleep
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()

    def submit(self, piece: Piece) -> None:
        """Run `piece` in its turn. The caller sees to it that few are waiting."""
        self._pieces.put_nowait(piece)

    async def run(self) -> None:
        """Run what is submitted, until cancelled."""
        while True:
            piece = await self._pieces.get()
            began = self._clock()
            try:
                await piece()
            except Exception as error:
                self._on_fault(error)
            await self._sleep(_rest_after(self._clock() - began))


def _rest_after(seconds: float) -> float:
    return max(REST_FACTOR * min(seconds, MAX_CHARGED_SECONDS), MIN_REST_SECONDS)
