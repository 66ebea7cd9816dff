"""The requests that came in one turn of the loop, from all connections: decoded, executed and answered together.

Where many clients ask for one small thing each, most of what that costs is not the thing. So they share what can be
shared: the place that they are read into, a decoder, the loop below, and one write to the engine for sets that came one
after the other. No answer waits for others by that: this is done as soon as the loop has heard everybody who has sent
something.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Protocol

import structlog

from statestore.errors import StateStoreError
from statestore.wire import (
    DECODE_ERRORS,
    MAX_MESSAGE,
    MAX_MSGID,
    NOTIFICATION,
    REQUEST,
    Decoder,
    Incomplete,
)
from statestored.answers import NIL, pack
from statestored.commands import COMMANDS, Caller, Command, Service, get, set_, set_together
from statestored.engines.base import Held, Reply, Space
from statestored.extent import Garbage
from statestored.heavy import CallSoon
from statestored.responses import NO_RESPONSE, Responses
from statestored.writes import run_with, set_once_together

# What is read at once: a client that sends without end gets so much, then the others have their turn.
READ_SIZE = 2**14
TURN_SIZE = 2**18  # bytes; when so much has come, it is answered before more is read
MAX_ITEMS = 1024  # above what any method takes, so that a little too many get an answer that says so
# So many states are looked up before we see whether the client takes its answers; and where buffers are short.
GETS_AT_ONCE, GETS_AT_ONCE_IF_SHORT = 256, 16

log = structlog.get_logger()

GET_NAME, SET_NAME = b"get", b"set"
GET, SET = COMMANDS[GET_NAME], COMMANDS[SET_NAME]
GET_IN_SILENCE = copy(GET)  # as a notification it does not take the short cut, which answers
KNOWN_HEADS = 2**16
_HEADS = [b"\x94\x01" + pack(msgid) + NIL for msgid in range(KNOWN_HEADS)]  # of responses without an error; 3 MB

PLAIN, WITH_OPTIONS = 3, 4  # parameters of a set


class Asker(Protocol):
    """A connection. caller: who asks on it; stopped: it takes no answers for now, or others have their turn."""

    caller: Caller
    responses: Responses
    stopped: bool

    def run(self, head: bytes, command: Command | None, message: Any) -> bool:
        """Execute what is neither a usual get nor a set. Returns False where it has to come again."""

    def answered(self) -> None:
        """All that came is, or waits for the disk."""

    def broke_off(self, rest: memoryview | bytearray, trouble: Exception | None) -> None:
        """So much is not answered: what came is no whole request, or no request, which is the `trouble`; or stopped."""

    def abort(self) -> None:
        """Close it at once."""


Parts = dict[Asker, int]  # of some bytes, one after the other: whose they are, and where they end
Asked = tuple[Asker, list[bytes]]  # who asks for something, and the heads of the responses to that


class Intake:
    """What came and is not answered yet. One for all connections of a loop, whose `call_soon` it gets."""

    def __init__(self, service: Service, call_soon: CallSoon) -> None:
        self._service = service
        self._call_soon = call_soon
        self._buffer = memoryview(bytearray(TURN_SIZE))
        self._end = 0  # of what has come and is not answered yet
        self._parts: Parts = {}  # of that
        # The one that was the only one in a turn, while no other comes: it is answered some microseconds earlier.
        self._lone: Asker | None = None
        self._decoder = _new_decoder()  # between two turns nothing is left in it
        self._sets = _Sets(service)

    def room(self) -> memoryview:
        """Where a connection may read into next."""
        return self._buffer[self._end : self._end + READ_SIZE]

    def read(self, size: int) -> memoryview:
        """What has been read into that; for who does not `add` it."""
        return self._buffer[self._end : self._end + size]

    def add(self, connection: Asker, size: int) -> bool:
        """So much has been read into that: the beginning of a request, and what stands behind it.

        Returns False where it has to be answered by itself, for there is something of the connection already.
        """
        parts = self._parts
        if connection is self._lone:
            self.answer_one(connection, self.read(size))
            return True
        self._lone = None
        if not parts:
            self._call_soon(self._end_turn)
        elif connection in parts:
            return False
        self._end = parts[connection] = self._end + size
        if self._end > TURN_SIZE - READ_SIZE:
            self.answer()
        return True

    def answer(self) -> None:
        """All that was added."""
        if self._parts:
            parts, self._parts = self._parts, {}
            end, self._end = self._end, 0
            self._answer(self._buffer[:end], parts)

    def forget(self, connection: Asker) -> None:
        """It will send nothing more."""
        self.answer()
        if connection is self._lone:
            self._lone = None

    def _end_turn(self) -> None:
        if len(self._parts) == 1:
            (self._lone,) = self._parts
        self.answer()

    def answer_one(self, connection: Asker, data: memoryview | bytearray) -> None:
        """This, at once. What was added has been answered before."""
        self._answer(data, {connection: len(data)})

    def _answer(self, data: memoryview | bytearray, parts: Parts) -> None:
        try:
            self._execute(data, parts)
        except Exception:  # a fault of ours: nobody knows who was answered
            log.exception("requests could not be executed")
            self._decoder, self._sets = _new_decoder(), _Sets(self._service)
            for connection in parts:
                connection.abort()

    def _execute(self, data: memoryview | bytearray, parts: Parts) -> None:
        """Each part in turn, as long as all of it can be executed now:

        1. a message is decoded; one that ends behind its part has not come as a whole; a notification is a request
           whose response nobody gets;
        2. a set is put with those before it, a get is answered, and all else is the connection's to run; the last two
           when the connection's own sets before them are done;
        3. at the end of a part its answers leave, but for those to the last sets, which may go with the next part's.

        Where a part is not executed to its end, its connection keeps the rest, and the other parts go one by one.
        """
        service, sets, heads = self._service, self._sets, _HEADS
        # Not `for message in decoder`: its end is an exception, which costs as much as two messages.
        unpack, tell = self._decoder.unpack, self._decoder.tell
        origin = start = tell()
        self._decoder.feed(data)
        gets_at_once = GETS_AT_ONCE_IF_SHORT if service.budget.used_up else GETS_AT_ONCE
        left = iter(parts.items())
        for connection, end in left:
            end += origin
            first = start
            caller, responses = connection.caller, connection.responses
            set_heads: list[bytes] = []  # of those in `sets` that came last, one after the other
            gets = 0
            is_usual = len(parts) > 1
            trouble: Exception | None = None
            try:
                while start < end:
                    message = unpack()
                    after = tell()
                    if after > end:
                        raise Incomplete  # what completes it is not this connection's
                    begin, start = start, after
                    # The usual cases stand here, and not in functions, for the sake of the many small gets and sets.
                    try:
                        kind, msgid, name, params = message
                        head = heads[msgid] if type(msgid) is int and 0 <= msgid < KNOWN_HEADS else _head(msgid)
                        command = caller.allowed.get(name) if type(name) is bytes else None
                    except (TypeError, ValueError):
                        message = _notified(message)
                        if message is None:
                            continue
                        # From here on it is a request without a head, in its order among the others.
                        kind, _, name, params = message
                        head, responses.to_notifications = NO_RESPONSE, True
                        command = caller.allowed.get(name)
                        if command is GET:
                            command = GET_IN_SILENCE
                    if kind != REQUEST:
                        raise Garbage("a message is neither a request nor a notification")
                    if (
                        command is SET
                        and type(params) is tuple
                        and ((size := len(params)) == PLAIN or (size == WITH_OPTIONS and type(params[3]) is dict))
                    ):
                        if caller.space is not sets.space or size != sets.size:
                            sets.begin(caller.space, size)
                            set_heads = []
                        if not set_heads:
                            sets.asked.append((connection, set_heads))
                        set_heads.append(head)
                        sets.params.append(params)
                        continue
                    if set_heads:
                        sets.execute()
                        set_heads = []
                    if command is GET and type(params) is tuple and len(params) == 2:
                        try:
                            reply = get(caller, params[0], params[1])
                        except Exception as error:
                            responses.refuse(head, error)
                        else:
                            if type(reply) is bytes:
                                responses.out += (head, reply)
                            else:
                                responses.add(head, reply)
                                is_usual = False
                        gets += 1
                        if gets % gets_at_once:
                            continue
                        responses.flush()
                    else:
                        is_usual = False
                        if not connection.run(head, command, message):
                            start = begin  # it has to come again
                            break
                    if connection.stopped:
                        break
            except (*DECODE_ERRORS, Garbage) as error:
                trouble = error.with_traceback(None)  # which has this frame, and that has `trouble`
            if gets or not is_usual:
                service.calls[GET_NAME] += gets
                responses.flush()
            if set_heads or not is_usual:
                responses.keep(start - first)
            if start < end or trouble is not None:
                begin, end = start - origin, end - origin
                self._break_off(connection, data[begin:end], trouble, is_alone=len(parts) == 1)
                for other, end_of_other in left:
                    begin, end = end, end_of_other
                    self.answer_one(other, data[begin:end])
            elif not is_usual:
                sets.execute()
                connection.answered()
        sets.execute()

    def _break_off(
        self, connection: Asker, rest: memoryview | bytearray, trouble: Exception | None, *, is_alone: bool
    ) -> None:
        """Its part, where the rest begins. What the others sent is still in the decoder, which nobody can use again."""
        self._decoder = _new_decoder()
        self._sets.execute()
        if trouble is None or isinstance(trouble, Garbage) or is_alone:
            connection.broke_off(rest, trouble)
        else:
            self.answer_one(connection, rest)  # is the trouble in what it sent, or in what stood behind that?


class _Sets:
    """Sets that came one after the other, in one namespace: one write to the engine, where that is the same.

    params: theirs, of one `size`; asked: whose they are, in this order, and the heads of their responses.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.space: Space | None = None
        self.size = 0
        self.params: list[tuple[Any, ...]] = []
        self.asked: list[Asked] = []

    def begin(self, space: Space, size: int) -> None:
        """With others than before."""
        self.execute()
        self.space, self.size = space, size

    def execute(self) -> None:
        """All of them."""
        if not self.params:
            return
        params, self.params = self.params, []
        asked, self.asked = self.asked, []
        self.space = None
        self._service.calls[SET_NAME] += len(params)
        callers = [connection.caller for connection, heads in asked for _ in heads]
        try:
            reply = set_together(callers[0], params) if self.size == PLAIN else set_once_together(callers, params)
        except Exception as error:
            for connection, heads in asked:
                for head in heads:
                    connection.responses.refuse(head, error)
                connection.responses.flush()
        else:
            if reply is None:
                _set_each(asked, params)
            else:
                _answer_all(asked, reply)


