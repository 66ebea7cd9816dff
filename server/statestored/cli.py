"""The command `statestored`, and its exit codes."""

import os
import sys
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from statestored import __version__
from statestored.app import run
from statestored.errors import DamagedFile, DiskFailed, Exit, StartError, TooNew
from statestored.log import set_up_logging
from statestored.settings import Settings, options


def _serve(**values: Any) -> None:
    settings = Settings(**values)
    set_up_logging(settings.log_level, settings.log_format)
    run(settings, os.environ)


command = click.Command(
    "statestored",
    callback=_serve,
    params=[*options()],
    help="Hold the conversation states of mail applications, for all of their processes.",
    epilog="Exit codes: 0 asked to stop, 1 cannot start, 2 usage, 3 data damaged, 4 the disk failed.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
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


def main() -> NoReturn:
    try:
        command.main(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(_usage_exit(error))
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.Abort:
        sys.exit(Exit.STOPPED)
    except (StartError, TooNew, PermissionError, IsADirectoryError, RuntimeError) as error:
        _end(Exit.CANNOT_START, error)
    except DamagedFile as error:
        _end(Exit.DAMAGED, error)
    except (DiskFailed, OSError) as error:
        _end(Exit.DISK_FAILED, error)
    sys.exit(Exit.STOPPED)


def _usage_exit(error: click.UsageError) -> Exit:
    """A bad value is a matter of usage where it was typed, and of a setting where it came from elsewhere."""
    param, ctx = getattr(error, "param", None), error.ctx
    if param is None or ctx is None or param.name is None:
        return Exit.USAGE
    typed = ctx.get_parameter_source(param.name) in (ParameterSource.COMMANDLINE, None)
    return Exit.USAGE if typed else Exit.CANNOT_START


def _end(code: Exit, error: Exception) -> NoReturn:
    click.echo(f"statestored: {error}", err=True)
    sys.exit(code)


def _show_version(ctx: click.Context) -> None:
    click.echo(f"statestored {__version__}")
    ctx.exit()
