"""One connection for any number of coroutines at once, on asyncio, and how it is made."""

import asyncio
import concurrent.futures
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

from statestore.address import Address, TcpAddress
from statestore.connection import HELLO_PATIENCE, silence
from statestore.deadline import Deadline
from statestore.dial import is_interpreter_ending, open_sockets, targets_of
from statestore.forks import Descriptor, ProcessBound, detect_fork, reset_after_fork
from statestore.protocol import READ_SIZE, ClientProtocol, ConnectionLost, NotSent, Response, Welcome, WrongServer
from statestore.tls import Tls

if TYPE_CHECKING:
    import ssl

WRITE_SIZE = 65536  # bytes to hand to the transport at once; with more than that it asks for a pause
T = TypeVar("T")


class AsyncConnection(asyncio.Protocol, ProcessBound):
    """Greeted and ready when `connect` returns it. Belongs to the loop in which it was made.

    All that is asked in one turn of the loop leaves in one write. An answer finds its caller by its id; that to a
    caller who was cancelled is dropped. While the transport asks for a pause, requests wait, and their deadlines run.
    """

    welcome: Welcome
    has_sockets = True

    def __init__(self, tls: Tls | None) -> None:
        self.lost: Exception | None = None  # why it cannot be used any more
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._descriptor: Descriptor | None = None  # of the transport's socket
        self._core = ClientProtocol()
        self._tls = tls
        self._agreed = asyncio.Event()  # the TLS handshake is over
        self._asked: dict[int, _Asked] = {}  # what is not answered yet, by msgid
        self._unsent: dict[int, bytes] = {}  # of these, what the transport does not have yet
        self._answers = 0  # so many came
        self._is_paused = False
        self._is_flush_due = False
        self._is_retired = False
        self._has_hung_up: Callable[[], object] = bool
        self._closed = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None  # one for all calls: when the first deadline passes
        self._alarm_at = _NEVER

    async def agree(self, deadline: Deadline) -> None:
        """Waits for the TLS handshake, where there is to be one. Raises ConnectionLost."""
        if self._tls is None:
            return
        try:
            async with asyncio.timeout(deadline.left()):
                await self._agreed.wait()
        except TimeoutError as late:
            self._lose(late)
        if self.lost is not None:
            raise ConnectionLost(f"{_reason(self.lost)}: does it speak TLS?", sent=False)

    async def hello(self, namespace: str, token: str | None, session: int | None, deadline: Deadline) -> Response:
        """Raises ConnectionLost."""
        try:
            return await self._ask(self._core.hello(namespace, token, session), deadline)
        except ConnectionLost as lost:
            # In TLS 1.3 a client is done before the server has looked for its certificate, and some just hang up then.
            hint = "" if self._tls is None else ": does it ask for a client's certificate (tls_cert)?"
            raise ConnectionLost(f"{lost}{hint}", sent=False) from None

    async def call(self, method: str, params: tuple[Any, ...], deadline: Deadline) -> Response:
        """Send a request and return the response. May be cancelled at any moment.

        Raises NotSent if the connection broke, or the deadline passed, before it was sent, else ConnectionLost; TooLong
        for what no message can hold.
        """
        return await self._ask(self._core.request(method, params), deadline)

    def close(self) -> None:
        """Close it at once; what is under way raises ConnectionLost."""
        self._lose(ConnectionLost("it was closed", sent=False))

    def retire(self) -> None:
        """Close it as soon as nothing is under way on it: another has taken its place.

        What was asked on it is answered on it. A write that was broken off here would be in doubt.
        """
        self._is_retired = True
        self._close_if_done()

    async def wait_closed(self) -> None:
        """Until the socket is closed, which after `close` takes a turn of the loop or two."""
        if self._transport is not None:
            await self._closed.wait()

    def after_fork_in_child(self) -> None:
        """Gives back the child's copy of the socket, and touches nothing that it shares with the parent.

        The transport would take the socket out of the loop's selector, which is the parent's too.
        """
        self.lost = ConnectionLost("it is the parent's", sent=False)
        if self._descriptor is not None and not self._closed.is_set():
            self._descriptor.silence()

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's
        sock = transport.get_extra_info("socket")
        self._descriptor = Descriptor(sock.fileno())
        if sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._has_hung_up = _hang_up_detector(sock.fileno())
        reset_after_fork(self)
        if self._tls is not None:
            self._write(self._tls.handshake(b""))

    def data_received(self, data: bytes) -> None:
        detect_fork()
        if self.lost is not None:
            return
        try:
            if self._tls is not None:
                data = self._decrypt(self._tls, data)
            for start in range(0, len(data), READ_SIZE):
                self._core.feed(data[start : start + READ_SIZE])
                while (response := self._core.next_response()) is not None:
                    self._answer(response)
        except Exception as error:  # whatever it is, nothing that comes after it can be trusted
            self._lose(error)

    def eof_received(self) -> None:
        """What is sent from now on would be lost; `connection_lost` is called some iterations later."""
        self._lose(ConnectionLost(_HUNG_UP, sent=False))

    def connection_lost(self, error: Exception | None) -> None:
        self._closed.set()
        self._lose(error or ConnectionLost(_HUNG_UP, sent=False))

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._flush()

    # Asking and answering.

    async def _ask(self, request: tuple[int, bytes], deadline: Deadline) -> Response:
        if self.lost is not None:
            raise NotSent(_reason(self.lost))
        msgid, data = request
        outcome: _Outcome = self._loop.create_future()
        self._asked[msgid] = (outcome, deadline, self._answers)
        self._unsent[msgid] = data
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)
        if deadline.at < self._alarm_at:
            self._set_alarm(deadline)
        try:
            response = await outcome
        except asyncio.CancelledError:
            if self._unsent.pop(msgid, None) is not None:
                self._asked.pop(msgid, None)  # else it waits for the answer, to drop it
            self._close_if_done()
            raise
        if isinstance(response, ConnectionLost):
            raise response
        return response

    def _flush(self) -> None:
        """Send what was asked in this iteration of the loop.

        The loop may have been blocked, and the process stopped: the server may have hung up meanwhile, and deadlines
        may have passed. What is given back here was not sent, and is not in doubt.
        """
        self._is_flush_due = False
        if self._unsent and self._has_hung_up():  # 0.4 µs
            self._give_back(_HUNG_UP)
        if self._alarm_at <= time.monotonic():
            self._give_back_late()
        while self._unsent and not self._is_paused:
            batch = self._next_batch()
            self._write(batch if self._tls is None else self._tls.encrypt(batch))

    def _decrypt(self, tls: Tls, data: bytes) -> bytes:
        has_agreed = tls.is_ready
        if has_agreed:
            return tls.decrypt(data)
        self._write(tls.handshake(data))
        if tls.is_ready:
            self._agreed.set()
        return b""

    def _write(self, data: bytes) -> None:
        detect_fork()  # a child in whose copy of the loop this was due must not send what its parent sends
        if self.lost is None and self._transport is not None:
            self._transport.write(data)

    def _give_back(self, why: str) -> None:
        for msgid in list(self._unsent):
            self._give_up(msgid, self._asked[msgid][0], why)

    def _give_back_late(self) -> None:
        now = time.monotonic()
        for msgid in list(self._unsent):
            outcome, deadline, _ = self._asked[msgid]
            if deadline.at <= now:
                self._give_up(msgid, outcome, _late(deadline))

    def _next_batch(self) -> bytes:
        size, msgids = 0, []
        for msgid, data in self._unsent.items():
            msgids.append(msgid)
            size += len(data)
            if size >= WRITE_SIZE:
                break
        return b"".join(map(self._unsent.pop, msgids))

    def _answer(self, response: Response) -> None:
        try:
            outcome, _, _ = self._asked.pop(response.msgid)
        except KeyError:
            raise WrongServer(f"an answer came to request {response.msgid}, which nobody made") from None
        self._answers += 1
        if not outcome.done():
            outcome.set_result(response)
        if self._is_retired:
            self._close_if_done()

    # Endings.

    def _set_alarm(self, deadline: Deadline) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline.at
        self._alarm = self._loop.call_later(deadline.at - time.monotonic(), self._end_late_calls)

    def _end_late_calls(self) -> None:
        now, self._alarm_at = time.monotonic(), _NEVER
        waiting = []
        for msgid, (outcome, deadline, answers) in list(self._asked.items()):
            if outcome.done():
                continue
            if deadline.at > now:
                waiting.append(deadline)
                continue
            was_sent = msgid not in self._unsent
            self._give_up(msgid, outcome, _late(deadline))
            if answers == self._answers and (was_sent or self._is_paused):  # no other answer came
                self._lose(TimeoutError(_late(deadline)))
                return
        if waiting:
            self._set_alarm(min(waiting, key=attrgetter("at")))
        self._close_if_done()

    def _close_if_done(self) -> None:
        """If it is retired, and nobody waits for an answer any more."""
        if self._is_retired and all(outcome.done() for outcome, _, _ in self._asked.values()):
            self.close()

    def _lose(self, why: Exception) -> None:
        detect_fork()
        if self.lost is not None:
            return
        self.lost = why
        self._agreed.set()
        if self._alarm is not None:
            self._alarm.cancel()
        if self._transport is not None:
            self._transport.abort()  # `close` would wait for a peer that does not read
        for msgid, (outcome, _, _) in list(self._asked.items()):
            if not outcome.done():
                self._give_up(msgid, outcome, _reason(why))
        self._asked.clear()
        self._unsent.clear()

    def _give_up(self, msgid: int, outcome: "_Outcome", why: str) -> None:
        was_sent = self._unsent.pop(msgid, None) is None
        if not was_sent:
            del self._asked[msgid]
        if not outcome.done():
            outcome.set_result(ConnectionLost(why, sent=True) if was_sent else NotSent(why))


