"""Who writes: a writer has a namespace, and so all of its keys, for itself."""

from random import Random

from statestore.base import Pair
from tests.server.rpc import RawClient, request
from tests.torture import pipeline
from tests.torture.calls import Author
from tests.torture.model import History

WINDOWS = (1, 1, 4, 16, 64)  # one call after the other, or so many at a time


class Writer:
    """Lives through all rounds; a round is `begin`, `run` in a thread, and `settle`."""

    def __init__(self, number: int, *, clears: bool) -> None:
        self.name = f"writer{number}"
        self._author = Author(self.name, clears=clears)
        self._state: dict[Pair, str] = {}
        self._random = Random()
        self.history = History(self.name, {}, 1)

    def begin(self, random: Random) -> None:
        self._random = random
        self.history = History(self.name, self._state, self._author.number)

    def run(self, client: RawClient) -> None:
        pipeline.run(client, self._random.choice(WINDOWS), self._next_request, self.history.take_answer)

    def settle(self, applied: int) -> None:
        """So many of the calls were found after the kill."""
        self._state = self.history.after(applied)

    def _next_request(self) -> bytes:
        call = self._author.next(self._random, self.history.now)
        return request(self.history.record(call), call.method, *call.params)
