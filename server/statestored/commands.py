"""What the daemon can be asked: one table, and a short function for each method.

A function gets the caller and the request's parameters, and answers with the packed result, or with one that is held,
or with a future of one. It raises a `StateStoreError` for whatever is wrong with the request, and has changed nothing
then.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import Future
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from statestore.base import Limits
from statestore.errors import (
    BY_WIRE_CODE,
    BadRequest,
    Forbidden,
    Full,
    StateStoreError,
    Unauthorized,
    Unavailable,
    UnknownMethod,
    to_wire,
)
from statestore.wire import PROTOCOL_VERSION
from statestored import __version__, audit
from statestored.access import Access
from statestored.answers import NIL, pack, pack_counts, pack_nil, pack_state, pack_states, packed_states, reply
from statestored.budget import Budget
from statestored.clock import SteadyClock
from statestored.engines.base import (
    DEFAULT_NAMESPACE,
    MAX_NAMESPACE,
    MAX_NUMBER,
    Engine,
    Filter,
    Held,
    Reply,
    Space,
)
from statestored.parameters import check_item, check_items, check_key, check_stored_text, check_text, check_triple
from statestored.timeouts import Dropped
from statestored.tls import ServerTls
from statestored.tokens import Role, Token

FEATURES = ("sessions", "not_after")


@dataclass(slots=True)
class Service:
    """What all connections share.

    ready: clients are served; not while the states are loaded, nor once the daemon is about to end.
    """

    engine: Engine
    store_id: str
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    tls: ServerTls | None = None  # of the TCP addresses
    allow_clear: bool = False
    max_connections: int = 10_000
    budget: Budget = field(default_factory=Budget)
    started: float = field(default_factory=time.monotonic)
    clock: SteadyClock = field(default_factory=SteadyClock)
    calls: dict[bytes, int] = field(default_factory=lambda: dict.fromkeys(COMMANDS, 0))
    errors: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(BY_WIRE_CODE, 0)))  # by code
    notifications_refused: int = 0  # these are among the errors too
    ready: bool = False
    connections: int = 0
    connections_total: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Dropped, 0))

    def note_dropped(self, why: Dropped, reason: str = "") -> None:
        """A connection is closed for it; `reason`: what the log says, where that is more than `why`."""
        self.dropped[why] += 1
        audit.connection_dropped(why, reason or why)


class Caller:
    """Who asks, on one connection.

    It comes from the address `peer`, works in `namespace`, with `token` where one was needed, and repeats the writes of
    `session`, where it named one.
    """

    __slots__ = ("allowed", "limits", "namespace", "peer", "role", "service", "session", "shortest", "space", "token")

    def __init__(self, service: Service) -> None:
        self.service = service
        self.peer = ""
        self.token: Token | None = None
        self.limits = service.limits
        self.shortest = min(self.limits.module, self.limits.sender, self.limits.state)
        self.session: int | None = None
        self.work_in(DEFAULT_NAMESPACE)
        self.become(Role.NOBODY if service.access.needed else Role.ADMIN)

    def work_in(self, namespace: bytes) -> None:
        self.space: Space = self.service.engine.space(namespace)
        self.namespace = namespace

    def become(self, role: Role) -> None:
        self.role = role
        self.allowed = ALLOWED[role]

    def renew(self) -> bool:
        """The tokens have changed: go on with what ours may do now. False where it may not do this any more."""
        if self.token is None:
            return True
        self.token = self.service.access.renewed(self.token)
        if self.token is None or not self.token.opens(self.namespace):
            return False
        self.become(self.token.role)
        return True

    def leave(self) -> None:
        """The connection is closed."""
        if self.session is not None:
            self.service.engine.leave_session(self.session)


def hello(caller: Caller, about: object) -> Reply:
    if not isinstance(about, dict):
        raise BadRequest("hello takes one map")
    service = caller.service
    token = service.access.admit(about.get(b"token"), caller.peer) if service.access.needed else None
    namespace = check_stored_text("namespace", about.get(b"namespace", DEFAULT_NAMESPACE), MAX_NAMESPACE)
    if token is not None and not token.opens(namespace):
        audit.namespace_refused(token.name, namespace)
        raise Forbidden("the token does not open this namespace")
    asked = _asked_session(about)
    caller.work_in(namespace)
    caller.token = token
    caller.become(Role.ADMIN if token is None else token.role)
    welcome = {
        "version": PROTOCOL_VERSION,
        "server": f"statestored {__version__}",
        "store_id": service.store_id,
        "features": FEATURES,
        "limits": asdict(service.limits),
        "time": service.clock.now(),
    }
    if asked is None:
        return pack(welcome)
    try:
        if caller.role < Role.WRITE:
            raise Forbidden("a session is for writes, and they need the role write")
        session = service.engine.open_session(asked)
    except (Forbidden, Unavailable) as error:
        return _welcome_without_session(welcome, error)
    if isinstance(session, Held):
        return _welcome_later(caller, welcome, session)
    caller.session = session
    return pack({**welcome, "session": session})


def _asked_session(about: dict[Any, Any]) -> int | None:
    asked = about.get(b"session")
    if type(asked) is float and asked.is_integer():
        asked = int(asked)  # JavaScript libraries write integers of more than 32 bits so
    if asked is not None and (type(asked) is not int or not 0 <= asked <= MAX_NUMBER):
        raise BadRequest("session must be an integer: 0, or the number of one that a hello has given")
    return asked


def _welcome_later(caller: Caller, welcome: dict[str, Any], opened: Held[int]) -> Future[bytes]:
    """Answer when the new session is durable; if it cannot become durable, the connection has none."""
    caller.session = opened.value
    answer: Future[bytes] = asyncio.get_running_loop().create_future()

    def tell(_: None, error: StateStoreError | None) -> None:
        if error is None:
            answer.set_result(pack({**welcome, "session": opened.value}))
        else:
            caller.session = None
            answer.set_result(_welcome_without_session(welcome, error))

    opened.until.then(tell, None)
    return answer


def _welcome_without_session(welcome: dict[str, Any], error: StateStoreError) -> bytes:
    """Say why there is none: if the error is one that passes, the client asks again before it writes."""
    return pack({**welcome, "session": None, "session_error": to_wire(error)})


def ping(_caller: Caller) -> Reply:
    return NIL


def get(caller: Caller, module: object, sender: object) -> Reply:
    # Asked most, hence this short cut: what is found needs no checks, for it was checked when it was stored.
    if type(module) is bytes and type(sender) is bytes:
        answer = caller.space.get(module, sender)
        packed = packed_states.get(answer)
        if packed is not None:
            return packed
        check_key(caller.limits, module, sender)
    else:
        answer = caller.space.get(*check_key(caller.limits, module, sender))
    return reply(answer, pack_state)


def set_(caller: Caller, module: object, sender: object, state: object) -> Reply:
    # Short and plain text passes all checks at once, for the sake of the many small sets.
    if (
        type(module) is not bytes
        or type(sender) is not bytes
        or type(state) is not bytes
        or len(text := module + sender + state) > caller.shortest
        or not text.isascii()
    ):
        return reply(caller.space.set(*check_triple(caller.limits, module, sender, state)), pack_nil)
    return reply(caller.space.set(module, sender, state), pack_nil)


def set_together(caller: Caller, sets: Sequence[tuple[Any, ...]]) -> Reply | None:
    """Several sets as one write; None, and nothing done, where that is not the same or one of them is unusual."""
    modules, senders, states = zip(*sets, strict=True)
    limits = caller.limits
    try:
        plain = b"".join((*modules, *senders, *states)).isascii()
    except TypeError:
        return None
    if (
        not plain
        or max(map(len, modules)) > limits.module
        or max(map(len, senders)) > limits.sender
        or max(map(len, states)) > limits.state
        or not caller.service.engine.bulk_is_atomic
    ):
        return None
    try:
        return reply(caller.space.set_many(sets), pack_nil)
    except Full:  # for one of them it may not be
        return None


def set_all(caller: Caller, sender: object, state: object) -> Reply:
    limits = caller.limits
    _, checked_sender, checked_state = check_triple(limits, b"", sender, state)
    return reply(caller.space.set_all(checked_sender, checked_state), pack)


def compare_and_set(caller: Caller, module: object, sender: object, expected: object, state: object) -> Reply:
    limits = caller.limits
    checked_module, checked_sender, checked_state = check_triple(limits, module, sender, state)
    checked_expected = check_text("expected", expected, limits.state)
    answer = caller.space.compare_and_set(checked_module, checked_sender, checked_expected, checked_state)
    return reply(answer, pack)


def get_many(caller: Caller, pairs: object) -> Reply:
    limits = caller.limits
    checked = [check_key(limits, *check_item(pair, 2)) for pair in check_items(limits, pairs)]
    return reply(caller.space.get_many(checked), pack_states)


def set_many(caller: Caller, triples: object) -> Reply:
    limits = caller.limits
    checked = [check_triple(limits, *check_item(triple, 3)) for triple in check_items(limits, triples)]
    return reply(caller.space.set_many(checked), pack_nil)


def scan(caller: Caller, cursor: object, module: object, prefix: object, state: object) -> Reply:
    limits = caller.limits
    if cursor is not None and type(cursor) is not bytes:
        raise BadRequest("cursor must be nil or what the last scan gave")
    wanted = Filter(
        module=None if module is None else check_text("module", module, limits.module),
        prefix=b"" if prefix is None else check_text("prefix", prefix, limits.sender),
        state=None if state is None else check_text("state", state, limits.state),
    )
    return reply(caller.space.scan(cursor, wanted), pack)


def count(caller: Caller, module: object, state: object) -> Reply:
    limits = caller.limits
    answer = caller.space.count(
        None if module is None else check_text("module", module, limits.module),
        None if state is None else check_text("state", state, limits.state),
    )
    return reply(answer, pack_counts)


def clear(caller: Caller) -> Reply:
    if not caller.service.allow_clear:
        raise Forbidden("clear is off: start statestored with --allow-clear to have it")
    name, namespace = None if caller.token is None else caller.token.name, caller.namespace

    def note(_: object, error: BaseException | None) -> None:
        if error is None:
            audit.cleared(name, namespace)

    answer = caller.space.clear()
    if isinstance(answer, Held):
        answer.until.then(note, None)
    elif isinstance(answer, Future):
        answer.add_done_callback(lambda done: None if done.cancelled() else note(None, done.exception()))
    else:
        note(None, None)
    return reply(answer, pack_nil)


def info(caller: Caller) -> Reply:
    service = caller.service
    return pack(
        {
            "server": f"statestored {__version__}",
            "store_id": service.store_id,
            "limits": asdict(service.limits),
            "uptime": time.monotonic() - service.started,
            "connections": service.connections,
            "connections_total": service.connections_total,
            "connections_dropped": sum(service.dropped.values()),
            "dropped": {str(why): number for why, number in service.dropped.items()},
            "buffered_bytes": service.budget.used,
            "tokens_refused": service.access.refused,
            "tokens_not_looked_at": service.access.shut_out,
            "tls_failures": 0 if service.tls is None else service.tls.failures,
            "calls": {name.decode(): calls for name, calls in service.calls.items()},
            "errors": dict(service.errors),
            "notifications_refused": service.notifications_refused,
            "engine": service.engine.name,
            "bulk_is_atomic": service.engine.bulk_is_atomic,
            **service.engine.info(),
        }
    )


@dataclass(frozen=True, slots=True)
class Command:
    """How a method is called. Besides its parameters it takes one optional map: a write's options (see `writes`)."""

    name: str
    run: Callable[..., Reply]
    arity: int
    role: Role
    writes: bool = False
    heavy: bool = False  # takes a sizeable part of a millisecond, or more: others have their turn after it


