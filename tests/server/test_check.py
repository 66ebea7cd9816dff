"""`check` says what a start would find, and what is damaged, and changes nothing."""

import errno
import fcntl
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statestored import inspection
from statestored.check import check
from statestored.datadir import IDENTITY, DataDirectory
from statestored.errors import DamagedFile, Exit, StartError, TooNew
from statestored.framing import HEADER_SIZE
from statestored.locks import LOCK_FILE
from statestored.salvage import first_damage
from tests.server.damaged import bytes_of, flip, flip_frame, frames, make
from tests.server.journals import opened, without_syncs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with without_syncs():
        return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "data")


def segment(path: Path, number: int) -> Path:
    return path / f"{number:08}.journal"


def report(path: Path, code: Exit) -> list[str]:
    """Its lines, of words: columns are as wide as they have to be."""
    checked = check(path)
    assert checked.code == code
    assert max(len(line) for line in checked.report.splitlines() if str(path) not in line) <= 120
    return [" ".join(line.split()) for line in checked.report.splitlines()]


def test_a_sound_store_is_one_screen(path: Path) -> None:
    names = ("00000002.snapshot", "00000002.journal", "00000003.journal")
    snapshot, one, two = ((path / name).stat().st_size for name in names)
    lines = report(path, Exit.STOPPED)
    store_id = inspection.read_identity(path / IDENTITY)
    blocks = len(frames(path / "00000002.snapshot")) - 1
    assert lines == [
        str(path),
        f"store {store_id}",
        "",
        "file bytes what is in it",
        "store.json 66 the store's id",
        f"00000002.snapshot {snapshot:,} 21 entries in {blocks} blocks, of 2024-10-04 00:00:00 UTC",
        f"00000002.journal {one:,} 4 batches: 21 to 24 of epoch 1",
        f"00000003.journal {two:,} 4 batches: from 25 of epoch 1 to 2 of epoch 3",
        "",
        "Sound: 27 entries in 2 namespaces.",
    ]


def test_figures_stand_below_each_other(path: Path) -> None:
    lines = check(path).report.splitlines()[3:8]
    column = lines[0].index("bytes") + len("bytes")
    assert {line[column] for line in lines} == {" "}
    assert all(line[column - 1].isdigit() for line in lines[1:])


def test_damage_is_listed_to_its_end_with_what_repair_would_save(path: Path) -> None:
    blocks = len(frames(path / "00000002.snapshot")) - 1
    block = flip_frame(path / "00000002.snapshot", 0)
    one, two = flip_frame(segment(path, 2), 1), flip_frame(segment(path, 3), 0)
    lines = report(path, Exit.DAMAGED)
    begin = lines.index("DAMAGED: no daemon starts on this.")
    assert lines[begin + 1 : begin + 4] == [
        f"00000002.snapshot at byte 512 {block.end - block.offset:,} bytes are no whole block",
        f"00000002.journal at byte {one.offset:,} {one.end - one.offset} bytes are no whole batch",
        f"00000003.journal at byte {two.offset:,} {two.end - two.offset} bytes are no whole batch",
    ]
    assert lines[begin + 5].startswith("Repair would save ")
    assert lines[begin + 6].startswith(f"It would lose 1 of the {blocks} blocks of 00000002.snapshot, with ")
    assert lines[begin + 6].endswith(" entries; 2 batches, going by their numbers.")
    assert lines[-1] == f"statestored repair {path}"
    assert [line.endswith("; damaged") for line in lines[5:8]] == [True] * 3


def test_a_torn_tail_is_no_damage_and_is_said(path: Path) -> None:
    last = frames(segment(path, 3))[-1]
    os.truncate(segment(path, 3), last.end - 3)
    rest = last.end - 3 - last.offset
    lines = report(path, Exit.STOPPED)
    assert lines[-2] == "Sound: 27 entries in 2 namespaces."
    assert lines[-1].startswith(f"The last {rest} bytes of 00000003.journal were being written when the daemon ended")
    assert f"the last {rest} bytes are no whole batch" in lines[7]


def test_a_file_that_a_start_passes_over_is_shown(path: Path) -> None:
    segment(path, 4).write_bytes(segment(path, 3).read_bytes()[:100])
    lines = report(path, Exit.STOPPED)
    assert "00000004.journal 100 no batches; the last 100 bytes are no whole batch" in lines


@pytest.mark.parametrize("content", [b"{}", None])
def test_a_lost_identity_is_damage(path: Path, content: bytes | None) -> None:
    (path / IDENTITY).write_bytes(content) if content else (path / IDENTITY).unlink()
    lines = report(path, Exit.DAMAGED)
    place, what = ("at byte 0 ", "it does not hold a store's identity") if content else ("", "it is missing")
    assert f"store.json {place}{what}" in lines
    assert "It would lose nothing." in lines


def test_what_a_start_stops_at_is_listed_where_nothing_else_shows_it(path: Path) -> None:
    """All frames are whole; but the follower's header wants others."""
    frames_of_it = frames(segment(path, 3))
    os.truncate(segment(path, 3), frames_of_it[0].offset)
    lines = report(path, Exit.DAMAGED)
    assert any(line.startswith("00000003.journal at byte 512") for line in lines)


