"""Defects that are put into the product, to see whether the simulation finds them.

They are those of `tests.crash.faults` and `tests.consistency.faults`, and those that the simulation itself has found in
the product. Here they are put in for one run at a time and taken out completely, because one process runs thousands of
seeds, most of them without a defect.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isfunction
from types import ModuleType
from typing import Any, cast

import pytest

from statestore import RemoteStorage
from statestore.store import Store
from statestored import app, files
from statestored.datadir import DataDirectory
from statestored.engines import embedded
from tests.consistency import faults as of_consistency
from tests.crash import faults as of_crashes

Fault = Callable[[pytest.MonkeyPatch], None]

# These are in the same module, and only make something happen sooner.
_NO_DEFECTS = {"sessions_end_soon", "one_session_at_a_time"}


def _functions_of(module: ModuleType) -> dict[str, Fault]:
    return {
        name: function
        for name, function in vars(module).items()
        if isfunction(function) and function.__module__ == module.__name__ and name not in _NO_DEFECTS
    }


def parents_made_before_not_synced(patch: pytest.MonkeyPatch) -> None:
    """A start syncs only those names of directories that it has made itself, not those that a killed start has made."""

    def make(directory: DataDirectory) -> None:
        made = [path for path in (directory.path, *directory.path.parents) if not path.exists()]
        directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in made:
            files.sync_directory(path.parent)

    patch.setattr(DataDirectory, "_make", make)


def start_waits_in_the_loop(patch: pytest.MonkeyPatch) -> None:
    """A start waits for the disk in the event loop's thread, where no signal to stop is heard."""

    async def in_loop(function: Callable[..., Any], *arguments: object) -> Any:
        return function(*arguments)

    for module in (app, embedded):
        patch.setattr(module, "in_thread", in_loop)


def answers_to_reads_not_noted(patch: pytest.MonkeyPatch) -> None:
    """The answer to a read does not end an outage that another thread has found meanwhile."""
    read, answered = RemoteStorage._read, Store.answered
    reading: list[Store] = []

    def read_unnoted(storage: RemoteStorage, method: str, *params: Any) -> Any:
        reading.append(storage._store)
        try:
            return read(storage, method, *params)
        finally:
            reading.remove(storage._store)

    def answered_unless_reading(store: Store, *, writing: bool) -> None:
        if writing or store not in reading:
            answered(store, writing=writing)

    patch.setattr(RemoteStorage, "_read", read_unnoted)
    patch.setattr(Store, "answered", answered_unless_reading)


def reloads_during_a_start_lost(patch: pytest.MonkeyPatch) -> None:
    """A SIGHUP that comes when the tokens have been read, and the daemon has not started yet, has no effect."""
    serve = app.serve

    async def serve_without(settings: Any, access: Any, tls: Any, limit: Any, _early_reloads: object) -> None:
        await serve(settings, access, tls, limit)

    patch.setattr(app, "serve", serve_without)


FOUND_IN_THE_PRODUCT: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        parents_made_before_not_synced,
        start_waits_in_the_loop,
        answers_to_reads_not_noted,
        reloads_during_a_start_lost,
    )
}
FAULTS: dict[str, Fault] = _functions_of(of_crashes) | _functions_of(of_consistency) | FOUND_IN_THE_PRODUCT

# What a run must show for a defect to count as found, as NOTICED_BY says it in `tests.test_mutations`: anything else is
# a mistake in the defect or in the simulation.
_WRONG_ORDER = "is not linearizable"
_DAMAGED = "the daemon does not start: .* (is damaged|is missing)"
_LOST = f"{_WRONG_ORDER}|{_DAMAGED}"
_UNKNOWN = "it came after .* s, and the session was not lost"
_HANGS = "the store cannot be read: "

