"""The client's side of a connection, fed by hand."""

from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore import Forbidden, Limits, StateStoreError, TooLong, Unavailable
from statestore._version import __version__
from statestore.protocol import MAX_REPLY, READ_SIZE, ClientProtocol, Response, Welcome, WrongServer, identify
from statestore.wire import NOTIFICATION, RESPONSE, Decoder, packer
from tests.client.test_wire import any_text, chunks

GREETING = {
    "version": 1,
    "store_id": "6c7f",
    "limits": {"module": 1, "sender": 2, "state": 3, "items": 4, "later": 5},
    "features": ["later"],
}
pack = packer()


def respond(msgid: object, error: object, result: object) -> bytes:
    return pack([RESPONSE, msgid, error, result])


def receive(protocol: ClientProtocol, *received: bytes) -> list[Response]:
    responses: list[Response] = []
    for data in received:
        if (response := protocol.receive(data)) is not None:
            responses += [response, *iter(protocol.next_response, None)]
    return responses


def one_by_one(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


def test_a_request_is_a_messagepack_rpc_request() -> None:
    msgid, data = ClientProtocol().request("get", ("lists", None))
    assert msgpack.unpackb(data) == [0, msgid, "get", ["lists", None]]


def test_hello_says_who_we_are_and_no_token_where_there_is_none() -> None:
    _, data = ClientProtocol().hello("shop", None)
    about = {"version": 1, "namespace": "shop", "client": f"statestore {__version__}"}
    assert msgpack.unpackb(data)[2:] == ["hello", [about]]
    _, data = ClientProtocol().hello("shop", "secret")
    assert msgpack.unpackb(data)[3] == [about | {"token": "secret"}]
    _, data = ClientProtocol().hello("shop", None, 0)
    assert msgpack.unpackb(data)[3] == [about | {"session": 0}]


def test_ids_are_different_and_begin_anew_after_the_last() -> None:
    protocol = ClientProtocol()
    assert [protocol.request("ping", ())[0] for _ in range(3)] == [1, 2, 3]
    protocol._last_msgid = 2**32 - 2
    assert [protocol.request("ping", ())[0] for _ in range(3)] == [2**32 - 1, 0, 1]


@given(st.tuples(any_text, st.none() | any_text, any_text))
def test_any_text_goes_out_as_it_is(texts: tuple[str, ...]) -> None:
    server = Decoder(raw=True, max_buffer=2**20, max_items=100)
    server.feed(ClientProtocol().request("set", texts)[1])
    expected = tuple(text if text is None else text.encode("utf-8", "surrogatepass") for text in texts)
    assert next(server) == (0, 1, b"set", expected)


@given(results=st.lists(any_text, max_size=4), cuts=st.lists(st.integers(min_value=0)))
def test_responses_come_in_any_chunks(results: list[str], cuts: list[int]) -> None:
    data = b"".join(respond(msgid, None, result) for msgid, result in enumerate(results))
    expected = [Response(msgid, None, result) for msgid, result in enumerate(results)]
    assert receive(ClientProtocol(), *chunks(data, cuts)) == expected


def test_half_a_response_is_none_yet() -> None:
    protocol, data = ClientProtocol(), respond(7, None, "POSTING")
    assert receive(protocol, *one_by_one(data[:-1])) == []
    assert receive(protocol, data[-1:]) == [Response(7, None, "POSTING")]


@given(any_text)
def test_an_error_is_the_one_to_raise(detail: str) -> None:
    (response,) = receive(ClientProtocol(), respond(1, f"too_long: {detail}", None))
    assert isinstance(response.error, TooLong)
    assert response.error.detail == detail


@pytest.mark.parametrize("error", [["?", 5], 5, True, {"code": 5}])
def test_an_error_that_is_no_text_is_none_of_ours(error: object) -> None:
    """Nobody knows whether what was asked for was done: as after any other garbage."""
    with pytest.raises(WrongServer, match="its errors are no str"):
        receive(ClientProtocol(), respond(1, error, None))


def test_notifications_are_passed_over() -> None:
    news, protocol = pack([NOTIFICATION, "news", []]), ClientProtocol()
    for msgid in range(2):
        assert receive(protocol, news + respond(msgid, None, "A") + news) == [Response(msgid, None, "A")]


@pytest.mark.parametrize(
    "junk",
    [
        pytest.param(b"\xc1", id="no MessagePack"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array without end"),
        pytest.param(b"\xa2\xff\xfe", id="text that is none"),
        pytest.param(pack([]), id="an empty message"),
        pytest.param(pack("x"), id="a text"),
        pytest.param(pack(None), id="nil"),
        pytest.param(pack({"a": 1}), id="a map"),
        pytest.param(pack([0, 1, "get", []]), id="a request"),
        pytest.param(pack([1, 1, None]), id="a response that is too short"),
        pytest.param(pack([1, 1, None, "A", "B"]), id="a response that is too long"),
        pytest.param(respond("1", None, "A"), id="an id that is no number"),
        pytest.param(pack([2, "news"]), id="a notification that is too short"),
        pytest.param(pack([3, 1, None, "A"]), id="a kind that is none"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_junk_after_a_response_ends_the_connection(junk: bytes, whole: bool) -> None:
    protocol = ClientProtocol()
    assert receive(protocol, respond(1, None, "A")) == [Response(1, None, "A")]
    with pytest.raises(WrongServer):
        receive(protocol, *([junk] if whole else one_by_one(junk)))


@pytest.mark.parametrize(
    ("beginning", "more"),
    [
        pytest.param(b"\xdb\x7f\xff\xff\xff", b"x" * READ_SIZE, id="a text"),
        pytest.param(b"\xdd\x00\x0f\xff\xff", pack("x" * 1021) * (READ_SIZE // 1024), id="an array"),
    ],
)
def test_a_reply_without_end_is_not_kept_without_end(beginning: bytes, more: bytes) -> None:
    protocol = ClientProtocol()
    assert receive(protocol, respond(1, None, "A")) == [Response(1, None, "A")]
    with pytest.raises(WrongServer, match="more than"):
        receive(protocol, b"\x94\x01\x01\xc0" + beginning, *[more] * (MAX_REPLY // READ_SIZE + 1))


def test_a_connection_may_carry_more_than_one_reply_may_be_long() -> None:
    response, count = respond(1, None, "x" * 60_000), MAX_REPLY // 60_000 + 1
    assert len(receive(ClientProtocol(), *[response] * count)) == count


@given(st.binary(min_size=1, max_size=200))
def test_noise_is_never_more_than_a_wrong_server(noise: bytes) -> None:
    with suppress(WrongServer):
        receive(ClientProtocol(), noise)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "an HTTP server"),
        (b"<!DOCTYPE HTML>\n<html>", "an HTTP server"),
        (b"<html>\r\n<head>", "an HTTP server"),
        (b"220 mx.example ESMTP\r\n", "an SMTP or LMTP server"),
        (b"421 too busy\r\n", "an SMTP or LMTP server"),
        (b"554 go away\r\n", "an SMTP or LMTP server"),
        (b"-ERR unknown command\r\n", "a Redis server"),
        (b"-NOAUTH Authentication required.\r\n", "a Redis server"),
        (b"-DENIED Redis is running in protected mode", "a Redis server"),
        (b"+PONG\r\n", "a Redis server"),
        (b"ERROR\r\n", "a memcached server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH server"),
        (b"+OK ready\r\n", "a POP3 server"),
        (b"* OK IMAP4rev1\r\n", "an IMAP server"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "a TLS server (for statestored with TLS, set tls or STATESTORE_TLS)"),
        (b"\x16\x03\x03\x00\x57\x02\x00", "a TLS server (for statestored with TLS, set tls or STATESTORE_TLS)"),
        (b"\x00", "something that says '\\x00'"),
        (b"What is it that you want?", "something that says 'What is it that '"),
    ],
)
def test_other_servers_are_known_by_their_first_words(said: bytes, name: str) -> None:
    assert identify(said) == name
    with pytest.raises(WrongServer) as caught:
        ClientProtocol().feed(said)
    assert caught.value.detail == f"what answers is not statestored but {name}"
    assert isinstance(caught.value, Unavailable)
    assert not caught.value.retry


@given(st.binary(min_size=1))
def test_whatever_it_says_the_name_is_one_line_of_ascii(said: bytes) -> None:
    assert identify(said).isascii()
    assert identify(said).isprintable()


def test_a_welcome_may_hold_what_we_do_not_know() -> None:
    assert Welcome.parse(GREETING) == Welcome("6c7f", 1, Limits(1, 2, 3, 4), features=frozenset({"later"}))


def test_a_welcome_says_the_session_the_features_and_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 50.0)
    welcome = Welcome.parse(GREETING | {"session": 2**62, "features": ["sessions", "later"], "time": 1000.5})
    assert (welcome.session, welcome.features) == (2**62, {"sessions", "later"})
    assert welcome.server_time(at=52.0) == 1002.5
    assert Welcome.parse(GREETING | {"session": None}).session is None


@pytest.mark.parametrize(
    ("welcome", "error", "words"),
    [
        ({"session": 7, "features": ["sessions"]}, None, ""),
        ({}, None, ""),
        ({"session_error": "unavailable: no room"}, None, ""),
        ({"session": None, "features": ["sessions"], "session_error": "unavailable: no room"}, Unavailable, "no room"),
        ({"session": None, "features": ["sessions"], "session_error": "forbidden: no"}, Forbidden, "no"),
        ({"session": None, "features": ["sessions"], "session_error": "later: no"}, StateStoreError, "later: no"),
        ({"session": None, "features": ["sessions"]}, Unavailable, "the server gives no session now"),
        ({"session": None, "features": ["sessions"], "session_error": 5}, Unavailable, "gives no session now"),
    ],
)
def test_why_there_is_no_session_is_known_of_a_server_that_knows_them(
    welcome: dict[str, Any], error: type[Exception] | None, words: str
) -> None:
    found = Welcome.parse(GREETING | welcome).session_error
    assert (None if found is None else type(found)) is error
    assert found is None or words in found.detail


@pytest.mark.parametrize(
    "greeting",
    [
        None,
        [],
        "welcome",
        {},
        GREETING | {"limits": None},
        GREETING | {"limits": {"module": 1}},
        GREETING | {"limits": {"module": "x", "sender": 1, "state": 1, "items": 1}},
        GREETING | {"version": None},
        GREETING | {"session": "x"},
        GREETING | {"features": None},
        GREETING | {"time": "noon"},
    ],
)
def test_another_welcome_is_from_another_server(greeting: object) -> None:
    with pytest.raises(WrongServer, match="not statestored"):
        Welcome.parse(greeting)
