"""Exit codes, and what is said beside them: one line, of what is wrong and where, and never a traceback."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from statestored import cli, files, stdio
from statestored.errors import DamagedFile, DiskFailed, Exit, StartError, TooNew
from statestored.settings import Settings
from statestored.tokens import Role, Token, digest_of, read_tokens

End = tuple[int, str]  # exit code, and the last line on standard error


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., End]:
    """The command, with `run` in place of the daemon."""

    def main(*arguments: str, run: Callable[[Settings, Any], None] = lambda *_: None) -> End:
        monkeypatch.setattr(sys, "argv", ["statestored", *arguments])
        monkeypatch.setattr(cli, "run", run)
        monkeypatch.setattr(cli, "set_up_logging", lambda *_: None)
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return int(end.value.code or 0), said.strip().rpartition("\n")[2]

    return main


def raises(error: BaseException) -> Callable[..., None]:
    def run(*_: object) -> None:
        raise error

    return run


def test_the_codes_are_those_that_are_promised() -> None:
    assert {code.name: code.value for code in Exit} == {
        "STOPPED": 0,
        "CANNOT_START": 1,
        "USAGE": 2,
        "DAMAGED": 3,
        "DISK_FAILED": 4,
    }


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (StartError("it is in use"), 1, "statestored: it is in use"),
        (TooNew(Path("/d/x"), "format 2", 1), 1, "statestored: /d/x has format 2"),
        (DamagedFile(Path("/d/x"), "short", 7), 3, "statestored: /d/x is damaged at byte 7: short"),
        (
            DiskFailed(OSError(5, "Input/output error")),
            4,
            "statestored: the disk failed ([Errno 5] Input/output error)",
        ),
        (OSError(28, "No space left on device", "/d/x"), 4, "statestored: [Errno 28] No space left on device: '/d/x'"),
        (KeyboardInterrupt(), 0, ""),
    ],
)
def test_every_end_has_its_code(main: Callable[..., End], error: BaseException, code: int, says: str) -> None:
    ended, said = main(run=raises(error))
    assert ended == code
    assert said.startswith(says)


def test_a_fault_of_ours_is_no_reason_not_to_start(main: Callable[..., End]) -> None:
    """It comes with its traceback."""
    with pytest.raises(RuntimeError, match="has not begun"):
        main(run=raises(RuntimeError("the journal has not begun")))


def test_asked_to_stop_is_a_success(main: Callable[..., End]) -> None:
    assert main() == (0, "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lisen=x"], "--lisen"),
        (["--listen=unix:relative"], "address 'unix:relative'"),
        (["--max-state=0"], "0 is not in the range"),
        (["--log-level=loud"], "'loud' is not one of"),
        (["--max-memory=512QB"], "'512QB' is no size"),
        (["--config="], "the path is empty"),
        (["--listen"], "--listen"),
        (["surplus"], "surplus"),
    ],
)
def test_what_is_typed_wrong_is_a_matter_of_usage(main: Callable[..., End], arguments: list[str], says: str) -> None:
    code, said = main(*arguments)
    assert code == Exit.USAGE
    assert said.startswith("Error: ")
    assert says in said
    assert arguments == ["surplus"] or arguments[0].partition("=")[0] in said


def test_a_bad_variable_is_not(main: Callable[..., End], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATESTORED_MAX_STATE", "many")
    code, said = main()
    assert code == Exit.CANNOT_START
    assert "STATESTORED_MAX_STATE" in said
    assert "'many'" in said


def test_a_bad_flag_is_beside_a_good_variable(main: Callable[..., End], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATESTORED_MAX_STATE", "5")
    assert main("--max-state=many")[0] == Exit.USAGE


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("max-states = 1", "is it 'max-state'?"),
        ("max-state = 0", "max-state: 0 is not in the range"),
        ("max-state =", "Invalid value"),
    ],
)
def test_a_bad_file_is_not_either(main: Callable[..., End], tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "statestored.toml"
    path.write_text(line)
    code, said = main(f"--config={path}")
    assert code == Exit.CANNOT_START
    assert said.startswith(f"statestored: {path}: ")
    assert says in said


def test_a_file_that_is_not_there_is_no_matter_of_usage(main: Callable[..., End], tmp_path: Path) -> None:
    """Whatever it is for, and wherever it is named: only a look at the disk shows that something is wrong."""
    none = tmp_path / "none"
    missing = f"statestored: --config {none} cannot be read: No such file or directory"
    assert main(f"--config={none}") == (Exit.CANNOT_START, missing)
    for arguments in (["check", none], ["repair", none], ["token", none / "t", "one"], [f"--config={tmp_path}"]):
        assert run(*map(str, arguments)).returncode == Exit.CANNOT_START


@pytest.mark.parametrize("number", sorted(cli.WRONG_PATH))
def test_a_path_that_is_wrong_is_no_failed_disk(main: Callable[..., End], number: int) -> None:
    error = OSError(number, os.strerror(number), "/d")
    assert main(run=raises(error)) == (Exit.CANNOT_START, f"statestored: {error}")


def test_settings_reach_the_daemon(main: Callable[..., End]) -> None:
    given: list[Settings] = []
    main("--max-state=5", "--allow-clear", run=lambda settings, _: given.append(settings))
    assert (given[0].max_state, given[0].allow_clear) == (5, True)


# Tokens


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "statestored", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **more)


@pytest.mark.parametrize(
    ("options", "role", "namespaces"),
    [
        ([], Role.WRITE, None),
        (["--role=read"], Role.READ, None),
        (["--role", "admin", "--namespace", "lists", "--namespace=shop"], Role.ADMIN, {b"lists", b"shop"}),
    ],
)
def test_a_token_is_made_printed_once_and_kept_as_a_hash(
    tmp_path: Path, options: list[str], role: Role, namespaces: set[bytes] | None
) -> None:
    path = tmp_path / "tokens.toml"
    done = run("token", str(path), "one", *options)
    note = f"{path} is for root only: give it to the daemon's user with chown\n" if os.geteuid() == 0 else ""
    assert (done.returncode, done.stderr) == (Exit.STOPPED, note)
    token = done.stdout.removesuffix("\n")
    assert token not in path.read_text()
    assert read_tokens(path) == [
        Token("one", role, None if namespaces is None else frozenset(namespaces), digest_of(token.encode()))
    ]


def test_a_token_that_cannot_be_made_is_none(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    broken = tmp_path / "broken.toml"
    broken.write_text("[one")
    run("token", str(path), "one")
    for arguments, code, says in (
        ([str(path), "one"], Exit.CANNOT_START, f"{path} has a token called one already: choose another name"),
        ([str(path), "a b"], Exit.USAGE, "'a b' is no name for a token: it needs 1 to 64 letters"),
        ([str(path), "é"], Exit.USAGE, "NAME"),
        ([str(path), "two", "--namespace", os.fsdecode(b"\xff")], Exit.USAGE, "'--namespace': '\\udcff' is no name"),
        ([str(broken), "one"], Exit.CANNOT_START, f"{broken}: "),
        ([str(broken), "one"], Exit.CANNOT_START, "that was so before, and nothing was added"),
        ([str(tmp_path / "none" / "t"), "one"], Exit.CANNOT_START, str(tmp_path / "none")),
        ([str(path), "two", "--role=root"], Exit.USAGE, "--role"),
        ([str(path)], Exit.USAGE, "NAME"),
        ([str(tmp_path), "one"], Exit.CANNOT_START, str(tmp_path)),
    ):
        done = run("token", *arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_a_token_that_was_shown_in_vain_is_said_to_be(
    main: Callable[..., End], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DiskFailed(OSError(5, "Input/output error"))

    monkeypatch.setattr(files, "put_in_place", fail)
    code, said = main("token", str(tmp_path / "t"), "one")
    assert code == Exit.CANNOT_START
    assert "Input/output error" in said
    assert said.endswith(": the token that was printed is not in the file, and opens nothing")
    code, said = main("token", str(tmp_path / "t"), "a b")
    assert code == Exit.USAGE
    assert "printed" not in said


def test_a_token_is_made_whatever_the_daemons_settings_are(tmp_path: Path) -> None:
    environment = {**os.environ, "STATESTORED_MAX_STATE": "many"}
    assert run("token", str(tmp_path / "t"), "one", env=environment).returncode == Exit.STOPPED


# Whatever is typed

UNUSUAL = [os.fsdecode(b"/\xff"), "", " ", "~", "~nobody-here", "-", "--", "a\nb", "\x1b[31m", "x" * 300, "x" * 5000]
UNUSUAL += ["9" * 5000]
UNUSUAL += ["-1", "1e400", "nan", "0x10", "\N{SNOWMAN}", "{}", "[", "%s", "{0}", "unix:/\udcff", "[::1", "a:b:c", ":"]
FLAGS = [*(f"--{setting.name.replace('_', '-')}" for setting in fields(Settings)), "--config", "--role", "--namespace"]
FLAGS += ["--help", "--version", "--none", "-x", "--\udcff"]
WORDS = st.sampled_from([*UNUSUAL, *FLAGS, "check", "repair", "token"])
LINES = st.one_of(
    st.lists(WORDS, max_size=6),
    st.tuples(st.sampled_from(FLAGS), st.sampled_from(UNUSUAL)).map(lambda pair: ["=".join(pair)]),
    st.tuples(st.sampled_from(["check", "repair"]), st.sampled_from(UNUSUAL)).map(list),
    st.tuples(st.just("token"), st.sampled_from(UNUSUAL), st.sampled_from([*UNUSUAL, "one"])).map(list),
    st.sampled_from(UNUSUAL).map(lambda unusual: ["token", "t", "one", "--namespace", unusual]),
)


@given(LINES)
@example(["token", "t", "one", "--namespace", "\udcff"])
def test_nothing_that_is_typed_has_a_traceback(line: list[str]) -> None:
    """It ends with a code and a word; the files are made in a directory of their own."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", stdio.ESCAPE) for _ in range(2)]
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.chdir(directory),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["statestored", *line])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        patch.setattr(cli, "run", lambda *_: None)
        patch.setattr(cli, "set_up_logging", lambda *_: None)
        patch.setattr(cli.signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as end:
            cli.main()
    for stream in streams:
        stream.flush()
    out, err = (cast(io.BytesIO, stream.buffer).getvalue().decode() for stream in streams)
    assert end.value.code in (Exit.STOPPED, Exit.CANNOT_START, Exit.USAGE)
    assert "Traceback" not in err
    assert end.value.code == Exit.STOPPED or err
    assert not out or end.value.code == Exit.STOPPED


def test_help_says_how_it_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "statestored", "-h"], capture_output=True, text=True, timeout=30, check=True
    )
    assert "0 asked to stop, 1 cannot start, 2 usage, 3 data damaged, 4 the disk failed" in " ".join(
        done.stdout.split()
    )
    assert done.stderr == ""
