"""A file of tokens that changes during a test."""

import re
from pathlib import Path

from statestored.tokens import ROLES, add_token


class TokenFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, role: str = "write", *namespaces: str) -> str:
        """The token."""
        return add_token(self.path, name, ROLES[role], namespaces)

    def remove(self, name: str) -> None:
        self._change(rf"\[{name}\]\n(.+\n)+", "")

    def change_role(self, name: str, role: str) -> None:
        self._change(rf'(?<=\[{name}\]\nrole = ")\w+', role)

    def change_namespaces(self, name: str, *namespaces: str) -> None:
        self._change(rf"(\[{name}\]\n.+\n)namespaces = .+", rf"\1namespaces = {list(namespaces)}")

    def _change(self, old: str, new: str) -> None:
        text, changed = re.subn(old, new, self.path.read_text())
        assert changed == 1
        self.path.write_text(text)
