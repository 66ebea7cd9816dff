"""The tests of durability are tested: with each of these faults in the daemon, one of them fails (K3)."""

import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from statestored.engines.commits import Fsync
from tests.crash import faults, scenarios
from tests.crash.check import fast_directory
from tests.crash.explore import Explorer
from tests.crash.faults import Fault
from tests.crash.history import Violation
from tests.crash.scenarios import Scenario
from tests.crash.workload import Clock, hasty_daemon

PICKS, SEED = 2, 1
# What a fault has to lead to: anything else is a mistake in the fault.
NOTICED = "is the last, not|it does not start: DamagedFile|what never was|has the state|which was not done"

BUSY = (scenarios.busy, Fsync.ALWAYS)
BUSY_EVERYSEC = (scenarios.busy, Fsync.EVERYSEC)
TWO_CRASHES = (scenarios.two_crashes, Fsync.ALWAYS)
DURING_A_SYNC = (scenarios.writes_during_a_sync, Fsync.EVERYSEC)
FULL_DURING_A_SYNC = (scenarios.full_during_a_sync, Fsync.EVERYSEC)
SNAPSHOT_OF_WHAT_IS_NOT_SYNCED = (scenarios.snapshot_of_what_is_not_synced, Fsync.EVERYSEC)
START_ON_FULL_DISK = (scenarios.start_on_full_disk, Fsync.ALWAYS)
FULL_DISK = (scenarios.full_disk, Fsync.ALWAYS)
BAD_SNAPSHOT = (scenarios.bad_snapshot, Fsync.ALWAYS)

Check = tuple[Scenario, Fsync]
NOTICED_BY: dict[Fault, Check] = {
    faults.acknowledged_before_synced: BUSY,
    faults.segment_never_synced: BUSY,
    faults.mark_too_high: BUSY_EVERYSEC,
    faults.mark_of_what_came_during_the_sync: DURING_A_SYNC,
    faults.full_segment_not_synced: FULL_DURING_A_SYNC,
    faults.directory_never_synced: BUSY,
    faults.names_found_not_synced: TWO_CRASHES,
    faults.snapshot_renamed_before_synced: BUSY,
    faults.segments_removed_before_snapshot: BUSY,
    faults.snapshot_not_verified: BAD_SNAPSHOT,
    faults.snapshot_before_journal: SNAPSHOT_OF_WHAT_IS_NOT_SYNCED,
    faults.tail_not_copied: TWO_CRASHES,
    faults.copies_synced_too_late: TWO_CRASHES,
    faults.tail_not_synced_where_it_cannot_be_copied: START_ON_FULL_DISK,
    faults.batch_applied_twice: TWO_CRASHES,
    faults.payload_not_checked: BUSY,
    faults.nothing_taken_back: FULL_DISK,
    faults.get_not_held: BUSY,
    faults.answer_not_written: BUSY,
    faults.answer_in_the_next_batch: BUSY,
    faults.sessions_not_in_snapshot: BUSY,
    faults.sessions_not_taken_back: FULL_DISK,
}


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


@pytest.mark.parametrize("fault", NOTICED_BY, ids=lambda fault: fault.__name__)
def test_a_fault_is_noticed(explorer: Explorer, clock: Clock, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, fsync = NOTICED_BY[fault]
    fault(monkeypatch)
    with pytest.raises(Violation, match=NOTICED):
        scenario(explorer, clock, fsync, SEED, PICKS)


@pytest.mark.parametrize(
    "check", dict.fromkeys(NOTICED_BY.values()), ids=lambda check: "-".join((check[0].__name__, check[1]))
)
def test_without_a_fault_there_is_nothing_to_notice(explorer: Explorer, clock: Clock, check: Check) -> None:
    scenario, fsync = check
    scenario(explorer, clock, fsync, SEED, PICKS)


def test_every_fault_is_tried() -> None:
    in_module = {
        fault for _, fault in inspect.getmembers(faults, inspect.isfunction) if fault.__module__ == faults.__name__
    }
    assert in_module == NOTICED_BY.keys()
