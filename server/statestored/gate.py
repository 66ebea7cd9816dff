"""The gate in front of the admin address: nothing that arrives there may cost the protocol's clients anything.

Anybody who can connect may send anything, as often as they like; the login page to come is public, so that tokens are
no answer. A thread of its own would not be one either: it takes up to half of the interpreter's time. So

1. all that the admin address does, which is to accept a connection, to read a little, and to answer a request, are
   pieces of work of one `Pacer`, which gets a two-hundredth of the loop's time, health checks before the rest;
2. a connection brings one request, which is short (see `http_request`) and complete before the HTTP library sees any of
   it; nothing is read behind it, so that pipelining has no effect;
3. whatever takes long ends: a request that is not complete, a response that is not read.

A response may last, as a stream of events does. Those that are sent their response count apart from those that have
still to send a request, so that a crowd of the latter ends none of the former.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import cast

from statestored.http_request import RequestReader, RequestRefused
from statestored.pacer import Pacer, Urgency
from statestored.timeouts import EVERY, Dropped, Watch

BACKLOG = 64  # connections that the system accepts ahead
ACCEPTED_AT_ONCE = 8  # connections; in a flood of them this costs clients less than one at a time does
READ_SIZE = 2**11  # bytes
# Each takes a file descriptor. For one more the oldest is closed, for that is no health check.
MAX_RECEIVING, MAX_RESPONDING = 32, 32
HIGH_WATER = 2**14  # bytes that wait for a client, above which the HTTP library makes no more
ITERATIONS = 8  # of the loop, in which the HTTP library answers what it answers at once; it takes five
CLOSE_SECONDS = 0.5  # for the loop to drop what was aborted; it takes one iteration
ACCEPT_RETRY_SECONDS = 1.0  # after an error, such as too many open files

# In looks, which are seconds.
REQUEST_LOOKS = 5  # until a request is complete
REFUSED_LOOKS = 1  # until a connection is closed whose request was refused, so that the client can read why
READING_LOOKS = 10  # until a client takes some of its response

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

NoteDropped = Callable[[Dropped, str], None]


class Gate:
    """Accepts connections, and hands each to a protocol of the HTTP library once its request is complete.

    new_handler: makes such a protocol; it must close its transport after one response.
    probes: the targets of health checks, which are answered before all else.
    note_dropped: told of each connection that is closed for a reason.
    """

    def __init__(
        self,
        new_handler: Callable[[], asyncio.Protocol],
        note_dropped: NoteDropped,
        pacer: Pacer,
        probes: frozenset[bytes] = frozenset(),
    ) -> None:
        self._new_handler = new_handler
        self._note_dropped = note_dropped
        self._pacer = pacer
        self._probes = probes
        self._watch = Watch()
        self._listening: list[socket.socket] = []
        self._receiving: dict[_Receiving, None] = {}  # the oldest first
        self._responding: dict[_Responding, None] = {}
        self._responded = asyncio.Event()  # set when, at the end, all connections have gone
        self._working: asyncio.Task[None] | None = None
        self._next_look: asyncio.TimerHandle | None = None

    def open(self, listening: list[socket.socket]) -> None:
        """Serve the connections to these sockets, which are bound."""
        self._listening = listening
        self._working = asyncio.create_task(self._pacer.run())
        self._look_at_connections()
        for sock in listening:
            sock.setblocking(False)
            sock.listen(BACKLOG)
            self._await_connection(sock)

    async def close(self) -> None:
        """Close all connections at once, whatever they wait for."""
        listening, self._listening = self._listening, []
        for sock in listening:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait([self._working])
        if self._next_look is not None:
            self._next_look.cancel()
        for receiving in list(self._receiving):
            self._forget(receiving).close()
        self._responded.set()
        for responding in list(self._responding):
            self._responded.clear()
            responding.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._responded.wait()

    def _look_at_connections(self) -> None:
        self._next_look = asyncio.get_running_loop().call_later(EVERY, self._look_at_connections)
        self._watch.tick()

    # Accepting

    def _await_connection(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:  # else the gate was closed
            asyncio.get_running_loop().add_reader(listening, self._connection_waits, listening)

    def _connection_waits(self, listening: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(listening)
        self._pacer.submit(partial(self._accept, listening))

    async def _accept(self, listening: socket.socket) -> None:
        try:
            for _ in range(ACCEPTED_AT_ONCE):
                sock, _ = listening.accept()
                self._let_in(sock)
        except (BlockingIOError, ConnectionAbortedError):  # there are no more, or the next one has gone again
            pass
        except OSError:
            asyncio.get_running_loop().call_later(ACCEPT_RETRY_SECONDS, self._await_connection, listening)
            return
        self._await_connection(listening)

    def _let_in(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if len(self._receiving) >= MAX_RECEIVING:
            self._drop(next(iter(self._receiving)), Dropped.TOO_MANY_ADMIN, "too many connections")
        receiving = _Receiving(self, sock, self._watch.now)
        self._receiving[receiving] = None
        self._watch.add(receiving)
        self._read(receiving)  # the request has most likely come already

    # Receiving

    def _await_data(self, receiving: "_Receiving") -> None:
        asyncio.get_running_loop().add_reader(receiving.sock, self._data_waits, receiving)

    def _data_waits(self, receiving: "_Receiving") -> None:
        asyncio.get_running_loop().remove_reader(receiving.sock)
        self._pacer.submit(partial(self._receive, receiving))

    async def _receive(self, receiving: "_Receiving") -> None:
        if receiving in self._receiving:  # else it was closed meanwhile
            self._read(receiving)

    def _read(self, receiving: "_Receiving") -> None:
        try:
            data = receiving.sock.recv(READ_SIZE)
        except BlockingIOError:
            self._await_data(receiving)
            return
        except OSError:
            data = b""
        if not data:
            self._forget(receiving).close()
            return
        try:
            is_complete = receiving.request.feed(data)
        except RequestRefused as refusal:
            self._refuse(receiving, refusal)
            return
        if is_complete:
            urgency = Urgency.PROBE if _target(receiving.request.data) in self._probes else Urgency.LATER
            self._pacer.submit(partial(self._respond, receiving), urgency)
            return
        if receiving.request.expects_continue:
            receiving.request.expects_continue = False
            _send(receiving.sock, CONTINUE)
        self._await_data(receiving)

    def _refuse(self, receiving: "_Receiving", refusal: RequestRefused) -> None:
        """Say why, and close the connection a little later: at once, a client might not see what was said."""
        self._note_dropped(Dropped.GARBAGE, f"admin address: {refusal}")
        receiving.refuse(self._watch.now)
        _send(receiving.sock, refusal.response())
        with suppress(OSError):
            receiving.sock.shutdown(socket.SHUT_WR)

    def _drop(self, receiving: "_Receiving", why: Dropped, reason: str) -> None:
        if not receiving.is_refused:  # which was noted
            self._note_dropped(why, f"admin address: {reason}")
        self._forget(receiving).close()

    def _forget(self, receiving: "_Receiving") -> socket.socket:
        """Return its socket, which is the caller's from now on."""
        del self._receiving[receiving]
        self._watch.discard(receiving)
        asyncio.get_running_loop().remove_reader(receiving.sock)
        return receiving.sock

    # Responding

    async def _respond(self, receiving: "_Receiving") -> None:
        if receiving not in self._receiving:  # it was closed meanwhile
            return
        if len(self._responding) >= MAX_RESPONDING:
            self._note_dropped(Dropped.TOO_MANY_ADMIN, "admin address: too many responses")
            next(iter(self._responding)).abort()
        responding = _Responding(self, self._new_handler())
        sock = self._forget(receiving)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: responding, sock)
        except OSError:
            sock.close()
            return
        responding.handle_request(bytes(receiving.request.data))
        for _ in range(ITERATIONS):
            if responding.is_closing:
                break
            await asyncio.sleep(0)

    def response_begins(self, responding: "_Responding") -> None:
        self._responding[responding] = None
        responding.progress = self._watch.add(responding)

    def response_ends(self, responding: "_Responding") -> None:
        self._responding.pop(responding, None)
        if not self._responding:
            self._responded.set()
        self._watch.discard(responding)

    def request_is_late(self, receiving: "_Receiving") -> None:
        self._drop(receiving, Dropped.UNFINISHED, "the request did not come in time")

    def response_is_not_read(self, responding: "_Responding") -> None:
        self._note_dropped(Dropped.NOT_READING, "admin address: the response was not read")
        responding.abort()


