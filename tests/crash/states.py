"""Crash states: all that a disk may hold where those are few, or a sample."""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import product
from math import prod
from random import Random

from tests.crash.disk import Disk, Entries, Shape
from tests.crash.trace import Image, is_temporary

FEW = 150  # states, of one moment
CORNERS = 8  # directories


def digest(image: Image) -> bytes:
    """Equal for states that no start can tell from each other."""
    hashed = blake2b(digest_size=16)
    for name in sorted(image):
        content = b"" if is_temporary(name) else image[name]
        hashed.update(b"%s %d " % (name.encode(), len(content)) + content)
    return hashed.digest()


class States:
    """What a disk may hold now. What is in temporary files, which a start removes, is no matter here."""

    def __init__(self, disk: Disk, rng: Random) -> None:
        self._disk = disk
        self._rng = rng
        self._directories = disk.directories(rng)
        self._count = sum(prod(self._ways(file) for file in _files(entries)) for entries in self._directories)

    @property
    def are_few(self) -> bool:
        """Whether `all` is affordable."""
        return self._count <= FEW

    def all(self) -> Iterator[Image]:
        for entries in self._directories:
            files = _files(entries)
            every = [
                [content for shape in self._disk.files[file].shapes() for content in shape.all()] for file in files
            ]
            for contents in product(*every):
                yield self._image(entries, dict(zip(files, contents, strict=True)))

    def corners(self) -> Iterator[Image]:
        """Of each directory, or of some, with nothing or everything of the data."""
        some = self._directories
        if len(some) > CORNERS:
            some = [some[0], *self._rng.sample(some[1:-1], CORNERS - 2), some[-1]]
        for entries in some:
            yield self._picked(entries, lambda shapes: shapes[0].oldest())
            yield self._picked(entries, lambda shapes: shapes[-1].oldest())
            yield self._picked(entries, lambda shapes: shapes[-1].newest())

    def some(self, number: int) -> Iterator[Image]:
        """Random ones."""
        return (self.random() for _ in range(number))

    def random(self) -> Image:
        entries = self._rng.choice(self._directories)
        return self._picked(entries, lambda shapes: self._rng.choice(shapes).random(self._rng))

    def _picked(self, entries: Entries, pick: Callable[[list[Shape]], bytes]) -> Image:
        return self._image(entries, {file: pick(self._disk.files[file].shapes()) for file in _files(entries)})

    def _ways(self, file: int) -> int:
        return sum(shape.ways() for shape in self._disk.files[file].shapes())

    def _image(self, entries: Entries, contents: dict[int, bytes]) -> Image:
        return {name: contents.get(file, b"") for name, file in entries.items()}


def _files(entries: Entries) -> list[int]:
    """Those that a start reads."""
    return sorted({file for name, file in entries.items() if not is_temporary(name)})
