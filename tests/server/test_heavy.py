"""One heavy thing in a turn of the loop, and everybody in turn."""

from statestored.heavy import HeavyTurns
from tests.server.fakes import Loop


class Client:
    def __init__(self, had: list[str], name: str) -> None:
        self._had, self._name = had, name

    def have_turn(self) -> None:
        self._had.append(self._name)


def test_there_is_one_in_a_turn_of_the_loop() -> None:
    loop, turns = Loop(), HeavyTurns()
    assert turns.take(loop.call_soon)
    assert not turns.take(loop.call_soon)
    loop.turn()
    assert turns.take(loop.call_soon)


def test_those_who_wait_have_theirs_in_their_order_one_in_each_turn() -> None:
    loop, turns, had = Loop(), HeavyTurns(), list[str]()
    turns.take(loop.call_soon)
    for name in "abc":
        turns.wait(Client(had, name))
    for before in ("", "a", "ab"):
        assert "".join(had) == before
        loop.turn()
        assert not turns.take(loop.call_soon)  # it is of the one who waited
    assert had == ["a", "b", "c"]
    loop.turn()
    assert turns.take(loop.call_soon)


def test_who_has_gone_is_passed_over() -> None:
    loop, turns, had = Loop(), HeavyTurns(), list[str]()
    turns.take(loop.call_soon)
    gone = Client(had, "gone")
    turns.wait(gone)
    turns.wait(Client(had, "there"))
    turns.forget(gone)
    loop.turn()
    assert had == ["there"]
