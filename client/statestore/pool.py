"""A bounded pool of connections, for threads, across forks."""

import queue
from collections.abc import Callable

from statestore.calls import Call
from statestore.connection import Connection
from statestore.deadline import Deadline
from statestore.forks import begin_anew_in_child
from statestore.protocol import Response


class Pool:
    """At most `size` connections, made by `connect` when first needed; the one used last is used next."""

    def __init__(self, connect: Callable[[Deadline], Connection], size: int) -> None:
        self._connect = connect
        self._size = size
        self._start_anew()
        begin_anew_in_child(self)

    def call(self, call: Call) -> Response:
        """One attempt. Raises what `Connection` raises, and TimeoutError where no connection is free in time."""
        deadline = call.deadline
        try:
            self._permits.get(timeout=deadline.left())
        except queue.Empty:
            raise TimeoutError(f"all {self._size} connections were busy for {deadline.seconds:g} s") from None
        try:
            connection = self._take(call)
            try:
                response = connection.call(call.method, call.parameters(connection.welcome), deadline)
            except BaseException:  # KeyboardInterrupt too: its answer must not reach the next caller
                self._drop(connection)
                raise
            self._idle.append(connection)
            return response
        finally:
            self._permits.put(None)

    def drop_idle(self) -> None:
        """Close what is not in use: after one connection broke, the others have most likely broken too."""
        while (connection := self._pop_idle()) is not None:
            self._drop(connection)

    def _take(self, call: Call) -> Connection:
        while (connection := self._pop_idle()) is not None:
            if not connection.is_stale:
                return connection
            self._drop(connection)
        connection = self._connect(call.deadline)
        self._open.add(connection)
        return connection

    def _pop_idle(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _drop(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.close()

    def _start_anew(self) -> None:
        # Not a Semaphore: that is Python code, and a KeyboardInterrupt in it leaves its inner lock held for ever.
        self._permits: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self._size):
            self._permits.put(None)
        # What is done to these two is atomic, one call each.
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()  # the idle ones, and those in use

    def after_fork_in_child(self) -> None:
        """The connections are the parent's: the child closes its copies, and has locks that nobody holds."""
        inherited = self._open
        self._start_anew()
        for connection in inherited:
            connection.close()
