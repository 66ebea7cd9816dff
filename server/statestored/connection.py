"""One connection: bytes in, requests to the commands, responses out.

Nothing here waits. A response leaves in the same turn of the loop in which its request came, all responses to what was
read at once in one write; only an answer that an engine gives later, or wants held until a commit is durable, leaves
later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

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
from statestored import audit, timeouts
from statestored.budget import OWN
from statestored.commands import (
    COMMANDS,
    NIL,
    Caller,
    Command,
    Service,
    check_params,
    find_command,
    get,
    hello,
    set_,
    set_together,
)
from statestored.engines.base import Reply
from statestored.extent import Extent, Garbage
from statestored.heavy import HeavyTurns, NotYet
from statestored.responses import Responses
from statestored.timeouts import Dropped, Watch
from statestored.tokens import Role
from statestored.writes import run_with

# What is read at once: a client that sends without end gets so much, then the others have their turn.
READ_SIZE = 16_384
MUCH = 4096  # bytes read at once; a good part of a millisecond to answer
# Before a client is known it gets little.
MAX_BYTES_AT_FIRST, MAX_ITEMS_AT_FIRST = 1024, 16
MAX_STRANGERS = 2048  # twice what the system hands over at once, so that a crowd that says hello at once gets in
MAX_ITEMS = 1024  # above what any method takes, so that a little too many get an answer that says so
# So many states are looked up before we see whether the client takes its answers; and where buffers are short.
GETS_AT_ONCE, GETS_AT_ONCE_IF_SHORT = 256, 16
# Answers that wait for the disk, and bytes of them and of what they answer: a client that has more is not read from
# until they are out.
MAX_HELD, MAX_HELD_BYTES = 1024, 2**20
# Above this nothing is read from a client that does not take its answers. What it has more than the second, although
# it is not read from, ends the connection.
HIGH_WATER, MAX_UNSENT = 2**14, 2**22
FIRST_BYTES = b"\x93\x94\xdc\xdd"  # of a message: those of an array of three or four, or of one of any length

_pack = text_packer()
GET_NAME, SET_NAME = b"get", b"set"
GET, SET = COMMANDS[GET_NAME], COMMANDS[SET_NAME]
KNOWN_HEADS = 2**16
_HEADS = [b"\x94\x01" + _pack(msgid) + NIL for msgid in range(KNOWN_HEADS)]  # of responses without an error; 3 MB

# The loop has one thread, and what is read is used up at once: all connections can read into the same place, and use
# the same decoder, which holds nothing between two turns.
_buffer = memoryview(bytearray(READ_SIZE))
_NOBODY = asyncio.BufferedProtocol()


class Connections(set["Connection"]):
    """Those that are open.

    ending: the daemon is about to: nobody is let in any more.
    strangers: those that have to show a token, and did not yet; who came first stands first.
    watch: those in a state that may not last; turns: those that wait to execute something heavy; decoder: of all of
    them, since none leaves anything in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ending = False
        self.strangers: dict[Connection, None] = {}
        self.decoder = new_decoder()
        self.emptied = asyncio.Event()
        self.watch = Watch()
        self.turns = HeavyTurns()

    def remove(self, connection: Connection) -> None:
        super().remove(connection)
        self.strangers.pop(connection, None)
        self.turns.forget(connection)
        self.watch.discard(connection)
        if not self:
            self.emptied.set()

    def drop_a_stranger(self) -> bool:
        """Who says nothing must not keep others out: the one that came first goes. Returns whether there was one."""
        oldest = next(iter(self.strangers), None)
        if oldest is None:
            return False
        del self.strangers[oldest]
        oldest.drop_as_stranger()
        return True