class _Receiving:
    """A connection whose request is not complete."""

    def __init__(self, gate: Gate, sock: socket.socket, now: int) -> None:
        self.sock = sock
        self.request = RequestReader()
        self.is_refused = False
        self._gate = gate
        self._until = now + REQUEST_LOOKS

    def refuse(self, now: int) -> None:
        self.is_refused = True
        self._until = now + REFUSED_LOOKS

    def look(self, now: int) -> bool:
        if now <= self._until:
            return True
        self._gate.request_is_late(self)
        return False


class _Responding(asyncio.BufferedProtocol):
    """A connection whose request is complete: the HTTP library's protocol writes, and nothing is read any more.

    The library resumes the reading of its transport now and then. So it is the gate that gets what is read, and it
    pauses again.
    """

    def __init__(self, gate: Gate, handler: asyncio.Protocol) -> None:
        self._gate = gate
        self._handler = handler
        self._transport: asyncio.Transport | None = None
        self._unsent = 0  # bytes, at the last look
        self.progress = 0  # the last look at which the client had taken something

    @property
    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def handle_request(self, request: bytes) -> None:
        try:
            self._handler.data_received(request)
        except Exception:
            self.abort()
            raise

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def look(self, now: int) -> bool:
        unsent = 0 if self._transport is None else self._transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent:
            self.progress = now
        self._unsent = unsent
        if now - self.progress <= READING_LOOKS:
            return True
        self._gate.response_is_not_read(self)
        return False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.pause_reading()
        self._transport.set_write_buffer_limits(HIGH_WATER)
        self._gate.response_begins(self)
        self._handler.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._gate.response_ends(self)
        self._handler.connection_lost(error)

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()

    def get_buffer(self, _sizehint: int) -> bytearray:
        return bytearray(1)

    def buffer_updated(self, _size: int) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return True  # the response still goes out


def _target(request: bytes | bytearray) -> bytes:
    """Return what a complete request asks for, without the query."""
    _, target, _ = bytes(request.partition(b"\r\n")[0]).split(b" ", 2)
    return target.partition(b"?")[0]


def _send(sock: socket.socket, data: bytes) -> None:
    """A few bytes, which the system takes unless the connection has gone."""
    with suppress(OSError):
        sock.send(data)
