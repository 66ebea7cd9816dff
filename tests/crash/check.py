"""Starts from crash states, and whether they find what has to be there."""

import asyncio
import tempfile
from pathlib import Path

import uvloop

from statestored.datadir import DataDirectory
from statestored.engines.recovery import recover
from statestored.engines.states import States
from tests.crash.history import Content
from tests.crash.trace import Image
from tests.crash.workload import booted


def fast_directory(otherwise: Path) -> Path:
    """Where files are in memory, if there is such a place."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="crash-states-", dir=memory)) if memory.is_dir() else otherwise


class Starts:
    """Many, in the same directory. A context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._there: Image = {}  # what the directory holds
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    def close(self) -> None:
        self._runner.close()

    def content(self, image: Image, boot: bytes) -> Content:
        """What a start finds. Raises whatever it does."""
        self._put(image)
        with booted(boot):
            return self._runner.run(self._recovered())

    async def _recovered(self) -> Content:
        directory, states = DataDirectory(self._directory), States()
        try:
            directory.open()
            await recover(directory, states)
        finally:
            directory.close()
        return Content.of(states)

    def _put(self, image: Image) -> None:
        """Only what is different is written."""
        for name in self._there.keys() - image.keys():
            (self._directory / name).unlink(missing_ok=True)
        for name, data in image.items():
            path = self._directory / name
            if self._there.get(name) != data or not path.exists():  # starts remove some
                path.write_bytes(data)
        self._there = image
