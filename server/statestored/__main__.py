"""`python -m statestored`, and the command of that name: says what to install where the server's libraries lack."""

import sys


def main() -> None:
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
