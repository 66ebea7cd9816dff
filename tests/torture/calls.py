"""The calls that a writer makes, drawn at random: all that writes, on keys of its own."""

import itertools
from collections.abc import Callable, Mapping
from random import Random

from statestore.base import START, Pair, Sender
from tests.torture.model import Call, value

MODULES = ("app.join", "app.post", "app.bounce")
# A few are written again and again; the others make the store, and its snapshots, larger.
HOT: tuple[Sender, ...] = (None, "", *(f"hot{number}@example.org" for number in range(6)))
COLD: tuple[Sender, ...] = tuple(f"cold{number}@example.org" for number in range(300))
HOT_KEYS: list[Pair] = [(module, sender) for module in MODULES for sender in HOT]
OFTEN_HOT = 0.7
MANY = (2, 5, 20, 200)  # keys in one set_many
PADDING = (*[0] * 8, 10, 40, 200, 900)  # characters: what is written has many lengths, up to about what is allowed


class Author:
    """Numbers its calls, so that each writes a value that no other does. `clears`: now and then it clears them all."""

    def __init__(self, name: str, *, clears: bool) -> None:
        self.name = name
        self._numbers = itertools.count(1)
        self.number = next(self._numbers)  # of the next call
        kinds = {**KINDS, _clear: 1} if clears else KINDS
        self._kinds, self._weights = tuple(kinds), tuple(itertools.accumulate(kinds.values()))

    def next(self, random: Random, state: Mapping[Pair, str]) -> Call:
        """`state` is what the keys hold when the call is executed."""
        (kind,) = random.choices(self._kinds, cum_weights=self._weights)
        new = value(self.name, self.number, random.choice(PADDING))
        self.number = next(self._numbers)
        return kind(random, state, new)


def _set(random: Random, _state: Mapping[Pair, str], new: str) -> Call:
    key = _key(random)
    return Call("set", (*key, new), {key: new})


def _remove(random: Random, _state: Mapping[Pair, str], _new: str) -> Call:
    return _set(random, _state, START)


def _set_many(random: Random, _state: Mapping[Pair, str], new: str) -> Call:
    """One of its keys is removed."""
    changes = dict.fromkeys((_key(random) for _ in range(random.choice(MANY))), new)
    changes[_key(random)] = START
    return Call("set_many", ([(*key, state) for key, state in changes.items()],), changes)


def _set_all(random: Random, state: Mapping[Pair, str], new: str) -> Call:
    sender = _sender(random)
    keys = tuple((module, sender) for module in MODULES)
    changes = {key: new for key in keys if key in state}
    return Call("set_all", (sender, new), changes, len(changes), about=keys)


def _forget(random: Random, state: Mapping[Pair, str], _new: str) -> Call:
    return _set_all(random, state, START)


def _swap(random: Random, state: Mapping[Pair, str], new: str) -> Call:
    key = _key(random)
    present = state.get(key, START)
    return Call("compare_and_set", (*key, present, new), {key: new}, [True, present])


def _swap_in_vain(random: Random, state: Mapping[Pair, str], new: str) -> Call:
    """What it expects is what it wants to write, and nobody has written that."""
    key = _key(random)
    return Call("compare_and_set", (*key, new, new), {}, [False, state.get(key, START)], about=(key,))


def _clear(_random: Random, state: Mapping[Pair, str], _new: str) -> Call:
    return Call("clear", (), dict.fromkeys(state, START))


def _key(random: Random) -> Pair:
    return random.choice(MODULES), _sender(random)


def _sender(random: Random) -> Sender:
    return random.choice(HOT if random.random() < OFTEN_HOT else COLD)


Draw = Callable[[Random, Mapping[Pair, str], str], Call]

KINDS: dict[Draw, int] = {
    _set: 60,
    _remove: 8,
    _set_many: 8,
    _set_all: 8,
    _forget: 2,
    _swap: 15,
    _swap_in_vain: 4,
}