class Connection(asyncio.BufferedProtocol):
    """Puts itself into `connections` when it opens, and takes itself out when it is closed.

    `call_soon` is the loop's: it calls back when the others have had their turn.
    """

    def __init__(
        self, service: Service, connections: Connections, call_soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self._service = service
        self._connections = connections
        self._watch = connections.watch
        self._budget = service.budget
        self._call_soon = call_soon
        self._caller = Caller(service)
        self._stranger = self._caller.role is Role.NOBODY
        self._bytes_at_first = 0  # received from a stranger
        self._rest = bytearray()  # what came and is not answered
        # Of the message that this begins with, where not all of it has come. Nothing of a stranger's is decoded before.
        self._extent = Extent(MAX_ITEMS_AT_FIRST) if self._stranger else None
        self._asked = 0  # bytes of requests since the first one that still waits for the disk
        self._held_of_budget = 0
        self._since = timeouts.Since()
        self._unsent = 0  # bytes that were at the last look
        self._refused = False  # its hello was: nothing more is executed
        self._stop = False  # answering what came has to wait, or to end
        self._paused = False  # it reads too slowly: answer nothing more for now
        self._draining = False  # the daemon is about to end
        self._held_back = False  # too many answers wait for the disk: do nothing more for now
        self._has_turn = False  # to do one thing that takes a while
        self._short = False  # the budget is used up, also by this one: do nothing more for now
        self._closing = False  # once nothing waits any more
        self._eof = False  # the client sends no more
        self._transport: asyncio.Transport
        self._responses: Responses

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        service = self._service
        self._transport = cast(asyncio.Transport, transport)
        self._caller.peer = _address(transport.get_extra_info("peername"))
        self._responses = Responses(service, self._transport)
        if self._connections.ending:
            self.abort()
            return
        if service.connections >= service.max_connections and not self._connections.drop_a_stranger():
            self._give_up(Dropped.TOO_MANY)
            return
        self._transport.set_write_buffer_limits(HIGH_WATER)
        self._connections.add(self)
        service.connections += 1
        service.connections_total += 1
        if self._stranger:
            self._since.connected = self._since.message = self._watch.add(self)
            self._connections.strangers[self] = None
            if len(self._connections.strangers) > MAX_STRANGERS:
                self._connections.drop_a_stranger()

    def connection_lost(self, _error: Exception | None) -> None:
        if self in self._connections:
            self._connections.remove(self)
            self._budget.forget(self)
            self._service.connections -= 1
            self._caller.leave()
        # What leads back here would keep all of this, and what TLS has for it, until the collector comes.
        self._responses.then = None
        self._transport.set_protocol(_NOBODY)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return _buffer

    def buffer_updated(self, size: int) -> None:
        if size == READ_SIZE:
            self._transport.pause_reading()
            self._call_soon(self._read_on)
        if self._stranger:
            self._take_from_stranger(size)
        elif size < MUCH or self._connections.turns.take(self._call_soon):
            self._take(_buffer[:size])
        else:
            self._rest += _buffer[:size]
            self._wait_for_turn()
            self._count_held()

    def eof_received(self) -> bool:
        """The answers under way still go out, but with TLS, where one side cannot end alone."""
        self._eof = True
        self._responses.then = self._after_waiting
        return self._responses.waiting > 0 and self._transport.can_write_eof()

    def pause_writing(self) -> None:
        self._paused = self._stop = True
        self._transport.pause_reading()
        self._since.paused = self._watch.add(self)
        self._unsent = 0
        self._count_held()

    def resume_writing(self) -> None:
        self._paused = False
        self._count_held()
        self._go_on()

    # Called by the listener

    def drain(self) -> None:
        """From now on every request is answered `shutting_down`."""
        self._draining = True
        self._caller.allowed = {}

    def renew(self) -> None:
        """The tokens have changed: whoever's is gone, or does not open its namespace any more, has to go."""
        if not self._draining and not self._caller.renew():
            self.close()

    def close(self) -> None:
        """What was answered, or is held, still goes out, if the client reads."""
        self._closing = True
        self._since.closing = self._watch.add(self)
        self._responses.then = self._after_waiting
        if self._responses.waiting:
            self._transport.pause_reading()
        else:
            self._transport.close()

    def abort(self) -> None:
        """At once, whatever waits to be sent: a `close` waits for a client that does not read."""
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
        """Behind what came before."""
        if not (self._rest or self._stop or self._stranger):
            if self._answer(data):
                self._answer_rest()
            return
        self._rest += data
        if not self._stop and self._has_whole():
            self._answer_rest()
        else:
            self._mind_what_is_held()

    def _has_whole(self) -> bool:
        """Whether the first message of the rest has come as a whole, as far as we know."""
        if self._extent is None:
            return True
        try:
            is_whole = self._extent.is_within(self._rest)
        except Garbage as error:
            self._drop(error)
            return False
        if is_whole:
            self._extent = Extent(MAX_ITEMS_AT_FIRST) if self._stranger else None
        return is_whole

    def _answer_rest(self) -> None:
        more = True
        while more:
            data, self._rest = self._rest, bytearray()
            more = self._answer(data)

    def _answer(self, data: memoryview | bytearray) -> bool:
        """The whole messages in it, as long as nothing makes us stop. Returns whether more are left in the rest."""
        decoder, caller, responses, heads = self._connections.decoder, self._caller, self._responses, _HEADS
        out = responses.out
        sets: list[tuple[object, ...]] = []  # the parameters of those that came last, one after the other
        set_heads: list[bytes] = []
        broken: Exception | None = None
        gets = 0
        most_gets = GETS_AT_ONCE_IF_SHORT if self._budget.used_up else GETS_AT_ONCE
        # Not `for message in decoder`: its end is an exception, which costs as much as two messages.
        unpack, tell = decoder.unpack, decoder.tell
        first = start = tell()
        end = first + len(data)
        is_cut = False
        try:
            decoder.feed(data)
            while (start := tell()) < end and gets < most_gets:
                message = unpack()
                # The usual cases stand here, and not in functions, for the sake of the many small gets and sets.
                try:
                    kind, msgid, name, params = message
                    head = heads[msgid] if type(msgid) is int and 0 <= msgid < KNOWN_HEADS else _head(msgid)
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
                if not self._run(head, command, message):
                    break  # it has to come again
                if self._stop:
                    start = tell()
                    break
        except Incomplete:
            is_cut = True
        except (*DECODE_ERRORS, Garbage) as error:
            broken = error.with_traceback(None)  # which has this frame, and that has `broken`
        if sets:
            self._set_each(set_heads, sets)
        if gets:
            self._service.calls[GET_NAME] += gets
        if start < end or broken is not None:
            self._connections.decoder = new_decoder()  # there is something in this one
        responses.flush()
        if broken is not None:
            self._drop(broken)
            return False
        if self._refused:
            self.close()
            return False
        if start < end:
            self._keep(data[start - first :], is_cut)
        self._asked = self._asked + start - first if responses.waiting else 0
        if self._rest or self._held_of_budget or responses.held_bytes + self._asked > OWN or responses.held > MAX_HELD:
            self._mind_what_is_held()
        return start < end and not (is_cut or self._stop)

    def _keep(self, rest: memoryview | bytearray, is_cut: bool) -> None:
        """What is not answered; `is_cut`: for the message that it begins with has not come as a whole."""
        self._rest[:] = rest
        if is_cut:
            if rest[0] not in FIRST_BYTES:
                self._drop(Garbage("a message is no array"))
                return
            self._extent = Extent(MAX_ITEMS_AT_FIRST if self._stranger else MAX_ITEMS)
            self._since.message = self._watch.add(self)
            self._has_whole()

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

    def _run(self, head: bytes, command: Command | None, message: Any) -> bool:
        """Returns whether it was, or has to wait for its turn."""
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
        except NotYet:
            return False
        except Exception as error:
            self._responses.refuse(head, error)
        else:
            self._responses.add(head, reply)
        return True

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
        if command.heavy:
            if not (self._has_turn or self._connections.turns.take(self._call_soon)):
                self._wait_for_turn()
                raise NotYet
            self._has_turn = False
            self._stop = True
            self._transport.pause_reading()
            self._call_soon(self._go_on)
        self._service.calls[name] += 1
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
        self._stranger = False
        self._connections.strangers.pop(self, None)
        self._extent = None
        return reply

    def _drop(self, error: Exception) -> None:
        """For what it sent; what came before that is still answered."""
        self._count_dropped(Dropped.GARBAGE, str(error) or type(error).__name__)
        self._rest.clear()
        self._extent = None
        self._count_held()
        self.close()

    def _give_up(self, why: Dropped) -> None:
        """Whatever waits to be sent."""
        self._count_dropped(why, why)
        self.abort()

    def _count_dropped(self, why: Dropped, reason: str) -> None:
        self._service.dropped[why] += 1
        audit.connection_dropped(why, reason)

    def _go_on(self) -> None:
        """With what came before we stopped; on a connection that is being closed nothing more is executed."""
        if self._must_wait():
            return
        self._stop = False
        if self._rest and self._has_whole():
            self._answer_rest()
        self._read_on()

    def _read_on(self) -> None:
        if not (self._stop or self._must_wait()):
            self._transport.resume_reading()

    def _after_waiting(self) -> None:
        """Some answers that had to wait have left."""
        if self._held_of_budget:
            self._count_held()
        if self._eof or self._closing:
            if not self._responses.waiting:
                self._transport.close()
        elif self._held_back:
            self._held_back = False
            self._go_on()

    def _must_wait(self) -> bool:
        return self._paused or self._held_back or self._short or self._closing or self._transport.is_closing()

    # What it makes the daemon keep, and for how long

    def _count_held(self) -> None:
        """In the budget of all."""
        responses = self._responses
        if not responses.waiting:
            self._asked = 0
        held = len(self._rest) + self._asked + responses.held_bytes
        if self._paused:
            held += self._transport.get_write_buffer_size()
        if held != self._held_of_budget:
            self._held_of_budget = held
            responses.then = self._after_waiting
            self._budget.hold(self, held)
        if self._short and held <= OWN:
            self.resume()

    def _mind_what_is_held(self) -> None:
        """Where it is too much, for one or for all together, this one has to wait."""
        self._count_held()
        responses = self._responses
        if responses.held > MAX_HELD or responses.held_bytes + self._asked > MAX_HELD_BYTES:
            self._held_back = self._stop = True
            responses.then = self._after_waiting
            self._transport.pause_reading()
        elif self._held_of_budget > OWN and self._budget.used_up:
            self._short = self._stop = True
            self._transport.pause_reading()
            self._budget.wait(self)

    def _wait_for_turn(self) -> None:
        self._stop = True
        self._transport.pause_reading()
        self._connections.turns.wait(self)

    def have_turn(self) -> None:
        """Called when it may do one thing that takes a while."""
        self._has_turn = True
        self._go_on()
        self._has_turn = False

    def resume(self) -> None:
        """There is room in the budget again, or this one takes nothing of it any more."""
        self._short = False
        self._call_soon(self._go_on)

    def drop_for_room(self) -> None:
        self._give_up(Dropped.NO_BUFFERS)

    def drop_as_stranger(self) -> None:
        self._give_up(Dropped.NO_HELLO)

    def look(self, now: int) -> bool:
        """Called once a second: what has lasted too long ends the connection. Returns whether there is more to see."""
        why = self._overdue(now)
        if why is not None:
            self._give_up(why)
            return False
        return self._stranger or self._extent is not None or self._paused or self._closing

    def _overdue(self, now: int) -> Dropped | None:
        since = self._since
        unsent = self._transport.get_write_buffer_size()
        if unsent < self._unsent:
            since.paused = since.closing = now  # it reads
        self._unsent = unsent
        if self._paused and (unsent > MAX_UNSENT or now - since.paused > timeouts.READING):
            return Dropped.NOT_READING
        if self._closing and not self._responses.waiting and now - since.closing > timeouts.CLOSING:
            return Dropped.NOT_READING
        if self._stranger and now - since.connected > timeouts.HELLO:
            return Dropped.NO_HELLO
        if self._must_wait():
            since.message = now  # it is not read from
        elif self._rest and self._extent is not None and now - since.message > timeouts.REST_OF_MESSAGE:
            return Dropped.UNFINISHED
        return None


def new_decoder() -> Decoder:
    return Decoder(raw=True, max_buffer=MAX_MESSAGE + READ_SIZE, max_items=MAX_ITEMS)


def _address(peername: object) -> str:
    """Of a TCP connection; empty for a unix socket's."""
    return str(peername[0]) if isinstance(peername, tuple) else ""


def _head(msgid: Any) -> bytes:
    if type(msgid) is not int or not 0 <= msgid <= MAX_MSGID:
        raise Garbage("a request's id is no 32-bit number")
    return b"\x94\x01" + _pack(msgid) + NIL


def _pass_over(message: Any) -> None:
    """Notifications mean nothing to us, so far. Raises Garbage for anything else."""
    if type(message) is not tuple or len(message) != 3 or message[0] != NOTIFICATION:
        raise Garbage("a message is neither a request nor a notification")
