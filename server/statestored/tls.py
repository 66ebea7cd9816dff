"""TLS for the TCP addresses: certificates that can be changed while connections go on."""

import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

import structlog

from statestored import audit
from statestored.errors import StartError

log = structlog.get_logger()

# Under way at the same time. Each takes a descriptor and some 90 KB, for as long as a handshake may. For one more it is
# the new one that goes: the loop gives nobody a hold on the others before they are complete.
MAX_HANDSHAKES = 1024


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

    failures: handshakes that ended with an error or were given up, or were not begun for those under way.
    under_way: handshakes that have begun and not ended.
    """

    def __new__(cls, _files: TlsFiles) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, files: TlsFiles) -> None:
        """Raises StartError, which names the setting that is wrong."""
        self._files = files
        self.failures = self.under_way = 0
        self._reporting = _reporting_to(self)  # once: a class is a cycle, which only the collector frees
        self.read()

    def read(self) -> None:
        """The files, anew. Raises StartError, and goes on with those of before."""
        context = _read(self._files)
        context.sslobject_class = self._reporting
        self._current = context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        if self.under_way >= MAX_HANDSHAKES:
            self.failures += 1
            raise ssl.SSLError("too many handshakes at once")  # the loop closes the connection
        self.under_way += 1
        return self._current.wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def failed(self, reason: str) -> None:
        self.failures += 1
        audit.handshake_failed(reason)


def _reporting_to(tls: ServerTls) -> type[ssl.SSLObject]:
    """The loop keeps to itself how many handshakes there are, and why one fails."""

    class Connection(ssl.SSLObject):
        _is_under_way = True

        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                tls.failed(getattr(error, "verify_message", "") or _said(error))
                self._end()
                raise
            self._end()

        def __del__(self) -> None:
            if self._is_under_way:  # it took too long, or its peer went away
                tls.failures += 1  # without a line: the collector may call, and somebody be in the middle of one
                self._end()

        def _end(self) -> None:
            if self._is_under_way:
                self._is_under_way = False
                tls.under_way -= 1

    return Connection


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