# Never holds an exception: one that nobody came back for would be reported to the loop's handler.
_Outcome = asyncio.Future[Response | ConnectionLost]
_Asked = tuple[_Outcome, Deadline, int]  # the number of answers that had come when it was asked
_NEVER = float("inf")
_HUNG_UP = "the server closed the connection"


def _late(deadline: Deadline) -> str:
    return f"no answer within {deadline.seconds:g} s"


def _reason(why: Exception) -> str:
    if isinstance(why, OSError) and why.errno:
        return os.strerror(why.errno).lower()  # asyncio's own words are about the call that failed
    return str(getattr(why, "detail", why)) or "timed out"


if hasattr(select, "poll"):

    def _hang_up_detector(fd: int) -> Callable[[], object]:
        """Return a function that tells whether the peer has closed the connection, though the loop has not seen it."""
        poller = select.poll()
        poller.register(fd, getattr(select, "POLLRDHUP", 0))  # POLLHUP and POLLERR are always told
        return lambda: poller.poll(0)
else:

    def _hang_up_detector(fd: int) -> Callable[[], object]:  # noqa: ARG001
        return bool


async def connect(
    address: Address,
    namespace: str,
    token: str | None,
    deadline: Deadline,
    session: int | None = None,
    tls: "ssl.SSLContext | None" = None,
) -> AsyncConnection:
    """Raises ConnectionLost, WrongServer, or what the server answers to `hello`."""
    connection = await _open(address, deadline, tls)
    try:
        await connection.agree(deadline.within(HELLO_PATIENCE))
        response = await connection.hello(namespace, token, session, deadline.within(HELLO_PATIENCE))
        if response.error is not None:
            raise response.error
        connection.welcome = Welcome.parse(response.result)
        connection.welcome.check_version()
    except ConnectionLost as failure:
        connection.close()  # it is still open if `hello` could not be sent
        if isinstance(connection.lost, WrongServer):
            raise connection.lost from None
        if isinstance(connection.lost, TimeoutError) and not deadline.passed:
            raise await _in_thread(lambda: silence(address, deadline)) from None
        raise ConnectionLost(str(failure), sent=False) from None
    except BaseException:
        connection.close()
        raise
    return connection


