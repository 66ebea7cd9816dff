"""What has to begin anew in the child of a fork."""

import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    def after_fork_in_child(self) -> None:
        """Only the thread that forked goes on here; whatever others held is held for ever."""


_inherited: "weakref.WeakSet[Inherited]" = weakref.WeakSet()


def begin_anew_in_child(thing: Inherited) -> None:
    """`thing.after_fork_in_child` is called in every child from now on, for as long as it lives."""
    _inherited.add(thing)


def _after_fork_in_child() -> None:
    for thing in list(_inherited):
        thing.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
