"""One call of RemoteStorage, from one thread and from eight, beside other clients and a bare socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import msgpack
import pymemcache
import redis
import salmon.routing

import statestore
from benchmarks import transports
from benchmarks.errors import BenchmarkError
from benchmarks.machine import on_core
from benchmarks.prebuilt import MESSAGEPACK, MODULE, STATES, redis_key, senders
from benchmarks.tables import table
from benchmarks.transports import Endpoint, Place, Transport

# The shelves open and close their file for each call: a thousand keys are enough to wait for.
KEYS = 1_000
THREADS = 8
CALLS_BETWEEN_LOOKS = 16  # at the clock, so that it costs nothing
CLIENTS = 0  # their core
# Where the servers are. On another a call is mostly the waking of a core; on the same it is what both sides do.
SERVERS = {"another core": -1, "the same core": 0}
OURS, BARE, REFERENCE = "RemoteStorage", "bare-socket", "redis-py (hiredis)"
NOTE = (
    "The bare socket sends and receives the bytes of RemoteStorage's gets and numbered sets, one system call each, and "
    f"looks at nothing. With {THREADS} threads each client shares a pool of as many connections. The clients have one "
    "core, and the servers another or the same."
)

Get = Callable[[str], object]
Set = Callable[[str, str], object]


@dataclass(frozen=True)
class Store:
    """Answers `str`, as the Router needs it (the bare socket: bytes), and returns from `set` when the store has it."""

    name: str
    get: Get
    set: Set


@contextmanager
def remote_storage(place: Place) -> Iterator[Store]:
    with transports.statestored(place, OURS) as endpoint:
        tls = None if endpoint.ca is None else str(endpoint.ca)
        with statestore.RemoteStorage(endpoint.address, tls=tls, pool=THREADS) as storage:
            yield _of_module(OURS, storage)


@contextmanager
def bare_socket(place: Place) -> Iterator[Store]:
    with transports.statestored(place, BARE) as endpoint:
        bare = _Bare(endpoint)
        yield Store(BARE, bare.get, bare.set)


class _Bare:
    """A connection for each thread, and requests that are ready-made but for the numbers of the sets."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._own = threading.local()
        keys = senders(KEYS)
        self._gets = {sender: MESSAGEPACK.get(1, sender) for sender in keys}
        self._sets = {(sender, state): _numbered_set(sender, state) for sender in keys for state in STATES}

    def get(self, sender: str) -> bytes:
        return self._ask(self._gets[sender])

    def set(self, sender: str, state: str) -> bytes:
        begin, between, end = self._sets[sender, state]
        number = next(_numbers).to_bytes(4)
        return self._ask(b"".join((begin, number, between, number, end)))

    def _ask(self, request: bytes) -> bytes:
        try:
            own = self._own.socket
        except AttributeError:
            own = self._own.socket = self._endpoint.connect()
            own.send(msgpack.packb([0, 1, "hello", [{"session": 0}]]))
            own.recv(65536)
        own.send(request)
        answer: bytes = own.recv(65536)
        return answer


_numbers = count(2**20)  # of a size that takes four bytes


def _numbered_set(sender: str, state: str) -> tuple[bytes, bytes, bytes]:
    """As RemoteStorage sends it; between the three parts stands its number, twice."""
    mark = 2**32 - 1
    options = {"seq": mark, "oldest": mark, "not_after": 2.0**40}
    begin, between, end = msgpack.packb([0, 1, "set", [MODULE, sender, state, options]]).split(mark.to_bytes(4))
    return begin, between, end


@contextmanager
def redis_py(place: Place) -> Iterator[Store]:
    with transports.redis(place) as endpoint:
        where: dict[str, object] = {"host": transports.LOOPBACK, "port": endpoint.port}
        if endpoint.path is not None:
            where = {"unix_socket_path": str(endpoint.path)}
        elif endpoint.ca is not None:
            where |= {"ssl": True, "ssl_ca_certs": str(endpoint.ca)}
        client = redis.Redis(**where, decode_responses=True)  # type: ignore[arg-type]
        yield Store(
            REFERENCE,
            lambda sender: client.get(redis_key(sender)),
            lambda sender, state: client.set(redis_key(sender), state),
        )
        client.close()


@contextmanager
def pymemcache_client(place: Place) -> Iterator[Store]:
    """Not as it comes: Nagle's algorithm off, and `set` waits for its answer, as the others do."""
    with transports.memcached(place) as endpoint:
        client = pymemcache.PooledClient(
            (transports.LOOPBACK, endpoint.port) if endpoint.path is None else str(endpoint.path),
            no_delay=endpoint.path is None,
            default_noreply=False,
            max_pool_size=THREADS,
            tls_context=None if endpoint.ca is None else endpoint.context(),
        )
        yield Store(
            "pymemcache",
            lambda sender: client.get(redis_key(sender)).decode(),
            lambda sender, state: client.set(redis_key(sender), state),
        )
        client.close()


@contextmanager
def our_shelf(_place: Place) -> Iterator[Store]:
    with TemporaryDirectory() as directory:
        yield _of_module("statestore.ShelveStorage", statestore.ShelveStorage(str(Path(directory, "states"))))


