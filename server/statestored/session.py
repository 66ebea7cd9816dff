"""One connection: bytes in, requests to the commands, responses out.

Nothing here waits. A response leaves in the same turn of the loop in which its request came, all responses to what was
read at once in one write; only an answer that an engine gives later, or wants held until a commit is durable, leaves
later.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import structlog

from statestore.errors import (
    BadRequest,
    Internal,
    ShuttingDown,
    StateStoreError,
    to_wire,
)
from statestore.wire import DECODE_ERRORS, MAX_MESSAGE, MAX_MSGID, NOTIFICATION, REQUEST, Decoder, text_packer
from statestored.commands import (
    COMMANDS,
    NIL,
    Caller,
    Command,
    Reply,
    Role,
    Service,
    check_params,
    find_command,
    get,
    hello,
    set_,
)
from statestored.engines.base import Commit, Held

log = structlog.get_logger()

# What is read at once: a client that sends without end gets so much, then the others have their turn.
READ_SIZE = 16_384
# Before a client is known it gets little. Memory for an array is taken as soon as its header is read.
MAX_BYTES_AT_FIRST, MAX_ITEMS_AT_FIRST = 1024, 16
MAX_ITEMS = 1024  # above what any method takes, so that a little too many get an answer that says so
LARGE_REPLY = 4096  # bytes; after one of these, see whether the client reads what it asks for
MAX_HELD = 1024  # answers that wait for the disk; a client that has more of them is not read from until they are out

_pack = text_packer()
GET_NAME, SET_NAME = b"get", b"set"
GET, SET = COMMANDS[GET_NAME], COMMANDS[SET_NAME]
KNOWN_HEADS = 2**16
_HEADS = [b"\x94\x01" + _pack(msgid) + NIL for msgid in range(KNOWN_HEADS)]  # of responses without an error; 3 MB

# The loop has one thread, and what is read is used up at once: all connections can read into the same place.
_buffer = memoryview(bytearray(READ_SIZE))


class Garbage(Exception):
    """What came is no MessagePack-RPC. The connection has to be closed: nobody knows what comes next on it."""


class Sessions(set["Session"]):
    """Those that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.emptied = asyncio.Event()

    def remove(self, session: Session) -> None:
        super().remove(session)
        if not self:
            self.emptied.set()


