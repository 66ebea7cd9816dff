"""The table of all defects: for each of them the first seed that finds it, and how it shows."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

from tests.simulation import worker
from tests.simulation.faults import FAULTS, NOT_FOUND, NeverReached, first_to_find, shown
from tests.simulation.plan import plan_of

NAME_WIDTH = 40
SEED_WIDTH = 6


@dataclass(frozen=True, slots=True)
class Found:
    """What the seeds say of a defect. other: the first failure that is not of the kind that the defect must show."""

    name: str
    seeds: int
    seed: int | None = None
    failure: str = ""
    other: str = ""
    was_reached: bool = True

    def __str__(self) -> str:
        if self.seed is not None:
            return _row(self.name, str(self.seed), self.failure)
        what = "not found" if self.was_reached else "never reached"
        return _row(self.name, "-", f"{what} in {self.seeds:,} seeds" + (self.other and f", but {self.other}"))


def look(name: str, seeds: Sequence[int]) -> Found:
    """Run the seeds with the defect until one finds it."""
    worker.set_up()
    failures: list[str] = []
    other = ""

    def fails(seed: int) -> bool:
        nonlocal failures, other
        failures = worker.run(plan_of(seed)).failures
        if failures and not other:
            other = f"seed {seed} shows something else: {failures[0][:200]}"
        return shown(name, failures) is not None

    try:
        seed = first_to_find(name, seeds, fails)
    except NeverReached:
        return Found(name, len(seeds), was_reached=False)
    if seed is None:
        return Found(name, len(seeds), other=other)
    return Found(name, len(seeds), seed, shown(name, failures) or "")


def table(seeds: Sequence[int], jobs: int) -> Iterator[Found | str]:
    """Yield what is found of each defect, as soon as it is known. A line of text stands for one that is left out."""
    yield _row("defect", "seed", "how it showed")
    with ProcessPoolExecutor(jobs, get_context("spawn")) as executor:
        futures = [executor.submit(look, name, seeds) for name in sorted(FAULTS.keys() - NOT_FOUND.keys())]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
    for name, reason in NOT_FOUND.items():
        yield _row(name, "-", f"not looked for: {reason}")


def _row(name: str, seed: str, detail: str) -> str:
    return f"{name:{NAME_WIDTH}} {seed:>{SEED_WIDTH}}  {detail}"
