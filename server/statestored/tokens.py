"""Tokens: who may do what, and where. A file holds what they are recognised by, not themselves.

It is TOML, a table for each token, under a name for people:

    [lists-2026]
    role = "write"               # read, write or admin
    namespaces = ["lists"]       # without it, all
    sha256 = "9f86d081884c7d65..."

A token is 256 random bits, so that a plain SHA-256 will do: nobody finds one by trying, however fast. Salt and slowness
are for passwords, which people choose.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from statestored import files
from statestored.engines.base import MAX_NAMESPACE
from statestored.errors import StartError
from statestored.locks import file_locked

TOKEN_BYTES = 32
PATIENCE_SECONDS = 10.0  # for another process that adds a token
MAX_LINKS = 40  # one after the other
MAX_TOKENS = 256  # a token that is given is compared with all of them, in a fraction of a millisecond
_KEYS = {"role", "namespaces", "sha256"}


class Role(IntEnum):
    """What a caller may do; each may also do what those before it may."""

    NOBODY = 0
    READ = 1
    WRITE = 2
    ADMIN = 3


ROLES = {role.name.lower(): role for role in Role if role is not Role.NOBODY}


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of one. `namespaces` is None where it opens all of them."""

    name: str
    role: Role
    namespaces: frozenset[bytes] | None
    digest: bytes

    def opens(self, namespace: bytes) -> bool:
        return self.namespaces is None or namespace in self.namespaces


def digest_of(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def read_tokens(path: Path) -> list[Token]:
    """All tokens of the setting's file, at least one. Raises StartError, which names both, and what is wrong."""
    name = f"--tokens {path}"
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise StartError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StartError(f"{name} cannot be read: {error}") from error
    tokens = _parse(name, text)
    if not tokens:
        raise StartError(f"{name} has no token: make one with `statestored token {path} NAME`")
    return tokens


def check_name(name: str) -> None:
    """Raises ValueError if a token cannot have this name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ValueError(f"{name!r} is no name for a token: it needs 1 to 64 letters (A-Z, a-z), digits, - and _")


def check_namespace(namespace: str) -> None:
    """Raises ValueError if no client can work in a namespace of this name, or if TOML cannot hold it."""
    try:
        size = len(namespace.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{namespace!r} is no name for a namespace: it is not UTF-8") from None
    if size > MAX_NAMESPACE:
        raise ValueError(f"{namespace!r} is no name for a namespace: {size} bytes are more than {MAX_NAMESPACE}")


def add_token(
    path: Path, name: str, role: Role, namespaces: Sequence[str], show: Callable[[str], None] = lambda _: None
) -> str:
    """Make a token, and add what it is recognised by to the end of the file, which is made if there is none.

    Everything else in the file stays as it is, and so do its owner, group and mode. Runs at the same time wait for
    each other. The token is kept nowhere.

    Args:
        show: Is called with the token when all but the file's name is written. If this raises, the file is as before.

    Returns:
        The token.

    Raises:
        ValueError: The name, or a namespace, cannot be one.
        StartError: The file cannot be read or written, or cannot have this token; it is as it was.
    """
    check_name(name)
    for namespace in namespaces:
        check_namespace(namespace)
    token = secrets.token_hex(TOKEN_BYTES)
    try:
        path = _follow(path)
        with file_locked(lock_of_tokens(path), PATIENCE_SECONDS):
            before, status = _read(path)
            _check_before(path, before, name)
            content = f"{before.rstrip()}\n\n{_table(name, role, namespaces, token)}".lstrip()
            _parse(str(path), content)  # nothing is written that could not be read
            # Somebody else may have the directory: a name that could be foreseen could be a link by now.
            temporary = files.random_name(path)
            files.write_durably(path, content.encode(), temporary, status, lambda: show(token))
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"cannot write {path}: {error}") from error
    return token


def lock_of_tokens(path: Path) -> Path:
    """Return the path of the lock file beside a file of tokens."""
    return path.with_name(f".{path.name}.lock")


def _follow(path: Path) -> Path:
    """Return the file itself if `path` is a symbolic link of ours or of root's, so that the link stays one.

    Raises StartError for a link of another user, who could have root change any file by it; or OSError.
    """
    for _ in range(MAX_LINKS):
        if not path.is_symlink():
            return path
        owner = path.lstat().st_uid
        if owner not in (0, os.geteuid()):
            raise StartError(f"{path} is a symbolic link that belongs to user {owner}: name the file itself")
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _read(path: Path) -> tuple[str, os.stat_result | None]:
    """Return what is in the file, and whose it is (None: there is no such file). Raises OSError, UnicodeDecodeError."""
    try:
        with files.open_to_read(path) as file:
            return file.read().decode(), os.fstat(file.fileno())
    except FileNotFoundError:
        return "", None


def _check_before(path: Path, content: str, name: str) -> None:
    """Raises StartError if a token of this name cannot be added."""
    try:
        tokens = _parse(str(path), content)
    except StartError as error:
        raise StartError(f"{error} (that was so before, and nothing was added: mend the file first)") from None
    if any(token.name == name for token in tokens):
        raise StartError(f"{path} has a token called {name} already: choose another name, or remove its lines first")
    if len(tokens) == MAX_TOKENS:
        raise StartError(f"{path} has {MAX_TOKENS} tokens already, and no more are allowed: remove one first")


def _table(name: str, role: Role, namespaces: Sequence[str], token: str) -> str:
    lines = [f"[{name}]", f'role = "{role.name.lower()}"']
    if namespaces:
        # The one character that JSON may have as it is, and TOML may not.
        listed = json.dumps(namespaces, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"namespaces = {listed}")
    lines.append(f'sha256 = "{digest_of(token.encode()).hex()}"')
    return "\n".join(lines) + "\n"


def _parse(name: str, text: str) -> list[Token]:
    try:
        tokens = [_token(title, about) for title, about in tomllib.loads(text).items()]
    except (ValueError, RecursionError) as error:
        raise StartError(f"{name}: {error}") from error
    if len(tokens) > MAX_TOKENS:
        raise StartError(f"{name} has {len(tokens)} tokens, at most {MAX_TOKENS} are allowed")
    if len({token.digest for token in tokens}) < len(tokens):
        raise StartError(f"{name}: two tokens have the same sha256")
    return tokens


def _token(name: str, about: Any) -> Token:
    """Raises ValueError."""
    check_name(name)
    if not isinstance(about, dict):
        raise ValueError(f"{name} must be a table: [{name}]")
    unknown = next((key for key in about if key not in _KEYS), None)
    if unknown is not None:
        raise ValueError(f"[{name}] knows no {unknown!r}, only {', '.join(sorted(_KEYS))}")
    role, namespaces, digest = about.get("role"), about.get("namespaces"), about.get("sha256")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"[{name}] role must be one of {', '.join(ROLES)}")
    if namespaces is not None and not (
        isinstance(namespaces, list) and namespaces and all(isinstance(item, str) for item in namespaces)
    ):
        raise ValueError(f"[{name}] namespaces must be an array of strings; leave it out for all")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"[{name}] sha256 must be 64 hexadecimal digits, in small letters")
    return Token(
        name,
        ROLES[role],
        None if namespaces is None else frozenset(item.encode() for item in namespaces),
        bytes.fromhex(digest),
    )
