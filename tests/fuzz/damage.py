"""Targets: the files of a store, of which some bytes have changed."""

from collections.abc import Callable

from statestored.datadir import SEGMENT, SNAPSHOT
from tests.fuzz.bases import bases
from tests.fuzz.choices import Choices
from tests.fuzz.stores import Files, Thorough, judge


def journal_bytes(data: bytes) -> None:
    """Segments and the identity."""
    _damage(Choices(data), lambda name: not name.endswith(SNAPSHOT))


def snapshot_bytes(data: bytes) -> None:
    """The snapshot alone."""
    _damage(Choices(data), lambda name: name.endswith(SNAPSHOT))


def _damage(choices: Choices, is_meant: Callable[[str], bool]) -> None:
    base = choices.one_of([base for base in bases() if any(map(is_meant, base.files))])
    thorough = Thorough.of(choices)
    files = dict(base.files)
    names = sorted(filter(is_meant, files))
    while choices:
        name = choices.one_of(names)
        files[name] = _changed(choices, files[name], files)
    judge(base, files, thorough)


def _changed(choices: Choices, data: bytes, files: Files) -> bytes:
    at = choices.below(len(data) + 1)
    size = choices.one_of((1, 2, 4, 8, 16, 48, 64, 512, 4096))
    match choices.below(10):
        case 0:  # a bit, where the choices end too
            flipped = bytearray(data or b"\0")
            flipped[at % len(flipped)] ^= 1 << choices.below(8)
            return bytes(flipped)
        case 1:
            return data[:at] + choices.take(size) + data[at + size :]
        case 2:
            return data[:at] + choices.some() + data[at:]
        case 3:
            return data[:at] + data[at + size :]
        case 4:
            return data[:at]
        case 5:
            return data + choices.one_of((bytes(size), bytes(8192), data[at : at + size]))
        case 6:
            return data[:at] + bytes(size) + data[at + size :]
        case 7:  # a block of another file, or of another place in this one
            other = files[choices.one_of(sorted(files))]
            start = choices.below(len(other) + 1)
            return data[:at] + other[start : start + size] + data[at + size :]
        case 8:
            return files[choices.one_of([name for name in sorted(files) if name.endswith((SEGMENT, SNAPSHOT))])]
        case _:
            return data[:at] + data[at : at + size][::-1] + data[at + size :]
