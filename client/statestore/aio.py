"""`AsyncRemoteStorage`: as `RemoteStorage`, for coroutines."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from statestore.address import Address
from statestore.aio_connection import AsyncConnection, connect
from statestore.base import Entry, Pair, Sender, Swap, Triple
from statestore.calls import Call
from statestore.copies import Copyable
from statestore.deadline import Deadline
from statestore.dial import Candidates
from statestore.errors import BadRequest, Unavailable
from statestore.forks import detect_fork, reset_after_fork
from statestore.protocol import ConnectionLost
from statestore.results import counted, counted_by_state
from statestore.settings import Settings
from statestore.store import Store
from statestore.tls import client_context

if TYPE_CHECKING:
    import os
    import ssl

WRITES_AT_ONCE = 1000  # a session remembers 1,024 numbers; the rest is for those that are answered out of turn


class AsyncRemoteStorage(Copyable):
    """The states that the daemon at `address` holds, for any number of coroutines of one event loop.

    The settings, the methods and their errors are those of `RemoteStorage`, but for `pool`: all calls share one
    connection, made when it is first needed and again when it is lost. A call may be cancelled at any moment; that
    disturbs no other. A write that was cancelled is not repeated; it was applied, or may be until its write deadline.

    It belongs to the loop in which it is used first, until `close` or the end of that loop: in another one meanwhile
    every method raises `BadRequest`. The child of a fork makes a connection of its own, in a loop of its own. It must
    not run its parent's loop, with which it shares sockets and events.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        namespace: str | None = None,
        token: str | None = None,
        tls: "bool | str | os.PathLike[str] | ssl.SSLContext | None" = None,
        tls_cert: "str | os.PathLike[str] | None" = None,
        tls_key: "str | os.PathLike[str] | None" = None,
        deadline: float | None = None,
        write_deadline: float | None = None,
        store_id: str | None = None,
    ) -> None:
        """Raises ValueError for settings that cannot work; asks nobody yet."""
        self._set_up(
            Settings.gather(
                address=address,
                namespace=namespace,
                token=token,
                tls=tls,
                tls_cert=tls_cert,
                tls_key=tls_key,
                deadline=deadline,
                write_deadline=write_deadline,
                store_id=store_id,
            )
        )

    def _set_up(self, settings: Settings) -> None:
        self._settings = settings
        self._tls = client_context(settings.tls, settings.tls_cert, settings.tls_key)
        self._store = Store(settings.where, settings.store_id)
        self._closings = 0
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that this belongs to
        self._connection: AsyncConnection | None = None
        self._retired: list[AsyncConnection] = []  # that were replaced; calls may be under way on them
        self._attempt: asyncio.Task[AsyncConnection | Exception] | None = None  # to connect
        self._room = asyncio.Semaphore(WRITES_AT_ONCE)
        reset_after_fork(self)

    async def get(self, module: str, sender: Sender) -> str:
        self._store.limits.check_key(module, sender)
        state: str = await self._read("get", module, sender)
        return state

    async def set(self, module: str, sender: Sender, state: str) -> None:
        self._store.limits.check_key(module, sender)
        self._store.limits.check_state(state)
        await self._write("set", module, sender, state)

    async def set_all(self, sender: Sender, state: str) -> int:
        self._store.limits.check_sender(sender)
        self._store.limits.check_state(state)
        changed: int = await self._write("set_all", sender, state)
        return changed

    async def compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> Swap:
        self._store.limits.check_key(module, sender)
        self._store.limits.check_state(expected)
        self._store.limits.check_state(state)
        return Swap(*await self._write("compare_and_set", module, sender, expected, state))

    async def get_many(self, pairs: Iterable[Pair]) -> list[str]:
        """At most 1,000 pairs, where the daemon's settings do not say otherwise (`info`)."""
        states: list[str] = await self._read("get_many", self._store.limits.check_pairs(pairs))
        return states

    async def set_many(self, triples: Iterable[Triple]) -> None:
        """At most 1,000 triples, where the daemon's settings do not say otherwise (`info`)."""
        await self._write("set_many", self._store.limits.check_triples(triples))

    def scan(self, module: str | None = None, prefix: str = "", state: str | None = None) -> AsyncIterator[Entry]:
        """Fetched page by page: each page has its own deadline, and a restart of the daemon in between does no harm."""
        self._store.limits.check_filter(module, prefix, state)
        return self._scan(module, prefix, state)

    async def count(self, module: str | None = None, state: str | None = None) -> int:
        self._store.limits.check_filter(module, "", state)
        count = counted(await self._read("count", module, state), state)
        return len([entry async for entry in self.scan(module, state=state)]) if count is None else count

    async def counts(self) -> dict[tuple[str, str], int]:
        """Exact; slow where there are over a thousand pairs, for then every entry is looked at."""
        counts = counted_by_state(await self._read("count", None, None))
        return dict(Counter([(entry.module, entry.state) async for entry in self.scan()])) if counts is None else counts

    async def clear(self) -> None:
        """Forget all states of this namespace. Raises Forbidden unless the daemon was started with --allow-clear."""
        await self._write("clear")

    async def info(self) -> dict[str, Any]:
        """What the daemon says of itself: version, store_id, limits, counters."""
        answer: dict[str, Any] = await self._read("info")
        return answer

    async def ping(self) -> None:
        """Returns when the daemon has answered."""
        await self._read("ping")

    async def close(self) -> None:
        """Give the connection back; a later call makes a new one.

        Calls under way raise `Unavailable`, or `Uncertain` for a write that was sent.
        """
        self._enter_loop()
        self._closings += 1
        attempt, connections = self._attempt, self._retired
        if self._connection is not None:
            connections = [*connections, self._connection]
        self._leave_loop()
        if attempt is not None:
            attempt.cancel()
            await asyncio.wait([attempt])
        for connection in connections:
            connection.close()
        for connection in connections:
            await connection.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncRemoteStorage {self._settings}>"

    async def _scan(self, module: str | None, prefix: str, state: str | None) -> AsyncIterator[Entry]:
        cursor = None
        while True:
            cursor, entries = await self._read("scan", cursor, module, prefix, state)
            for entry in entries:
                yield Entry(*entry)
            if cursor is None:
                return

    async def _read(self, method: str, *params: Any) -> Any:
        return await self._call(method, params, Deadline(self._settings.deadline))

    async def _write(self, method: str, *params: Any) -> Any:
        """No more of them at once than a session bears; the others wait here, in their order."""
        self._enter_loop()
        deadline, room = Deadline(self._settings.write_deadline), self._room
        if room.locked():
            try:
                await asyncio.wait_for(room.acquire(), deadline.left())
            except TimeoutError:
                waited = f"{WRITES_AT_ONCE} other writes had no answer for {deadline.seconds:g} s"
                raise Unavailable(f"{self._store.where}: {waited}") from None
        else:
            await room.acquire()
        try:
            if room is not self._room:
                raise Unavailable(f"{self._store.where}: the client was closed")
            return await self._call(method, params, deadline)
        finally:
            room.release()

    async def _call(self, method: str, params: tuple[Any, ...], deadline: Deadline) -> Any:
        """Ask until there is an answer, or the deadline passes."""
        self._enter_loop()
        closings = self._closings
        outdated: AsyncConnection | None = None
        call = Call(self._store, method, params, deadline)
        try:
            while True:
                while pause := call.pause():  # noqa: ASYNC110  # how long is known
                    await asyncio.sleep(pause)
                try:
                    if closings != self._closings:
                        raise ConnectionLost("the client was closed", sent=False)
                    connection = await self._connection_for(call, outdated)
                    refusal = call.refusal(connection.welcome)
                    if refusal is None:
                        response = await connection.call(method, call.parameters(connection.welcome), call.patience())
                    else:
                        response = refusal
                except Exception as failure:
                    if closings != self._closings:
                        raise call.closed(failure) from None
                    call.failed(failure)
                else:
                    if call.answered(response):
                        return response.result
                    if refusal is None and response.error is not None and connection is self._connection:
                        outdated = connection if self._store.renewal.is_due_after(response.error) else None
        finally:
            self._store.session.unanswered.pop(call, None)
            if (outage := self._store.outage) is not None:
                outage.left_by(call)

    # The one connection.

    async def _connection_for(self, call: Call, outdated: AsyncConnection | None) -> AsyncConnection:
        """Return the connection, or a new one if there is none, it is `outdated`, or this call needs another."""
        connection = self._connection
        if connection is None or connection.lost is not None:
            return await self._connected(call)
        if connection is not outdated and not call.needs_another(connection.welcome):
            return connection
        try:
            return await self._connected(call)
        except Exception as failure:
            if connection.lost is None and call.goes_on_by(connection.welcome, failure):
                return connection
            raise

    async def _connected(self, call: Call) -> AsyncConnection:
        """One attempt makes the connection for all who wait for it; it goes on when one of them is cancelled."""
        if self._attempt is None:
            call.check_turn()
            self._attempt = asyncio.create_task(self._connect())
        attempt = self._attempt
        await asyncio.wait([attempt], timeout=call.deadline.left())
        if not attempt.done():
            raise TimeoutError(f"no connection within {call.deadline.seconds:g} s")
        outcome = ConnectionLost("it was closed", sent=False) if attempt.cancelled() else attempt.result()
        if isinstance(outcome, Exception):
            raise outcome.with_traceback(None)  # it is raised for each who waits
        return outcome

    async def _connect(self) -> AsyncConnection | Exception:
        """Returns what went wrong: nobody may be left to raise it for."""
        try:
            # A little less than a call may take, so that who waits for it learns what came of it.
            patience = Deadline(0.9 * min(self._settings.deadline, self._settings.write_deadline))
            connection = await self._try_all(patience)
            replaced, self._connection = self._connection, connection
            if replaced is not None:
                replaced.retire()
                self._retired = [each for each in (*self._retired, replaced) if each.lost is None]
            return connection
        except Exception as failure:
            return failure
        finally:
            if self._attempt is asyncio.current_task():  # else the client was closed, and another may be under way
                self._attempt = None

    async def _try_all(self, deadline: Deadline) -> AsyncConnection:
        """A connection to the first address that gives one, and to the right store."""
        candidates = Candidates(self._settings.address, self._store.address, deadline)
        for address, share in candidates:
            try:
                return await self._greet(address, share)
            except Exception as failure:
                if not candidates.may_go_on(address, failure):
                    raise
        raise candidates.exhausted()

    async def _greet(self, address: Address, deadline: Deadline) -> AsyncConnection:
        namespace, token = self._settings.namespace, self._settings.token
        while True:
            session = self._store.session.id
            connection = await connect(address, namespace, token, deadline, session, self._tls)
            try:
                if self._store.accepts(address, connection.welcome, session):
                    return connection
            except BaseException:
                connection.close()
                raise
            connection.close()

    def _enter_loop(self) -> None:
        detect_fork()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise BadRequest("this AsyncRemoteStorage is in use in another event loop: make one for each loop")
            if self._loop is not None:
                self._store.session.unanswered.clear()  # calls of a closed loop can neither send any more nor end
            self._leave_loop()
            self._loop = loop

    def _leave_loop(self) -> None:
        self._loop = self._connection = self._attempt = None
        self._retired = []
        self._room = asyncio.Semaphore(WRITES_AT_ONCE)

    def after_fork_in_child(self) -> None:
        self._leave_loop()  # that is the parent's, with all that is in it
