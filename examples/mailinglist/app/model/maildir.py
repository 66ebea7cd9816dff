"""Making a Maildir that several processes share."""

from pathlib import Path


def make_maildir(path: Path) -> str:
    """The path, as Salmon's `Queue` wants it.

    Processes that start together may all come here; `mailbox.Maildir` fails in all but the first.
    """
    for part in ("tmp", "new", "cur"):
        (path / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    return str(path)