async def _open(address: Address, deadline: Deadline, tls: "ssl.SSLContext | None") -> AsyncConnection:
    """Tries every address that a name stands for. Raises ConnectionLost with what the last one said."""
    failure = ConnectionLost("the name stands for no address", sent=False)
    if isinstance(address, TcpAddress) and address.ip is None:
        targets = await _in_thread(lambda: list(targets_of(address, deadline)))
    else:
        targets = list(targets_of(address, deadline))
    for number, target in enumerate(targets):
        encrypted = Tls(tls, address.host) if tls is not None and isinstance(address, TcpAddress) else None
        connection = AsyncConnection(encrypted)
        try:
            async with asyncio.timeout(deadline.left() / (len(targets) - number)):  # each its share
                await _open_target(connection, *target)
            return connection
        except OSError as error:  # TimeoutError is one
            failure = ConnectionLost(_reason(error), sent=False)
    raise failure


async def _open_target(connection: AsyncConnection, family: int, target: Any) -> None:
    loop = asyncio.get_running_loop()
    sock = open_sockets.new(family)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, target)
        await loop.create_connection(lambda: connection, sock=sock)
    except BaseException:
        connection.close()
        sock.close()
        raise
    open_sockets.forget(sock)  # from now on the connection sees to it


async def _in_thread(function: Callable[[], T]) -> T:
    """As `run_in_executor`, but the end of the loop does not wait for it: a look-up may hang."""
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()  # a caller who goes away does not change what the thread may do

    def run() -> None:
        try:
            outcome.set_result(function())
        except Exception as error:
            outcome.set_exception(error)

    try:
        threading.Thread(target=run, name="statestore-connect", daemon=True).start()
    except RuntimeError as error:
        if not is_interpreter_ending(error):
            raise
        run()
    return await asyncio.wrap_future(outcome)
