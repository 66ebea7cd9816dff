"""The kernel of the simulation: virtual time, processes, clocks, and the end of a run."""

import time
from collections.abc import Iterator

import pytest
from greenlet import GreenletExit

from tests.simulation import stand_ins
from tests.simulation.kernel import START, Kernel, Machine, Process

FOREVER = START + 1e6


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel("test")
    yield kernel
    kernel.end()


@pytest.fixture
def machine(kernel: Kernel) -> Machine:
    return Machine(kernel, "machine")


@pytest.fixture
def process(kernel: Kernel, machine: Machine) -> Process:
    return Process(kernel, "process", machine)


def test_events_happen_in_the_order_of_their_times_and_then_in_the_order_in_which_they_were_asked_for(
    kernel: Kernel,
) -> None:
    seen: list[str] = []
    for when, name in ((2, "c"), (1, "a"), (2, "d"), (1, "b")):
        kernel.after(when, seen.append, name)
    kernel.run(START + 1)
    assert (seen, kernel.now) == (["a", "b"], START + 1)
    kernel.run(FOREVER)
    assert (seen, kernel.now) == (["a", "b", "c", "d"], START + 2)


def test_a_wait_ends_at_its_timeout_or_when_it_is_woken(kernel: Kernel, process: Process) -> None:
    ends: list[tuple[bool, float]] = []

    def wait() -> None:
        ends.extend((kernel.block(2.0), kernel.now - START) for _ in range(2))

    thread = process.spawn(wait)
    kernel.after(3.0, kernel.wake, thread)
    kernel.run(FOREVER)
    assert ends == [(False, 2.0), (True, 3.0)]


def test_a_thread_that_waits_for_almost_nothing_again_and_again_does_not_stop_the_clock(
    kernel: Kernel, process: Process
) -> None:
    def wait() -> None:
        while stand_ins.monotonic() < end:
            stand_ins.sleep(1e-15)

    end = process.machine.monotonic() + 1e-4
    process.spawn(wait)
    kernel.run(FOREVER)
    assert kernel.events < 2000


def test_a_wake_of_an_earlier_wait_does_not_end_a_later_one(kernel: Kernel, process: Process) -> None:
    ends: list[tuple[bool, float]] = []

    def wait() -> None:
        ends.extend((kernel.block(1.0), kernel.now - START) for _ in range(2))

    thread = process.spawn(wait)
    for _ in range(2):  # of which the second comes when the wait has ended already
        kernel.after(0.5, kernel.wake, thread)
    kernel.run(FOREVER)
    assert ends == [(True, 0.5), (False, 1.5)]


def test_while_a_machine_is_suspended_its_timers_and_the_monotonic_clock_stand_still(
    kernel: Kernel, machine: Machine, process: Process
) -> None:
    seen: list[tuple[float, float, float, float]] = []

    def clocks() -> tuple[float, float, float]:
        return stand_ins.monotonic(), stand_ins.clock_gettime(time.CLOCK_BOOTTIME), stand_ins.wall_clock()

    def wait() -> None:
        monotonic, boottime, wall = clocks()
        stand_ins.sleep(10.0)
        later = clocks()
        seen.append((kernel.now - START, later[0] - monotonic, later[1] - boottime, later[2] - wall))

    process.spawn(wait)
    kernel.after(4.0, machine.suspend, 100.0)
    kernel.after(50.0, machine.suspend, 60.0)  # until 110
    while_suspended: list[float] = []
    for seconds in (4.0, 100.0):
        kernel.after(seconds, lambda: while_suspended.append(machine.monotonic()))
    kernel.run(FOREVER)
    assert seen == [pytest.approx((116.0, 10.0, 116.0, 116.0))]
    assert while_suspended[0] == pytest.approx(while_suspended[1])


def test_a_process_that_starts_on_a_suspended_machine_waits_for_it(
    kernel: Kernel, machine: Machine, process: Process
) -> None:
    machine.suspend(5.0)
    process.stop(1.0)
    started: list[float] = []
    process.spawn(lambda: started.append(kernel.now - START))
    kernel.run(FOREVER)
    assert started == [5.0]


