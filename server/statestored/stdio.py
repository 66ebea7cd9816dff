"""The standard streams of the process.

Standard error and what the daemon prints are queued: no reader holds the daemon up. What a command prints is written at
once, and the command fails if that does. Nothing fails because a terminal has no character for it.
"""

import atexit
import codecs
import io
import os
import sys
import time
from typing import TYPE_CHECKING, NoReturn, TextIO

from statestored.errors import OutputFailed
from statestored.queued_output import QueuedOutput, write_all

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDIN, STDOUT, STDERR = 0, 1, 2
FLUSH_SECONDS = 0.5  # an end waits so long for the readers of both streams, and no longer
ESCAPE = "statestored.escape"  # the codec error handler

log_output = QueuedOutput(STDERR, lambda lines: f"statestored: {lines} lines were dropped here\n")
_announcements = QueuedOutput(STDOUT)


def set_up() -> None:
    """Take over the standard streams. Call it before any file is opened."""
    _occupy_closed_descriptors()
    sys.stdout = _text(CommandOutput(), sys.stdout)
    sys.stderr = _text(log_output, sys.stderr)
    atexit.register(flush)


def announce(line: str) -> None:
    """Print a line of the daemon's on standard output, for the script or the person that has started it."""
    _announcements.write(f"{printable(line)}\n".encode(_encoding(sys.stdout), ESCAPE))


def flush() -> None:
    """Give the readers of what is queued a last, short chance."""
    deadline = time.monotonic() + FLUSH_SECONDS
    sys.stderr.flush()
    for output in (log_output, _announcements):
        output.drain(deadline - time.monotonic())


def exit_now(code: int) -> NoReturn:
    """End the process without any cleaning up, but for what is queued."""
    flush()
    os._exit(code)


def printable(text: str) -> str:
    """Return the text as one line, without control characters, and with bytes of a path that are not UTF-8 escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def printable_lines(text: str) -> str:
    """Return each line of the text as `printable` does."""
    return "\n".join(map(printable, text.split("\n")))


class CommandOutput(io.RawIOBase):
    """Standard output whose failure is told from that of a disk, with all commands and also with --help."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Raises OutputFailed."""
        try:
            write_all(STDOUT, data)
        except OSError as error:
            raise OutputFailed(error) from error
        return memoryview(data).nbytes

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return STDOUT

    def isatty(self) -> bool:
        return os.isatty(STDOUT)


def _occupy_closed_descriptors() -> None:
    """Let no file or socket become a standard descriptor: what is printed would end up in it.

    The direction is the wrong one, so that reads and writes fail (EBADF) as they do with a closed descriptor.
    """
    for fd in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(fd)
        except OSError:
            try:
                opened = os.open(os.devnull, os.O_WRONLY if fd == STDIN else os.O_RDONLY)
            except OSError as error:
                sys.exit(f"statestored: standard descriptor {fd} is closed, and {os.devnull}: {error.strerror}")
            os.set_inheritable(opened, True)  # the system gives the lowest free one, which is `fd`


def _text(raw: io.RawIOBase, replaced: TextIO | None) -> TextIO:
    # What is raw takes all of what it is given, so that it needs no buffer beneath the text's own.
    buffer: io.BufferedWriter = raw  # type: ignore[assignment]
    return io.TextIOWrapper(buffer, _encoding(replaced), ESCAPE, line_buffering=True)


def _encoding(stream: TextIO | None) -> str:
    return (stream and stream.encoding) or "utf-8"  # a closed stream is None


def _escaped(char: str) -> str:
    """As bash and Python write it: `\\xff` is a byte that has no meaning in the file system's encoding."""
    number = ord(char)
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else char.encode("unicode_escape").decode()


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_escaped, error.object[error.start : error.end])), error.end


codecs.register_error(ESCAPE, _escape)