MUST_SHOW: dict[str, str] = {
    "acknowledged_before_synced": _LOST,
    "answer_in_the_next_batch": _WRONG_ORDER,
    "answer_not_written": _WRONG_ORDER,
    "answers_to_reads_not_noted": "it came after .* s, and the deadline was",
    "batch_applied_twice": _WRONG_ORDER,
    "copies_synced_too_late": _LOST,
    "directory_never_synced": _LOST,
    "done_not_in_snapshots": _WRONG_ORDER,
    "done_not_replayed": _WRONG_ORDER,
    "done_told_before_durable": _WRONG_ORDER,
    "failed_sync_ignored": _LOST,
    "full_segment_not_synced": _DAMAGED,
    "get_not_held": _WRONG_ORDER,
    "heads_swapped": _WRONG_ORDER,
    "lost_session_ignored": _WRONG_ORDER,
    "mark_too_high": _LOST,
    "names_found_not_synced": _LOST,
    "new_number_for_each_attempt": _WRONG_ORDER,
    "not_after_ignored": _WRONG_ORDER,
    "nothing_remembered": _WRONG_ORDER,
    "nothing_taken_back": f"{_LOST}|{_HANGS}",
    "oldest_not_remembered": _WRONG_ORDER,
    "oldest_passes_the_unanswered": f"to everything before number .*{_UNKNOWN}",
    "parents_made_before_not_synced": _LOST,
    "payload_not_checked": _DAMAGED,
    "reloads_during_a_start_lost": "Unauthorized",
    "segment_never_synced": _LOST,
    "segments_removed_before_snapshot": _LOST,
    "sessions_not_in_snapshot": f"is lost.*{_UNKNOWN}",
    "snapshot_before_journal": _LOST,
    "snapshot_renamed_before_synced": _LOST,
    "start_waits_in_the_loop": "does not stop within",
    "tail_not_copied": _LOST,
    "tail_not_synced_where_it_cannot_be_copied": _LOST,
    "writes_without_a_number_repeated": _WRONG_ORDER,
}

# Why the simulation cannot find a defect. `tests.test_mutations` and `tests.test_faults` name the test that notices it.
NOT_FOUND: dict[str, str] = {
    "boot_not_compared": "it takes damage without a loss of power, which the model of the disk does not have",
    "snapshot_not_verified": "it takes damage without a loss of power, which the model of the disk does not have",
    "directory_not_locked": "it takes two daemons on one directory, and a plan has one at a time",
    "fingerprints_ignored": "it takes two clients in one session, such as copies of a process",
    "dead_connections_written_to": "it costs an attempt only: the write is repeated, or its outcome is unknown",
    "sessions_not_waited_for": "a write without a number is not repeated: its outcome is unknown, or it is done once",
    # None of 2,000 seeds has shown these:
    "mark_of_what_came_during_the_sync": "it takes writes during a sync, and a power loss before the next one",
    "reply_taken_by_whoever_is_next": "it takes a call that is interrupted by a signal's exception, which no plan has",
    "sessions_not_taken_back": "it takes a disk that is full for the batch that opens a session, and not for long",
    "writes_without_effect_not_remembered": "it takes a late copy of it before the next write of its session",
}


def shown(name: str, failures: Iterable[str]) -> str | None:
    """Return the first failure that is of the kind that the defect must show, or None."""
    return next((failure for failure in failures if re.search(MUST_SHOW.get(name, "."), failure)), None)


class NeverReached(Exception):
    """No run has called anything that the defect replaces: the plans, or the patches of the simulation, avoid it."""


class Seeded:
    """A defect that is in the product. was_reached: something that it replaces was called."""

    def __init__(self) -> None:
        self.was_reached = False


@contextmanager
def seeded(name: str) -> Iterator[Seeded]:
    """Put a defect into the product for one run: some keep what they have seen.

    It goes on top of the patches of the simulation. Raises KeyError if there is no such defect, and AttributeError if
    the product has no such name any more as the defect replaces.
    """
    defect = Seeded()
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[name](cast(pytest.MonkeyPatch, _NotingPatch(patch, defect)))
        yield defect


def first_to_find(name: str, seeds: Iterable[int], fails: Callable[[int], bool]) -> int | None:
    """Return the first of the seeds whose run fails with the defect, or None.

    Raises NeverReached if no run fails, and none could: then it says nothing that the defect was not found.
    """
    was_reached = False
    for seed in seeds:
        with seeded(name) as defect:
            if fails(seed):
                return seed
        was_reached = was_reached or defect.was_reached
    if not was_reached:
        raise NeverReached(name)
    return None


class _NotingPatch:
    """Patches as a MonkeyPatch does, and has each function that it puts in note that it was called."""

    def __init__(self, patch: pytest.MonkeyPatch, defect: Seeded) -> None:
        self._patch = patch
        self._defect = defect

    def setattr(self, target: object, name: str, value: object) -> None:
        noting = property(self._noting(value.fget), value.fset) if isinstance(value, property) else self._noting(value)
        self._patch.setattr(target, name, noting)

    def _noting(self, function: object) -> Callable[..., Any]:
        if not isfunction(function):
            raise TypeError(f"a defect has to replace functions, to have it noted when it is reached: {function!r}")

        @wraps(function)
        def noting(*arguments: Any, **named: Any) -> Any:
            self._defect.was_reached = True
            return function(*arguments, **named)

        return noting
