"""Streams of requests: right ones, and what becomes of them when some of it is exchanged."""

from collections.abc import Callable

from tests.fuzz.choices import Choices
from tests.fuzz.packing import FLOATS, INTEGERS, array, array_head, map_head, pack, string, text, value

# What each parameter of a method is like.
_KEYS = (b"a", b"lists", "é".encode(), b"", b"START")
_SENDERS = (b"ann@a.example", b"", None, b"None", b"\xed\xa0\xbd", b"b" * 200)
_STATES = (b"A", b"START", b"", b"B", "É".encode(), b"s" * 1000)
TOKEN = b"open sesame"
_NUMBERS = FLOATS + INTEGERS
_OPTIONS = (b"seq", b"oldest", b"not_after", b"fence", b"\xff")


def stream(choices: Choices) -> bytes:
    """Some requests, and sometimes something else between them."""
    messages = []
    while choices and len(messages) < 40:
        match choices.below(32):
            case 27 | 28:
                messages.append(array(b"\x02", *_call(choices)))  # a notification
            case 29:
                messages.append(array(b"\x02", text(choices), value(choices)))
            case 30:
                messages.append(_changed(choices, _request(choices)))
            case 31:
                messages.append(value(choices))
            case _:
                messages.append(_request(choices))
    return b"".join(messages)


def hello(namespace: bytes) -> bytes:
    about = map_head(2) + pack(b"namespace") + pack(namespace) + pack(b"session") + pack(0)
    return array(b"\x00", pack(0), pack(b"hello"), array(about))


def _request(choices: Choices) -> bytes:
    parts = [b"\x00", pack(choices.below(250)), *_call(choices)]
    if choices.once_in(16):
        parts[choices.below(4)] = value(choices)
    if choices.once_in(64):
        parts.insert(choices.below(5), value(choices))
    return array(*parts)


def _call(choices: Choices) -> tuple[bytes, bytes]:
    name = choices.one_of(tuple(_METHODS))
    params = _METHODS[name](choices)
    if choices.once_in(8) and params:
        params[choices.below(len(params))] = value(choices)
    if choices.once_in(6):
        params.append(_options(choices))
    if choices.once_in(24):
        params.append(value(choices))
    if choices.once_in(24) and params:
        params.pop(choices.below(len(params)))
    return string(choices, text(choices) if choices.once_in(32) else name), array(*params)


def _options(choices: Choices) -> bytes:
    if choices.once_in(4):
        count = choices.below(4)
        return map_head(count) + b"".join(pack(choices.one_of(_OPTIONS)) + value(choices) for _ in range(count))
    oldest = 1 + choices.below(3)
    options = pack(b"seq") + pack(oldest + choices.below(3)) + pack(b"oldest") + pack(oldest)
    if choices.once_in(4):
        return map_head(3) + options + pack(b"not_after") + pack(choices.one_of(_NUMBERS))
    return map_head(2) + options


def _changed(choices: Choices, message: bytes) -> bytes:
    """A byte more, less, or another one."""
    at = choices.below(len(message))
    return message[:at] + choices.some() + message[at + choices.below(3) :]


def _module(choices: Choices) -> bytes:
    return string(choices, choices.one_of(_KEYS))


def _sender(choices: Choices) -> bytes:
    sender = choices.one_of(_SENDERS)
    return b"\xc0" if sender is None else string(choices, sender)


def _state(choices: Choices) -> bytes:
    return string(choices, choices.one_of(_STATES))


def _maybe(choices: Choices, of: Callable[[Choices], bytes]) -> bytes:
    return b"\xc0" if choices.once_in(2) else of(choices)


def _items(choices: Choices, *of: Callable[[Choices], bytes]) -> bytes:
    if choices.once_in(16):  # so many that it is about too many
        return array_head(count := choices.one_of((999, 1000, 1001, 1024, 1025))) + count * array(
            *(make(choices) for make in of)
        )
    items = [array(*(make(choices) for make in of)) for _ in range(choices.below(6))]
    if choices.once_in(16):
        items.append(value(choices))
    return array(*items)


def _about(choices: Choices) -> bytes:
    about = {}
    if choices.once_in(4):
        about[pack(b"namespace")] = text(choices)
    if not choices.once_in(8):
        about[pack(b"token")] = pack(TOKEN)
    if choices.once_in(4):
        about[pack(b"session")] = pack(choices.one_of(_NUMBERS) if choices.once_in(2) else 0)
    if choices.once_in(16):
        about[value(choices)] = value(choices)
    return map_head(len(about)) + b"".join(key + of for key, of in about.items())


_METHODS: dict[bytes, Callable[[Choices], list[bytes]]] = {
    b"set": lambda of: [_module(of), _sender(of), _state(of)],
    b"get": lambda of: [_module(of), _sender(of)],
    b"hello": lambda of: [_about(of)],
    b"ping": lambda _: [],
    b"set_all": lambda of: [_sender(of), _state(of)],
    b"compare_and_set": lambda of: [_module(of), _sender(of), _state(of), _state(of)],
    b"get_many": lambda of: [_items(of, _module, _sender)],
    b"set_many": lambda of: [_items(of, _module, _sender, _state)],
    b"scan": lambda of: [_maybe(of, text), _maybe(of, _module), _maybe(of, _sender), _maybe(of, _state)],
    b"count": lambda of: [_maybe(of, _module), _maybe(of, _state)],
    b"clear": lambda _: [],
    b"info": lambda _: [],
}
