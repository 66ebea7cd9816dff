"""What runs beside the loop has ended when its caller learns so, and says what kind of failure it was."""

import asyncio
import errno
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from statestored.engines.threads import in_thread
from statestored.errors import DamagedFile, DiskFailed, NoRoom, TemporaryFileRemoved
from tests.server.fakes import some_turns
from tests.server.waiting import PATIENCE, eventually


async def test_the_loop_goes_on_meanwhile() -> None:
    turned = threading.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    assert await in_thread(turned.wait, PATIENCE)


async def test_it_runs_where_it_is_told_to() -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as executor:
        thread = await in_thread(threading.current_thread, executor=executor)
    assert thread.name.startswith("mine")
    assert await in_thread(threading.current_thread) not in (thread, threading.current_thread())


async def test_arguments_and_the_result_come_through() -> None:
    assert await in_thread(divmod, 17, 5) == (3, 2)


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        NoRoom(errno.ENOSPC, "No space left on device"),
        TemporaryFileRemoved(errno.ENOENT, "removed"),
        DiskFailed(OSError("x")),
    ],
)
async def test_failures_that_have_a_name_keep_it(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        await in_thread(fail, error)
    assert raised.value is error


async def test_damage_and_our_own_faults_are_no_failed_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    for error in (DamagedFile(tmp_path_factory.getbasetemp(), "x"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            await in_thread(fail, error)


async def test_any_other_error_of_the_system_is_a_failed_disk() -> None:
    with pytest.raises(DiskFailed, match="Input/output error"):
        await in_thread(fail, OSError(errno.EIO, "Input/output error"))


class Work:
    """A function that takes until it may end, and then fails, if it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.started, self.may_end, self.ended = threading.Event(), threading.Event(), threading.Event()
        self._error = error

    def __call__(self) -> None:
        self.started.set()
        self.may_end.wait(PATIENCE)
        self.ended.set()
        if self._error is not None:
            raise self._error


async def cancelled_meanwhile(work: Work) -> "asyncio.Task[None]":
    """Done, in one way or another."""
    task = asyncio.create_task(in_thread(work))
    await eventually(work.started.is_set)
    task.cancel()
    await some_turns()
    assert not task.done()
    work.may_end.set()
    await asyncio.wait([task])
    assert work.ended.is_set()
    return task


async def test_who_is_cancelled_learns_of_it_when_the_function_has_returned() -> None:
    assert (await cancelled_meanwhile(Work())).cancelled()


async def test_a_failure_goes_before_the_cancellation() -> None:
    """Nobody else would learn of it: the next sync may well succeed, and say nothing of what was lost."""
    task = await cancelled_meanwhile(Work(OSError(errno.EIO, "Input/output error")))
    assert not task.cancelled()
    assert isinstance(task.exception(), DiskFailed)
