"""Virtual time, and the machines, processes and threads that live in it.

Each thread of a simulated process is a greenlet. Whatever would block switches to the hub, the greenlet that calls
`Kernel.run`, and the hub takes the next event from a heap. Nothing here looks at a real clock, so that a run is a
function of its seed.
"""

from __future__ import annotations

import heapq
import random
import traceback
import zlib
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol

from greenlet import GreenletExit, getcurrent, greenlet

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from tests.simulation.network import Network

START = 100.0  # the virtual time at which a run begins; the trace counts from here
SHORTEST_WAIT = 1e-7  # seconds; if a wait took none, a thread that waits again and again would stop the clock
MAX_KILLS = 100  # of one greenlet that catches GreenletExit and goes on


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
        heapq.heappush(self._heap, (when, self._last_event, function, arguments))

    def after(self, seconds: float, function: Callable[..., object], *arguments: Any) -> None:
        self.at(self.now + seconds, function, *arguments)

    def run(self, until: float, is_over: Callable[[], object] = lambda: False) -> None:
        """Handle events until the time `until`, or until `is_over`, or until there are none."""
        heap = self._heap
        while heap and not is_over():
            if heap[0][0] > until:
                self.now = until
                return
            self.now, _, function, arguments = heapq.heappop(heap)
            self.events += 1
            function(*arguments)

    def note(self, who: str, what: str, detail: str = "") -> None:
        """Add a line to the trace."""
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
        thread.ticket += 1
        thread.running_loop = _get_running_loop()
        if timeout is not None:
            thread.due = due = self.now + (timeout if timeout > SHORTEST_WAIT else SHORTEST_WAIT)
            thread.asleep = process.machine.asleep
            self.at(due, self._resume, thread, thread.ticket, False)
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
        thread.ticket += 1
        self.current = process
        _set_running_loop(thread.running_loop)
        thread.switch(woken)
        _set_running_loop(None)
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


def _kill(thread: ThreadGreenlet) -> None:
    for _ in range(MAX_KILLS):
        if thread.dead:
            return
        thread.throw(GreenletExit)
    raise RuntimeError(f"a greenlet of {thread.process.name} does not end")


