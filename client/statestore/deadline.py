"""One deadline for a whole call: each of its steps asks how much time is left."""

import time

LAST_ATTEMPT = 0.05  # seconds


class Deadline:
    """`seconds` from now, on the monotonic clock."""

    __slots__ = ("at", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, above 0. Raises TimeoutError where there are none, as a socket does when it has waited."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer within {self.seconds:g} s")
        return left

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.at

    def shorten(self, pause: float) -> float:
        """So many seconds; where that is more than is left, until a last attempt is just possible, or to the end."""
        left = max(0.0, self.at - time.monotonic())
        if pause < left:
            return pause
        return left - LAST_ATTEMPT if left > 2 * LAST_ATTEMPT else left
