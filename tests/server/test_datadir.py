"""The data directory is ours alone, and its identity is made once."""

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from statestored.datadir import IDENTITY, IDENTITY_FORMAT, LOCK, DataDirectory
from statestored.errors import DamagedFile, StartError, TooNew
from statestored.files import temporary_name

STORE_ID = "7d1c6f0e-0d6a-4b1e-9f4c-2f8e6a1b3c5d"
WHOLE = json.dumps({"format": IDENTITY_FORMAT, "store_id": STORE_ID}).encode()


@contextmanager
def opened(path: Path) -> Iterator[DataDirectory]:
    directory = DataDirectory(path)
    try:
        directory.open()
        yield directory
    finally:
        directory.close()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.usefixtures("open_umask")
def test_all_is_for_its_owner_only(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as directory:
        assert mode(directory.path) == 0o700
        assert {path.name: mode(path) for path in directory.path.iterdir()} == {LOCK: 0o600, IDENTITY: 0o600}


def test_directories_above_it_are_made(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "b" / "data") as directory:
        assert directory.path.is_dir()


def test_a_store_keeps_its_identity(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        store_id = first.store_id
    with opened(tmp_path) as second:
        assert second.store_id == store_id
    assert store_id.version == 4


def test_two_stores_have_two_identities(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as a, opened(tmp_path / "b") as b:
        assert a.store_id != b.store_id


def test_only_a_new_store_is_warned_about(tmp_path: Path) -> None:
    with capture_logs() as logs, opened(tmp_path) as directory:
        store_id = str(directory.store_id)
    assert [(entry["log_level"], entry["store_id"]) for entry in logs] == [("warning", store_id)]
    with capture_logs() as logs, opened(tmp_path):
        assert logs == []


def test_a_directory_in_use_is_refused_with_the_owners_pid(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StartError) as refusal, opened(tmp_path):
        pass
    assert str(tmp_path) in str(refusal.value)
    assert f"(process {os.getpid()} on {socket.gethostname()})" in str(refusal.value)


def test_the_lock_is_free_after_close(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path):
            assert (tmp_path / LOCK).read_text().startswith(f"{os.getpid()} ")


def test_a_shorter_owner_takes_the_place_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("1" * 500 + "\n")
    with opened(tmp_path):
        assert "11111" not in (tmp_path / LOCK).read_text().replace(str(os.getpid()), "")


def test_being_refused_leaves_the_owners_pid_there(tmp_path: Path) -> None:
    with opened(tmp_path):
        for _ in range(2):
            with pytest.raises(StartError, match=f"process {os.getpid()}"), opened(tmp_path):
                pass


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory")
    with pytest.raises(StartError, match="--data-dir"), opened(tmp_path / "data"):
        pass


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


def test_snapshots_without_an_identity_are_damage(tmp_path: Path) -> None:
    (tmp_path / "00000003.snapshot").touch()
    with pytest.raises(DamagedFile) as damage, opened(tmp_path):
        pass
    assert str(tmp_path / IDENTITY) in str(damage.value)
    assert "00000003.snapshot" in str(damage.value)
    assert not (tmp_path / IDENTITY).exists()


def test_what_a_kill_left_unfinished_is_removed(tmp_path: Path) -> None:
    (tmp_path / IDENTITY).write_bytes(WHOLE)
    unfinished = [temporary_name(tmp_path / name) for name in (IDENTITY, "00000007.snapshot")]
    for path in unfinished:
        path.write_bytes(b"half a")
    with opened(tmp_path) as directory:
        assert [path for path in unfinished if path.exists()] == []
        assert directory.store_id == uuid.UUID(STORE_ID)
        assert directory.snapshots() == []


def test_unfinished_files_of_a_running_daemon_are_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path):
        unfinished = temporary_name(tmp_path / "00000007.snapshot")
        unfinished.write_bytes(b"half a")
        with pytest.raises(StartError), opened(tmp_path):
            pass
        assert unfinished.exists()


def test_snapshots_are_numbered_and_ordered(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        assert directory.next_snapshot() == tmp_path / "00000001.snapshot"
        for name in ("00000010.snapshot", "00000002.snapshot", "00000009.snapshot"):
            (tmp_path / name).touch()
        assert [path.name[:8] for path in directory.snapshots()] == ["00000002", "00000009", "00000010"]
        assert directory.next_snapshot() == tmp_path / "00000011.snapshot"


def test_only_our_own_names_are_snapshots(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        for name in ("notes.txt", "1.snapshot", "00000001.snapshot.bak", "x00000001.snapshot"):
            (tmp_path / name).touch()
        assert directory.snapshots() == []


def test_only_older_snapshots_are_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        for number in (1, 2, 3, 4):
            (tmp_path / f"0000000{number}.snapshot").touch()
        directory.remove_snapshots_before(tmp_path / "00000003.snapshot")
        assert [path.name[7] for path in directory.snapshots()] == ["3", "4"]
        assert (tmp_path / IDENTITY).exists()
