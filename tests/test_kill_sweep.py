"""D2: killed at any call that touches its data directory, the daemon comes back with all that it acknowledged.

Killed before a call and behind the one before it is the same to the files; so each kill is before a call, and the life
in which nothing is killed stands for the kill behind the last. strace counts for each thread alone; so a thread's
first call of a kind is out of reach where another has made its first before: the loop's sync of the directory at the
first start, the marks with `everysec`. What comes right before them and behind them is not.
"""

import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.sweep import DIRECTORY, Life, Outcome, Place, Point, Prepared, Scenario, sweep
from tests.faults.workload import batches

pytestmark = pytest.mark.timeout(600)  # each takes up to a minute, and more on a busy machine

MAY_MISS = 0.05  # of the calls: how many there are varies a little, with who is heard together


def places(text: str) -> set[Place]:
    """Lines of phase, thread, file, and the calls that it gets there."""
    lines = [line.split(maxsplit=3) for line in text.strip().splitlines()]
    return {Place(phase, thread, call, file) for phase, thread, file, calls in lines for call in calls.split()}


def check(outcomes: list[Outcome], wanted: set[Place], at_least: int) -> None:
    """`at_least`: so many kills, so that a sweep does not become smaller unnoticed."""
    faults = [
        f"killed at {outcome.place} ({outcome.point}): {fault}" for outcome in outcomes for fault in outcome.faults
    ]
    assert faults == []
    hit = [outcome.place for outcome in outcomes if outcome.place]
    assert wanted - set(hit) == set()
    assert len(hit) >= at_least
    missed = out_of_reach(outcomes)
    assert len(missed) <= MAY_MISS * len(outcomes), missed


def out_of_reach(outcomes: list[Outcome]) -> list[Point]:
    """Where nobody was killed, nor at the call of that kind before it or behind it."""
    hit = {outcome.point for outcome in outcomes if outcome.place}
    near = {point._replace(number=point.number + by) for point in hit for by in (-1, 0, 1)}
    return [outcome.point for outcome in outcomes if outcome.point not in near]


FIRST_START = places("""
start  executor lock       openat ftruncate pwrite64
start  executor identity   openat pwrite64 fdatasync rename
start  journal  journal    openat pwrite64 fdatasync rename
start  journal  directory  fsync
""")


def test_killed_at_every_call_of_the_first_start(tmp_path: Path) -> None:
    check(sweep(tmp_path / "sweep", Scenario("always", ()), FIRST_START), FIRST_START, 12)


@pytest.fixture
def stopped(tmp_path: Path) -> Prepared:
    """A snapshot, and a journal that goes on behind it."""
    return prepare(tmp_path / "stopped", "always", "start", "write", "snapshot", "write", "stop")


ALWAYS = places("""
write     journal   journal   pwrite64 fdatasync
idle      journal   journal   pwrite64 fdatasync
rotate    journal   journal   openat pwrite64 fdatasync rename ftruncate
snapshot  journal   journal   openat pwrite64 fdatasync rename ftruncate
snapshot  executor  snapshot  openat pwrite64 fdatasync rename unlink
snapshot  executor  journal   openat rename unlink
stop      journal   journal   pwrite64 fdatasync ftruncate
""")


def test_killed_at_every_call_of_a_life_that_syncs_before_it_acknowledges(tmp_path: Path, stopped: Prepared) -> None:
    life = ("write", "idle", "rotate", "snapshot", "stop")
    check(sweep(tmp_path / "sweep", Scenario("always", life, stopped), ALWAYS), ALWAYS, 50)


EVERYSEC = places("""
write     loop      journal   pwrite64
snapshot  loop      journal   pwrite64
snapshot  journal   journal   openat pwrite64 fdatasync rename ftruncate
snapshot  executor  snapshot  openat pwrite64 fdatasync rename unlink
snapshot  executor  journal   openat rename unlink
idle      journal   journal   fdatasync
stop      journal   journal   fdatasync ftruncate
""")


def test_killed_at_every_call_of_a_life_that_syncs_every_second(tmp_path: Path, stopped: Prepared) -> None:
    life = ("write", "idle", "snapshot", "stop")  # of which none but the second takes a second
    check(sweep(tmp_path / "sweep", Scenario("everysec", life, stopped), EVERYSEC), EVERYSEC, 27)


SYNCS_OF_THE_DIRECTORY = places("""
snapshot  journal   directory  fsync
snapshot  executor  directory  fsync
""")


def test_killed_at_every_sync_of_the_directory(tmp_path: Path) -> None:
    """Several snapshots: only then does one of their syncs come before that of the journal with the same number."""
    scenario = Scenario("always", ("snapshot",) * 5, file=DIRECTORY)
    outcomes = sweep(tmp_path / "sweep", scenario, SYNCS_OF_THE_DIRECTORY)
    check(outcomes, SYNCS_OF_THE_DIRECTORY, 6)


RECOVERY = places("""
start     executor  lock       openat ftruncate pwrite64
start     executor  identity   openat unlink
start     executor  snapshot   unlink
start     executor  journal    unlink
start     loop      snapshot   openat
start     loop      journal    openat
start     journal   journal    openat pwrite64 fdatasync rename ftruncate
start     journal   directory  fsync
""")


@pytest.fixture
def killed(tmp_path: Path) -> Prepared:
    """What a kill left: a snapshot, segments, in the last of them batches that nothing says are on the disk."""
    found = prepare(tmp_path / "killed", "everysec", "start", "write", "snapshot", "rotate", "write", "write")
    for unfinished in ("00000009.snapshot.tmp", "00000009.journal.tmp", "store.json.tmp"):
        shutil.copy(found.data_dir / "store.json", found.data_dir / unfinished)
    return found


def test_killed_at_every_call_of_a_start_after_a_kill(tmp_path: Path, killed: Prepared) -> None:
    outcomes = sweep(tmp_path / "sweep", Scenario("always", (), killed), RECOVERY)
    check(outcomes, RECOVERY, 20)
    (copying,) = {outcome.point.file for outcome in outcomes if outcome.point.name == "rename"}
    hit = {outcome.point for outcome in outcomes if outcome.place}
    assert Point(copying, "pwrite64", 5) in hit, "batches were copied (D10)"


def test_a_kill_that_hit_nothing_is_noticed() -> None:
    """The bound of each sweep."""
    hit = [Outcome(Point("a", "pwrite64", number), Place("write", "loop", "pwrite64", "a"), []) for number in (1, 2)]
    missed = [Outcome(Point(file, "pwrite64", number), None, []) for file, number in (("a", 3), ("a", 4), ("b", 2))]
    check([*hit, missed[0]], set(), 2)
    with pytest.raises(AssertionError, match="number=4"):
        check([*hit, *missed], set(), 2)
    assert out_of_reach([*hit, *missed]) == [missed[1].point, missed[2].point]


def test_what_would_be_lost_is_found(tmp_path: Path) -> None:
    """The verdict of each sweep."""
    with closing(Life(tmp_path / "life", "always")) as life:
        life.run("start", "write")
        life.end()
        (segment,) = life.daemon.data_dir.glob("*.journal")
        os.truncate(segment, [batch for batch in batches(segment) if batch.payload][-1].end - 1)
        faults = life.restart()
    assert faults
    assert {fault.partition(":")[0] for fault in faults} == {"lost"}


def prepare(directory: Path, fsync: str, *phases: str) -> Prepared:
    with closing(Life(directory, fsync)) as life:
        life.run(*phases)
    return Prepared(life.daemon.data_dir, life.workload.history.now, life.workload.number)
