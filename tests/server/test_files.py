"""What we write is there as a whole, or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestored import files
from statestored.errors import DamagedFile, TooNew


class SlowFile:
    """Takes at most so many bytes at a time."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = sizes
        self.written = b""

    def write(self, data: bytes) -> int:
        size = self._sizes.pop() if self._sizes else len(data)
        self.written += bytes(data[:size])
        return min(size, len(data))


def fail(*_: object) -> None:
    raise OSError(5, "the disk is on fire")


@pytest.fixture
def note(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Any]], None]:
    """Call `noting` with the arguments of each call of a function in `files`, before it is done."""

    def note(name: str, noting: Callable[..., Any]) -> None:
        function = getattr(files, name)

        def noted(*args: Any) -> Any:
            noting(*args)
            return function(*args)

        monkeypatch.setattr(files, name, noted)

    return note


@pytest.mark.usefixtures("open_umask")
def test_a_new_file_is_for_its_owner_only(tmp_path: Path) -> None:
    files.create(tmp_path / "new").close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_a_new_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"old")
    files.create(tmp_path / "new").close()
    assert (tmp_path / "new").read_bytes() == b""


@given(data=st.binary(max_size=50), sizes=st.lists(st.integers(1, 9)))
def test_all_is_written_however_little_at_a_time(data: bytes, sizes: list[int]) -> None:
    file = SlowFile(sizes)
    files.write_all(cast(BinaryIO, file), data)
    assert file.written == data


def test_a_durable_file_is_synced_renamed_and_its_directory_synced(tmp_path: Path, note) -> None:
    path, steps = tmp_path / "file", []
    temporary = files.temporary_name(path)
    path.write_bytes(b"old")
    note("sync_file", lambda _: steps.append((temporary.read_bytes(), path.read_bytes())))
    note("sync_directory", lambda directory: steps.append((directory, temporary.exists(), path.read_bytes())))
    files.write_durably(path, b"new")
    assert steps == [(b"new", b"old"), (tmp_path, False, b"new")]


@pytest.mark.parametrize("step", ["write_all", "sync_file", "put_in_place"])
def test_a_file_stays_what_it_was_where_a_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(files, step, fail)
    with pytest.raises(OSError, match="on fire"):
        files.write_durably(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_temporary_file_stands_beside_the_file(tmp_path: Path) -> None:
    assert files.temporary_name(tmp_path / "store.json") == tmp_path / "store.json.tmp"


def test_a_directory_that_is_not_there_cannot_be_synced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.sync_directory(tmp_path / "none")


def test_errors_name_the_file_and_what_is_wrong() -> None:
    assert str(DamagedFile(Path("/d/1.snapshot"), "too short", 42)) == "/d/1.snapshot is damaged at byte 42: too short"
    too_new = str(TooNew(Path("/d/1.snapshot"), 3, 2))
    assert "/d/1.snapshot has format 3" in too_new
    assert "up to 2" in too_new
