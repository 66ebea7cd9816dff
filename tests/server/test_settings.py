"""Each setting is declared once; flag, variable, file and documentation say the same of it."""

import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from statestore.address import TcpAddress, UnixAddress
from statestored.engines.commits import Fsync
from statestored.errors import StartError
from statestored.settings import (
    FSYNC,
    MIB,
    MIN_TOKEN,
    Settings,
    default_data_dir,
    files_named,
    options,
    own_token,
    tls_files,
    told_where_given,
    unknown_variables,
)
from statestored.tls import TlsFiles

ROOT = Path(__file__).parents[2]
NAMES = [setting.name for setting in fields(Settings)]
KEYS = [name.replace("_", "-") for name in NAMES]
VARIABLES = ["STATESTORED_" + name.upper() for name in NAMES]

# A value of each setting that is not the default: as it is written in a shell, in a TOML file, and what it means.
SAMPLES: dict[str, tuple[str, str, Any]] = {
    "listen": ("unix:/run/s", '["unix:/run/s"]', (UnixAddress("/run/s"),)),
    "admin-listen": ("[::1]:80", '"[::1]:80"', TcpAddress("::1", 80)),
    "data-dir": ("/srv/states", '"/srv/states"', Path("/srv/states")),
    "engine": ("embedded:", '"embedded:"', "embedded:"),
    "tokens": ("/run/tokens", '"/run/tokens"', Path("/run/tokens")),
    "tls-cert": ("/run/cert.pem", '"/run/cert.pem"', Path("/run/cert.pem")),
    "tls-key": ("/run/key.pem", '"/run/key.pem"', Path("/run/key.pem")),
    "tls-client-ca": ("/run/ca.pem", '"/run/ca.pem"', Path("/run/ca.pem")),
    "allow-clear": ("true", "true", True),
    "snapshot-interval": ("2.5", "2.5", 2.5),
    "fsync": ("everysec", '"everysec"', "everysec"),
    "snapshot-journal-size": ("7", "7", 7 * MIB),
    "max-module": ("11", "11", 11),
    "max-sender": ("12", "12", 12),
    "max-state": ("13", "13", 13),
    "max-namespaces": ("14", "14", 14),
    "max-modules": ("15", "15", 15),
    "max-memory": ("512MB", '"512MB"', 512 * 10**6),
    "max-connections": ("17", "17", 17),
    "max-buffers": ("18", "18", 18 * MIB),
    "log-level": ("error", '"error"', "error"),
    "log-format": ("json", '"json"', "json"),
}

Read = Callable[..., Settings]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Read:
    """The settings of a command line, an environment and a file."""
    for name in [*os.environ]:
        if name.startswith("STATE"):
            monkeypatch.delenv(name)

    def read(*arguments: str, file: str | None = None, **environment: str) -> Settings:
        if file is not None:
            path = tmp_path / "statestored.toml"
            path.write_text(file)
            arguments = (*arguments, f"--config={path}")
        command = click.Command("statestored", params=[*options()], callback=lambda **values: Settings(**values))
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            settings: Settings = command.main([*arguments], standalone_mode=False)
            return settings

    return read


def flag(key: str, value: str) -> str:
    return f"--{key}" if key == "allow-clear" else f"--{key}={value}"


def variable(key: str) -> str:
    return "STATESTORED_" + key.upper().replace("-", "_")


def value_of(settings: Settings, key: str) -> Any:
    return getattr(settings, key.replace("-", "_"))


@pytest.mark.parametrize("key", KEYS)
def test_a_setting_can_be_given_in_three_ways(read: Read, key: str) -> None:
    text, toml, value = SAMPLES[key]
    given = (read(flag(key, text)), read(**{variable(key): text}), read(file=f"{key} = {toml}"))
    for settings in given:
        assert value_of(settings, key) == value
        assert type(value_of(settings, key)) is type(value)


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ("", 1024),
        ("file", 1),
        ("environment", 2),
        ("flag", 3),
        ("file environment", 2),
        ("file flag", 3),
        ("environment flag", 3),
        ("file environment flag", 3),
    ],
)
def test_a_flag_goes_before_the_environment_and_that_before_the_file(read: Read, ways: str, expected: int) -> None:
    settings = read(
        *["--max-state=3"] * ("flag" in ways),
        file="max-state = 1\nmax-module = 5" if "file" in ways else None,
        **{"STATESTORED_MAX_STATE": "2"} if "environment" in ways else {},
    )
    assert settings.max_state == expected
    assert settings.max_module == (5 if "file" in ways else 1024)


