"""The contract of a store as a test class, for pytest and hypothesis: run it against your own.

    from statestore.testing import StorageContract

    class TestMyStorage(StorageContract):
        @pytest.fixture
        def storage(self):
            return MyStorage()

What the store held before does not matter, and stays, unless the store allows `clear`.
"""

import uuid
from collections import Counter
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from statestore.base import START, Entry, Limits, Sender, StateStorage, Swap
from statestore.errors import BadRequest, Forbidden, TooLong

# Every str there is: of any script, with NUL, and with lone surrogates, even two that would make one character.
any_text = st.text(st.one_of(st.characters(), st.characters(categories=["Cs"]), st.sampled_from("\0 \n\x7f@'\"")))
any_sender = st.one_of(st.none(), any_text)
some_addresses = st.sampled_from(["a@b.example", "A@B.example", "a@b.example ", "\ud83d", "\udc8c"])
some_senders = st.one_of(st.sampled_from([None, "", "None"]), some_addresses)
some_states = st.sampled_from([START, "CONFIRMING", "POSTING", "posting", "", "\ud83d\udc8c", "\U0001f48c"])

# The fixture's store serves all examples: each keeps to modules of its own. And one test serves several stores.
each_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors])


def new_module(name: str = "") -> str:
    """A module that nobody has used."""
    return f"{uuid.uuid4()}:{name}"


