"""Scans find what is there throughout, whatever else changes; counts are what counting would give."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore.errors import BadRequest
from statestored import files
from statestored.engines import queries
from statestored.engines import table as table_module
from statestored.engines.base import START, Entry, Filter, Page, Sender
from statestored.engines.queries import count, scan
from statestored.engines.snapshots import load_snapshot, write_states
from statestored.engines.states import PUT, Effect, States
from statestored.engines.table import Table
from statestored.framing import Sequence
from statestored.snapshot import SnapshotWriter
from tests.server.models import (
    TODAY,
    Model,
    as_model,
    effects,
    entries_in,
    modules,
    put_in,
    senders,
    small_buckets,
    states,
)

STORE = uuid.UUID("7d1c6f0e-0d6a-4b1e-9f4c-2f8e6a1b3c5d")
NAMESPACE = b"default"

puts = st.lists(st.tuples(modules, senders, states), max_size=80)
filters = st.builds(
    Filter,
    module=st.none() | modules,
    prefix=st.sampled_from([b"", b"s", b"s1", b"None", b"x"]),
    state=st.none() | states,
)


@pytest.fixture(scope="module", autouse=True)
def _small_buckets() -> Iterator[None]:
    with small_buckets(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries, "PAGE_BYTES", 60)  # two or three entries
        yield


def table_of(some: list[tuple[bytes, Sender, bytes]]) -> Table:
    table = Table()
    for put in some:
        put_in(table, *put, TODAY)
    return table


def pages(table: Table, wanted: Filter) -> Iterator[Page]:
    page = scan(table, None, wanted)
    yield page
    while page.cursor is not None:
        page = scan(table, page.cursor, wanted)
        yield page


def matches(entry: Entry, wanted: Filter) -> bool:
    return (
        wanted.module in (None, entry.module)
        and wanted.state in (None, entry.state)
        and (entry.sender or b"").startswith(wanted.prefix)
    )


@given(some=puts, wanted=filters)
def test_a_scan_finds_what_the_filter_asks_for_each_once(
    some: list[tuple[bytes, Sender, bytes]], wanted: Filter
) -> None:
    table = table_of(some)
    found = as_model(entry for page in pages(table, wanted) for entry in page.entries)
    assert found == as_model(entry for entry in entries_in(table) if matches(entry, wanted))


def loaded_from_a_snapshot(states: States, path: Path) -> States:
    async def write_and_load() -> States:
        again = States()
        with SnapshotWriter(path, STORE, 0) as writer:
            writer.finish(await write_states(states, writer), Sequence(0, 0))
        await load_snapshot(path, STORE, again)
        return again

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setattr(files, "sync_file", lambda _: None)
        patch.setattr(files, "sync_directory", lambda _: None)
        return runner.run(write_and_load())


between = st.one_of(st.just("restart"), st.lists(effects, max_size=40))


@settings(max_examples=60)
@given(some=puts, wanted=filters, meanwhile=st.lists(between, max_size=10))
def test_what_is_there_throughout_is_found_though_all_else_changes(
    tmp_path_factory: pytest.TempPathFactory,
    some: list[tuple[bytes, Sender, bytes]],
    wanted: Filter,
    meanwhile: list[str | list[Effect]],
) -> None:
    """Insertions, removals, splits, clears, and restarts from a snapshot, between one page and the next."""
    path = tmp_path_factory.mktemp("snapshot") / "00000001.snapshot"
    states = States()
    states.apply([(PUT, NAMESPACE, *put) for put in some], TODAY)
    page = scan(states.table(NAMESPACE), None, wanted)
    found, throughout = list(page.entries), set(entries_in(states.table(NAMESPACE)))
    while page.cursor is not None:
        happens = meanwhile.pop() if meanwhile else []
        if isinstance(happens, str):
            states = loaded_from_a_snapshot(states, path)
        else:
            states.apply(happens, TODAY)
        throughout &= set(entries_in(states.table(NAMESPACE)))
        page = scan(states.table(NAMESPACE), page.cursor, wanted)
        found += page.entries
    assert {entry for entry in throughout if matches(entry, wanted)} <= set(found)


def test_the_empty_prefix_matches_no_sender_too() -> None:
    table = table_of([(b"m", None, b"A"), (b"m", b"", b"B"), (b"m", b"None", b"C")])

    def found(prefix: bytes) -> set[Sender]:
        return {entry.sender for page in pages(table, Filter(prefix=prefix)) for entry in page.entries}

    assert found(b"") == {None, b"", b"None"}
    assert found(b"N") == {b"None"}


def test_a_page_is_bounded_and_ends_with_a_whole_sender() -> None:
    table = table_of([(module, b"s%d" % number, b"POSTING") for number in range(40) for module in (b"a", b"b")])
    found = list(pages(table, Filter()))
    assert max(len(page.entries) for page in found) <= 4
    for page in found:
        assert set(Counter(entry.sender for entry in page.entries).values()) <= {2}


def test_a_filter_that_matches_nothing_does_not_make_a_call_longer(counted_ranges: Callable[[], int]) -> None:
    table = table_of([(b"m", b"s%d" % number, b"A") for number in range(200)])
    page = scan(table, None, Filter(state=b"B"))
    assert page.entries == []
    assert page.cursor is not None
    assert counted_ranges() < 10


def test_what_was_removed_does_not_make_a_call_longer(counted_ranges: Callable[[], int]) -> None:
    """Where millions of senders have expired, their buckets are still there: looking at each is work as well."""
    table = table_of([(b"m", b"s%d" % number, b"A") for number in range(1000)])
    for number in range(1000):
        put_in(table, b"m", b"s%d" % number, START, TODAY)
    assert scan(table, None, Filter()).entries == []
    assert counted_ranges() < 10


@pytest.fixture
def counted_ranges(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many buckets all walks have come to."""
    ranges = 0
    walk = Table.walk

    def counted(table: Table, position: int = 0) -> Iterator[table_module.Range]:
        nonlocal ranges
        for covered in walk(table, position):
            ranges += 1
            yield covered

    monkeypatch.setattr(Table, "walk", counted)
    return lambda: ranges


