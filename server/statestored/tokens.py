"""Tokens: who may do what, and where. A file holds what they are recognised by, not themselves.

It is TOML, a table for each token, under a name for people:

    [lists-2026]
    role = "write"               # read, write or admin
    namespaces = ["lists"]       # without it, all
    sha256 = "9f86d081884c7d65..."

A token is 256 random bits, so that a plain SHA-256 will do: nobody finds one by trying, however fast. Salt and slowness
are for passwords, which people choose.
"""

import hashlib
import json
import re
import secrets
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from statestored import files
from statestored.errors import StartError

TOKEN_BYTES = 32
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
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{name} cannot be read: {error}") from error
    tokens = _parse(name, text)
    if not tokens:
        raise StartError(f"{name} has no token: make one with `statestored token {path} NAME`")
    return tokens


def add_token(
    path: Path, name: str, role: Role, namespaces: Sequence[str], show: Callable[[str], None] = lambda _: None
) -> str:
    """Make a token; what it is recognised by goes to the end of the file, which need not be there yet.

    The rest of the file stays as it is, and the file whose it was. The token is kept nowhere.

    Args:
        show: Is called with the token when all but the file's name is written. If this raises, the file is as before.

    Returns:
        The token.

    Raises:
        StartError: The file cannot be read or written, or cannot have this token.
    """
    token = secrets.token_hex(TOKEN_BYTES)
    path = path.resolve()  # where it is a link, that stays
    try:
        old = path.stat() if path.exists() else None
        before = "" if old is None else path.read_text("utf-8")
        content = f"{before.rstrip()}\n\n{_table(name, role, namespaces, token)}".lstrip()
        _parse(str(path), content)  # nothing is written that could not be read
        files.write_durably(path, content.encode(), old, lambda: show(token))
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"cannot write {path}: {error}") from error
    return token


def _table(name: str, role: Role, namespaces: Sequence[str], token: str) -> str:
    lines = [f"[{name}]", f'role = "{role.name.lower()}"']
    if namespaces:
        lines.append(f"namespaces = {json.dumps(namespaces, ensure_ascii=False)}")
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
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ValueError(f"{name!r} is no name for a token: up to 64 letters, digits, - and _")
    if not isinstance(about, dict):
        raise ValueError(f"{name} must be a table: [{name}]")
    for key in about.keys() - _KEYS:
        raise ValueError(f"[{name}] knows no {key!r}, only {', '.join(sorted(_KEYS))}")
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
