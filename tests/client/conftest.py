"""Coroutine tests run on asyncio's own loop and on uvloop, and fail where a loop had to report an error."""

import asyncio
import gc
import inspect
import time
from typing import Any

import pytest
import uvloop

from tests.certificates import Authority
from tests.client.timing import Clock

PATIENCE = 30.0  # seconds after which a test has hung: a signal, as pytest-timeout's, does not get through to uvloop
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if inspect.iscoroutinefunction(metafunc.function):
        metafunc.fixturenames.append("loop_factory")
        metafunc.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    reports: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=pyfuncitem.callspec.params["loop_factory"]) as runner:
        runner.get_loop().set_exception_handler(lambda _loop, report: reports.append(report))
        left_behind = runner.run(_run(pyfuncitem.obj(**arguments)))
        gc.collect()  # an exception that nobody asked a future for is reported when the future goes
    assert reports == []
    assert left_behind == []
    return True


async def _run(test: Any) -> list[str]:
    """Runs it. Returns the tasks that it has left behind."""
    async with asyncio.timeout(PATIENCE):  # not wait_for, which has a task of its own before Python 3.12
        await test
    return [repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """One that no other test uses."""
    return str(request.node.nodeid[-200:])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))
