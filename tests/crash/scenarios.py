"""Lives, one after the other, and the crashes in them."""

from collections.abc import Callable
from random import Random

from statestored.engines.commits import Fsync
from tests.crash import scripts
from tests.crash.explore import Explorer, Life, Moment, moments
from tests.crash.workload import Clock, Script

# `seed` makes each of them another one; `picks` is how many random states are tried at a moment.
Scenario = Callable[[Explorer, Clock, Fsync, int, int], None]


def busy(explorer: Explorer, clock: Clock, fsync: Fsync, seed: int, picks: int) -> None:
    """One life with everything in it."""
    explorer.explore(explorer.first_life(fsync, scripts.busy(clock, seed)), picks)


def full_disk(explorer: Explorer, clock: Clock, fsync: Fsync, seed: int, picks: int) -> None:
    explorer.explore(explorer.first_life(fsync, scripts.full_disk(clock, seed)), picks)


def start_on_full_disk(explorer: Explorer, _clock: Clock, fsync: Fsync, _seed: int, picks: int) -> None:
    """What a kill has left, at any moment, is served, and cannot be copied."""
    first = explorer.first_life(fsync, scripts.a_bit_of_everything)
    for moment in moments(first):
        if moment.needed.after_kill:  # before that there is no store
            explorer.explore(explorer.life_after_kill(first, moment, scripts.reads, is_full=True), picks)


def bad_snapshot(explorer: Explorer, _clock: Clock, fsync: Fsync, _seed: int, picks: int) -> None:
    """One that comes out wrong takes nothing with it."""
    explorer.explore(explorer.first_life(fsync, scripts.bad_snapshot), picks)


def generations(explorer: Explorer, clock: Clock, fsync: Fsync, seed: int, picks: int) -> None:
    """Lives that end anywhere, their starts included; then the power fails, or does not."""
    rng = Random(seed)
    life = explorer.first_life(fsync, scripts.busy(clock, seed, rounds=1))
    for generation in range(6):
        # The next start comes as often from a start that was broken off as from any other moment.
        script: Script = scripts.one_write if generation % 2 else scripts.busy(clock, rng.getrandbits(32), rounds=1)
        after = explorer.life_after_kill if rng.random() < 0.5 else explorer.life_after_power_loss
        life = after(life, pick(life, rng), script)
        explorer.explore(life, picks)


def two_crashes(explorer: Explorer, _clock: Clock, fsync: Fsync, _seed: int, picks: int) -> None:
    """The first, a kill or a loss of power, at every moment of a short life; the second from the next start on."""
    for after in explorer.life_after_kill, explorer.life_after_power_loss:
        first = explorer.first_life(fsync, scripts.a_bit_of_everything)
        for moment in moments(first):
            explorer.explore(after(first, moment, scripts.one_write), picks)


def writes_during_a_sync(explorer: Explorer, _clock: Clock, fsync: Fsync, _seed: int, picks: int) -> None:
    explorer.explore(explorer.first_life(fsync, scripts.writes_during_a_sync), picks)


def full_during_a_sync(explorer: Explorer, _clock: Clock, fsync: Fsync, _seed: int, picks: int) -> None:
    explorer.explore(explorer.first_life(fsync, scripts.full_during_a_sync), picks)


def snapshot_of_what_is_not_synced(explorer: Explorer, _clock: Clock, fsync: Fsync, _seed: int, picks: int) -> None:
    explorer.explore(explorer.first_life(fsync, scripts.snapshot_of_what_is_not_synced), picks)


def pick(life: Life, rng: Random) -> Moment:
    """Any moment. It is only good for the next thing that is done with it."""
    number = rng.randrange(sum(1 for _ in moments(life)))
    return next(moment for place, moment in enumerate(moments(life)) if place == number)
