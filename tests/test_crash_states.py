"""A loss of power at any moment: whatever the disk may hold then, the next start finds what it has to (D3).

CRASH_STATES=10 tries ten times as many states.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from statestored.engines.commits import Fsync
from tests.crash import scenarios, scripts
from tests.crash.check import fast_directory
from tests.crash.disk import SECTOR, Disk
from tests.crash.explore import Explorer, moments
from tests.crash.history import Content, History, Needed, Promises
from tests.crash.scenarios import Scenario
from tests.crash.states import States
from tests.crash.trace import (
    Acknowledged,
    Created,
    Event,
    Image,
    Removed,
    Renamed,
    Served,
    SyncBegun,
    SyncEnded,
    Truncated,
    Written,
)
from tests.crash.workload import Clock, hasty_daemon

TIMES = int(os.environ.get("CRASH_STATES", "1"))
PICKS = 12  # random states at each moment that has too many
SEEDS = 50 * TIMES  # no scenario needs so many

# How many different states of each are tried at least.
WANTED: list[tuple[Scenario, Fsync, int]] = [
    (scenarios.busy, Fsync.ALWAYS, 1800),
    (scenarios.busy, Fsync.EVERYSEC, 1800),
    (scenarios.two_crashes, Fsync.ALWAYS, 1200),
    (scenarios.two_crashes, Fsync.EVERYSEC, 1200),
    (scenarios.generations, Fsync.ALWAYS, 1200),
    (scenarios.generations, Fsync.EVERYSEC, 1200),
    (scenarios.full_disk, Fsync.ALWAYS, 1000),
    (scenarios.full_disk, Fsync.EVERYSEC, 1000),
]


@pytest.fixture(autouse=True)
def clock() -> Iterator[Clock]:
    with hasty_daemon() as clock:
        yield clock


@pytest.fixture
def explorer(tmp_path: Path) -> Iterator[Explorer]:
    directory = fast_directory(tmp_path)
    explorer = Explorer(directory, seed=1)
    yield explorer
    explorer.close()
    shutil.rmtree(directory)


@pytest.mark.timeout(120 * TIMES)
@pytest.mark.parametrize(("scenario", "fsync", "wanted"), WANTED)
def test_no_crash_takes_what_was_acknowledged(
    explorer: Explorer, clock: Clock, scenario: Scenario, fsync: Fsync, wanted: int
) -> None:
    """Nor does it leave half of a batch, or what nobody wrote, or a store that does not start."""
    for seed in range(SEEDS):
        scenario(explorer, clock, fsync, seed, PICKS)
        if len(explorer.states) >= wanted * TIMES:
            return
    pytest.fail(f"there were {len(explorer.states)} states only")


def test_ten_thousand_states_are_tried() -> None:
    assert sum(wanted for _, _, wanted in WANTED) >= 10_000


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.EVERYSEC])
def test_every_crash_state_of_a_short_life_is_tried(explorer: Explorer, fsync: Fsync) -> None:
    life = explorer.first_life(fsync, scripts.few_writes)
    assert all(States(moment.disk, Random(1)).are_few for moment in moments(life))
    explorer.explore(life, picks=0)
    assert len(explorer.states) > 20


def test_the_snapshot_that_came_out_wrong_takes_nothing_with_it(explorer: Explorer, clock: Clock) -> None:
    """D7"""
    scenarios.bad_snapshot(explorer, clock, Fsync.ALWAYS, 1, PICKS)
    assert len(explorer.states) > 20


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.EVERYSEC])
def test_what_a_start_on_a_full_disk_serves_is_not_lost_then(explorer: Explorer, clock: Clock, fsync: Fsync) -> None:
    """D6, D10"""
    scenarios.start_on_full_disk(explorer, clock, fsync, 1, PICKS)
    assert len(explorer.states) > 20


# The model of a disk. OLD is what was on it before.

OLD, NEW, NEWER = (bytes([number]) * SECTOR for number in (1, 2, 3))
ZEROS = bytes(SECTOR)
DIRECTORY = None


def possible(base: Image, *events: Event) -> list[Image]:
    """All that the disk may hold. Where there are files before, `a` is number 1."""
    disk = Disk(base)
    for event in events:
        disk.apply(event)
    states = States(disk, Random(1))
    assert states.are_few
    every = list(states.all())
    for image in (*states.corners(), *states.some(100)):
        assert image in every
    return every


def contents(*events: Event) -> set[bytes]:
    """All that a file may hold that had two sectors."""
    return {image["a"] for image in possible({"a": OLD + OLD}, *events)}


def names(*events: Event) -> list[str]:
    """All that a directory may be, after it had a file `a` (number 1)."""
    return sorted(" ".join(sorted(image)) for image in possible({"a": b""}, *events))


def test_a_write_reaches_the_disk_sector_by_sector() -> None:
    assert contents(Written(1, 0, NEW + NEW)) == {OLD + OLD, NEW + OLD, OLD + NEW, NEW + NEW}


def test_a_later_write_may_reach_the_disk_before_an_earlier_one() -> None:
    assert contents(Written(1, 0, NEW), Written(1, SECTOR, NEW)) == {OLD + OLD, NEW + OLD, OLD + NEW, NEW + NEW}


def test_a_sector_is_as_it_was_after_some_write() -> None:
    later = NEW[:100] + NEWER[100:]
    written = Written(1, 0, NEW), Written(1, 100, NEWER[100:])
    assert contents(*written) == {OLD + OLD, NEW + OLD, later + OLD}


def test_a_file_grows_without_its_data() -> None:
    grown = {OLD + OLD + end for end in (b"", ZEROS, NEW, ZEROS + ZEROS, NEW + ZEROS, ZEROS + NEW, NEW + NEW)}
    assert contents(Written(1, 2 * SECTOR, NEW), Written(1, 3 * SECTOR, NEW)) == grown


def test_a_truncation_is_there_or_not() -> None:
    assert contents(Truncated(1, 100)) == {OLD + OLD, OLD[:100]}


def test_what_a_truncation_took_does_not_come_back_when_the_file_grows_again() -> None:
    cut_and_grown = contents(Truncated(1, SECTOR), Written(1, 2 * SECTOR, NEW))
    assert cut_and_grown == {OLD + OLD, OLD, OLD + ZEROS + ZEROS, OLD + ZEROS + NEW}


def test_a_sync_covers_what_was_done_before_it_began() -> None:
    events: list[Event] = [Written(1, 0, NEW), SyncBegun(0, 1), Written(1, SECTOR, NEW)]
    assert len(contents(*events)) == 4
    assert contents(*events, SyncEnded(0)) == {NEW + OLD, NEW + NEW}


def test_a_sync_covers_one_file_or_the_directory() -> None:
    synced = SyncBegun(0, 1), SyncEnded(0)
    assert names(Created(2, "b"), *synced) == ["a", "a b"]
    assert len(contents(Written(1, 0, NEW), SyncBegun(0, DIRECTORY), SyncEnded(0))) == 2
    assert names(Created(2, "b"), SyncBegun(0, DIRECTORY), Removed(1, "a"), SyncEnded(0)) == ["a b", "b"]


def test_names_come_and_go_in_any_combination() -> None:
    assert names(Created(2, "b"), Created(3, "c"), Removed(1, "a")) == [
        "", "a", "a b", "a b c", "a c", "b", "b c", "c"
    ]  # fmt: skip


def test_a_rename_is_there_or_not_and_may_leave_the_old_name() -> None:
    assert names(Renamed(1, "a", "b")) == ["a", "a b", "b"]
    for image in possible({"a": OLD, "b": NEW}, Renamed(1, "a", "b")):
        assert image["b"] in (OLD, NEW)


# What has to be there


def needed(*events: Event, always: bool) -> Needed:
    promises = Promises(always=always)
    for event in events:
        promises.apply(event)
    return promises.needed


def test_with_always_what_was_acknowledged_is_needed() -> None:
    assert needed(Acknowledged(3), Acknowledged(2), always=True) == Needed(3, 3)


def test_with_everysec_what_a_sync_of_its_segment_covers_is_needed() -> None:
    written = Created(1, "00000001.journal.tmp"), Created(2, "00000001.snapshot.tmp"), Written(1, 0, NEW)
    acknowledged = (*written, Written(2, 0, NEW), Acknowledged(1))
    assert needed(*acknowledged, SyncBegun(0, 2), SyncEnded(0), always=False) == Needed(0, 1)
    assert needed(*acknowledged, SyncBegun(0, 1), Acknowledged(2), always=False) == Needed(0, 2)
    assert needed(*acknowledged, SyncBegun(0, 1), Acknowledged(2), SyncEnded(0), always=False) == Needed(1, 2)


def test_what_a_start_found_is_needed_from_then_on() -> None:
    assert needed(Served(4), always=False) == Needed(4, 4)


def test_only_states_after_whole_batches_are_known() -> None:
    history, first, second = History(), object(), object()
    puts = [(1, b"default", b"lists", sender, b"A") for sender in (b"ann", b"ben", b"cid")]
    assert history.commit(first, puts[:1], 7) == history.commit(first, puts[1:2], 8) == 1
    assert history.commit(second, puts[2:], 8) == 2
    found = {b"default": {(b"lists", b"ann"): (b"A", 7), (b"lists", b"ben"): (b"A", 7)}}
    assert history.found(Content(found, {})) == 1
    assert history.found(Content({b"default": {(b"lists", b"ann"): (b"A", 7)}}, {})) is None
    assert history.found(Content({}, {})) == 0


def test_what_is_remembered_is_known_with_the_states_that_go_with_it() -> None:
    history = History()
    put = (1, b"default", b"lists", b"ann", b"A")
    assert history.commit(object(), [(4, 7)], 7) == 1
    assert history.commit(object(), [put, (3, 7, 1, 1, b"A", 5)], 7) == 2
    states = {b"default": {(b"lists", b"ann"): (b"A", 7)}}
    assert history.found(Content(states, {7: (1, {1: (b"A", 5)})})) == 2
    assert history.found(Content(states, {7: (1, {})})) is None
    assert history.found(Content({}, {7: (1, {1: (b"A", 5)})})) is None
    assert history.done(7, 1) == 2
