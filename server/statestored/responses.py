"""What one connection is answered: in the turn of the request, when a commit is durable, or when an engine says.

A response is a head, which names the request, and a packed result behind it.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable
from functools import partial

import structlog

from statestore.errors import Internal, StateStoreError, Unavailable, to_wire
from statestore.wire import text_packer
from statestored.budget import OWN
from statestored.commands import NIL, Service
from statestored.engines.base import Commit, Held, Reply

log = structlog.get_logger()

LARGE_REPLY = 4096  # bytes; after one of these, see whether the client reads what it asks for

_pack = text_packer()


# Heads, and what the responses are made of that begin with them.
_Bundle = tuple[list[bytes], list[bytes]]


class Responses:
    """Those of one connection.

    then: called, where there is one, when something that had to wait has left.
    out: heads and results that `flush` is to write.
    held: how many responses wait for a commit; held_bytes: of those since nothing waited.
    waiting: how many writes, of these and of other responses, are to come.
    """

    def __init__(self, service: Service, transport: asyncio.WriteTransport) -> None:
        self._service = service
        self._transport = transport
        self.then: Callable[[], None] | None = None
        self.out: list[bytes] = []
        self.held = self.held_bytes = self.waiting = 0
        self._begun = False
        self._until: Commit | None = None  # what these wait for, which lets them go:
        self._bundle: _Bundle = ([], [])

    def untouched(self) -> bool:
        """Whether nothing was answered yet, or will be."""
        return not (self._begun or self.out)

    def add(self, head: bytes, reply: Reply) -> None:
        if isinstance(reply, bytes):
            if len(reply) > OWN and self._service.budget.used_up:
                self.refuse(head, Unavailable("too much waits for clients that do not take it"))
                return
            self.out += (head, reply)
            if len(reply) > LARGE_REPLY:
                self.flush()
        elif isinstance(reply, Held):
            self.hold([head], reply)
        else:
            self._begun = True
            self.waiting += 1
            reply.add_done_callback(partial(self._came, head))

    def add_same(self, heads: list[bytes], reply: Reply) -> None:
        """One result for several requests."""
        if isinstance(reply, Held):
            self.hold(heads, reply)
        else:
            for head in heads:
                self.add(head, reply)

    def hold(self, heads: list[bytes], reply: Held[object]) -> None:
        if self._until is not reply.until:
            self._until, self._bundle = reply.until, ([], [])
            self._until.then(self._let_go, self._bundle)
            self._begun = True
            self.waiting += 1
        packed = reply.packed
        if packed is None:
            raise TypeError("an answer that nobody has packed")
        self._bundle[0].extend(heads)
        self._bundle[1].extend((packed.join(heads), packed))
        self.held += len(heads)
        self.held_bytes += len(packed) * len(heads)

    def refuse(self, head: bytes, error: BaseException) -> None:
        self.out.append(self._refusal(head, error))

    def flush(self) -> None:
        """All that can leave now does, in one write."""
        if self.out:
            self._begun = True
            self._transport.write(b"".join(self.out))
            self.out.clear()

    def _let_go(self, bundle: _Bundle, error: StateStoreError | None) -> None:
        if bundle is self._bundle:
            self._until = None
        heads, whole = bundle
        self.held -= len(heads)
        self._wait_less()
        if self._transport.is_closing():
            return
        if error is not None:
            whole = [self._refusal(head, error) for head in heads]
        self._transport.write(b"".join(whole))
        if self.then is not None:
            self.then()

    def _wait_less(self) -> None:
        self.waiting -= 1
        if not self.waiting:
            self.held_bytes = 0

    def _came(self, head: bytes, reply: Future[bytes]) -> None:
        self._wait_less()
        error = asyncio.CancelledError("given up") if reply.cancelled() else reply.exception()
        if self._transport.is_closing():
            return
        self._transport.write(head + reply.result() if error is None else self._refusal(head, error))
        if self.then is not None:
            self.then()

    def _refusal(self, head: bytes, error: BaseException) -> bytes:
        if not isinstance(error, StateStoreError):
            log.error("a request failed", exc_info=error)
            error = Internal("the server's log says more")
        self._service.errors[error.wire_code] += 1
        return head[: -len(NIL)] + _pack(to_wire(error)) + NIL
