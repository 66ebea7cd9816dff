"""What ends a run that does not end by itself, and what is known of a run that failed."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BEGIN = """
    import asyncio
    from tests.simulation import run as runs, system, worker
    from tests.simulation.kernel import World
    from tests.simulation.plan import plan_of
    from statestored.engines.commits import GroupCommit

    worker.set_up()
    worker.MOST_CPU, worker.AGAIN_AFTER = 1.0, 0.1
    kept = GroupCommit.begin
"""
END = """
    outcome = worker.run(plan_of(3))
    print(outcome.kinds, outcome.failures)
    GroupCommit.begin = kept
    assert World.kernel.closing
    assert not worker.run(plan_of(4)).failures
"""


def failures_with(fault: str) -> str:
    """Run a seed, and another one without the fault, in a process of their own: what is replaced stays replaced."""
    program = textwrap.dedent(BEGIN) + textwrap.dedent(fault) + textwrap.dedent(END)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


SPINS = """
    async def begin(self):
        while True:
            pass
    GroupCommit.begin = begin
"""
SPINS_AND_CATCHES = """
    async def begin(self):
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass
    GroupCommit.begin = begin
"""
SPINS_BETWEEN_EVENTS = """
    def spin():
        while True:
            pass

    async def begin(self):
        World.kernel.after(0.0, spin)
        await kept(self)
    GroupCommit.begin = begin
"""


@pytest.mark.parametrize("fault", [SPINS, SPINS_BETWEEN_EVENTS])
def test_a_loop_that_never_waits_is_a_failure_with_its_stack(fault: str) -> None:
    shown = failures_with(fault)
    assert "['is stuck'" in shown
    assert "it took 1 s of CPU" in shown
    assert 'File "<string>"' in shown


def test_a_loop_that_iterates_without_an_end_is_a_failure() -> None:
    shown = failures_with(
        """
        async def begin(self):
            while True:
                await asyncio.sleep(0)
        GroupCommit.begin = begin
        worker.MOST_CPU = 60.0
        """
    )
    assert "['too many iterations'" in shown


def test_an_error_of_the_simulation_itself_is_a_failure_of_the_run() -> None:
    shown = failures_with(
        """
        async def begin(self):
            World.kernel.after(0.0, lambda: 1 // 0)
            await kept(self)
        GroupCommit.begin = begin
        """
    )
    assert "['the simulation itself failed'" in shown
    assert "ZeroDivisionError" in shown


@pytest.mark.parametrize(
    ("what", "noticed"),
    [
        ("self.task = asyncio.create_task(fail())", "nobody retrieves ValueError('lost') of begin.<locals>.fail"),
        ("Noisy()", "a finalizer raised ValueError('lost') in begin.<locals>.Noisy.__del__"),
    ],
)
def test_an_exception_that_nobody_sees_is_a_failure(what: str, noticed: str) -> None:
    shown = failures_with(
        f"""
        async def begin(self):
            async def fail():
                raise ValueError("lost")

            class Noisy:
                def __del__(self):
                    raise ValueError("lost")
            {what}
            await kept(self)
        GroupCommit.begin = begin
        """
    )
    assert noticed in shown
