"""The reader of what the daemon and its commands print may stop reading, go away, or never have been there."""

import itertools
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from statestored.errors import Exit
from statestored.queued_output import MAX_QUEUED_LINES
from tests.daemon import STATESTORED, Daemon
from tests.server.rpc import RawClient
from tests.server.waiting import PATIENCE, wait_until

ANN = ("lists", "ann@a.example")
STOPS_WITHIN = 5.0  # seconds


class Pipe:
    """The reader of a stream, which may stop reading, and go."""

    def __init__(self, reader: int, writer: int) -> None:
        self.reader, self.writer = reader, writer
        self.read = b""

    def fill(self) -> None:
        """Leave no room for a single byte."""
        # Opened once more: O_NONBLOCK is to be ours only, and not the daemon's.
        fd = os.open(f"/proc/self/fd/{self.writer}", os.O_WRONLY | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(fd, b"\n")
        os.close(fd)

    def read_until(self, expected: str) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE
        while (match := re.search(expected, self.read.decode())) is None:
            readable, _, _ = select.select([self.reader], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"there is no {expected} in {self.read[-1000:].decode()}"
            self.read += os.read(self.reader, 2**16)
        return match

    def close(self) -> None:
        for fd in (self.reader, self.writer):
            with suppress(OSError):
                os.close(fd)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def pipe(stack: ExitStack) -> Pipe:
    return stack.enter_context(closing(Pipe(*os.pipe())))


@pytest.fixture
def make(tmp_path: Path, stack: ExitStack) -> Callable[..., Daemon]:
    def make(*arguments: str, **environment: str) -> Daemon:
        daemon = Daemon(tmp_path, "--allow-clear", *arguments, environment=environment)
        stack.callback(daemon.close)
        return daemon

    return make


Make = Callable[..., Daemon]


def wait_until_served(daemon: Daemon) -> None:
    """Without a word of the daemon's."""
    daemon.launch()

    def answers() -> bool:
        assert daemon.process is not None
        assert daemon.process.poll() is None, "it has ended"
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(daemon.unix_address.removeprefix("unix:")) == 0

    wait_until(answers)


def cause_lines(daemon: Daemon, lines: int) -> None:
    """Each `clear` is a line in the log."""
    with RawClient(daemon.unix_address) as client:
        for number in range(lines):
            client.ask("clear")
            if number % 100 == 0:
                client.ask("set", *ANN, str(number))
                assert client.ask("get", *ANN) == str(number)


def dropped_lines(daemon: Daemon) -> int:
    with urllib.request.urlopen(f"{daemon.admin}/metrics", timeout=10) as response:
        text = response.read().decode()
    return int(float(re.findall(r"^statestored_log_lines_dropped_total (\S+)$", text, re.M)[0]))


def lose_the_directory(daemon: Daemon) -> None:
    """It has something to write, and finds that it cannot."""
    shutil.rmtree(daemon.data_dir)
    daemon.send_signal(signal.SIGUSR1)


def stop(daemon: Daemon) -> int:
    started = time.monotonic()
    code = daemon.stop()
    assert time.monotonic() - started < STOPS_WITHIN
    return code


# A log that nobody reads


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_full_pipe_holds_up_nobody_and_what_is_missing_is_reported(make: Make, pipe: Pipe, format_: str) -> None:
    daemon = make(f"--log-format={format_}")
    daemon.stderr = pipe.writer
    daemon.start()
    pipe.read_until(r"ready")
    pipe.fill()
    cause_lines(daemon, MAX_QUEUED_LINES + 500)
    dropped = dropped_lines(daemon)
    assert 500 - 1 <= dropped <= 500  # the thread has one more line in its hand
    line = pipe.read_until(r".*log lines dropped.*\n")[0]
    assert f"lines={dropped}\n" in line or json.loads(line)["lines"] == dropped
    told = pipe.read.decode().count("all states of a namespace were forgotten")
    assert told + dropped == MAX_QUEUED_LINES + 500
    cause_lines(daemon, 1)
    pipe.read_until("log lines dropped(.|\n)*all states of a namespace were forgotten")
    assert dropped_lines(daemon) == dropped
    assert stop(daemon) == Exit.STOPPED
    pipe.read_until("stopped")


def test_a_daemon_with_a_full_pipe_ends_when_it_is_asked_to(make: Make, pipe: Pipe) -> None:
    daemon = make()
    daemon.stderr = pipe.writer
    daemon.start()
    pipe.fill()
    assert stop(daemon) == Exit.STOPPED


def test_a_daemon_starts_on_a_full_pipe(make: Make, pipe: Pipe) -> None:
    pipe.fill()
    daemon = make(STATESTORED_LISTENS="x")
    daemon.stderr = pipe.writer
    daemon.start()
    cause_lines(daemon, 10)
    pipe.read_until("all states of a namespace were forgotten")
    assert stop(daemon) == Exit.STOPPED
    assert b"variable=STATESTORED_LISTENS" in pipe.read


def test_a_reader_that_has_gone_is_no_fault_of_the_daemons(make: Make, pipe: Pipe) -> None:
    daemon = make()
    daemon.stderr = pipe.writer
    daemon.start()
    pipe.read_until("ready")
    pipe.close()
    cause_lines(daemon, 5)
    wait_until(lambda: dropped_lines(daemon) == 5)
    assert stop(daemon) == Exit.STOPPED


def test_a_log_on_a_full_disk_is_no_fault_of_the_disk_with_the_states(make: Make) -> None:
    with open("/dev/full", "wb") as full:
        daemon = make()
        daemon.stderr = full.fileno()
        daemon.start()
    cause_lines(daemon, 5)
    wait_until(lambda: dropped_lines(daemon) > 5)
    assert stop(daemon) == Exit.STOPPED


def test_a_terminal_may_be_stopped(make: Make, stack: ExitStack) -> None:
    """Ctrl-S: writes to it wait until there is a Ctrl-Q."""
    terminal = stack.enter_context(closing(Pipe(*pty.openpty())))
    daemon = make()
    daemon.stderr = terminal.writer
    daemon.start()
    terminal.read_until("ready")
    os.write(terminal.reader, b"\x13")
    cause_lines(daemon, 2 * MAX_QUEUED_LINES)
    os.write(terminal.reader, b"\x11")
    terminal.read_until("log lines dropped")
    assert stop(daemon) == Exit.STOPPED


def test_a_failed_disk_ends_it_also_with_a_full_pipe(make: Make, pipe: Pipe) -> None:
    daemon = make()
    daemon.stderr = pipe.writer
    daemon.start()
    cause_lines(daemon, 1)
    pipe.fill()
    lose_the_directory(daemon)
    assert daemon.wait() == Exit.DISK_FAILED


def test_the_last_words_of_a_daemon_are_heard(make: Make, pipe: Pipe) -> None:
    """A reader that is slow, but there, gets all of them."""
    daemon = make()
    daemon.stderr = pipe.writer
    daemon.start()
    cause_lines(daemon, 200)
    lose_the_directory(daemon)
    pipe.read_until("ended by a failure")
    assert daemon.wait() == Exit.DISK_FAILED
    assert pipe.read.decode().count("all states of a namespace were forgotten") == 200


def test_a_start_that_fails_does_so_also_with_a_full_pipe(tmp_path: Path, pipe: Pipe) -> None:
    pipe.fill()
    command = [*STATESTORED, f"--data-dir={tmp_path}", "--tokens", str(tmp_path / "none")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=pipe.writer, timeout=STOPS_WITHIN, check=False)
    assert (done.returncode, done.stdout) == (Exit.CANNOT_START, b"")


def test_nobody_need_read_where_it_listens(make: Make, pipe: Pipe) -> None:
    pipe.fill()
    daemon = make()
    daemon.stdout = pipe.writer
    wait_until_served(daemon)
    cause_lines(daemon, 1)
    pipe.read_until(r"data directory (.|\n)*admin on (.|\n)*listening on unix:")
    assert stop(daemon) == Exit.STOPPED


# Streams that are closed

CLOSED = [closed for count in (1, 2, 3) for closed in itertools.combinations(("<&-", ">&-", "2>&-"), count)]


def without(closed: tuple[str, ...]) -> tuple[str, ...]:
    """The command, run with these standard descriptors closed."""
    return ("/bin/sh", "-c", f'exec "$@" {" ".join(closed)}', "sh", *STATESTORED)


@pytest.mark.parametrize("closed", CLOSED, ids="".join)
def test_a_daemon_needs_no_standard_descriptor(make: Make, closed: tuple[str, ...]) -> None:
    """A file or a socket that became one of them would be written to with the next thing that is printed."""
    daemon = make()
    daemon.program = without(closed)
    wait_until_served(daemon)
    assert daemon.process is not None
    names = [os.readlink(f"/proc/{daemon.process.pid}/fd/{fd}") for fd in range(3)]
    assert [names[("<&-", ">&-", "2>&-").index(each)] for each in closed] == ["/dev/null"] * len(closed)
    cause_lines(daemon, 3)
    daemon.send_signal(signal.SIGUSR1)
    with RawClient(daemon.unix_address) as client:
        client.ask("set", *ANN, "CONFIRMING")
    assert stop(daemon) == Exit.STOPPED
    found = b"".join(path.read_bytes() for path in daemon.data_dir.iterdir())
    assert b"event=" not in found
    assert b"listening" not in found
    assert run("check", daemon.data_dir).returncode == 0


def run(*arguments: object, program: tuple[str, ...] = STATESTORED, **more: Any) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run([*program, *map(str, arguments)], text=True, timeout=30, check=False, **streams)


@pytest.fixture
def store(make: Make) -> Path:
    """A data directory with something in it."""
    daemon = make().start()
    cause_lines(daemon, 1)
    daemon.stop()
    return daemon.data_dir


@pytest.mark.parametrize("closed", CLOSED, ids="".join)
def test_a_command_says_what_it_can(store: Path, closed: tuple[str, ...]) -> None:
    """The exit code says the rest."""
    tokens = store.parent / "tokens.toml"
    shown = ">&-" not in closed
    expected = Exit.STOPPED if shown else Exit.CANNOT_START
    said = "" if shown or "2>&-" in closed else "statestored: cannot write to standard output: Bad file descriptor\n"
    for arguments in (["--version"], ["check", store], ["repair", store]):
        done = run(*arguments, program=without(closed))
        assert (done.returncode, done.stderr, bool(done.stdout)) == (expected, said, shown)
    done = run("token", tokens, "one", program=without(closed))
    assert (done.returncode, bool(done.stdout), tokens.exists()) == (expected, shown, shown)
    done = run("check", store / "none", program=without(closed))
    assert (done.returncode, done.stdout, bool(done.stderr)) == (1, "", "2>&-" not in closed)
    assert run("check", store).returncode == 0


# Names that cannot be shown

LOCALES: list[tuple[str, dict[str, str]]] = [
    ("text", {"LC_ALL": "C.UTF-8"}),
    ("json", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    ("text", {"PYTHONIOENCODING": "ascii"}),
]
ODD = os.fsdecode(b"\xff\xc3\n\x1b")


@pytest.mark.parametrize(("format_", "locale"), LOCALES, ids=str)
def test_paths_need_not_be_utf_8(make: Make, tmp_path: Path, locale: dict[str, str], format_: str) -> None:
    odd = tmp_path / ODD
    odd.mkdir()
    tokens, config = odd / "tokens.toml", odd / "statestored.toml"
    config.write_text(f'log-format = "{format_}"')
    environment = {**os.environ, **locale}
    made = run("token", tokens, "one", env=environment)
    assert made.returncode == 0
    daemon = make(f"--config={config}", STATESTORED_TOKENS=str(tokens), **{f"STATESTORED_{ODD}": "x"}, **locale)
    daemon.data_dir = odd / "data"
    daemon.unix_address += ODD
    daemon.start()
    with RawClient(daemon.address) as client:
        client.ask("hello", {"token": made.stdout.strip()})
        client.ask("set", *ANN, "CONFIRMING")
    with RawClient(daemon.address):
        assert stop(daemon) == Exit.STOPPED
    assert r"\xff\xc3" in daemon.log() or r"\\xff\\xc3" in daemon.log()
    assert "Traceback" not in daemon.log()
    if format_ == "json":
        events = [json.loads(line) for line in daemon.log().splitlines()]
        assert str(events).isprintable()
    (daemon.data_dir / ODD).touch()
    for command in ("check", "repair"):
        done = run(command, daemon.data_dir, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(line.isprintable() for line in done.stdout.splitlines())
    for done in (
        run("check", odd / "none", env=environment),
        run("repair", odd / "none", env=environment),
        run("token", tokens, "one", env=environment),
        run("token", tokens, "two", "--namespace", ODD, env=environment),
        run("token", odd / "none" / "t", "one", env=environment),
        run(f"--config={odd / 'none'}", env=environment),
        run(f"--data-dir={config}", env=environment),
        run(f"--data-dir={odd}", f"--tls-cert={odd}", f"--tls-key={odd}", env=environment),
        run(f"--data-dir={odd}", f"--listen=unix:{config}", "--admin-listen=127.0.0.1:0", env=environment),
        run(env={**environment, "STATESTORED_MAX_STATE": ODD}),
        run(f"--max-memory={ODD}", env=environment),
    ):
        assert done.returncode in (Exit.CANNOT_START, Exit.USAGE), done.args
        assert "Traceback" not in done.stderr
        assert r"\xff" in done.stderr or r"\udcff" in done.stderr, done.stderr
        assert all(line.isprintable() for line in done.stderr.splitlines()), done.stderr


# Output that cannot be written


@pytest.fixture(params=["full", "gone"])
def no_reader(request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    """A descriptor, and what the system says of it."""
    if request.param == "full":
        fd, said = os.open("/dev/full", os.O_WRONLY), "No space left on device"
    else:
        reader, fd = os.pipe()
        os.close(reader)
        said = "Broken pipe"
    yield fd, said
    os.close(fd)


COMMANDS = [["--help"], ["--version"], ["check", "--help"], ["token", "-h"], ["check"], ["repair"], ["token"]]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_output_that_cannot_be_written_is_no_failed_disk(
    store: Path, no_reader: tuple[int, str], arguments: list[str]
) -> None:
    fd, said = no_reader
    tokens = store.parent / "tokens.toml"
    more: dict[str, list[object]] = {"check": [store], "repair": [store], "token": [tokens, "one"]}
    done = run(*arguments, *([] if len(arguments) > 1 else more.get(arguments[0], [])), stdout=fd)
    assert (done.returncode, done.stderr) == (1, f"statestored: cannot write to standard output: {said}\n")
    assert not [*tokens.parent.glob("tokens*")], "a token that nobody has seen was added"


def test_a_message_that_cannot_be_written_changes_no_exit_code(store: Path, no_reader: tuple[int, str]) -> None:
    for arguments, code in ((["check", store / "none"], 1), (["--none"], 2), (["token", store, "one"], 1)):
        assert run(*arguments, stderr=no_reader[0]).returncode == code


def test_a_daemon_whose_output_cannot_be_written_serves(make: Make, no_reader: tuple[int, str]) -> None:
    daemon = make()
    daemon.stdout = no_reader[0]
    wait_until_served(daemon)
    cause_lines(daemon, 1)
    assert stop(daemon) == Exit.STOPPED
