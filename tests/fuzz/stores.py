"""What a target does with the files of a store: start on them, check, repair; and what must hold then."""

from __future__ import annotations

import asyncio
import functools
import shutil
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Self

import uvloop
from structlog.testing import capture_logs

from statestored.check import Checked, check
from statestored.datadir import DataDirectory
from statestored.engines.base import START, Entry
from statestored.engines.recovery import recover
from statestored.engines.states import States
from statestored.engines.table import cells_of, position_of
from statestored.errors import DamagedFile, Exit, StartError, TooNew
from statestored.repair import repair
from tests.fuzz.choices import Choices
from tests.fuzz.place import place
from tests.server.damaged import bytes_of
from tests.server.models import Model, content, entries_in

# What the files of a store may make a start, a check, and a repair raise. Nothing else.
DOCUMENTED = (DamagedFile, TooNew, StartError)

Files = Mapping[str, bytes]
States_ = dict[bytes, Model]


@dataclass(frozen=True)
class Base:
    """A store to damage. states: what a start may find, where it finds anything."""

    files: Files
    states: Collection[States_]

    @functools.cached_property
    def entries(self) -> set[tuple[bytes, Entry]]:
        """All that there ever were, with their namespaces."""
        return {one for states in self.states for one in _entries(states)}


class Started(NamedTuple):
    """What a start found, or what it raised."""

    states: States_ | None
    refusal: Exception | None


@functools.cache
def directory() -> Path:
    return place() / "data"


@functools.cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def write(files: Files) -> Path:
    """A data directory with these in it, and nothing else."""
    path = directory()
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def start(path: Path) -> Started:
    """As a daemon does, up to where it would listen."""
    opened = DataDirectory(path)
    with closing(opened), capture_logs():
        try:
            opened.open()
            if opened.is_new:
                return Started({}, None)
            states = States()
            _runner().run(recover(opened, states))
        except DOCUMENTED as error:
            return Started(None, error)
    look_at(states)
    return Started(content(states), None)


def look_at(states: States) -> None:
    """Whether a table is as it says, and holds what a client could have stored, or a client would notice."""
    for namespace, table in states.tables.items():
        assert type(namespace) is bytes
        entries = entries_in(table)
        assert len(entries) == len(table)
        for module, sender, state, day in entries:
            assert type(module) is bytes
            assert sender is None or type(sender) is bytes
            assert type(state) is bytes
            assert state != START
            assert type(day) is int
            assert day >= 0
        # Whether a sender of a snapshot stands in the right bucket is not looked at: it would take too long.
        for covered in table.walk():
            for sender, held in covered.bucket.items():
                if covered.start <= position_of(sender) < covered.end:
                    assert all(table.get(cell.module, sender) == cell.state for cell in cells_of(held))
        assert sum(entries for _, _, entries in table.counts()) + table.uncounted(None) >= len(table)


def offline(path: Path, started: Started) -> Checked | None:
    """`statestored check`: it agrees with the start, and nothing is changed."""
    before = bytes_of(path)
    try:
        with capture_logs():
            checked = check(path)
    except (TooNew, StartError):
        if started.states not in (None, {}):
            raise  # but a daemon starts
        return None
    assert bytes_of(path) == before
    assert checked.code in (Exit.STOPPED, Exit.DAMAGED)
    assert (checked.code == Exit.STOPPED) == (started.refusal is None), (checked.report, started.refusal)
    return checked


def mended(path: Path) -> States_ | None:
    """`statestored repair`: what a start finds after it; None where there was nothing to save, or it was refused."""
    try:
        with capture_logs():
            repaired = repair(path)
    except (TooNew, StartError):
        return None
    if repaired.code != Exit.STOPPED:
        return None
    started = start(path)
    assert started.refusal is None, f"repaired, and yet: {started.refusal}"
    offline(path, started)
    return started.states


class Thorough(IntEnum):
    """What is done with the files of an input; each includes those before it."""

    START = 0
    CHECK = 1
    REPAIR = 2

    @classmethod
    def of(cls, choices: Choices) -> Self:
        """Mostly what takes least."""
        return cls(max(0, choices.below(8) - 5))


def look_at_files(files: Files, thorough: Thorough) -> tuple[Started, States_ | None]:
    """What a start finds, and what it finds after a repair."""
    path = write(files)
    started = start(path)
    if thorough >= Thorough.CHECK:
        offline(path, started)
    return started, mended(path) if thorough >= Thorough.REPAIR else None


def judge(base: Base, files: Files, thorough: Thorough) -> None:
    """What was changed in the base's files is noticed, or takes the last batches away and nothing else."""
    started, found = look_at_files(files, thorough)
    if started.states is not None:
        assert started.states in base.states, "a wrong value is served"
    if found is not None:
        assert _entries(found) <= base.entries, "repair made something up"


def _entries(states: States_) -> set[tuple[bytes, Entry]]:
    return {
        (namespace, Entry(module, sender, state, day))
        for namespace, model in states.items()
        for (module, sender), (state, day) in model.items()
    }