COMMANDS: dict[bytes, Command] = {
    command.name.encode(): command
    for command in (
        Command("hello", hello, 1, Role.NOBODY),
        Command("ping", ping, 0, Role.READ),
        Command("get", get, 2, Role.READ),
        Command("set", set_, 3, Role.WRITE, writes=True),
        Command("set_all", set_all, 2, Role.WRITE, writes=True, heavy=True),
        Command("compare_and_set", compare_and_set, 4, Role.WRITE, writes=True),
        Command("get_many", get_many, 1, Role.READ, heavy=True),
        Command("set_many", set_many, 1, Role.WRITE, writes=True, heavy=True),
        Command("scan", scan, 4, Role.READ, heavy=True),
        Command("count", count, 2, Role.READ, heavy=True),
        Command("clear", clear, 0, Role.ADMIN, writes=True, heavy=True),
        Command("info", info, 0, Role.READ, heavy=True),
    )
}

# What each role may call without further ado. The connection has to see to the others: `hello` comes first or never.
ALLOWED: dict[Role, dict[bytes, Command]] = {
    role: {
        name: command for name, command in COMMANDS.items() if Role.NOBODY < command.role <= role and not command.heavy
    }
    for role in Role
}


def find_command(caller: Caller, name: object) -> Command:
    """What the caller may call by this name. Raises BadRequest, UnknownMethod, Unauthorized or Forbidden."""
    if not isinstance(name, bytes):
        raise BadRequest("a method's name must be a string")
    command = COMMANDS.get(name)
    if command is None:
        raise UnknownMethod(f"there is no method {shown(name)}")
    if command.role > caller.role:
        if caller.role is Role.NOBODY:
            raise Unauthorized("a token is needed: say hello with one first")
        raise Forbidden(f"{command.name} needs the role {command.role.name.lower()}")
    return command


def check_params(command: Command, params: object) -> tuple[tuple[Any, ...], dict[Any, Any]]:
    """The parameters, and the options behind them. Raises BadRequest."""
    if not isinstance(params, tuple):
        raise BadRequest("parameters must be an array")
    options: dict[Any, Any] = {}
    if len(params) == command.arity + 1 and isinstance(params[-1], dict):
        *params, options = params
    if len(params) != command.arity:
        raise BadRequest(f"{command.name} takes {command.arity} parameters, not {len(params)}")
    return tuple(params), options


def shown(name: object) -> str:
    """A name of the client's, for an error message."""
    return repr(name[:40].decode("utf-8", "replace") if isinstance(name, bytes) else name)
