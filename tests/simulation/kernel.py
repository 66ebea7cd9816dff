"""Virtual time: the events of a run, and the switches between its threads.

Each thread of a simulated process is a greenlet. A call that would block switches to the hub, the greenlet that calls
`Kernel.run`, and the hub takes the next event from a heap. Nothing here looks at a real clock, so that a run is a
function of its seed.
"""

from __future__ import annotations

import random
import sys
import traceback
import zlib
from asyncio import tasks
from asyncio.events import _set_running_loop
from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, ClassVar

from greenlet import GreenletExit, getcurrent

from tests.simulation.machines import Machine, Process, Resource, ThreadGreenlet

if TYPE_CHECKING:
    from tests.simulation.network import Network

__all__ = ["Kernel", "Machine", "Process", "Resource", "ThreadGreenlet", "World"]

START = 100.0  # the virtual time at which a run begins; the trace counts from here
SHORTEST_WAIT = 1e-7  # seconds; if a wait took none, a thread that waits again and again would stop the clock
MAX_KILLS = 100  # of one greenlet that catches GreenletExit and goes on

# From Python 3.14 on, asyncio has one current task for each thread of the system, which all greenlets share, so that it
# is saved and restored at each switch; before, asyncio has one for each loop. This was not yet run with 3.14.
IS_TASK_OF_THREAD = sys.version_info >= (3, 14)


class World:
    """What the stand-ins look at: the kernel of the run that is under way."""

    kernel: ClassVar[Kernel]