def test_a_missing_segment_is_named_once(path: Path) -> None:
    segment(path, 2).unlink()
    lines = report(path, Exit.DAMAGED)
    assert lines.count("00000002.journal it is missing, and the journal goes on behind it") == 1
    assert len([line for line in lines if line.startswith("00000002.journal")]) == 1
    assert "It would lose all of 00000002.journal." in lines


def test_where_nothing_can_be_read_it_says_so(path: Path) -> None:
    for file in path.glob("0*"):
        file.write_bytes(bytes(1000))
    assert "Nothing in it can be read, so nothing can be repaired: take a backup." in report(path, Exit.DAMAGED)


def test_other_files_are_told_from_each_other(path: Path) -> None:
    (path / "notes").touch()
    (path / "00000009.journal.tmp").touch()
    (path / "damaged-20250101T000000Z").mkdir()
    shutil.copy(path / "00000002.snapshot", path / "00000001.snapshot")
    lines = report(path, Exit.STOPPED)
    assert "notes 0 not of statestored" in lines
    assert "00000009.journal.tmp 0 unfinished; the next start removes it" in lines
    assert "damaged-20250101T000000Z damaged files that a repair has set aside" in lines
    assert any(
        line.startswith("00000001.snapshot") and line.endswith("needed no more; the next snapshot removes it")
        for line in lines
    )


def test_damage_in_what_is_needed_no_more_is_none(path: Path) -> None:
    shutil.copy(path / "00000002.snapshot", path / "00000001.snapshot")
    flip(path / "00000001.snapshot", 700)
    report(path, Exit.STOPPED)


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """As far as modes help: root may do everything."""
    for file in (*path.iterdir(), path):
        file.chmod(file.stat().st_mode & 0o500)
    yield
    path.chmod(0o700)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("locked", [False, True])
def test_nothing_is_changed(path: Path, damaged: bool, locked: bool) -> None:
    (path / LOCK_FILE).unlink()
    if locked:
        (path / LOCK_FILE).write_text("7 on host\n")
    if damaged:
        flip_frame(segment(path, 2), 1)
    (path / "00000009.journal.tmp").touch()
    before = bytes_of(path), {file: file.stat().st_mtime_ns for file in (path, *path.iterdir())}
    with read_only(path):
        check(path)
    assert before == (bytes_of(path), {file: file.stat().st_mtime_ns for file in (path, *path.iterdir())})


def test_a_daemon_in_it_is_left_alone(path: Path) -> None:
    """D9"""
    with opened(path), pytest.raises(StartError, match=rf"in use .*process {os.getpid()} on .*look at a copy"):
        check(path)


def test_no_daemon_comes_in_meanwhile_but_another_check_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def try_to_open(directory: DataDirectory) -> DamagedFile | None:
        with pytest.raises(StartError, match="in use"):
            DataDirectory(path).open()
        with (path / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        tried.append(True)
        return first_damage(directory)

    monkeypatch.setattr("statestored.check.first_damage", try_to_open)
    check(path)
    assert tried == [True]
    with opened(path):
        pass


def test_it_lets_go_of_the_directory_where_it_fails(path: Path) -> None:
    (path / IDENTITY).write_text('{"format": 2}')
    with pytest.raises(TooNew):
        check(path)
    with (path / LOCK_FILE).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_where_there_is_no_store_there_is_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="there is no directory"):
        check(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StartError, match="there is no directory"):
        check(file)
    with pytest.raises(StartError, match="there is no store in"):
        check(tmp_path)
    assert [*tmp_path.iterdir()] == [file]


def test_a_daemon_in_it_is_left_alone_if_its_lock_file_was_removed(path: Path) -> None:
    """D9"""
    with opened(path):
        (path / LOCK_FILE).unlink()
        with pytest.raises(StartError, match=r"in use by another process: .*look at a copy"):
            check(path)


def test_links_are_not_followed(path: Path, tmp_path: Path) -> None:
    segment(path, 2).rename(tmp_path / "elsewhere")
    segment(path, 2).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="symbolic link"):
        check(path)


def test_a_first_start_that_was_interrupted_left_no_store(path: Path) -> None:
    (path / IDENTITY).unlink()
    for file in path.glob("0*"):
        file.unlink()
    segment(path, 1).write_bytes(bytes(HEADER_SIZE))
    with pytest.raises(StartError, match="there is no store in"):
        check(path)
    assert segment(path, 1).exists()


def test_a_disk_that_cannot_be_read_is_not_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("statestored.salvage.read_pieces", fail)
    with pytest.raises(OSError, match="Input/output error"):
        check(path)


def test_it_agrees_with_a_start_wherever_a_bit_is_flipped(path: Path) -> None:
    """D5"""
    randomly = random.Random(7)
    for file in (*path.glob("0*"), path / IDENTITY):
        data = file.read_bytes()
        for _ in range(40):
            flip(file, randomly.randrange(len(data)))
            try:
                with opened(path) as directory:
                    starts = first_damage(directory) is None
            except DamagedFile:
                starts = False
            assert check(path).code == (Exit.STOPPED if starts else Exit.DAMAGED)
            file.write_bytes(data)
