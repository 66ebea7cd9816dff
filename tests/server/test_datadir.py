"""The data directory is ours alone, and its identity is made once."""

import errno
import json
import os
import socket
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from statestored import files
from statestored.datadir import IDENTITY, IDENTITY_FORMAT, DataDirectory, number_of, read_identity
from statestored.errors import DamagedFile, DiskFailed, NoRoom, StartError, TooNew
from statestored.files import temporary_name
from statestored.framing import HEADER_SIZE
from statestored.locks import LOCK_FILE
from tests.server.journals import opened

STORE_ID = "7d1c6f0e-0d6a-4b1e-9f4c-2f8e6a1b3c5d"
WHOLE = json.dumps({"format": IDENTITY_FORMAT, "store_id": STORE_ID}).encode()


def new_store(path: Path) -> uuid.UUID:
    with opened(path) as directory:
        directory.save_identity()
        return directory.store_id


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.usefixtures("open_umask")
def test_all_is_for_its_owner_only(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as directory:
        directory.save_identity()
        assert mode(directory.path) == 0o700
        assert {path.name: mode(path) for path in directory.path.iterdir()} == {LOCK_FILE: 0o600, IDENTITY: 0o600}


def test_directories_above_it_are_made(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "b" / "data") as directory:
        assert directory.path.is_dir()


class Synced:
    """Records which directories are synced, of those above `data`; may fail instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
        self.directories: list[Path] = []
        self.failures: dict[Path | int, BaseException] = {}
        self._above = data.parents
        self._sync_directory = files.sync_directory
        monkeypatch.setattr(files, "sync_directory", self._sync)

    def _sync(self, directory: Path | int) -> None:
        if directory in self.failures:
            raise self.failures[directory]
        if isinstance(directory, Path) and directory in self._above:
            self.directories.append(directory)
        self._sync_directory(directory)


def test_directories_that_a_killed_start_has_made_are_synced_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D3: or a loss of power could take the directory, with acknowledged writes in it."""
    data = tmp_path / "a" / "b" / "data"
    synced = Synced(monkeypatch, data)
    synced.failures[tmp_path / "a" / "b"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), opened(data):
        pass
    assert data.is_dir()
    synced.failures.clear()
    synced.directories.clear()
    with opened(data) as directory:
        assert directory.is_new
        assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(synced.directories)


def test_nothing_above_a_store_is_synced_once_it_has_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(tmp_path / "data")
    synced = Synced(monkeypatch, tmp_path / "data")
    with opened(tmp_path / "data"):
        assert synced.directories == []


def test_nothing_above_a_mount_point_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount point was there before anything was made on the file system that is mounted."""
    mount_point = tmp_path / "volume"
    (mount_point / "data").mkdir(parents=True)
    synced = Synced(monkeypatch, mount_point / "data")
    stat = Path.stat

    def stat_on_two_devices(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = list(stat(path, follow_symlinks=follow_symlinks))
        found[2] = 2 if path.is_relative_to(mount_point) else 1
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", stat_on_two_devices)
    with opened(mount_point / "data"):
        assert synced.directories == [mount_point]


def test_a_directory_that_cannot_be_opened_ends_only_the_start_that_has_made_something_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of mode 0711, in which an operator has made the data directory."""
    data = tmp_path / "made" / "data"
    synced = Synced(monkeypatch, data)
    synced.failures[tmp_path] = PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
    with pytest.raises(StartError, match="Permission denied"), opened(data):
        pass
    with opened(data):
        assert synced.directories[:1] == [tmp_path / "made"]
        assert tmp_path.parent in synced.directories


def test_a_sync_above_the_directory_that_fails_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = Synced(monkeypatch, tmp_path)
    synced.failures[tmp_path.parent] = DiskFailed(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(DiskFailed), opened(tmp_path):
        pass


def test_a_store_keeps_its_identity(tmp_path: Path) -> None:
    store_id = new_store(tmp_path)
    with opened(tmp_path) as again:
        assert (again.store_id, again.is_new) == (store_id, False)
    assert store_id.version == 4


def test_two_stores_have_two_identities(tmp_path: Path) -> None:
    assert new_store(tmp_path / "a") != new_store(tmp_path / "b")


def test_a_store_is_new_until_its_identity_is_saved(tmp_path: Path) -> None:
    """It is saved last, so that it stands for a journal that is there."""
    for _ in range(2):
        with opened(tmp_path) as directory:
            assert directory.is_new
            assert not (tmp_path / IDENTITY).exists()
    with opened(tmp_path) as directory:
        directory.save_identity()
        assert not directory.is_new
    with opened(tmp_path) as directory:
        assert not directory.is_new


def test_only_a_new_store_is_warned_about(tmp_path: Path) -> None:
    with capture_logs() as logs:
        store_id = str(new_store(tmp_path))
    assert [(entry["log_level"], entry["store_id"]) for entry in logs] == [("warning", store_id)]
    with capture_logs() as logs, opened(tmp_path):
        assert logs == []


def test_an_identity_for_which_there_is_no_room_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise NoRoom(errno.ENOSPC, "No space left on device")

    with opened(tmp_path) as directory:
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_at", full)
            with pytest.raises(NoRoom):
                directory.save_identity()
        assert directory.is_new
    with opened(tmp_path) as directory:
        assert directory.is_new


def test_a_full_disk_does_not_keep_from_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D6: a daemon started on a full disk serves reads."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store_id = new_store(tmp_path)
    monkeypatch.setattr(os, "pwrite", full)
    with opened(tmp_path) as directory:
        assert directory.store_id == store_id
        with pytest.raises(StartError, match="in use"), opened(tmp_path):
            pass


def test_a_directory_in_use_is_refused_with_the_owners_pid(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StartError) as refusal, opened(tmp_path):
        pass
    assert str(tmp_path) in str(refusal.value)
    assert f"(process {os.getpid()} on {socket.gethostname()})" in str(refusal.value)


def test_the_lock_is_free_after_close(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path):
            assert (tmp_path / LOCK_FILE).read_text().startswith(f"{os.getpid()} ")


def test_a_shorter_owner_takes_the_place_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("1" * 500 + "\n")
    with opened(tmp_path):
        assert "11111" not in (tmp_path / LOCK_FILE).read_text().replace(str(os.getpid()), "")


def test_being_refused_leaves_the_owners_pid_there(tmp_path: Path) -> None:
    with opened(tmp_path):
        for _ in range(2):
            with pytest.raises(StartError, match=f"process {os.getpid()}"), opened(tmp_path):
                pass


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory")
    with pytest.raises(StartError, match="--data-dir"), opened(tmp_path / "data"):
        pass


@pytest.mark.parametrize(("owner", "name"), [(Path, "mkdir"), (os, "open"), (files, "remove"), (files, "open_to_read")])
def test_a_disk_that_fails_is_no_directory_of_the_wrong_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """D6: another directory is no help."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store_id = new_store(tmp_path)
    temporary_name(tmp_path / "00000002.snapshot").touch()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(DiskFailed, match="Input/output error"), opened(tmp_path):
            pass
    with opened(tmp_path) as directory:
        assert directory.store_id == store_id


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"format": 1}',
        b'{"format": null, "store_id": "%s"}' % STORE_ID.encode(),
        b'{"format": 1e999, "store_id": "%s"}' % STORE_ID.encode(),
        b'{"format": 1, "store_id": "x"}',
        b'{"format": 1, "store_id": 5}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_identity_is_never_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / IDENTITY
    path.write_bytes(content)
    with pytest.raises(DamagedFile) as damage, opened(tmp_path):
        pass
    assert str(path) in str(damage.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("size", range(len(WHOLE)))
def test_an_identity_cut_anywhere_is_damaged(tmp_path: Path, size: int) -> None:
    (tmp_path / IDENTITY).write_bytes(WHOLE[:size])
    with pytest.raises(DamagedFile), opened(tmp_path):
        pass


@pytest.mark.parametrize("identity", [{"format": IDENTITY_FORMAT + 1, "store_id": STORE_ID}, {"format": 7, "id": 1}])
def test_an_identity_of_a_later_release_is_too_new(tmp_path: Path, identity: dict[str, object]) -> None:
    (tmp_path / IDENTITY).write_text(json.dumps(identity))
    with pytest.raises(TooNew, match=IDENTITY), opened(tmp_path):
        pass


@pytest.mark.parametrize("name", ["00000003.snapshot", "00000001.snapshot", "00000002.journal"])
def test_files_without_an_identity_are_damage(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DamagedFile) as damage, opened(tmp_path):
        pass
    assert str(tmp_path / IDENTITY) in str(damage.value)
    assert name in str(damage.value)
    assert not (tmp_path / IDENTITY).exists()


@pytest.mark.parametrize("size", [0, 1, HEADER_SIZE])
def test_a_first_segment_that_holds_nothing_is_what_an_interrupted_first_start_left(tmp_path: Path, size: int) -> None:
    segment = tmp_path / "00000001.journal"
    segment.write_bytes(bytes(size))
    with opened(tmp_path) as directory:
        assert directory.is_new
        assert not segment.exists()


@pytest.mark.parametrize("beside", ["00000002.journal", "00000001.snapshot"])
def test_a_first_segment_is_never_removed_where_there_is_more(tmp_path: Path, beside: str) -> None:
    names = ("00000001.journal", beside)
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DamagedFile), opened(tmp_path):
        pass
    assert all((tmp_path / name).exists() for name in names)


def test_a_first_segment_with_batches_is_never_removed(tmp_path: Path) -> None:
    segment = tmp_path / "00000001.journal"
    segment.write_bytes(bytes(HEADER_SIZE + 1))
    with pytest.raises(DamagedFile, match=IDENTITY), opened(tmp_path):
        pass
    assert segment.stat().st_size == HEADER_SIZE + 1


def test_what_a_kill_left_unfinished_is_removed(tmp_path: Path) -> None:
    (tmp_path / IDENTITY).write_bytes(WHOLE)
    names = (IDENTITY, "00000007.snapshot", "00000008.journal")
    unfinished = [temporary_name(tmp_path / name) for name in names]
    for path in unfinished:
        path.write_bytes(b"half a")
    with opened(tmp_path) as directory:
        assert [path for path in unfinished if path.exists()] == []
        assert directory.store_id == uuid.UUID(STORE_ID)
        assert (directory.snapshots(), directory.segments()) == ([], [])


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    names = ("notes.tmp", "7.journal.tmp", "00000007.journal.bak", "00000007.snapshot.tmp.tmp")
    new_store(tmp_path)
    for name in names:
        (tmp_path / name).touch()
    with opened(tmp_path):
        assert all((tmp_path / name).exists() for name in names)


@pytest.mark.parametrize("name", ["notes", ".profile", "7.journal.tmp", "damaged-"])
def test_a_new_store_is_not_made_among_files_of_others(tmp_path: Path, name: str) -> None:
    """Such as in somebody's home, by a mistyped --data-dir."""
    (tmp_path / name).write_text("precious")
    with pytest.raises(StartError, match=f"other files .{name}.: give an empty directory"), opened(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_that_the_settings_name_may_be_there_first(tmp_path: Path) -> None:
    """In a container the data directory may be the only place where a file of tokens can be."""
    (tmp_path / "tokens.toml").touch()
    with closing(DataDirectory(tmp_path, [tmp_path / ".." / tmp_path.name / "tokens.toml"])) as directory:
        directory.open()
        assert directory.is_new


def test_a_new_store_is_made_where_a_first_start_was_interrupted_or_a_file_system_begins(tmp_path: Path) -> None:
    for name in ("lock", "store.json.tmp", "00000001.journal.tmp", "00000001.journal", ".gitkeep"):
        (tmp_path / name).touch()
    for name in ("lost+found", "damaged-20260101T000000Z"):
        (tmp_path / name).mkdir()
    with opened(tmp_path) as directory:
        assert directory.is_new


@pytest.mark.parametrize("name", ["lock", IDENTITY, "00000001.journal", "00000002.snapshot"])
def test_links_are_not_followed(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "data"
    path.mkdir()
    (path / name).symlink_to(victim)
    with pytest.raises(StartError, match=f"{path / name} is a symbolic link"), opened(path):
        pass
    assert victim.read_text() == "precious"
    assert [file.name for file in path.iterdir()] == [name]


def test_a_directory_that_is_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to("disk")
    store_id = new_store(tmp_path / "data")
    with opened(tmp_path / "disk") as directory:
        assert directory.store_id == store_id
        with pytest.raises(StartError, match="in use"), opened(tmp_path / "data"):
            pass


# Files that others remove


def test_files_that_are_needed_and_were_removed_are_named_until_a_snapshot_replaces_them(tmp_path: Path) -> None:
    new_store(tmp_path)
    for number in (1, 2, 3):
        (tmp_path / f"0000000{number}.journal").touch()
    (tmp_path / "00000002.snapshot").touch()
    with opened(tmp_path) as directory:
        assert directory.look_after() == []
        directory.segment(1).unlink()  # not needed: the snapshot has what was in it
        assert directory.look_after() == []
        directory.segment(4).touch()
        assert directory.look_after() == []
        for path in (directory.segment(4), directory.segment(2), directory.snapshot(2)):
            path.unlink()
        for _ in range(2):
            assert directory.look_after() == ["00000002.journal", "00000002.snapshot", "00000004.journal"]
        directory.snapshot(5).touch()
        directory.remove_before(5)
        assert directory.look_after() == []


def test_a_segment_that_is_removed_before_anyone_has_seen_it_is_missed(tmp_path: Path) -> None:
    new_store(tmp_path)
    with opened(tmp_path) as directory:
        directory.segment(1).touch()
        directory.expect(directory.segment(1))
        directory.segment(1).unlink()
        assert directory.look_after() == ["00000001.journal"]


@pytest.mark.parametrize("step", ["rename", "remove_in_steps"])
def test_a_needless_file_that_another_program_removes_first_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    carry_out = getattr(files, step)

    def removed_first(path: Path, *others: Path) -> None:
        path.unlink()
        carry_out(path, *others)

    with opened(tmp_path) as directory:
        directory.segment(1).touch()
        directory.snapshot(2).touch()
        monkeypatch.setattr(files, step, removed_first)
        directory.remove_before(2)
        assert sorted(tmp_path.glob("0*")) == [directory.snapshot(2)]


def test_files_that_the_daemon_removes_itself_are_not_missed(tmp_path: Path) -> None:
    new_store(tmp_path)
    (tmp_path / "00000001.journal").touch()
    with opened(tmp_path) as directory:
        directory.segment(2).touch()
        directory.snapshot(2).touch()
        directory.remove_before(2)
        assert directory.look_after() == []
        directory.snapshot(2).unlink()
        assert directory.look_after() == ["00000002.snapshot"]


def test_an_identity_for_which_there_is_no_room_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise NoRoom(errno.ENOSPC, "No space left on device")

    store_id = new_store(tmp_path)
    with opened(tmp_path) as directory:
        (tmp_path / IDENTITY).unlink()
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_at", full)
            with pytest.raises(NoRoom):
                directory.look_after()
        directory.look_after()
    assert read_identity(tmp_path / IDENTITY) == store_id


def test_the_identity_is_written_again(tmp_path: Path) -> None:
    store_id = new_store(tmp_path)
    with opened(tmp_path) as directory:
        (tmp_path / IDENTITY).unlink()
        with capture_logs() as logs:
            directory.look_after()
        assert [entry["path"] for entry in logs] == [str(tmp_path / IDENTITY)]
    with opened(tmp_path) as directory:
        assert directory.store_id == store_id


def test_unfinished_files_of_a_running_daemon_are_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path):
        unfinished = temporary_name(tmp_path / "00000007.snapshot")
        unfinished.write_bytes(b"half a")
        with pytest.raises(StartError), opened(tmp_path):
            pass
        assert unfinished.exists()


def test_snapshots_and_segments_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        for number in (100_000_000, 10, 2, 9):
            directory.snapshot(number).touch()
            directory.segment(number).touch()
        assert [path.name for path in directory.snapshots()][::3] == ["00000002.snapshot", "100000000.snapshot"]
        assert [number_of(path) for path in directory.snapshots()] == [2, 9, 10, 100_000_000]
        assert [number_of(path) for path in directory.segments()] == [2, 9, 10, 100_000_000]


def test_only_our_own_names_count(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        for name in ("notes.txt", "1.snapshot", "1.journal", "00000001.snapshot.bak", "x00000001.journal"):
            (tmp_path / name).touch()
        assert (directory.snapshots(), directory.segments()) == ([], [])


def test_only_older_files_are_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        directory.save_identity()
        for number in (1, 2, 3, 4):
            directory.snapshot(number).touch()
            directory.segment(number).touch()
        directory.remove_before(3)
        assert list(map(number_of, directory.snapshots())) == [3, 4]
        assert list(map(number_of, directory.segments())) == [3, 4]
        assert (tmp_path / IDENTITY).exists()
        assert (tmp_path / LOCK_FILE).exists()


def test_removing_is_on_the_disk_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[list[Path]] = []
    with opened(tmp_path) as directory:
        directory.segment(1).touch()
        monkeypatch.setattr(files, "sync_directory", lambda _: left.append(sorted(tmp_path.glob("0*"))))
        directory.remove_before(2)
        assert left == [[files.temporary_name(directory.segment(1))], []]


def test_a_file_that_is_removed_in_steps_has_lost_its_name_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as directory:
        directory.segment(1).write_bytes(b"x")
        monkeypatch.setattr(files, "remove_in_steps", failing_removal)
        with pytest.raises(KeyboardInterrupt):
            directory.remove_before(2)
        assert directory.segments() == []
    with opened(tmp_path):
        assert list(tmp_path.glob("0*")) == []


def failing_removal(_: Path) -> None:
    raise KeyboardInterrupt
