"""What happens in a round and when, drawn from the seed. The load itself depends on the machine's speed too."""

from dataclasses import dataclass
from random import Random

KILL_AFTER = (0.005, 0.150)  # seconds of load
SNAPSHOTS = 0.4  # of the rounds have one on demand,
SNAPSHOT_WITHIN = 0.3  # in this part of the load at the latest: it is under way when the kill comes, or done
AWAITED = 0.25  # of these snapshots come as far as their name, and then the kill soon
KILL_AFTER_SNAPSHOT = (0.0, 0.050)  # seconds: what it makes needless is removed
KILLED_STARTS = 0.1  # of the rounds: the start after the kill is killed too, before the one that may succeed
WHOLE_EVERY = 10  # rounds; in between only what the round has written is read, and the files are not checked


@dataclass(frozen=True)
class Plan:
    """So many seconds of load; a snapshot on demand; after so many more seconds the kill."""

    before: float
    snapshot: bool
    awaited: bool  # the seconds begin when the snapshot has its name
    after: float
    kill_start_at: float | None  # as a part of the time that loading takes; None: the start is left alone
    whole: bool  # the files are checked after the kill, and the whole store is read after the restart


def draw_plan(random: Random, number: int, rounds: int) -> Plan:
    kill_after = random.uniform(*KILL_AFTER)
    before = kill_after * random.uniform(0, SNAPSHOT_WITHIN)
    snapshot = random.random() < SNAPSHOTS
    awaited = snapshot and random.random() < AWAITED
    return Plan(
        before,
        snapshot,
        awaited,
        random.uniform(*KILL_AFTER_SNAPSHOT) if awaited else kill_after - before,
        random.uniform(0, 1) if random.random() < KILLED_STARTS else None,
        number % WHOLE_EVERY == 0 or number == rounds,
    )
