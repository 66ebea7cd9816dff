"""One request after the other, each answer compared with the right one: the load only counts answers."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from benchmarks.errors import BenchmarkError
from benchmarks.prebuilt import Entry, Wire
from benchmarks.processes import Server

ANSWER_SECONDS = 30.0
MSGID = 1


class Connection:
    def __init__(self, server: Server, wire: Wire, socket_: socket.socket) -> None:
        self._server, self._wire, self._socket = server, wire, socket_

    def set(self, sender: str, state: str) -> None:
        self._ask(self._wire.set(MSGID, sender, state), self._wire.stored(MSGID))

    def set_many(self, entries: Iterable[Entry]) -> None:
        self._ask(self._wire.set_many(MSGID, entries), self._wire.stored(MSGID))

    def check(self, sender: str, state: str) -> None:
        """Raises BenchmarkError where the server has another state."""
        self._ask(self._wire.get(MSGID, sender), self._wire.state(MSGID, state))

    def _ask(self, request: bytes, expected: bytes) -> None:
        self._socket.sendall(request)
        # Far too short to come in pieces.
        if (answer := self._socket.recv(4096)) != expected:
            raise BenchmarkError(f"{self._server.name} answered {answer!r} instead of {expected!r}")


@contextmanager
def connected(server: Server, wire: Wire) -> Iterator[Connection]:
    with socket.create_connection((server.host, server.port), timeout=ANSWER_SECONDS) as socket_:
        yield Connection(server, wire, socket_)
