"""Addresses as people write them: `host`, `host:port`, `[v6]:port`, `unix:/path`."""

import ipaddress
from dataclasses import dataclass

DEFAULT_PORT = 7828


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        ip = self.ip
        return self.host.removesuffix(".").lower() == "localhost" if ip is None else ip.is_loopback

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as an IP address, or None where it is a name that has to be looked up."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def is_local(self) -> bool:
        return True


Address = TcpAddress | UnixAddress


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """One address.

    Raises ValueError with a sentence that names the text and what is wrong with it.
    """
    text = text.strip()
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"address {text!r}: a unix socket needs an absolute path, as in unix:/run/states.sock")
        return UnixAddress(path)
    host, port = _split_port(text)
    if not _is_host(host):
        raise ValueError(f"address {text!r}: expected host, host:port, [v6]:port or unix:/path")
    return TcpAddress(host, default_port if port is None else _port(text, port))


def parse_addresses(text: str) -> tuple[Address, ...]:
    """One or several addresses with commas between them. Raises ValueError as `parse_address` does."""
    return tuple(parse_address(part) for part in text.split(","))


def _split_port(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"address {text!r}: an IPv6 address with a port is written [address]:port")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:  # a bare IPv6 address
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _is_host(host: str) -> bool:
    """Whether it can be one: a port alone is none, and only an IPv6 address has colons."""
    if not host or host.isdigit() or not host.isprintable() or any(c.isspace() or c in "/@" for c in host):
        return False
    if ":" not in host:
        return True
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"address {text!r}: the port must be a number from 0 to 65535")
    return int(port)
