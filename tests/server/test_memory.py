"""How much memory there is, and how it goes back to the system."""

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from statestored.memory import Available, available
from tests.cgroups import Group

MACHINE = Available(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the machine's memory")
UNLIMITED = {1: "9223372036854771712", 2: "max"}  # what a group says that has no limit
LIMITS = {1: "memory.limit_in_bytes", 2: "memory.max"}
MIB = 2**20

# Of a container of Docker, a pod, and a machine; "{}" is where it is mounted.
V1 = "35 31 0:32 {root} {mount} rw,nosuid - cgroup cgroup rw,memory"
V2 = "41 31 0:38 {root} {mount} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
OTHERS = (
    "22 1 0:21 / / rw - overlay overlay rw,lowerdir=/a",
    "23 22 0:22 / /proc rw - proc proc rw",
    "24 22 0:23 / /mnt rw -  tmpfs  rw",  # without a source
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
)


class Groups:
    """Made-up hierarchies of control groups, and what the process is told about them."""

    def __init__(self, path: Path) -> None:
        self.own_groups = path / "cgroup"
        self.mounts = path / "mountinfo"
        self._path = path
        self.own_groups.write_text("")
        self.mounts.write_text("\n".join(OTHERS) + "\n")

    def mount(self, line: str, root: str = "/", name: str = "memory") -> Path:
        """Returns where the hierarchy is mounted, which begins with its group `root`."""
        path = self._path / name
        path.mkdir()
        with self.mounts.open("a") as file:
            file.write(line.format(root=root, mount=str(path).replace(" ", "\\040")) + "\n")
        return path

    def be_in(self, *lines: str) -> None:
        self.own_groups.write_text("".join(f"{line}\n" for line in lines))

    def available(self) -> Available:
        return available(self.own_groups, self.mounts)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """The process that asks has no limits of its own, whatever the tests were started with."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return Groups(tmp_path)


def limit(group: Path, said: object, name: str = LIMITS[1]) -> Available:
    """What is available if this limit is the lowest."""
    group.mkdir(parents=True, exist_ok=True)
    (group / name).write_text(f"{said}\n")
    return Available(int(str(said)), str(group / name)) if str(said).isdigit() else MACHINE


def test_without_groups_it_is_the_machine_s(groups: Groups) -> None:
    assert groups.available() == MACHINE
    groups.own_groups.unlink()
    groups.mounts.unlink()
    assert groups.available() == MACHINE


@pytest.mark.parametrize(("version", "line", "own"), [(1, V1, "4:memory:{}"), (2, V2, "0::{}")])
@pytest.mark.parametrize(
    ("root", "group"),
    [
        ("/", "/"),  # in a namespace of its own, as a container mostly is
        ("/docker/abc", "/docker/abc"),  # seen by the machine's path, and all of it is the own group
        ("/docker/abc", "/"),
        ("/", "/../../docker/abc"),  # what is outside of its namespace
    ],
)
def test_a_container_has_what_it_may_use(
    groups: Groups, version: int, line: str, own: str, root: str, group: str
) -> None:
    path = groups.mount(line, root)
    groups.be_in("9:name=systemd:/other", own.format(group), "2:cpu,cpuacct:/another")
    for said in (MIB, UNLIMITED[version], MACHINE.size // 2, MACHINE.size * 2):
        expected = limit(path, said, LIMITS[version])
        assert groups.available() == min(MACHINE, expected, key=lambda found: found.size)


@pytest.mark.parametrize(("version", "line", "own"), [(1, V1, "4:hugetlb,memory:{}"), (2, V2, "0::{}")])
@pytest.mark.parametrize("root", ["/", "/kubepods"])
def test_a_unit_has_what_it_and_the_groups_around_it_may_use(
    groups: Groups, version: int, line: str, own: str, root: str
) -> None:
    """As systemd's MemoryMax= or a pod's limit says."""
    path = groups.mount(line, root, name="with a space")
    groups.be_in(own.format("/kubepods/pod/container"))
    pod = path / ("kubepods/pod" if root == "/" else "pod")
    name = LIMITS[version]
    limit(pod / "container", UNLIMITED[version], name)
    assert limit(pod, 9 * MIB, name) == groups.available()
    assert limit(pod / "container", 5 * MIB, name) == groups.available()
    assert limit(pod.parent, 4 * MIB, name) == groups.available()
    limit(pod / "container" / "within", MIB, name)
    assert groups.available().size == 4 * MIB


def test_in_version_1_a_group_may_be_without_the_limits_around_it(groups: Groups) -> None:
    path = groups.mount(V1)
    groups.be_in("4:memory:/outer/middle/own")
    middle = path / "outer" / "middle"
    own, around = limit(middle / "own", 9 * MIB), limit(middle, 8 * MIB)
    (middle / "memory.use_hierarchy").write_text("1\n")
    outer = limit(middle.parent, 7 * MIB)
    assert groups.available() == outer
    (middle.parent / "memory.use_hierarchy").write_text("0\n")
    assert groups.available() == around
    (middle / "memory.use_hierarchy").write_text("0\n")
    assert groups.available() == own


def test_above_which_all_is_slowed_down_is_a_limit_too(groups: Groups) -> None:
    """As systemd's MemoryHigh= says."""
    path = groups.mount(V2)
    groups.be_in("0::/unit")
    limit(path / "unit", 9 * MIB, "memory.max")
    assert limit(path / "unit", 5 * MIB, "memory.high") == groups.available()


def test_both_versions_side_by_side(groups: Groups) -> None:
    """A machine of both has the limits of memory in one of them."""
    first, second = groups.mount(V1, name="first"), groups.mount(V2, name="second")
    groups.be_in("4:memory:/a", "1:name=systemd:/b", "0::/b")
    (second / "b").mkdir()
    assert limit(first / "a", 9 * MIB) == groups.available()
    assert limit(second / "b", 5 * MIB, "memory.max") == groups.available()


@pytest.mark.parametrize("own", ["/gone", "/gone/too"])
def test_if_the_own_group_cannot_be_seen_those_around_it_count(groups: Groups, own: str) -> None:
    path = groups.mount(V1)
    groups.be_in(f"4:memory:{own}")
    assert limit(path, MIB) == groups.available()


@pytest.mark.parametrize("said", ["", "?", "-", "12 MiB", "0"])
def test_a_limit_that_is_no_number_is_none(groups: Groups, said: str) -> None:
    limit(groups.mount(V1), said)
    groups.be_in("4:memory:/")
    assert groups.available() == MACHINE


def test_lines_of_another_form_are_passed_over(groups: Groups) -> None:
    groups.mount("short line - ")
    path = groups.mount(V1, name="other")
    groups.be_in("no colons", "4:memory:/")
    assert limit(path, MIB) == groups.available()


@pytest.mark.parametrize(("name", "which"), [("ulimit -v", resource.RLIMIT_AS), ("ulimit -d", resource.RLIMIT_DATA)])
def test_a_process_may_have_a_limit_of_its_own(name: str, which: int) -> None:
    def restrict() -> None:
        resource.setrlimit(which, (2**32, 2**32))

    assert asked(preexec_fn=restrict) == min(Available(2**32, name), available(), key=lambda found: found.size)


def test_a_real_group_is_found() -> None:
    """The machine's own hierarchy is used, of the version that it has."""
    with Group(limit=64 * MIB) as outer, Group(within=outer) as group:
        found = asked(preexec_fn=group.join)
        assert found.size == 64 * MIB
        assert Path(found.source).parent == outer.path
        group.limit(48 * MIB)
        assert asked(preexec_fn=group.join).size == 48 * MIB


def asked(preexec_fn: Callable[[], None]) -> Available:
    """What a process of its own finds."""
    script = "from statestored.memory import available; found = available(); print(found.size, found.source)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=preexec_fn,  # it does nothing that could wait
    )
    size, source = done.stdout.rstrip().split(" ", 1)
    return Available(int(size), source)


SCRIPT = """
import os
from statestored.memory import give_back_large_blocks

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

{call}
b"x" * 900_000  # the first one to be freed
before, blocks, between = resident(), [], []
for _ in range(100):
    blocks.append(b"x" * 500_000)
    between.append(b"x" * 20_000)  # stays, where it may be in the way of others
blocks.clear()
print(resident() - before)
"""


def kept_after(call: str) -> int:
    command = [sys.executable, "-c", SCRIPT.format(call=call)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_large_blocks_go_back_to_the_system() -> None:
    """A budget for buffers is of little use where they stay ours when they are freed."""
    assert kept_after("give_back_large_blocks()") < 5_000_000
    if platform.libc_ver()[0] == "glibc":
        assert kept_after("") > 20_000_000
