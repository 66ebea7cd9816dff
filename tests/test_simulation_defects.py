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
from tests.simulation import regressions, survey, worker
from tests.simulation.faults import (
    FAULTS,
    FOUND_IN_THE_PRODUCT,
    MUST_SHOW,
    NOT_FOUND,
    NeverReached,
    first_to_find,
    seeded,
    shown,
)
from tests.simulation.plan import Plan, plan_of
from tests.simulation.regressions import Regression, RegressionsError
from tests.simulation.run import Outcome


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
    """Another test notices each of them in the product as it is now, except those that the simulation itself found."""
    noticed = [fault.__name__ for fault in (*test_mutations.NOTICED_BY, *test_faults.NOTICED_BY)]
    assert sorted([*noticed, *FOUND_IN_THE_PRODUCT]) == sorted(FAULTS)


def test_each_defect_has_what_it_must_show_or_why_it_cannot_be_found() -> None:
    assert sorted([*MUST_SHOW, *NOT_FOUND]) == sorted(FAULTS)


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


# Whether it is found


WRONG_ORDER = "at 1.5: the history of s0 is not linearizable"
LEAK = "at 1.5: client1 keeps 0 calls and 2 sockets"


def test_a_failure_of_another_kind_does_not_count() -> None:
    assert shown("heads_swapped", [LEAK]) is None
    assert shown("heads_swapped", [LEAK, WRONG_ORDER]) == WRONG_ORDER


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What a run of the plan of each seed shows, in the place of runs. Each of them reaches `nothing_taken_back`."""
    failures: dict[str, list[str]] = {}

    def run(plan: Plan) -> Outcome:
        States().revert()
        return Outcome(plan, failures.get(plan.seed, []), 0, 1.0, {})

    monkeypatch.setattr(worker, "run", run)
    monkeypatch.setattr(worker, "set_up", lambda: None)
    return failures


def test_the_table_has_the_first_seed_that_shows_the_right_failure(failures: dict[str, list[str]]) -> None:
    failures |= {"2": [LEAK], "3": [LEAK, WRONG_ORDER], "4": [WRONG_ORDER]}
    assert str(survey.look("nothing_taken_back", range(1, 5))).split(maxsplit=2)[1:] == ["3", WRONG_ORDER]


def test_the_table_says_what_a_defect_that_was_not_found_has_shown(failures: dict[str, list[str]]) -> None:
    failures["2"] = [LEAK]
    row = str(survey.look("nothing_taken_back", range(1, 5)))
    assert row.endswith(f"not found in 4 seeds, but seed 2 shows something else: {LEAK}")
    assert str(survey.look("get_not_held", range(1, 3))).endswith("never reached in 2 seeds")


# Regressions


def test_a_regression_passes_without_its_defect_and_fails_with_it(failures: dict[str, list[str]]) -> None:
    regression = Regression("get_not_held", plan_of(1))
    (problem,) = regression.problems()
    assert problem.startswith("with the defect nothing shows 'is not linearizable'")
    failures["1/100"] = [WRONG_ORDER]
    assert regression.problems() == [f"without the defect: {WRONG_ORDER}"]
    failures["1"] = [WRONG_ORDER]
    assert regression.problems() == [f"without the defect: {WRONG_ORDER}"]


def test_the_file_of_regressions_has_a_plan_for_each_defect() -> None:
    assert [regression.defect for regression in regressions.read()] == list(regressions.DEFECTS)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, ": No such file or directory"),
        (b"\xff", ": it is not UTF-8: "),
        (b"# why\n\nno_defect {}", ", line 3: 'no_defect' is not a defect that the simulation finds"),
        (b"directory_not_locked {}", ", line 1: 'directory_not_locked' is not a defect that the simulation finds"),
        (b"get_not_held", ", line 1: the plan is not JSON: "),
        (b'\nget_not_held {"version": 0}', ", line 2: the plan is of version 0, "),
    ],
)
def test_an_error_in_the_file_of_regressions_names_its_line(tmp_path: Path, content: bytes | None, error: str) -> None:
    file = tmp_path / "regressions.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RegressionsError) as raised:
        list(regressions.read(file))
    assert str(raised.value).startswith(f"{file}{error}")
