"""The simulated disk fails as the real one does, at the calls where a plan wants it, and always in the same way."""

import errno
import os
from collections.abc import Callable
from typing import cast

import pytest

from tests.simulation.disk import DIRECTORY, PARENT, DirectoryState, Disk
from tests.simulation.disk_faults import Call
from tests.simulation.rig import Rig

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
SEEDS = range(20)


class DiskRig(Rig):
    def run_until_killed(self, function: Callable[[], object], **when: object) -> None:
        process = self.start(function)
        self.disk.faults.on_call(lambda: process.kill(), **when)  # type: ignore[arg-type]
        self.run()
        assert not process.alive

    def shown(self, name: str = "a") -> bytes | None:
        return self.disk.model.shown().get(name)


@pytest.fixture
def rig() -> DiskRig:
    return DiskRig()


def write_all(disk: Disk, fd: int, data: bytes) -> None:
    offset = 0
    while offset < len(data):
        offset += disk.write(fd, data[offset:], offset)


def write_file(disk: Disk, data: bytes = b"content", *, is_synced: bool = True) -> int:
    fd = disk.open("a", CREATE)
    write_all(disk, fd, data)
    if is_synced:
        disk.sync(fd)
        disk.sync(disk.open_directory(DIRECTORY))
    return fd


def test_a_power_loss_takes_nothing_that_was_synced_and_may_take_all_else() -> None:
    found = set()
    for seed in SEEDS:
        rig = DiskRig(seed)
        rig.call(lambda: write_file(rig.disk))  # noqa: B023
        rig.disk.power_loss()
        assert rig.shown() == b"content"

        rig.call(lambda: rig.disk.write(rig.disk.open("a", os.O_WRONLY), b"CHANGED", 0))  # noqa: B023
        rig.disk.power_loss()
        found.add(rig.shown())
    assert found == {b"content", b"CHANGED"}


def test_a_name_that_was_not_synced_may_be_lost() -> None:
    found = set()
    for seed in SEEDS:
        rig = DiskRig(seed)

        def write(rig: DiskRig = rig) -> None:
            fd = write_file(rig.disk, is_synced=False)
            rig.disk.sync(fd)

        rig.call(write)
        rig.disk.power_loss()
        found.add(rig.shown())
    assert found == {b"content", None}


def test_a_new_directory_may_be_lost_until_its_parent_is_synced() -> None:
    found = set()
    for seed in SEEDS:
        rig = DiskRig(seed, has_directory=False)

        def make(rig: DiskRig = rig) -> None:
            rig.disk.make_directory(exist_ok=False)
            write_file(rig.disk)

        rig.call(make)
        rig.disk.power_loss()
        found.add((rig.disk.directory, rig.shown()))
    assert found == {(DirectoryState.MISSING, None), (DirectoryState.DURABLE, b"content")}

    rig = DiskRig(has_directory=False)

    def make_durable() -> None:
        rig.disk.make_directory(exist_ok=False)
        rig.disk.sync(rig.disk.open_directory(PARENT))

    rig.call(make_durable)
    assert rig.disk.directory is DirectoryState.DURABLE


def test_what_a_failed_sync_forgot_is_not_written_by_the_next_one() -> None:
    found = set()
    for seed in SEEDS:
        rig = DiskRig(seed)
        rig.call(lambda: write_file(rig.disk, b"old"))  # noqa: B023

        def change(rig: DiskRig = rig) -> None:
            fd = rig.disk.open("a", os.O_WRONLY)
            write_all(rig.disk, fd, b"new")
            rig.disk.faults.fail_next("sync")
            with pytest.raises(OSError, match="Input/output"):
                rig.disk.sync(fd)
            rig.disk.sync(fd)

        rig.call(change)
        assert rig.shown() == b"new"  # in the cache
        rig.disk.power_loss()
        found.add(rig.shown())
    assert found == {b"old", b"new"}


def test_a_nearly_full_disk_cuts_a_write_short_and_takes_what_replaces_bytes(rig: DiskRig) -> None:
    def write() -> None:
        disk = rig.disk
        fd = disk.open("a", CREATE)
        write_all(disk, fd, bytes(10))
        disk.faults.fill(10.0, room=5)
        with pytest.raises(OSError, match="No space"):
            write_all(disk, fd, b"x" * 20)
        assert rig.shown() == b"x" * 15
        write_all(disk, fd, b"y" * 15)
        with pytest.raises(OSError, match="No space"):
            disk.open("b", CREATE)
        disk.truncate(fd, 12)
        assert disk.free_space == 3
        disk.remove("a")
        assert disk.free_space == 15

    rig.call(write)


def test_a_full_disk_has_room_again_when_its_time_is_over(rig: DiskRig) -> None:
    def write() -> None:
        fd = rig.disk.open("a", CREATE)
        rig.disk.faults.fill(1.0)
        with pytest.raises(OSError, match="No space"):
            rig.disk.write(fd, b"content", 0)
        rig.kernel.block(1.0)
        write_all(rig.disk, fd, b"content")

    rig.call(write)


def test_a_full_disk_may_have_no_room_for_a_new_name() -> None:
    errors = set()
    for seed in SEEDS:
        rig = DiskRig(seed, has_directory=False)

        def use(rig: DiskRig = rig) -> None:
            rig.disk.faults.fill(10.0)
            while rig.disk.directory is DirectoryState.MISSING:
                errors.add(("mkdir", error_of(lambda: rig.disk.make_directory(exist_ok=False))))
            rig.disk.faults.heal()
            write_file(rig.disk)
            rig.disk.faults.fill(10.0)
            while rig.shown() is not None:
                errors.add(("rename", error_of(lambda: rig.disk.rename("a", "b"))))

        rig.call(use)
        assert rig.shown("b") == b"content"
    assert errors == {("mkdir", 0), ("mkdir", errno.ENOSPC), ("rename", 0), ("rename", errno.ENOSPC)}


