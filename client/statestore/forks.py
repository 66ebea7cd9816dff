"""What has to be seen to where a process forks."""

import os
import threading
import weakref
from collections import deque
from typing import Protocol


class Inherited(Protocol):
    def after_fork_in_child(self) -> None:
        """Only the thread that forked goes on here; what others held is held for ever."""


_inherited: "weakref.WeakSet[Inherited]" = weakref.WeakSet()
MOST_FAILURES = 100  # of all together
_CAN_FORK = hasattr(os, "register_at_fork")


def begin_anew_in_child(thing: Inherited) -> None:
    """`thing.after_fork_in_child` is called in every child from now on, for as long as it lives.

    First for those that have `has_sockets`: what the child said on them would be taken for its parent's. It is called
    again where an exception came out of it.
    """
    _inherited.add(thing)


def hold_while_forking(lock: "threading.RLock") -> None:
    """No other thread is within `lock` when a child is made, in which it is free again."""
    if _CAN_FORK:
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def _after_fork_in_child() -> None:
    """All begin anew, also where a signal's handler raises meanwhile; then that is raised."""
    raised: BaseException | None = None
    things = deque(sorted(_inherited, key=_has_no_sockets))
    for _ in range(len(things) + MOST_FAILURES):
        try:
            while things:
                things[0].after_fork_in_child()
                things.popleft()
        except BaseException as exception:
            raised = exception
            things.rotate(-1)  # the others first, then it again
    if raised is not None:
        raise raised


def _has_no_sockets(thing: Inherited) -> bool:
    return not getattr(thing, "has_sockets", False)


if _CAN_FORK:
    os.register_at_fork(after_in_child=_after_fork_in_child)
