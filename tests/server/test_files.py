"""What we write is there as a whole, or not at all; and a full disk is told from a failed one."""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestored import files
from statestored.errors import DiskFailed, NoRoom

NO_ROOM = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]
TOO_MANY_OPEN = [errno.EMFILE, errno.ENFILE]
FAILURES = [errno.EIO, errno.EROFS, errno.EBADF]
# What syncs a file.
FILE_SYNC = (files.fcntl, "fcntl") if sys.platform == "darwin" else (os, "fdatasync")
Note = Callable[[str, Callable[..., Any]], None]


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def note(monkeypatch: pytest.MonkeyPatch) -> Note:
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


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_a_new_file_is_empty_and_what_had_its_name_is_not_touched(
    tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    """A link that was planted for root leads nowhere."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    plant(tmp_path / "new", victim)
    with files.create(tmp_path / "new") as file:
        files.write_at(file, b"new", 0)
    assert (victim.read_bytes(), (tmp_path / "new").read_bytes()) == (b"precious", b"new")
    assert not (tmp_path / "new").is_symlink()


@pytest.mark.parametrize(
    "attempt",
    [files.open_to_read, lambda path: files.truncate(path, 0), files.remove_in_steps],
    ids=("read", "truncate", "remove_in_steps"),
)
def test_a_symbolic_link_is_not_followed(tmp_path: Path, attempt: Callable[[Path], object]) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        attempt(link)
    assert victim.read_bytes() == b"precious"


def test_a_file_is_at_its_path_until_it_is_removed_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with files.create(path) as file:
        assert files.is_at(path, file.fileno())
        path.rename(tmp_path / "moved")
        assert not files.is_at(path, file.fileno())
        path.symlink_to(tmp_path / "moved")
        assert not files.is_at(path, file.fileno())
        assert files.is_at(path, file.fileno(), follow=True)
        assert not files.is_at(path / "below", file.fileno())


@given(data=st.binary(max_size=50), offset=st.integers(0, 20), sizes=st.lists(st.integers(1, 9)))
def test_all_is_written_however_little_at_a_time(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, offset: int, sizes: list[int]
) -> None:
    path, pwrite = tmp_path_factory.mktemp("files") / "file", os.pwrite
    before = b"." * 80
    path.write_bytes(before)
    with pytest.MonkeyPatch.context() as patch, path.open("r+b", buffering=0) as file:
        patch.setattr(os, "pwrite", lambda fd, rest, at: pwrite(fd, rest[: sizes.pop() if sizes else None], at))
        files.write_at(file, data, offset)
    assert path.read_bytes() == before[:offset] + data + before[offset + len(data) :]


@pytest.mark.parametrize("number", NO_ROOM)
@pytest.mark.parametrize("function", ["pwrite", "truncate"])
def test_no_room_for_a_write_is_no_failed_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    """D6: writes go on once there is room."""
    with files.create(tmp_path / "file") as file:
        monkeypatch.setattr(os, function, failing(number))
        with pytest.raises(NoRoom) as refusal:
            files.write_at(file, b"x", 0) if function == "pwrite" else files.truncate(file, 0)
    assert refusal.value.errno == number


@pytest.mark.parametrize("number", FAILURES)
@pytest.mark.parametrize("function", ["pwrite", "truncate"])
def test_any_other_failure_of_a_write_is_a_failed_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    with files.create(tmp_path / "file") as file:
        monkeypatch.setattr(os, function, failing(number))
        with pytest.raises(DiskFailed, match=os.strerror(number)):
            files.write_at(file, b"x", 0) if function == "pwrite" else files.truncate(file, 0)


@pytest.mark.parametrize("number", [*NO_ROOM, *FAILURES])
def test_whatever_fails_a_sync_is_a_failed_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """D6: also where it is for want of room, for what was not written may be forgotten by then."""
    with files.create(tmp_path / "file") as file:
        monkeypatch.setattr(*FILE_SYNC, failing(number))
        with pytest.raises(DiskFailed):
            files.sync_file(file)
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(DiskFailed):
        files.sync_directory(tmp_path)


@pytest.mark.parametrize(("number", "raised"), [*((number, NoRoom) for number in NO_ROOM), (errno.EACCES, OSError)])
def test_making_and_renaming_a_file_tell_a_full_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[OSError]
) -> None:
    monkeypatch.setattr(os, "open", failing(number))
    monkeypatch.setattr(Path, "replace", failing(number))
    for attempt in (lambda: files.create(tmp_path / "file"), lambda: files.rename(tmp_path / "a", tmp_path / "b")):
        with pytest.raises(OSError, match=os.strerror(number)) as refusal:
            attempt()
        assert isinstance(refusal.value, NoRoom) == (raised is NoRoom)


def test_a_file_is_cut_by_its_name_or_as_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with files.create(path) as file:
        files.write_at(file, b"12345", 0)
        files.truncate(file, 3)
        assert path.read_bytes() == b"123"
        files.truncate(path, 1)
        assert path.read_bytes() == b"1"


def test_a_file_is_put_in_place_before_its_directory_is_synced(tmp_path: Path, note: Note) -> None:
    """D7: the other way round, the name might not survive a loss of power."""
    path = tmp_path / "file"
    temporary = files.temporary_name(path)
    path.write_bytes(b"old")
    temporary.write_bytes(b"new")
    steps: list[object] = []
    note("rename", lambda source, target: steps.append((source, target, path.read_bytes())))
    note("sync_directory", lambda _: steps.append((temporary.exists(), path.read_bytes())))
    files.put_in_place(temporary, path)
    assert steps == [(temporary, path, b"old"), (False, b"new")]


def test_a_durable_file_is_synced_renamed_and_its_directory_synced(tmp_path: Path, note: Note) -> None:
    path = tmp_path / "file"
    steps: list[object] = []
    temporary = files.temporary_name(path)
    path.write_bytes(b"old")
    note("sync_file", lambda _: steps.append((temporary.read_bytes(), path.read_bytes())))
    note("sync_directory", lambda _: steps.append((temporary.exists(), path.read_bytes())))
    files.write_durably(path, b"new", temporary)
    assert steps == [(b"new", b"old"), (False, b"new")]


@pytest.mark.parametrize("number", TOO_MANY_OPEN)
def test_where_no_more_files_can_be_open_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    monkeypatch.setattr(os, "open", failing(number))
    for attempt in (files.create, files.open_to_read, files.remove_in_steps, lambda _: files.sync_directory(tmp_path)):
        with pytest.raises(NoRoom) as refusal:
            attempt(path)
        assert refusal.value.errno == number
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("number", TOO_MANY_OPEN)
def test_a_file_is_not_in_its_place_where_its_directory_could_not_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """D2: whoever is told that there is no room goes on with the old one."""
    path = tmp_path / "file"
    temporary = files.temporary_name(path)
    path.write_bytes(b"old")
    temporary.write_bytes(b"new")
    monkeypatch.setattr(os, "open", failing(number))
    with pytest.raises(NoRoom):
        files.put_in_place(temporary, path)
    assert path.read_bytes() == b"old"


def test_once_a_file_is_in_its_place_nothing_more_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    temporary = files.temporary_name(path)
    temporary.write_bytes(b"new")
    rename = files.rename

    def rename_with_the_last_file(source: Path, target: Path) -> None:
        rename(source, target)
        monkeypatch.setattr(os, "open", failing(errno.EMFILE))

    monkeypatch.setattr(files, "rename", rename_with_the_last_file)
    files.put_in_place(temporary, path)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("step", ["create", "write_at", "sync_file", "rename", "open_directory"])
def test_a_file_stays_what_it_was_where_a_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(files, step, failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.write_durably(path, b"new", files.random_name(path))
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_nobody_can_foresee_a_random_name(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    names = {files.random_name(path).name for _ in range(100)}
    assert len(names) == 100
    assert {len(name) for name in names} == {len(".tokens.toml..tmp") + 32}


def test_a_temporary_file_stands_beside_the_file(tmp_path: Path) -> None:
    assert files.temporary_name(tmp_path / "store.json") == tmp_path / "store.json.tmp"


def test_a_directory_that_is_not_there_cannot_be_synced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.sync_directory(tmp_path / "none")


def test_a_large_file_is_given_back_in_steps_each_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(25))
    monkeypatch.setattr(files, "REMOVED_AT_ONCE", 10)
    synced: list[int] = []
    monkeypatch.setattr(files, "sync_file", lambda _: synced.append(path.stat().st_size))
    files.remove_in_steps(path)
    assert synced == [15, 5]
    assert not path.exists()


def test_a_large_file_that_has_another_name_stays_there_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "x", tmp_path / "other"
    path.write_bytes(bytes(25))
    os.link(path, other)
    monkeypatch.setattr(files, "REMOVED_AT_ONCE", 10)
    files.remove_in_steps(path)
    assert not path.exists()
    assert other.read_bytes() == bytes(25)


@pytest.mark.parametrize("number", TOO_MANY_OPEN)
def test_where_too_many_files_are_open_a_directory_cannot_be_listed_for_want_of_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """L4: no disk has failed then."""
    (tmp_path / "x").touch()
    assert files.paths_in(tmp_path) == [tmp_path / "x"]

    def fail(*_: object) -> None:
        raise OSError(number, "too many")

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(NoRoom):
        files.paths_in(tmp_path)


def test_free_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    free = files.free_space(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    assert 0 < free <= usage.total
    assert abs(free - usage.free) < 2**30, "others write to it, too"
