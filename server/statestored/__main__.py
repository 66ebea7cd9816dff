"""`python -m statestored`, and the command of that name: says what to install where the server's libraries lack."""

import signal
import sys

from statestored import stdio


def main() -> None:
    stdio.set_up()
    # Until the daemon listens for signals there is nothing to end in order. A container's first process would not even
    # notice one that it has no handler for, and be killed ten seconds later.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stdio.exit_now(0))
    for signum in (signal.SIGHUP, signal.SIGUSR1):  # there is nothing yet to read again, or to write a snapshot of
        signal.signal(signum, signal.SIG_IGN)
    try:
        from statestored.cli import main as start
    except ModuleNotFoundError as error:
        print(  # noqa: T201
            f"statestored: {error.name} is not installed; the daemon needs: pip install 'statestored[server]'",
            file=sys.stderr,
        )
        sys.exit(2)
    start()


if __name__ == "__main__":
    main()
