"""What one connection is answered: in the turn of the request, when a commit is durable, or when an engine says.

A response is a head, which names the request, and a packed result behind it. A notification is executed like a request,
and its head is empty: then nothing is sent. Its result counts as held until it is durable, as a request's does, so that
a client cannot have more under way by sending notifications.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable
from functools import partial

from statestore.errors import Internal, StateStoreError, Unavailable, to_wire
from statestored import audit
from statestored.answers import NIL, pack
from statestored.budget import OWN
from statestored.commands import Service
from statestored.engines.base import Held, Reply

# Answers that wait for the disk: a client that has more is not read from until they are out.
MAX_HELD = 1024
NO_RESPONSE = b""  # the head of a notification
WRITE_SIZE = 2**14  # bytes that the transport gets at once
LARGE_REPLY = 4096  # bytes; after one of these, see whether the client reads what it asks for


class Responses:
    """Those of one connection.

    then: called, where there is one, when something that had to wait has left.
    is_paused: the transport has enough for now, because the client does not take it.
    out: heads and results that `flush` is to write.
    to_notifications: whether some heads may be empty; to be set before the first of them comes.
    waiting: how often some of them are still to be written that cannot leave now; held: how many wait for a commit.
    """

    def __init__(self, service: Service, transport: asyncio.WriteTransport) -> None:
        self._service = service
        self._transport = transport
        self.then: Callable[[], None] | None = None
        self.out: list[bytes] = []
        self.to_notifications = False
        self.is_paused = False
        self.held = self.waiting = 0
        self._backlog = bytearray()  # what the transport does not get as long as it is paused
        self._unwritten = 0  # bytes behind those that it is given at this moment
        self._kept = 0  # bytes, since nothing waited
        self._begun = False

    @property
    def held_bytes(self) -> int:
        """Of what is held, and of the requests that it answers."""
        return self._kept if self.waiting else 0

    @property
    def unsent(self) -> int:
        """How many bytes of responses the client has not taken, without those that the system has for it."""
        return self._transport.get_write_buffer_size() + self._unwritten + len(self._backlog)

    @property
    def unsent_memory(self) -> int:
        """What `unsent` takes; a bytearray that has become shorter may take more than it holds."""
        return self.unsent + self._backlog.__alloc__() - len(self._backlog)

    @property
    def is_owing(self) -> bool:
        """Whether the transport does not have all responses yet."""
        return self.waiting > 0 or len(self._backlog) > 0

    def untouched(self) -> bool:
        """Whether nothing was answered yet, or will be."""
        return not (self._begun or self.out)

    def add(self, head: bytes, reply: Reply) -> None:
        if isinstance(reply, bytes):
            if not head:
                self._begun = True
                return
            if len(reply) > OWN and self._service.budget.used_up:
                self.refuse(head, Unavailable("too much waits for clients that do not take it"))
                return
            self.out += (head, reply)
            if len(reply) > LARGE_REPLY:
                self.flush()
        elif isinstance(reply, Held):
            if reply.packed is None:
                raise TypeError("an answer that nobody has packed")
            self.keep(len(reply.packed))
            self.hold([head])
            reply.until.then(partial(self.let_go, [head]), reply)
        else:
            self._begun = True
            self.waiting += 1
            reply.add_done_callback(partial(self._came, head))

    def hold(self, heads: list[bytes]) -> bool:
        """There will be responses that begin so: `let_go` is to be called. Returns whether that makes much held."""
        self._begun = True
        self.waiting += 1
        self.held += len(heads)
        return self.held > MAX_HELD or self._kept > OWN

    def let_go(self, heads: list[bytes], reply: Held[object], error: StateStoreError | None) -> None:
        """What has been held, and is settled."""
        self.held -= len(heads)
        self.waiting -= 1
        if self.to_notifications:
            heads = self._of_requests(heads, error)
        if self._transport.is_closing():
            return
        if error is not None:
            data = b"".join([self._refusal(head, error) for head in heads])
        else:
            packed = reply.packed or b""
            data = packed.join(heads) + packed
        if heads:
            self._write(data)
        if self.then is not None:
            self.then()

    def keep(self, size: int) -> None:
        """So many bytes more, until nothing waits any more."""
        self._kept = self.held_bytes + size

    def refuse(self, head: bytes, error: BaseException) -> None:
        if head:
            self.out.append(self._refusal(head, error))
        else:
            self._begun = True
            self._refuse_notification(error)

    def flush(self) -> None:
        """All that can leave now does, in one write."""
        if self.out:
            self._begun = True
            self._write(b"".join(self.out))
            self.out.clear()

    def resume(self) -> None:
        """Give the transport what it did not get while it was paused; it may pause again."""
        self.is_paused = False
        backlog = self._backlog
        while backlog and not self.is_paused:
            data = bytes(backlog[:WRITE_SIZE])
            del backlog[:WRITE_SIZE]
            if backlog.__alloc__() > 1.5 * len(backlog):
                backlog = self._backlog = bytearray(backlog)
            self._transport.write(data)

    def _came(self, head: bytes, reply: Future[bytes]) -> None:
        self.waiting -= 1
        error = asyncio.CancelledError("given up") if reply.cancelled() else reply.exception()
        if not head and error is not None:
            self._refuse_notification(error)
        if self._transport.is_closing():
            return
        if head:
            self._write(head + reply.result() if error is None else self._refusal(head, error))
        if self.then is not None:
            self.then()

    def _of_requests(self, heads: list[bytes], error: StateStoreError | None) -> list[bytes]:
        """Return the heads of requests; the notifications are done, or refused if there is an error."""
        requests = [head for head in heads if head]
        if error is not None:
            for _ in range(len(heads) - len(requests)):
                self._refuse_notification(error)
        return requests

    def _refuse_notification(self, error: BaseException) -> None:
        """Count and log it, because its client is not told."""
        audit.notification_refused(self._noted(error).wire_code)
        self._service.notifications_refused += 1

    def _write(self, data: bytes) -> None:
        """The transport keeps what it has got until the last byte of it has left. So it gets little at once: a client
        that leaves the end of a megabyte would make it keep a megabyte, and count as one that leaves some bytes.
        """
        if len(data) <= WRITE_SIZE and not self.is_paused:
            self._transport.write(data)
            return
        start, size = 0, len(data)
        while start < size and not self.is_paused:
            end = start + WRITE_SIZE
            self._unwritten = max(size - end, 0)
            self._transport.write(data[start:end])
            start = end
        self._unwritten = 0
        if self._backlog:
            self._backlog += data[start:]
        else:
            self._backlog = bytearray(data[start:])  # of exactly that size

    def _refusal(self, head: bytes, error: BaseException) -> bytes:
        return head[: -len(NIL)] + pack(to_wire(self._noted(error))) + NIL

    def _noted(self, error: BaseException) -> StateStoreError:
        """Count the error under its code. Return it, or Internal if it is a fault of ours."""
        if not isinstance(error, StateStoreError):
            audit.internal_fault("a request failed", error)
            error = Internal("the server's log says more")
        self._service.errors[error.wire_code] += 1
        return error
