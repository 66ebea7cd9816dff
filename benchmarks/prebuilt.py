"""The same keys and states, as ready-made requests of both protocols."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgpack

MODULE = "newsletter.handlers.subscriptions"
STATES = ("CONFIRMING", "POSTING", "BOUNCING")
KEYS = 10_000

Entry = tuple[str, str]  # a sender and its state


@dataclass(frozen=True)
class Wire:
    """How one protocol asks, and how it answers. The first argument is always the msgid."""

    name: str  # as load.c calls it
    get: Callable[[int, str], bytes]
    set: Callable[[int, str, str], bytes]
    set_many: Callable[[int, Iterable[Entry]], bytes]
    state: Callable[[int, str], bytes]  # the answer to a get
    stored: Callable[[int], bytes]  # the answer to a set or a set_many


@cache
def senders(count: int = KEYS) -> Sequence[str]:
    """In an order that is not the one of insertion or of the alphabet, but the same in every run."""
    addresses = [f"subscriber.{number:06}@example.com" for number in range(count)]
    random.Random(count).shuffle(addresses)
    return tuple(addresses)


def redis_key(sender: str) -> str:
    return f"{MODULE}:{sender}"


def _resp(*words: str) -> bytes:
    encoded = (word.encode() for word in words)
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)


def _request(msgid: int, method: str, *params: object) -> bytes:
    return bytes(msgpack.packb([0, msgid, method, params]))


RESP = Wire(
    name="resp",
    get=lambda _msgid, sender: _resp("GET", redis_key(sender)),
    set=lambda _msgid, sender, state: _resp("SET", redis_key(sender), state),
    set_many=lambda _msgid, entries: _resp(
        "MSET", *(word for sender, state in entries for word in (redis_key(sender), state))
    ),
    state=lambda _msgid, state: b"$%d\r\n%s\r\n" % (len(state), state.encode()),
    stored=lambda _msgid: b"+OK\r\n",
)
MESSAGEPACK = Wire(
    name="msgpack",
    get=lambda msgid, sender: _request(msgid, "get", MODULE, sender),
    set=lambda msgid, sender, state: _request(msgid, "set", MODULE, sender, state),
    set_many=lambda msgid, entries: _request(msgid, "set_many", [(MODULE, *entry) for entry in entries]),
    state=lambda msgid, state: bytes(msgpack.packb([1, msgid, None, state])),
    stored=lambda msgid: bytes(msgpack.packb([1, msgid, None, None])),
)


def gets(wire: Wire, keys: Sequence[str]) -> list[bytes]:
    return [wire.get(msgid, sender) for msgid, sender in enumerate(keys)]


def sets(wire: Wire, keys: Sequence[str], states: Sequence[str] = STATES) -> list[bytes]:
    """One lap over all keys for each state, so that no `set` is of the state already there."""
    entries = [(sender, state) for state in states for sender in keys]
    return [wire.set(msgid, *entry) for msgid, entry in enumerate(entries)]


def write(path: Path, requests: Iterable[bytes]) -> Path:
    """Writes the file that load.c reads: each request behind its length."""
    path.write_bytes(b"".join(struct.pack("<I", len(request)) + request for request in requests))
    return path