@contextmanager
def salmons_shelf(_place: Place) -> Iterator[Store]:
    with TemporaryDirectory() as directory:
        yield _of_module("salmon.routing.ShelveStorage", salmon.routing.ShelveStorage(str(Path(directory, "states"))))


STORES = (remote_storage, bare_socket, redis_py, pymemcache_client)
SHELVES = (our_shelf, salmons_shelf)


def _of_module(name: str, storage: statestore.StateStorage) -> Store:
    get, set_ = storage.get, storage.set
    return Store(name, lambda sender: get(MODULE, sender), lambda sender, state: set_(MODULE, sender, state))


class Contender:
    """A store with all keys in it, and the calls to come, round and round: no `set` is of the state already there."""

    def __init__(self, store: Store) -> None:
        self.name = store.name
        self._store = store
        for sender in senders(KEYS):
            store.set(sender, STATES[-1])
        if store.get(senders(KEYS)[0]) not in (STATES[-1], MESSAGEPACK.state(1, STATES[-1])):
            raise BenchmarkError(f"{store.name} does not keep what it is given")

    def calls(self, operation: str, part: int = 0, parts: int = 1) -> Callable[[], object]:
        """Of one thread, on its own part of the keys."""
        keys, store = senders(KEYS)[part::parts], self._store
        if operation == "get":
            gets = cycle(keys)
            return lambda: store.get(next(gets))
        sets = cycle([(sender, state) for state in STATES for sender in keys])
        return lambda: store.set(*next(sets))


@dataclass(frozen=True)
class Case:
    operation: str
    threads: int

    def __str__(self) -> str:
        return self.operation if self.threads == 1 else f"{self.operation}, {self.threads} threads"


ONE_THREAD = (Case("get", 1), Case("set", 1))
CASES = (*ONE_THREAD, Case("get", THREADS), Case("set", THREADS))


@dataclass(frozen=True)
class Outcome:
    """Microseconds a call, seen from one thread or, with several, for all of them together; a figure a round."""

    name: str
    microseconds: Mapping[Case, list[float]]

    def ratio(self, case: Case, reference: Outcome) -> float:
        pairs = zip(self.microseconds[case], reference.microseconds[case], strict=True)
        return median(own / other for own, other in pairs)


Setting = tuple[Transport, str]  # and where the servers are


def measure(rounds: int, seconds: float) -> dict[Setting, list[Outcome]]:
    settings = [(transport, servers) for transport in Transport for servers in SERVERS]
    return {setting: _measure(setting, rounds, seconds) for setting in settings}


def _measure(setting: Setting, rounds: int, seconds: float) -> list[Outcome]:
    transport, servers = setting
    with ExitStack() as stack:
        with on_core(SERVERS[servers]):
            place = stack.enter_context(transports.place(transport))
            contenders = {Contender(stack.enter_context(store(place))): CASES for store in STORES}
            if setting == (Transport.TCP, "another core"):
                contenders |= {Contender(stack.enter_context(shelf(place))): ONE_THREAD for shelf in SHELVES}
        outcomes = [Outcome(each.name, {case: [] for case in cases}) for each, cases in contenders.items()]
        stack.enter_context(on_core(CLIENTS))
        for case in CASES:
            for _ in range(rounds):
                for contender, outcome in zip(contenders, outcomes, strict=True):
                    if case in outcome.microseconds:
                        outcome.microseconds[case].append(_time(contender, case, seconds))
    return outcomes


def _time(contender: Contender, case: Case, seconds: float) -> float:
    """Calls it for so many seconds. Returns microseconds a call."""
    if case.threads == 1:
        return _time_calls(contender.calls(case.operation), seconds) * 1e6
    rates: list[float] = []

    def run(part: int) -> None:
        rates.append(1 / _time_calls(contender.calls(case.operation, part, case.threads), seconds))

    threads = [threading.Thread(target=run, args=(part,)) for part in range(case.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(rates) < case.threads:
        raise BenchmarkError(f"{contender.name}: a thread failed")
    return 1e6 / sum(rates)


def _time_calls(call: Callable[[], object], seconds: float) -> float:
    """Seconds a call."""
    calls = 0
    start = now = perf_counter()
    while now - start < seconds:
        for _ in range(CALLS_BETWEEN_LOOKS):
            call()
        calls += CALLS_BETWEEN_LOOKS
        now = perf_counter()
    return (now - start) / calls


def report(outcomes: Mapping[Setting, Sequence[Outcome]]) -> str:
    """Time beside time: a ratio below 1 is faster."""
    return "\n\n".join([*(_table(setting, rows) for setting, rows in outcomes.items()), NOTE])


def _table(setting: Setting, outcomes: Sequence[Outcome]) -> str:
    transport, servers = setting
    by_name = {outcome.name: outcome for outcome in outcomes}
    head = [f"{transport}, {servers}, µs a call", *map(str, CASES)]
    rows = [[each.name, *(_cell(each, case) for case in CASES)] for each in outcomes]
    for name in (REFERENCE, "pymemcache", BARE):
        rows.append([f"{OURS} / {name}", *(f"{by_name[OURS].ratio(case, by_name[name]):.2f}" for case in CASES)])
    return table(head, rows)


def _cell(outcome: Outcome, case: Case) -> str:
    return f"{median(outcome.microseconds[case]):.1f}" if case in outcome.microseconds else ""
