"""A well-behaved client, one request at a time, and how long each took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from tests.hostile.clients import TOKEN
from tests.server.rpc import RawClient

PAUSE = 0.002  # seconds between two requests
SETS_AMONG = 10  # every tenth request


class Latency(NamedTuple):
    """Milliseconds."""

    count: int
    p50: float
    p99: float
    longest: float

    @classmethod
    def of(cls, seconds: list[float]) -> Self:
        percentiles = statistics.quantiles(seconds, n=100, method="inclusive")
        return cls(len(seconds), percentiles[49] * 1000, percentiles[98] * 1000, max(seconds) * 1000)


class Bystander:
    """Asks until it is told to stop. It checks every answer."""

    def __init__(self, address: str) -> None:
        self._client = RawClient(address)
        self._client.ask("hello", {"token": TOKEN})
        self.gets: list[float] = []
        self.sets: list[float] = []

    def ask_for(self, seconds: float) -> tuple[Latency, Latency]:
        """Of its gets and its sets."""
        self.gets, self.sets = [], []
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            number += 1
            self._once(number)
            time.sleep(PAUSE)
        return Latency.of(self.gets), Latency.of(self.sets)

    def close(self) -> None:
        self._client.socket.close()

    def _once(self, number: int) -> None:
        state = f"STATE {number}"
        if number % SETS_AMONG == 1:
            self._timed(self.sets, lambda: self._client.ask("set", "bystander", "me@a.example", state))
            self._state = state
        else:
            found = self._timed(self.gets, lambda: self._client.ask("get", "bystander", "me@a.example"))
            assert found == self._state, "another state than it has set"

    def _timed(self, into: list[float], ask: Callable[[], object]) -> object:
        started = time.perf_counter()
        answer = ask()
        into.append(time.perf_counter() - started)
        return answer
