"""Plans that once failed. Each stands for a defect that was mended, and is kept with the mutation that undoes this.

A change of any random draw, or of a call on the disk, makes another run of a plan, in which the defect may not matter.
Therefore a plan has not only to pass: with its defect it must fail, as it is or with one of a number of other random
streams. If it does not, the file has to be written again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.simulation import shrink, worker
from tests.simulation.faults import FAULTS, MUST_SHOW, seeded, shown
from tests.simulation.plan import Event, Plan, PlanError, Trouble, plan_of
from tests.simulation.reductions import smaller

FILE = Path(__file__).with_name("regressions.txt")
DEFECTS = (
    "acknowledged_before_synced",
    "directory_never_synced",
    "parents_made_before_not_synced",
    "start_waits_in_the_loop",
    "answers_to_reads_not_noted",
    "reloads_during_a_start_lost",
    "copies_synced_too_late",
    "batch_applied_twice",
    "get_not_held",
    "nothing_remembered",
    "answer_not_written",
    "done_not_replayed",
)
MOST_SEEDS = 1000
MOST_RUNS = 300  # to shrink a plan
MOST_STREAMS = 100  # that are tried for a plan that does not fail with its defect any more
_HEAD = """\
# Each line has a defect and a plan that fails with it, and passes without it.
# `python -m tests.simulation --regressions` runs them, `--regressions --write` looks for all of them again.
"""


class RegressionsError(Exception):
    """The file of regressions cannot be read, or a line of it is none."""


@dataclass(frozen=True, slots=True)
class Regression:
    defect: str
    plan: Plan

    def problems(self) -> list[str]:
        """Run the plan with the defect and without it, and return what is wrong with that."""
        failing = next((plan for plan in self._variants() if failure_with(self.defect, plan)), None)
        problems = [f"without the defect: {failure}" for failure in worker.run(failing or self.plan).failures]
        if failing is None:
            problems.append(f"with the defect nothing shows {MUST_SHOW[self.defect]!r}: write the file again")
        return problems

    def _variants(self) -> Iterator[Plan]:
        """Return the plan as it is, and with other random streams."""
        yield self.plan
        for stream in range(1, MOST_STREAMS + 1):
            yield replace(self.plan, seed=f"{self.plan.seed}/{stream}")


def failure_with(defect: str, plan: Plan) -> str | None:
    """Run a plan with a defect, and return the first failure of its kind, or None."""
    with seeded(defect):
        return shown(defect, worker.run(plan).failures)


def read(file: Path = FILE) -> Iterator[Regression]:
    """Raises RegressionsError."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RegressionsError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RegressionsError(f"{file}: it is not UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            try:
                yield _regression_of(line)
            except PlanError as error:
                raise RegressionsError(f"{file}, line {number}: {error}") from None


def _regression_of(line: str) -> Regression:
    """Raises PlanError."""
    defect, _, plan = line.partition(" ")
    if defect not in MUST_SHOW:
        raise PlanError(f"{defect[:60]!r} is not a defect that the simulation finds")
    return Regression(defect, Plan.from_json(plan))


def write(file: Path = FILE) -> Iterator[str]:
    """Look for a small plan for each defect, and write the file. Yields what it has found, as soon as it is known.

    Raises RegressionsError if there is no plan for one of them; the file is then as it was.
    """
    written = [_HEAD]
    for defect in DEFECTS:
        plan, runs = _smallest(defect, _first_plan(defect))
        yield f"{defect}: shrunk in {runs} runs, clients: {plan.clients}, troubles: {len(plan.events)}"
        written.append(f"# {_summary(defect)}\n{defect} {plan.to_json()}\n")
    file.write_text("\n".join(written))


def _summary(defect: str) -> str:
    text = FAULTS[defect].__doc__ or defect.replace("_", " ")
    return text.partition("\n")[0]


def _first_plan(defect: str) -> Plan:
    plan_with = _PREPARED.get(defect, plan_of)
    for seed in range(1, MOST_SEEDS + 1):
        if _is_regression(defect, plan := plan_with(seed)):
            return plan
    raise RegressionsError(f"{defect}: none of {MOST_SEEDS} plans fails with it and passes without it")


def _smallest(defect: str, plan: Plan) -> tuple[Plan, int]:
    return shrink.shrink(plan, smaller, lambda candidate: _is_regression(defect, candidate), MOST_RUNS)


def _is_regression(defect: str, plan: Plan) -> bool:
    return failure_with(defect, plan) is not None and not worker.run(plan).failures


def _killed_first_start(seed: int) -> Plan:
    """Return a plan in which the first start is killed, and the power fails when writes have been acknowledged."""
    events = (Event(0.0, Trouble.KILL_AT_CALL, seed), Event(1.5, Trouble.POWER, seed))
    return replace(plan_of(seed), cold=True, fsync="always", events=events)


def _stopped_first_start(seed: int) -> Plan:
    """Return a plan in which the disk is slow at the first start, and the daemon is asked to stop."""
    events = (Event(0.0, Trouble.SLOW_DISK, seed), Event(0.3, Trouble.TERMINATE, seed))
    return replace(plan_of(seed), cold=True, sync_time=0.05, events=events)


def _reads_beside_an_outage(seed: int) -> Plan:
    """Return a plan in which threads share a storage, some of their answers come late, and the daemon goes away."""
    kill = Event(0.3, Trouble.KILL, seed)
    events = (Event(0.2, Trouble.ONE_WAY, seed), kill, Event(0.9, Trouble.CUT, seed), Event(1.0, Trouble.KILL, seed))
    return replace(plan_of(seed), blocking=plan_of(seed).clients, write_deadline=0.5, think=0.01, events=events)


def _revoked_during_a_start(seed: int) -> Plan:
    """Return a plan in which the token is revoked, and valid again while the daemon starts on a slow disk."""
    restart = (Event(0.2, Trouble.KILL, seed), Event(0.2, Trouble.SLOW_DISK, seed))
    events = (Event(0.15, Trouble.REVOKE_TOKEN, seed), *restart)
    return replace(plan_of(seed), tokens=True, sync_time=0.05, events=events)


# For defects that the plans of seeds show too seldom.
_PREPARED = {
    "parents_made_before_not_synced": _killed_first_start,
    "start_waits_in_the_loop": _stopped_first_start,
    "reloads_during_a_start_lost": _revoked_during_a_start,
    "answers_to_reads_not_noted": _reads_beside_an_outage,
}
