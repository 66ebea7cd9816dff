"""One at a time, in the order of coming, and no turn is ever lost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestored.engines.turns import Turns
from tests.server.fakes import some_turns


class Watched:
    """Turns, and how often they became free."""

    def __init__(self) -> None:
        self.freed = 0
        self.turns = Turns(self._free)

    def _free(self) -> None:
        self.freed += 1


async def test_what_is_free_is_taken_without_waiting() -> None:
    watched = Watched()
    assert watched.turns.take()
    assert not watched.turns.take()
    watched.turns.give_back()
    assert watched.freed == 1
    assert watched.turns.take()


async def test_who_waits_has_it_before_anybody_who_does_not() -> None:
    watched, had = Watched(), []

    async def wait(number: int) -> None:
        async with watched.turns:
            had.append(number)
            assert not watched.turns.take()
            await asyncio.sleep(0)

    assert watched.turns.take()
    tasks = [asyncio.create_task(wait(number)) for number in range(3)]
    await some_turns()
    assert had == []
    watched.turns.give_back()
    assert not watched.turns.take()
    await asyncio.gather(*tasks)
    assert had == [0, 1, 2]
    assert watched.freed == 1  # when nobody waits any more
    assert watched.turns.take()


async def test_it_is_given_back_where_its_use_fails() -> None:
    watched = Watched()
    with pytest.raises(ZeroDivisionError):
        async with watched.turns:
            raise ZeroDivisionError
    assert watched.turns.take()


async def test_whoever_it_is_that_becomes_free_may_take_it_at_once() -> None:
    taken: list[bool] = []
    turns = Turns(lambda: taken.append(turns.take()))
    async with turns:
        pass
    assert taken == [True]
    assert not turns.take()


@pytest.mark.parametrize("somebody_waits", [False, True])
async def test_who_is_cancelled_when_it_was_already_given_to_him_gives_it_back(somebody_waits: bool) -> None:
    watched = Watched()

    async def use() -> bool:
        async with watched.turns:
            return True

    assert watched.turns.take()
    tasks = [asyncio.create_task(use()) for _ in range(2 if somebody_waits else 1)]
    await some_turns()
    watched.turns.give_back()
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [True] * somebody_waits
    assert watched.turns.take()


@given(
    steps=st.lists(st.tuples(st.sampled_from(["come", "cancel", "turn", "give back"]), st.integers(0, 9)), max_size=30)
)
def test_no_turn_is_lost_and_none_given_twice(steps: list[tuple[str, int]]) -> None:
    """Whoever is cancelled, at whatever moment: also when it was already given to him."""

    async def take_turns() -> None:
        watched, inside = Watched(), 0

        async def use() -> None:
            nonlocal inside
            async with watched.turns:
                assert inside == 0
                inside += 1
                try:
                    await asyncio.sleep(0)
                finally:
                    inside -= 1

        assert watched.turns.take()
        given_back = False
        tasks: list[asyncio.Task[None]] = []
        for step, number in steps:
            if step == "come":
                tasks.append(asyncio.create_task(use()))
            elif step == "cancel" and tasks:
                tasks[number % len(tasks)].cancel()
            elif step == "turn":
                await asyncio.sleep(0)
            elif not given_back:
                given_back = True
                watched.turns.give_back()
        if not given_back:
            watched.turns.give_back()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
        assert watched.turns.take()

    asyncio.run(take_turns())
