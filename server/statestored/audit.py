"""Log lines that a peer can cause, and those about what only an operator or an admin does.

A peer must not fill the disk with the log. So every line that a peer can cause goes through one limit: a line a second
for each reason. What is left out is counted in a metric, and as `suppressed=` in the reason's next line. The lines that
libraries write about a peer's input pass the same limit (`limit_library_logs`).

What must not be in a log stands there as a keyed hash: the same as long as the daemon runs, and nothing to guess from.
"""

import hashlib
import logging
import re
import secrets
import time
from collections import Counter

import structlog

log = structlog.get_logger()

EVERY = 1.0  # seconds
LIBRARIES = ("aiohttp.server", "aiohttp.web", "asyncio")  # the loggers of those that handle what a peer sends


class LineLimit:
    """At most one line a second for each reason.

    The reasons must be few: they are our own, OpenSSL's, or places in the source of a library.

    suppressed: lines that were left out since the start.
    """

    def __init__(self) -> None:
        self.suppressed = 0
        self._last: dict[str, float] = {}  # when each reason was logged last
        self._left_out: Counter[str] = Counter()  # since then

    def admit(self, reason: str) -> dict[str, int] | None:
        """Return what the line has to add, which is how many were suppressed; or None if it is to be left out."""
        now = time.monotonic()
        if now - self._last.get(reason, -EVERY) < EVERY:
            self.suppressed += 1
            self._left_out[reason] += 1
            return None
        self._last[reason] = now
        left_out = self._left_out.pop(reason, 0)
        return {"suppressed": left_out} if left_out else {}


class _LibraryFilter(logging.Filter):
    """Limits the lines from each place in a library's source."""

    def filter(self, record: logging.LogRecord) -> bool:
        return limit.admit(f"{record.pathname}:{record.lineno}") is not None


_key = secrets.token_bytes(16)
limit = LineLimit()
_library_filter = _LibraryFilter()


def limit_library_logs() -> None:
    for name in LIBRARIES:
        logging.getLogger(name).addFilter(_library_filter)  # once, however often this is called


def pseudonym(what: str | bytes) -> str:
    data = what.encode("utf-8", "surrogatepass") if isinstance(what, str) else what
    return hashlib.blake2b(data, key=_key, digest_size=6).hexdigest()


def connection_dropped(why: str, reason: str) -> None:
    """Log it; each sentence has a limit of its own, so that a flood of one kind does not hide another."""
    kind = re.sub("[0-9]+", "N", reason)  # such as sizes, of which there are many
    _warn(f"dropped: {why}: {kind}", "connection dropped", reason=reason)


def token_refused(peer: str) -> None:
    _warn("token", "a wrong token was refused", peer=pseudonym(peer))


def peer_shut_out(peer: str) -> None:
    _warn("peer", "too many wrong tokens from one address: it has to wait", peer=pseudonym(peer))


def namespace_refused(token: str, namespace: bytes) -> None:
    about = {"token": token, "namespace": pseudonym(namespace)}
    _warn("namespace", "a token was refused, for it does not open the namespace", **about)


def number_reused(method: str, session: int) -> None:
    """Log that a client repeated a number with another write: it shares its session with another client."""
    about = {"method": method, "session": pseudonym(str(session))}
    _warn("number reused", "a write has the number of another one: two clients share a session", **about)


def notification_refused(code: str) -> None:
    _warn(f"notification: {code}", "a notification was refused, and its client does not know", code=code)


def cleared(token: str | None, namespace: bytes) -> None:
    log.warning("all states of a namespace were forgotten", token=token, namespace=pseudonym(namespace))


def handshake_failed(reason: str) -> None:
    _warn(f"handshake: {reason}", "a TLS handshake failed", reason=reason)


def internal_fault(event: str, error: BaseException) -> None:
    """Log a fault of ours, which a request brought to light and may bring to light again and again."""
    added = limit.admit(f"{event}: {type(error).__qualname__}")
    if added is not None:
        log.error(event, exc_info=error, **added)


def read_again(what: str, **about: object) -> None:
    log.info("read again", what=what, **about)


def not_read_again(error: Exception) -> None:
    log.error("not read again, and what was read before stays", error=str(error))


def _warn(limit_by: str, event: str, **about: object) -> None:
    added = limit.admit(limit_by)
    if added is not None:
        log.warning(event, **about, **added)
