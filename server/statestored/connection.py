"""One connection: bytes in, requests to the commands, responses out.

Nothing here waits. A response leaves in the turn of the loop in which its request came, unless an engine gives it
later, or wants it held until a commit is durable; or there is a reason not to execute the request yet.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

from statestore.errors import BadRequest, ShuttingDown, StateStoreError, Unavailable
from statestore.wire import Incomplete
from statestored import timeouts
from statestored.budget import OWN
from statestored.commands import Caller, Command, Service, check_params, find_command, hello
from statestored.engines.base import Held, Reply
from statestored.extent import Extent, Garbage
from statestored.foreign_protocols import instead_of_messagepack
from statestored.heavy import CallSoon, HeavyTurns, NotYet
from statestored.intake import MAX_ITEMS, READ_SIZE, Intake
from statestored.responses import MAX_HELD, Responses
from statestored.sockets import unacknowledged
from statestored.timeouts import GIVEN_UP, Dropped, Watch
from statestored.tls import reason_of
from statestored.tokens import Role
from statestored.writes import run_with

MUCH = 4096  # bytes read at once; a good part of a millisecond to answer
# Before a client is known it gets little.
MAX_BYTES_AT_FIRST, MAX_ITEMS_AT_FIRST = 1024, 16
MAX_STRANGERS = 2048  # twice what the system hands over at once, so that a crowd that says hello at once gets in
MAX_HELD_BYTES = 2**20  # of answers that wait for the disk, and of what they answer, as `MAX_HELD`
# Above this nothing is read from a client that does not take its answers. What it has more than the second, although
# it is not read from, ends the connection.
HIGH_WATER, MAX_UNSENT = 2**14, 2**22
FIRST_BYTES = b"\x93\x94\xdc\xdd"  # of a message: those of an array of three or four, or of one of any length

_NOBODY = asyncio.BufferedProtocol()


class Connections(dict["Connection", None]):
    """The connections that are open, in the order in which they were made.

    ending: the daemon is about to: nobody is let in any more.
    strangers: those that have to show a token, and did not yet; who came first stands first.
    watch: those in a state that may not last; turns: those that wait to execute something heavy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ending = False
        self.strangers: dict[Connection, None] = {}
        self.emptied = asyncio.Event()
        self.watch = Watch()
        self.turns = HeavyTurns()

    def add(self, connection: Connection) -> None:
        self[connection] = None

    def remove(self, connection: Connection) -> None:
        del self[connection]
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

    def __init__(self, service: Service, connections: Connections, intake: Intake, call_soon: CallSoon) -> None:
        self._service = service
        self._connections = connections
        self._watch = connections.watch
        self._budget = service.budget
        self._intake = intake
        self._call_soon = call_soon
        self.caller = Caller(service)
        self._stranger = self.caller.role is Role.NOBODY
        self._bytes_at_first = 0  # received from a stranger
        self._rest = bytearray()  # what came and is not answered
        # Of the message that this begins with, where not all of it has come. Nothing of a stranger's is decoded before.
        self._extent = Extent(MAX_ITEMS_AT_FIRST) if self._stranger else None
        self._held_of_budget = 0
        self._kept_by_transport = 0  # bytes, besides those that wait to be sent
        self._since = timeouts.Since()
        self._unsent = 0  # bytes that were at the last look
        self._refused = False  # its hello was: nothing more is executed
        self.stopped = False  # answering what came has to wait, or to end
        self._draining = False  # the daemon is about to end
        self._held_back = False  # too many answers wait for the disk: do nothing more for now
        self._has_turn = False  # to do one thing that takes a while
        self._short = False  # the budget is used up, also by this one: do nothing more for now
        self._closing = False  # once nothing waits any more
        self._eof = False  # the client sends no more
        self._transport: asyncio.Transport
        self.responses: Responses

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        service = self._service
        self._transport = cast(asyncio.Transport, transport)
        self.caller.peer = _address(transport.get_extra_info("peername"))
        self._kept_by_transport = transport.get_extra_info("memory", 0)
        self.responses = Responses(service, self._transport)
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

    def connection_lost(self, error: Exception | None) -> None:
        self._intake.forget(self)
        if self in self._connections:
            self._note_loss(error)
            self._connections.remove(self)
            self._budget.forget(self)
            self._service.connections -= 1
            self.caller.leave()
        # What leads back here would keep all of this, and what TLS has for it, until the collector comes.
        self.responses.then = None
        self._transport.set_protocol(_NOBODY)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._intake.room()

    def buffer_updated(self, size: int) -> None:
        if size < MUCH and not (self._rest or self.stopped or self._stranger) and self._intake.add(self, size):
            return
        data = self._intake.read(size)
        self._intake.answer()  # what came before this, and may have been the last
        if self._closing or self._transport.is_closing():
            return
        if size == READ_SIZE:
            self._transport.pause_reading()
            self._call_soon(self._read_on)
        if self._stranger:
            self._take_from_stranger(data)
        elif size < MUCH or self._connections.turns.take(self._call_soon):
            self._take(data)
        else:
            self._rest += data
            self._wait_for_turn()
            self._count_held()

    def eof_received(self) -> bool:
        """The answers under way still go out, but with TLS, where one side cannot end alone."""
        self._intake.answer()
        self._eof = True
        self.responses.then = self._after_waiting
        return self._owes_answers() and self._transport.can_write_eof()

    def pause_writing(self) -> None:
        """Answer nothing more for now: the client reads too slowly."""
        self.responses.is_paused = self.stopped = True
        self._transport.pause_reading()
        self._since.paused = self._watch.add(self)
        self._unsent = 0
        self._count_held()

    def resume_writing(self) -> None:
        self.responses.resume()
        self._count_held()
        if self._closing:
            self._after_waiting()
        else:
            self._go_on()

    # Called by the listener

    def drain(self) -> None:
        """From now on every request is answered `shutting_down`."""
        self._draining = True
        self.caller.allowed = {}

    def renew(self) -> None:
        """The tokens have changed: whoever's is gone, or does not open its namespace any more, has to go."""
        if not (self._draining or self._closing or self.caller.renew()):
            self._service.note_dropped(Dropped.REVOKED)
            self.close()

    def close(self) -> None:
        """What was answered, or is held, still goes out, if the client reads."""
        self._intake.answer()
        self._closing = True
        self._since.closing = self._watch.add(self)
        self.responses.then = self._after_waiting
        if self.responses.is_owing:
            self._transport.pause_reading()
        else:
            self._transport.close()

    def abort(self) -> None:
        """At once, whatever waits to be sent: a `close` waits for a client that does not read."""
        self._transport.abort()

    # From here on the way of a request

    def _take_from_stranger(self, data: memoryview) -> None:
        """So much of it is heard; the rest only where that made him known."""
        room = MAX_BYTES_AT_FIRST - self._bytes_at_first
        self._bytes_at_first += len(data)
        self._take(data[:room])
        if len(data) <= room or self._closing:
            return
        if self._stranger:
            self._drop(Garbage(f"more than {MAX_BYTES_AT_FIRST} bytes before a hello"))
        else:
            self._take(data[room:])

    def _take(self, data: memoryview) -> None:
        """Behind what came before."""
        if not (self._rest or self.stopped or self._stranger):
            self._intake.answer_one(self, data)
            return
        self._rest += data
        if not self.stopped and self._has_whole():
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
        data, self._rest = self._rest, bytearray()
        self._intake.answer_one(self, data)

    # Called by the intake

    def answered(self) -> None:
        """All that has come is, or waits for the disk."""
        if self._refused:
            self.close()
            return
        responses = self.responses
        if self._held_of_budget or responses.held_bytes > OWN or responses.held > MAX_HELD:
            self._mind_what_is_held()

    def broke_off(self, rest: memoryview | bytearray, trouble: Exception | None) -> None:
        """That much of it is not answered; `trouble`: what came out of decoding it, if that is why."""
        if trouble is not None and not isinstance(trouble, Incomplete):
            foreign = instead_of_messagepack(rest) if self.responses.untouched() else None
            self._drop(trouble if foreign is None else Garbage(foreign))
        elif self._refused:
            self.close()
        else:
            self._keep(rest, is_cut=trouble is not None)
            self._mind_what_is_held()

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

    def run(self, head: bytes, command: Command | None, message: Any) -> bool:
        """Returns whether it was, or has to wait for its turn."""
        try:
            params = None if command is None else message[3]
            if command is None or type(params) is not tuple:
                reply = self._run_unusual(message)
            elif len(params) == command.arity:
                self._service.calls[message[2]] += 1
                reply = command.run(self.caller, *params)
            elif len(params) == command.arity + 1 and type(params[-1]) is dict:
                self._service.calls[message[2]] += 1
                reply = run_with(self.caller, command, params[:-1], params[-1])
            else:
                reply = self._run_unusual(message)
        except Garbage:
            raise
        except NotYet:
            return False
        except Exception as error:
            self.responses.refuse(head, error)
        else:
            self.responses.add(head, reply)
        return True

    def _run_unusual(self, message: Any) -> Reply:
        """What is not as it mostly is: a hello, something heavy, or an error, which is raised."""
        if not isinstance(message, tuple):
            raise Garbage("a message is no array")
        _, _, name, params = message
        if self._draining:
            raise ShuttingDown("the server is about to end")
        command = find_command(self.caller, name)
        if command.run is hello:
            return self._hello(command, params)
        params, options = check_params(command, params)
        if command.heavy:
            if not (self._has_turn or self._connections.turns.take(self._call_soon)):
                self._wait_for_turn()
                raise NotYet
            self._has_turn = False
            self.stopped = True
            self._transport.pause_reading()
            self._call_soon(self._go_on)
        self._service.calls[name] += 1
        reply = run_with(self.caller, command, params, options) if options else command.run(self.caller, *params)
        if command.heavy and not command.writes and self._budget.used_up and _size(reply) > OWN:
            raise Unavailable("too much waits for clients that do not take it")
        return reply

    def _hello(self, command: Command, params: Any) -> Reply:
        """After one that is refused nothing more is executed, or it would land in the wrong namespace."""
        try:
            if not self.responses.untouched():
                raise BadRequest("hello must come before everything else")
            self._service.calls[b"hello"] += 1
            params, options = check_params(command, params)
            reply = run_with(self.caller, command, params, options)
        except StateStoreError:
            self._refused = self.stopped = True
            raise
        self._stranger = False
        self._connections.strangers.pop(self, None)
        self._extent = None
        return reply

    def _drop(self, error: Exception) -> None:
        """For what it sent; what came before that is still answered."""
        self._service.note_dropped(Dropped.GARBAGE, str(error) or type(error).__name__)
        self._rest.clear()
        self._extent = None
        self._count_held()
        self.close()

    def _note_loss(self, error: Exception | None) -> None:
        """Count a connection that the system or TLS has given up; one that the client has ended or reset is no drop."""
        if isinstance(error, ssl.SSLError):
            self._service.note_dropped(Dropped.GARBAGE, f"TLS has failed: {reason_of(error)}")
        elif isinstance(error, OSError) and error.errno in GIVEN_UP:
            self._service.note_dropped(Dropped.NOT_READING if self._has_answers_left() else Dropped.DEAD_PEER)

    def _has_answers_left(self) -> bool:
        """Whether the client has not taken all that it was answered."""
        sock = self._transport.get_extra_info("socket")
        return self.responses.is_paused or (sock is not None and unacknowledged(sock) > 0)

    def _give_up(self, why: Dropped) -> None:
        """Whatever waits to be sent."""
        self._service.note_dropped(why)
        self.abort()

    def _go_on(self) -> None:
        """With what came before we stopped; on a connection that is being closed nothing more is executed."""
        if self._must_wait():
            return
        self.stopped = False
        if self._rest and self._has_whole():
            self._answer_rest()
        if self._eof and not self._owes_answers():
            self._transport.close()
        self._read_on()

    def _read_on(self) -> None:
        if not (self._eof or self.stopped or self._must_wait()):
            self._transport.resume_reading()

    def _after_waiting(self) -> None:
        """Some answers that had to wait have left."""
        if self._held_of_budget:
            self._count_held()
        if self._closing or (self._eof and not self._held_back):
            if not self._owes_answers():
                self._transport.close()
        elif self._held_back:
            self._held_back = False
            self._go_on()

    def _owes_answers(self) -> bool:
        """Whether some wait for the disk or for the client, or requests that came wait for their turn."""
        return self.responses.is_owing or (self.stopped and not self._closing and len(self._rest) > 0)

    def _must_wait(self) -> bool:
        return (
            self.responses.is_paused or self._held_back or self._short or self._closing or self._transport.is_closing()
        )

    # What it makes the daemon keep, and for how long

    def _count_held(self) -> None:
        """In the budget of all."""
        held = len(self._rest) + self.responses.held_bytes
        if self.responses.is_paused:
            held += self.responses.unsent_memory + self._kept_by_transport
        if held != self._held_of_budget:
            self._held_of_budget = held
            self.responses.then = self._after_waiting
            self._budget.hold(self, held)
        if self._short and held <= OWN:
            self.resume()

    def _mind_what_is_held(self) -> None:
        """Where it is too much, for one or for all together, this one has to wait."""
        self._count_held()
        responses = self.responses
        if responses.held > MAX_HELD or responses.held_bytes > MAX_HELD_BYTES:
            self._held_back = self.stopped = True
            responses.then = self._after_waiting
            self._transport.pause_reading()
        elif self._held_of_budget > OWN and self._budget.used_up:
            self._short = self.stopped = True
            self._transport.pause_reading()
            self._budget.wait(self)

    def _wait_for_turn(self) -> None:
        self.stopped = True
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
        return self._stranger or self._extent is not None or self.responses.is_paused or self._closing

    def _overdue(self, now: int) -> Dropped | None:
        since = self._since
        unsent = self.responses.unsent
        if unsent < self._unsent:
            since.paused = since.closing = now  # it reads
        self._unsent = unsent
        if self.responses.is_paused and (unsent > MAX_UNSENT or now - since.paused > timeouts.READING):
            return Dropped.NOT_READING
        if self._closing and not self.responses.waiting and now - since.closing > timeouts.CLOSING:
            return Dropped.NOT_READING
        if self._stranger and now - since.connected > timeouts.HELLO:
            return Dropped.NO_HELLO
        if self._must_wait():
            since.message = now  # it is not read from
        elif self._rest and self._extent is not None and now - since.message > timeouts.REST_OF_MESSAGE:
            return Dropped.UNFINISHED
        return None


def _size(reply: Reply) -> int:
    """Return the size of a packed answer, also of one that is held until writes that it shows are durable."""
    packed = reply.packed if isinstance(reply, Held) else reply
    return len(packed) if isinstance(packed, bytes) else 0


def _address(peername: object) -> str:
    """Of a TCP connection; empty for a unix socket's."""
    return str(peername[0]) if isinstance(peername, tuple) else ""
