"""A fuzzer's bytes, taken as choices."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Each choice takes some of the bytes. When there are no more, each is the first of what there is to choose."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is something left."""
        return self._at < len(self._data)

    def below(self, number: int) -> int:
        size = (max(number - 1, 1).bit_length() + 7) // 8
        return int.from_bytes(self.take(size), "little") % number

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def once_in(self, number: int) -> bool:
        return self.below(number) == number - 1

    def take(self, size: int) -> bytes:
        """So many bytes, or what is left."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def some(self) -> bytes:
        """A few bytes."""
        return self.take(self.below(12))

    def random(self) -> Random:
        """For what takes many choices of no interest."""
        return Random(self.take(2))

    def rest(self) -> bytes:
        return self.take(len(self._data))
