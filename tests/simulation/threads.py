"""What stands in for threads, thread pools and queues: each thread is a greenlet of the process that starts it."""

import concurrent.futures
import queue
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

from greenlet import GreenletExit, getcurrent

from tests.simulation.kernel import Process, ThreadGreenlet, World

P = ParamSpec("P")
T = TypeVar("T")

START_SECONDS = 2e-5  # until a new thread runs
_Job = tuple["concurrent.futures.Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def current_process() -> Process:
    process = World.kernel.current
    if process is None:
        raise RuntimeError("no simulated process is running")
    return process


class Executor(concurrent.futures.Executor):
    """`ThreadPoolExecutor`. A thread of it begins some microseconds after `submit`, and ends when there is no more."""

    def __init__(self, max_workers: int = 16, thread_name_prefix: str = "") -> None:  # noqa: ARG002
        self._process = current_process()
        self._max_workers = max_workers
        self._running = 0
        self._jobs: deque[_Job] = deque()
        self._waiting: list[ThreadGreenlet] = []  # in `shutdown`
        self._is_shut_down = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "concurrent.futures.Future[T]":
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._jobs.append((future, fn, args, kwargs))
        if self._running < self._max_workers:
            self._running += 1
            self._process.spawn(self._work, delay=self._process.kernel.rng.uniform(1e-6, 5e-5))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._is_shut_down = True
        if cancel_futures:
            for future, *_ in self._jobs:
                future.cancel()
        while wait and self._running:
            self._waiting.append(getcurrent())
            self._process.kernel.block(None)

    def _work(self) -> None:
        while self._jobs:
            future, function, arguments, named = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function(*arguments, **named)
            except GreenletExit:
                raise
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
        self._running -= 1
        if not self._running:
            waiting, self._waiting = self._waiting, []
            for thread in waiting:
                self._process.kernel.wake(thread)


class Thread:
    """`threading.Thread`. The end of a process does not wait for it, as for one that is a daemon."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        assert group is None
        self.name = name
        self.daemon = daemon
        self._target = target
        self._arguments = tuple(args)
        self._named = dict(kwargs or {})
        self._thread: ThreadGreenlet | None = None
        self._has_ended = False
        self._waiting: list[ThreadGreenlet] = []  # in `join`

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("threads can only be started once")
        self._thread = current_process().spawn(self._bootstrap, delay=START_SECONDS)

    def run(self) -> None:
        if self._target is not None:
            self._target(*self._arguments, **self._named)

    def is_alive(self) -> bool:
        return self._thread is not None and not self._has_ended

    def join(self, timeout: float | None = None) -> None:
        if not self._has_ended:
            me = getcurrent()
            self._waiting.append(me)
            if not World.kernel.block(timeout):
                self._waiting.remove(me)

    def _bootstrap(self) -> None:
        try:
            self.run()
        finally:
            self._has_ended = True
            for thread in self._waiting:
                World.kernel.wake(thread)


class Timer(Thread):
    """`threading.Timer`"""

    def __init__(
        self,
        interval: float,
        function: Callable[..., object],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(target=function, args=args or (), kwargs=kwargs)
        self._interval = interval
        self._is_cancelled = False
        self._is_waiting = False

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._thread is not None and self._is_waiting:
            World.kernel.wake(self._thread)

    def run(self) -> None:
        if not self._is_cancelled:
            self._is_waiting = True
            World.kernel.block(self._interval)
            self._is_waiting = False
        if not self._is_cancelled:
            super().run()


class SimpleQueue(Generic[T]):
    """`queue.SimpleQueue`"""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._waiting: list[ThreadGreenlet] = []

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002
        self._items.append(item)
        if self._waiting:
            World.kernel.wake(self._waiting.pop(0))

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        process = current_process()
        until = None if timeout is None else process.machine.monotonic() + timeout
        while not self._items:  # another thread may have taken what this one was woken for
            left = None if until is None else until - process.machine.monotonic()
            if not block or (left is not None and left <= 0):
                raise queue.Empty
            me = getcurrent()
            self._waiting.append(me)
            if not process.kernel.block(left) and me in self._waiting:
                self._waiting.remove(me)
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)
