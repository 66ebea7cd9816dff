"""What engines answer, packed."""

from asyncio import CancelledError, Future, get_running_loop

import msgpack
import pytest

from statestore.errors import Forbidden, TooLong
from statestored import answers
from statestored.answers import MAX_REPLY, NIL, pack_nil, pack_state, pack_states, reply
from statestored.engines.base import Held
from tests.server.fakes import HeldCommit


def test_the_same_state_is_packed_the_same_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What clients make up does not fill it without end."""
    monkeypatch.setattr(answers, "MAX_PACKED_STATES", 2)
    monkeypatch.setattr(answers, "packed_states", {})
    for _ in range(2):
        for number in range(5):
            assert msgpack.unpackb(pack_state(b"S%d" % number)) == f"S{number}"
    assert len(answers.packed_states) == 2


def test_what_is_held_is_packed_once() -> None:
    """It is the same for all who wait for one commit."""
    held = Held([b"A"], HeldCommit())
    assert reply(held, pack_states) is held
    assert held.packed == b"\x91\xa1A"
    assert reply(held, lambda _: b"again") is held
    assert held.packed == b"\x91\xa1A"


async def test_what_comes_later_is_packed_then() -> None:
    answer: Future[None] = get_running_loop().create_future()
    packed = reply(answer, pack_nil)
    assert isinstance(packed, Future)
    answer.set_result(None)
    assert await packed == NIL


@pytest.mark.parametrize("failure", [Forbidden("no"), ZeroDivisionError()])
async def test_what_fails_later_fails_then(failure: Exception) -> None:
    answer: Future[None] = get_running_loop().create_future()
    packed = reply(answer, pack_nil)
    assert isinstance(packed, Future)
    answer.set_exception(failure)
    with pytest.raises(type(failure)):
        await packed


async def test_what_is_given_up_on_either_side_is_given_up() -> None:
    for given_up in (0, 1):
        answer: Future[None] = get_running_loop().create_future()
        packed = reply(answer, pack_nil)
        assert isinstance(packed, Future)
        (answer, packed)[given_up].cancel()
        if given_up:
            answer.set_result(None)
        with pytest.raises(CancelledError):
            await packed
        assert packed.cancelled()


async def test_what_comes_later_and_is_too_long_is_refused() -> None:
    """L1."""
    answer: Future[list[bytes]] = get_running_loop().create_future()
    packed = reply(answer, pack_states)
    assert isinstance(packed, Future)
    answer.set_result([b"A" * MAX_REPLY])
    with pytest.raises(TooLong, match="ask for fewer at once"):
        await packed