def _set_each(asked: Sequence[Asked], all_params: Sequence[tuple[Any, ...]]) -> None:
    left = iter(all_params)
    for connection, heads in asked:
        responses = connection.responses
        for head in heads:
            params = next(left)
            try:
                if len(params) == PLAIN:
                    reply = set_(connection.caller, *params)
                else:
                    reply = run_with(connection.caller, SET, params[:-1], params[-1])
            except Exception as error:
                responses.refuse(head, error)
            else:
                responses.add(head, reply)
        responses.flush()
        connection.answered()


def _answer_all(asked: Sequence[Asked], reply: Reply) -> None:
    if not isinstance(reply, Held):
        for connection, heads in asked:
            for head in heads:
                connection.responses.add(head, reply)
            connection.responses.flush()
        return
    reply.until.then(_let_go, (asked, reply))
    for connection, heads in asked:
        if connection.responses.hold(heads):
            connection.answered()


def _let_go(those: tuple[Sequence[Asked], Held[object]], error: StateStoreError | None) -> None:
    asked, reply = those
    for connection, heads in asked:
        connection.responses.let_go(heads, reply, error)


def _new_decoder() -> Decoder:
    return Decoder(raw=True, max_buffer=MAX_MESSAGE + TURN_SIZE, max_items=MAX_ITEMS)


def _head(msgid: Any) -> bytes:
    if type(msgid) is not int or not 0 <= msgid <= MAX_MSGID:
        raise Garbage("a request's id is no 32-bit number")
    return b"\x94\x01" + pack(msgid) + NIL


def _notified(message: Any) -> tuple[int, int, bytes, Any] | None:
    """Return a notification as the request that it would be; None if we do not know its method.

    Raises Garbage for anything else.
    """
    if type(message) is not tuple or len(message) != 3 or message[0] != NOTIFICATION:
        raise Garbage("a message is neither a request nor a notification")
    _, name, params = message
    return (REQUEST, 0, name, params) if type(name) is bytes and name in COMMANDS else None
