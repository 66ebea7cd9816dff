"""Defects are put into the product for one run, and nothing of them stays."""

import asyncio
import sys
from collections.abc import Iterator
from inspect import isclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from statestored import files, segment
from statestored.datadir import DataDirectory
from statestored.engines import recovery
from statestored.engines.states import States
from tests import test_faults, test_mutations
from tests.simulation.faults import FAULTS, NeverReached, first_to_find, seeded


def product() -> dict[tuple[str, ...], Any]:
    """Return everything that a patch may replace: what modules, and classes in them, hold by which name."""
    found: dict[tuple[str, ...], Any] = {}
    for module in _modules():
        for name, value in vars(module).items():
            found[module.__name__, name] = value
            if isclass(value) and value.__module__ == module.__name__:
                found |= {(module.__name__, name, attribute): held for attribute, held in vars(value).items()}
    return found


def _modules() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("statestore", "statestored", "fcntl"):
            yield module


def differences(before: dict[tuple[str, ...], Any], after: dict[tuple[str, ...], Any]) -> set[tuple[str, ...]]:
    return {name for name in before.keys() | after.keys() if before.get(name) is not after.get(name)}


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_of_a_defect_stays(name: str) -> None:
    before = product()
    with seeded(name) as defect:
        assert differences(before, product())
    assert not differences(before, product())
    assert not defect.was_reached


def test_all_defects_are_there() -> None:
    """Those that a test of their own notices in the product as it is now, each under a name of its own."""
    noticed = [fault.__name__ for fault in (*test_mutations.NOTICED_BY, *test_faults.NOTICED_BY)]
    assert sorted(noticed) == sorted(FAULTS)


def test_a_defect_is_in_the_product_and_noted_when_it_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "sync_file", lambda _: pytest.fail("it was synced"))
    with seeded("segment_never_synced") as defect:
        writer = segment.SegmentWriter.__new__(segment.SegmentWriter)
        writer.end = 5
        writer.sync()
        assert defect.was_reached
        assert writer.durable == 5


def test_the_sync_that_is_left_out_is_that_of_the_names_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads run while the segment is written: they must find the functions as they are."""
    synced: list[Path | int] = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    sync, put_in_place = files.sync_directory, files.put_in_place
    during: list[object] = []

    def noting(temporary: Path, path: Path) -> None:
        during.append(files.sync_directory)
        put_in_place(temporary, path)

    monkeypatch.setattr(files, "put_in_place", noting)
    directory = DataDirectory(tmp_path)
    directory.open()
    synced.clear()
    journal = asyncio.run(recovery.recover(directory, States()))
    with seeded("names_found_not_synced") as defect:
        journal.begin()
        journal.begin()
    assert defect.was_reached
    assert during == [sync]
    assert [type(what) for what in synced] == [int]  # that of the new segment's name
    journal.close(1)
    directory.close()


def test_the_first_seed_that_fails_is_found() -> None:
    ran: list[int] = []

    def fails(seed: int) -> bool:
        ran.append(seed)
        return seed == 3

    assert first_to_find("nothing_taken_back", range(1, 9), fails) == 3
    assert ran == [1, 2, 3]


def test_a_defect_that_is_reached_may_stay_unnoticed() -> None:
    def fails(_seed: int) -> bool:
        States().revert()
        return False

    assert first_to_find("nothing_taken_back", range(3), fails) is None


def test_a_defect_that_no_run_reaches_is_an_error() -> None:
    with pytest.raises(NeverReached, match="nothing_taken_back"):
        first_to_find("nothing_taken_back", range(3), lambda _: False)


def test_a_defect_in_what_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(States, "revert")
    with pytest.raises(AttributeError, match="revert"), seeded("nothing_taken_back"):
        pass


def test_a_defect_that_could_not_be_noted_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "constant", lambda patch: patch.setattr(recovery, "SLICE", 1.0))
    with pytest.raises(TypeError, match="has to replace functions"), seeded("constant"):
        pass
