"""The contract over a mapping: what the mapping is asked, and when."""

import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest

from statestore import START, BadRequest, Entry, TooLong
from statestore.base import Sender
from statestore.mapping import MappingStorage, States

DAY = 86400


class Copies(MutableMapping[Sender, States]):
    """As a shelf: what it gives out is not what it holds."""

    def __init__(self) -> None:
        self.held: dict[Sender, States] = {}

    def __getitem__(self, sender: Sender) -> States:
        return deepcopy(self.held[sender])

    def __setitem__(self, sender: Sender, states: States) -> None:
        self.held[sender] = deepcopy(states)

    def __delitem__(self, sender: Sender) -> None:
        del self.held[sender]

    def __iter__(self) -> Iterator[Sender]:
        return iter(list(self.held))

    def __len__(self) -> int:
        return len(self.held)


class Storage(MappingStorage):
    def __init__(self) -> None:
        self.senders = Copies()
        self.times_held = 0

    @contextmanager
    def _held(self) -> Iterator[Copies]:
        self.times_held += 1
        yield self.senders


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda day: monkeypatch.setattr(time, "time", lambda: day * DAY + 3600.5)


@pytest.fixture
def storage(today: Callable[[int], None]) -> Storage:
    today(100)
    storage = Storage()
    storage.set_many([("m", "a", "A"), ("n", "a", "B"), ("m", None, "A"), ("m", "", "C")])
    storage.times_held = 0
    return storage


CALLS: list[Callable[[Storage], Any]] = [
    lambda storage: storage.get("m", "a"),
    lambda storage: storage.set("m", "a", "Z"),
    lambda storage: storage.set_all("a", "Z"),
    lambda storage: storage.compare_and_set("m", "a", "A", "Z"),
    lambda storage: storage.get_many([("m", "a"), ("m", None)]),
    lambda storage: storage.set_many([("m", "a", "Z"), ("m", None, "Z")]),
    lambda storage: list(storage.scan()),
    lambda storage: storage.count(),
    lambda storage: storage.counts(),
    lambda storage: storage.clear(),
]


@pytest.mark.parametrize("call", CALLS)
def test_each_call_holds_the_mapping_once(storage: Storage, call: Callable[[Storage], Any]) -> None:
    call(storage)
    assert storage.times_held == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda storage: storage.get("m", "x" * 5000),
        lambda storage: storage.set("m", "a", 5),
        lambda storage: storage.set_all(b"a", "A"),
        lambda storage: storage.set_all("a", None),
        lambda storage: storage.compare_and_set("m", "a", None, "A"),
        lambda storage: storage.compare_and_set("m", "a", "A", "x" * 2000),
        lambda storage: storage.get_many([("m", "a"), ("m", 5)]),
        lambda storage: storage.set_many([("m", "a", "Z"), ("m", "b", None)]),
        lambda storage: storage.scan(module=5),
        lambda storage: storage.scan(prefix=None),
        lambda storage: storage.scan(state=b"A"),
        lambda storage: storage.count(module=b"m"),
        lambda storage: storage.count(state=5),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_held(storage: Storage, call: Callable[[Any], Any]) -> None:
    held = deepcopy(storage.senders.held)
    with pytest.raises((BadRequest, TooLong)):
        call(storage)
    assert storage.times_held == 0
    assert storage.senders.held == held


def test_start_leaves_nothing_behind(storage: Storage) -> None:
    storage.set("m", "a", START)
    assert storage.senders.held["a"] == {"n": ("B", 100)}
    storage.set("n", "a", START)
    assert "a" not in storage.senders.held
    storage.set("m", "stranger", START)
    storage.set_all(None, START)
    assert storage.compare_and_set("m", "", "C", START) == (True, "C")
    assert storage.compare_and_set("m", "stranger", START, START) == (True, START)
    assert storage.senders.held == {}


def test_an_entry_knows_the_day_of_its_last_change(storage: Storage, today: Callable[[int], None]) -> None:
    today(101)
    storage.set("m", "a", "A")  # no change
    storage.set("n", "a", "C")
    storage.compare_and_set("m", None, "A", "A")  # none either
    storage.compare_and_set("m", "", "other", "Z")
    today(102)
    storage.set_all("a", "C")
    assert set(storage.scan()) == {
        Entry("m", "a", "C", 102),
        Entry("n", "a", "C", 101),
        Entry("m", None, "A", 100),
        Entry("m", "", "C", 100),
    }


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, {("m", "a"), ("n", "a"), ("m", None), ("m", "")}),
        ({"module": "m"}, {("m", "a"), ("m", None), ("m", "")}),
        ({"module": ""}, set()),
        ({"prefix": "a"}, {("m", "a"), ("n", "a")}),
        ({"prefix": "A"}, set()),
        ({"prefix": "None"}, set()),
        ({"state": "A"}, {("m", "a"), ("m", None)}),
        ({"state": ""}, set()),
        ({"state": START}, set()),
        ({"module": "m", "prefix": "a", "state": "A"}, {("m", "a")}),
    ],
)
def test_a_scan_finds_what_was_asked_for(storage: Storage, wanted: dict[str, str], found: set[Any]) -> None:
    assert {entry[:2] for entry in storage.scan(**wanted)} == found


def test_counts_are_by_module_and_state(storage: Storage) -> None:
    assert storage.counts() == {("m", "A"): 2, ("n", "B"): 1, ("m", "C"): 1}
    assert (storage.count(), storage.count("m"), storage.count(state="A"), storage.count("n", "A")) == (4, 3, 2, 0)


def test_a_later_triple_wins(storage: Storage) -> None:
    storage.set_many([("m", "a", "X"), ("m", "b", "X"), ("m", "a", START), ("m", "b", "Y")])
    assert storage.get_many([("m", "a"), ("m", "b"), ("n", "a")]) == [START, "Y", "B"]


def test_only_what_is_expected_is_swapped(storage: Storage) -> None:
    assert storage.compare_and_set("m", "a", "B", "Z") == (False, "A")
    assert storage.compare_and_set("m", "a", "A", "Z") == (True, "A")
    assert storage.compare_and_set("m", "new", START, "Z") == (True, START)
    assert storage.get_many([("m", "a"), ("m", "new")]) == ["Z", "Z"]
