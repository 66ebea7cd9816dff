"""Files are read again beside the loop, once for many requests, and the last state of them in any case."""

import asyncio
import gc
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from statestored.access import Access
from statestored.errors import StartError
from statestored.reload import Reload
from statestored.tls import ServerTls, TlsFiles
from tests.certificates import Authority
from tests.server.fakes import Gate, some_turns
from tests.server.waiting import eventually
from tests.tokenfile import TokenFile


class Files:
    """Something to read: what is in `content` then. Waits at the gate."""

    def __init__(self) -> None:
        self.content = 0
        self.read_contents: list[int] = []
        self.threads: set[int] = set()
        self.error: StartError | None = None

    def read(self) -> int:
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error
        self.read_contents.append(self.content)
        return self.content


@pytest.fixture
def access(monkeypatch: pytest.MonkeyPatch) -> Access:
    access, files = Access(), Files()
    monkeypatch.setattr(access, "read", files.read)
    monkeypatch.setattr(access, "files", files, raising=False)
    return access


def files_of(access: Access) -> Files:
    files: Files = access.files  # type: ignore[attr-defined]
    return files


class Told:
    """How often somebody was told that there are new tokens, and in which thread."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __call__(self) -> None:
        self.threads.append(threading.get_ident())


async def test_any_number_of_requests_lead_to_one_more_reading(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    files, told = files_of(access), Told()
    reload = Reload(access, None, told)
    with Gate(monkeypatch, access, "read") as gate:
        reload.request()
        await eventually(lambda: gate.waiting)
        for number in range(1, 1001):
            files.content = number
            reload.request()
        await some_turns()  # nothing waits for the reading
        assert files.read_contents == []
    await eventually(lambda: len(told.threads) == 2)
    assert files.read_contents == [1000, 1000], "the second began after the last request"
    assert set(told.threads) == {threading.get_ident()}
    assert threading.get_ident() not in files.threads
    await some_turns()
    assert len(files.read_contents) == 2


async def test_each_request_that_comes_later_is_heard(access: Access) -> None:
    files, told = files_of(access), Told()
    reload = Reload(access, None, told)
    for number in range(1, 4):
        files.content = number
        reload.request()
        await eventually(lambda number=number: len(told.threads) == number)
    assert files.read_contents == [1, 2, 3]


async def test_what_cannot_be_read_changes_nothing_and_is_said(access: Access) -> None:
    files, told = files_of(access), Told()
    reload = Reload(access, None, told)
    files.error = StartError("--tokens /none cannot be read")
    with capture_logs() as logs:
        reload.request()
        await eventually(lambda: logs)
    assert [(entry["log_level"], entry["error"]) for entry in logs] == [("error", "--tokens /none cannot be read")]
    assert told.threads == []
    files.error = None
    reload.request()
    await eventually(lambda: told.threads)


async def test_certificates_are_read_also_if_the_tokens_are_wrong(access: Access, tmp_path: Path) -> None:
    identity = Authority(tmp_path).issue("server")
    tls = ServerTls(TlsFiles(identity.certificate, identity.key))
    files_of(access).error = StartError("wrong")
    with capture_logs() as logs:
        Reload(access, tls, Told()).request()
        await eventually(lambda: len(logs) == 2)
    assert logs[1]["what"] == "certificates"


async def test_nothing_is_read_after_the_end(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    reload = Reload(access, None, told)
    reload.cancel()
    with Gate(monkeypatch, access, "read") as gate:
        reload.request()
        await eventually(lambda: gate.waiting)
        reload.request()
        reload.cancel()
        await some_turns()
    await eventually(lambda: gate.passed)
    await some_turns()
    assert (len(gate.passed), told.threads) == (1, [])


async def test_readings_leave_nothing_behind(tmp_path: Path) -> None:
    """Neither contexts nor tokens; the garbage collector is not needed for it."""
    identity = Authority(tmp_path).issue("server")
    tls = ServerTls(TlsFiles(identity.certificate, identity.key, tmp_path / "authority.pem"))
    tokens = TokenFile(tmp_path / "tokens.toml")
    tokens.add("one")
    done = asyncio.Event()
    reload = Reload(Access(tokens.path), tls, done.set)
    count: Callable[[], int] = lambda: sum(isinstance(each, ssl.SSLContext) for each in gc.get_objects())  # noqa: E731

    async def read(times: int) -> None:
        for _ in range(times):
            done.clear()
            reload.request()
            await done.wait()
        await eventually(lambda: reload._task is None)

    await read(1)
    gc.collect()
    gc.disable()
    try:
        before = count()
        await read(20)
        assert count() == before
    finally:
        gc.enable()