def test_fsync_is_what_the_engine_knows() -> None:
    assert tuple(Fsync) == FSYNC


def test_the_file_may_be_named_by_the_environment(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text("max-state = 1")
    assert read(STATESTORED_CONFIG=str(path)).max_state == 1


def test_several_addresses(read: Read) -> None:
    both = (TcpAddress("127.0.0.1", 1), UnixAddress("/run/s"))
    assert read("--listen=127.0.0.1:1", "--listen", "unix:/run/s").listen == both
    assert read(STATESTORED_LISTEN="127.0.0.1:1 unix:/run/s").listen == both
    assert read(file='listen = ["127.0.0.1:1", "unix:/run/s"]').listen == both


def test_addresses_without_a_port_get_their_own(read: Read) -> None:
    settings = read("--listen=localhost", "--admin-listen=localhost")
    assert settings.listen == (TcpAddress("localhost", 7828),)
    assert settings.admin_listen == TcpAddress("localhost", 7829)


@pytest.mark.parametrize(
    ("key", "text", "toml"),
    [
        ("listen", "127.0.0.1:99999", '["127.0.0.1:99999"]'),
        ("listen", "unix:relative", '["unix:/run/s", "unix:relative"]'),
        ("listen", "a/b", '["a b"]'),
        ("admin-listen", "me@here", '"me@here"'),
        ("data-dir", "~nobody-here/x", '""'),
        ("engine", "redis://localhost", '"redis://localhost"'),
        ("tokens", "~nobody-here/x", r'"\u0000"'),
        ("tls-cert", "~nobody-here/x", r'"\u0000"'),
        ("tls-key", "~nobody-here/x", "5"),
        ("tls-client-ca", "~nobody-here/x", "[]"),
        ("allow-clear", "perhaps", '"yes"'),
        ("snapshot-interval", "-1", "-1"),
        ("snapshot-interval", "nan", "nan"),
        ("snapshot-interval", "soon", '"1"'),
        ("fsync", "sometimes", '"sometimes"'),
        ("fsync", "ALWAYS", "true"),
        ("snapshot-journal-size", "-1", "-1"),
        ("snapshot-journal-size", "1.5", "1.5"),
        ("max-module", "0", "0"),
        ("max-module", "4097", "4097"),
        ("max-sender", "16385", '"7"'),
        ("max-state", "many", '"many"'),
        ("max-namespaces", "0", "0"),
        ("max-modules", "1001", "1001"),
        ("max-memory", "512 QB", '"512 QB"'),
        ("max-connections", "0", "false"),
        ("max-buffers", "3", "3"),
        ("log-level", "loud", '"loud"'),
        ("log-format", "xml", '"xml"'),
    ],
)
def test_a_bad_value_is_blamed_on_where_it_was_given(
    read: Read, tmp_path: Path, key: str, text: str, toml: str
) -> None:
    """A flag that has one is wrong usage. What the environment or a file has is a bad setting."""
    if key != "allow-clear":
        with pytest.raises(click.UsageError) as usage:
            read(flag(key, text))
        assert f"--{key}" in usage.value.format_message()
    with pytest.raises(StartError) as refusal:
        read(**{variable(key): text})
    assert str(refusal.value).startswith(f"{variable(key)}: ")
    with pytest.raises(StartError) as refusal:
        read(file=f"{key} = {toml}")
    assert str(refusal.value).startswith(f"{tmp_path / 'statestored.toml'}: {key}: ")
    assert f"--{key}" not in str(refusal.value)


def test_a_bad_value_of_each_setting_was_tried() -> None:
    marks: Any = test_a_bad_value_is_blamed_on_where_it_was_given
    assert {row[0] for row in marks.pytestmark[0].args[1]} == set(KEYS)


def test_a_good_flag_makes_up_for_a_bad_variable_and_that_for_a_bad_file(read: Read) -> None:
    assert read("--max-state=7", file="max-state = 0", STATESTORED_MAX_STATE="many").max_state == 7
    assert read(file="max-state = 0", STATESTORED_MAX_STATE="7").max_state == 7


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("0", 0),
        ("512", 512 * 2**20),
        ("7B", 7),
        ("512KB", 512_000),
        ("512MB", 512_000_000),
        ("2GB", 2_000_000_000),
        ("1TB", 10**12),
        ("512KiB", 512 * 2**10),
        ("512MiB", 512 * 2**20),
        ("2GiB", 2 * 2**30),
        ("1TiB", 2**40),
        ("512k", 512 * 2**10),
        ("512m", 512 * 2**20),
        ("2G", 2 * 2**30),
        ("1t", 2**40),
        (" 512 mib ", 512 * 2**20),
        ("0512", 512 * 2**20),
    ],
)
def test_sizes_have_units(read: Read, given: str, size: int) -> None:
    assert read(f"--max-memory={given}").max_memory == size
    assert read(STATESTORED_MAX_MEMORY=given).max_memory == size
    assert read(file=f'max-memory = "{given}"').max_memory == size
    if given.isdigit():
        assert read(file=f"max-memory = {int(given)}").max_memory == size


