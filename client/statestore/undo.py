"""A copy of a few files, from before the first change to them until the last: so a kill in between changes nothing."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path


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
        for file in self.existing():
            shutil.copy2(file, self._unnamed / file.name)
        self._unnamed.rename(self._copy)

    def restore(self) -> None:
        """Make the files what they were when they were saved, if they were. May be interrupted and repeated."""
        if not self.is_saved:
            return
        for file in self._files:
            saved = self._copy / file.name
            if saved.exists():
                shutil.copy2(saved, saved.with_suffix(".put"))
                os.replace(saved.with_suffix(".put"), file)
            else:
                file.unlink(missing_ok=True)
        self.discard()

    def discard(self) -> None:
        """Drop the copy, if there is one."""
        if self.is_saved:
            self._remove_unnamed()
            self._copy.rename(self._unnamed)
            self._remove_unnamed()

    def _remove_unnamed(self) -> None:
        if self._unnamed.exists():
            shutil.rmtree(self._unnamed)
