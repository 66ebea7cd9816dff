"""D2: the daemon is killed at every call that touches its data directory, and always comes back with all it acknowledged.

Killed before a call and behind the one before it is the same to the files; so each kill is before a call, and the life
in which nothing is killed stands for the kill behind the last.
"""

import shutil
from pathlib import Path

import pytest

from tests.faults.sweep import DIRECTORY, Life, Outcome, Place, Point, Prepared, Scenario, sweep
from tests.faults.workload import MODULE

pytestmark = pytest.mark.timeout(600)  # each takes 15 to 30 s, where nobody else wants the machine


def places(text: str) -> set[Place]:
    """Lines of phase, thread, file, and the calls that it gets there."""
    lines = [line.split(maxsplit=3) for line in text.strip().splitlines()]
    return {Place(phase, thread, call, file) for phase, thread, file, calls in lines for call in calls.split()}


def check(outcomes: list[Outcome], wanted: set[Place], at_least: int) -> None:
    """`at_least`: so many kills, so that a sweep does not become smaller unnoticed."""
    faults = [f"killed at {outcome.place} ({outcome.point}): {fault}" for outcome in outcomes for fault in outcome.faults]
    assert faults == []
    hit = [outcome.place for outcome in outcomes if outcome.place]
    assert wanted - set(hit) == set()
    assert len(hit) >= at_least


# Two are out of reach, since another thread comes to its first call before: the loop's sync of the directory, and the
# opening before the journal's. But to open it changes nothing, and of each pair the other is here.
FIRST_START = places("""
start  loop     lock       openat ftruncate pwrite64
start  loop     directory  openat
start  loop     identity   openat pwrite64 fdatasync rename
start  journal  journal    openat pwrite64 fdatasync rename
start  journal  directory  fsync
""")


def test_killed_at_every_call_of_the_first_start(tmp_path: Path) -> None:
    scenario = Scenario("always", ("start", "write", "stop"), frozenset({"start"}))
    check(sweep(tmp_path / "sweep", scenario, FIRST_START), FIRST_START, 20)


ROTATION = """
{phase}  journal  journal    openat pwrite64 fdatasync rename ftruncate
{phase}  journal  directory  openat fsync
"""
SNAPSHOT = """
snapshot executor snapshot   openat pwrite64 fdatasync rename unlink
snapshot executor directory  openat fsync
snapshot executor journal    unlink
"""
STOPPING = """
stop     journal  journal    pwrite64 fdatasync ftruncate
"""
ALWAYS = places(
    """
write    journal  journal    pwrite64 fdatasync
idle     journal  journal    pwrite64 fdatasync
"""
    + ROTATION.format(phase="rotate").lstrip()
    + ROTATION.format(phase="snapshot").lstrip()
    + SNAPSHOT.lstrip()
    + STOPPING.lstrip()
)
# Of more than one snapshot, since the threads that make them must come to some of their calls before that of the journal.
WHOLE_LIFE = ("write", "idle", "rotate", "snapshot", "snapshot", "snapshot", "stop")


def test_killed_at_every_call_of_a_life_that_syncs_before_it_acknowledges(tmp_path: Path) -> None:
    scenario = Scenario("always", ("start", *WHOLE_LIFE), frozenset(WHOLE_LIFE))
    check(sweep(tmp_path / "sweep", scenario, ALWAYS), ALWAYS, 85)


EVERYSEC = places(
    """
write    loop     journal    pwrite64
rotate   loop     journal    pwrite64
snapshot loop     journal    pwrite64
idle     loop     journal    pwrite64
idle     journal  journal    fdatasync
snapshot executor snapshot   openat pwrite64 fdatasync rename
snapshot executor journal    unlink
"""
    + ROTATION.format(phase="rotate").lstrip()
    + STOPPING.lstrip()
)


def test_killed_at_every_call_of_a_life_that_syncs_every_second(tmp_path: Path) -> None:
    life = ("write", "rotate", "snapshot", "idle", "stop")
    scenario = Scenario("everysec", ("start", *life), frozenset(life))
    check(sweep(tmp_path / "sweep", scenario, EVERYSEC), EVERYSEC, 35)


RECOVERY = places("""
start  loop     lock       openat ftruncate pwrite64
start  loop     directory  openat
start  loop     identity   openat unlink
start  loop     snapshot   openat unlink
start  loop     journal    openat unlink
start  journal  journal    openat pwrite64 fdatasync rename truncate
start  journal  directory  fsync
""")


@pytest.fixture
def killed(tmp_path: Path) -> Prepared:
    """What a kill left: a snapshot, segments, in the last of them batches that nothing says are on the disk."""
    life = Life(tmp_path / "killed", "everysec")
    life.run("start", "write", "snapshot", "rotate", "write", "write")
    life.end()
    life.daemon.close()
    data_dir = life.daemon.data_dir
    for unfinished in ("00000009.snapshot.tmp", "00000009.journal.tmp", "store.json.tmp"):
        shutil.copy(data_dir / "store.json", data_dir / unfinished)
    return Prepared(data_dir, life.workload.history.now, life.workload.number)


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_killed_at_every_call_of_a_start_after_a_kill(tmp_path: Path, killed: Prepared, fsync: str) -> None:
    assert (MODULE, "ann") in killed.state
    scenario = Scenario(fsync, ("start", "write", "stop"), frozenset({"start"}), killed)
    outcomes = sweep(tmp_path / "sweep", scenario, RECOVERY)
    check(outcomes, RECOVERY, 25)
    (new,) = {outcome.point.file for outcome in outcomes if outcome.point.name == "rename"}
    copies = {outcome.point for outcome in outcomes if outcome.place and outcome.point.file == new}
    assert Point(new, "pwrite64", 5) in copies, "batches were copied"
    assert DIRECTORY != new
