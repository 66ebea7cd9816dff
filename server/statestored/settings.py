"""The settings, each declared once: flag, STATESTORED_* variable, TOML key, help and default derive from a field here.

A flag goes before the environment, the environment before the file. A value that a flag cannot have is wrong usage of
the command line; everything else that is wrong with a setting is a StartError, which says where the setting was given.
"""

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from statestore.address import Address, TcpAddress, UnixAddress, parse_address
from statestored.errors import StartError
from statestored.log import FORMATS, LEVELS
from statestored.sockets import lock_of_socket
from statestored.tls import TlsFiles
from statestored.tokens import lock_of_tokens

PREFIX = "STATESTORED_"
TOKEN_VARIABLE = PREFIX + "TOKEN"  # in the environment only: a flag would show it to everybody who lists processes
MIN_TOKEN = 16  # characters; what is shorter, somebody has thought of, and somebody else can guess
FSYNC = ("always", "everysec", "never")
DEFAULT_PORT, DEFAULT_ADMIN_PORT = 7828, 7829
MIB = 2**20
MAX_SIZE = 2**63 - 1  # bytes; `info` has sizes, and MessagePack integers have 64 bits
# In any case. Container engines and systemd take K, M, G and T for powers of 1024 as well.
UNITS = {"": MIB, "b": 1}
UNITS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
UNITS |= {f"{letter}{end}": 1024**power for power, letter in enumerate("kmgt", 1) for end in ("", "ib")}
_CONFIG_PATH = __name__ + ".config"  # in click's context


class AddressType(click.ParamType[Address]):
    name = "ADDRESS"

    def __init__(self, default_port: int) -> None:
        self._default_port = default_port

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Address:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]  # converted already
        try:
            return parse_address(value, self._default_port)
        except ValueError as error:
            self.fail(str(error))


class PathType(click.Path):
    """A path, which may begin with `~`. An empty one is None if the setting is optional.

    What is there is not looked at: only the code that opens the file can say what is wrong with it.
    """

    def __init__(self, *, optional: bool = False) -> None:
        super().__init__(path_type=Path)
        self.optional = optional

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "\0" in str(value):
            self.fail("a path holds no NUL character", param, ctx)
        if value == "":
            return None if self.optional else self.fail("the path is empty", param, ctx)
        path = os.path.expanduser(value)
        if path.startswith("~"):
            self.fail(f"{value!r}: there is no such home directory; a file of that name is ./{value}", param, ctx)
        return super().convert(path, param, ctx)


class Integer(click.IntRange):
    name = "integer"


class Size(click.ParamType[int]):
    """A number of bytes, given with a unit, or as a number of MiB without."""

    name = "size"

    def __init__(self, least: str = "0") -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        size = self._bytes(value)
        if size is None:
            self.fail(
                f"{value!r} is no size: give a whole number of MiB, or one with a unit, which is KB, MB, GB or TB for "
                "powers of 1000, KiB, MiB, GiB or TiB (or K, M, G, T) for powers of 1024, or B",
                param,
                ctx,
            )
        if size < (self._bytes(self._least) or 0):
            self.fail(f"{value} is too little: {self._least} is the least", param, ctx)
        if size > MAX_SIZE:
            self.fail(f"{value} is too much: no machine has more than 8EiB", param, ctx)
        return size

    def _bytes(self, value: object) -> int | None:
        match = re.fullmatch(r"([0-9]{1,15}) ?([A-Za-z]*)", str(value).strip())
        unit = UNITS.get(match[2].lower()) if match else None
        return None if match is None or unit is None else int(match[1]) * unit


class Seconds(click.FloatRange):
    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


def default_data_dir() -> Path:
    """Return systemd's $STATE_DIRECTORY (the first, if it names several), or else the user's own.

    Raises:
        StartError: The user has no home directory.
    """
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    try:
        return Path.home() / ".local" / "state" / "statestored"
    except RuntimeError:
        raise StartError(
            f"neither HOME nor an entry for user {os.geteuid()} says where the user's home directory is: "
            "say with --data-dir where to keep the states"
        ) from None


def _setting(help_: str, type_: Any, default: Any, **more: Any) -> Any:
    return field(metadata={"help": help_, "type": type_, "default": default, **more})


