"""The settings, each declared once: flag, STATESTORED_* variable, TOML key, help and default derive from a field here.

A flag goes before the environment, the environment before the file.
"""

import difflib
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import click

from statestore.address import Address, TcpAddress, parse_address
from statestored.errors import StartError
from statestored.log import FORMATS, LEVELS
from statestored.tls import TlsFiles

PREFIX = "STATESTORED_"
TOKEN_VARIABLE = PREFIX + "TOKEN"  # in the environment only: a flag would show it to everybody who lists processes
MIN_TOKEN = 16  # characters; what is shorter, somebody has thought of, and somebody else can guess
FSYNC = ("always", "everysec", "never")
DEFAULT_PORT, DEFAULT_ADMIN_PORT = 7828, 7829


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
    """A path, `~` included; an empty one is none, where there may be none."""

    def __init__(self, *, optional: bool = False, **more: Any) -> None:
        super().__init__(path_type=Path, **more)
        self.optional = optional

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "\0" in str(value):
            self.fail("a path holds no NUL character", param, ctx)
        if value == "":
            return None if self.optional else self.fail("the path is empty", param, ctx)
        return super().convert(os.path.expanduser(value), param, ctx)


class Seconds(click.FloatRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


def default_data_dir() -> Path:
    """systemd's $STATE_DIRECTORY (the first, where it names several), else the user's own."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(given) if given else Path.home() / ".local" / "state" / "statestored"


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
        PathType(file_okay=False),
        default_data_dir,
    )
    engine: str = _setting(
        "What holds the states: embedded: is this process.", click.Choice(["embedded:"]), "embedded:"
    )
    tokens: Path | None = _setting(
        "A file with the tokens that clients must give, made with `statestored token`; or set STATESTORED_TOKEN.",
        PathType(dir_okay=False, optional=True),
        None,
    )
    tls_cert: Path | None = _setting(
        "The server's certificate: with it the TCP addresses of --listen speak TLS.",
        PathType(dir_okay=False, optional=True),
        None,
    )
    tls_key: Path | None = _setting("The certificate's key.", PathType(dir_okay=False, optional=True), None)
    tls_client_ca: Path | None = _setting(
        "Authorities: with them each client needs a certificate from one of these.",
        PathType(dir_okay=False, optional=True),
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
        "A snapshot is also due when the journal has so many MiB, and no fewer than the last snapshot has; "
        "0: none by size.",
        click.IntRange(min=0),
        128,
    )
    max_module: int = _setting("The longest module, in bytes.", click.IntRange(1, 4096), 1024)
    max_sender: int = _setting("The longest sender, in bytes.", click.IntRange(1, 16384), 4096)
    max_state: int = _setting("The longest state, in bytes.", click.IntRange(1, 4096), 1024)
    max_namespaces: int = _setting("How many namespaces there may be.", click.IntRange(min=1), 1000)
    max_modules: int = _setting("How many modules one sender may have a state in.", click.IntRange(1, 1000), 100)
    max_memory: int = _setting(
        "MiB that all states may take; then nothing new is stored. 0: half of what the machine or the container has.",
        click.IntRange(min=0),
        0,
    )
    max_connections: int = _setting(
        "How many clients may be connected; fewer where the system lets a process open fewer files.",
        click.IntRange(min=1),
        10_000,
    )
    max_buffers: int = _setting(
        "MiB that all connections together may hold, of requests in part and of answers that were not taken.",
        click.IntRange(min=4),
        32,
    )
    log_level: str = _setting("The least that is logged.", click.Choice(LEVELS), "info")
    log_format: str = _setting("How log lines look.", click.Choice(FORMATS), "text")


def options() -> Iterator[click.Option]:
    """The flags, as click wants them."""
    yield click.Option(
        ["--config"],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar=PREFIX + "CONFIG",
        show_envvar=True,
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help='A TOML file with settings, under the names of the flags: data-dir = "/var/lib/statestored".',
    )
    for setting in fields(Settings):
        yield _option(setting)


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
    """Return the files that the settings name."""
    named = (settings.tokens, settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    return [path for path in named if path is not None]


def tls_files(settings: Settings) -> TlsFiles | None:
    """None where there is to be no TLS. Raises StartError where the settings contradict each other."""
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
    return click.Option(
        ["--" + setting.name.replace("_", "-")],
        default=default,
        show_default=default is not None and not callable(default),
        envvar=_variable(setting.name),
        show_envvar=True,
        **more,
    )


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """The file's settings become click's defaults."""
    if path is None:
        return
    try:
        found = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartError(f"{path}: {error}") from error
    known = {setting.name.replace("_", "-"): setting for setting in fields(Settings)}
    for key, value in found.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise StartError(f"{path}: there is no setting {key!r}" + (f"; is it {near[0]!r}?" if near else ""))
        _check_toml_type(path, known[key], value)
    ctx.default_map = {known[key].name: value for key, value in found.items()}


# The types of TOML that a setting takes, by that of its flag: exactly these, for a bool is an int to Python, and click
# itself would take a 1.5 for a 1.
_TOML_TYPES: dict[type, tuple[type, ...]] = {bool: (bool,), click.IntRange: (int,), Seconds: (int, float)}


def _check_toml_type(path: Path, setting: "Field[Any]", value: object) -> None:
    name = setting.name.replace("_", "-")
    if setting.metadata.get("multiple"):
        if not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
            raise StartError(f"{path}: {name} must be an array of strings, and not empty")
        return
    kind = setting.metadata["type"]
    wanted = _TOML_TYPES.get(kind if isinstance(kind, type) else type(kind), (str,))
    if type(value) not in wanted:
        raise StartError(f"{path}: {name} must be of the type {wanted[-1].__name__}, not {type(value).__name__}")
