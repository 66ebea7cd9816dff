"""A bounded pool of connections, for threads, across forks, and whatever a signal's handler raises at any moment.

Python runs such a handler between two steps of the interpreter, never within a call into C. So what must not come apart
is one such call, and what must happen in the end is the first call of a `finally`.
"""

import queue
from collections.abc import Callable

from statestore.calls import Call
from statestore.connection import Connection
from statestore.forks import begin_anew_in_child
from statestore.protocol import Response

NOT_WAITING = (False,)


class Pool:
    """At most `size` connections, made by `connect` when first needed; the one used last is used next."""

    def __init__(self, connect: Callable[[Call], Connection], size: int) -> None:
        self._connect = connect
        self._size = size
        self.after_fork_in_child()
        begin_anew_in_child(self)

    def after_fork_in_child(self) -> None:
        """The connections are the parent's, and its threads took permits that they will not give back here."""
        # Not a Semaphore: that is Python code, and a KeyboardInterrupt in it leaves its inner lock held for ever.
        self._permits: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self._size):
            self._permits.put(None)
        self._idle: list[Connection] = []  # what is done to it is atomic, one call each

    def call(self, call: Call) -> Response:
        """One attempt. Raises what `Connection` raises, and TimeoutError where no connection is free in time."""
        permits, idle = self._permits, self._idle  # a handler may fork, and its child have others
        permit: list[None] = []
        try:
            try:
                permit.extend(map(permits.get, NOT_WAITING))  # one call: there is no moment between taking and having
            except queue.Empty:
                self._wait(permits, permit, call)
            connection = None
            is_sound = False  # whether nothing can come on it any more: the next caller would take it for an answer
            try:
                connection = self._take(idle, call)
                is_sound = True  # nothing was sent yet
                params = call.parameters(connection.welcome)
                is_sound = False
                response = connection.call(call.method, params, call.deadline, call.patience)
                # Where it cannot be done now, another connection may find a server that can.
                is_sound = response.error is None or not response.error.retry
                return response
            finally:
                if is_sound and connection is not None:
                    idle.append(connection)
                elif connection is not None:
                    connection.close()
        finally:
            if permit:
                permits.put(None)

    def drop_idle(self) -> None:
        """Close what is not in use: after one connection broke, the others have most likely broken too."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:  # another thread was faster
                return

    def _wait(self, permits: "queue.SimpleQueue[None]", permit: list[None], call: Call) -> None:
        try:
            permit.extend(map(permits.get, (True,), (call.deadline.left(),)))
        except queue.Empty:
            raise TimeoutError(f"all {self._size} connections were busy for {call.deadline.seconds:g} s") from None

    def _take(self, idle: list[Connection], call: Call) -> Connection:
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                break
            if not (call.must_not_be_lost(connection.welcome) and connection.is_stale):
                return connection
            connection.close()
        call.check_turn()
        return self._connect(call)