@pytest.mark.parametrize("cursor", [b"", b"0", b"00", b"x" * 8, b"0000000", b"\xff" * 8, b"-1"])
def test_a_cursor_that_no_scan_gave_is_a_bad_request(cursor: bytes) -> None:
    with pytest.raises(BadRequest, match="cursor"):
        scan(Table(), cursor, Filter())


@given(cursor=st.binary(max_size=20) | st.binary(max_size=10).map(lambda raw: raw.hex().encode()))
def test_no_cursor_does_any_harm(cursor: bytes) -> None:
    table = table_of([(b"m", b"s%d" % number, b"A") for number in range(20)])
    try:
        page = scan(table, cursor, Filter())
    except BadRequest:
        return
    assert set(page.entries) <= set(entries_in(table))


def test_a_cursor_is_plain_text() -> None:
    table = table_of([(b"m", b"\xc3\xa9%d" % number, b"A") for number in range(40)])
    for page in pages(table, Filter()):
        assert page.cursor is None or page.cursor.isalnum()


@pytest.mark.parametrize("max_states", [1000, 3])
@pytest.mark.parametrize("max_rows", [1000, 2])
@settings(max_examples=40)
@given(some=puts, module=st.none() | modules, state=st.none() | states)
def test_a_count_says_what_it_leaves_out(
    max_states: int, max_rows: int, some: list[tuple[bytes, Sender, bytes]], module: bytes | None, state: bytes | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "MAX_COUNTED_STATES", max_states)
        patch.setattr(queries, "MAX_ROWS", max_rows)
        table = table_of(some)
        counts = count(table, module, state)
    wanted = Filter(module=module, state=state)
    truth = Counter((entry.module, entry.state) for entry in entries_in(table) if matches(entry, wanted))
    rows = {(row_module, row_state): entries for row_module, row_state, entries in counts.rows}
    assert len(rows) == len(counts.rows) <= max_rows
    assert all(0 < entries <= truth[pair] for pair, entries in rows.items())
    assert sum(rows.values()) + counts.uncounted >= truth.total()
    if counts.uncounted == 0:
        assert rows == truth
    if state is None or counts.uncounted == 0:
        assert counts.total == truth.total()
    if max_states == 1000:
        assert counts.total == truth.total()
        assert counts.uncounted == truth.total() - sum(rows.values())


def test_the_largest_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MAX_ROWS", 2)
    table = table_of([(b"m", b"%d" % number, b"s%d" % (number % 10 // 4)) for number in range(100)])
    assert count(table, None, None).rows == [(b"m", b"s0", 40), (b"m", b"s1", 40)]
    assert count(table, None, None).uncounted == 20


def test_a_model_of_nothing_is_counted_as_nothing() -> None:
    model: Model = as_model(entries_in(Table()))
    assert model == {}
    assert count(Table(), None, None) == (0, [], 0)
