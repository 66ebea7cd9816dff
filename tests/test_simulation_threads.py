"""Threads, executors and queues of the simulation."""

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from tests.simulation.kernel import START, Kernel, Machine, Process
from tests.simulation.threads import Executor, SimpleQueue, Thread, Timer


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel("test")
    yield kernel
    kernel.end()


def run(kernel: Kernel, main: Callable[[], object]) -> None:
    process = Process(kernel, "process", Machine(kernel, "machine"))
    process.spawn(main)
    kernel.run(START + 1000)
    assert kernel.failures == []


def test_an_executor_runs_as_many_jobs_at_once_as_it_has_threads(kernel: Kernel) -> None:
    running, most = [0], [0]
    done: list[int] = []

    def job(number: int) -> int:
        running[0] += 1
        most[0] = max(most[0], running[0])
        kernel.block(1.0)
        running[0] -= 1
        return number

    def main() -> None:
        executor = Executor(2)
        futures: list[Future[int]] = [executor.submit(job, number) for number in range(5)]
        executor.shutdown()
        done.extend(future.result(timeout=0) for future in futures)

    run(kernel, main)
    assert (done, most[0]) == ([0, 1, 2, 3, 4], 2)
    assert kernel.now - START == pytest.approx(3.0, abs=0.01)


def test_an_executor_takes_no_job_after_its_shutdown(kernel: Kernel) -> None:
    done: list[int] = []

    def main() -> None:
        executor = Executor(1)
        executor.submit(kernel.block, 1.0)
        executor.submit(done.append, 1)
        executor.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(done.append, 2)

    run(kernel, main)
    assert done == [1]


def test_what_a_job_raises_is_in_its_future(kernel: Kernel) -> None:
    errors: list[BaseException | None] = []

    def main() -> None:
        executor = Executor(1)
        future: Future[float] = executor.submit(lambda: 1 / 0)
        executor.shutdown()
        errors.append(future.exception(timeout=0))

    run(kernel, main)
    assert isinstance(errors[0], ZeroDivisionError)


def test_a_thread_is_joined_when_it_has_ended_or_the_timeout_is_over(kernel: Kernel) -> None:
    seen: list[tuple[float, bool]] = []

    def main() -> None:
        thread = Thread(target=kernel.block, args=(2.0,), daemon=True)
        thread.start()
        for timeout in (1.0, None, None):
            thread.join(timeout)
            seen.append((round(kernel.now - START, 2), thread.is_alive()))

    run(kernel, main)
    assert seen == [(1.0, True), (2.0, False), (2.0, False)]


def test_a_timer_calls_its_function_unless_it_is_cancelled(kernel: Kernel) -> None:
    called: list[str] = []

    def main() -> None:
        for name in ("first", "second"):
            timer = Timer(1.0, called.append, [name])
            timer.daemon = True
            timer.start()
        kernel.block(0.5)
        timer.cancel()

    run(kernel, main)
    assert called == ["first"]


def test_a_queue_gives_each_item_to_one_thread_and_is_empty_after_a_timeout(kernel: Kernel) -> None:
    got: list[object] = []
    items: SimpleQueue[str] = SimpleQueue()

    def get() -> None:
        try:
            got.append(items.get(timeout=2.0))
        except queue.Empty:
            got.append(round(kernel.now - START, 2))

    def main() -> None:
        for _ in range(3):
            Thread(target=get).start()
        kernel.block(1.0)
        items.put("a")
        items.put("b")
        kernel.block(5.0)
        items.put("c")
        assert items.get(block=False) == "c"
        assert items.empty()

    run(kernel, main)
    assert got == ["a", "b", 2.0]


def test_a_thread_that_has_given_up_takes_no_item_from_another(kernel: Kernel) -> None:
    got: list[str] = []
    items: SimpleQueue[str] = SimpleQueue()

    def main() -> None:
        with pytest.raises(queue.Empty):
            items.get(timeout=1.0)
        Thread(target=lambda: got.append(items.get())).start()
        kernel.block(1.0)
        items.put("a")

    run(kernel, main)
    assert got == ["a"]