class StorageContract:
    limits = Limits()
    random_runs = 50  # of 30 calls each; fewer for a store that is slow

    @pytest.fixture
    def storage(self) -> StateStorage:
        raise NotImplementedError("override this fixture: it gives the store to test")

    def test_a_stranger_is_at_the_start_and_nothing_is_stored(self, storage: StateStorage) -> None:
        module = new_module()
        assert storage.get(module, "nobody@example.org") == START
        assert storage.get_many([(module, None), (module, "")]) == [START, START]
        assert list(storage.scan(module)) == []

    @each_example
    @given(name=any_text, sender=any_sender, state=any_text)
    def test_any_text_comes_back_exactly(self, storage: StateStorage, name: str, sender: Sender, state: str) -> None:
        module = new_module(name)
        storage.set(module, sender, state)
        assert storage.get(module, sender) == state
        expected = [] if state == START else [(module, sender, state)]
        assert [entry[:3] for entry in storage.scan(module)] == expected

    @each_example
    @given(first=any_sender, second=any_sender)
    def test_two_senders_are_never_the_same(self, storage: StateStorage, first: Sender, second: Sender) -> None:
        module = new_module()
        storage.set(module, first, "FIRST")
        assert storage.get(module, second) == ("FIRST" if first == second else START)

    def test_none_and_empty_and_the_word_none_are_three_senders(self, storage: StateStorage) -> None:
        module = new_module()
        storage.set_many([(module, None, "A"), (module, "", "B"), (module, "None", "C")])
        assert storage.get_many([(module, None), (module, ""), (module, "None")]) == ["A", "B", "C"]

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("a@b.example", "A@b.example"),
            ("a@b.example", "a@b.example "),
            ("a@b.example\0x", "a@b.example\0y"),
            ("\u00e9@b.example", "e\u0301@b.example"),  # one é, written in two ways
            ("x" * 4000 + "a", "x" * 4000 + "b"),
            ("\U0001f48c", "\ud83d\udc8c"),  # a character, and the surrogates that stand for it in UTF-16
        ],
    )
    def test_senders_that_look_alike_are_two(self, storage: StateStorage, first: str, second: str) -> None:
        module = new_module()
        storage.set_many([(module, first, "A"), (module, second, "B")])
        assert storage.get_many([(module, first), (module, second)]) == ["A", "B"]
        assert {entry.sender for entry in storage.scan(module)} == {first, second}

    @pytest.mark.parametrize("joint", ["", ":", " ", "\0", "/", ","])
    def test_module_and_sender_are_not_one_text(self, storage: StateStorage, joint: str) -> None:
        module = new_module()
        storage.set_many([(module, f"x{joint}y", "A"), (f"{module}{joint}x", "y", "B")])
        assert storage.get(module, f"x{joint}y") == "A"
        assert storage.get(f"{module}{joint}x", "y") == "B"

    def test_setting_start_removes_the_entry(self, storage: StateStorage) -> None:
        module = new_module()
        storage.set(module, "a@b.example", "POSTING")
        storage.set(module, "a@b.example", START)
        assert storage.get(module, "a@b.example") == START
        assert storage.count(module) == 0

    def test_set_all_changes_every_module_of_the_sender(self, storage: StateStorage) -> None:
        sender = f"{uuid.uuid4()}@example.org"
        modules = [new_module() for _ in range(3)]
        storage.set_many([(module, sender, "POSTING") for module in modules[:2]])
        storage.set(modules[0], "other@example.org", "POSTING")
        assert storage.set_all(sender, "BOUNCING") == 2
        assert storage.get_many([(module, sender) for module in modules]) == ["BOUNCING", "BOUNCING", START]
        assert storage.get(modules[0], "other@example.org") == "POSTING"
        assert storage.set_all(sender, START) == 2
        assert storage.set_all(sender, "BOUNCING") == 0

    def test_compare_and_set_swaps_only_what_was_expected(self, storage: StateStorage) -> None:
        module = new_module()
        assert storage.compare_and_set(module, None, START, "A") == Swap(True, START)
        assert storage.compare_and_set(module, None, START, "B") == Swap(False, "A")
        assert storage.compare_and_set(module, None, "A", START) == Swap(True, "A")
        assert storage.count(module) == 0

    def test_of_two_triples_for_one_key_the_later_wins(self, storage: StateStorage) -> None:
        module = new_module()
        storage.set(module, "a", "X")
        storage.set_many([(module, "a", "Y"), (module, "a", "X")])
        assert storage.get(module, "a") == "X"

    def test_a_bulk_call_is_checked_before_any_of_it_is_applied(self, storage: StateStorage) -> None:
        module = new_module()
        with pytest.raises(TooLong):
            storage.set_many([(module, "a", "X"), (module, "b" * (self.limits.sender + 1), "X")])
        with pytest.raises(TooLong):
            storage.set_many([(module, str(number), "X") for number in range(self.limits.items + 1)])
        with pytest.raises(BadRequest):
            storage.set_many([(module, "a", "X"), (module, "b")])  # type: ignore[list-item]
        assert storage.count(module) == 0

    def test_the_longest_are_stored_and_longer_are_refused(self, storage: StateStorage) -> None:
        limits = self.limits
        module = new_module().ljust(limits.module, "m")
        sender, state = "\ud83d" * (limits.sender // 3), "é" * (limits.state // 2)  # limits are in bytes
        storage.set(module, sender, state)
        assert storage.get(module, sender) == state
        for too_long in ((module + "m", sender, state), (module, sender + "ss", state), (module, sender, state + "s")):
            with pytest.raises(TooLong):
                storage.set(*too_long)
        with pytest.raises(TooLong):
            storage.get(module, sender + "ss")
        assert storage.count(module) == 1
        storage.set(module, sender, START)

    @pytest.mark.parametrize("wrong", [5, b"bytes", ["list"], object()], ids=lambda wrong: type(wrong).__name__)
    def test_other_types_are_refused(self, storage: StateStorage, wrong: str) -> None:
        module = new_module()
        for call in (
            lambda: storage.get(wrong, "a"),
            lambda: storage.get(module, wrong),
            lambda: storage.set(module, "a", wrong),
            lambda: storage.set_all("a", wrong),
            lambda: storage.compare_and_set(module, "a", wrong, "X"),
        ):
            with pytest.raises(BadRequest):
                call()
        with pytest.raises(BadRequest):
            storage.get(None, "a")  # type: ignore[arg-type]  # only a sender may be None
        assert storage.count(module) == 0

    def test_scan_filters_by_module_prefix_and_state(self, storage: StateStorage) -> None:
        module, other = new_module(), new_module()
        storage.set_many(
            [(module, None, "A"), (module, "ab", "A"), (module, "ac", "B"), (module, "b", "B"), (other, "ab", "A")]
        )

        def found(prefix: str = "", state: str | None = None) -> set[Sender]:
            return {entry.sender for entry in storage.scan(module, prefix, state)}

        assert found() == {None, "ab", "ac", "b"}
        assert found(prefix="a") == {"ab", "ac"}
        assert found(state="A") == {None, "ab"}
        assert found(prefix="a", state="B") == {"ac"}
        assert {module, other} <= {entry.module for entry in storage.scan(prefix="ab")}

    def test_counts_add_up(self, storage: StateStorage) -> None:
        module = new_module()
        storage.set_many([(module, str(number), "AB"[number % 2]) for number in range(9)])
        assert storage.count(module) == 9
        assert storage.count(module, "A") == 5
        assert storage.count(state="B") >= 4
        assert storage.count() >= 9
        counts = storage.counts()
        assert (counts[module, "A"], counts[module, "B"]) == (5, 4)

    def test_the_day_is_that_of_the_last_change(self, storage: StateStorage) -> None:
        module = new_module()
        storage.set(module, "a", "X")
        (entry,) = storage.scan(module)
        assert isinstance(entry, Entry)
        assert entry.day > 20_000

    def test_clear_forgets_all_or_is_refused(self, storage: StateStorage) -> None:
        module = new_module()
        storage.set(module, "a", "X")
        try:
            storage.clear()
        except Forbidden:
            assert storage.get(module, "a") == "X"
        else:
            assert storage.get(module, "a") == START
            assert storage.count() == 0

    def test_like_a_dict_whatever_the_order_of_calls(self, storage: StateStorage) -> None:
        effort = settings(each_example, max_examples=self.random_runs, stateful_step_count=30)
        run: Any = run_state_machine_as_test  # its annotations change from release to release
        run(partial(LikeADict, storage), settings=effort)


class LikeADict(RuleBasedStateMachine):
    """Random calls, each compared with what a dict does."""

    def __init__(self, storage: StateStorage) -> None:
        super().__init__()
        self.storage = storage
        self.run = new_module()
        self.model: dict[tuple[str, Sender], str] = {}

    def teardown(self) -> None:
        """Nothing is left: a store may limit in how many modules a sender has entries."""
        for key in self.model:
            self.storage.set(*key, START)

    modules = st.sampled_from(["", "app.handlers.lists", "App.handlers.lists"])

    @rule(module=modules, sender=some_senders, state=some_states)
    def call_set(self, module: str, sender: Sender, state: str) -> None:
        self.storage.set(*self.key(module, sender), state)
        self.put(self.key(module, sender), state)

    @rule(module=modules, sender=some_senders)
    def call_get(self, module: str, sender: Sender) -> None:
        key = self.key(module, sender)
        assert self.storage.get(*key) == self.model.get(key, START)

    @rule(sender=some_addresses, state=some_states)
    def call_set_all(self, sender: Sender, state: str) -> None:
        keys = [key for key in self.model if key[1] == self.sender(sender)]
        assert self.storage.set_all(self.sender(sender), state) == len(keys)
        for key in keys:
            self.put(key, state)

    @rule(module=modules, sender=some_senders, expected=some_states, state=some_states)
    def call_compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> None:
        key = self.key(module, sender)
        previous = self.model.get(key, START)
        assert self.storage.compare_and_set(*key, expected, state) == Swap(previous == expected, previous)
        if previous == expected:
            self.put(key, state)

    @rule(triples=st.lists(st.tuples(modules, some_senders, some_states), max_size=5))
    def call_set_many(self, triples: list[tuple[str, Sender, str]]) -> None:
        self.storage.set_many([(*self.key(module, sender), state) for module, sender, state in triples])
        for module, sender, state in triples:
            self.put(self.key(module, sender), state)

    @rule(pairs=st.lists(st.tuples(modules, some_senders), max_size=5))
    def call_get_many(self, pairs: list[tuple[str, Sender]]) -> None:
        keys = [self.key(*pair) for pair in pairs]
        assert self.storage.get_many(keys) == [self.model.get(key, START) for key in keys]

    @rule(state=some_states)
    def call_count(self, state: str) -> None:
        counted = sum(self.storage.count(module, state) for module in self.used_modules())
        assert counted == sum(1 for its_state in self.model.values() if its_state == state)

    @invariant()
    def everything_is_found_once(self) -> None:
        found = [entry for module in self.used_modules() for entry in self.storage.scan(module)]
        assert Counter((entry.module, entry.sender, entry.state) for entry in found) == Counter(
            (module, sender, state) for (module, sender), state in self.model.items()
        )

    def put(self, key: tuple[str, Sender], state: str) -> None:
        if state == START:
            self.model.pop(key, None)
        else:
            self.model[key] = state

    def key(self, module: str, sender: Sender) -> tuple[str, Sender]:
        return self.run + module, self.sender(sender)

    def sender(self, sender: Sender) -> Sender:
        """What others store for a sender does not matter, save for set_all: addresses are each run's own."""
        return sender if not sender or sender == "None" else self.run + sender

    def used_modules(self) -> list[str]:
        return list(dict.fromkeys(module for module, _ in self.model))
