"""One connection: bytes in, requests to the commands, responses out.

Nothing here waits. A response leaves in the same turn of the loop in which its request came, all responses to what was
read at once in one write; only an answer that an engine gives later, or wants held until a commit is durable, leaves
later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import structlog

from statestore.errors import (
    BadRequest,
    ShuttingDown,
    StateStoreError,
)
from statestore.wire import (
    DECODE_ERRORS,
    MAX_MESSAGE,
    MAX_MSGID,
    NOTIFICATION,
    REQUEST,
    Decoder,
    Incomplete,
    text_packer,
)
from statestored.commands import (
    COMMANDS,
    NIL,
    Caller,
    Command,
    Role,
    Service,
    check_params,
    find_command,
    get,
    hello,
    set_,
    set_together,
)
from statestored.engines.base import Reply
from statestored.responses import Responses
from statestored.writes import run_with

log = structlog.get_logger()

# What is read at once: a client that sends without end gets so much, then the others have their turn.
READ_SIZE = 16_384
# Before a client is known it gets little. Memory for an array is taken as soon as its header is read.
MAX_BYTES_AT_FIRST, MAX_ITEMS_AT_FIRST = 1024, 16
MAX_ITEMS = 1024  # above what any method takes, so that a little too many get an answer that says so
# Answers that wait for the disk, and bytes of them and of what they answer: a client that has more is not read from
# until they are out.
MAX_HELD, MAX_HELD_BYTES = 1024, 2**20

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
        self._fed = 0  # bytes given to the decoder, and of them, those up to the last whole message
        self._whole = 0
        self._settled = 0  # and those that came before anything that still waits for the disk
        self._decoder = _decoder(MAX_ITEMS_AT_FIRST if self._stranger else MAX_ITEMS)
        self._refused = False  # its hello was: nothing more is executed
        self._stop = False  # answering what came has to wait, or to end
        self._paused = False  # it reads too slowly: answer nothing more for now
        self._draining = False  # the daemon is about to end
        self._held_back = False  # too many answers wait for the disk: do nothing more for now
        self._closing = False  # once nothing waits any more
        self._eof = False  # the client sends no more
        self._transport: asyncio.Transport
        self._responses: Responses

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._responses = Responses(self._service, self._transport)
        self._sessions.add(self)
        self._service.connections += 1
        self._service.connections_total += 1

    def connection_lost(self, _error: Exception | None) -> None:
        self._sessions.remove(self)
        self._service.connections -= 1
        self._caller.leave()

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
        self._responses.then = self._after_waiting
        return self._responses.waiting > 0  # then the answers under way still go out

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
        self._responses.then = self._after_waiting
        if self._responses.waiting:
            self._transport.pause_reading()
        else:
            self._transport.close()

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
        self._fed += len(data)
        try:
            self._decoder.feed(data)
        except DECODE_ERRORS as error:
            self._drop(error)
        else:
            self._answer_all()

    def _answer_all(self) -> None:
        """All the whole messages that came, as long as nothing makes us stop."""
        self._stop = False
        decoder, caller, responses, heads = self._decoder, self._caller, self._responses, _HEADS
        out = responses.out
        sets: list[tuple[object, ...]] = []  # the parameters of those that came last, one after the other
        set_heads: list[bytes] = []
        broken: Exception | None = None
        message = None
        gets = 0
        # Not `for message in decoder`: its end is an exception, which costs as much as two messages.
        unpack, tell, fed = decoder.unpack, decoder.tell, self._fed
        try:
            while (start := tell()) < fed:
                message = unpack()
                # The usual cases stand here, and not in functions, for the sake of the many small gets and sets.
                try:
                    kind, msgid, name, params = message
                    head = heads[msgid] if 0 <= msgid < KNOWN_HEADS else _head(msgid)
                    command = caller.allowed.get(name) if type(name) is bytes else None
                except (TypeError, ValueError):
                    _pass_over(message)
                    continue
                if kind != REQUEST:
                    raise Garbage("a message is neither a request nor a notification")
                if command is SET and type(params) is tuple and len(params) == 3:
                    sets.append(params)
                    set_heads.append(head)
                    continue
                if sets:
                    self._set_each(set_heads, sets)
                    sets, set_heads = [], []
                if command is GET and type(params) is tuple and len(params) == 2:
                    gets += 1
                    try:
                        reply = get(caller, params[0], params[1])
                    except Exception as error:
                        responses.refuse(head, error)
                    else:
                        if type(reply) is bytes:
                            out += (head, reply)
                        else:
                            responses.add(head, reply)
                    continue
                self._run(head, command, message)
                if self._stop:
                    break
            self._whole = self._decoder.tell()  # a hello may have changed it
        except Incomplete:
            if message is not None:
                self._whole = start
            # msgpack takes a message apart as it comes, so that its own limit is not one of the message.
            if fed - self._whole > MAX_MESSAGE:
                broken = Garbage(f"a message of more than {MAX_MESSAGE} bytes")
        except (*DECODE_ERRORS, Garbage) as error:
            broken = error
        if sets:
            self._set_each(set_heads, sets)
        if gets:
            self._service.calls[GET_NAME] += gets
        responses.flush()
        if not responses.waiting:
            self._settled = self._fed
        if broken is not None:
            self._drop(broken)
        elif self._refused:
            self.close()
        elif responses.held > MAX_HELD or responses.held_bytes + self._fed - self._settled > MAX_HELD_BYTES:
            self._held_back = self._stop = True
            responses.then = self._after_waiting
            self._transport.pause_reading()
        elif decoder is not self._decoder:
            self._answer_all()

    def _set_each(self, heads: list[bytes], sets: list[tuple[object, ...]]) -> None:
        """Sets that came one after the other, as one write where that is the same."""
        caller, responses = self._caller, self._responses
        try:
            reply = set_(caller, *sets[0]) if len(sets) == 1 else set_together(caller, sets)
        except Exception as error:
            for head in heads:
                responses.refuse(head, error)
        else:
            if reply is None:
                for head, params in zip(heads, sets, strict=True):
                    self._set_each([head], [params])
                return
            responses.add_same(heads, reply)
        self._service.calls[SET_NAME] += len(sets)

    def _run(self, head: bytes, command: Command | None, message: Any) -> None:
        try:
            params = None if command is None else message[3]
            if command is None or type(params) is not tuple:
                reply = self._run_unusual(message)
            elif len(params) == command.arity:
                self._service.calls[message[2]] += 1
                reply = command.run(self._caller, *params)
            elif len(params) == command.arity + 1 and type(params[-1]) is dict:
                self._service.calls[message[2]] += 1
                reply = run_with(self._caller, command, params[:-1], params[-1])
            else:
                reply = self._run_unusual(message)
        except Garbage:
            raise
        except Exception as error:
            self._responses.refuse(head, error)
        else:
            self._responses.add(head, reply)

    def _run_unusual(self, message: Any) -> Reply:
        """What is not as it mostly is: a hello, something heavy, or an error, which is raised."""
        if not isinstance(message, tuple):
            raise Garbage("a message is no array")
        _, _, name, params = message
        if self._draining:
            raise ShuttingDown("the server is about to end")
        command = find_command(self._caller, name)
        if command.run is hello:
            return self._hello(command, params)
        params, options = check_params(command, params)
        self._service.calls[name] += 1
        if command.heavy:
            self._stop = True
            self._transport.pause_reading()
            self._call_soon(self._go_on)
        return run_with(self._caller, command, params, options) if options else command.run(self._caller, *params)

    def _hello(self, command: Command, params: Any) -> Reply:
        """After one that is refused nothing more is executed, or it would land in the wrong namespace."""
        try:
            if not self._responses.untouched():
                raise BadRequest("hello must come before everything else")
            self._service.calls[b"hello"] += 1
            params, options = check_params(command, params)
            reply = run_with(self._caller, command, params, options)
        except StateStoreError:
            self._refused = self._stop = True
            raise
        if self._stranger:
            self._stranger = False
            self._stop = True  # what follows is for a decoder that takes more
            rest = self._decoder.read_bytes(READ_SIZE)
            self._decoder = _decoder(MAX_ITEMS)
            self._decoder.feed(rest)
            self._fed, self._whole, self._settled = len(rest), 0, 0
        return reply

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

    def _after_waiting(self) -> None:
        """Some answers that had to wait have left."""
        if self._eof or self._closing:
            if not self._responses.waiting:
                self._transport.close()
        elif self._held_back:
            self._held_back = False
            self._go_on()

    def _must_wait(self) -> bool:
        return self._paused or self._held_back or self._closing or self._transport.is_closing()


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
