"""Starting afresh in a forked process, whichever way it was forked.

A child must not use its parent's connections, locks and write numbers. After `os.fork()` Python calls a hook in the
child. After a fork(2) that Python does not know of (uWSGI's workers, a C extension) nothing is called: so `detect_fork`
runs before each use of what a process may have inherited, and does then what the hook does.
"""

import mmap
import os
import sys
import threading
import weakref
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol

_CAN_FORK = hasattr(os, "fork")
_MADV_WIPEONFORK = 18  # of Linux 4.14 and later; the module `mmap` has no name for it


class Inherited(Protocol):
    def after_fork_in_child(self) -> None:
        """Start afresh. Only the thread that forked goes on in the child, and it may be within a call.

        An exception of a signal handler may end this method at any moment. Then it is called again.
        """


class ProcessBound:
    """An object that only the process in which it was made may use, and of which there are no copies."""

    has_sockets = False  # whether `after_fork_in_child` gives sockets back

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: it belongs to the process that made it")


# A dict, because the order of a set would depend on addresses in memory.
_inherited: "dict[weakref.ref[Inherited], None]" = {}


def reset_after_fork(thing: Inherited) -> None:
    """Call `thing.after_fork_in_child` in every child from now on, for as long as `thing` lives."""
    # `pop` is a call into C: in a callback in Python the exception of a signal handler would be lost.
    _inherited[weakref.ref(thing, _inherited.pop)] = None


class Descriptor:
    """The number of an open file, and which file it is.

    A child may start afresh late, when it has closed all that it had inherited, and opened other files in its place.
    """

    __slots__ = ("_number", "_stat")

    def __init__(self, number: int) -> None:
        self._number = number
        self._stat = os.fstat(number) if _CAN_FORK else None  # the number of a Windows socket is no file's

    @property
    def is_open(self) -> bool:
        try:
            return self._stat is not None and os.path.samestat(os.fstat(self._number), self._stat)
        except OSError:
            return False

    def close(self) -> None:
        """Close the file, unless the number is that of another file by now."""
        if self.is_open:
            os.close(self._number)

    def silence(self) -> None:
        """Put the null device in the place of the file, for an owner that still uses the number."""
        if self.is_open:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, self._number, inheritable=False)
            os.close(nowhere)


def detect_fork() -> None:
    """Start afresh if this process was forked since the last call. Call it before using what may be inherited.

    It takes 30 ns, or 110 ns if it has to ask for the process id.
    """
    if not _mark[0]:
        _start_afresh()


class _ProcessId:
    """Stands in for the page of memory: item 0 is true in the process that has set it."""

    def __init__(self) -> None:
        self._pid = 0

    def __getitem__(self, _: int) -> bool:
        return os.getpid() == self._pid

    def __setitem__(self, _: int, value: int) -> None:
        self._pid = os.getpid() if value else 0


def _wiped_on_fork() -> mmap.mmap | None:
    """Return a page of memory that the kernel fills with zeros in every child, or None if it does not do that.

    Unlike a process id, which is used again and may be the same in another container, it is never mistaken.
    """
    if sys.platform != "linux":
        return None
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_MADV_WIPEONFORK)
    except OSError:
        return None
    try:
        page.madvise(-1)
    except OSError:
        return page
    return None  # an emulator that accepts any advice follows none


def _new_mark() -> Any:
    """Return what has, once it is set, a true item 0 in this process and a false one in its children."""
    if not _CAN_FORK:
        return [0]
    return _wiped_on_fork() or _ProcessId()


_mark = _new_mark()
_mark[0] = 1

# By process id; empty but while a process starts afresh. Not one lock: another thread may have held it at the fork.
_starting: "dict[int, threading.RLock]" = {}


def _start_afresh() -> None:
    """The first thread that comes here does it, and the others wait for it.

    Things with sockets come first: what the child said on them would be taken for its parent's. Otherwise the newest
    comes first. If an exception of a signal handler ends this, the mark is not set, and the next use begins again.
    """
    with _starting.setdefault(os.getpid(), threading.RLock()):
        if not _fork_lock._is_owned():
            _fork_lock._at_fork_reinit()
        things = [thing for reference in _inherited.copy() if (thing := reference()) is not None]
        things.sort(key=_has_sockets)
        while things and not _mark[0]:  # a signal handler that uses a client has done all of it
            things.pop().after_fork_in_child()
        _mark[0] = 1
    _starting.clear()


def _has_sockets(thing: Inherited) -> bool:
    return getattr(thing, "has_sockets", False)


# Its methods with an underscore are those by which `threading` itself puts its locks right in a child.
_fork_lock: Any = threading.RLock()


def no_fork() -> AbstractContextManager[Any]:
    """Return the lock under which no other thread calls `os.fork()`, and which is free in a child.

    It is for what must not be half done in a child: making a socket and noting it, changing a dict. No lock keeps a
    fork(2) from C from happening in the middle of that; in its child the lock is free, too.
    """
    detect_fork()
    lock: AbstractContextManager[Any] = _fork_lock
    return lock


def _after_fork_in_child() -> None:
    _mark[0] = 0
    _start_afresh()


if _CAN_FORK:
    os.register_at_fork(
        before=_fork_lock.acquire, after_in_parent=_fork_lock.release, after_in_child=_fork_lock.release
    )
    os.register_at_fork(after_in_child=_after_fork_in_child)
