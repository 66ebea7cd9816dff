"""What reads bytes that others wrote: a little of `python -m tests.fuzz`, and whether that would notice.

`make torture` has many more inputs.
"""

import gc
import mmap
import re
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from itertools import repeat
from random import Random
from types import FunctionType, ModuleType
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statestored import intake
from statestored.datadir import IDENTITY
from statestored.errors import DamagedFile
from statestored.framing import HEADER_SIZE
from statestored.responses import Responses
from tests.fuzz import __main__ as command
from tests.fuzz import driver
from tests.fuzz.connections import connection_messages
from tests.fuzz.crafted import IDENTITY_FILE, origin_of, segment_header, snapshot_of, with_snapshot
from tests.fuzz.driver import Run, fuzz
from tests.fuzz.guided import fuzz_guided
from tests.fuzz.stores import Thorough, look_at_files
from tests.fuzz.targets import TARGETS
from tests.server.journals import without_syncs
from tests.server.models import TODAY

inputs = st.one_of(st.binary(max_size=64), st.binary(min_size=64, max_size=500))


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_of_other_tests() -> None:
    """Engines that broke on purpose leave files open, and a start has frozen them: the fuzzers would be blamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.unfreeze()
        gc.collect()


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_wrong(name: str) -> None:
    with without_syncs():
        _try(name)


def _try(name: str) -> None:
    @settings(suppress_health_check=list(HealthCheck))
    @given(inputs)
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


# What was found

HELD, BUCKET = [[(b"lists", b"CONFIRMING", TODAY)]], (b"default", 0, 0)  # what is held; namespace, start, depth


def refused(files: dict[str, bytes]) -> None:
    """By a start, by check, and by a repair or what it makes of it; none of them needs much memory."""
    tracemalloc.start()
    try:
        started, _ = look_at_files(files, Thorough.REPAIR)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    assert isinstance(started.refusal, DamagedFile)


def test_a_snapshot_like_those_below_is_read() -> None:
    started, _ = look_at_files(with_snapshot(snapshot_of((*BUCKET, HELD, [b"ann"], [0]))), Thorough.REPAIR)
    assert started.states == {b"default": {(b"lists", b"ann"): (b"CONFIRMING", TODAY)}}


@pytest.mark.parametrize("depth", [19, 31, 33, 2**32, -1, 1.5, None])
def test_no_bucket_takes_all_memory(depth: object) -> None:
    refused(with_snapshot(snapshot_of((b"default", 0, depth, HELD, [b"ann"], [0]))))


@pytest.mark.parametrize(
    ("held", "senders"),
    [
        ([[(5, b"A", TODAY)]], [b"ann"]),
        ([[(b"lists", None, TODAY)]], [b"ann"]),
        ([[(b"lists", b"START", TODAY)]], [b"ann"]),
        ([[(b"lists", b"A", "today")]], [b"ann"]),
        (HELD, [0]),
        (HELD, [False]),
    ],
)
def test_what_no_client_could_have_stored_is_not_served(held: object, senders: object) -> None:
    refused(with_snapshot(snapshot_of((*BUCKET, held, senders, [0]))))


@pytest.mark.parametrize("footer", [{"entries": {}}, {"blocks": "1"}, {"last": (None, 1)}])
def test_a_footer_without_numbers(footer: dict[str, object]) -> None:
    refused(with_snapshot(snapshot_of((*BUCKET, HELD, [b"ann"], [0]), **footer)))


def test_a_block_of_a_time_that_no_calendar_has() -> None:
    """It is the day of nothing: the states are those that were written, and check has to say something."""
    files = with_snapshot(snapshot_of((*BUCKET, HELD, [b"ann"], [0]), time=2**63))
    started, _ = look_at_files(files, Thorough.REPAIR)
    assert started.states is not None


@pytest.mark.parametrize(
    "origin",
    [{"previous": b"0"}, {"previous": 1, "previous_end": None}, {"durable": {}}, {"after": (0,)}, {"epoch": "1"}],
)
def test_a_segment_whose_header_makes_no_sense(origin: dict[str, object]) -> None:
    refused({IDENTITY: IDENTITY_FILE, "00000001.journal": segment_header(origin_of(1, **origin))})


@pytest.mark.timeout(20)
def test_a_segment_that_names_itself_as_the_one_before_it() -> None:
    refused({IDENTITY: IDENTITY_FILE, "00000001.journal": segment_header(origin_of(1, previous=1))})


def test_a_damaged_header_makes_nobody_ask_for_gigabytes() -> None:
    """Without the file's id any bytes could be the head of a block, with a length to match."""
    snapshot = bytearray(snapshot_of((*BUCKET, HELD, [b"ann"], [0])))
    snapshot[100] ^= 1
    snapshot[HEADER_SIZE:HEADER_SIZE] = bytes(4) + (2).to_bytes(4, "little") + b"\xff" * 40
    refused(with_snapshot(bytes(snapshot)))


# Whether the driver notices