class Session(asyncio.BufferedProtocol):
    """Puts itself into `sessions` when it opens, and takes itself out when it is closed.

    `call_soon` is the loop's: it calls back when the others have had their turn.
    """

    def __init__(self, service: Service, sessions: Sessions, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._service = service
        self._sessions = sessions
        self._call_soon = call_soon
        self._caller = Caller(service)
        self._stranger = self._caller.role is Role.NOBODY
        self._bytes_at_first = 0  # received from a stranger
        self._unfinished = 0  # bytes received since the last whole message
        self._decoder = _decoder(MAX_ITEMS_AT_FIRST if self._stranger else MAX_ITEMS)
        self._asked = False  # something was: too late for a hello
        self._refused = False  # its hello was: nothing more is executed
        self._stop = False  # answering what came has to wait, or to end
        self._paused = False  # it reads too slowly: answer nothing more for now
        self._draining = False  # the daemon is about to end
        self._waiting = 0  # answers, or held bundles of them, that come later
        self._held = 0  # answers in such bundles
        self._closing = False  # once nothing waits any more
        self._eof = False  # the client sends no more
        self._transport: asyncio.Transport

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._sessions.add(self)
        self._service.connections += 1
        self._service.connections_total += 1

    def connection_lost(self, _error: Exception | None) -> None:
        self._sessions.remove(self)
        self._service.connections -= 1

    def get_buffer(self, _sizehint: int) -> memoryview:
        return _buffer

    def buffer_updated(self, size: int) -> None:
        if size == READ_SIZE:
            self._transport.pause_reading()
            self._call_soon(self._read_on)
        if self._stranger:
            self._take_from_stranger(size)
        else:
            self._take(_buffer[:size])

    def eof_received(self) -> bool:
        self._eof = True
        return self._waiting > 0  # then the answers under way still go out

    def pause_writing(self) -> None:
        self._paused = self._stop = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._go_on()

    # Called by the listener

    def drain(self) -> None:
        """From now on every request is answered `shutting_down`."""
        self._draining = True
        self._caller.allowed = {}

    def close(self) -> None:
        """What was answered, or is held, still goes out, if the client reads."""
        self._closing = True
        self._transport.pause_reading()
        self._close_if_done()

    def abort(self) -> None:
        self._transport.abort()

    # From here on the way of a request

    def _take_from_stranger(self, size: int) -> None:
        """So much of it is heard; the rest only where that made him known."""
        room = MAX_BYTES_AT_FIRST - self._bytes_at_first
        self._bytes_at_first += size
        self._take(_buffer[: min(size, room)])
        if size <= room or self._closing:
            return
        if self._stranger:
            self._drop(Garbage(f"more than {MAX_BYTES_AT_FIRST} bytes before a hello"))
        else:
            self._take(_buffer[room:size])

    def _take(self, data: memoryview) -> None:
        self._unfinished += len(data)
        try:
            self._decoder.feed(data)
        except DECODE_ERRORS as error:
            self._drop(error)
        else:
            self._answer_all()

    def _answer_all(self) -> None:
        """All the whole messages that came, as long as nothing makes us stop."""
        self._stop = False
        decoder, caller, calls, heads = self._decoder, self._caller, self._service.calls, _HEADS
        out: list[bytes] = []
        held: list[bytes] = []
        until: Commit | None = None  # what these are held for
        message = None
        gets = sets = 0
        try:
            for message in decoder:
                # The usual case stands here, and not in functions, for the sake of the many small gets and sets.
                try:
                    kind, msgid, name, params = message
                    head = heads[msgid] if 0 <= msgid < KNOWN_HEADS else _head(msgid)
                    command = caller.allowed.get(name) if type(name) is bytes else None
                except (TypeError, ValueError):
                    _pass_over(message)
                    continue
                if kind != REQUEST:
                    raise Garbage("a message is neither a request nor a notification")
                try:
                    if command is GET and type(params) is tuple and len(params) == 2:
                        gets += 1
                        reply = get(caller, params[0], params[1])
                    elif command is SET and type(params) is tuple and len(params) == 3:
                        sets += 1
                        reply = set_(caller, params[0], params[1], params[2])
                    elif command is not None and type(params) is tuple and len(params) == command.arity:
                        calls[name] += 1
                        reply = command.run(caller, *params)
                    else:
                        self._asked = self._asked or bool(out) or until is not None
                        reply = self._run_unusual(message)
                except Garbage:
                    raise
                except Exception as error:
                    out.append(self._refusal(msgid, error))
                else:
                    if isinstance(reply, bytes):
                        out += (head, reply)
                        if len(reply) > LARGE_REPLY:
                            self._write(out)
                    elif isinstance(reply, Held):
                        if until is not reply.until:
                            if until is not None:
                                self._hold(held, until)
                            held, until = [], reply.until
                        held += (head, reply.packed or NIL)
                    else:
                        self._answer_later(msgid, reply)
                        continue
                if self._stop:
                    break
            # msgpack takes a message apart as it comes, so that its own limit is not one of the message.
            if message is not None:
                self._unfinished = 0
            elif self._unfinished > MAX_MESSAGE:
                raise Garbage(f"a message of more than {MAX_MESSAGE} bytes")
        except (*DECODE_ERRORS, Garbage) as error:
            if out:
                self._write(out)
            self._drop(error)
            return
        finally:
            calls[GET_NAME] += gets
            calls[SET_NAME] += sets
            if until is not None:
                self._hold(held, until)
        if out:
            self._write(out)
        if self._refused:
            self.close()
        elif decoder is not self._decoder:
            self._answer_all()

    def _run_unusual(self, message: Any) -> Reply:
        """What is not as it mostly is: a hello, something heavy, an option, or an error, which is raised."""
        if not isinstance(message, tuple):
            raise Garbage("a message is no array")
        _, _, name, params = message
        if self._draining:
            raise ShuttingDown("the server is about to end")
        command = find_command(self._caller, name)
        if command.run is hello:
            return self._hello(command, params)
        params = check_params(command, params)
        self._service.calls[name] += 1
        if command.heavy:
            self._stop = True
            self._transport.pause_reading()
            self._call_soon(self._go_on)
        return command.run(self._caller, *params)

    def _hello(self, command: Command, params: Any) -> Reply:
        """After one that is refused nothing more is executed, or it would land in the wrong namespace."""
        try:
            if self._asked:
                raise BadRequest("hello must come before everything else")
            self._service.calls[b"hello"] += 1
            reply = hello(self._caller, *check_params(command, params))
        except StateStoreError:
            self._refused = self._stop = True
            raise
        if self._stranger:
            self._stranger = False
            self._stop = True  # what follows is for a decoder that takes more
            rest = self._decoder.read_bytes(READ_SIZE)
            self._decoder = _decoder(MAX_ITEMS)
            self._decoder.feed(rest)
        return reply

    def _answer_later(self, msgid: int, reply: Future[bytes]) -> None:
        self._asked = True
        self._waiting += 1
        reply.add_done_callback(partial(self._answered, msgid))

    def _answered(self, msgid: int, reply: Future[bytes]) -> None:
        self._waiting -= 1
        error = asyncio.CancelledError("given up") if reply.cancelled() else reply.exception()
        if self._transport.is_closing():
            return
        self._transport.write(_head(msgid) + reply.result() if error is None else self._refusal(msgid, error))
        self._close_if_done()

    def _hold(self, held: list[bytes], until: Commit) -> None:
        """Answers, each in two parts, that leave when the commit is durable."""
        self._asked = True
        self._waiting += 1
        self._held += len(held) // 2
        until.then(self._let_go, held)
        if self._held > MAX_HELD:
            self._stop = True
            self._transport.pause_reading()

    def _let_go(self, held: list[bytes], error: StateStoreError | None) -> None:
        self._waiting -= 1
        was_too_much = self._held > MAX_HELD
        self._held -= len(held) // 2
        if self._transport.is_closing():
            return
        if error is not None:
            self._service.errors[error.wire_code] += len(held) // 2
            refusal = _pack(to_wire(error)) + NIL
            held = [head[: -len(NIL)] + refusal for head in held[::2]]
        self._transport.write(b"".join(held))
        if self._eof or self._closing:
            self._close_if_done()
        elif was_too_much:
            self._go_on()

    def _close_if_done(self) -> None:
        if (self._eof or self._closing) and not self._waiting:
            self._transport.close()

    def _refusal(self, msgid: int, error: BaseException) -> bytes:
        if not isinstance(error, StateStoreError):
            log.error("a request failed", exc_info=error)
            error = Internal("the server's log says more")
        self._service.errors[error.wire_code] += 1
        return b"\x94\x01" + _pack(msgid) + _pack(to_wire(error)) + NIL

    def _write(self, out: list[bytes]) -> None:
        self._asked = True
        self._transport.write(b"".join(out))
        out.clear()

    def _drop(self, error: Exception) -> None:
        self._service.dropped += 1
        log.warning("connection dropped", reason=str(error) or type(error).__name__)
        self.close()

    def _go_on(self) -> None:
        """With what came before we stopped; on a connection that is being closed nothing more is executed."""
        if not self._must_wait():
            self._answer_all()
            self._read_on()

    def _read_on(self) -> None:
        if not self._must_wait():
            self._transport.resume_reading()

    def _must_wait(self) -> bool:
        return self._paused or self._held > MAX_HELD or self._closing or self._transport.is_closing()


def _decoder(max_items: int) -> Decoder:
    return Decoder(raw=True, max_buffer=MAX_MESSAGE + READ_SIZE, max_items=max_items)


def _head(msgid: Any) -> bytes:
    if type(msgid) is not int or not 0 <= msgid <= MAX_MSGID:
        raise Garbage("a request's id is no 32-bit number")
    return b"\x94\x01" + _pack(msgid) + NIL


def _pass_over(message: Any) -> None:
    """Notifications mean nothing to us, so far. Raises Garbage for anything else."""
    if type(message) is not tuple or len(message) != 3 or message[0] != NOTIFICATION:
        raise Garbage("a message is neither a request nor a notification")
