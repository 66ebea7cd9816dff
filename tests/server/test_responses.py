"""Responses leave once, whole, and no sooner than they may."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from statestore.errors import Forbidden, Unavailable
from statestored.answers import NIL
from statestored.budget import OWN
from statestored.commands import Service
from statestored.connection import HIGH_WATER
from statestored.engines.base import Held
from statestored.responses import LARGE_REPLY, MAX_HELD, WRITE_SIZE, Responses
from tests.server.fakes import HeldCommit, make_service
from tests.server.rpc import code_of, messages


class Client(asyncio.WriteTransport):
    """What was written for it, each write apart."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.has_gone = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.has_gone

    def get_write_buffer_size(self) -> int:
        return 0

    def read(self) -> list[Any]:
        return messages(b"".join(self.writes))


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def service() -> Service:
    return make_service()


@pytest.fixture
def left() -> list[int]:
    """Called back, so often."""
    return []


@pytest.fixture
def responses(service: Service, client: Client, left: list[int]) -> Responses:
    then: Callable[[], None] = lambda: left.append(1)  # noqa: E731
    responses = Responses(service, client)
    responses.then = then
    return responses


def head(msgid: int) -> bytes:
    packed: bytes = msgpack.packb([1, msgid, None, None])
    return packed[:-1]


def held(commit: HeldCommit, result: Any = None) -> Held[Any]:
    answer = Held(result, commit)
    answer.packed = msgpack.packb(result)
    return answer


def test_all_that_can_leave_does_in_one_write(responses: Responses, client: Client) -> None:
    for number in range(3):
        responses.add(head(number), NIL)
    responses.refuse(head(3), Forbidden("not you"))
    assert client.writes == []
    responses.flush()
    responses.flush()
    assert len(client.writes) == 1
    assert [answer[1] for answer in client.read()] == [0, 1, 2, 3]
    assert client.read()[3][2] == "forbidden: not you"


def test_a_large_one_leaves_at_once(responses: Responses, client: Client) -> None:
    responses.add(head(1), msgpack.packb("x" * LARGE_REPLY))
    assert len(client.writes) == 1


def test_what_is_held_leaves_with_its_commit(responses: Responses, client: Client, left: list[int]) -> None:
    """D1."""
    one, other = HeldCommit(), HeldCommit()
    responses.add(head(1), held(one, "A"))
    responses.add(head(2), held(other, "B"))
    responses.add(head(5), held(one, "C"))
    responses.flush()
    assert client.writes == []
    assert responses.held == 3
    other.settle()
    assert client.read() == [[1, 2, None, "B"]]
    assert responses.held == 2
    assert left
    one.settle()
    assert client.read()[1:] == [[1, 1, None, "A"], [1, 5, None, "C"]]
    assert (responses.held, responses.waiting) == (0, 0)


def test_several_that_are_held_leave_in_one_write(responses: Responses, client: Client) -> None:
    heads = [head(1), head(2**32 - 1)]
    responses.hold(heads)
    assert (responses.held, responses.waiting) == (2, 1)
    responses.let_go(heads, held(HeldCommit(), "A"), None)
    assert client.read() == [[1, 1, None, "A"], [1, 2**32 - 1, None, "A"]]
    assert len(client.writes) == 1
    assert (responses.held, responses.waiting) == (0, 0)


def test_where_the_commit_is_taken_back_each_gets_the_error(
    responses: Responses, client: Client, service: Service, left: list[int]
) -> None:
    """D6."""
    commit = HeldCommit()
    responses.add(head(3), held(commit, "A"))
    responses.flush()
    commit.settle(Unavailable("full"))
    responses.hold([head(1), head(2**32 - 1)])
    responses.let_go([head(1), head(2**32 - 1)], held(commit), Unavailable("full"))
    assert [(answer[1], code_of(answer[2]), answer[3]) for answer in client.read()] == [
        (number, "unavailable", None) for number in (3, 1, 2**32 - 1)
    ]
    assert +service.errors == {"unavailable": 3}
    assert left


def test_what_is_kept_counts_until_nothing_waits(responses: Responses) -> None:
    responses.keep(100)
    assert responses.held_bytes == 0
    heads = [head(1)]
    responses.keep(70)
    responses.hold(heads)
    responses.keep(30)
    assert responses.held_bytes == 100
    responses.let_go(heads, held(HeldCommit()), None)
    assert responses.held_bytes == 0


