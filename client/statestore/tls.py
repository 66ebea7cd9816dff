"""TLS under a connection, without any I/O. Whoever does not ask for it does not load `ssl` either."""

import os
from typing import TYPE_CHECKING, Any

from statestore.protocol import READ_SIZE, WrongServer, identify

if TYPE_CHECKING:
    import ssl

_RECORDS = range(0x14, 0x19)  # the first byte of whatever a TLS server says


def client_context(tls: Any, certificate: str | None = None, key: str | None = None) -> "ssl.SSLContext | None":
    """What a client's connections are made with; None: without TLS.

    tls: None or False; True for the authorities that the system trusts; the path of a file with those to trust instead;
    or a context, which is taken as it is.
    certificate, key: the client's own, for a server that asks for one; the certificate's file may hold the key, too.
    Raises ValueError with a sentence that begins with the setting's name.
    """
    if tls is None or tls is False:
        if certificate is not None or key is not None:
            raise ValueError("tls_cert and tls_key are of no use without tls")
        return None
    import ssl

    if isinstance(tls, ssl.SSLContext):
        if certificate is not None or key is not None:
            raise ValueError("tls_cert and tls_key belong into the SSLContext, where tls is one")
        return tls
    try:
        context = ssl.create_default_context(cafile=None if tls is True else os.fspath(tls))
    except (OSError, TypeError) as error:  # an SSLError is an OSError
        raise ValueError(f"tls: the authorities cannot be read from {tls!r}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is None and key is not None:
        raise ValueError("tls_key is of no use without tls_cert")
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password="")
        except OSError as error:
            raise ValueError(f"tls_cert: {certificate} and its key cannot be read: {error}") from error
    return context


class Tls:
    """What goes over one connection: `encrypt` what is to be sent, `decrypt` what was received.

    Before, until `is_ready`: send what `handshake` gives, and hand it what comes.
    """

    def __init__(self, context: "ssl.SSLContext", host: str) -> None:
        import ssl

        self._ssl = ssl
        self._host = host.removesuffix(".")  # the dot is for the look-up alone: no certificate has it (RFC 6066)
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname=self._host)
        self._seen_first = False
        self._end: Exception | None = None  # why nothing more can come
        self.is_ready = False

    def handshake(self, received: bytes) -> bytes:
        """Raises WrongServer where there is no agreement."""
        if received and not self._seen_first:
            self._seen_first = True
            if received[0] not in _RECORDS:
                raise WrongServer(f"what answers does not speak TLS, but is {identify(received)}: leave tls out there")
        self._received.write(received)
        try:
            self._tls.do_handshake()
            self.is_ready = True
        except self._ssl.SSLWantReadError:
            pass
        except self._ssl.SSLError as error:
            raise WrongServer(self._sentence(error)) from error
        return self._to_send.read()

    def encrypt(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._to_send.read()

    def decrypt(self, received: bytes) -> bytes:
        """Raises WrongServer where the server ends it because of us, and ConnectionResetError where it just ends it.

        What came before the end is returned; then the next call raises.
        """
        if self._end is not None:
            raise self._end
        self._received.write(received)
        data = b""
        try:
            while self._received.pending or self._tls.pending():
                if not (part := self._tls.read(READ_SIZE)):
                    self._end = ConnectionResetError("the server closed the connection")
                    break
                data += part
        except self._ssl.SSLWantReadError:
            pass
        except self._ssl.SSLError as error:
            self._end = WrongServer(self._sentence(error))
            self._end.__cause__ = error
        if self._end is not None and not data:
            raise self._end
        return data

    def _sentence(self, error: "ssl.SSLError") -> str:
        """What is wrong, and what to do about it."""
        if isinstance(error, self._ssl.SSLCertVerificationError):
            return "the server's certificate " + self._fault(error.verify_code, error.verify_message)
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if "certificate required" in reason or "handshake failure" in reason:
            return "the server asks for a client's certificate: set tls_cert and tls_key (STATESTORE_TLS_CERT, ..._KEY)"
        if "alert" in reason and ("certificate" in reason or "unknown ca" in reason):
            return f"the server does not accept our certificate ({reason}): see tls_cert (STATESTORE_TLS_CERT)"
        return f"TLS with the server failed: {reason}"

    def _fault(self, code: int, message: str) -> str:
        """What is wrong with a certificate; the codes are OpenSSL's X509_V_ERR_..."""
        if code == 10:
            return "has expired: the server needs a new one"
        if code in (62, 64):
            return f"is not for {self._host}: connect by a name that it is for, or give the server one for this name"
        if code in (18, 19, 20, 21):
            return "is signed by nobody trusted here: tls (STATESTORE_TLS) can name a file with its authority's"
        return f"is not accepted: {message}"
