"""Name the protocol that a peer speaks instead of ours, by the first bytes that it sends.

The log gets the text of these tables, and never what the peer sent: that may be a secret.
"""

import re

_MESSAGEPACK_RPC = rb"\x94\x00|\x93\x02"  # a request or a notification

_COMMON = (
    (
        rb"PROXY |\r\n\r\n\x00\r\nQUIT\n",
        "a PROXY protocol header came, which statestored does not read: turn it off in the load balancer (send-proxy)",
    ),
    (
        rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|CONNECT|TRACE|PRI) ",
        "an HTTP request came: health checks and metrics are at the address of --admin-listen",
    ),
    (rb"(?i:EHLO|HELO|LHLO)[ \r]", "an SMTP or LMTP client came: this is not a mail server, see where mail is sent to"),
    (rb"\*[1-9][0-9]*\r\n\$|PING\r\n", "a Redis client came: this is not a Redis server, see its address and port"),
    (rb"(?:gets?|set|add|delete|version|stats)[ \r]", "a memcached client came: this is not a memcached server"),
    (rb"SSH-", "an SSH client came: this is not an SSH server, see its port"),
)
_TLS_CLIENT = (
    rb"\x16\x03",
    "a TLS handshake came, and this address has no TLS: give the daemon --tls-cert and --tls-key (for its TCP "
    "addresses), or the client no tls",
)
_CLIENT_WITHOUT_TLS = (
    _MESSAGEPACK_RPC,
    "a client without TLS came, and this address has only TLS: give the client tls (STATESTORE_TLS)",
)


def instead_of_messagepack(first: bytes | bytearray | memoryview) -> str | None:
    """Return a sentence about the protocol of a connection that begins so; None if it is not a known one."""
    return _find((*_COMMON, _TLS_CLIENT), first)


def instead_of_tls(first: bytes | bytearray | memoryview) -> str | None:
    """Return the same for an address that expects TLS."""
    return _find((*_COMMON, _CLIENT_WITHOUT_TLS), first)


def _find(table: tuple[tuple[bytes, str], ...], first: bytes | bytearray | memoryview) -> str | None:
    return next((sentence for pattern, sentence in table if re.match(pattern, first)), None)
