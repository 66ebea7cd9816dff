"""Whether a data directory can be used: whose it is, who else may change it, and what is in it.

All of these raise StartError, which says what to do, and change nothing.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import structlog

from statestored.errors import StartError

log = structlog.get_logger()

# What operators, file systems, version control and desktops put into a directory that is otherwise empty.
_HARMLESS = {"statestored.toml", "lost+found", ".snapshot", ".snapshots", ".zfs", ".gitkeep", ".keep", ".DS_Store"}
_NAMES_SHOWN = 3


def check_directory(path: Path, directory: os.stat_result) -> None:
    """Refuse a directory that everybody may change, and root on the directory of another user.

    A volume in a container may be open to everybody and belong to root; a user who cannot change that is warned.
    """
    mode, owner, user = stat.S_IMODE(directory.st_mode), directory.st_uid, os.geteuid()
    is_sticky = bool(mode & stat.S_ISVTX)  # nobody can remove or rename the files of others
    if mode & stat.S_IWOTH and not is_sticky:
        if user in (owner, 0):
            raise StartError(f"data directory {path} can be changed by every user (mode {mode:04o}): chmod o-w {path}")
        log.warning("data directory can be changed by every user", data_dir=str(path), mode=f"{mode:04o}")
    if owner not in (user, 0):
        if user == 0:
            raise StartError(
                f"data directory {path} belongs to user {owner}, who could not read what root writes there: "
                f"start as that user, or give the directory to root (chown root {path})"
            )
        log.warning("data directory belongs to another user", data_dir=str(path), owner=owner)
    if mode & stat.S_IWGRP and not is_sticky:
        log.warning("data directory can be changed by a group", data_dir=str(path), group=directory.st_gid)


def check_no_links(paths: Iterable[Path]) -> None:
    """Refuse symbolic links: they lead to files that may be anybody's."""
    for path in paths:
        if path.is_symlink():
            raise StartError(f"{path} is a symbolic link, which is not followed: put the file itself in its place")


def check_owners(paths: Iterable[Path], directory: os.stat_result) -> None:
    """Refuse files that another user has put there, or that a daemon of another user has left."""
    trusted = {os.geteuid(), 0, directory.st_uid}
    for path in paths:
        if (owner := path.stat(follow_symlinks=False).st_uid) not in trusted:
            raise StartError(f"{path} belongs to user {owner}: start as that user, or remove what is not the daemon's")


def check_empty(directory: Path, others: Iterable[Path]) -> None:
    """Refuse to make a new store among `others`, the files there that are not the daemon's."""
    found = sorted(path.name for path in others if path.name not in _HARMLESS and not path.is_socket())
    if found:
        shown = ", ".join(found[:_NAMES_SHOWN]) + (", ..." if len(found) > _NAMES_SHOWN else "")
        raise StartError(
            f"data directory {directory} has no store in it, but other files ({shown}): "
            f"give an empty directory, such as --data-dir {directory / 'statestored'}"
        )
