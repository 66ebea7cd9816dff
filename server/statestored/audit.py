"""Log lines about who was refused or dropped, and about what only an operator or an admin does.

Of what anybody can cause there is a line a second for each reason: a crowd must not fill the disk with the log.

What must not be in a log stands there as a keyed hash: the same as long as the daemon runs, and nothing to guess from.
"""

import hashlib
import secrets
import time

import structlog

log = structlog.get_logger()

EVERY = 1.0  # seconds

_key = secrets.token_bytes(16)
_last: dict[str, float] = {}  # when each reason was logged last; they are ours, or of those that OpenSSL knows


def pseudonym(what: str | bytes) -> str:
    data = what.encode("utf-8", "surrogatepass") if isinstance(what, str) else what
    return hashlib.blake2b(data, key=_key, digest_size=6).hexdigest()


def connection_dropped(why: str, reason: str) -> None:
    if _is_due(f"dropped: {why}"):
        log.warning("connection dropped", reason=reason)


def token_refused(peer: str) -> None:
    if _is_due("token"):
        log.warning("a wrong token was refused", peer=pseudonym(peer))


def peer_shut_out(peer: str) -> None:
    if _is_due("peer"):
        log.warning("too many wrong tokens from one address: it has to wait", peer=pseudonym(peer))


def namespace_refused(token: str, namespace: bytes) -> None:
    if _is_due("namespace"):
        about = {"token": token, "namespace": pseudonym(namespace)}
        log.warning("a token was refused, for it does not open the namespace", **about)


def number_reused(method: str, session: int) -> None:
    """Log that a client repeated a number with another write: it shares its session with another client."""
    if _is_due("number reused"):
        about = {"method": method, "session": pseudonym(str(session))}
        log.warning("a write has the number of another one: two clients share a session", **about)


def notification_refused(code: str) -> None:
    if _is_due(f"notification: {code}"):
        log.warning("a notification was refused, and its client does not know", code=code)


def cleared(token: str | None, namespace: bytes) -> None:
    log.warning("all states of a namespace were forgotten", token=token, namespace=pseudonym(namespace))


def handshake_failed(reason: str) -> None:
    if _is_due(f"handshake: {reason}"):
        log.warning("a TLS handshake failed", reason=reason)


def read_again(what: str, **about: object) -> None:
    log.info("read again", what=what, **about)


def not_read_again(error: Exception) -> None:
    log.error("not read again, and what was read before stays", error=str(error))


def _is_due(reason: str) -> bool:
    now = time.monotonic()
    if now - _last.get(reason, -EVERY) < EVERY:
        return False
    _last[reason] = now
    return True
