"""One deadline for a whole call: each of its steps asks how much time is left."""

import time

from statestore.errors import Unavailable


class Deadline:
    """`seconds` from now, on the monotonic clock."""

    __slots__ = ("_at", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, above 0. Raises Unavailable where there are none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise Unavailable(f"no answer within the deadline of {self.seconds:g} s")
        return left

    @property
    def passed(self) -> bool:
        return self.passed_in(0)

    def passed_in(self, seconds: float) -> bool:
        """Whether it will have passed when `seconds` have gone by."""
        return time.monotonic() + seconds >= self._at
