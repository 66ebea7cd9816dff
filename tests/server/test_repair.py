"""`repair` saves all that can be read, overwrites nothing, and may be killed at any moment."""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from statestored import files
from statestored.check import check
from statestored.datadir import IDENTITY, DataDirectory, read_identity
from statestored.engines.sessions import DONE, OPENED
from statestored.errors import DamagedFile, Exit, NoRoom, StartError, TooNew
from statestored.repair import repair
from tests.server.damaged import (
    AFTER,
    ALL,
    COPIED,
    bytes_of,
    content_of,
    flip,
    flip_frame,
    frames,
    make,
    snapshot,
    without,
)
from tests.server.journals import BATCHES, Batch, Daemon, put, recovered, states_after, without_syncs
from tests.server.models import TODAY, Model

Damage = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _without_syncs() -> Iterator[None]:
    with without_syncs():
        yield


@pytest.fixture(autouse=True)
def _all_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be given back in steps is not, where it has been set aside."""
    monkeypatch.setattr(files, "REMOVED_AT_ONCE", 100)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with without_syncs():
        return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "data")


def segment(path: Path, number: int) -> Path:
    return path / f"{number:08}.journal"


def aside(path: Path) -> list[Path]:
    return sorted(path.glob("damaged-*"))


def damage_a_batch(path: Path) -> None:
    flip_frame(segment(path, 2), 1)


def damage_much(path: Path) -> None:
    damage_a_batch(path)
    flip_frame(segment(path, 3), 0)
    flip(segment(path, 3), 30)
    flip(path / IDENTITY, 3)


def lose_a_segment(path: Path) -> None:
    segment(path, 2).unlink()


def lose_the_identity(path: Path) -> None:
    (path / IDENTITY).unlink()


# What is saved after each.
DAMAGES: list[tuple[Damage, dict[bytes, Model]]] = [
    (damage_a_batch, without(AFTER[1])),
    (damage_much, without(AFTER[1], COPIED[0])),
    (lose_a_segment, without(*AFTER)),
    (lose_the_identity, states_after(ALL)),
]


@pytest.mark.parametrize(("damage", "saved"), DAMAGES)
def test_what_can_be_read_is_there_afterwards_and_the_store_is_sound(
    path: Path, damage: Damage, saved: dict[bytes, Model]
) -> None:
    store_id = read_identity(path / IDENTITY)
    damage(path)
    damaged = bytes_of(path)
    code, report = repair(path)
    assert code == Exit.STOPPED
    assert report.startswith("Repaired: ")
    assert check(path).code == Exit.STOPPED
    assert content_of(path) == saved
    assert read_identity(path / IDENTITY) == store_id
    kept = {name: data for directory in aside(path) for name, data in bytes_of(directory).items()}
    assert kept.items() <= damaged.items()
    gone = damaged.keys() - bytes_of(path).keys()
    assert gone <= kept.keys(), "all that is there no more is set aside"


@pytest.mark.parametrize("damage", [damage for damage, _ in DAMAGES])
def test_the_daemon_goes_on_from_there(path: Path, damage: Damage) -> None:
    """Under numbers that were never given before."""
    damage(path)
    repair(path)
    more = Batch([put("more", "M")], TODAY + 9)

    async def live() -> None:
        daemon = await Daemon(path).start()
        assert daemon.journal.last >= (3, 2)
        daemon.write(more)
        assert daemon.journal.last > (3, 2)
        daemon.kill()

    asyncio.run(live())
    assert content_of(path)[b"default"][b"lists", b"more"] == (b"M", TODAY + 9)
    assert check(path).code == Exit.STOPPED


def test_what_was_lost_is_said_as_check_says_it(path: Path) -> None:
    damage_much(path)
    lines = check(path).report.splitlines()
    code, report = repair(path)
    assert code == Exit.STOPPED
    repaired, lost, where = report.splitlines()
    assert repaired.removeprefix("Repaired: ").partition(",")[0] + "." == lines[-4].removeprefix("Repair would save ")
    assert lost.removeprefix("Lost: ") == lines[-3].removeprefix("It would lose ")
    assert str(aside(path)[0]) in where


def test_a_sound_store_is_left_as_it_is(path: Path) -> None:
    """A torn tail is none of our business: the next start drops it."""
    os.truncate(segment(path, 3), frames(segment(path, 3))[-1].end - 3)
    before = bytes_of(path)
    assert repair(path) == (Exit.STOPPED, "Nothing to repair.")
    assert {name: data for name, data in bytes_of(path).items() if name != "lock"} == {
        name: data for name, data in before.items() if name != "lock"
    }


def test_a_second_repair_finds_nothing_to_do(path: Path) -> None:
    damage_a_batch(path)
    repair(path)
    assert repair(path) == (Exit.STOPPED, "Nothing to repair.")
    assert len(aside(path)) == 1


def test_only_the_identity_is_written_where_all_else_is_sound(path: Path) -> None:
    flip(path / IDENTITY, 3)
    before = bytes_of(path)
    repair(path)
    assert [file.name for file in sorted(path.glob("0*"))] == sorted(name for name in before if name.startswith("0"))
    assert bytes_of(aside(path)[0]) == {IDENTITY: before[IDENTITY]}


def test_repairs_within_one_second_do_not_mix(path: Path) -> None:
    for _ in range(3):
        flip(path / IDENTITY, 3)
        repair(path)
    assert len(aside(path)) == 3


def test_the_originals_are_the_same_files_where_there_are_links(path: Path) -> None:
    damage_a_batch(path)
    inode = segment(path, 2).stat().st_ino
    repair(path)
    assert (aside(path)[0] / segment(path, 2).name).stat().st_ino == inode


def test_they_are_copied_where_there_are_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no links on this file system")

    monkeypatch.setattr(os, "link", refuse)
    damage_a_batch(path)
    before = bytes_of(path)
    repair(path)
    kept = bytes_of(aside(path)[0])
    assert kept == {name: before[name] for name in kept}
    assert len(kept) == 3
    assert content_of(path) == without(AFTER[1])


def test_all_is_for_its_owner_only(path: Path) -> None:
    """S1"""
    damage_a_batch(path)
    repair(path)
    assert {file.stat().st_mode & 0o077 for file in path.rglob("*")} == {0}


def test_where_nothing_can_be_read_nothing_is_done(path: Path) -> None:
    for file in path.glob("0*"):
        file.write_bytes(bytes(1000))
    before = bytes_of(path)
    code, report = repair(path)
    assert code == Exit.DAMAGED
    assert report.startswith("Nothing in it can be read")
    assert {**bytes_of(path), "lock": b""} == {**before, "lock": b""}


def test_a_daemon_in_it_is_left_alone(path: Path) -> None:
    """D9"""
    damage_a_batch(path)
    with closing(DataDirectory(path)) as directory:
        directory.open_existing(to_write=True)
        with pytest.raises(StartError, match=r"in use .*stop that one$"):
            repair(path)
    assert not aside(path)


def test_what_is_of_a_later_release_is_left_alone(path: Path) -> None:
    damage_a_batch(path)
    (path / IDENTITY).write_text('{"format": 2}')
    with pytest.raises(TooNew):
        repair(path)
    assert not aside(path)


def test_files_of_another_user_are_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who repairs as root would leave files that the daemon may not read."""
    damage_a_batch(path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StartError, match=f"belongs to user {os.getuid()}"):
        repair(path)
    assert not aside(path)


