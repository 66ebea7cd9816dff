"""Who may use a thing that only one can use at a time, and what is done with it when nobody else wants it."""

import asyncio
from collections import deque
from collections.abc import Callable


class Turns:
    """A lock that can also be taken without waiting, when it is free. `when_free` is called each time it becomes so.

    For one loop's thread. `async with` waits for a turn, in the order of coming.
    """

    def __init__(self, when_free: Callable[[], None]) -> None:
        self._when_free = when_free
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Whether it was free; it is the caller's then, until `give_back`."""
        if self._taken:
            return False
        self._taken = True
        return True

    def give_back(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # it stays taken
                return
        self._taken = False
        self._when_free()

    async def __aenter__(self) -> None:
        if self.take():
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.give_back()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.give_back()
