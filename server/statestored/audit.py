"""Log lines about who was refused, and about what only an operator or an admin does.

What must not be in a log stands there as a keyed hash: the same as long as the daemon runs, and nothing to guess from.
"""

import hashlib
import secrets

import structlog

log = structlog.get_logger()

_key = secrets.token_bytes(16)


def pseudonym(what: str | bytes) -> str:
    data = what.encode("utf-8", "surrogatepass") if isinstance(what, str) else what
    return hashlib.blake2b(data, key=_key, digest_size=6).hexdigest()


def token_refused(peer: str) -> None:
    log.warning("a wrong token was refused", peer=pseudonym(peer))


def peer_shut_out(peer: str) -> None:
    log.warning("too many wrong tokens from one address: it has to wait", peer=pseudonym(peer))


def namespace_refused(token: str, namespace: bytes) -> None:
    log.warning("a token was refused, for it does not open the namespace", token=token, namespace=pseudonym(namespace))


def cleared(token: str | None, namespace: bytes) -> None:
    log.warning("all states of a namespace were forgotten", token=token, namespace=pseudonym(namespace))


def handshake_failed(reason: str) -> None:
    log.warning("a TLS handshake failed", reason=reason)


def read_again(what: str, **about: object) -> None:
    log.info("read again", what=what, **about)


def not_read_again(error: Exception) -> None:
    log.error("not read again, and what was read before stays", error=str(error))
