"""The states in a dict: for tests, and for one process that may forget."""

from collections.abc import Iterator
from contextlib import contextmanager

from statestore.base import Sender
from statestore.forks import ProcessBound, no_fork
from statestore.mapping import MappingStorage, States


class MemoryStorage(ProcessBound, MappingStorage):
    """Thread safe; gone with the process. The child of a fork has the states of that moment, and then its own.

    It cannot be copied or pickled: its owner would not see what the copy was told.
    """

    def __init__(self) -> None:
        self._senders: dict[Sender, States] = {}

    @contextmanager
    def _held(self) -> Iterator[dict[Sender, States]]:
        with no_fork():
            yield self._senders
