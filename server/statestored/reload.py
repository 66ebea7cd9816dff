"""SIGHUP: tokens and certificates are read again. What cannot be read stays as it was."""

import asyncio
import concurrent.futures
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

from statestored import audit
from statestored.access import Access
from statestored.errors import StartError
from statestored.tls import ServerTls

T = TypeVar("T")


def note_requests() -> list[int]:
    """Note each SIGHUP from now on, in the list that is returned, until a `Reload` takes them.

    To be called before the files are read for the first time: they may change before the daemon has started.
    """
    requests: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: requests.append(number))
    return requests


class Reload:
    """Reads the files in a thread: 256 tokens and a certificate take 5 ms, a file system over a network any time.

    While a reading is under way, any number of requests lead to one more, which begins when it has ended. So what the
    files hold at the last request is read in any case.
    """

    def __init__(self, access: Access, tls: ServerTls | None, on_new_tokens: Callable[[], None]) -> None:
        """`on_new_tokens` is called in the loop when the tokens have been read."""
        self._access = access
        self._tls = tls
        self._on_new_tokens = on_new_tokens
        self._is_due = False
        self._task: asyncio.Task[None] | None = None

    def request(self) -> None:
        """Read all files again, as they are now."""
        self._is_due = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._read_while_due())

    def cancel(self) -> None:
        """Read nothing more. A thread that waits for a file is left to itself."""
        if self._task is not None:
            self._task.cancel()

    async def _read_while_due(self) -> None:
        try:
            while self._is_due:
                self._is_due = False
                await self._read()
        finally:
            self._task = None

    async def _read(self) -> None:
        if (count := await _read_or_note(self._access.read)) is not None:
            audit.read_again("tokens", count=count)
            self._on_new_tokens()
        if self._tls is not None and await _read_or_note(self._tls.read) is not None:
            audit.read_again("certificates")


async def _read_or_note(read: Callable[[], T]) -> T | None:
    """Return what `read` does, or None if the files are missing or wrong."""
    try:
        return await _in_thread(read)
    except StartError as error:
        audit.not_read_again(error)
        return None


async def _in_thread(function: Callable[[], T]) -> T:
    """Run it in a thread that the end of the process does not wait for, as it would for those of the executor."""
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()  # from here on it cannot be cancelled

    def run() -> None:
        try:
            outcome.set_result(function())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="reload", daemon=True).start()
    return await asyncio.wrap_future(outcome)