def test_it_says_when_much_is_held(responses: Responses) -> None:
    assert not responses.hold([head(1)] * MAX_HELD)
    assert responses.hold([head(1)])


def test_bytes_are_much_too(responses: Responses) -> None:
    responses.keep(OWN)
    assert not responses.hold([head(1)])
    responses.keep(1)
    assert responses.hold([head(1)])


async def test_what_comes_later_leaves_when_it_comes(responses: Responses, client: Client) -> None:
    later: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    responses.add(head(1), later)
    responses.flush()
    assert responses.waiting == 1
    later.set_result(msgpack.packb("A"))
    await asyncio.sleep(0)
    assert client.read() == [[1, 1, None, "A"]]
    assert responses.waiting == 0


def test_it_is_untouched_until_something_is_answered_or_will_be(service: Service, client: Client) -> None:
    for touch in (
        lambda responses: responses.add(head(1), NIL),
        lambda responses: responses.add(head(1), held(HeldCommit())),
        lambda responses: responses.refuse(head(1), Forbidden("not you")),
    ):
        responses = Responses(service, client)
        assert responses.untouched()
        touch(responses)
        assert not responses.untouched()
        responses.flush()
        assert not responses.untouched()


def test_nothing_is_written_for_a_client_that_has_gone(responses: Responses, client: Client) -> None:
    commit = HeldCommit()
    responses.add(head(1), held(commit))
    responses.flush()
    client.has_gone = True
    commit.settle()
    assert client.writes == []
    assert responses.waiting == 0


# A client that reads slowly


class Slow(Client):
    """Keeps what it has got until it is told that the client takes it; more than `HIGH_WATER` bytes are enough."""

    def __init__(self, responses: Responses) -> None:
        super().__init__()
        self.responses = responses
        self.kept = 0
        self.seen: list[int] = []  # what was unsent when it paused

    def write(self, data: Any) -> None:
        super().write(data)
        self.kept += len(data)
        if self.kept > HIGH_WATER and not self.responses.is_paused:
            self.responses.is_paused = True
            self.seen.append(self.responses.unsent)

    def get_write_buffer_size(self) -> int:
        return self.kept

    def take(self) -> None:
        self.kept = 0
        self.responses.resume()


@pytest.fixture
def slow(responses: Responses) -> Slow:
    slow = Slow(responses)
    responses._transport = slow
    return slow


LONG = bytes(msgpack.packb("A" * 2**20))


def test_the_transport_gets_no_more_than_it_takes(responses: Responses, slow: Slow) -> None:
    """It keeps the whole of what it was given until the last byte has left."""
    responses.add(head(1), LONG)
    while responses.is_owing:
        assert slow.kept <= HIGH_WATER + WRITE_SIZE
        slow.take()
    assert max(map(len, slow.writes)) <= WRITE_SIZE
    assert slow.read() == [[1, 1, None, "A" * 2**20]]


def test_all_that_is_unsent_counts_from_the_first_pause_on(responses: Responses, slow: Slow) -> None:
    responses.add(head(1), LONG)
    size = len(head(1) + LONG)
    written = sum(map(len, slow.writes))
    assert slow.seen == [slow.kept + size - written]
    assert responses.unsent == slow.kept + size - written
    slow.take()
    assert responses.unsent == size - written


def test_the_memory_of_what_is_unsent_is_never_much_more_than_that(responses: Responses, slow: Slow) -> None:
    responses.add(head(1), LONG)
    while responses.is_owing:
        assert responses.unsent <= responses.unsent_memory <= 1.5 * responses.unsent + WRITE_SIZE
        assert responses.unsent_memory - slow.kept >= responses._backlog.__alloc__()
        slow.take()


def test_what_is_answered_meanwhile_waits_behind(responses: Responses, slow: Slow) -> None:
    responses.add(head(1), LONG)
    responses.add(head(2), NIL)
    responses.flush()
    commit = HeldCommit()
    responses.add(head(3), held(commit, "A"))
    commit.settle()
    while responses.is_owing:
        slow.take()
    assert [message[1] for message in slow.read()] == [1, 2, 3]


def test_short_answers_are_kept_too_while_it_pauses(responses: Responses, slow: Slow) -> None:
    responses.is_paused = True
    responses.add(head(1), NIL)
    responses.flush()
    assert (slow.writes, responses.is_owing, responses.unsent) == ([], True, len(head(1) + NIL))
    slow.take()
    assert (slow.read(), responses.is_owing) == ([[1, 1, None, None]], False)