def test_there_is_no_store_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="there is no directory"):
        repair(tmp_path / "nowhere")
    assert not [*tmp_path.iterdir()]
    with pytest.raises(StartError, match="there is no store"):
        repair(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_directory_that_everybody_may_change_is_left_alone(path: Path) -> None:
    damage_a_batch(path)
    path.chmod(0o777)
    with pytest.raises(StartError, match="chmod o-w"):
        repair(path)
    assert not aside(path)


def test_links_are_not_followed(path: Path, tmp_path: Path) -> None:
    """They could lead to files of others, which root would read, or change."""
    segment(path, 2).rename(tmp_path / "elsewhere")
    segment(path, 2).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="symbolic link"):
        repair(path)
    assert not aside(path)


def test_the_new_number_is_above_all_that_there_were(path: Path) -> None:
    """Also where the newest file is gone, and only the numbers of batches tell of it."""
    newest = segment(path, 9)
    segment(path, 3).rename(newest)
    repair(path)
    assert [file.name for file in sorted(path.glob("0*"))] == ["00000010.journal", "00000010.snapshot"]


def test_files_whose_removal_was_broken_off_are_set_aside_too(path: Path) -> None:
    """A start removes them, and much may be in them; nor does anything that is written take their place."""
    damage_a_batch(path)
    unfinished = [files.temporary_name(path / name) for name in ("00000001.journal", "00000004.snapshot")]
    for file in unfinished:
        shutil.copy(segment(path, 3), file)
    before = bytes_of(path)
    repair(path)
    kept = bytes_of(aside(path)[0])
    assert {file.name for file in unfinished} < kept.keys()
    assert kept.items() <= before.items()
    assert content_of(path) == without(AFTER[1])


