"""D1: with `everysec` the disk is about a second behind, also while segments are exchanged and a snapshot is made."""

import time
from collections import defaultdict
from pathlib import Path
from signal import SIGUSR1

import pytest

from tests.daemon import Daemon
from tests.faults.strace import Call, Strace
from tests.faults.sweep import SMALL_SEGMENTS, all_files
from tests.faults.workload import Workload, is_marked
from tests.server.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

PROMISED = 1.0  # seconds from a write to the beginning of the sync that it is in
SLACK = 1.5  # seconds: for the sync before that one, and for a machine that has other things to do
WRITES_FOR = 2 * (PROMISED + SLACK)  # seconds
MARK = 48  # bytes: a batch that holds nothing


def test_each_batch_is_in_a_sync_that_begins_within_a_second(tmp_path: Path) -> None:
    daemon, workload = Daemon(tmp_path, "--fsync=everysec"), Workload()
    strace = Strace(tmp_path / "trace", all_files(daemon.data_dir), calls="pwrite64,fdatasync")
    daemon.program, daemon.wrapper = SMALL_SEGMENTS, strace.command()
    with daemon.start():
        workload.connect(daemon.unix_address)
        write_for(WRITES_FOR, workload)
        daemon.send_signal(SIGUSR1)
        write_for(WRITES_FOR, workload)
        wait_until(lambda: is_marked(daemon.data_dir))
        workload.close()
        daemon.stop()
    assert "snapshot written" in daemon.log()
    written, synced = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for call in strace.trace().calls:
        file = call.path.name.removesuffix(".tmp")
        if call.name == "fdatasync":
            synced[file].append(call.time)
        elif file.endswith(".journal") and size(call) > MARK:
            written[file].append(call.time)
    assert len(written) > 2, "segments"
    waited = [next(sync for sync in synced[file] if sync > at) - at for file in written for at in written[file]]
    assert len(waited) > 100
    assert max(waited) < PROMISED + SLACK
    assert max(waited) > PROMISED / 2, "otherwise this would not have shown how late a sync may be"


def write_for(seconds: float, workload: Workload) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        workload.write(workload.set("ann"))
        time.sleep(0.002)  # steadily, and not as fast as it goes


def size(write: Call) -> int:
    return int(write.arguments.split(", ")[-2])
