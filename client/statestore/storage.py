"""`RemoteStorage`: a state storage whose states live in a daemon."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from statestore.address import Address
from statestore.base import Entry, Pair, Sender, StateStorage, Swap, Triple
from statestore.calls import FIRST_PATIENCE, Call
from statestore.connection import Connection
from statestore.copies import Copyable
from statestore.deadline import Deadline
from statestore.dial import TICK, Candidates
from statestore.pool import Place, Pool
from statestore.protocol import ConnectionLost, Response
from statestore.results import counted, counted_by_state, fits
from statestore.settings import Settings
from statestore.store import Store
from statestore.tls import client_context

if TYPE_CHECKING:
    import os
    import ssl


class RemoteStorage(Copyable, StateStorage):
    """The states that the daemon at `address` holds, for any number of processes.

    address: `host[:port]`, `[v6]:port` or `unix:/path`; several with commas are tried in turn.
    namespace: applications with different ones do not see each other's states.
    token: the daemon's, where it asks for one.
    tls: True to encrypt, and to believe the authorities that the system trusts; the path of a file with those to
        believe instead; or an `ssl.SSLContext`. The server's name is checked. A unix socket is never encrypted.
    tls_cert, tls_key: the paths of our own certificate and its key, for a daemon that asks for them.
    deadline: seconds that one call may take, whatever happens; `write_deadline` for those that write.
    pool: connections at most.
    store_id: the store that must answer; without it, the first that answers.

    What is not given is taken from the environment: STATESTORE_ADDRESS, STATESTORE_NAMESPACE, and so on; else it is
    127.0.0.1:7828, the namespace `default`, no TLS, 5 and 60 seconds, and 8 connections.

    Connects when first used. Threads may share it, and a signal handler may raise an exception in the middle of a call.
    A process that inherits it across a fork has its own connections and its own session from its first use on, however
    it was forked (`os.fork`, uWSGI's workers, fork(2) called from C). So has each copy and each pickle: it is a new
    client with the same settings, of the store that has answered so far. A pickle does not hold the token: set
    STATESTORE_TOKEN where it is unpickled. Nor can it hold an `ssl.SSLContext`.

    Every method raises `StateStoreError`: `Unavailable` where the deadline passes, or at once
    where the store has been away for longer than that. A lost connection is made again and the request repeated until
    the deadline.

    A write is applied once, however often it is repeated, and never after its write deadline. It raises `Uncertain` if
    it was sent and then had no answer: the deadline passed, its session was lost, or it was refused when it was
    repeated. It was applied then, or may be until its deadline. The same holds if an exception of a signal handler ends
    the call. If each attempt was refused, it raises `Unavailable`, and was not applied. While the daemon's disk is
    full, or all its sessions are in use, writes wait for a session, and reads go on. With a daemon that knows no
    sessions a write is not repeated: it raises `Uncertain` as soon as the connection breaks. If the daemon notices that
    another client is in the session of this one, as the copy of a virtual machine is, this one goes on in a new
    session.
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
        pool: int | None = None,
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
                pool=pool,
                store_id=store_id,
            )
        )

    def _set_up(self, settings: Settings) -> None:
        self._settings = settings
        self._tls = client_context(settings.tls, settings.tls_cert, settings.tls_key)
        self._store = Store(settings.where, settings.store_id)
        self._patience = min(settings.deadline, FIRST_PATIENCE)  # with the first attempt of a read
        self._is_in_haste = self._patience <= 2 * TICK  # no time for a look whether the answer comes at once
        self._pool = Pool(self._connect, settings.pool, self._store.renewal)

    def get(self, module: str, sender: Sender) -> str:
        self._store.limits.check_key(module, sender)
        state: str = self._read("get", module, sender)
        return state

    def set(self, module: str, sender: Sender, state: str) -> None:
        self._store.limits.check_key(module, sender)
        self._store.limits.check_state(state)
        self._write("set", module, sender, state)

    def set_all(self, sender: Sender, state: str) -> int:
        self._store.limits.check_sender(sender)
        self._store.limits.check_state(state)
        changed: int = self._write("set_all", sender, state)
        return changed

    def compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> Swap:
        """Where it raises Uncertain, `get` tells what came of it, after its deadline."""
        self._store.limits.check_key(module, sender)
        self._store.limits.check_state(expected)
        self._store.limits.check_state(state)
        return Swap(*self._write("compare_and_set", module, sender, expected, state))

    def get_many(self, pairs: Iterable[Pair]) -> list[str]:
        """At most 1,000 pairs, where the daemon's settings do not say otherwise (`info`)."""
        states: list[str] = self._read("get_many", self._store.limits.check_pairs(pairs))
        return states

    def set_many(self, triples: Iterable[Triple]) -> None:
        """At most 1,000 triples, where the daemon's settings do not say otherwise (`info`)."""
        self._write("set_many", self._store.limits.check_triples(triples))

    def scan(self, module: str | None = None, prefix: str = "", state: str | None = None) -> Iterator[Entry]:
        """Fetched page by page: each page has its own deadline, and a restart of the daemon in between does no harm."""
        self._store.limits.check_filter(module, prefix, state)
        return self._scan(module, prefix, state)

    def count(self, module: str | None = None, state: str | None = None) -> int:
        self._store.limits.check_filter(module, "", state)
        count = counted(self._read("count", module, state), state)
        return sum(1 for _ in self.scan(module, state=state)) if count is None else count

    def counts(self) -> dict[tuple[str, str], int]:
        """Exact; slow where there are over a thousand pairs, for then every entry is looked at."""
        counts = counted_by_state(self._read("count", None, None))
        return dict(Counter((entry.module, entry.state) for entry in self.scan())) if counts is None else counts

    def clear(self) -> None:
        """Forget all states of this namespace. Raises Forbidden unless the daemon was started with --allow-clear."""
        self._write("clear")

    def info(self) -> dict[str, Any]:
        """What the daemon says of itself: version, store_id, limits, counters."""
        answer: dict[str, Any] = self._read("info")
        return answer

    def ping(self) -> None:
        """Returns when the daemon has answered."""
        self._read("ping")

    def close(self) -> None:
        """Give the connections back; a later call makes new ones."""
        self._pool.drop_idle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RemoteStorage {self._settings}>"

    def _scan(self, module: str | None, prefix: str, state: str | None) -> Iterator[Entry]:
        cursor = None
        while True:
            cursor, entries = self._read("scan", cursor, module, prefix, state)
            for entry in entries:
                yield Entry(*entry)
            if cursor is None:
                return

    def _read(self, method: str, *params: Any) -> Any:
        """Mostly a connection is free and the answer comes at once: then there is no need for a `Call`."""
        store, pool = self._store, self._pool
        if store.outages or store.unable or pool.waiting or self._is_in_haste:
            return self._repeat(Call(store, method, params, Deadline(self._settings.deadline)), None)
        start = time.monotonic()
        outcome: Response | Exception | None
        try:
            question = (method, params, None, partial(Deadline, self._patience, start))
            outcome = pool.use(Place.ask, question)
            if outcome is not None and outcome.error is None and fits(method, params, outcome.result):
                store.answered(writing=False)  # another thread may have found nobody meanwhile; it takes 0.05 µs
                return outcome.result
        except Exception as failure:
            outcome = failure
        return self._repeat(Call(store, method, params, Deadline(self._settings.deadline, start)), outcome)

    def _write(self, method: str, *params: Any) -> Any:
        return self._repeat(Call(self._store, method, params, Deadline(self._settings.write_deadline)), None)

    def _repeat(self, call: Call, outcome: Response | Exception | None) -> Any:
        """Ask until there is an answer, or the deadline passes. outcome: of the first attempt, if it was made."""
        try:
            while True:
                if isinstance(outcome, ConnectionLost):
                    self._pool.drop_idle()
                if isinstance(outcome, Exception):
                    call.failed(outcome)
                elif outcome is not None and call.answered(outcome):
                    return outcome.result
                while pause := call.pause():
                    time.sleep(pause)
                try:
                    outcome = self._pool.call(call)
                except Exception as failure:
                    outcome = failure
        finally:
            outcome = None  # what is raised may be it, and it has this frame
            self._store.session.unanswered.pop(call, None)
            if (outage := self._store.outage) is not None:
                outage.left_by(call)

    def _connect(self, call: Call) -> Connection:
        """A connection to the first address that gives one, and to the right store."""
        candidates = Candidates(self._settings.address, self._store.address, call.deadline)
        for address, share in candidates:
            try:
                return self._greet(address, share)
            except Exception as failure:
                if not candidates.may_go_on(address, failure):
                    raise
        raise candidates.exhausted()

    def _greet(self, address: Address, deadline: Deadline) -> Connection:
        """A connection in the session that all of them are in."""
        namespace, token = self._settings.namespace, self._settings.token
        while True:
            session = self._store.session.id
            connection = Connection(address, namespace, token, deadline, session, self._tls)
            try:
                if self._store.accepts(address, connection.welcome, session):
                    return connection
            except BaseException:
                connection.close()
                raise
            connection.close()
