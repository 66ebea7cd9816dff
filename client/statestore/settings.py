"""A client's settings, each declared once: an argument goes before its STATESTORE_* variable, that before a default."""

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from statestore.address import Address, parse_addresses

log = logging.getLogger("statestore")

PREFIX = "STATESTORE_"
TOKEN = PREFIX + "TOKEN"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a str, not {type(value).__name__}")
    return value


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"must be a number of seconds, finite and above 0, not {value!r}")
    return seconds


def _connections(value: Any) -> int:
    try:
        connections = int(value)
    except (TypeError, ValueError, OverflowError):
        connections = 0
    if connections < 1 or connections != float(value):
        raise ValueError(f"must be a whole number of connections, at least 1, not {value!r}")
    return connections


def _tls(value: Any) -> Any:
    """Words in the environment stand for True and False; anything else is what `client_context` takes."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return words.get(value.lower(), value) if isinstance(value, str) else value


def _setting(parse: Callable[[Any], Any], default: Any, *, secret: bool = False) -> Any:
    return field(metadata={"parse": parse, "default": default}, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What they mean is said where they are given: `RemoteStorage`."""

    address: tuple[Address, ...] = _setting(parse_addresses, "127.0.0.1:7828")
    namespace: str = _setting(_text, "default")
    token: str | None = _setting(_text, None, secret=True)
    tls: Any = _setting(_tls, None)
    tls_cert: str | None = _setting(os.fspath, None)
    tls_key: str | None = _setting(os.fspath, None)
    deadline: float = _setting(_seconds, 5.0)
    write_deadline: float = _setting(_seconds, 60.0)
    pool: int = _setting(_connections, 8)
    store_id: str | None = _setting(_text, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle may get into a file or a queue, so it holds no token, only that there is one."""
        if not isinstance(self.tls, bool | str | bytes | os.PathLike | None):
            raise TypeError(
                f"tls: an {type(self.tls).__name__} cannot be pickled; give the path of a file with the authorities"
                " instead, or make the client in the process that uses it"
            )
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        has_token = bool(self.token)
        if has_token:
            values["token"] = None  # an empty one stays: it says that there is none, whatever the environment says
        return _unpickled, (values, has_token)

    @property
    def where(self) -> str:
        return ",".join(map(str, self.address))

    def __str__(self) -> str:
        """For the client's repr."""
        return f"{self.where} namespace={self.namespace!r}{' with TLS' if self.tls else ''}"

    @classmethod
    def gather(cls, environment: Mapping[str, str] = os.environ, **arguments: Any) -> Self:
        """What is None, or an empty variable, is not given. Raises ValueError that names what is wrong."""
        _warn_of_unknown(environment)
        values: dict[str, Any] = {}
        for setting in fields(cls):
            variable = PREFIX + setting.name.upper()
            name, value = setting.name, arguments.get(setting.name)
            if value is None and environment.get(variable):
                name, value = variable, environment[variable]
            if value is None:
                value = setting.metadata["default"]
            try:
                values[setting.name] = value if value is None else setting.metadata["parse"](value)
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{name}: {error}") from error
        return cls(**values)


def _unpickled(values: dict[str, Any], has_token: bool) -> Settings:
    token = values["token"]
    if token is None:
        token = os.environ.get(TOKEN) or None
    if has_token and token is None:
        raise ValueError(f"token: the pickle of a client does not hold it; set {TOKEN} where the client is unpickled")
    return Settings(**values | {"token": token})


_warned_of: set[str] = set()


def _warn_of_unknown(environment: Mapping[str, str]) -> None:
    """Once for each: who misspells a setting does without it, and would not know."""
    known = {PREFIX + setting.name.upper() for setting in fields(Settings)}
    for name in sorted(name for name in environment if name.startswith(PREFIX)):
        if name not in known and name not in _warned_of:
            _warned_of.add(name)
            log.warning("%s is in the environment, but there is no such setting", name)
