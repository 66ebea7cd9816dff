"""`RemoteStorage`: a state storage whose states live in a daemon."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from statestore.address import Address, parse_addresses
from statestore.base import Entry, Pair, Sender, StateStorage, Swap, Triple
from statestore.calls import Call
from statestore.connection import Connection
from statestore.deadline import Deadline
from statestore.errors import StateStoreError
from statestore.pool import Pool
from statestore.protocol import ConnectionLost
from statestore.store import Store

CONNECT_PATIENCE = 3.0  # seconds for one address: for a lost packet or two, not for a host that is down


class RemoteStorage(StateStorage):
    """The states that the daemon at `address` holds, for any number of processes.

    address: `host[:port]`, `[v6]:port` or `unix:/path`; several with commas are tried in turn.
    namespace: applications with different ones do not see each other's states.
    token: the daemon's, where it asks for one.
    deadline: seconds that one call may take, whatever happens; `write_deadline` for those that write.
    pool: connections at most.
    store_id: the store that must answer; without it, the first that answers.

    Connects when first used. Safe to share between threads and to inherit across a fork. Every method raises
    `StateStoreError`: `Unavailable` where the deadline passes, `Uncertain` where a write may or may not have been
    applied. A lost connection is made anew, and the request repeated, until the deadline; only a
    `compare_and_set` that may have been applied is not repeated.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:7828",
        *,
        namespace: str = "default",
        token: str | None = None,
        deadline: float = 5.0,
        write_deadline: float = 60.0,
        pool: int = 8,
        store_id: str | None = None,
    ) -> None:
        """Raises ValueError for settings that cannot work; asks nobody yet."""
        self._addresses = parse_addresses(address)
        if not (0 < deadline < math.inf and 0 < write_deadline < math.inf):
            raise ValueError("deadline and write_deadline must be finite, and above 0 seconds")
        if pool < 1:
            raise ValueError("pool must be at least 1 connection")
        self._namespace = namespace
        self._token = token
        self._deadline = deadline
        self._write_deadline = write_deadline
        self._store = Store(",".join(map(str, self._addresses)), store_id)
        self._pool = Pool(self._connect, pool)

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
        """Raises Uncertain where the connection breaks before the answer: `get` tells what came of it."""
        self._store.limits.check_key(module, sender)
        self._store.limits.check_state(expected)
        self._store.limits.check_state(state)
        return Swap(*self._call("compare_and_set", (module, sender, expected, state), self._write_deadline))

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
        answer = self._read("count", module, state)
        if state is not None and answer["uncounted"]:
            return sum(1 for _ in self.scan(module, state=state))
        count: int = answer["total"]
        return count

    def counts(self) -> dict[tuple[str, str], int]:
        """Exact; slow where there are over a thousand pairs, for then every entry is looked at."""
        answer = self._read("count", None, None)
        if answer["uncounted"]:
            return dict(Counter((entry.module, entry.state) for entry in self.scan()))
        return {(module, state): count for module, state, count in answer["rows"]}

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
        return f"<RemoteStorage {self._store.where} namespace={self._namespace!r}>"

    def _scan(self, module: str | None, prefix: str, state: str | None) -> Iterator[Entry]:
        cursor = None
        while True:
            cursor, entries = self._read("scan", cursor, module, prefix, state)
            for entry in entries:
                yield Entry(*entry)
            if cursor is None:
                return

    def _read(self, method: str, *params: Any) -> Any:
        return self._call(method, params, self._deadline)

    def _write(self, method: str, *params: Any) -> Any:
        return self._call(method, params, self._write_deadline)

    def _call(self, method: str, params: tuple[Any, ...], seconds: float) -> Any:
        """Ask until there is an answer, or the deadline passes."""
        call = Call(self._store, method, params, Deadline(seconds))
        try:
            while True:
                while pause := call.pause():
                    time.sleep(pause)
                try:
                    response = self._pool.call(call)
                except Exception as failure:
                    if isinstance(failure, ConnectionLost):
                        self._pool.drop_idle()
                    call.failed(failure)
                else:
                    if call.answered(response):
                        return response.result
        finally:
            self._store.session.unanswered.pop(call, None)

    def _connect(self, call: Call) -> Connection:
        """A connection to the first address that gives one, and to the right store."""
        failures = []
        for number, address in enumerate(self._addresses):
            share = Deadline(min(call.deadline.left() / (len(self._addresses) - number), CONNECT_PATIENCE))
            try:
                return self._greet(address, share)
            except (ConnectionLost, TimeoutError) as failure:
                failures.append(str(failure))
            except StateStoreError as refused:
                if not refused.retry:
                    raise
                failures.append(refused.detail)
        raise ConnectionLost("; ".join(failures), sent=False)

    def _greet(self, address: Address, deadline: Deadline) -> Connection:
        """A connection in the session that all of them are in."""
        while True:
            session = self._store.session.id
            connection = Connection(address, self._namespace, self._token, deadline, session)
            try:
                if self._store.accepts(connection.welcome, session):
                    return connection
            except BaseException:
                connection.close()
                raise
            connection.close()
