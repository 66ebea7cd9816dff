"""TLS for the TCP addresses: certificates that can be changed while connections go on."""

import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

import structlog

from statestored import audit
from statestored.errors import StartError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """All in PEM: the server's certificate, followed by those between it and its authority; its key; and, where
    clients need a certificate too, the authorities that theirs may come from.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class ServerTls(ssl.SSLContext):
    """What a listener holds for good; each connection gets a context with the files as they were read last.

    It is a new one for each reading, so that new connections have nothing to do with what was before: no certificate,
    no authority, no session that could be resumed.

    failures: handshakes that ended with an error.
    """

    def __new__(cls, _files: TlsFiles) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, files: TlsFiles) -> None:
        """Raises StartError, which names the setting that is wrong."""
        self._files = files
        self.failures = 0
        self.read()

    def read(self) -> None:
        """The files, anew. Raises StartError, and goes on with those of before."""
        context = _read(self._files)
        context.sslobject_class = _reporting_to(self._failed)
        self._current = context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return self._current.wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def _failed(self, reason: str) -> None:
        self.failures += 1
        audit.handshake_failed(reason)


def _reporting_to(report: Callable[[str], None]) -> type[ssl.SSLObject]:
    """The loop keeps to itself why a handshake fails."""

    class Connection(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                report(getattr(error, "verify_message", "") or _said(error))
                raise

    return Connection


def _read(files: TlsFiles) -> ssl.SSLContext:
    _check_readable("--tls-cert", files.certificate)
    _check_readable("--tls-key", files.key)
    if files.key.stat().st_mode & stat.S_IROTH:  # in a container that may be as it must be
        log.warning("others can read the key of the certificate", path=str(files.key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
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