SIZES = ("snapshot-journal-size", "max-memory", "max-buffers")


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize(
    "given", ["", "MB", "-1", "1.5GB", "1e3", "512 M B", "512QB", "0x10", "٥", "5\n5", "1" * 16, "9" * 5000, "512Mib/s"]
)
def test_what_is_no_size_is_refused_with_the_forms_that_are(read: Read, key: str, given: str) -> None:
    with pytest.raises(click.UsageError) as usage:
        read(f"--{key}={given}")
    assert "KB, MB, GB or TB for powers of 1000, KiB, MiB, GiB or TiB" in usage.value.format_message()


def test_the_buffers_have_a_least_size(read: Read) -> None:
    assert read("--max-buffers=4MiB").max_buffers == 4 * MIB
    for given in ("0", "3", "4MB", "1KiB"):
        with pytest.raises(click.UsageError, match="too little: 4MiB is the least"):
            read(f"--max-buffers={given}")


def test_sizes_are_such_as_info_can_tell(read: Read) -> None:
    assert read("--max-memory=8796093022207").max_memory == 2**63 - MIB
    for given in ("8796093022208", "9000000TiB", "999999999999999"):
        with pytest.raises(click.UsageError, match="too much"):
            read(f"--max-memory={given}")


@pytest.mark.usefixtures("read")
def test_an_error_says_where_the_settings_that_it_names_were_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If that was not as a flag."""
    path, found = tmp_path / "statestored.toml", []

    def take(ctx: click.Context, /, **_: Any) -> None:
        for text in ("--tokens /t cannot be read: it is not there", "--max-state 1 is too little for --tls-key /k"):
            found.append(str(told_where_given(ctx, StartError(text))))
        found.append(str(told_where_given(ctx, StartError("--max-state, --none\n--tokens --max-state"))))

    path.write_text('tokens = "/t"')
    command = click.Command("statestored", params=[*options()], callback=click.pass_context(take))
    command.main([f"--config={path}", "--tls-key=/k"], standalone_mode=False)
    assert found[0] == f"--tokens /t cannot be read: it is not there (--tokens was set by {path}: tokens)"
    assert found[1] == "--max-state 1 is too little for --tls-key /k"
    assert found[2] == "--max-state, --none\n--tokens --max-state"
    found.clear()
    monkeypatch.setenv("STATESTORED_MAX_STATE", "5")
    command.main([f"--config={path}"], standalone_mode=False)
    assert found[2] == "--max-state, --none (--max-state was set by STATESTORED_MAX_STATE)\n--tokens --max-state"


# Every type that TOML has.
LITERALS = ["5", "-1", "1.5", "5.0", "nan", "inf", "true", '""', '"x"', '"5"', "[]", "['x']", "[5]", "[[]]", "{a=1}"]
LITERALS += ["1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", r'"\u0000"', '"~"', '"~nobody-here/x"']
TYPES = {"listen": tuple, "admin-listen": TcpAddress, "data-dir": Path, "allow-clear": bool}
FILES = ("tokens", "tls-cert", "tls-key", "tls-client-ca")  # which need not be given
TYPES |= dict.fromkeys(FILES, Path)
TYPES |= {"snapshot-interval": float, "engine": str, "fsync": str, "log-level": str, "log-format": str}


@pytest.mark.parametrize("literal", LITERALS)
@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_a_file_is_taken_as_it_is_or_refused(read: Read, key: str, literal: str) -> None:
    value = tomllib.loads(f"x = {literal}")["x"]
    try:
        taken = value_of(read(file=f"{key} = {literal}"), key)
    except StartError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert f"statestored.toml: {key}: " in refusal
        return
    assert isinstance(taken, TYPES.get(key, int)) or (key in FILES and (value, taken) == ("", None))
    if not isinstance(value, str):
        assert taken == (value * MIB if key in SIZES else value) or not isinstance(taken, int | float)
        assert isinstance(taken, bool) == isinstance(value, bool)
    if isinstance(taken, tuple):
        assert taken, "a daemon that listens nowhere is of no use"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("max-states = 1", "is it 'max-state'?"),
        ("max_state = 1", "is it 'max-state'?"),
        ("lisen = []", "is it 'listen'?"),
        ("token = 'x'", "no setting 'token'"),
        ("config = 'x'", "no setting 'config'"),
        ("qqqqqq = 1", "no setting 'qqqqqq'"),
        ("[server]\nlisten = []", "no setting 'server'"),
        ("max-state = ", "Invalid value"),
        ("max-state", "Expected '='"),
        ("listen = '127.0.0.1'", "listen: it must be an array"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_its_name(read: Read, tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(StartError) as refusal:
        read(file=line)
    assert str(refusal.value).startswith(f"{tmp_path / 'statestored.toml'}: ")
    assert says in str(refusal.value)
    assert "is it" not in str(refusal.value) or "is it" in says or "token" in says


def test_a_file_that_is_not_there_is_refused_with_its_name(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    with pytest.raises(StartError) as refusal:
        read(f"--config={path}")
    assert str(refusal.value) == f"--config {path} cannot be read: No such file or directory"
    with pytest.raises(StartError) as refusal:
        read(STATESTORED_CONFIG=str(tmp_path))
    said = f"--config {tmp_path} cannot be read: Is a directory (--config was set by STATESTORED_CONFIG)"
    assert str(refusal.value) == said


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"max-state = " + b"9" * 5000, b"max-state = " + b"[" * 100_000, b"\0", b"\xed\xb3\xbf"]
)
def test_a_file_that_is_no_toml_is_refused_with_its_name(read: Read, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(content)
    with pytest.raises(StartError, match=r"binary\.toml: "):
        read(f"--config={path}")


def test_variables_that_mean_nothing_are_found() -> None:
    environment = dict.fromkeys([*VARIABLES, "STATESTORED_TOKEN", "STATESTORED_CONFIG", "STATESTORE_X", "PATH"], "")
    assert unknown_variables(environment) == []
    environment |= {"STATESTORED_TOKEN_FILE": "", "STATESTORED_LISTENS": "", "STATESTORED_": ""}
    assert unknown_variables(environment) == ["STATESTORED_", "STATESTORED_LISTENS", "STATESTORED_TOKEN_FILE"]


def test_the_data_directory_is_systemds_or_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    for given, expected in (
        (None, "/home/ann/.local/state/statestored"),
        ("", "/home/ann/.local/state/statestored"),
        ("/var/lib/statestored", "/var/lib/statestored"),
        ("/var/lib/one:/var/lib/two", "/var/lib/one"),
    ):
        if given is None:
            monkeypatch.delenv("STATE_DIRECTORY", raising=False)
        else:
            monkeypatch.setenv("STATE_DIRECTORY", given)
        assert default_data_dir() == Path(expected)


def test_without_a_home_a_directory_has_to_be_named(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError("no such user")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(StartError, match="--data-dir"):
        read()
    for key in ("data-dir", "tokens"):
        with pytest.raises(click.UsageError, match="no such home directory"):
            read("--data-dir=/x", f"--{key}=~/x")
    assert read("--data-dir=/x").data_dir == Path("/x")
    assert read("--data-dir=./~").data_dir == Path("./~")
    assert read(STATE_DIRECTORY="/y").data_dir == Path("/y")


# Who may connect


def test_the_token_of_the_environment() -> None:
    assert own_token({}) is None
    assert own_token({"STATESTORED_TOKEN": "x" * MIN_TOKEN}) == "x" * MIN_TOKEN


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(StartError, match="STATESTORED_TOKEN has 15 characters, and 16 are the least") as refusal:
        own_token({"STATESTORED_TOKEN": "sesame sesame s"})
    assert "sesame" not in str(refusal.value)


@pytest.mark.parametrize("token", ["", "s\n" * MIN_TOKEN, os.fsdecode(b"\xff") * MIN_TOKEN])
def test_a_token_that_no_client_could_give_is_refused(token: str) -> None:
    with pytest.raises(StartError, match="STATESTORED_TOKEN") as refusal:
        own_token({"STATESTORED_TOKEN": token})
    str(refusal.value).encode()


CERT, KEY, CA = "--tls-cert=/c", "--tls-key=/k", "--tls-client-ca=/a"


def test_the_files_that_settings_name_are_known(read: Read) -> None:
    assert files_named(read("--listen=127.0.0.1:0")) == []
    named = ["--tokens=t", "--tls-cert=c", "--tls-key=k", "--tls-client-ca=a"]
    found = files_named(read(*named, "--listen=unix:/s", "--admin-listen=unix:/d/a"))
    assert found == [Path("t"), Path("c"), Path("k"), Path("a"), Path("/s.lock"), Path("/d/a.lock"), Path(".t.lock")]


def test_there_need_be_no_tls(read: Read) -> None:
    assert tls_files(read()) is None


def test_tls_is_a_certificate_and_its_key_and_who_signs_those_of_clients(read: Read) -> None:
    assert tls_files(read(CERT, KEY)) == TlsFiles(Path("/c"), Path("/k"), None)
    assert tls_files(read(CERT, KEY, CA, "--listen=unix:/s", "--listen=[::1]:1")) == TlsFiles(
        Path("/c"), Path("/k"), Path("/a")
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([CERT], "--tls-cert needs --tls-key"),
        ([KEY], "--tls-key needs --tls-cert"),
        ([CA], "--tls-client-ca needs --tls-cert"),
        ([CERT, CA], "--tls-cert needs --tls-key"),
        ([CERT, KEY, "--listen=unix:/s"], "--listen names none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(read: Read, given: list[str], says: str) -> None:
    with pytest.raises(StartError, match=says):
        tls_files(read(*given))


# What is written about them


def test_the_help_names_each_setting_with_its_variable() -> None:
    with click.Context(command := click.Command("statestored", params=[*options()])) as context:
        text = re.sub(r"\s+", "", command.get_help(context))
    for key in KEYS:
        assert f"--{key}" in text
        assert variable(key) in text


def toml_lines() -> list[str]:
    return (ROOT / "statestored.toml").read_text().splitlines()


def commented() -> dict[str, str]:
    """Settings that are commented out: `# name = value`."""
    found = [re.fullmatch(r"# ([a-z-]+) = (.*)", line) for line in toml_lines()]
    pairs = [(match[1], match[2]) for match in found if match]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_the_annotated_file_names_every_setting_and_nothing_else() -> None:
    assert list(commented()) == KEYS


def test_the_annotated_file_sets_nothing() -> None:
    assert tomllib.loads((ROOT / "statestored.toml").read_text()) == {}


def test_what_the_annotated_file_says_are_the_defaults(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    for key, value in commented().items():
        assert read(file=f"{key} = {value}") == read(), key


def test_a_wrong_flag_is_not_blamed_on_its_variable(read: Read) -> None:
    with pytest.raises(click.BadParameter) as caught:
        read("--max-memory=many")
    assert "STATESTORED" not in caught.value.format_message()
