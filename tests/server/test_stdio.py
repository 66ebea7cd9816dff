"""What is printed shows, whatever it is, and reaches a reader that is there."""

import os
import subprocess
import sys
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestored.stdio import ESCAPE, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("/srv/states of ann", "/srv/states of ann"),
        ("/srv/zoë/\N{SNOWMAN}", "/srv/zoë/\N{SNOWMAN}"),
        (os.fsdecode(b"/srv/\xff\xc3"), r"/srv/\xff\xc3"),
        ("\ud83d", r"\ud83d"),
        ("two\nlines\r\t\0", r"two\nlines\r\t\x00"),
        ("\x1b[31mred\x7f\x9b", r"\x1b[31mred\x7f\x9b"),
        ("\u202eleft\u2028", r"\u202eleft\u2028"),
    ],
)
def test_what_would_not_show_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_whatever_it_is_it_is_one_line(text: str) -> None:
    assert printable(text).isprintable()
    printable(text).encode()


@given(st.text(st.characters()), st.sampled_from(["utf-8", "ascii", "latin-1", "utf-16"]))
def test_whatever_it_is_it_can_be_encoded(text: str, encoding: str) -> None:
    data = text.encode(encoding, ESCAPE)
    if text.isascii():
        assert data.decode(encoding) == text


def test_nothing_else_is_decoded_by_it() -> None:
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", ESCAPE)


def run(source: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A process that has taken over its streams."""
    command = [sys.executable, "-c", f"import os, sys\nfrom statestored import stdio\nstdio.set_up()\n{dedent(source)}"]
    kept = {name: value for name, value in os.environ.items() if name not in ("LC_ALL", "LANG", "LC_CTYPE")}
    return subprocess.run(command, capture_output=True, timeout=30, env={**kept, **environment}, check=False)


ENVIRONMENTS: list[dict[str, str]] = [
    {"LC_ALL": "C.UTF-8"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "ascii:strict", "PYTHONUNBUFFERED": "1"},
]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_no_locale_makes_a_print_fail(environment: dict[str, str]) -> None:
    source = r"""
        path = os.fsdecode(b"/srv/\xff") + "\N{SNOWMAN}"
        print(path)
        print(path, file=sys.stderr)
        stdio.announce(path)
    """
    done = run(source, **environment)
    assert done.returncode == 0
    for data in (*done.stdout.splitlines(), *done.stderr.splitlines()):
        assert data.startswith(rb"/srv/\xff")
    assert (done.stdout.count(b"\n"), done.stderr.count(b"\n")) == (2, 1)


def test_all_that_python_says_takes_the_same_way() -> None:
    source = """
        import logging, threading, warnings

        class Late:
            def __del__(self):
                raise OSError("unraisable")

        del Late
        logging.getLogger("x").warning("logged")
        warnings.warn("warned")
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        sys.stderr.write("a part ")
        raise ValueError("the last")
    """
    done = run(source)
    assert done.returncode == 1
    said = done.stderr.decode()
    for words in ("logged", "UserWarning: warned", "ZeroDivisionError: division by zero", "a part Traceback"):
        assert words in said
    assert said.endswith("ValueError: the last\n")


@pytest.mark.parametrize(
    ("end", "code"),
    [("stdio.exit_now(7)", 7), ("sys.exit(7)", 7), ("sys.exit('the end')", 1), ("", 0)],
)
def test_what_was_said_last_is_heard(end: str, code: int) -> None:
    done = run(f"for number in range(500): print(number, file=sys.stderr)\nstdio.announce('said')\n{end}")
    assert done.returncode == code
    assert done.stderr.split()[:500] == [b"%d" % number for number in range(500)]
    assert done.stdout == b"said\n"


def test_output_that_fails_does_so_once_and_not_as_a_disk() -> None:
    source = """
        from statestored.errors import OutputFailed
        try:
            print("x" * 100_000)
        except OutputFailed as error:
            print(error, file=sys.stderr)
    """
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", f"import sys\nfrom statestored import stdio\nstdio.set_up()\n{dedent(source)}"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    said = "cannot write to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (0, said)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_descriptor_is_occupied_and_fails_as_before(closed: str) -> None:
    source = r"""
        import errno, subprocess
        for fd, use in ((0, lambda: os.read(0, 1)), (1, lambda: os.write(1, b"x")), (2, lambda: os.write(2, b"x"))):
            if os.readlink(f"/proc/self/fd/{fd}") == "/dev/null":
                try:
                    use()
                except OSError as error:
                    assert error.errno == errno.EBADF
                else:
                    sys.exit(9)
        with open(os.devnull) as file:
            assert file.fileno() > 2
        os._exit(subprocess.run(["/bin/sh", "-c", "exit $(ls /proc/self/fd | grep -c '^[012]$')"]).returncode)
    """
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c"]
    head = "import os, sys\nfrom statestored import stdio\nstdio.set_up()\n"
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run([*command, head + dedent(source)], **streams, timeout=30, check=False)
    assert done.returncode == 3, "a child of the daemon's has all three"
