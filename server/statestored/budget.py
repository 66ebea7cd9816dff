"""The memory that all connections together may make the daemon keep: requests in part, answers that nobody takes.

While it is used up, those that hold some of it are not read from, so that it comes back. Where that does not help for
a second, for they wait for each other or for somebody who does not read, those that hold most are dropped.
"""

from typing import Protocol

BYTES = 32 * 2**20
OWN = 2**14  # bytes; whoever holds no more goes on when it is used up: so much is read at once, or answered


class Holder(Protocol):
    def resume(self) -> None:
        """There is room again."""

    def drop_for_room(self) -> None:
        """Let go of everything."""


class Budget:
    """Bytes; `used_up` from when nothing is left until an eighth is free again."""

    def __init__(self, limit: int = BYTES) -> None:
        self.limit = limit
        self.used = 0
        self.used_up = False
        self._enough = limit * 7 // 8
        self._held: dict[Holder, int] = {}
        self._waiting: dict[Holder, None] = {}  # in the order in which they came
        self._was_used_up = False  # at the last tick

    def hold(self, holder: Holder, size: int) -> None:
        """What it holds altogether now."""
        self.used += size - self._held.pop(holder, 0)
        if size:
            self._held[holder] = size
        if self.used >= self.limit:
            self.used_up = True
        elif self.used_up and self.used <= self._enough:
            self.used_up = False
            waiting, self._waiting = self._waiting, {}
            for other in waiting:
                other.resume()

    def wait(self, holder: Holder) -> None:
        """It is resumed once there is room."""
        self._waiting[holder] = None

    def forget(self, holder: Holder) -> None:
        """It has gone."""
        self._waiting.pop(holder, None)
        self.hold(holder, 0)

    def tick(self) -> None:
        """Once a second: drop those that hold most, where it has been used up since the last time."""
        if self.used_up and self._was_used_up:
            excess = self.used - self._enough
            for holder, size in sorted(self._held.items(), key=lambda held: held[1], reverse=True):
                if excess <= 0:
                    break
                excess -= size
                holder.drop_for_room()
        self._was_used_up = self.used_up
