"""`statestored check DIR`: what is in a data directory, whether a daemon starts on it, and what repair could save."""

import shlex
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from statestored.datadir import (
    IDENTITY,
    SEGMENT,
    SET_ASIDE,
    SNAPSHOT,
    DataDirectory,
    is_unfinished,
    number_of,
)
from statestored.engines.states import States
from statestored.errors import DamagedFile, Exit
from statestored.inspection import identify
from statestored.locks import LOCK_FILE
from statestored.salvage import Content, Salvage, first_damage, salvage
from statestored.stdio import printable


class Checked(NamedTuple):
    code: Exit
    report: str


def check(path: Path) -> Checked:
    """Reads all files, and changes nothing. Raises StartError, TooNew or OSError where it cannot."""
    directory = DataDirectory(path)
    with closing(directory):
        directory.open_existing(to_write=False)
        identity = identify(directory)
        stops_at = first_damage(directory)
        found = salvage(directory)
    damage = [*([identity] if identity else []), *_with(stops_at, found.damage)] if identity or stops_at else []
    lines = [str(path), f"store {directory.store_id}", "", *_table(_rows(directory, found)), ""]
    lines += _verdict_damaged(path, damage, found) if damage else _verdict_sound(found)
    return Checked(Exit.DAMAGED if damage else Exit.STOPPED, "\n".join(map(printable, lines)))


def amount(states: States) -> str:
    namespaces = sum(1 for table in states.tables.values() if len(table))
    return f"{_count(len(states), 'entry', 'entries')} in {_count(namespaces, 'namespace')}"


def _with(first: DamagedFile | None, others: list[DamagedFile]) -> list[DamagedFile]:
    """The first one is mostly among the others, in other words."""
    if first is None or any((other.path, other.offset) == (first.path, first.offset) for other in others):
        return others
    return [first, *others]


# What is there


def _rows(directory: DataDirectory, found: Salvage) -> Iterator[tuple[str, str, str]]:
    contents = {content.path: content for content in found.contents}
    numbered = sorted(
        [*directory.snapshots(), *directory.segments()], key=lambda path: (number_of(path), -len(path.name))
    )
    others = sorted({*directory.path.iterdir()} - {*numbered, directory.path / IDENTITY, directory.path / LOCK_FILE})
    yield "file", "bytes", "what is in it"
    for path in (directory.path / IDENTITY, *numbered, *others):
        size = f"{path.stat().st_size:,}" if path.is_file() else ""
        yield path.name, size, _content(contents[path]) if path in contents else _what_is(path)


def _what_is(path: Path) -> str:
    if path.name == IDENTITY:
        return "the store's id" if path.exists() else "missing"
    if is_unfinished(path):
        return "unfinished; the next start removes it"
    if path.name.startswith(SET_ASIDE):
        return "damaged files that a repair has set aside"
    if path.suffix in (SNAPSHOT, SEGMENT):
        return "needed no more; the next snapshot removes it"
    return "not of statestored"


def _content(content: Content) -> str:
    said = [_snapshot(content) if content.path.suffix == SNAPSHOT else _batches(content)]
    if content.tail:
        said.append(f"the last {content.tail:,} bytes are no whole batch")
    if content.damage:
        said.append("damaged")
    return "; ".join(said)


def _snapshot(content: Content) -> str:
    if not content.frames:
        return "nothing that can be read"
    try:
        made = datetime.fromtimestamp(content.time / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        made = "a time that no calendar has"
    blocks = content.frames - (content.footer is not None)
    return f"{_count(content.entries, 'entry', 'entries')} in {_count(blocks, 'block')}, of {made}"


def _batches(content: Content) -> str:
    first, last = content.first, content.last
    if first is None or last is None:
        return "no batches"
    batches = _count(content.frames, "batch", "batches")
    if first == last:
        return f"{batches}: {first.counter:,} of epoch {first.epoch}"
    if first.epoch == last.epoch:
        return f"{batches}: {first.counter:,} to {last.counter:,} of epoch {first.epoch}"
    return f"{batches}: from {first.counter:,} of epoch {first.epoch} to {last.counter:,} of epoch {last.epoch}"


# What to think of it


def _verdict_sound(found: Salvage) -> Iterator[str]:
    yield f"Sound: {amount(found.states)}."
    for content in found.contents:
        if content.tail:
            yield (
                f"The last {content.tail:,} bytes of {content.path.name} were being written when the daemon ended: "
                "the next start leaves them out."
            )


def _verdict_damaged(path: Path, damage: list[DamagedFile], found: Salvage) -> Iterator[str]:
    yield "DAMAGED: no daemon starts on this."
    yield from _table([(f"  {one.path.name}", _place(one), one.what) for one in damage])
    yield ""
    if found.is_empty:
        yield "Nothing in it can be read, so nothing can be repaired: take a backup."
        return
    yield f"Repair would save {amount(found.states)}."
    yield f"It would lose {'; '.join(found.lost()) or 'nothing'}."
    yield "It keeps the damaged files as they are, in a directory beside the new ones:"
    yield f"  statestored repair {shlex.quote(str(path))}"


def _place(damage: DamagedFile) -> str:
    return f"at byte {damage.offset:,}" if damage.path.exists() else ""


def _table(rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> Iterator[str]:
    """Three columns; the second is for figures."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, second, third in rows:
        yield f"{first:{widths[0]}}  {second:>{widths[1]}}  {third}".rstrip()


def _count(number: int, of_one: str, of_many: str = "") -> str:
    return f"{number:,} {of_one if number == 1 else of_many or of_one + 's'}"