class Killed(BaseException):
    """No code of ours handles it."""


@contextmanager
def killed_at(number: int) -> Iterator[list[str]]:
    """At this call of those that change files, and so at every one after it. Yields the names of all up to it."""
    calls: list[str] = []

    def counted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*arguments: object, **named: object) -> object:
            if len(calls) <= number:
                calls.append(name)
            if len(calls) > number:
                raise Killed
            return call(*arguments, **named)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in ("create", "write_at", "sync_file", "sync_directory", "rename", "remove", "truncate"):
            patch.setattr(files, name, counted(name, getattr(files, name)))
        patch.setattr(os, "link", counted("link", os.link))
        patch.setattr(Path, "mkdir", counted("mkdir", Path.mkdir))
        yield calls


@pytest.mark.parametrize(("damage", "saved"), DAMAGES)
def test_killed_at_any_step_it_leaves_the_old_damage_or_the_repaired_store(
    path: Path, damage: Damage, saved: dict[bytes, Model]
) -> None:
    damage(path)
    kill_at_each_step(path, saved)


def test_killed_where_there_was_no_snapshot_it_leaves_no_empty_store(tmp_path: Path) -> None:
    """A new segment alone would be taken for all there is."""
    path = journal_alone(tmp_path / "data")
    flip_frame(segment(path, 1), 3)
    kill_at_each_step(path, states_after([*BATCHES[:3], *BATCHES[4:]]))


def kill_at_each_step(path: Path, saved: dict[bytes, Model]) -> None:
    """Each leaves a store that is refused or repaired, and can be repaired then, with all originals kept."""
    originals = {name: data for name, data in bytes_of(path).items() if name.startswith("0")}
    seen = set()
    for number in range(1000):
        copy = shutil.copytree(path, path.with_name("copy"))
        with killed_at(number) as calls:
            try:
                repair(copy)
            except Killed:
                seen.add(calls[-1])
            else:
                break
        with copy_of(copy) as started:
            try:
                assert content_of(started) == saved
                is_repaired = True
            except DamagedFile:
                is_repaired = False
        assert check(copy).code == (Exit.STOPPED if is_repaired else Exit.DAMAGED)
        assert repair(copy).code == Exit.STOPPED
        assert content_of(copy) == saved
        kept = {Path(name).name: data for name, data in bytes_of(copy).items() if Path(name).name in originals}
        assert kept == originals
        shutil.rmtree(copy)
    assert len(calls) == number, "the last one was not killed"
    assert {"create", "write_at", "sync_file", "rename"} <= seen


