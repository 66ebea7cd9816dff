"""What happens in a round and when, drawn from the seed. The load itself depends on the machine's speed too."""

from dataclasses import dataclass
from random import Random

KILL_AFTER = (0.005, 0.150)  # seconds
SNAPSHOTS = 0.4  # of the rounds have one on demand: some are done when the kill comes, and some under way
SNAPSHOT_WITHIN = 0.3  # of the time until the kill
KILLED_STARTS = 0.1  # of the rounds: the start after the kill is killed too, before the one that may succeed
WHOLE_EVERY = 10  # rounds; in between only what the round has written is read


@dataclass(frozen=True)
class Plan:
    kill_after: float  # seconds of load
    snapshot_after: float | None  # seconds, of these; None: no snapshot on demand
    kill_start_at: float | None  # as a part of the time that loading takes; None: the start is left alone
    whole: bool  # the whole store is read afterwards


def draw_plan(random: Random, number: int, rounds: int) -> Plan:
    kill_after = random.uniform(*KILL_AFTER)
    return Plan(
        kill_after,
        random.uniform(0, SNAPSHOT_WITHIN * kill_after) if random.random() < SNAPSHOTS else None,
        random.uniform(0, 1) if random.random() < KILLED_STARTS else None,
        number % WHOLE_EVERY == 0 or number == rounds,
    )
