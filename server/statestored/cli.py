"""The command `statestored`, and its exit codes."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from statestored import __version__
from statestored.app import run
from statestored.check import Checked, check
from statestored.errors import DamagedFile, DiskFailed, Exit, OutputFailed, StartError, TooNew
from statestored.log import set_up_logging
from statestored.repair import repair
from statestored.settings import PathType, Settings, options, told_where_given
from statestored.stdio import printable_lines
from statestored.tokens import ROLES, add_token, check_name, check_namespace


@click.pass_context
def _serve(ctx: click.Context, /, **values: Any) -> None:
    if ctx.invoked_subcommand is not None:
        return
    settings = Settings(**values)
    set_up_logging(settings.log_level, settings.log_format)
    try:
        run(settings, os.environ)
    except StartError as error:
        raise told_where_given(ctx, error) from None


# The system says with these that a path is wrong, and not that the disk is.
WRONG_PATH = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
WRONG_PATH |= {errno.ENAMETOOLONG, errno.ELOOP}

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
    epilog="Exit codes: 0 sound, 1 cannot be checked, or the report cannot be printed, 2 usage, 3 damaged, 4 the disk "
    "could not be read.",
    context_settings=CONTEXT,
)
@click.argument("directory", metavar="DIR", type=PathType())
def _check(directory: Path) -> Exit:
    return _offline(check, directory)


@command.command(
    "repair",
    short_help="Save what can be read of a damaged data directory.",
    help="Where the data directory DIR is damaged, save all that can be read, and keep the damaged files beside it.",
    epilog="Exit codes: 0 repaired, or nothing to repair, 1 cannot be repaired, or the report cannot be printed, "
    "2 usage, 3 nothing can be read, 4 the disk failed.",
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
    "written, or has a NAME already, or the token cannot be printed, 2 usage.",
    context_settings=CONTEXT,
)
@click.argument("file", metavar="FILE", type=PathType())
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
    shown: list[str] = []

    def show(token: str) -> None:
        click.echo(token)
        shown.append(token)

    try:
        add_token(file, name, ROLES[role], namespaces, show)
    except (StartError, DiskFailed, OSError) as error:
        note = ": the token that was printed is not in the file, and opens nothing" if shown else ""
        raise StartError(f"{error}{note}") from error
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
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)  # nobody is to take an end by a signal for a success
    set_up_logging("error", "text")
    code, report = work(directory)
    click.echo(printable_lines(report))
    return code


def main() -> NoReturn:
    try:
        code = _run(sys.argv[1:])
    except click.UsageError as error:
        error.show()
        sys.exit(Exit.USAGE)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.Abort:
        sys.exit(Exit.STOPPED)
    except (StartError, TooNew, OutputFailed) as error:
        _end(Exit.CANNOT_START, error)
    except DamagedFile as error:
        _end(Exit.DAMAGED, error)
    except OSError as error:
        _end(Exit.CANNOT_START if error.errno in WRONG_PATH else Exit.DISK_FAILED, error)
    except DiskFailed as error:
        _end(Exit.DISK_FAILED, error)
    sys.exit(code or Exit.STOPPED)


def _run(arguments: list[str]) -> Any:
    """A command that has a name has nothing to do with the daemon's settings, which may be wrong in the environment."""
    name = arguments[0] if arguments else ""
    if name in command.commands:
        return command.commands[name].main(arguments[1:], f"statestored {name}", standalone_mode=False)
    return command.main(arguments, "statestored", standalone_mode=False)


def _end(code: Exit, error: Exception) -> NoReturn:
    click.echo(printable_lines(f"statestored: {error}"), err=True)
    sys.exit(code)


def _show_version(ctx: click.Context) -> None:
    click.echo(f"statestored {__version__}")
    ctx.exit()
