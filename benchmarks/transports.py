"""The same servers over TCP, over a unix socket and over TLS, and a bare socket to each."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import processes
from benchmarks.processes import LOOPBACK, REDIS_IN_MEMORY, STATESTORED_IN_MEMORY

_numbers = count()


class Transport(StrEnum):
    TCP = "TCP"
    UNIX = "unix socket"
    TLS = "TLS"


@dataclass(frozen=True)
class Endpoint:
    """Where a server is reached. path: of its unix socket; ca: the certificate that its own is to be checked by."""

    port: int
    path: Path | None = None
    ca: Path | None = None

    @property
    def address(self) -> str:
        """As statestored's clients want it."""
        return f"{LOOPBACK}:{self.port}" if self.path is None else f"unix:{self.path}"

    def connect(self) -> socket.socket:
        if self.path is not None:
            plain = socket.socket(socket.AF_UNIX)
            plain.connect(str(self.path))
            return plain
        plain = socket.create_connection((LOOPBACK, self.port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain if self.ca is None else self.context().wrap_socket(plain, server_hostname=LOOPBACK)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)


@dataclass(frozen=True)
class Place:
    """For what the servers of one transport need on the disk."""

    transport: Transport
    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "certificate.pem"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    def endpoint(self, name: str, port: int) -> Endpoint:
        return Endpoint(
            port,
            path=self.path(name) if self.transport is Transport.UNIX else None,
            ca=self.certificate if self.transport is Transport.TLS else None,
        )

    def path(self, name: str) -> Path:
        return self.directory / name


@contextmanager
def place(transport: Transport) -> Iterator[Place]:
    with TemporaryDirectory(prefix="statestored-bench-") as directory:
        made = Place(transport, Path(directory))
        if transport is Transport.TLS:
            _make_certificate(made)
        yield made


@contextmanager
def statestored(place: Place) -> Iterator[Endpoint]:
    """A new one each time, also where there is one already."""
    name = f"statestored-{next(_numbers)}"
    flags: Sequence[str] = {
        Transport.TCP: (),
        Transport.UNIX: ("--listen", f"unix:{place.path(name)}"),
        Transport.TLS: ("--tls-cert", str(place.certificate), "--tls-key", str(place.key)),
    }[place.transport]
    with processes.statestored([*STATESTORED_IN_MEMORY, *flags]) as server:
        yield place.endpoint(name, server.port)


@contextmanager
def redis(place: Place) -> Iterator[Endpoint]:
    flags: Sequence[str] = {
        Transport.TCP: (),
        Transport.UNIX: ("--unixsocket", str(place.path("redis"))),
        Transport.TLS: ("--tls-cert-file", str(place.certificate), "--tls-key-file", str(place.key)),
    }[place.transport]
    if place.transport is Transport.TLS:
        flags = [*flags, "--tls-ca-cert-file", str(place.certificate), "--tls-auth-clients", "no"]
    with processes.redis([*REDIS_IN_MEMORY, *flags], tls=place.transport is Transport.TLS) as server:
        yield place.endpoint("redis", server.port)


@contextmanager
def memcached(place: Place) -> Iterator[Endpoint]:
    flags: Sequence[str] = {
        Transport.TCP: (),
        Transport.UNIX: (),
        Transport.TLS: ("-Z", "-o", f"ssl_chain_cert={place.certificate},ssl_key={place.key}"),
    }[place.transport]
    path = place.path("memcached") if place.transport is Transport.UNIX else None
    with processes.memcached(flags, path) as server:
        yield place.endpoint("memcached", server.port)


def _make_certificate(place: Place) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=benchmark", "-addext", f"subjectAltName=IP:{LOOPBACK}"]
    command += ["-keyout", str(place.key), "-out", str(place.certificate)]
    subprocess.run(command, check=True, capture_output=True)