@dataclass(frozen=True, slots=True)
class Settings:
    listen: tuple[Address, ...] = _setting(
        "Where clients connect: HOST:PORT or unix:/PATH; may be given several times.",
        AddressType(DEFAULT_PORT),
        (f"127.0.0.1:{DEFAULT_PORT}",),
        multiple=True,
    )
    admin_listen: Address = _setting(
        "Where /live, /ready and /metrics are served, over HTTP.",
        AddressType(DEFAULT_ADMIN_PORT),
        f"127.0.0.1:{DEFAULT_ADMIN_PORT}",
    )
    data_dir: Path = _setting(
        "Where the states are kept. Without it $STATE_DIRECTORY, else ~/.local/state/statestored.",
        PathType(),
        default_data_dir,
    )
    engine: str = _setting(
        "What holds the states: embedded: is this process.", click.Choice(["embedded:"]), "embedded:"
    )
    tokens: Path | None = _setting(
        "A file with the tokens that clients must give, made with `statestored token`; or set STATESTORED_TOKEN.",
        PathType(optional=True),
        None,
    )
    tls_cert: Path | None = _setting(
        "The server's certificate: with it the TCP addresses of --listen speak TLS.",
        PathType(optional=True),
        None,
    )
    tls_key: Path | None = _setting("The certificate's key.", PathType(optional=True), None)
    tls_client_ca: Path | None = _setting(
        "Authorities: with them each client needs a certificate from one of these.",
        PathType(optional=True),
        None,
    )
    allow_clear: bool = _setting("Let clients forget all states of their namespace at once.", bool, False, is_flag=True)
    fsync: str = _setting(
        "When a write is acknowledged: once it is on the disk (always), or once the system has it, which is made to "
        "write it every second (everysec), or when it likes (never).",
        click.Choice(FSYNC),
        "always",
    )
    snapshot_interval: float = _setting(
        "Seconds from one snapshot to the next, where anything changed; 0: none by time.", Seconds(min=0), 3600.0
    )
    snapshot_journal_size: int = _setting(
        "A snapshot is also due when the journal is so large (MiB, or with a unit: 1GiB), and no smaller than the last "
        "snapshot; 0: none by size.",
        Size(),
        "128MiB",
    )
    max_module: int = _setting("The longest module, in bytes.", Integer(1, 4096), 1024)
    max_sender: int = _setting("The longest sender, in bytes.", Integer(1, 16384), 4096)
    max_state: int = _setting("The longest state, in bytes.", Integer(1, 4096), 1024)
    max_namespaces: int = _setting("How many namespaces there may be.", Integer(min=1), 1000)
    max_modules: int = _setting("How many modules one sender may have a state in.", Integer(1, 1000), 100)
    max_memory: int = _setting(
        "Memory that all states may take (MiB, or with a unit: 2GiB); then nothing new is stored. 0: half of what the "
        "machine or the container has.",
        Size(),
        "0",
    )
    max_connections: int = _setting(
        "How many clients may be connected; fewer where the system lets a process open fewer files.",
        Integer(min=1),
        10_000,
    )
    max_buffers: int = _setting(
        "Memory that all connections together may hold (MiB, or with a unit: 64MiB), of requests in part and of "
        "answers that were not taken.",
        Size(least="4MiB"),
        "32MiB",
    )
    log_level: str = _setting("The least that is logged.", click.Choice(LEVELS), "info")
    log_format: str = _setting("How log lines look.", click.Choice(FORMATS), "text")


def options() -> Iterator[click.Option]:
    """The flags, as click wants them."""
    yield SettingOption(
        ["--config"],
        type=PathType(),
        envvar=PREFIX + "CONFIG",
        show_envvar=True,
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help='A TOML file with settings, under the names of the flags: data-dir = "/var/lib/statestored".',
    )
    for setting in fields(Settings):
        yield _option(setting)


class SettingOption(click.Option):
    """A flag. What is wrong with a value that was given elsewhere is not blamed on it."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return the flag alone, without the variable that would do as well."""
        return click.Parameter.get_error_hint(self, ctx)

    def handle_parse_result(self, ctx: click.Context, *rest: Any) -> Any:
        try:
            return super().handle_parse_result(ctx, *rest)
        except click.BadParameter as error:
            if (place := _place(ctx, self.name)) is None:
                raise
            raise StartError(f"{place}: {error.message}") from error


