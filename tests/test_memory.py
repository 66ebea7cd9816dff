"""What the daemon takes, as the system sees it, is about what it says that its states take; also after a start.

States that were dropped take nothing, in whatever way: replaced, removed or cleared, now or in the journal of a start.
"""

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cgroups import Group
from tests.daemon import STATESTORED, Daemon
from tests.server.rpc import RawClient, code_of, request
from tests.server.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is looked up in /proc")

MIB = 2**20
AT_ONCE = 1000  # requests
# Besides what the states take: buffers, and what is between objects that stay. A state dropped and kept took 250 bytes.
SPARE = 10 * MIB

# What is loaded comes from the journal, unless a snapshot is asked for.
FLAGS = ("--fsync=never", "--allow-clear", "--snapshot-interval=0", "--snapshot-journal-size=0")

Set = tuple[str, str, str]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, *FLAGS) as daemon:
        yield daemon


def resident(daemon: Daemon) -> int:
    """Bytes of memory."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def send(daemon: Daemon, sets: list[Set]) -> str:
    """Pipelined. Returns the code of the first error, or nothing."""
    with RawClient(daemon.address) as client:
        for start in range(0, len(sets), AT_ONCE):
            some = sets[start : start + AT_ONCE]
            client.send(*(request(number, "set", *each) for number, each in enumerate(some)))
            errors = [error for _, _, error, _ in (client.next() for _ in some) if error is not None]
            if errors:
                return code_of(errors[0])
    return ""


def info(daemon: Daemon) -> dict[str, int]:
    with RawClient(daemon.address) as client:
        found: dict[str, int] = client.ask("info")
        return found


def clear(daemon: Daemon) -> None:
    with RawClient(daemon.address) as client:
        client.ask("clear")


def empty_free_lists(daemon: Daemon) -> None:
    """Have the interpreter give back the freed objects that it keeps: it does so after a `clear`."""
    with RawClient(daemon.address) as client:
        client.ask("hello", {"namespace": "another"})
        client.ask("set", "lists", "ann@example.com", "POSTING")
        client.ask("clear")


def changes(count: int, senders: int) -> list[Set]:
    """Each to a state of its own."""
    return [("lists", f"sender{number % senders}@example.com", f"STATE-{number}") for number in range(count)]


def own_states(count: int, of: str) -> list[Set]:
    return [("lists", f"sender{number}@example.com", f"{of}-{number}") for number in range(count)]


def test_states_that_were_replaced(daemon: Daemon) -> None:
    """While it runs, and after a start that replays them all."""
    empty = resident(daemon)
    assert send(daemon, changes(200_000, senders=1000)) == ""
    said = info(daemon)["memory"]
    assert said < MIB
    assert resident(daemon) < empty + said + SPARE
    for _ in range(2):
        daemon.kill()
        daemon.start()
        assert info(daemon)["memory"] == said
        assert resident(daemon) < empty + said + SPARE


def test_states_that_are_replaced_while_the_store_grows(daemon: Daemon) -> None:
    """What a full bucket's split keeps away from the collector is freed without it."""
    empty = resident(daemon)
    new = [("lists", f"sender{number}@example.com", "POSTING") for number in range(100_000)]
    mixed = [each for pair in zip(new, changes(100_000, senders=50), strict=True) for each in pair]
    assert send(daemon, mixed) == ""
    assert resident(daemon) < empty + info(daemon)["memory"] + SPARE


def test_states_that_were_cleared(daemon: Daemon) -> None:
    empty = resident(daemon)
    for number in range(4):
        assert send(daemon, own_states(50_000, of=f"{number}")) == ""
        said = info(daemon)["memory"]
        assert resident(daemon) < empty + said + SPARE
        clear(daemon)
        assert info(daemon)["memory"] == 0
    wait_until(lambda: resident(daemon) < empty + said // 2 + SPARE)
    daemon.kill()
    daemon.start()
    # Of four times as much, which the journal had, 6 to 10 MiB stay: whole blocks, as a few objects in each are needed.
    assert said > SPARE
    assert resident(daemon) < empty + said


def test_entries_that_were_removed(daemon: Daemon) -> None:
    """A dict would keep its size: 61 to 75 % of what they took, instead of 8 to 38 %.

    How much stays besides depends on which blocks of memory the last requests happened to use.
    """
    empty = resident(daemon)
    senders = [str(number) for number in range(200_000)]  # short, and so many that the dicts take most of the memory
    assert send(daemon, [("lists", sender, "POSTING") for sender in senders]) == ""
    full = resident(daemon)
    assert send(daemon, [("lists", sender, "START") for sender in senders]) == ""
    empty_free_lists(daemon)
    assert resident(daemon) - empty < (full - empty) * 0.5


def test_a_start_takes_no_more_than_what_it_has_loaded(daemon: Daemon) -> None:
    """A journal, all of which is copied, or a snapshot."""
    assert send(daemon, own_states(100_000, of="OWN")) == ""
    said, before = info(daemon)["memory"], resident(daemon)
    daemon.kill()
    daemon.start()
    assert resident(daemon) < before + SPARE / 4
    daemon.send_signal(signal.SIGUSR1)
    wait_until(lambda: "snapshot written" in daemon.log())
    daemon.kill()
    daemon.start()
    assert info(daemon)["memory"] == said
    assert resident(daemon) < before + SPARE / 4


def test_in_a_container_it_is_full_before_it_is_killed(tmp_path: Path) -> None:
    """It finds the limit of its control group, of whichever version, and starts again with all that it took."""
    with Group(limit=160 * MIB) as group, Daemon(tmp_path, *FLAGS) as daemon:
        daemon.kill()
        daemon.program = ("sh", "-c", f'echo $$ > {group.path}/cgroup.procs && exec "$@"', "sh", *STATESTORED)
        daemon.start()
        assert info(daemon)["max_memory"] == 80 * MIB
        line = f'max_memory={80 * MIB} source="half of {group.path}/memory.'
        wait_until(lambda: line in daemon.log())
        assert send(daemon, own_states(600_000, of="OWN")) == "full"
        entries = info(daemon)["entries"]
        assert entries > 100_000
        daemon.kill()
        daemon.start()
        assert info(daemon)["entries"] == entries
        assert send(daemon, [("lists", "one more", "OF ITS OWN")]) == "full"
