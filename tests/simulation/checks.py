"""What is wrong with what came of a run, apart from the histories of the clients."""

import re
import signal
from asyncio import tasks
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from statestored.app import STOP_SECONDS
from statestored.errors import DamagedFile, DiskFailed, Exit, StartError
from tests.simulation import patches
from tests.simulation.disk_faults import DiskFaults
from tests.simulation.kernel import Kernel, Process

# What asyncio keeps of all tasks, weakly: those, too, that have ended.
_ALL_TASKS: Any = vars(tasks).get("_scheduled_tasks", vars(tasks).get("_all_tasks"))
STOPPED = "stopped"  # the exit status of a daemon that has stopped in order
# What a failure is, by a part of its text. A failure of another kind is described by its text without what differs.
KINDS = (
    "is not linearizable",
    "does not start",
    "the daemon ended",
    "does not stop",
    "too many iterations",
    "too many events",
    "not come to an end",
    "its deadline was",
    "cannot be read",
    "two runs are not the same",
    "a thread ended with",
    "is stuck",
    "the simulation itself failed",
)


@dataclass(slots=True)
class Life:
    """One life of the daemon, from a start to its end. Times are those of the kernel.

    failures_before: calls on the disk that had failed before it began.
    """

    daemon: Process
    began: float
    failures_before: int
    ended: float | None = None
    stop_asked: float | None = None
    signals: int = 0  # that ask it to stop
    stopped_in_order: bool = False

    @property
    def ready(self) -> float | None:
        """When it had loaded everything, and listened."""
        return patches.ready.get(self.daemon)


def wrong_end(status: object, faults: DiskFaults, life: Life) -> str | None:
    """Say what is wrong with the end of a daemon, or return None.

    It may refuse to start if the disk was full meanwhile, and end for a failure of the disk that really happened.
    """
    has_failed = faults.failures_taken > life.failures_before
    if isinstance(status, DamagedFile):
        return f"the daemon does not start: {status}"
    if isinstance(status, StartError):
        return None if has_failed or faults.was_full_since(life.began) else f"the daemon does not start: {status}"
    if status == Exit.DISK_FAILED or isinstance(status, DiskFailed):
        return None if has_failed else f"the daemon ended on a healthy disk: {status!r}"
    if isinstance(status, OSError):  # the command makes one of the exit codes of it
        is_explained = has_failed or (faults.was_full_since(life.began) and life.ready is None)
        return None if is_explained else f"the daemon ended on a healthy disk: {status!r}"
    if status == STOPPED:
        return None if life.signals else "the daemon ended without being asked"
    assert life.ended is not None
    if status == Exit.STOPPED and life.stop_asked is not None and life.ended - life.stop_asked >= STOP_SECONDS:
        return None  # it has waited for the disk for as long as a stop may take
    if status in (128 + signal.SIGTERM, -signal.SIGTERM) and life.signals > (status != -signal.SIGTERM):
        return None  # at the second signal, or before it had handlers
    return f"the daemon ended: {status!r}"


def check_nothing_is_kept(kernel: Kernel, daemon: Process, open_connections: int | None) -> None:
    """Check that the daemon keeps nothing for connections that it has not.

    Args:
        open_connections: The most that it can have; None: it has closed all of them.
    """
    service, listener = patches.services.get(daemon), patches.listeners.get(daemon)
    if service is None or listener is None:
        return
    connections = listener._connections
    if service.connections != len(connections):
        kernel.fail(f"{daemon.name} has {len(connections)} connections, and counts {service.connections}")
    if len(connections) > (open_connections or 0):
        kernel.fail(f"{daemon.name} keeps {len(connections)} connections, of which {open_connections or 0} are open")
    for what, kept in _kept(service, listener).items():
        if kept:
            kernel.fail(f"{daemon.name} keeps {kept} {what} for clients that are gone")


def is_committing(daemon: Process) -> bool:
    """Whether writes wait for the disk, such as those of clients that are gone, once it has room again."""
    service = patches.services.get(daemon)
    return service is not None and _writes_that_wait(service.engine) > 0


def _kept(service: Any, listener: Any) -> dict[str, int]:
    """Count what is kept for others than the connections that are open."""
    connections, budget, intake = listener._connections, service.budget, listener._intake

    def others(kept: Any) -> int:
        return sum(one not in connections for one in kept)

    engine = service.engine
    sessions = engine._leases._connections.total() - sum(one.caller.session is not None for one in connections)
    return {
        "bytes of buffers": budget.used - sum(budget._held.get(one, 0) for one in connections),
        "waits for buffers": others(budget._waiting),
        "heavy turns": others(connections.turns._waiting),
        "unknown clients": others(connections.strangers),
        "time limits": others(connections.watch._watched),
        "uses of sessions": sessions,
        "requests": others(intake._parts) + (0 if intake._lone is None else others([intake._lone])),
        "writes that wait": _writes_that_wait(engine),
    }


def _writes_that_wait(engine: Any) -> int:
    commits = getattr(engine, "commits", None)  # there are none before it is open
    if commits is None or commits._failed:
        return 0
    return sum(len(batch.effects) + len(batch._waiting) for batch in (commits.batch, commits.writing))


def check_exceptions(kernel: Kernel, killed: Container[Process]) -> None:
    """Look for tasks that have ended with an exception that nobody has retrieved. To be called before the run ends."""
    lost = []
    for task in list(_ALL_TASKS):
        process = getattr(task.get_loop(), "process", None)
        if process is None or process.kernel is not kernel or not task.done() or not task._log_traceback:
            continue
        if process not in killed:
            error = task.exception()
            lost.append((f"{process.name}: nobody retrieves {error!r} of {task.get_coro().__qualname__}", error))
    for text, error in sorted(lost, key=lambda found: found[0]):  # the tasks are in the order of their addresses
        kernel.fail(text, error)


def kind_of(failure: str) -> str:
    """Return what kind of failure this is, so that shrinking does not slip from one failure to another."""
    for kind in KINDS:
        if kind in failure:
            return kind
    return re.sub(r"'[^']*'|[\d.]+", "", failure.partition(": ")[2] or failure).strip()[:80]
