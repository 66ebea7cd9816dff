"""What has to be seen to where a process forks."""

import os
import threading
import weakref
from typing import Protocol


class Inherited(Protocol):
    def after_fork_in_child(self) -> None:
        """Only the thread that forked goes on here; what others held is held for ever."""


_inherited: "weakref.WeakSet[Inherited]" = weakref.WeakSet()
_CAN_FORK = hasattr(os, "register_at_fork")


def begin_anew_in_child(thing: Inherited) -> None:
    """`thing.after_fork_in_child` is called in every child from now on, for as long as it lives."""
    _inherited.add(thing)


def hold_while_forking(lock: "threading.RLock") -> None:
    """No other thread is within `lock` when a child is made, in which it is free again."""
    if _CAN_FORK:
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def _after_fork_in_child() -> None:
    for thing in list(_inherited):
        thing.after_fork_in_child()


if _CAN_FORK:
    os.register_at_fork(after_in_child=_after_fork_in_child)