class ThreadGreenlet(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A thread of a simulated process.

    ticket: changes whenever the greenlet is suspended or resumed, so that an event for an earlier wait has no effect.
    due, asleep: when its wait ends, and `Machine.asleep` when that was said.
    """

    process: Process
    ticket: int
    running_loop: AbstractEventLoop | None
    due: float
    asleep: float

    def __init__(self, process: Process, function: Callable[[], object]) -> None:
        super().__init__(lambda _: function())
        self.process = process
        self.ticket = 0
        self.running_loop = None
        self.due = self.asleep = 0.0


class Machine:
    """A computer, with its power and its clocks.

    Attributes:
        disk: Its `disk.Disk`, if it has one; the kernel knows only its method `process_ended`.
        boot_id: Random bytes that are others after each start.
        wall_error: By how many seconds its wall clock is wrong.
        suspended_until: Nothing on it runs, and nothing can be sent to it, before that time.
        asleep: How many seconds it was suspended since it was started. CLOCK_MONOTONIC does not count them.
    """

    def __init__(self, kernel: Kernel, name: str, disk: Any = None) -> None:
        self.kernel = kernel
        self.name = name
        self.disk = disk
        self.is_on = True
        self.boot_id = kernel.bytes.randbytes(16)
        self.wall_error = 0.0
        self.suspended_until = 0.0
        self.asleep = 0.0
        self._suspended_at: float | None = None
        self._started = kernel.now - kernel.rng.uniform(10, 10_000)

    def monotonic(self) -> float:
        """CLOCK_MONOTONIC"""
        return self.kernel.now - self._started - self.asleep

    def boottime(self) -> float:
        """CLOCK_BOOTTIME: as CLOCK_MONOTONIC, but it goes on while the machine is suspended."""
        return self.kernel.now - self._started

    @property
    def is_reachable(self) -> bool:
        """Whether its network card takes what arrives."""
        return self.is_on and self.suspended_until <= self.kernel.now

    def suspend(self, seconds: float) -> None:
        """Stop everything that runs on it, as when a laptop is closed or a virtual machine is moved."""
        now = self.kernel.now
        if self._suspended_at is None:
            self._suspended_at = now
        self.suspended_until = max(self.suspended_until, now + seconds)
        self.kernel.at(self.suspended_until, self._continue)

    def _continue(self) -> None:
        now = self.kernel.now
        if self._suspended_at is not None and now >= self.suspended_until:
            self.asleep += now - self._suspended_at
            self._suspended_at = None

    def power_off(self) -> None:
        """End all its processes. What its disk loses is for the caller to say."""
        self.is_on = False
        for process in self.kernel.processes:
            if process.machine is self and process.alive:
                process.kill(power_lost=True)

    def power_on(self) -> None:
        self.is_on = True
        self.boot_id = self.kernel.bytes.randbytes(16)
        self.suspended_until = self.asleep = 0.0
        self._suspended_at = None
        self._started = self.kernel.now - self.kernel.rng.uniform(1, 100)


class Resource(Protocol):
    """Something that the system takes back when its process ends."""

    def process_ended(self, *, power_lost: bool) -> None: ...


class Process:
    """A process on a machine. Its first thread is the one that `spawn` starts first.

    Attributes:
        alive: It has not ended.
        stopped_until: It does not run before that time (SIGSTOP).
        on_exit: Called with the exit status when it ends by itself, not when it is killed.
        handlers: Signal handlers, which are called in the hub; None if a signal is ignored.
        resources: Sockets and connections, in the order in which they were opened.
    """

    def __init__(self, kernel: Kernel, name: str, machine: Machine) -> None:
        self.kernel = kernel
        self.name = name
        self.machine = machine
        self.alive = True
        self.stopped_until = 0.0
        self.on_exit: Callable[[Any], object] = lambda _status: None
        self.handlers: dict[int, Callable[[], object] | None] = {}
        self.resources: dict[Resource, None] = {}
        self.threads: list[ThreadGreenlet] = []
        kernel.processes.append(self)

    def spawn(self, function: Callable[..., object], *arguments: Any, delay: float = 0.0) -> ThreadGreenlet:
        """Start a thread, which calls the function."""
        thread = ThreadGreenlet(self, lambda: self._run(function, arguments))
        self.threads.append(thread)
        self.kernel.spawn(thread, delay)
        return thread

    def _run(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        try:
            function(*arguments)
        except GreenletExit:
            pass
        except Exception as error:
            if not self.kernel.closing:
                self.kernel.fail(f"{self.name}: a thread ended with {error!r}", error)

    def ended(self, status: object) -> None:
        """End the process, a moment later, with an exit status; an exception is one as well."""
        self.kernel.note(self.name, "ends", repr(status)[:200])
        self.kernel.at(self.kernel.now, self._exit, status)

    def exit(self, status: object) -> NoReturn:
        """`os._exit`: nothing of the process runs after this."""
        self.ended(status)
        self.kernel.block(None)
        raise GreenletExit

    def _exit(self, status: object) -> None:
        if self.alive:
            self.kill()
            self.on_exit(status)

    def kill(self, *, power_lost: bool = False) -> None:
        """End the process at once (SIGKILL). The system closes its connections, unless it has no power."""
        self.alive = False
        if self.machine.disk is not None:
            self.machine.disk.process_ended(self)
        for resource in list(self.resources):
            resource.process_ended(power_lost=power_lost)
        self.resources.clear()

    def stop(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        self.stopped_until = max(self.stopped_until, self.kernel.now + seconds)

    def ignore(self, number: int) -> None:
        """`signal.signal(number, signal.SIG_IGN)`"""
        self.handlers[number] = None

    def signal(self, number: int) -> None:
        """Send it a signal. One for which it has no handler ends it."""
        if not self.alive:
            return
        if number not in self.handlers:
            self.kernel.at(max(self.kernel.now, self.stopped_until), self._exit, -number)
        elif (handler := self.handlers[number]) is not None:
            handler()


Kernel("no run yet")  # so that the stand-ins always find a kernel
