"""The kinds of clients that mean no good. Each is one connection."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import msgpack

TOKEN = "open sesame, please"
RECEIVE_BUFFER = 4096  # bytes; what the system takes for a client that does not read is no merit of the daemon
SCANS = 1000  # that a deaf one asks for, each answered with a quarter of a MiB
GETS_AT_ONCE = 500
A_SECOND = 1.0

_ids = itertools.cycle(range(2**31))


def request(method: str, *params: object) -> bytes:
    return bytes(msgpack.packb([0, next(_ids), method, params]))


HELLO = request("hello", {"token": TOKEN})
# As a TLS client begins: the head of a record of 512 bytes, and a little of what is to be in it.
HALF_A_HANDSHAKE = bytes.fromhex("1603010200010001fc0303") + bytes(100)


@dataclass
class Fates:
    """Of all clients of a kind. closed: by the daemon, after so many seconds each; answers: bytes."""

    connected: int = 0
    refused: int = 0
    closed: list[float] = field(default_factory=list)
    answers: int = 0


class Hostile(asyncio.Protocol):
    """Silent: connects and says nothing."""

    transport: asyncio.Transport

    def __init__(self, fates: Fates) -> None:
        self.fates = fates
        self.since = time.monotonic()
        self.is_done = False  # by its own wish

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.fates.connected += 1
        self.begin()

    def data_received(self, data: bytes) -> None:
        self.fates.answers += len(data)

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.is_done:
            self.fates.closed.append(time.monotonic() - self.since)

    def begin(self) -> None: ...

    def tick(self) -> None:
        """Each second."""

    def end(self) -> None:
        self.is_done = True
        self.transport.abort()


class Dripping(Hostile):
    """A good hello, then a request of which a byte comes each second."""

    def begin(self) -> None:
        self._rest = iter(request("set", "lists", "drip@a.example", "S" * 200))
        self.transport.write(HELLO)

    def tick(self) -> None:
        self.transport.write(bytes([next(self._rest)]))


class DrippingHello(Dripping):
    """As this, but it is the hello that drips."""

    def begin(self) -> None:
        self._rest = iter(request("hello", {"token": TOKEN, "client": "c" * 200}))


class Deaf(Hostile):
    """Asks for much, and does not read."""

    def begin(self) -> None:
        asyncio.get_running_loop().call_soon(self.transport.pause_reading)  # it only begins to read after this
        self.transport.write(HELLO + b"".join(request("scan", None, None, None, None) for _ in range(SCANS)))

    def tick(self) -> None:
        """Whoever does not read learns by writing that the connection has gone."""
        self.transport.write(request("ping"))


class Endless(Hostile):
    """Asks without end, and reads what it is answered."""

    def begin(self) -> None:
        self._asking = HELLO
        self._may_write = True
        self._ask()

    def _ask(self) -> None:
        if self._may_write and not self.transport.is_closing():
            self.transport.write(self._asking)
            self._asking = request("get", "lists", "sender7@a.example") * GETS_AT_ONCE
            asyncio.get_running_loop().call_soon(self._ask)

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._ask()


class Flooding(Endless):
    """As this, but it writes, too."""

    def _ask(self) -> None:
        if self._may_write and not self.transport.is_closing():
            self.transport.write(self._asking)
            self._asking = b"".join(request("set", "flood", f"s{number}", "A") for number in range(GETS_AT_ONCE))
            asyncio.get_running_loop().call_soon(self._ask)


class HalfSecure(Hostile):
    """Begins a TLS handshake, and leaves it at that."""

    def begin(self) -> None:
        self.transport.write(HALF_A_HANDSHAKE)


HASTY = "hasty"  # connects and hangs up at once, again and again: no connection to speak of
HALF_SECURE = "half-secure"
DEAF_SECURE = "deaf-secure"  # deaf, by TLS
SECURE = (HALF_SECURE, DEAF_SECURE)  # for a daemon that has TLS
KINDS: dict[str, Callable[[Fates], Hostile]] = {
    "silent": Hostile,
    "dripping": Dripping,
    "dripping-hello": DrippingHello,
    "deaf": Deaf,
    "endless": Endless,
    "flooding": Flooding,
    HALF_SECURE: HalfSecure,
    DEAF_SECURE: Deaf,
    HASTY: Hostile,
}
