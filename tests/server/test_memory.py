"""How much there is."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from statestored import memory
from statestored.memory import available


def test_a_container_has_what_it_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP", limit)
    whole = available()
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for said, expected in ((f"{2**20}\n", 2**20), ("max\n", whole), (f"{whole * 2}\n", whole)):
        limit.write_text(said)
        assert available() == expected


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
