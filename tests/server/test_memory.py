"""How much there is."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from statestored import memory
from statestored.memory import available

WHOLE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The root of the control groups; ours is the root itself, as in a container."""
    own = tmp_path / "cgroup"
    own.write_text("0::/\n")
    monkeypatch.setattr(memory, "OWN_CGROUP", own)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    memory.CGROUPS.mkdir()
    return memory.CGROUPS


def test_a_container_has_what_it_may_use(groups: Path) -> None:
    assert available() == WHOLE
    for said, expected in ((f"{2**20}\n", 2**20), ("max\n", WHOLE), (f"{WHOLE * 2}\n", WHOLE)):
        (groups / "memory.max").write_text(said)
        assert available() == expected


def test_a_unit_has_what_it_and_the_groups_around_it_may_use(groups: Path) -> None:
    """As systemd's MemoryMax= says."""
    slice_ = groups / "system.slice"
    unit = slice_ / "statestored.service"
    unit.mkdir(parents=True)
    memory.OWN_CGROUP.write_text("1:name=systemd:/other\n0::/system.slice/statestored.service\n")
    for group, said, expected in ((unit, "max", WHOLE), (slice_, f"{2**22}", 2**22), (unit, f"{2**21}", 2**21)):
        (group / "memory.max").write_text(f"{said}\n")
        assert available() == expected
    (slice_ / "memory.max").write_text(f"{2**20}\n")
    assert available() == 2**20


@pytest.mark.parametrize("said", ["", "0::/gone\n", "0::/../../outside\n", "7:memory:/of-version-1\n", None])
def test_where_the_own_group_cannot_be_seen_the_root_counts(groups: Path, said: str | None) -> None:
    (groups / "memory.max").write_text(f"{2**20}\n")
    memory.OWN_CGROUP.unlink() if said is None else memory.OWN_CGROUP.write_text(said)
    assert available() == 2**20


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
