"""One deadline for a whole call: each of its steps asks how much time is left."""

import time
from typing import Self


class Deadline:
    """`seconds` from now, or from `start`; `at` is when, on the monotonic clock."""

    __slots__ = ("at", "seconds")

    def __init__(self, seconds: float, start: float | None = None) -> None:
        self.seconds = seconds
        self.at = (time.monotonic() if start is None else start) + seconds

    def left(self) -> float:
        """Seconds left, above 0. Raises TimeoutError where there are none, as a socket does when it has waited."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer within {self.seconds:g} s")
        return left

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.at

    def within(self, seconds: float) -> Self:
        """The earlier one of this deadline and that in so many seconds."""
        earlier = type(self)(seconds)
        return earlier if earlier.at < self.at else self
