"""The states in a `shelve` file: for the few processes of one machine that want no daemon."""

import ast
import dbm
import shelve
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from os import PathLike, fspath
from os.path import abspath
from pathlib import Path

from statestore.base import Sender
from statestore.errors import StateStoreError, Unavailable
from statestore.filelock import locked
from statestore.mapping import MappingStorage, States
from statestore.undo import UndoCopy

FORMAT_KEY, FORMAT = "format", "statestore 1"
# The files that one kind of dbm or another keeps for a shelf. Berkeley DB has the last one while it makes a file.
FILES = ("{}", "{}.db", "{}.dat", "{}.dir", "{}.bak", "{}.pag", "{}-journal", "{}-wal", "{}-shm", "__db.{}.db")


class ShelveStorage(MappingStorage):
    """Safe across threads and processes, and against a kill; the file is opened and closed by every call.

    A call that changes something first copies the file, and the next call puts the copy back if the process was killed
    in the middle: most kinds of dbm would lose senders then. So it is for some thousands of senders.

    path: the file to use, made if there is none; beside it stand the lock (`.lock`), during a change the copy
        (`.undo`), and what the machine's dbm adds. All processes that use it have to run as one user. When you put a
        backup in its place, remove the copy as well.
    Raises Unavailable if the file cannot be used, or was made by something else.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = abspath(fspath(path))  # the process, or one that unpickles it, may work in another directory

    @contextmanager
    def _held(self) -> Iterator[MutableMapping[Sender, States]]:
        try:
            with locked(self.path + ".lock"), _opened(self.path) as senders:
                yield senders
        except StateStoreError:
            raise
        except Exception as error:  # a damaged pickle raises whatever it likes
            raise Unavailable(f"shelf {self.path}: {type(error).__name__}: {error}") from error


@contextmanager
def _opened(path: str) -> Iterator[MutableMapping[Sender, States]]:
    """Open the shelf, to be changed as a whole or not at all. Raises Unavailable, `dbm.error` or OSError."""
    shelf_path = Path(path)
    undo = UndoCopy(Path(path + ".undo"), [shelf_path.with_name(name.format(shelf_path.name)) for name in FILES])
    undo.restore()
    is_new = not any(undo.existing())
    if is_new:
        undo.save()  # of nothing: a shelf that was made in part is no shelf
    elif dbm.whichdb(path) is None:
        raise Unavailable(f"shelf {path}: a part of it is missing. If there is a {path}.bak, rename it to {path}.dir")
    try:
        with shelve.open(path, "c" if is_new else "w") as shelf:  # noqa: S301  # our own file
            if is_new:
                shelf[FORMAT_KEY] = FORMAT
            elif shelf.get(FORMAT_KEY) != FORMAT:
                raise Unavailable(f"shelf {path}: not made by this ShelveStorage; give another path")
            yield _Senders(shelf, undo.save)
    except BaseException:
        undo.restore()
        raise
    undo.discard()


class _Senders(MutableMapping[Sender, States]):
    """A shelf takes only text without surrogates as a key: `ascii` makes a different one of each sender."""

    def __init__(self, shelf: shelve.Shelf[States], save: Callable[[], None]) -> None:
        """Call `save` before a change."""
        self._shelf = shelf
        self._save = save

    def __getitem__(self, sender: Sender) -> States:
        return self._shelf[ascii(sender)]

    def __setitem__(self, sender: Sender, states: States) -> None:
        self._save()
        self._shelf[ascii(sender)] = states

    def __delitem__(self, sender: Sender) -> None:
        self._save()
        del self._shelf[ascii(sender)]

    def __iter__(self) -> Iterator[Sender]:
        return (ast.literal_eval(key) for key in list(self._shelf) if key != FORMAT_KEY)

    def __len__(self) -> int:
        return len(self._shelf) - 1

    def clear(self) -> None:
        for sender in self:
            del self[sender]
