"""The states in a `shelve` file: for the few processes of one machine that want no daemon."""

import ast
import shelve
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from os import PathLike, fspath
from os.path import abspath

from statestore.base import Sender
from statestore.errors import StateStoreError, Unavailable
from statestore.filelock import locked
from statestore.mapping import MappingStorage, States

FORMAT_KEY, FORMAT = "format", "statestore 1"


class ShelveStorage(MappingStorage):
    """Safe across threads and processes; the file is opened and closed by every call.

    path: the file to use, made where there is none; beside it stand the lock (`.lock`) and what the machine's dbm adds.
    Raises Unavailable where the file cannot be used, or was made by something else.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = abspath(fspath(path))  # the process, or one that unpickles it, may work in another directory

    @contextmanager
    def _held(self) -> Iterator[MutableMapping[Sender, States]]:
        try:
            with locked(self.path + ".lock"), shelve.open(self.path) as shelf:  # noqa: S301  # our own file
                self._check_format(shelf)
                yield _Senders(shelf)
        except StateStoreError:
            raise
        except Exception as error:  # a damaged pickle raises whatever it likes
            raise Unavailable(f"shelf {self.path}: {type(error).__name__}: {error}") from error

    def _check_format(self, shelf: shelve.Shelf[object]) -> None:
        if FORMAT_KEY not in shelf and len(shelf) == 0:
            shelf[FORMAT_KEY] = FORMAT
        if shelf.get(FORMAT_KEY) != FORMAT:
            raise Unavailable(f"shelf {self.path}: not made by this ShelveStorage; give another path")


class _Senders(MutableMapping[Sender, States]):
    """A shelf takes only text without surrogates as a key: `ascii` makes a different one of each sender."""

    def __init__(self, shelf: shelve.Shelf[States]) -> None:
        self._shelf = shelf

    def __getitem__(self, sender: Sender) -> States:
        return self._shelf[ascii(sender)]

    def __setitem__(self, sender: Sender, states: States) -> None:
        self._shelf[ascii(sender)] = states

    def __delitem__(self, sender: Sender) -> None:
        del self._shelf[ascii(sender)]

    def __iter__(self) -> Iterator[Sender]:
        return (ast.literal_eval(key) for key in list(self._shelf) if key != FORMAT_KEY)

    def __len__(self) -> int:
        return len(self._shelf) - 1

    def clear(self) -> None:
        for sender in self:
            del self[sender]
