"""Which directories a daemon takes for its own."""

import os
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from statestored import trust
from statestored.errors import StartError

OURS, ROOTS, THEIRS = 1001, 0, 1002


def status(owner: int, mode: int = 0o700) -> os.stat_result:
    return os.stat_result((0o040000 | mode, 1, 1, 1, owner, 2000, 0, 0, 0, 0))


def check(monkeypatch: pytest.MonkeyPatch, user: int, directory: os.stat_result) -> list[str]:
    """As this user. Returns what is logged."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with capture_logs() as logs:
        trust.check_directory(Path("/data"), directory)
    return [entry["event"] for entry in logs]


@pytest.mark.parametrize("user", [OURS, ROOTS])
@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o1777])
def test_a_directory_of_ours_or_of_roots_is_taken(monkeypatch: pytest.MonkeyPatch, user: int, mode: int) -> None:
    """Root's with mode 1777 is the one of the container image."""
    for owner in {user, ROOTS}:
        assert check(monkeypatch, user, status(owner, mode)) == []


@pytest.mark.parametrize("mode", [0o777, 0o703, 0o773])
def test_a_directory_that_everybody_may_change_is_refused(monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    for user in (OURS, ROOTS):
        with pytest.raises(StartError, match=rf"^data directory /data .*\(mode 0{mode:o}\): chmod o-w /data$"):
            check(monkeypatch, user, status(user, mode))


def test_a_directory_that_everybody_may_change_and_we_cannot_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an empty volume of Kubernetes is."""
    logged = check(monkeypatch, OURS, status(ROOTS, 0o777))
    assert logged == ["data directory can be changed by every user", "data directory can be changed by a group"]


@pytest.mark.parametrize("mode", [0o770, 0o2775])
def test_a_directory_that_a_group_may_change_is_warned_about(monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """In Kubernetes it is normal (fsGroup), and where a container has any user and the group 0."""
    assert check(monkeypatch, OURS, status(ROOTS, mode)) == ["data directory can be changed by a group"]


def test_a_directory_of_another_user_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems show another user than the one who makes a file."""
    assert check(monkeypatch, OURS, status(THEIRS)) == ["data directory belongs to another user"]


def test_root_does_not_take_the_directory_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartError, match=f"belongs to user {THEIRS}.*chown root /data"):
        check(monkeypatch, ROOTS, status(THEIRS))


def test_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    path.touch()
    trust.check_no_links([path, tmp_path / "not there"])
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StartError, match=f"^{tmp_path / 'link'} is a symbolic link"):
        trust.check_no_links([path, tmp_path / "link"])


def test_files_of_another_user_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "00000009.snapshot"
    path.touch()
    owner = path.stat().st_uid
    trust.check_owners([path], status(THEIRS))
    monkeypatch.setattr(os, "geteuid", lambda: OURS)
    trust.check_owners([path], status(owner))
    if owner == 0:
        trust.check_owners([path], status(THEIRS))
    monkeypatch.setattr(Path, "stat", lambda *_, **__: status(THEIRS))
    with pytest.raises(StartError, match=f"^{path} belongs to user {THEIRS}"):
        trust.check_owners([path], status(ROOTS))


def test_an_empty_directory_may_hold_what_is_no_file_of_anybodys(tmp_path: Path) -> None:
    names = ("lost+found", ".snapshot", ".gitkeep")
    for name in names:
        (tmp_path / name).mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        relative = os.path.relpath(tmp_path / "socket")
        sock.bind(relative if len(relative) < len(str(tmp_path)) else str(tmp_path / "socket"))
        trust.check_empty(tmp_path, tmp_path.iterdir())


def test_a_directory_with_other_files_is_refused_with_their_names(tmp_path: Path) -> None:
    for name in ("d", "a", ".profile", "c"):
        (tmp_path / name).touch()
    with pytest.raises(StartError, match=r"other files \(\.profile, a, c, \.\.\.\).*--data-dir .*/statestored$"):
        trust.check_empty(tmp_path, tmp_path.iterdir())
