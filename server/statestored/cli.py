"""The command `statestored`, and its exit codes."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from statestored import __version__
from statestored.app import run
from statestored.check import Checked, check
from statestored.errors import DamagedFile, DiskFailed, Exit, StartError, TooNew
from statestored.log import set_up_logging
from statestored.repair import repair
from statestored.settings import PathType, Settings, options
from statestored.tokens import ROLES, add_token, check_name, check_namespace


@click.pass_context
def _serve(ctx: click.Context, /, **values: Any) -> None:
    if ctx.invoked_subcommand is not None:
        return
    settings = Settings(**values)
    set_up_logging(settings.log_level, settings.log_format)
    run(settings, os.environ)


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}

command = click.Group(
    "statestored",
    callback=_serve,
    params=[*options()],
    invoke_without_command=True,
    subcommand_metavar="[check DIR | repair DIR | token FILE NAME]",
    help="Hold the conversation states of mail applications, for all of their processes.",
    epilog="Exit codes: 0 asked to stop, 1 cannot start, 2 usage, 3 data damaged, 4 the disk failed.",
    context_settings=CONTEXT,
)
command.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        help="Show the version and exit.",
        callback=lambda ctx, _param, value: _show_version(ctx) if value else None,
    )
)


@command.command(
    "check",
    short_help="Say what is in a data directory, and whether it is sound.",
    help="Say what is in the data directory DIR, and whether it is sound. No daemon may be running on it; nothing is "
    "changed.",
    epilog="Exit codes: 0 sound, 1 cannot be checked, 2 usage, 3 damaged, 4 the disk could not be read.",
    context_settings=CONTEXT,
)
@click.argument("directory", metavar="DIR", type=PathType())
def _check(directory: Path) -> Exit:
    return _offline(check, directory)


@command.command(
    "repair",
    short_help="Save what can be read of a damaged data directory.",
    help="Where the data directory DIR is damaged, save all that can be read, and keep the damaged files beside it.",
    epilog="Exit codes: 0 repaired, or nothing to repair, 1 cannot be repaired, 2 usage, 3 nothing can be read, "
    "4 the disk failed.",
    context_settings=CONTEXT,
)
@click.argument("directory", metavar="DIR", type=PathType())
def _repair(directory: Path) -> Exit:
    return _offline(repair, directory)


@command.command(
    "token",
    short_help="Make a token, and add what it is recognised by to a file.",
    help="Make a token called NAME, print it, and add what it is recognised by to FILE, which a daemon with --tokens "
    "FILE reads at its start and at SIGHUP. The token itself is kept nowhere. To take it back, remove its lines.",
    epilog="NAME has up to 64 letters (A-Z, a-z), digits, - and _. Exit codes: 0 made, 1 FILE cannot be read or "
    "written, or has a NAME already, 2 usage.",
    context_settings=CONTEXT,
)
@click.argument("file", metavar="FILE", type=PathType(dir_okay=False))
@click.argument("name", metavar="NAME", callback=lambda _ctx, _param, value: _checked(check_name, value))
@click.option("--role", type=click.Choice(tuple(ROLES)), default="write", show_default=True, help="What it allows.")
@click.option(
    "--namespace",
    "namespaces",
    metavar="NAMESPACE",
    multiple=True,
    callback=lambda _ctx, _param, values: tuple(_checked(check_namespace, value) for value in values),
    help="Where; several times, or for all.",
)
def _token(file: Path, name: str, role: str, namespaces: tuple[str, ...]) -> Exit:
    is_new = not file.exists()
    click.echo(add_token(file, name, ROLES[role], namespaces))
    if is_new and os.geteuid() == 0:
        click.echo(f"{file} is for root only: give it to the daemon's user with chown", err=True)
    return Exit.STOPPED


def _checked(check: Callable[[str], None], value: str) -> str:
    """A value that `check` lets pass; for others wrong usage, in its words."""
    try:
        check(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _offline(work: Callable[[Path], Checked], directory: Path) -> Exit:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)  # nobody is to take an end by a signal for a success
    set_up_logging("error", "text")
    code, report = work(directory)
    click.echo(report)
    return code


def main() -> NoReturn:
    try:
        code = _run(sys.argv[1:])
    except click.UsageError as error:
        error.show()
        sys.exit(_usage_exit(error))
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.Abort:
        sys.exit(Exit.STOPPED)
    except (StartError, TooNew, PermissionError, IsADirectoryError) as error:
        _end(Exit.CANNOT_START, error)
    except DamagedFile as error:
        _end(Exit.DAMAGED, error)
    except (DiskFailed, OSError) as error:
        _end(Exit.DISK_FAILED, error)
    sys.exit(code or Exit.STOPPED)


def _run(arguments: list[str]) -> Any:
    """A command that has a name has nothing to do with the daemon's settings, which may be wrong in the environment."""
    name = arguments[0] if arguments else ""
    if name in command.commands:
        return command.commands[name].main(arguments[1:], f"statestored {name}", standalone_mode=False)
    return command.main(arguments, "statestored", standalone_mode=False)


def _usage_exit(error: click.UsageError) -> Exit:
    """A bad value is a matter of usage where it was typed, and of a setting where it came from elsewhere."""
    param, ctx = getattr(error, "param", None), error.ctx
    if param is None or ctx is None or param.name is None or isinstance(error, click.MissingParameter):
        return Exit.USAGE
    typed = ctx.get_parameter_source(param.name) in (ParameterSource.COMMANDLINE, None)
    return Exit.USAGE if typed else Exit.CANNOT_START


def _end(code: Exit, error: Exception) -> NoReturn:
    click.echo(f"statestored: {error}", err=True)
    sys.exit(code)


def _show_version(ctx: click.Context) -> None:
    click.echo(f"statestored {__version__}")
    ctx.exit()
