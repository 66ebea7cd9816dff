"""What protocol.md says of a connection, once more, and without any regard to speed.

From what was received to what has to be answered, and to the states that are there then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

from statestore.wire import DECODE_ERRORS, MAX_MESSAGE, MAX_MSGID, UNICODE_ERRORS

START = b"START"
MAX_MODULE, MAX_SENDER, MAX_STATE, MAX_ITEMS, MAX_NAMESPACE = 1024, 4096, 1024, 1000, 255
# Over these the connection may be closed: items of an array or a map, how deep they are in the message, values in it,
# and bytes before a hello.
MANY, MANY_AT_FIRST, DEEP, VALUES, BYTES_AT_FIRST = 1024, 16, 3, 8000, 1024

MAX_UNFINISHED = 1024
WRITES = {b"set", b"set_all", b"compare_and_set", b"set_many", b"clear"}
OPTIONS = {"sessions": (b"seq", b"oldest"), "not_after": (b"not_after",)}  # of writes, by feature

Entries = dict[tuple[bytes, bytes | None], bytes]


class Refusal:
    """Any error that is in protocol.md, but `internal`."""


class Welcome:
    """What a good hello is answered."""


class Figures:
    """What `info` is answered."""


REFUSAL, WELCOME, FIGURES = Refusal(), Welcome(), Figures()


class Page(NamedTuple):
    """Of a scan. Whether all of it must be there: it began at the beginning."""

    entries: set[tuple[bytes, bytes | None, bytes]]
    is_whole: bool


class Total(NamedTuple):
    of: int


class Expected(NamedTuple):
    """may_close: the connection may have been closed instead of this, else it was not.

    msgid None: nothing is answered from here on, and the connection was closed, or may have been.
    is_silent: it is a notification, which has no answer.
    """

    msgid: int | None
    answer: Any
    may_close: bool = False
    is_silent: bool = False

    @property
    def is_answered(self) -> bool:
        return self.msgid is not None and not self.is_silent


class Wrong(Exception):
    """The request is refused."""


@dataclass
class Model:
    """One connection, and the states of all namespaces. features: those of the server."""

    token: bytes | None
    features: Set[str] = frozenset()
    spaces: dict[bytes, Entries] = field(default_factory=dict)
    namespace: bytes = b"default"
    is_known: bool = False
    is_begun: bool = False
    has_session: bool = False
    oldest: int = 1
    done: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # numbered writes, and what they were answered

    def expected(self, stream: bytes) -> Iterator[Expected]:
        """For each message in turn, up to where the connection is closed. What it asks for is done when it is given."""
        self.is_known = self.token is None
        too_much = False
        for message, size, seen in _messages(stream):
            if message is NONE:
                # Within a message garbage may be noticed only when all of it is there.
                yield Expected(None, None, may_close=True)
                return
            too_much = too_much or self._is_too_much(message, size, seen)
            is_silent = _is_notification(message)
            if is_silent:
                _, name, params = message
                msgid = 0
                if not (isinstance(name, bytes) and name in _METHODS):
                    yield Expected(0, None, too_much, is_silent=True)
                    continue
            elif _is_request(message):
                _, msgid, name, params = message
            else:
                yield Expected(None, None)
                return
            try:
                answer = self._answer(name, params)
            except Wrong:
                yield Expected(int(msgid), REFUSAL, too_much, is_silent)
                if name == b"hello":
                    yield Expected(None, None)
                    return
            else:
                yield Expected(int(msgid), answer, too_much, is_silent)
            self.is_begun = True
        if too_much:
            yield Expected(None, None, may_close=True)

    def _is_too_much(self, message: Any, size: int, seen: int) -> bool:
        containers = list(_containers(message))
        widest = max((items for _, items in containers), default=0)
        deepest = max((depth for depth, _ in containers), default=0)
        if not self.is_known and (seen > BYTES_AT_FIRST or widest > MANY_AT_FIRST):
            return True
        values = sum(items for _, items in containers)
        return size > MAX_MESSAGE or widest > MANY or deepest > DEEP or values > VALUES

    def _answer(self, name: object, params: object) -> Any:
        """What the request is answered, when it has been executed. Raises Wrong, and then it has not."""
        method = _METHODS.get(name) if isinstance(name, bytes) else None
        if method is None or not (self.is_known or name == b"hello") or type(params) is not tuple:
            raise Wrong
        run, arity = method
        options = {}
        if len(params) == arity + 1 and isinstance(params[-1], Map):
            *params, options = params
        if len(params) != arity or not options.keys() <= self._options_of(name):
            raise Wrong
        return self._once((self.namespace, name, tuple(params)), lambda: run(self, *params), options)

    def _options_of(self, name: bytes) -> Set[bytes]:
        if name not in WRITES:
            return frozenset()
        return {option for feature, options in OPTIONS.items() if feature in self.features for option in options}

    def _once(self, write: Any, run: Callable[[], Any], options: dict[bytes, Any]) -> Any:
        """It runs if it was not carried out before, and is not late; `write` is all that makes it what it is."""
        not_after = options.get(b"not_after", math.nextafter(math.inf, 0))
        if type(not_after) not in (int, float) or not math.isfinite(not_after):
            raise Wrong
        if b"seq" in options or b"oldest" in options:
            seq, oldest = options.get(b"seq"), options.get(b"oldest")
            if type(seq) is not int or type(oldest) is not int or not 1 <= oldest <= seq < 2**63:
                raise Wrong
            if seq - oldest >= MAX_UNFINISHED or not self.has_session:
                raise Wrong
            if seq >= self.oldest and self.done.get(seq, (write, None))[0] != write:
                raise Wrong
            self.oldest = max(self.oldest, oldest)
            if seq < self.oldest:
                raise Wrong
            if seq not in self.done:
                self.done[seq] = write, self._in_time(run, not_after)
            return self.done[seq][1]
        return self._in_time(run, not_after)

    def _in_time(self, run: Callable[[], Any], not_after: float) -> Any:
        if not_after < time.time():  # those that are given are years off
            raise Wrong
        return run()

    @property
    def _entries(self) -> Entries:
        return self.spaces.setdefault(self.namespace, {})

    def _put(self, module: bytes, sender: bytes | None, state: bytes) -> None:
        if state == START:
            self._entries.pop((module, sender), None)
        else:
            self._entries[module, sender] = state

    # The methods

    def hello(self, about: object) -> Any:
        if self.is_begun or not isinstance(about, Map):
            raise Wrong
        if self.token is not None and about.get(b"token") != self.token:
            raise Wrong
        session = about.get(b"session")
        if "sessions" in self.features and session is not None:
            if type(session) not in (int, float) or session % 1 or not 0 <= session < 2**63:
                raise Wrong
            self.has_session = True
        self.namespace = _stored(about.get(b"namespace", b"default"), MAX_NAMESPACE)
        self.is_known = True
        return WELCOME

    def ping(self) -> Any:
        return None

    def info(self) -> Any:
        return FIGURES

    def get(self, module: object, sender: object) -> Any:
        return self._entries.get((_text(module, MAX_MODULE), _sender(sender)), START)

    def set(self, module: object, sender: object, state: object) -> Any:
        self._put(*_triple((module, sender, state)))

    def set_all(self, sender: object, state: object) -> Any:
        _, sender, state = _triple((b"", sender, state))
        modules = [module for module, other in self._entries if other == sender]
        for module in modules:
            self._put(module, sender, state)
        return len(modules)

    def compare_and_set(self, module: object, sender: object, expected: object, state: object) -> Any:
        triple = _triple((module, sender, state))
        found = self._entries.get(triple[:2], START)
        swaps = found == _text(expected, MAX_STATE)
        if swaps:
            self._put(*triple)
        return swaps, found

    def get_many(self, pairs: object) -> Any:
        checked = [(_text(module, MAX_MODULE), _sender(sender)) for module, sender in _items(pairs, 2)]
        return tuple(self._entries.get(pair, START) for pair in checked)

    def set_many(self, triples: object) -> Any:
        for triple in [_triple(item) for item in _items(triples, 3)]:
            self._put(*triple)

    def scan(self, cursor: object, module: object, prefix: object, state: object) -> Any:
        if cursor is not None:
            _cursor(cursor)
        start = b"" if prefix is None else _text(prefix, MAX_SENDER)
        modules, states = _maybe(module, MAX_MODULE), _maybe(state, MAX_STATE)
        found = {
            (module, sender, state)
            for (module, sender), state in self._entries.items()
            if modules in (None, module) and states in (None, state) and (sender or b"").startswith(start)
        }
        return Page(found, is_whole=cursor is None)

    def count(self, module: object, state: object) -> Any:
        modules, states = _maybe(module, MAX_MODULE), _maybe(state, MAX_STATE)
        return Total(
            sum(modules in (None, module) and states in (None, state) for (module, _), state in self._entries.items())
        )

    def clear(self) -> Any:
        self._entries.clear()


_METHODS = {
    b"hello": (Model.hello, 1),
    b"ping": (Model.ping, 0),
    b"get": (Model.get, 2),
    b"set": (Model.set, 3),
    b"set_all": (Model.set_all, 2),
    b"compare_and_set": (Model.compare_and_set, 4),
    b"get_many": (Model.get_many, 1),
    b"set_many": (Model.set_many, 1),
    b"scan": (Model.scan, 4),
    b"count": (Model.count, 2),
    b"clear": (Model.clear, 0),
    b"info": (Model.info, 0),
}


class Map(dict[bytes, Any]):
    """It knows what came under a key before what it has."""

    def __init__(self, pairs: list[tuple[bytes, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


NONE = "none"  # no message is text


def _messages(stream: bytes) -> Iterator[tuple[Any, int, int]]:
    """Each message, its size, and how much was received with it; at last NONE, where something else is there."""
    unpacker = msgpack.Unpacker(
        raw=True, use_list=False, object_pairs_hook=Map, max_array_len=2 * MANY, max_map_len=2 * MANY
    )
    unpacker.feed(stream)
    start = 0
    while start < len(stream):
        try:
            message = unpacker.unpack()
        except (msgpack.OutOfData, *DECODE_ERRORS):
            yield NONE, 0, 0
            return
        end = unpacker.tell()
        yield message, end - start, end
        start = end


def _is_notification(message: Any) -> bool:
    return type(message) is tuple and len(message) == 3 and message[0] == 2


def _is_request(message: Any) -> bool:
    if type(message) is not tuple or len(message) != 4 or message[0] != 0:
        return False
    return type(message[1]) is int and 0 <= message[1] <= MAX_MSGID


def _text(value: object, limit: int) -> bytes:
    if type(value) is not bytes or len(value) > limit:
        raise Wrong
    return value


def _stored(value: object, limit: int) -> bytes:
    text = _text(value, limit)
    try:
        text.decode(errors=UNICODE_ERRORS)
    except UnicodeDecodeError:
        raise Wrong from None
    return text


def _maybe(value: object, limit: int) -> bytes | None:
    return None if value is None else _text(value, limit)


def _sender(value: object) -> bytes | None:
    return _maybe(value, MAX_SENDER)


def _triple(item: tuple[object, ...]) -> tuple[bytes, bytes | None, bytes]:
    module, sender, state = item
    checked = None if sender is None else _stored(sender, MAX_SENDER)
    return _stored(module, MAX_MODULE), checked, _stored(state, MAX_STATE)


def _items(value: object, size: int) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) > MAX_ITEMS:
        raise Wrong
    if not all(type(item) is tuple and len(item) == size for item in value):
        raise Wrong
    return value


def _cursor(value: object) -> None:
    if type(value) is not bytes:
        raise Wrong
    try:
        if len(bytes.fromhex(value.decode())) < 4:
            raise Wrong
    except ValueError:
        raise Wrong from None


def _containers(message: Any) -> Iterator[tuple[int, int]]:
    """For each array and map in it, how deep it is, and how many items it has."""
    found = [(0, message)]
    while found:
        depth, value = found.pop()
        if isinstance(value, Map):
            yield depth, len(value.pairs)
            found += [(depth + 1, item) for _, item in value.pairs]
        elif isinstance(value, tuple):
            yield depth, len(value)
            found += [(depth + 1, item) for item in value]
