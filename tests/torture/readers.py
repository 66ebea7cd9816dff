"""Who gets the keys of one writer while they are written, and remembers what it was shown."""

from random import Random
from typing import Any

from statestore.base import Pair
from tests.server.rpc import RawClient, request
from tests.torture import pipeline
from tests.torture.calls import HOT_KEYS
from tests.torture.model import Fault, Kind

WINDOWS = (1, 4, 16)
MANY = 0.2  # of the requests are a get_many


class Reader:
    """For one round."""

    def __init__(self, random: Random) -> None:
        self.faults: list[Fault] = []
        self._random = random
        self._asked: list[list[Pair]] = []  # by the id of the request
        self._answers: dict[int, list[str]] = {}

    def run(self, client: RawClient) -> None:
        pipeline.run(client, self._random.choice(WINDOWS), self._next_request, self._take)

    def shown(self) -> list[tuple[Pair, str]]:
        """In the order of the requests."""
        answers = sorted(self._answers.items())
        return [pair for msgid, states in answers for pair in zip(self._asked[msgid], states, strict=True)]

    def _next_request(self) -> bytes:
        msgid = len(self._asked)
        if self._random.random() < MANY:
            self._asked.append(HOT_KEYS)
            return request(msgid, "get_many", HOT_KEYS)
        key = self._random.choice(HOT_KEYS)
        self._asked.append([key])
        return request(msgid, "get", *key)

    def _take(self, msgid: int, error: str | None, result: Any) -> None:
        if error is not None:
            self.faults.append(Fault(Kind.ANSWER, "a reader", ("a state",), error))
        else:
            self._answers[msgid] = [result] if isinstance(result, str) else result