@contextmanager
def copy_of(path: Path) -> Iterator[Path]:
    """A start changes what it finds."""
    copy = path.with_name("started")
    shutil.copytree(path, copy)
    yield copy
    shutil.rmtree(copy)


def test_where_there_is_no_room_nothing_is_done(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage_a_batch(path)
    before = bytes_of(path)

    def refuse(*_: object) -> None:
        raise NoRoom(28, "No space left on device")

    monkeypatch.setattr(files, "write_at", refuse)
    with pytest.raises(NoRoom):
        repair(path)
    assert {**bytes_of(path), "lock": b""} == {**before, "lock": b""}


@pytest.mark.parametrize("fault", ["a bit", "an entry"])
def test_what_is_not_read_back_as_it_was_read_replaces_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    damage_a_batch(path)
    write_at = files.write_at

    def write_badly(file: BinaryIO, data: bytes, offset: int) -> None:
        write_at(file, data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 1000 else data, offset)

    async def write_nothing(*_: object) -> int:
        return 0

    with monkeypatch.context() as patch:
        if fault == "a bit":
            patch.setattr(files, "write_at", write_badly)
        else:
            patch.setattr("statestored.repair.write_states", write_nothing)
        with pytest.raises(DamagedFile):
            repair(path)
    assert [file.name for file in sorted(path.glob("0*"))] == [
        "00000002.journal",
        "00000002.snapshot",
        "00000003.journal",
    ]
    assert check(path).code == Exit.DAMAGED
    repair(path)
    assert content_of(path) == without(AFTER[1])


@pytest.mark.parametrize("lost", ["a batch", "the snapshot"])
def test_sessions_are_kept(tmp_path: Path, lost: str) -> None:
    """Also those of a snapshot in which something else is damaged."""

    async def live() -> None:
        daemon = await Daemon(tmp_path).start()
        daemon.write(Batch([(OPENED, 7), (DONE, 7, 1, 1, b"A", 5), (OPENED, 8)]), Batch([put("ann", "A")]))
        daemon.journal.rotate()
        await snapshot(daemon)
        daemon.directory.remove_before(2)
        daemon.write(Batch([put("ben", "A")]), Batch([(DONE, 7, 2, 1, b"B")]), Batch([(OPENED, 9)]))
        daemon.stop()

    asyncio.run(live())
    if lost == "a batch":
        flip_frame(segment(tmp_path, 2), 0)
    else:
        flip_frame(tmp_path / "00000002.snapshot", 0)
    repair(tmp_path)
    found = asyncio.run(recovered(tmp_path))
    assert found.sessions == {7: (1, {1: (b"A", 5), 2: (b"B", None)}), 8: (1, {}), 9: (1, {})}
    assert found.states[b"default"].keys() == {(b"lists", b"ann" if lost == "a batch" else b"ben")}


def test_a_session_that_is_not_read_back_replaces_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def live() -> None:
        daemon = await Daemon(path).start()
        daemon.write(Batch([(OPENED, 7)]))
        daemon.stop()

    async def write_nothing(*_: object) -> None: ...

    asyncio.run(live())
    damage_a_batch(path)
    monkeypatch.setattr("statestored.engines.snapshots._write_sessions", write_nothing)
    with pytest.raises(DamagedFile, match="1 sessions"):
        repair(path)


def test_a_journal_without_a_snapshot_is_repaired(tmp_path: Path) -> None:
    path = journal_alone(tmp_path)
    assert flip_frame(segment(path, 1), 3).sequence == (1, 4)
    repair(path)
    assert content_of(path) == states_after([*BATCHES[:3], *BATCHES[4:]])
    assert [file.name for file in sorted(path.glob("0*"))] == ["00000002.journal", "00000002.snapshot"]


def journal_alone(path: Path) -> Path:
    async def live() -> None:
        daemon = await Daemon(path).start()
        daemon.write(*BATCHES)
        daemon.stop()

    asyncio.run(live())
    return path