def error_of(function: Callable[[], object]) -> int | None:
    try:
        function()
    except OSError as error:
        return error.errno
    return 0


def test_calls_of_some_kinds_fail_for_a_while(rig: DiskRig) -> None:
    def use() -> None:
        disk = rig.disk
        fd = write_file(disk)
        calls: dict[Call, Callable[[], object]] = {
            "stat": lambda: disk.status("a"),
            "sync": lambda: disk.sync(fd),
            "write": lambda: disk.write(fd, b"x", 0),
        }

        def failing() -> list[Call]:
            return [call for call, function in calls.items() if error_of(function) == errno.EIO]

        for call in ("stat", "write"):
            disk.faults.fail_next(cast(Call, call), and_for=1.0)
        assert [failing(), failing()] == [["stat", "write"]] * 2
        rig.kernel.block(1.0)
        assert failing() == ["stat", "write"]  # the first after that time is the last that fails
        assert failing() == []
        disk.faults.fail_next("sync", and_for=1.0)
        assert failing() == ["sync"]
        disk.faults.heal()
        assert failing() == []

    rig.call(use)


@pytest.mark.parametrize("call", ["open", "read", "write", "truncate", "rename", "remove"])
def test_the_next_call_of_a_kind_fails_and_no_other(rig: DiskRig, call: Call) -> None:
    def use() -> None:
        disk = rig.disk
        fd = write_file(disk)
        calls: dict[str, Callable[[], object]] = {
            "open": lambda: disk.open("a", os.O_RDONLY),
            "read": lambda: disk.read(fd, 1, 0),
            "write": lambda: disk.write(fd, b"x", 0),
            "truncate": lambda: disk.truncate(fd, 1),
            "rename": lambda: disk.rename("a", "b"),
            "remove": lambda: disk.remove("b"),
        }
        disk.faults.fail_next(call)
        for name, function in calls.items():
            if name == call:
                with pytest.raises(OSError, match="Input/output"):
                    function()
            function()

    rig.call(use)


@pytest.mark.parametrize(("before", "content"), [(True, b"1"), (False, b"12")])
def test_a_kill_at_the_nth_call_of_a_kind_comes_before_or_after_its_effect(
    rig: DiskRig, before: bool, content: bytes
) -> None:
    def write() -> None:
        fd = rig.disk.open("a", CREATE)
        for offset in range(5):
            rig.disk.write(fd, b"12345"[offset : offset + 1], offset)
            rig.disk.sync(fd)

    rig.run_until_killed(write, number=2, call="write", before=before)
    assert rig.shown() == content


@pytest.mark.parametrize(("before", "is_durable"), [(True, False), (False, True)])
def test_a_power_loss_after_a_sync_finds_it_done(before: bool, is_durable: bool) -> None:
    found = set()
    for seed in SEEDS:
        rig = DiskRig(seed)
        rig.call(lambda: write_file(rig.disk, b"old"))  # noqa: B023

        def write(rig: DiskRig = rig) -> None:
            fd = rig.disk.open("a", os.O_WRONLY)
            write_all(rig.disk, fd, b"new")
            rig.disk.sync(fd)
            rig.disk.write(fd, b"too late", 0)

        rig.run_until_killed(write, number=1, call="sync", before=before)
        rig.disk.power_loss()
        found.add(rig.shown())
    assert found == ({b"new"} if is_durable else {b"old", b"new"})


def test_calls_are_counted_from_the_next_rename_on(rig: DiskRig) -> None:
    def use() -> None:
        write_file(rig.disk)
        rig.disk.rename("a", "b")
        for name in "cdefg":
            rig.disk.open(name, CREATE)

    rig.run_until_killed(use, number=3, after_next="rename")
    assert sorted(rig.disk.model.shown()) == ["b", "c", "d"]


def test_a_lock_keeps_others_out_until_its_process_ends(rig: DiskRig) -> None:
    def lock() -> None:
        rig.disk.lock(rig.disk.open_directory(DIRECTORY), "exclusive")
        rig.kernel.block(None)

    process = rig.start(lock)
    rig.kernel.run(rig.kernel.now + 1.0)

    def try_again() -> None:
        fd = rig.disk.open_directory(DIRECTORY)
        with pytest.raises(BlockingIOError):
            rig.disk.lock(fd, "shared")
        rig.kernel.at(rig.kernel.now, process.kill)
        rig.kernel.block(0.1)
        rig.disk.lock(fd, "shared")
        rig.disk.lock(rig.disk.open_directory(DIRECTORY), "shared")
        with pytest.raises(BlockingIOError):
            rig.disk.lock(fd, "exclusive")

    rig.call(try_again)


def test_a_slow_disk_takes_longer(rig: DiskRig) -> None:
    def sync() -> float:
        fd = rig.disk.open("a", CREATE)
        before = rig.kernel.now
        for _ in range(10):
            rig.disk.sync(fd)
        return rig.kernel.now - before

    def sync_slowly() -> float:
        rig.disk.remove("a")
        rig.disk.faults.slow_down(60.0, factor=5.0)
        return sync()

    assert rig.call(sync) < 0.1 < rig.call(sync_slowly)


def test_the_same_seed_does_the_same() -> None:
    def digest(seed: int) -> tuple[int, bytes | None]:
        rig = DiskRig(seed)

        def write() -> None:
            fd = write_file(rig.disk)
            for offset in range(200):
                rig.disk.write(fd, b"some more bytes", 512 * offset)

        rig.call(write)
        rig.disk.power_loss()
        return rig.kernel.digest, rig.shown()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)
