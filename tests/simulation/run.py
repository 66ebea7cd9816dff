"""One run of a plan: the daemon, its clients, and what goes wrong."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from greenlet import GreenletExit

from tests.consistency.history import Operation
from tests.simulation import checks, patches
from tests.simulation.histories import Judge
from tests.simulation.kernel import World
from tests.simulation.plan import Plan, Trouble
from tests.simulation.system import System
from tests.simulation.troubles import Troubles

LIMIT = 300.0  # virtual seconds that the clients may take
LONGEST_COMMIT = 10.0  # virtual seconds, on a healthy disk
MOST_EVENTS = 150_000  # of a run
MOST_ITERATIONS = 10_000  # of all event loops in a virtual second; one that spins makes 40,000


@dataclass(slots=True)
class Outcome:
    plan: Plan
    failures: list[str]
    digest: int  # of the trace: two runs of a plan have the same one
    counts: dict[str, int]
    trace: list[str] = field(default_factory=list)
    violation: list[Operation] = field(default_factory=list)  # the shortest history that shows what is wrong

    @property
    def kinds(self) -> list[str]:
        """What kinds of failures there are."""
        return [checks.kind_of(failure) for failure in self.failures]


def run(plan: Plan, *, keep_trace: bool = False) -> Outcome:
    """Carry the plan out, and judge what came of it. An error of the simulation itself is a failure, too."""
    random.seed(plan.seed)  # the product draws its pauses from the one generator of the module
    outcome = Outcome(plan, [], 0, {})
    with patches.sizes_of(plan):
        try:
            system = System(plan, keep_trace=keep_trace)
            try:
                _carry_out(system, outcome)
            except Exception as error:
                system.kernel.fail(f"the simulation itself failed: {error!r}", error)
            finally:
                system.kernel.end()
        except GreenletExit:  # it takes too long
            assert World.kernel.failures
            outcome.failures, outcome.trace = World.kernel.failures, World.kernel.trace
    return outcome


def _carry_out(system: System, outcome: Outcome) -> None:
    """Fill in the outcome."""
    kernel, judge = system.kernel, Judge(system)
    try:
        _live(system)
        if not kernel.failures:
            checks.check_exceptions(kernel, system.killed)
        if not kernel.failures:
            outcome.violation = judge.find_violation()
    finally:
        outcome.failures, outcome.digest, outcome.trace = kernel.failures, kernel.digest, kernel.trace
        outcome.counts = _counts(system, judge)


def _live(system: System) -> None:
    kernel, plan = system.kernel, system.plan
    system.start_daemon()
    if not plan.cold:
        _run(system, lambda: system.network.listeners)
    system.start_clients()
    troubles = Troubles(system)
    for event in plan.events:
        kernel.after(event.seconds, troubles.happen, event)
    if plan.last_outage == "answer":
        _run_until_done(system, "the clients have", system.have_last_answer)
        if kernel.failures:
            return
        system.end_service()
    _run_until_done(system, "the clients have")
    for is_last in (False, True):
        if kernel.failures:
            return
        system.heal()
        system.start_reader()
        _run_until_done(system, "the reader has")
        if not kernel.failures:
            _check_nothing_is_kept(system)
        if kernel.failures or is_last or plan.last_outage != "quiet":
            break
        system.end_service()


def _check_nothing_is_kept(system: System) -> None:
    """When all clients are gone, the daemon keeps nothing for them."""
    kernel = system.kernel
    kernel.run(kernel.now + 1.0)
    daemon = system.daemon
    assert daemon is not None
    kernel.run(kernel.now + LONGEST_COMMIT, lambda: not checks.is_committing(daemon))
    open_ends = sum(not connection.server.closed for connection in system.network.connections())
    checks.check_nothing_is_kept(kernel, daemon, open_ends)


def _run_until_done(system: System, who: str, is_enough: Callable[[], bool] = lambda: False) -> None:
    """Run until the clients have ended, or `is_enough`."""
    kernel, history = system.kernel, system.history
    _run(system, lambda: not history.clients_running or is_enough())
    if history.clients_running and not kernel.failures and not is_enough():
        kernel.fail(f"{who} not come to an end within {LIMIT:g} s")


def _run(system: System, is_enough: Callable[[], object]) -> None:
    """Run until it is enough, or something is wrong, or for as long as the clients may take."""
    kernel = system.kernel
    second_ends, most = kernel.now + 1.0, kernel.iterations + MOST_ITERATIONS

    def is_over() -> object:
        nonlocal second_ends, most
        if kernel.now >= second_ends:
            second_ends, most = kernel.now + 1.0, kernel.iterations + MOST_ITERATIONS
        elif kernel.iterations > most and not kernel.failures:
            kernel.fail(f"too many iterations of event loops, {MOST_ITERATIONS} in a second: something spins")
        if kernel.events > MOST_EVENTS and not kernel.failures:
            kernel.fail(f"too many events, {MOST_EVENTS}: something spins")
        return kernel.failures or is_enough()

    kernel.run(kernel.now + LIMIT, is_over)


def _counts(system: System, judge: Judge) -> dict[str, int]:
    history = system.history
    return {
        "calls": history.calls,
        "refused": history.refused,
        "without an answer": history.unanswered,
        "starts": system.starts,
        "power losses": system.disk.losses,
        "histories judged": judge.judged,
        "histories undecided": judge.undecided,
        "events": system.kernel.events,
        "troubles that took effect": system.took_effect.total(),
        **{f"  {trouble}": system.took_effect[trouble] for trouble in Trouble},
    }