def test_a_failure_is_noticed_and_those_of_a_kind_count_once() -> None:
    def target(data: bytes) -> None:
        assert data != b"bad"
        if data == b"worse":
            raise KeyError(data)

    run = fuzz(target, iter([b"bad", b"good", b"worse", b"bad"]), 4, print)
    assert run.inputs == 4
    assert [(fault.kind.partition(" ")[0], fault.data) for fault in run.faults.values()] == [
        ("AssertionError", b"bad"),
        ("KeyError", b"worse"),
    ]


def test_what_takes_too_long_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MAX_SECONDS", 0.01)

    def target(_data: bytes) -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    assert set(fuzz(target, repeat(b""), 1, print).faults) == {"slow"}


def test_what_never_ends_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "STUCK", 0.02)

    def target(_data: bytes) -> None:
        while True:
            try:
                time.sleep(1)
            except Exception:  # nobody stops us
                continue

    assert [fault.kind.partition(" ")[0] for fault in fuzz(target, repeat(b""), 1, print).faults.values()] == ["Stuck"]


@pytest.mark.parametrize(
    ("sizes", "grown"), [([100, 50, 90, 40, 70, 90, 50, 90], -40), ([50, 50, 50, 90, 95, 100, 110, 101], 11)]
)
def test_memory_that_is_not_given_back_is_noticed(
    sizes: list[int], grown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process's memory goes up and down; MiB."""
    monkeypatch.setattr(driver, "LEAST_BETWEEN", 1)
    left = iter(sizes)
    monkeypatch.setattr(driver, "resident", lambda: next(left) * 2**20)
    run = fuzz(lambda _: None, repeat(b""), len(sizes), print)
    assert run.grown == grown * 2**20
    assert set(run.faults) == ({"memory"} if grown > 10 else set())


def test_resident_is_the_memory_of_this_process() -> None:
    before = driver.resident()
    kept = mmap.mmap(-1, 2**25)
    kept.write(b"x" * 2**25)
    assert driver.resident() - before > 2**24
    kept.close()


# Whether the targets notice


def fails(name: str, *, inputs: int = 60) -> Run:
    return fuzz(TARGETS[name], driver.at_random(Random(1)), inputs, print)


def test_a_wrong_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "get", lambda _caller, _module, _sender: b"\xa1X")
    assert fails("connection_messages").faults


def test_an_answer_that_does_not_come_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Responses, "refuse", lambda *_: None)
    assert fails("connection_messages").faults


def test_the_command_says_what_failed_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(intake, "get", lambda _caller, _module, _sender: b"\xa1X")
    assert command.main(["connection_messages", "--inputs", "60", "--seed", "1"]) == 1
    output = capsys.readouterr().out
    assert "\nFAILED: " in output
    replay = output.partition("again: python -m tests.fuzz connection_messages --replay ")[2].split()[0]
    with pytest.raises(AssertionError):
        connection_messages(bytes.fromhex(replay))


# The guided one


class Finished(Exception):
    """In place of the end of the process."""


class Atheris(ModuleType):
    """It has no ideas of its own."""

    def __init__(self) -> None:
        super().__init__("atheris")
        self.watched: list[FunctionType] = []

    def instrument_func(self, function: FunctionType) -> None:
        self.watched.append(function)

    def Setup(self, arguments: list[str], one: Callable[[bytes], None]) -> None:  # noqa: N802
        self.arguments, self._one = arguments, one

    def Fuzz(self) -> None:  # noqa: N802
        for data in map(bytes, range(10)):
            self._one(data)


def test_the_guided_one_watches_our_code_and_tries_so_many_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    atheris, tried = Atheris(), list[bytes]()
    monkeypatch.setitem(sys.modules, "atheris", atheris)

    def finish(run: Run) -> NoReturn:
        raise Finished(run.inputs)

    with pytest.raises(Finished, match=r"^5$"):
        fuzz_guided(tried.append, 5, 7, print, finish)
    assert tried == [b"", *map(bytes, range(5))]  # the first so that all is loaded
    assert "-seed=8" in atheris.arguments
    assert intake.Intake._execute in atheris.watched
    assert {each.__module__.partition(".")[0] for each in atheris.watched} == {"statestored", "statestore"}


def test_without_atheris_the_guided_one_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    monkeypatch.setattr(command.resource, "setrlimit", lambda *_: None)
    with pytest.raises(SystemExit, match=re.escape("pip install '.[fuzz]'")):
        command.main(["client_bytes", "--guided"])


@pytest.mark.parametrize("failing", [None, "client_bytes", "snapshot_content"])
def test_the_guided_one_has_a_process_for_each_target(monkeypatch: pytest.MonkeyPatch, failing: str | None) -> None:
    started: list[list[str]] = []

    def run(arguments: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        started.append(arguments[3:])
        return subprocess.CompletedProcess(arguments, int(failing in arguments))

    monkeypatch.setattr(command.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(command.subprocess, "run", run)
    assert command.main(["--guided", "--inputs", "3", "--seed", "1"]) == int(failing is not None)
    assert started == [[name, "--guided", "--inputs=3", "--seed=1"] for name in TARGETS]
