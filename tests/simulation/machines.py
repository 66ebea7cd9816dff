"""Machines, and the processes and threads that run on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from greenlet import GreenletExit, greenlet

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task

    from tests.simulation.kernel import Kernel


class ThreadGreenlet(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A thread of a simulated process.

    Attributes:
        ticket: Changes whenever the greenlet is suspended or resumed, so that an event for an earlier wait has no
            effect.
        running_loop: The event loop that runs in this thread, which sets it.
        running_task: The task in whose step the thread was suspended, if the kernel has to restore it.
        due, asleep: When its wait ends, and `Machine.asleep` at the time when the wait began.
    """

    process: Process
    ticket: int
    running_loop: AbstractEventLoop | None
    running_task: Task[Any] | None
    due: float
    asleep: float

    def __init__(self, process: Process, function: Callable[[], object]) -> None:
        super().__init__(lambda _: function())
        self.process = process
        self.ticket = 0
        self.running_loop = self.running_task = None
        self.due = self.asleep = 0.0


class Machine:
    """A computer, with its power and its clocks.

    Attributes:
        disk: Its `disk.Disk`, if it has one; the kernel knows only its method `process_ended`.
        boot_id: Random bytes, which change each time the machine starts.
        wall_error: The error of its wall clock, in seconds.
        suspended_until: Before this time nothing runs on it and nothing reaches it.
        asleep: For how many seconds it was suspended since it started. CLOCK_MONOTONIC does not count them.
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
        now = self.kernel.now if self._suspended_at is None else self._suspended_at
        return now - self._started - self.asleep

    def boottime(self) -> float:
        """CLOCK_BOOTTIME: as CLOCK_MONOTONIC, but it goes on while the machine is suspended."""
        return self.kernel.now - self._started

    @property
    def is_reachable(self) -> bool:
        """Whether its network card receives anything."""
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
        """End all its processes. The caller decides what its disk loses."""
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
    """Something that the system closes when its process ends."""

    def process_ended(self, *, power_lost: bool) -> None: ...


class Process:
    """A process on a machine. Its first thread is the one that `spawn` starts first.

    Attributes:
        alive: Whether it has not ended.
        stopped_until: It does not run before this time (SIGSTOP).
        on_exit: Called with the exit status if the process ends by itself, but not if it is killed.
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
        """Send it SIGSTOP, and SIGCONT after so many seconds."""
        self.stopped_until = max(self.stopped_until, self.kernel.now + seconds)

    def ignore(self, number: int) -> None:
        """`signal.signal(number, signal.SIG_IGN)`"""
        self.handlers[number] = None

    def signal(self, number: int) -> None:
        """Send it a signal. The process ends if it has no handler for it."""
        if not self.alive:
            return
        if number not in self.handlers:
            self.kernel.at(max(self.kernel.now, self.stopped_until), self._exit, -number)
        elif (handler := self.handlers[number]) is not None:
            handler()