class Kernel:
    """One run.

    Attributes:
        now: The virtual time, in seconds.
        current: The process that has the processor, or None while the hub runs.
        rng: The random stream of the kernel itself; `stream` makes others.
        digest: A checksum of all lines of the trace, whether they are kept or not, and of all bytes that were sent.
        events, iterations: How many events were handled, and how many iterations event loops have made.
        closing: The run is over, and its greenlets are being killed.
    """

    network: Network

    def __init__(self, seed: object) -> None:
        self.seed = seed
        self.now = START
        self.current: Process | None = None
        self.rng = self.stream("kernel")
        self.bytes = self.stream("bytes")  # what `os.urandom` returns
        self.trace: list[str] = []
        self.keep_trace = True
        self.digest = 0
        self.failures: list[str] = []
        self.events = self.iterations = 0
        self.closing = False
        self.processes: list[Process] = []  # also those that have ended, so that nothing is finalized during the run
        self.at_end: list[Callable[[], None]] = []  # called by `end`, after the greenlets are dead
        self._hub = getcurrent()
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._last_event = 0
        World.kernel = self

    def stream(self, name: str) -> random.Random:
        """Return a new random stream, which depends on its name and on the seed."""
        return random.Random(f"{name}/{self.seed}")

    # Events

    def at(self, when: float, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the hub. Calls for the same time are made in the order in which they were asked for."""
        self._last_event += 1
        heappush(self._heap, (when, self._last_event, function, arguments))

    def after(self, seconds: float, function: Callable[..., object], *arguments: Any) -> None:
        self.at(self.now + seconds, function, *arguments)

    def run(self, until: float, is_over: Callable[[], object] = lambda: False) -> None:
        """Handle events until the time `until`, or until `is_over`, or until there are none."""
        heap = self._heap
        try:
            while heap and not is_over():
                if heap[0][0] > until:
                    self.now = until
                    return
                self.now, _, function, arguments = heappop(heap)
                self.events += 1
                function(*arguments)
        finally:
            _set_running_loop(None)  # it is still the one of the thread that ran last

    def note(self, who: str, what: str, detail: str = "") -> None:
        """Add a line to the trace. What is unwound after the end of a run adds none."""
        if self.closing:
            return
        line = f"{self.now - START:12.6f}  {who:10}  {what:14} {detail}"
        self.digest = zlib.crc32(line.encode(), self.digest)
        if self.keep_trace:
            self.trace.append(line)

    def show(self, who: str, what: str, detail: str = "") -> None:
        """Add a line that says no more than others do, only more clearly: it does not count for the digest."""
        if self.keep_trace:
            self.trace.append(f"{self.now - START:12.6f}  {who:10}  {what:14} {detail}")

    def fail(self, what: str, error: BaseException | None = None) -> None:
        """Note that the run has found a failure, and where the error was raised if there is one."""
        if self.closing:
            return
        self.note("checker", "FAILURE", what)
        self.failures.append(f"at {self.now - START:.6f}: {what}")
        if error is not None and self.keep_trace:  # not in the digest: it has the paths of this machine
            self.trace += "".join(traceback.format_exception(error)).splitlines()

    # Greenlets

    def block(self, timeout: float | None) -> bool:
        """Suspend the calling greenlet. Return whether it was woken before `timeout` seconds were over.

        Raises:
            GreenletExit: the process has ended.
        """
        thread: ThreadGreenlet = getcurrent()
        process = thread.process
        if self.closing or not process.alive:
            raise GreenletExit
        thread.ticket = ticket = thread.ticket + 1
        if timeout is not None:
            thread.due = due = self.now + (timeout if timeout > SHORTEST_WAIT else SHORTEST_WAIT)
            thread.asleep = process.machine.asleep
            self._last_event += 1  # as `at` does it: this is where most events come from
            heappush(self._heap, (due, self._last_event, self._resume, (thread, ticket, False)))
        woken: bool = self._hub.switch()
        return woken

    def wake(self, thread: ThreadGreenlet) -> None:
        """Wake a greenlet that is in `block`."""
        self.at(self.now, self._resume, thread, thread.ticket, True)

    def spawn(self, thread: ThreadGreenlet, delay: float) -> None:
        """Start a greenlet."""
        thread.parent = self._hub
        self.at(self.now + delay, self._resume, thread, 0, True)

    def _resume(self, thread: ThreadGreenlet, ticket: int, woken: bool) -> None:
        process = thread.process
        if ticket != thread.ticket or not process.alive or thread.dead:
            return
        machine = process.machine
        if process.stopped_until > self.now or machine.suspended_until > self.now:
            self.at(max(process.stopped_until, machine.suspended_until), self._resume, thread, ticket, woken)
            return
        if not woken and machine.asleep != thread.asleep:  # its timer stood still for a while
            thread.due += machine.asleep - thread.asleep
            thread.asleep = machine.asleep
            if thread.due > self.now:
                self.at(thread.due, self._resume, thread, ticket, woken)
                return
        thread.ticket = ticket + 1
        self.current = process
        _set_running_loop(thread.running_loop)
        if IS_TASK_OF_THREAD:
            _restore_task(thread)
        thread.switch(woken)
        if IS_TASK_OF_THREAD:
            _save_task(thread)
        self.current = None

    def end(self) -> None:
        """Kill all greenlets. What is on the stack of a suspended one would live for ever: no collector looks there."""
        self.closing = True
        self._heap.clear()
        for process in self.processes:
            self.current = process
            for thread in process.threads:
                _kill(thread)
            process.threads.clear()
        self.current = None
        for discard in self.at_end:
            discard()
        self.at_end.clear()
        self._heap.clear()


def _restore_task(thread: ThreadGreenlet) -> None:
    if thread.running_loop is not None:
        tasks._swap_current_task(thread.running_loop, thread.running_task)  # type: ignore[attr-defined]


def _save_task(thread: ThreadGreenlet) -> None:
    if thread.running_loop is not None:
        thread.running_task = tasks._swap_current_task(thread.running_loop, None)  # type: ignore[attr-defined]


def _kill(thread: ThreadGreenlet) -> None:
    for _ in range(MAX_KILLS):
        if thread.dead:
            _set_running_loop(None)
            return
        _set_running_loop(thread.running_loop)
        if IS_TASK_OF_THREAD:
            _restore_task(thread)
        thread.throw(GreenletExit)
        if IS_TASK_OF_THREAD:
            _save_task(thread)
    raise RuntimeError(f"a greenlet of {thread.process.name} does not end")


Kernel("no run yet")  # so that the stand-ins always find a kernel
