"""TLS for the TCP addresses: certificates that can be changed while connections go on."""

import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import structlog

from statestored import audit
from statestored.errors import StartError
from statestored.heavy import HeavyTurns

log = structlog.get_logger()

# Under way at the same time; each takes a descriptor, for as long as a handshake may. For one more the oldest goes.
MAX_HANDSHAKES = 1024
# Bytes that are read from a socket at once, and encrypted at once. OpenSSL's buffers for them never shrink again.
CHUNK_SIZE = 2**12


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """All in PEM: the server's certificate, followed by those between it and its authority; its key; and, where
    clients need a certificate too, the authorities that theirs may come from.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Handshake(Protocol):
    def fail(self, reason: str) -> None:
        """End it, and its connection, and say so in the log."""

    def abort(self) -> None:
        """End its connection at once."""


class ServerTls:
    """What all TLS connections share: the files as they were read last, and the handshakes that are under way.

    Each reading makes a new context, so new connections have nothing to do with what was before: no certificate, no
    authority, no session that could be resumed.

    receive_buffer: what a connection has received is there until it is copied to where it is decrypted.
    turns: of the connections that make much work and bring no data, as in a handshake.
    failures: handshakes that ended with an error, or were given up.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Raises StartError, which names the setting that is wrong."""
        self._files = files
        self._under_way: dict[Handshake, None] = {}  # the oldest stands first
        self.receive_buffer = memoryview(bytearray(CHUNK_SIZE))
        self.turns = HeavyTurns()
        self.failures = 0
        self.read()

    def read(self) -> ssl.SSLContext:
        """Read the files again; any thread may do so. Raises StartError, and goes on with those of before."""
        self._context = _read(self._files)
        return self._context

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """Return the TLS of a new connection, which takes what came from `incoming` and puts into `outgoing`."""
        return self._context.wrap_bio(incoming, outgoing, server_side=True)

    @property
    def under_way(self) -> int:
        """How many handshakes have begun and not ended."""
        return len(self._under_way)

    def is_under_way(self, handshake: Handshake) -> bool:
        return handshake in self._under_way

    def begin_handshake(self, handshake: Handshake) -> None:
        """Make room for it: a peer that does not complete its handshake must not keep others out."""
        self._under_way[handshake] = None
        if len(self._under_way) > MAX_HANDSHAKES:
            next(iter(self._under_way)).fail("it gave way to newer ones, of which there were too many at once")

    def end_handshake(self, handshake: Handshake) -> bool:
        """Return whether it was under way."""
        return self._under_way.pop(handshake, self) is None

    def abort_handshakes(self) -> None:
        for handshake in list(self._under_way):
            handshake.abort()

    def failed(self, reason: str) -> None:
        self.failures += 1
        audit.handshake_failed(reason)


def reason_of(error: ssl.SSLError) -> str:
    """What OpenSSL says, in a form for the log."""
    return getattr(error, "verify_message", "") or _said(error)


def _read(files: TlsFiles) -> ssl.SSLContext:
    _check_readable("--tls-cert", files.certificate)
    _check_readable("--tls-key", files.key)
    if files.key.stat().st_mode & stat.S_IROTH:  # in a container that may be as it must be
        log.warning("others can read the key of the certificate", path=str(files.key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # nor does it compress, by Python's defaults
    _load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "--tls-cert", files.certificate)
    try:
        context.load_cert_chain(files.certificate, files.key, password=lambda: _refuse_encrypted(files.key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartError(f"--tls-key {files.key} is not the key of --tls-cert {files.certificate}") from error
        raise StartError(f"--tls-key {files.key} holds no key that can be used: {_said(error)}") from error
    if files.client_ca is not None:
        _check_readable("--tls-client-ca", files.client_ca)
        _load_authorities(context, "--tls-client-ca", files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_readable(setting: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise StartError(f"{setting} {path} cannot be read: {error.strerror}") from error


def _load_authorities(context: ssl.SSLContext, setting: str, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise StartError(f"{setting} {path} holds no certificate in PEM") from error


def _refuse_encrypted(path: Path) -> NoReturn:
    raise StartError(f"--tls-key {path} is encrypted: take the pass phrase off with `openssl pkey -in ... -out ...`")


def _said(error: ssl.SSLError) -> str:
    return (error.reason or "no reason given").lower().replace("_", " ")
