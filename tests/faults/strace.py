"""A daemon under strace: its calls that touch files of a data directory, and one of them tampered with.

strace counts the calls of each thread for itself: the one that is tampered with is that of whichever thread comes to
its Nth first. What was hit stands in the output.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# All that changes files, or opens them. Some machines lack some of them.
CALLS = "/^(p?writev?(64|2)?|fdatasync|fsync|rename(at2?)?|openat|unlink(at)?|f?truncate(64)?)$"
_OLDER = {"renameat": "rename", "renameat2": "rename", "unlinkat": "unlink"}  # what does the same elsewhere

_LINE = re.compile(r"(?P<thread>\d+) +(?P<time>\d+\.\d+) (?P<rest>.*)")
_BEGUN = re.compile(r"(?P<name>\w+)\((?P<arguments>.*?)(?: <unfinished \.\.\.>|\) += (?P<result>.*))$")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(?P<arguments>.*)\) += (?P<result>.*)$")
_ENDED = re.compile(r"\+\+\+ (?P<how>.*) \+\+\+")
_OPEN_FILE = re.compile(r"\d+<(?P<path>[^>]*)>")
_NAME = re.compile(r'"(?P<path>[^"]*)"')


@dataclass(slots=True)
class Call:
    """`time`: when it began, in seconds since 1970. `result` is `?` where it never returned."""

    thread: int
    time: float
    name: str
    path: Path
    arguments: str
    result: str = "?"

    @property
    def kind(self) -> str:
        """The name that it has on most machines."""
        return _OLDER.get(self.name, self.name)

    @property
    def succeeded(self) -> bool:
        return self.result.split()[0].isdecimal()


@dataclass(frozen=True, slots=True)
class Trace:
    """pid: the daemon's, which is also the id of its first thread. ended: when, in seconds since 1970, and how."""

    calls: list[Call]
    pid: int
    ended: float
    how: str


@dataclass(frozen=True, slots=True)
class Strace:
    """Traces these calls where they touch these paths. `tamper` says with which of them, and how: `fsync:error=EIO`."""

    output: Path
    paths: Iterable[Path]
    calls: str = CALLS
    tamper: str | None = None

    def command(self) -> list[str]:
        assert shutil.which("strace"), "strace is needed: run tests/install-tools.sh"
        # -y: which file a descriptor is of.
        command = ["strace", "-f", "-q", "-y", "-ttt", f"--output={self.output}", f"--trace={self.calls}"]
        if not (self.tamper and "signal=" in self.tamper):
            command.append("--seccomp-bpf")  # fast, but then many a signal does not arrive
        command += [f"--trace-path={path}" for path in self.paths]
        return command + ([f"--inject={self.tamper}"] if self.tamper else [])

    def trace(self) -> Trace:
        """After the daemon's end."""
        return read_trace(self.output.read_text(errors="replace"))


def read_trace(text: str) -> Trace:
    calls: list[Call] = []
    unfinished: dict[int, Call] = {}
    thread, ended, how = 0, 0.0, "it did not"
    for thread, time, rest in _lines(text):
        if begun := _BEGUN.match(rest):
            call = Call(thread, time, begun["name"], _path(begun["name"], begun["arguments"]), begun["arguments"])
            calls.append(call)
            if begun["result"] is None:
                unfinished[thread] = call
            else:
                call.result = begun["result"]
        elif resumed := _RESUMED.match(rest):
            call = unfinished.pop(thread)
            call.arguments += resumed["arguments"]
            call.result = resumed["result"]
        elif end := _ENDED.match(rest):
            ended, how = time, end["how"]  # the first thread is the last to end
    return Trace(calls, thread, ended, how)


def _lines(text: str) -> Iterator[tuple[int, float, str]]:
    for line in text.splitlines():
        match = _LINE.match(line)
        assert match, f"strace says: {line}"
        yield int(match["thread"]), float(match["time"]), match["rest"]


def _path(name: str, arguments: str) -> Path:
    """The file that a call is about; of two names the first."""
    by_name = name.startswith(("open", "rename", "unlink", "truncate"))
    match = (_NAME if by_name else _OPEN_FILE).search(arguments)
    assert match, f"no path in {name}({arguments}"
    return Path(match["path"])
