"""The table is a dict, however its buckets split."""

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from statestored.engines import table as table_module
from statestored.engines.base import START, Sender
from statestored.engines.table import (
    MAX_DEPTH,
    POSITION_BITS,
    Bucket,
    Range,
    Table,
    cells_of,
    position_of,
    sender_memory,
    state_memory,
)
from tests.server.models import (
    TODAY,
    Model,
    as_model,
    days,
    entries_in,
    modules,
    put,
    put_in,
    sender_at,
    senders,
    small_buckets,
    states,
)

ALL = 1 << POSITION_BITS


@pytest.fixture(scope="module", autouse=True)
def _small_buckets() -> Iterator[None]:
    with small_buckets():
        yield


def fill(table: Table, count: int, state: bytes = b"POSTING") -> None:
    for number in range(count):
        put_in(table, b"lists", b"s%d" % number, state, TODAY)


def reloaded(table: Table) -> Table:
    """As a snapshot is loaded: cells made anew, buckets adopted."""
    copy = Table()
    cell = functools.cache(copy.cell)
    for covered in table.walk():
        bucket = {}
        for sender, held in covered.bucket.items():
            cells = tuple(cell(old.module, old.state, old.day) for old in cells_of(held))
            bucket[sender] = cells if len(cells) > 1 else cells[0]
        copy.adopt(covered.start, covered.depth, bucket)
    return copy


def assert_sound(table: Table) -> None:
    """What must be so of every table, whatever was done to it."""
    ranges = list(table.walk())
    assert (ranges[0].start, ranges[-1].end) == (0, ALL)
    assert all(one.end == next_.start for one, next_ in pairwise(ranges))
    for covered in ranges:
        assert covered.end - covered.start == ALL >> covered.depth
        assert all(covered.start <= position_of(sender) < covered.end for sender in covered.bucket)
    entries = entries_in(table)
    assert len(table) == len(entries)
    counted = {(module, state): entries for module, state, entries in table.counts()}
    assert all(counted.values())
    assert counted == Counter((entry.module, entry.state) for entry in entries)
    assert table.uncounted(None) == 0
    held = [(sender, cells_of(held)) for covered in ranges for sender, held in covered.bucket.items()]
    states_memory = sum(state_memory(module, state) for module, state in counted)
    assert table.memory == states_memory + sum(sender_memory(sender, len(cells)) for sender, cells in held)
    assert all(len(cells) <= table.most_modules for _, cells in held)


