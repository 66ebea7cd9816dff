"""Where a request ends, and what is refused before it is read any further."""

import re
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestored.http_request import MAX_BODY, MAX_FIELDS, MAX_HEAD, RequestReader, RequestRefused

GET = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\na=bc"
BROWSER = (
    b"GET /static/app.js?v=1 HTTP/1.1\r\nHost: [::1]:7829\r\nAccept: text/html;q=0.9,*/*\r\nDNT: 1\r\n"
    b'User-Agent: Mozilla/5.0 (X11)\r\nSec-Fetch-Site: same-origin\r\nCookie: a="b c"; d=e\r\nX-Name: Ann\xe9\r\n'
    b"Empty:\r\nTab:\ta\tb\r\n\r\n"
)
GOOD = [
    GET,
    POST,
    BROWSER,
    b"HEAD / HTTP/1.0\r\n\r\n",
    b"POST / HTTP/1.1\r\ncontent-LENGTH:  0  \r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (MAX_BODY, b"\r\n" * (MAX_BODY // 2)),
    b"GET /%b HTTP/1.1\r\n\r\n" % (b"a" * (MAX_HEAD - 18)),
    b"GET / HTTP/1.1\r\n%b\r\n" % (b"A: b\r\n" * MAX_FIELDS),
]


def read(*pieces: bytes) -> tuple[bool, bytes]:
    """Whether it is complete after the last piece, and what was collected."""
    reader = RequestReader()
    complete = [reader.feed(piece) for piece in pieces]
    assert True not in complete[:-1]
    return complete[-1], bytes(reader.data)


def status_of(data: bytes, size: int = 2048) -> int:
    """The status with which it is refused; 0 if it is not, or not yet. It comes as it is read from a socket."""
    reader = RequestReader()
    for start in range(0, len(data), size):
        try:
            if reader.feed(data[start : start + size]):
                return 0
        except RequestRefused as refusal:
            assert len(reader.data) <= MAX_HEAD + MAX_BODY + size
            return refusal.status
    return 0


@pytest.mark.parametrize("request_", GOOD)
def test_a_request_is_complete_with_its_last_byte(request_: bytes) -> None:
    assert read(request_) == (True, request_)
    assert read(*[request_[at : at + 1] for at in range(len(request_))]) == (True, request_)
    assert read(request_[:-1]) == (False, request_[:-1])


@given(st.data())
def test_it_does_not_matter_how_a_request_is_cut(data: st.DataObject) -> None:
    request_ = data.draw(st.sampled_from(GOOD[:5]))
    cuts = sorted({0, len(request_), *data.draw(st.lists(st.integers(1, len(request_) - 1), max_size=5))})
    assert read(*[request_[start:end] for start, end in pairwise(cuts)]) == (True, request_)


@pytest.mark.parametrize("rest", [b"\r\n", GET, b"x" * 1000])
def test_what_follows_a_request_is_dropped(rest: bytes) -> None:
    """Pipelining has no effect."""
    assert read(GET + rest) == (True, GET)
    assert read(POST[:-1], POST[-1:] + rest) == (True, POST)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\ntransfer-encoding: gzip\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1), 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n", 400),
        *[(b"POST / HTTP/1.1\r\nContent-Length: %b\r\n\r\n" % n, 400) for n in (b"", b"-1", b"+1", b"1, 1", b"1" * 99)],
        (b"GET /%b" % (b"a" * 20_000), 431),
        (b"GET / HTTP/1.1\r\nA: %b\r\n\r\n" % (b"a" * MAX_HEAD), 431),
        (b"GET / HTTP/1.1\r\n%b\r\n" % (b"A: b\r\n" * (MAX_FIELDS + 1)), 431),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / / HTTP/1.1\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\x94\x00\x01\xa4ping\x90", 400),
        (b"\r\n\r\n", 400),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_what_the_admin_address_does_not_need_is_refused(data: bytes, status: int) -> None:
    assert status_of(data) == status


def test_a_peer_that_speaks_tls_is_told_so() -> None:
    with pytest.raises(RequestRefused, match="this is TLS: plain HTTP is spoken here"):
        read(b"\x16\x03\x01\x02\x00\x01")


def test_a_refusal_is_a_whole_response_that_closes_the_connection() -> None:
    with pytest.raises(RequestRefused) as refusal:
        read(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    head, _, body = refusal.value.response().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 411 Length Required\r\n")
    assert b"Connection: close" in head.splitlines()
    assert f"Content-Length: {len(body)}".encode() in head
    assert body == b"a body needs a Content-Length\n"


@pytest.mark.parametrize(("value", "expected"), [(b"100-continue", True), (b"100-Continue", True), (b"nothing", False)])
def test_a_client_that_waits_before_it_sends_its_body_is_noticed(value: bytes, expected: bool) -> None:
    head = b"POST / HTTP/1.1\r\nExpect: %b\r\nContent-Length: 1\r\n\r\n" % value
    reader = RequestReader()
    assert not reader.feed(head)
    assert reader.expects_continue is expected
    reader = RequestReader()
    assert reader.feed(head + b"x")
    assert not reader.expects_continue, "the body has come already"


@given(st.lists(st.binary(max_size=100) | st.sampled_from([b"GET / HTTP/1.1", b"\r\n", b"\r\n\r\n", b": ", b"A"])))
def test_anything_at_all_is_read_or_refused(pieces: list[bytes]) -> None:
    reader = RequestReader()
    with suppress(RequestRefused):
        for piece in pieces:
            if reader.feed(piece):
                assert re.match(rb"[A-Z]+ \S+ HTTP/1\.[01]\r\n", reader.data)
                return
