"""A descriptor that a thread of its own writes to, so that no caller ever waits for the reader at its other end.

Lines wait in a bounded queue. If the queue is full, or the descriptor takes no more (its reader has gone, its disk is
full), lines are dropped and counted, and one line reports how many as soon as lines get through again.

O_NONBLOCK would not do: it belongs to the open file, which the shell and other processes share.
"""

import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAX_QUEUED_LINES = 1000
# Once a line was dropped, more are until the queue is half empty. Otherwise a reader that is a little too slow would
# find a report before every line.
REFILL_BELOW_LINES = MAX_QUEUED_LINES // 2


class QueuedOutput(io.RawIOBase):
    """The raw end of a text stream that is flushed at the end of each line.

    Attributes:
        dropped: How many lines were dropped since the process began.
        report: Makes the line that says how many are missing, or None if nothing is to say so. The thread calls it.
    """

    def __init__(self, fd: int, report: Callable[[int], str] | None = None) -> None:
        self.dropped = 0
        self.report = report
        self._fd = fd
        # The condition protects everything below. It is re-entrant: a signal handler may drain what it has interrupted.
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, bytes]] = deque()  # how many lines are missing before a line, and the line
        self._missing = 0  # lines dropped behind the last one in the queue
        self._is_writing = False
        self._thread: threading.Thread | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        """Queue `data`, a line, or drop it. Never waits, and never fails."""
        line = bytes(data)
        with self._changed:
            if len(self._queue) < (REFILL_BELOW_LINES if self._missing else MAX_QUEUED_LINES):
                self._queue.append((self._missing, line))
                self._missing = 0
            else:
                self._missing += 1
                self.dropped += 1
            if self._thread is None:
                self._start()
            self._changed.notify_all()
        return len(line)

    def drain(self, seconds: float) -> None:
        """Wait until every line was written or dropped, but no longer than `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._queue or self._missing or self._is_writing), seconds)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def _start(self) -> None:
        thread = threading.Thread(target=self._write_queued, name=f"output {self._fd}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system allows no more threads, or the interpreter is about to end
            while self._queue:
                with suppress(OSError):
                    write_all(self._fd, self._queue.popleft()[1])
        else:
            self._thread = thread

    def _write_queued(self) -> None:
        missing = 0  # lines dropped since the last one that was written
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._missing)
                self._is_writing = True
                if self._queue:
                    more, line = self._queue.popleft()
                else:
                    more, line, self._missing = self._missing, None, 0
            missing = self._write_line(missing + more, line)

    def _write_line(self, missing: int, line: bytes | None) -> int:
        """Write `line`, behind a report of the missing ones. Returns how many are missing then."""
        try:
            if missing and self.report is not None:
                write_all(self._fd, self.report(missing).encode())
            missing = 0
            if line is not None:
                write_all(self._fd, line)
        except OSError:
            if line is not None:
                missing += 1
                with self._changed:
                    self.dropped += 1
        return missing


def write_all(fd: int, data: "ReadableBuffer") -> None:
    """Write all of `data`, and wait as long as it takes, even if another process has made `fd` non-blocking.

    Raises:
        OSError: Something of `data`, or nothing, was written.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
