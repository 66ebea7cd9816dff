"""The same keys and states, as ready-made requests of both protocols."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgpack

MODULE = "newsletter.handlers.subscriptions"
STATES = ("CONFIRMING", "POSTING", "BOUNCING")
KEYS = 10_000


@dataclass(frozen=True)
class Wire:
    """How one protocol asks, and how it answers a `get`. The first argument is always the msgid."""

    name: str  # as load.c calls it
    get: Callable[[int, str], bytes]
    set: Callable[[int, str, str], bytes]
    state: Callable[[int, str], bytes]


def senders(count: int = KEYS) -> list[str]:
    """In an order that is not the one of insertion or of the alphabet, but the same in every run."""
    addresses = [f"subscriber.{number:06}@example.com" for number in range(count)]
    random.Random(count).shuffle(addresses)
    return addresses


def redis_key(sender: str) -> str:
    return f"{MODULE}:{sender}"


def _resp(*words: str) -> bytes:
    encoded = (word.encode() for word in words)
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)


def _request(msgid: int, method: str, *params: str) -> bytes:
    return bytes(msgpack.packb([0, msgid, method, params]))


RESP = Wire(
    name="resp",
    get=lambda _msgid, sender: _resp("GET", redis_key(sender)),
    set=lambda _msgid, sender, state: _resp("SET", redis_key(sender), state),
    state=lambda _msgid, state: b"$%d\r\n%s\r\n" % (len(state), state.encode()),
)
MESSAGEPACK = Wire(
    name="msgpack",
    get=lambda msgid, sender: _request(msgid, "get", MODULE, sender),
    set=lambda msgid, sender, state: _request(msgid, "set", MODULE, sender, state),
    state=lambda msgid, state: bytes(msgpack.packb([1, msgid, None, state])),
)


def gets(wire: Wire) -> list[bytes]:
    return [wire.get(msgid, sender) for msgid, sender in enumerate(senders())]


def sets(wire: Wire) -> list[bytes]:
    """One lap over all keys for each state, so that no `set` is of the state already there."""
    pairs = [(sender, state) for state in STATES for sender in senders()]
    return [wire.set(msgid, sender, state) for msgid, (sender, state) in enumerate(pairs)]


def write(path: Path, requests: Iterable[bytes]) -> Path:
    """Writes the file that load.c reads: each request behind its length."""
    path.write_bytes(b"".join(struct.pack("<I", len(request)) + request for request in requests))
    return path
