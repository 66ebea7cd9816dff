"""Files that are changed as a whole or not at all."""

import os
from pathlib import Path

import pytest

from statestore.undo import UndoCopy

NAMES = ("file", "file.a", "file.b")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("old")
    path.with_name("file.a").write_text("old a")
    return path


def undo(path: Path) -> UndoCopy:
    return UndoCopy(path.with_name("file.undo"), [path.with_name(name) for name in NAMES])


def change(path: Path) -> None:
    path.write_text("new")
    path.with_name("file.a").unlink()
    path.with_name("file.b").write_text("new b")


def contents(path: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in path.parent.iterdir() if each.is_file()}


def test_what_was_saved_is_put_back(path: Path) -> None:
    before = contents(path)
    undo(path).save()
    change(path)
    undo(path).restore()
    assert contents(path) == before
    assert not undo(path).is_saved
    assert [each.name for each in path.parent.iterdir() if each.is_dir()] == []


def test_without_a_copy_nothing_is_put_back(path: Path) -> None:
    change(path)
    after = contents(path)
    undo(path).restore()
    assert contents(path) == after


def test_the_first_copy_is_the_one_that_counts(path: Path) -> None:
    before = contents(path)
    undo(path).save()
    change(path)
    undo(path).save()
    undo(path).restore()
    assert contents(path) == before


def test_a_copy_that_was_dropped_is_not_put_back(path: Path) -> None:
    undo(path).save()
    change(path)
    after = contents(path)
    undo(path).discard()
    undo(path).restore()
    assert contents(path) == after


def test_a_copy_that_was_not_completed_or_not_removed_is_none(path: Path) -> None:
    unnamed = path.with_name("file.undo.tmp")
    unnamed.mkdir()
    (unnamed / "file").write_text("half")
    undo(path).restore()
    assert contents(path)["file"] == "old"
    undo(path).save()
    change(path)
    undo(path).restore()
    assert contents(path)["file"] == "old"
    assert not unnamed.exists()


def test_putting_back_may_be_interrupted_and_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(path)
    undo(path).save()
    change(path)
    with monkeypatch.context() as patched:
        patched.setattr(UndoCopy, "discard", lambda _: None)  # killed just before
        undo(path).restore()
    assert contents(path) == before
    undo(path).restore()
    assert contents(path) == before


def test_the_mode_of_a_file_comes_back_with_it(path: Path) -> None:
    path.chmod(0o640)
    undo(path).save()
    path.unlink()
    undo(path).restore()
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("lost", ["file", "file.a", "list.json"])
def test_a_copy_that_is_not_whole_changes_nothing(path: Path, lost: str) -> None:
    undo(path).save()
    change(path)
    after = contents(path)
    (path.parent / "file.undo" / lost).unlink()
    with pytest.raises(FileNotFoundError, match=f"should have {lost}"):
        undo(path).restore()
    assert contents(path) == after


def test_a_copy_is_as_old_as_its_making(path: Path) -> None:
    """For programs that remove old files."""
    os.utime(path, (1, 1))
    undo(path).save()
    assert (path.parent / "file.undo" / "file").stat().st_mtime > 1_000_000
