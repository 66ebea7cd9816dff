"""Coroutine tests run on the daemon's own kind of loop, and fail where the loop had to report an error."""

import asyncio
import gc
import inspect
import os
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop

from statestored import audit

PATIENCE = 30.0  # seconds after which a test has hung: a signal, as pytest-timeout's, does not get through to it


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    reports: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(lambda _loop, report: reports.append(report))
        runner.run(asyncio.wait_for(pyfuncitem.obj(**arguments), PATIENCE))
    gc.collect()  # an exception that nobody asked a future for is reported when the future goes
    assert reports == []
    return True


@pytest.fixture(autouse=True)
def nothing_was_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second goes by between two tests."""
    monkeypatch.setattr(audit, "limit", audit.LineLimit())


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Whatever is made is open to everybody, unless it says otherwise."""
    umask = os.umask(0)
    yield
    os.umask(umask)
