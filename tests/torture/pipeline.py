"""A connection that asks until the daemon is gone, several requests at a time."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.server.rpc import RawClient

Next = Callable[[], bytes]  # makes the next request
Take = Callable[[int, str | None, Any], None]  # gets id, error and result of an answer


def connect(address: str, namespace: str) -> RawClient:
    client = RawClient(address)
    client.ask("hello", {"namespace": namespace})
    return client


def run(client: RawClient, window: int, next_request: Next, take: Take) -> None:
    """Keeps up to `window` requests under way. What the daemon has answered before its end is taken to the last."""
    unanswered, broken = 0, False
    with client:
        while True:
            if unanswered <= window // 2 and not broken:
                requests = [next_request() for _ in range(window - unanswered)]
                unanswered += len(requests)
                broken = True
                with suppress(ConnectionError):
                    client.send(*requests)
                    broken = False
            answer = client.next()
            if answer is None:
                return
            unanswered -= 1
            _, msgid, error, result = answer
            take(msgid, error, result)
