"""A copy of a few files, from before the first change to them until the last: so a kill in between changes nothing."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

LIST = "list.json"  # in a copy: the names of the files that are in it; the others did not exist


class UndoCopy:
    """Files that are changed as a whole or not at all. To be used under a lock.

    1. `restore` puts back what a process that was killed has changed.
    2. `save` makes the copy, before the first change.
    3. `discard` drops it when all changes have been written; or `restore`, to take them back.

    A copy counts once it has its name, and until it loses it: both are one rename. All methods raise OSError.
    """

    def __init__(self, copy: Path, files: Sequence[Path]) -> None:
        """The directory `copy` is made for the copies of `files`, of which some or all may not exist."""
        self._files = files
        self._copy = copy
        self._unnamed = copy.with_name(copy.name + ".tmp")

    @property
    def is_saved(self) -> bool:
        return self._copy.is_dir()

    def existing(self) -> Iterator[Path]:
        """Yield the files that are there."""
        return (file for file in self._files if file.is_file())

    def save(self) -> None:
        """Copy all files, unless there is a copy already."""
        if self.is_saved:
            return
        self._remove_unnamed()
        self._unnamed.mkdir(mode=0o700)
        names = [file.name for file in self.existing()]
        for file in self._files:
            if file.name in names:
                _copy(file, self._unnamed / file.name)
        (self._unnamed / LIST).write_text(json.dumps(names))
        self._unnamed.rename(self._copy)

    def restore(self) -> None:
        """Make the files what they were when they were saved, if they were. May be interrupted and repeated.

        Raises OSError, and changes nothing, if another program has removed a part of the copy.
        """
        if not self.is_saved:
            return
        names = self._saved_names()
        for file in self._files:
            if file.name in names:
                incoming = self._copy / f"{file.name}.incoming"
                _copy(self._copy / file.name, incoming)
                os.replace(incoming, file)
            else:
                file.unlink(missing_ok=True)
        self.discard()

    def discard(self) -> None:
        """Drop the copy, if there is one."""
        if self.is_saved:
            self._remove_unnamed()
            self._copy.rename(self._unnamed)
            self._remove_unnamed()

    def _saved_names(self) -> set[str]:
        found = {path.name for path in self._copy.iterdir()}
        names = set(json.loads((self._copy / LIST).read_text())) if LIST in found else {LIST}
        if missing := names - found:
            what = (
                f"{self._copy} should have {min(missing)}; if you remove that directory, the files are used as they are"
            )
            raise FileNotFoundError(errno.ENOENT, what)
        return names

    def _remove_unnamed(self) -> None:
        if self._unnamed.exists():
            shutil.rmtree(self._unnamed)


def _copy(source: Path, target: Path) -> None:
    """Copy the contents and the mode, and not the times: programs that remove old files are to find it new."""
    shutil.copyfile(source, target)
    shutil.copymode(source, target)
