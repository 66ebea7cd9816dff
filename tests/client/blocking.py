"""`AsyncRemoteStorage` behind blocking calls, for tests that are written for any store."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from statestore import AsyncRemoteStorage, Entry, StateStorage, Swap
from statestore.base import Pair, Sender, Triple

PATIENCE = 60.0  # seconds after which a test has hung


class Blocking(StateStorage):
    """Its calls run in a loop of its own, in a thread."""

    def __init__(self, storage: AsyncRemoteStorage) -> None:
        self._storage = storage
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-blocking")

    def get(self, module: str, sender: Sender) -> str:
        return self._run(self._storage.get(module, sender))

    def set(self, module: str, sender: Sender, state: str) -> None:
        self._run(self._storage.set(module, sender, state))

    def set_all(self, sender: Sender, state: str) -> int:
        return self._run(self._storage.set_all(sender, state))

    def compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> Swap:
        return self._run(self._storage.compare_and_set(module, sender, expected, state))

    def get_many(self, pairs: Iterable[Pair]) -> list[str]:
        return self._run(self._storage.get_many(pairs))

    def set_many(self, triples: Iterable[Triple]) -> None:
        self._run(self._storage.set_many(triples))

    def scan(self, module: str | None = None, prefix: str = "", state: str | None = None) -> Iterator[Entry]:
        return iter(self._run(_all(self._storage.scan(module, prefix, state))))

    def count(self, module: str | None = None, state: str | None = None) -> int:
        return self._run(self._storage.count(module, state))

    def counts(self) -> dict[tuple[str, str], int]:
        return self._run(self._storage.counts())

    def clear(self) -> None:
        self._run(self._storage.clear())

    def ping(self) -> None:
        self._run(self._storage.ping())

    def info(self) -> dict[str, Any]:
        return self._run(self._storage.info())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._run(self._storage.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)


async def _all(entries: AsyncIterator[Entry]) -> list[Entry]:
    return [entry async for entry in entries]
