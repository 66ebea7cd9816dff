"""No caller waits; lines stay in order; what is dropped is counted, and reported in its place."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from statestored import queued_output
from statestored.queued_output import MAX_QUEUED_LINES, QueuedOutput, write_all
from tests.server.waiting import wait_until


class Pipe:
    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fill(self) -> int:
        """Returns how many bytes it took."""
        os.set_blocking(self.writer, False)
        taken = 0
        try:
            while True:
                taken += os.write(self.writer, b"\n")
        except BlockingIOError:
            os.set_blocking(self.writer, True)
            return taken

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += os.read(self.reader, count - len(data))
        return data

    def close(self) -> None:
        for fd in (self.reader, self.writer):
            os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with closing(Pipe()) as pipe:
        yield pipe


def make(fd: int) -> QueuedOutput:
    return QueuedOutput(fd, lambda lines: f"({lines})\n")


def write(output: QueuedOutput, *numbers: int) -> None:
    for number in numbers:
        line = f"{number}\n".encode()
        assert output.write(line) == len(line)


def numbers(data: bytes) -> list[int]:
    return [int(line) for line in data.split()]


def test_all_lines_are_written_in_their_order(pipe: Pipe) -> None:
    output = make(pipe.writer)
    write(output, *range(500))
    output.drain(10)
    assert numbers(os.read(pipe.reader, 10_000)) == [*range(500)]
    assert output.dropped == 0


def test_lines_of_several_threads_stay_whole(pipe: Pipe) -> None:
    output = make(pipe.writer)
    threads = [threading.Thread(target=write, args=(output, *[number] * 100)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output.drain(10)
    assert sorted(numbers(os.read(pipe.reader, 10_000))) == sorted([*range(8)] * 100)


def test_a_reader_that_does_not_read_holds_up_nobody(pipe: Pipe) -> None:
    output = make(pipe.writer)
    junk = pipe.fill()
    write(output, -1)
    wait_until(lambda: not output._queue)  # the thread has it in its hand
    write(output, *range(MAX_QUEUED_LINES + 7))
    assert output.dropped == 7
    pipe.read(junk)
    expected = b"".join(b"%d\n" % number for number in range(-1, MAX_QUEUED_LINES)) + b"(7)\n"
    assert pipe.read(len(expected)) == expected
    write(output, 8)
    assert pipe.read(2) == b"8\n"
    assert output.dropped == 7


def test_lines_that_come_while_the_queue_empties_follow_the_report(pipe: Pipe) -> None:
    """They do so when it is half empty, so that a slow reader does not find a report before every line."""
    output = make(pipe.writer)
    junk = pipe.fill()
    write(output, -1)
    wait_until(lambda: not output._queue)
    write(output, *range(MAX_QUEUED_LINES + 1))
    with output._changed:  # the thread has come so far
        for _ in range(MAX_QUEUED_LINES // 2):
            output._queue.popleft()
    write(output, 7)
    assert output.dropped == 2
    with output._changed:
        output._queue.popleft()
    write(output, 8, 9)
    assert output.dropped == 2
    pipe.read(junk)
    expected = [-1, *range(MAX_QUEUED_LINES // 2 + 1, MAX_QUEUED_LINES), 8, 9]
    data = pipe.read(sum(len(f"{number}\n") for number in expected) + len("(2)\n"))
    assert data.endswith(b"(2)\n8\n9\n")
    assert numbers(data.replace(b"(2)\n", b"")) == expected


def test_a_reader_that_has_gone_is_a_loss_of_lines_and_of_nothing_else(pipe: Pipe) -> None:
    other = Pipe()
    output = make(other.writer)
    os.close(other.reader)
    write(output, 1, 2, 3)
    output.drain(10)
    assert output.dropped == 3
    os.dup2(pipe.writer, other.writer)
    write(output, 4, 5)
    assert pipe.read(8) == b"(3)\n4\n5\n"
    assert output.dropped == 3
    os.close(other.writer)


def test_an_end_waits_for_the_reader_for_a_moment_only(pipe: Pipe) -> None:
    output = make(pipe.writer)
    pipe.fill()
    write(output, 1)
    started = time.monotonic()
    output.drain(0.05)
    assert 0.05 <= time.monotonic() - started < 5
    output.drain(-1)


def test_there_need_be_nothing_to_wait_for(pipe: Pipe) -> None:
    make(pipe.writer).drain(10)


def test_another_process_may_have_made_the_file_non_blocking(pipe: Pipe) -> None:
    """As ssh and node do with what they share with a shell."""
    output = make(pipe.writer)
    junk = pipe.fill()
    os.set_blocking(pipe.writer, False)
    write(output, 1, 2)
    assert pipe.read(junk + 4).split() == [b"1", b"2"]
    assert output.dropped == 0
    assert not os.get_blocking(pipe.writer)


def test_a_line_may_be_longer_than_the_pipe(pipe: Pipe) -> None:
    output = make(pipe.writer)
    line = b"x" * 2**20 + b"\n"
    output.write(line)
    assert pipe.read(len(line)) == line


def test_where_there_can_be_no_thread_a_line_is_written_at_once(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(queued_output.threading.Thread, "start", start)
    output = make(pipe.writer)
    write(output, 1)
    assert pipe.read(2) == b"1\n"


def test_what_cannot_be_written_is_said_to_who_waits() -> None:
    with open("/dev/full", "wb") as full, pytest.raises(OSError, match="No space") as failure:
        write_all(full.fileno(), b"x")
    assert failure.value.errno == errno.ENOSPC
