"""What takes a sizeable part of a millisecond, or more: one such thing in a turn of the loop, whoever asks for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

CallSoon = Callable[[Callable[[], None]], object]  # the loop's


class NotYet(Exception):
    """A heavy command has to wait for its turn."""


class Waiting(Protocol):
    def have_turn(self) -> None:
        """Do one heavy thing now."""


class HeavyTurns:
    """One heavy command is executed in a turn of the loop, or the much of one client, whoever sends it: so those who
    ask for little never wait for more than that.

    Who has to wait is called back in the order of waiting.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: dict[Waiting, None] = {}

    def take(self, call_soon: CallSoon) -> bool:
        """Whether it is free in this turn of the loop."""
        if self._taken:
            return False
        self._taken = True
        call_soon(partial(self._next, call_soon))
        return True

    def wait(self, who: Waiting) -> None:
        self._waiting[who] = None

    def forget(self, who: Waiting) -> None:
        self._waiting.pop(who, None)

    def _next(self, call_soon: CallSoon) -> None:
        self._taken = False
        if self._waiting:
            first = next(iter(self._waiting))
            del self._waiting[first]
            self.take(call_soon)
            first.have_turn()