class TableAgainstADict(RuleBasedStateMachine):
    """Changes, some of which are cut, settled, or taken back; meanwhile there are more."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.model: Model = {}
        self.settled: Model = {}
        self.at_cut: Model | None = None  # what there was when the changes were cut that are not settled
        self.changed = Changed()
        self.cutting = Changed()

    @rule(module=modules, sender=senders, state=states, day=days)
    def put(self, module: bytes, sender: Sender, state: bytes, day: int) -> None:
        changed = put_in(self.table, module, sender, state, day)
        assert changed == put(self.model, module, sender, state, day)
        if changed:
            self.changed.senders.add(sender)

    @rule(numbers=st.sets(st.integers(0, 50), min_size=5), state=states, day=days)
    def put_many(self, numbers: set[int], state: bytes, day: int) -> None:
        for number in numbers:
            self.put(b"lists", b"s%d" % number, state, day)

    @rule(module=modules, sender=senders)
    def get(self, module: bytes, sender: Sender) -> None:
        assert self.table.get(module, sender) == self.model.get((module, sender), (START, 0))[0]

    @rule(sender=senders)
    def modules(self, sender: Sender) -> None:
        assert sorted(self.table.modules(sender)) == sorted(module for module, its in self.model if its == sender)

    @rule()
    def clear(self) -> None:
        assert self.table.clear() == bool(self.model)
        if not self.model:
            return
        self.changed.everything = True
        self.changed.garbage.update({sender for _, sender in self.model})
        self.model = {}

    @precondition(lambda self: self.at_cut is None)
    @rule()
    def cut(self) -> None:
        self.table.cut()
        self.at_cut = dict(self.model)
        self.cutting, self.changed = self.changed, Changed()

    @precondition(lambda self: self.at_cut is not None)
    @rule()
    def settle(self) -> None:
        freed = Counter(sender for bucket in self.table.settle() for sender in bucket)
        assert freed == self.cutting.garbage
        assert self.at_cut is not None
        self.settled, self.at_cut = self.at_cut, None
        self.cutting = Changed()

    @rule()
    def revert(self) -> None:
        self.table.revert()
        self.model, self.at_cut = dict(self.settled), None
        self.changed, self.cutting = Changed(), Changed()

    @rule()
    def reload(self) -> None:
        """Nothing is unsettled then."""
        ranges = [covered._replace(bucket={}) for covered in self.table.walk()]
        self.table = reloaded(self.table)
        assert [covered._replace(bucket={}) for covered in self.table.walk()] == ranges
        self.settled, self.at_cut = dict(self.model), None
        self.changed, self.cutting = Changed(), Changed()

    @invariant()
    def holds_the_same(self) -> None:
        assert as_model(entries_in(self.table)) == self.model

    @invariant()
    def is_sound(self) -> None:
        assert_sound(self.table)

    @invariant()
    def knows_whose_changes_are_not_settled(self) -> None:
        for changes, model in ((self.table.changed, self.changed), (self.table.cutting, self.cutting)):
            assert changes.any() == model.any()
            for sender in (None, b"", b"None", *(b"s%d" % number for number in range(51))):
                assert changes.concern(sender) == (model.everything or sender in model.senders)
        assert self.table.unsettled == (self.changed.any() or self.cutting.any())


class Changed:
    """What a table should know of its changes."""

    def __init__(self) -> None:
        self.senders: set[Sender] = set()
        self.everything = False  # there was a clear
        self.garbage: Counter[Sender] = Counter()  # whom it has in its buckets

    def any(self) -> bool:
        return bool(self.senders) or self.everything


TestTableAgainstADict = TableAgainstADict.TestCase
TestTableAgainstADict.settings = settings(max_examples=100, stateful_step_count=40)


def test_buckets_split_when_they_are_full() -> None:
    table = Table()
    fill(table, 3)
    assert len(list(table.walk())) == 1
    fill(table, 100)
    assert len(list(table.walk())) > 30
    assert max(len(covered.bucket) for covered in table.walk()) <= 4  # a half may be as full as the whole was
    assert_sound(table)


@given(steps=st.lists(st.lists(st.integers(0, 200), max_size=30), max_size=8), start=st.integers(0, ALL - 1))
def test_a_walk_covers_each_position_once_while_buckets_split(steps: list[list[int]], start: int) -> None:
    table = Table()
    fill(table, 10)
    later = iter(steps)
    walked: list[Range] = []
    for covered in table.walk(start):
        walked.append(covered)
        for number in next(later, []):
            put_in(table, b"lists", b"t%d" % number, b"POSTING", TODAY)
    assert walked[0].start <= start < walked[0].end
    assert walked[-1].end == ALL
    assert all(one.end == next_.start for one, next_ in pairwise(walked))


def test_a_walk_ends_with_a_clear() -> None:
    """What is there then came later, in buckets that cover other positions."""
    table = Table()
    fill(table, 100)
    walk = table.walk()
    next(walk)
    table.clear()
    fill(table, 2)
    assert list(walk) == []
    assert len(list(table.walk())) == 1


def test_a_walk_ends_where_a_clear_is_taken_back() -> None:
    table = Table()
    fill(table, 100)
    table.cut()
    table.settle()
    table.clear()
    fill(table, 50)
    walk = table.walk()
    next(walk)
    table.revert()
    assert list(walk) == []


def test_changes_that_are_taken_back_leave_the_buckets_that_split_for_them() -> None:
    """Nothing need be moved back, and every entry stands where it is looked for."""
    table = Table()
    fill(table, 3)
    table.cut()
    table.settle()
    fill(table, 100, b"CONFIRMING")
    ranges = len(list(table.walk()))
    table.revert()
    assert len(list(table.walk())) == ranges > 30
    assert len(table) == 3
    assert [table.get(b"lists", b"s%d" % number) for number in range(4)] == [b"POSTING"] * 3 + [START]
    assert_sound(table)


def test_senders_made_to_collide_do_not_blow_up_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "MAX_DEPTH", 4)
    colliding = [sender_at(position) for position in range(50)]
    table = Table()
    for sender in colliding:
        put_in(table, b"lists", sender, b"POSTING", TODAY)
    assert len(list(table.walk())) == 5  # one for each depth on the way, and its neighbour at the end
    assert [table.get(b"lists", sender) for sender in colliding] == [b"POSTING"] * len(colliding)
    assert_sound(table)


def test_positions_are_the_same_in_every_process_and_release() -> None:
    assert position_of(None) == position_of(b"") == 0
    assert position_of(b"123456789") == 0xCBF43926  # CRC-32's own test value
    assert [position_of(sender_at(position)) for position in (0, 1, 2**31, 2**32 - 1)] == [0, 1, 2**31, 2**32 - 1]


def test_none_empty_and_the_word_are_three_senders() -> None:
    table = Table()
    for sender in (None, b"", b"None"):
        put_in(table, b"lists", sender, repr(sender).encode(), TODAY)
    assert [table.get(b"lists", sender) for sender in (None, b"", b"None")] == [b"None", b"b''", b"b'None'"]


def test_looking_stores_nothing() -> None:
    table = Table()
    assert table.get(b"lists", b"ann") == START
    assert table.modules(b"ann") == []
    put_in(table, b"lists", b"ann", START, TODAY)
    assert entries_in(table) == []
    assert list(table.counts()) == []


def test_the_day_is_that_of_the_last_change() -> None:
    table = Table()
    for state, day in ((b"A", 1), (b"A", 2), (b"B", 3), (b"B", 4)):
        put_in(table, b"lists", b"ann", state, day)
    assert [(entry.state, entry.day) for entry in entries_in(table)] == [(b"B", 3)]


def test_entries_of_one_day_share_what_they_hold() -> None:
    table = Table()
    for sender in (b"ann", b"ben"):
        put_in(table, b"lists", sender, b"POSTING", 1)
    put_in(table, b"lists", b"cleo", b"POSTING", 2)
    held = {sender: held for covered in table.walk() for sender, held in covered.bucket.items()}
    assert held[b"ann"] is held[b"ben"]
    assert held[b"ann"] is not held[b"cleo"]


many_states = st.lists(
    st.tuples(modules, senders, st.integers(0, 9).map(lambda number: b"%d" % number if number else START)), max_size=60
)


@settings(max_examples=50)
@given(puts=many_states, taken_back=many_states, cut_at=st.integers(0, 60))
def test_if_there_are_too_many_states_to_count_all_entries_are_still_there(
    puts: list[tuple[bytes, Sender, bytes]], taken_back: list[tuple[bytes, Sender, bytes]], cut_at: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "MAX_COUNTED_STATES", 4)
        table, model = Table(), {}
        for module, sender, state in puts:
            put_in(table, module, sender, state, TODAY)
            put(model, module, sender, state, TODAY)
        table.cut()
        table.settle()
        for number, (module, sender, state) in enumerate(taken_back):
            if number == cut_at:
                table.cut()
            put_in(table, module, sender, state, TODAY + 1)
        table.revert()
        for each in (table, reloaded(table)):
            assert as_model(entries_in(each)) == model
            assert len(each) == len(model)
            counts = list(each.counts())
            assert len(counts) <= 4
            for module in {module for module, _ in model}:
                counted = sum(entries for its, _, entries in counts if its == module)
                assert counted + each.uncounted(module) == sum(1 for key in model if key[0] == module)
            assert sum(entries for _, _, entries in counts) + each.uncounted(None) == len(model)


@pytest.mark.parametrize(("start", "depth"), [(0, 0), (0, 1), (1 << 31, 1), (0, 2), (1, 3)])
def test_a_bucket_that_overlaps_another_is_not_adopted(start: int, depth: int) -> None:
    table = Table()
    for sender in (None, b"123456789"):
        table.adopt(position_of(sender) & 1 << 31, 1, {sender: table.cell(b"lists", b"POSTING", TODAY)})
    with pytest.raises(ValueError, match="overlaps"):
        table.adopt(start, depth, {b"y": table.cell(b"lists", b"POSTING", TODAY)})


@pytest.mark.parametrize(("start", "depth"), [(0, MAX_DEPTH + 1), (0, -1), (-1, 1), (1 << POSITION_BITS, 1)])
def test_a_bucket_that_no_walk_gives_is_not_adopted(start: int, depth: int) -> None:
    """L7: a directory of so many places would take all memory."""
    table = Table()
    with pytest.raises(ValueError, match="there is no bucket"):
        table.adopt(start, depth, {b"y": table.cell(b"lists", b"POSTING", TODAY)})


@pytest.mark.parametrize(("sender", "half"), [(None, 0), (b"", 0), (b"y", 1), (b"123456789", 1)])
def test_a_bucket_with_senders_that_belong_elsewhere_is_not_adopted(sender: bytes | None, half: int) -> None:
    """D5: nobody would find them there, and they could stand in two buckets."""
    assert position_of(sender) >> 31 == half
    table = Table()
    bucket: Bucket = {sender: table.cell(b"lists", b"POSTING", TODAY)}
    with pytest.raises(ValueError, match="belong elsewhere"):
        table.adopt((1 - half) << 31, 1, bucket)
    assert len(table) == 0
    table.adopt(half << 31, 1, bucket)
    assert len(table) == 1


def test_states_of_their_own_are_counted_among_what_a_table_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """L5, whether they are few or too many to be counted apart."""
    monkeypatch.setattr(table_module, "MAX_COUNTED_STATES", 3)
    table = Table()
    for number in range(10):
        put_in(table, b"lists", b"s%d" % number, b"%d" % number * 100, TODAY)
    assert table.memory == 10 * (state_memory(b"lists", b"0" * 100) + sender_memory(b"s0", 1))
    for number in range(10):
        put_in(table, b"lists", b"s%d" % number, b"POSTING" if number % 2 else START, TODAY)
    assert table.memory <= 5 * (state_memory(b"lists", b"POSTING") + sender_memory(b"s0", 1))
    for number in range(10):
        put_in(table, b"lists", b"s%d" % number, START, TODAY)
    assert table.memory == 0


def test_modules_whose_states_are_not_counted_are_forgotten_with_their_last_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table_module, "MAX_COUNTED_STATES", 0)
    table = Table()
    for number in range(10):
        put_in(table, b"m%d" % number, b"ann", b"POSTING", TODAY)
        put_in(table, b"m%d" % number, b"ben", b"POSTING", TODAY)
    assert table.uncounted(None) == 20
    for number in range(10):
        put_in(table, b"m%d" % number, b"ann", START, TODAY)
    assert (table.uncounted(None), table.uncounted(b"m1")) == (10, 1)
    for number in range(10):
        put_in(table, b"m%d" % number, b"ben", START, TODAY)
    assert table._uncounted == {}


def test_a_bucket_gives_memory_back_when_most_of_its_entries_are_removed() -> None:
    table = Table()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "BUCKET_SIZE", 2730)
        fill(table, 2730)
    (covered,) = table.walk()
    full = sys.getsizeof(covered.bucket)
    for left, share in ((341, 3), (42, 20), (0, 500)):
        for sender in list(covered.bucket)[left:]:
            put_in(table, b"lists", sender, START, TODAY)
        assert len(table) == left
        assert sys.getsizeof(covered.bucket) <= full // share
    assert_sound(table)