def test_a_stopped_process_goes_on_later_and_is_late_for_its_timers(kernel: Kernel, process: Process) -> None:
    woke: list[float] = []

    def wait() -> None:
        kernel.block(1.0)
        woke.append(kernel.now - START)

    process.spawn(wait)
    kernel.after(0.5, process.stop, 3.0)
    kernel.run(FOREVER)
    assert woke == [3.5]


def test_nothing_of_a_killed_process_runs_and_its_exit_is_not_told(kernel: Kernel, process: Process) -> None:
    seen: list[object] = []
    process.on_exit = seen.append

    def work() -> None:
        try:
            kernel.block(2.0)
        finally:
            seen.append("went on")

    process.spawn(work)
    kernel.after(1.0, process.kill)
    kernel.run(FOREVER)
    assert seen == []


def test_a_process_that_exits_tells_its_status_and_runs_no_further(kernel: Kernel, process: Process) -> None:
    seen: list[object] = []
    process.on_exit = seen.append

    def work() -> None:
        try:
            process.exit(3)
        finally:
            seen.append("went on")

    process.spawn(work)
    kernel.run(FOREVER)
    assert (seen, process.alive) == ([3], False)


def test_a_signal_is_handled_or_ignored_or_ends_the_process(kernel: Kernel, process: Process) -> None:
    seen: list[object] = []
    process.on_exit = seen.append
    process.handlers[1] = lambda: seen.append("handled")
    process.ignore(10)
    for number in (1, 10, 15):
        process.signal(number)
    kernel.run(FOREVER)
    assert seen == ["handled", -15]


def test_a_machine_that_is_started_again_has_another_boot_id_and_its_processes_are_gone(
    kernel: Kernel, machine: Machine, process: Process
) -> None:
    machine.suspend(10.0)
    before = machine.boot_id
    kernel.after(5.0, machine.power_off)
    kernel.after(6.0, machine.power_on)
    kernel.run(FOREVER)
    assert machine.boot_id != before
    assert (process.alive, machine.is_reachable, machine.asleep) == (False, True, 0.0)


def test_an_error_in_a_thread_is_a_failure_of_the_run(kernel: Kernel, process: Process) -> None:
    process.spawn(lambda: 1 / 0)
    kernel.run(FOREVER)
    assert ["ZeroDivisionError" in failure for failure in kernel.failures] == [True]
    assert any("1 / 0" in line for line in kernel.trace)


def test_at_the_end_every_greenlet_is_killed_even_one_that_does_not_want_to(kernel: Kernel, process: Process) -> None:
    ended: list[str] = []

    def wait() -> None:
        try:
            kernel.block(None)
        except GreenletExit:
            kernel.block(None)  # raises it again
        finally:
            ended.append("finally")

    threads = [process.spawn(wait), process.spawn(wait, delay=10.0)]
    kernel.run(START + 1)
    kernel.end()
    assert all(thread.dead for thread in threads)
    assert ended == ["finally"]  # the other one had not begun


def test_a_run_is_a_function_of_its_seed() -> None:
    def digest(seed: int) -> int:
        kernel = Kernel(seed)
        machine = Machine(kernel, "machine")

        def work(process: Process) -> None:
            for _ in range(5):
                stand_ins.sleep(kernel.rng.random())
                kernel.note(process.name, "wakes", stand_ins.urandom(2).hex())

        for number in range(3):
            process = Process(kernel, f"process{number}", machine)
            process.spawn(work, process)
        kernel.run(FOREVER)
        kernel.end()
        return kernel.digest

    assert digest(1) == digest(1) != digest(2)


def test_outside_a_process_the_clocks_are_the_real_ones(kernel: Kernel) -> None:
    assert kernel.current is None
    assert stand_ins.monotonic() == pytest.approx(time.monotonic(), abs=5)
    assert stand_ins.wall_clock() == pytest.approx(time.time(), abs=5)
    assert stand_ins.clock_gettime(time.CLOCK_MONOTONIC) == pytest.approx(time.monotonic(), abs=5)


def test_a_module_with_other_names_is_refused_a_name_that_it_does_not_have() -> None:
    assert stand_ins.Like(time, sleep=None).sleep is None
    assert stand_ins.Like(time, sleep=None).monotonic is time.monotonic
    with pytest.raises(AttributeError, match="slumber"):
        stand_ins.Like(time, slumber=None)
