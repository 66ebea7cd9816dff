"""The states in a dict: for tests, and for one process that may forget."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from statestore.base import Sender
from statestore.mapping import MappingStorage, States


class MemoryStorage(MappingStorage):
    """Thread safe; gone with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _senders
        self._senders: dict[Sender, States] = {}

    @contextmanager
    def _held(self) -> Iterator[dict[Sender, States]]:
        with self._lock:
            yield self._senders