def told_where_given(ctx: click.Context, error: StartError) -> StartError:
    """Add where the settings of which the error names the flags were given, if that was not as flags."""
    first, newline, rest = str(error).partition("\n")
    places = {name: _place(ctx, name.replace("-", "_")) for name in re.findall(r"--([a-z-]+)", first)}
    notes = [f"--{name} was set by {place}" for name, place in places.items() if place is not None]
    return StartError(f"{first} ({', '.join(notes)}){newline}{rest}") if notes else error


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings of ours and are none."""
    known = {TOKEN_VARIABLE, PREFIX + "CONFIG"} | {_variable(setting.name) for setting in fields(Settings)}
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def own_token(environment: Mapping[str, str]) -> str | None:
    """The token that is given in the environment, or None. Raises StartError."""
    advice = "make a token with `openssl rand -hex 32`"
    token = environment.get(TOKEN_VARIABLE)
    if token is not None and not (token and token.isascii() and token.isprintable()):
        raise StartError(f"{TOKEN_VARIABLE} is empty, or not printable ASCII: {advice}")
    if token is not None and len(token) < MIN_TOKEN:
        raise StartError(f"{TOKEN_VARIABLE} has {len(token)} characters, and {MIN_TOKEN} are the least: {advice}")
    return token


def files_named(settings: Settings) -> list[Path]:
    """Return the files that the settings name, and the lock files that are made beside some of them."""
    named = (settings.tokens, settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    sockets = [Path(each.path) for each in (*settings.listen, settings.admin_listen) if isinstance(each, UnixAddress)]
    locks = [lock_of_socket(path) for path in sockets]
    if settings.tokens is not None:
        locks.append(lock_of_tokens(settings.tokens))
    return [*(path for path in named if path is not None), *locks]


def tls_files(settings: Settings) -> TlsFiles | None:
    """Return None if there is to be no TLS. Raises StartError if the settings contradict each other."""
    certificate, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if certificate is None or key is None:
        for setting, value in (("--tls-cert", certificate), ("--tls-key", key), ("--tls-client-ca", client_ca)):
            if value is not None:
                missing = "--tls-cert" if certificate is None else "--tls-key"
                raise StartError(f"{setting} needs {missing} as well")
        return None
    if not any(isinstance(address, TcpAddress) for address in settings.listen):
        raise StartError("--tls-cert is for TCP addresses, and --listen names none: leave it out, or add one")
    return TlsFiles(certificate, key, client_ca)


def _option(setting: "Field[Any]") -> click.Option:
    more = dict(setting.metadata)
    default = more.pop("default")
    return SettingOption(
        ["--" + _key(setting.name)],
        default=default,
        show_default=default is not None and not callable(default),
        envvar=_variable(setting.name),
        show_envvar=True,
        **more,
    )


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _key(name: str) -> str:
    return name.replace("_", "-")


def _place(ctx: click.Context, name: str | None) -> str | None:
    """Return where a setting was given, or None if it was given as a flag, or not at all."""
    source = None if name is None else ctx.get_parameter_source(name)
    if name is None or source not in (ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP):
        return None
    return _variable(name) if source is ParameterSource.ENVIRONMENT else f"{ctx.meta[_CONFIG_PATH]}: {_key(name)}"


def _read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Make the file's settings click's defaults."""
    if path is None:
        return
    ctx.meta[_CONFIG_PATH] = path
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise told_where_given(ctx, StartError(f"--config {path} cannot be read: {error.strerror}")) from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or more than Python's reader of it takes
        raise StartError(f"{path}: {error}") from error
    known = {_key(setting.name): setting for setting in fields(Settings)}
    for key, value in found.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise StartError(f"{path}: there is no setting {key!r}" + (f"; is it {near[0]!r}?" if near else ""))
        _check_toml_type(path, known[key], value)
    ctx.default_map = {known[key].name: value for key, value in found.items()}


# The types of TOML that a setting takes, by that of its flag: exactly these, because a bool is an int to Python, and
# click itself would take a 1.5 for a 1.
_TOML_TYPES: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    Integer: ("an integer", (int,)),
    Seconds: ("a number", (int, float)),
    Size: ("a number of MiB, or a string with a unit", (int, str)),
}


def _check_toml_type(path: Path, setting: "Field[Any]", value: object) -> None:
    place = f"{path}: {_key(setting.name)}"
    if setting.metadata.get("multiple"):
        if not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
            raise StartError(f"{place}: it must be an array of strings, and not empty")
        return
    kind = setting.metadata["type"]
    words, types = _TOML_TYPES.get(kind if isinstance(kind, type) else type(kind), ("a string", (str,)))
    if type(value) not in types:
        raise StartError(f"{place}: it must be {words}")
