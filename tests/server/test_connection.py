"""One connection: whatever comes in, right answers or none go out, and nobody else notices."""

import asyncio
import errno
import fcntl
import math
import re
import select
import ssl
import sys
import termios
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from statestore.errors import Forbidden, Unavailable
from statestore.wire import MAX_MESSAGE
from statestored import audit, timeouts
from statestored import connection as connection_module
from statestored.budget import Budget
from statestored.commands import Caller, Role, Service
from statestored.connection import Connections
from statestored.datadir import DataDirectory
from statestored.engines import embedded
from statestored.engines.base import START, Held
from statestored.engines.commits import Fsync
from statestored.engines.embedded import EmbeddedEngine
from statestored.journal import Journal
from tests.daemon import Daemon
from tests.server.fakes import (
    NEVER,
    Disk,
    Gate,
    HeldCommit,
    HoldingEngine,
    LaterEngine,
    Loop,
    Wire,
    engine_without_files,
    make_service,
    some_turns,
)
from tests.server.rpc import RawClient, code_of, error_of, ok, request
from tests.server.waiting import eventually, wait_until
from tests.tokenfile import TokenFile

ANN = ("lists", "ann@a.example")
SECRET = "do.not.log@this.example"

GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "smtp": b"EHLO mail.example\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "a reserved byte": b"\xc1",
    "a number": msgpack.packb(5),
    "a string": msgpack.packb("get"),
    "a map": msgpack.packb({"method": "get"}),
    "an empty array": msgpack.packb([]),
    "a response": msgpack.packb([1, 1, None, "A"]),
    "an array of five": msgpack.packb([0, 1, "get", [], 5]),
    "an array of three": msgpack.packb([0, 1, "get"]),
    "an unknown type": msgpack.packb([3, 1, "get", list(ANN)]),
    "a type that is a string": msgpack.packb(["0", 1, "get", list(ANN)]),
    "a negative id": msgpack.packb([0, -1, "get", list(ANN)]),
    "an id of 33 bits": msgpack.packb([0, 2**32, "get", list(ANN)]),
    "an id that is a float": msgpack.packb([0, 1.0, "get", list(ANN)]),
    "an id that is a string": msgpack.packb([0, "1", "get", list(ANN)]),
    "an id that is nil": msgpack.packb([0, None, "get", list(ANN)]),
    "a string of four bytes": b"\xa4\x00\x01\x02\x03",
    "a map of four": b"\x84\xa1a\x00\xa1b\x01\xa3set\x02\xa1d\x03",
    "a map for a key": b"\x94\x00\x01\xa3get\x91\x81\x80\x01",
    "a huge array": b"\xdd\x7f\xff\xff\xff",
    "a huge map": b"\xdf\x7f\xff\xff\xff",
    "a huge string": b"\xdb\x7f\xff\xff\xff" + bytes(MAX_MESSAGE + 20_000),
    "too large": msgpack.packb([0, 1, "get", ["x" * (MAX_MESSAGE + 20_000), ""]]),
    "too large, of small parts": msgpack.packb([0, 1, "get_many", [[["x" * 1000, "y" * 100]] * 1000]]),
    "too many items": msgpack.packb([0, 1, "get_many", [[None] * 5000]]),
    "nested too deeply": b"\x91" * 100_000,
}


@pytest.fixture
def service() -> Service:
    return make_service(allow_clear=True)


@pytest.fixture
def wire(service: Service) -> Wire:
    return Wire(service)


def state(service: Service, module: str = ANN[0], sender: str = ANN[1]) -> bytes:
    return service.engine.space(b"default").get(module.encode(), sender.encode())  # type: ignore[return-value]


# Requests and responses


def test_a_request_is_answered(wire: Wire) -> None:
    assert wire.ask(request(1, "set", *ANN, "A")) == [ok(1, None)]
    assert wire.ask(request(2, "get", *ANN)) == [ok(2, "A")]


@pytest.mark.parametrize("msgid", [0, 1, 127, 128, 65535, 65536, 2**31, 2**32 - 1])
def test_an_answer_has_the_id_of_its_request(wire: Wire, msgid: int) -> None:
    assert wire.ask(request(msgid, "ping")) == [ok(msgid, None)]
    assert wire.ask(request(msgid, "none"))[0][1] == msgid


def test_names_and_texts_may_come_as_bin(wire: Wire) -> None:
    wire.ask(request(1, b"set", b"lists", b"ann@a.example", b"A"))
    assert wire.ask(request(2, "get", *ANN)) == [ok(2, "A")]


def test_a_pipeline_is_answered_in_order_and_in_one_write(wire: Wire) -> None:
    wire.ask(request(1, "set", *ANN, "A"))
    before = wire.writes
    gets = [request(number, "get", *ANN) for number in range(100)]
    assert wire.ask(*gets, request(1, "ping")) == [*(ok(number, "A") for number in range(100)), ok(1, None)]
    assert wire.writes == before + 1


HEAVY = {
    "get_many": [[ANN]],
    "set_many": [[[*ANN, "A"]]],
    "scan": [None, None, None, None],
    "count": [None, None],
    "clear": [],
}


@pytest.mark.parametrize(("method", "params"), HEAVY.items(), ids=HEAVY)
def test_after_what_takes_long_others_have_their_turn(wire: Wire, method: str, params: list[Any]) -> None:
    answers = wire.ask(*[request(number, method, *params) for number in range(3)], request(3, "ping"))
    assert [answer[1:3] for answer in answers] == [[number, None] for number in range(4)]
    assert wire.writes == 4


def test_a_message_may_come_byte_by_byte(wire: Wire) -> None:
    wire.ask(request(1, "set", *ANN, "A"))
    for byte in request(2, "get", *ANN)[:-1]:
        assert wire.ask(bytes([byte])) == []
    assert wire.ask(request(2, "get", *ANN)[-1:]) == [ok(2, "A")]


@given(data=st.data())
def test_cuts_between_reads_make_no_difference(data: st.DataObject) -> None:
    wire = Wire(make_service())
    sent = b"".join(request(number, "set" if number % 2 else "get", *ANN, *["A"] * (number % 2)) for number in range(9))
    cuts = [0, *sorted(data.draw(st.sets(st.integers(0, len(sent))))), len(sent)]
    for start, end in pairwise(cuts):
        wire.send(sent[start:end])
    assert wire.read() == [ok(number, None if number % 2 else "A" if number else "START") for number in range(9)]


asks = st.tuples(
    st.sampled_from(["set", "set", "set", "get"]),
    st.sampled_from(["lists", "é", "m" * 1024, "m" * 1025, 5]),
    st.sampled_from(["ann", "ben", "", None, "s" * 4096, "s" * 4097]),
    st.sampled_from(["A", "B", "START", "", "é", "t" * 1024, "t" * 1025, None]),
)


@given(asked=st.lists(asks, max_size=30))
def test_what_comes_together_does_what_it_does_one_after_the_other(asked: list[tuple[Any, ...]]) -> None:
    """Sets in a row go to the engine as one, which nobody may notice."""
    requests = [request(number, *(params if params[0] == "set" else params[:3])) for number, params in enumerate(asked)]
    together, one_by_one = Wire(make_service()), Wire(make_service())
    for each in requests:
        one_by_one.send(each)
    together.send(*requests)
    by_number = {answer[1]: answer[2:] for answer in together.read()}
    assert by_number == {answer[1]: answer[2:] for answer in one_by_one.read()}
    assert len(by_number) == len(asked)
    scan = request(100, "scan", None, None, None, None)
    assert together.ask(scan) == one_by_one.ask(scan)


def test_an_unknown_method_is_an_error_on_a_connection_that_goes_on(wire: Wire) -> None:
    assert error_of(wire.ask(request(1, "get_all"))[0]) == "unknown_method"
    assert wire.ask(request(2, "ping")) == [ok(2, None)]


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("get", ["lists"]),
        ("get", ["lists", "ann", "x"]),
        ("get", [5, "ann"]),
        ("get", "lists"),
        ("get", None),
        ("get", {}),
        ("get", {"module": "lists"}),
        (None, []),
        (5, []),
        ([], []),
        ({}, []),
        ("set", [*ANN]),
        ("set", [*ANN, None]),
        ("set", [*ANN, "A", {"fence": 1}]),
        ("set_many", [[[*ANN]]]),
        ("get_many", [["lists", "ann"]]),
        ("scan", [5, None, None, None]),
        ("scan", ["not a cursor", None, None, None]),
        ("hello", []),
    ],
)
def test_a_request_that_makes_no_sense_is_a_bad_request(wire: Wire, service: Service, method: Any, params: Any) -> None:
    assert [error_of(answer) for answer in wire.ask(msgpack.packb([0, 1, method, params]))] == ["bad_request"]
    assert not wire.is_closing() or method == "hello"
    assert state(service) == START


def test_a_fault_of_ours_is_internal_and_the_connection_goes_on(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("what only the log may say")

    monkeypatch.setattr(service.engine.space(b"default"), "set_all", fail)
    with capture_logs() as logs:
        answers = wire.ask(request(1, "set_all", "ann", "A"), request(2, "ping"))
    assert error_of(answers[0]) == "internal"
    assert "only the log" not in answers[0][2]
    assert answers[1] == ok(2, None)
    assert [type(entry["exc_info"]) for entry in logs] == [ZeroDivisionError]


# Garbage


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_closes_the_connection_and_changes_nothing(service: Service, garbage: bytes) -> None:
    other, wire = Wire(service), Wire(service)
    assert other.ask(request(1, "set", *ANN, "A")) == [ok(1, None)]
    with capture_logs() as logs:
        assert wire.ask(garbage, request(2, "set", *ANN, "B")) == []
    assert wire.is_closing()
    assert service.dropped["garbage"] == 1
    assert [entry["event"] for entry in logs] == ["connection dropped"]
    assert other.ask(request(3, "get", *ANN)) == [ok(3, "A")]


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_what_came_before_garbage_is_answered_and_nothing_behind_it(service: Service, garbage: bytes) -> None:
    wire = Wire(service)
    assert wire.ask(request(1, "set", *ANN, "A"), garbage, request(2, "set", *ANN, "B")) == [ok(1, None)]
    assert wire.is_closing()
    assert state(service) == b"A"


@pytest.mark.parametrize("cut", range(1, len(request(2, "set", *ANN, "B"))))
def test_half_a_message_changes_nothing(service: Service, cut: int) -> None:
    wire = Wire(service)
    wire.send(request(1, "set", *ANN, "A"), request(2, "set", *ANN, "B")[:cut])
    assert wire.read() == [ok(1, None)]
    wire.hang_up()
    assert state(service) == b"A"
    assert service.connections == 0


@settings(max_examples=300)
@given(noise=st.binary(max_size=200))
def test_noise_is_answered_or_ends_the_connection(noise: bytes) -> None:
    service = make_service()
    wire = Wire(service)
    with capture_logs():
        wire.send(request(1, "set", *ANN, "A"), noise)
    assert wire.read()[0] == ok(1, None)
    assert state(service) == b"A"
    assert Wire(service).ask(request(2, "get", *ANN)) == [ok(2, "A")]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.sampled_from(["get", "ping", "info"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300)
@given(message=values | st.tuples(st.integers(0, 3), st.integers(0, 9), values, values))
def test_any_message_is_answered_once_passed_over_or_ends_the_connection(message: Any) -> None:
    service = make_service()
    wire = Wire(service)
    with capture_logs():
        wire.send(msgpack.packb(message))
    assert len(wire.read()) + wire.is_closing() + (isinstance(message, list) and message[:1] == [2]) >= 1
    assert len(wire.read()) <= 1
    assert state(service) == START


def test_what_is_logged_of_a_dropped_connection_is_not_what_it_sent(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "EVERY", 0.0)
    with capture_logs() as logs:
        for garbage in (
            msgpack.packb([SECRET]),
            msgpack.packb({SECRET: {}}),
            b"\x81\x81\xa1x\x01\x01",
            SECRET.encode(),
            b"\x94\x00\x01\xa3get\x92" + msgpack.packb(SECRET) + b"\xc1",
        ):
            Wire(service).send(garbage)
    assert len(logs) == 5
    assert SECRET.encode().hex() not in str(logs)
    assert SECRET not in str(logs)


# Hello


def hello(msgid: int, **about: Any) -> bytes:
    return request(msgid, "hello", about)


def test_hello_chooses_the_namespace_of_what_follows(wire: Wire, service: Service) -> None:
    wire.send(hello(1, namespace="other"), request(2, "set", *ANN, "A"))
    assert [answer[2] for answer in wire.read()] == [None, None]
    assert state(service) == START
    assert service.engine.space(b"other").get(b"lists", b"ann@a.example") == b"A"


FIRST = {
    "ping": request(1, "ping"),
    "hello": hello(1),
    "get": request(1, "get", *ANN),
    "an error": request(1, "get", *ANN, "x"),
}


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_hello_comes_first_or_is_refused(service: Service, first: bytes, pipelined: bool) -> None:
    wire = Wire(service)
    if not pipelined:
        wire.ask(first)
    answers = wire.ask(first if pipelined else b"", hello(2, namespace="x"), request(3, "set", *ANN, "A"))
    assert error_of(answers[-1]) == "bad_request"
    assert answers[-1][1] == 2
    assert wire.is_closing()
    assert state(service) == START


REFUSED = {
    "a wrong token": ({"token": "guess"}, "unauthorized"),
    "no token": ({}, "unauthorized"),
    "a long namespace": ({"token": "sesame", "namespace": "x" * 300}, "too_long"),
    "one namespace too many": ({"token": "sesame", "namespace": "another"}, "full"),
}


@pytest.mark.parametrize(("about", "code"), REFUSED.values(), ids=REFUSED)
def test_after_a_refused_hello_nothing_is_executed(about: dict[str, str], code: str) -> None:
    service = make_service(engine_without_files(max_namespaces=1), token="sesame")
    wire = Wire(service)
    answers = wire.ask(hello(1, **about), request(2, "set", *ANN, "A"), hello(3, token="sesame"))
    assert [error_of(answer) for answer in answers] == [code]
    assert wire.is_closing()
    assert state(service) == START


def test_after_a_refused_hello_nothing_is_executed_when_the_client_reads_at_last(service: Service) -> None:
    """It had not read the answers to what it sent before; when it does, there is room for more answers."""
    wire = Wire(service, high_water=1000)
    service.engine.space(b"default").set(b"lists", b"ann@a.example", b"A" * 1000)
    wire.send(request(1, "get", *ANN), hello(2, namespace="x"), request(3, "set", *ANN, "B"), request(4, "ping"))
    assert [answer[1] for answer in wire.read()] == [1, 2]
    assert state(service) == b"A" * 1000


def test_after_garbage_nothing_is_executed_when_the_client_reads_at_last(service: Service) -> None:
    wire = Wire(service, high_water=1000)
    service.engine.space(b"default").set(b"lists", b"ann@a.example", b"A" * 500)
    gets = [request(number, "get", *ANN) for number in range(5)]
    wire.send(*gets, msgpack.packb(5), request(6, "set", *ANN, "B"), request(7, "ping"))
    assert [answer[1] for answer in wire.read()] == [0, 1, 2, 3, 4]
    assert state(service) == b"A" * 500


# Strangers, where a token is needed


def test_a_stranger_is_told_what_is_missing() -> None:
    service = make_service(token="sesame")
    answers = Wire(service).ask(request(1, "get", *ANN), request(2, "set", *ANN, "A"), request(3, "info"))
    assert [error_of(answer) for answer in answers] == ["unauthorized"] * 3
    assert state(service) == START


def test_a_stranger_may_pipeline_behind_its_hello() -> None:
    wire = Wire(make_service(token="sesame"))
    gets = [request(number, "get", *ANN) for number in range(2, 200)]
    answers = wire.ask(hello(1, token="sesame"), *gets)
    assert [answer[1:3] for answer in answers] == [[number, None] for number in range(1, 200)]


def test_a_stranger_becomes_known_byte_by_byte() -> None:
    wire = Wire(make_service(token="sesame"))
    for byte in hello(1, token="sesame") + request(2, "set_many", [["m", str(n), "A"] for n in range(500)]):
        wire.send(bytes([byte]))
    assert [answer[1:3] for answer in wire.read()] == [[1, None], [2, None]]


STRANGE = {
    "a long string": request(1, "hello", {"token": "x" * 2000}),
    "a long array": b"\xdd\x00\x00\x01\x00",
    "many small ones": request(1, "ping") * 500,
    "many notifications": msgpack.packb([2, "x", []]) * 500,
}


@pytest.mark.parametrize("sent", STRANGE.values(), ids=STRANGE)
def test_a_stranger_gets_little(sent: bytes) -> None:
    wire = Wire(make_service(token="sesame"))
    for byte in sent:
        wire.send(bytes([byte]))
    assert wire.is_closing()


# New tokens, while it is open


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    tokens = TokenFile(tmp_path / "tokens.toml")
    tokens.add("another", "admin")
    return tokens


def renew(wire: Wire, service: Service) -> None:
    service.access.read()
    wire.connection.renew()


def test_who_may_go_on_does_and_may_what_its_token_says_now(tokens: TokenFile) -> None:
    token = tokens.add("one", "read")
    service = make_service(tokens=tokens.path)
    wire = Wire(service)
    assert error_of(wire.ask(hello(1, token=token), request(2, "set", *ANN, "A"))[1]) == "forbidden"
    tokens.change_role("one", "write")
    renew(wire, service)
    assert wire.ask(request(3, "set", *ANN, "A")) == [[1, 3, None, None]]
    tokens.change_role("one", "read")
    renew(wire, service)
    refused, found = wire.ask(request(4, "set", *ANN, "B"), request(5, "get", *ANN))
    assert error_of(refused) == "forbidden"
    assert found == [1, 5, None, "A"]


def test_whose_token_is_gone_has_to_go_and_nothing_more_is_executed(tokens: TokenFile) -> None:
    token = tokens.add("one", "admin")
    service = make_service(tokens=tokens.path)
    wire, other = Wire(service), Wire(service)
    wire.ask(hello(1, token=token))
    other.ask(hello(1, token=tokens.add("two")), request(2, "ping"))
    tokens.remove("one")
    renew(wire, service)
    assert service.dropped["revoked"] == 1
    assert wire.is_closing()
    assert wire.ask(request(3, "set", *ANN, "A")) == []
    assert state(service) == START


def test_whose_token_is_gone_still_gets_what_was_being_answered(tokens: TokenFile) -> None:
    token = tokens.add("one", "write")
    engine = HoldingEngine()
    service = make_service(engine, tokens=tokens.path)
    wire = Wire(service)
    wire.ask(hello(1, token=token), request(2, "set", *ANN, "A"))
    tokens.remove("one")
    renew(wire, service)
    renew(wire, service)
    wire.send(request(3, "set", *ANN, "B"))
    assert not wire.is_closing()
    assert service.dropped["revoked"] == 1
    engine.commit.settle()
    assert wire.read()[-1] == [1, 2, None, None]
    assert wire.is_closing()
    assert len(engine.asked) == 1


def test_a_connection_that_drains_gets_nothing_back(tokens: TokenFile) -> None:
    token = tokens.add("one", "admin")
    service = make_service(tokens=tokens.path)
    wire = Wire(service)
    wire.ask(hello(1, token=token))
    wire.connection.drain()
    renew(wire, service)
    assert error_of(wire.ask(request(2, "get", *ANN))[0]) == "shutting_down"


def test_a_stranger_stays_one(tokens: TokenFile) -> None:
    service = make_service(tokens=tokens.path)
    wire = Wire(service)
    renew(wire, service)
    assert not wire.is_closing()
    assert error_of(wire.ask(request(1, "get", *ANN))[0]) == "unauthorized"


# Clients that do not read


def test_what_is_kept_for_a_client_is_bounded_whatever_the_transports_default_is(service: Service) -> None:
    """That of TLS is eight times as much."""
    assert Wire(service).asked_high_water == connection_module.HIGH_WATER


def test_a_client_that_does_not_read_is_not_answered_on(service: Service) -> None:
    wire = Wire(service, high_water=10_000)
    service.engine.space(b"default").set(b"lists", b"ann@a.example", b"A" * 1000)
    sent = [request(number, "get", *ANN) for number in range(1000)]
    wire.send(*sent)
    assert wire.unread < 10_000 + connection_module.READ_SIZE * 50
    assert [answer[1] for answer in wire.read()] == list(range(1000))


def test_large_answers_are_not_piled_up(service: Service) -> None:
    """Each may be a megabyte, and there is room for hundreds of requests in what is read at once."""
    wire = Wire(service, high_water=10_000)
    default = service.engine.space(b"default")
    default.set_many([(b"m", b"s%d" % number, b"A" * 500) for number in range(100)])
    wire.send(*[request(number, "scan", None, None, None, None) for number in range(100)])
    assert wire.unread < 200_000
    assert [answer[1] for answer in wire.read()] == list(range(100))


# Answers that come later


async def test_later_answers_go_out_in_any_order_with_their_ids() -> None:
    engine = LaterEngine()
    wire = Wire(make_service(engine))
    wire.send(*[request(number, "set", "lists", str(number), "A") for number in range(5)], request(5, "ping"))
    assert wire.read() == [ok(5, None)]
    for number in (3, 0, 4, 1, 2):
        engine.answers[number].set_result(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert wire.read()[1:] == [ok(number, None) for number in (3, 0, 4, 1, 2)]
    assert engine.asked[3] == ("set", b"lists", b"3", b"A")


async def test_a_get_asks_the_engine_once() -> None:
    engine = LaterEngine()
    wire = Wire(make_service(engine))
    wire.send(request(1, "get", *ANN))
    for answer in engine.answers:
        answer.set_result(b"A")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert wire.read() == [ok(1, "A")]
    assert engine.asked == [("get", b"lists", b"ann@a.example")]


async def test_later_errors_go_out_with_their_ids() -> None:
    engine = LaterEngine()
    wire = Wire(make_service(engine))
    wire.send(request(1, "set", *ANN, "A"), request(2, "set", *ANN, "B"))
    with capture_logs() as logs:
        engine.answers[1].set_exception(Forbidden("not you"))
        engine.answers[0].set_exception(ZeroDivisionError())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert [(answer[1], error_of(answer)) for answer in wire.read()] == [(2, "forbidden"), (1, "internal")]
    assert [type(entry["exc_info"]) for entry in logs] == [ZeroDivisionError]


async def test_hello_is_refused_while_an_answer_is_still_to_come() -> None:
    wire = Wire(make_service(LaterEngine()))
    wire.send(request(1, "set", *ANN, "A"), hello(2))
    assert [error_of(answer) for answer in wire.read()] == ["bad_request"]


@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_for_a_client_that_has_gone_is_dropped(fails: bool) -> None:
    engine = LaterEngine()
    wire = Wire(make_service(engine))
    wire.send(request(1, "set", *ANN, "A"))
    wire.hang_up()
    if fails:
        engine.answers[0].set_exception(Forbidden("not you"))
    else:
        engine.answers[0].set_result(None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert wire.unread == 0


async def test_a_client_that_only_waits_for_its_answers_gets_them_and_the_end() -> None:
    """It said all that it has to say, and reads until the connection is closed."""
    engine = LaterEngine()
    wire = Wire(make_service(engine))
    wire.send(request(1, "set", *ANN, "A"), request(2, "set", *ANN, "B"))
    assert wire.connection.eof_received()  # keeps the connection open
    for number, answer in enumerate(engine.answers):
        assert not wire.is_closing()
        answer.set_result(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert wire.read()[number:] == [ok(number + 1, None)]
    assert wire.is_closing()


async def test_a_client_that_sends_no_more_and_waits_for_its_turn_gets_its_answers_and_the_end(
    service: Service,
) -> None:
    """What it asked came in the turn of the loop in which it ended its half, behind something heavy of another's."""
    loop, connections = Loop(), Connections()
    wires = [Wire(service, connections=connections, loop=loop) for _ in range(2)]
    for wire in wires:
        wire.send(request(1, "scan", None, None, None, None), request(2, "ping"))
        wire.deliver()
    last = wires[1]
    assert last.connection.eof_received()  # keeps the connection open
    assert not last.is_closing()
    while loop.is_busy:
        loop.turn()
    assert [answer[1] for answer in last.read()] == [1, 2]
    assert last.is_closing()


@pytest.mark.parametrize("ends", ["the client", "the daemon"])
def test_an_answer_that_is_read_slowly_comes_as_a_whole_and_then_the_end(service: Service, ends: str) -> None:
    wire = Wire(service, high_water=connection_module.HIGH_WATER)
    service.engine.space(b"default").set_many([(b"m", b"s%d" % number, b"A" * 1000) for number in range(400)])
    wire.send(request(1, "get_many", [["m", f"s{number}"] for number in range(400)]))
    assert wire.unread < 50_000
    if ends == "the client":
        assert wire.connection.eof_received()  # keeps the connection open
    else:
        wire.connection.close()
    assert not wire.is_closing()
    assert wire.read() == [ok(1, ["A" * 1000] * 400)]
    assert wire.is_closing()


@pytest.mark.parametrize("memory", [0, 50_000])
def test_all_that_a_client_does_not_take_counts_in_the_budget(service: Service, memory: int) -> None:
    """What the transport did not get, and with TLS, what that keeps besides."""
    wire = Wire(service, high_water=connection_module.HIGH_WATER, memory=memory)
    service.engine.space(b"default").set_many([(b"m", b"s%d" % number, b"A" * 1000) for number in range(400)])
    wire.send(request(1, "get_many", [["m", f"s{number}"] for number in range(400)]))
    assert 400_000 + memory < service.budget.used < 410_000 + memory
    wire.read()
    assert service.budget.used == 0


def test_a_client_that_sends_no_more_and_waits_for_nothing_has_gone(wire: Wire) -> None:
    wire.ask(request(1, "ping"))
    assert not wire.connection.eof_received()


# Answers that are held until a commit is durable


@pytest.fixture
def holding() -> HoldingEngine:
    return HoldingEngine()


def set_(msgid: int) -> bytes:
    return request(msgid, "set", *ANN, "A")


def test_a_held_answer_leaves_when_the_commit_is_durable_and_not_before(holding: HoldingEngine) -> None:
    """D1."""
    wire = Wire(make_service(holding))
    holding.value = b"A"
    wire.send(request(1, "get", *ANN))
    assert wire.read() == []
    holding.commit.settle()
    assert wire.read() == [ok(1, "A")]


def test_all_that_is_held_for_one_commit_leaves_with_it(holding: HoldingEngine) -> None:
    wire = Wire(make_service(holding))
    wire.send(*[set_(number) for number in (5, 70_000, 3, 2**32 - 1)])
    wire.send(set_(6))
    holding.commit.settle()
    assert wire.read() == [ok(number, None) for number in (5, 70_000, 3, 2**32 - 1, 6)]


def test_answers_that_need_not_wait_overtake(holding: HoldingEngine) -> None:
    wire = Wire(make_service(holding))
    wire.send(set_(1), request(2, "ping"), set_(3), request(4, "none"))
    assert [answer[1] for answer in wire.read()] == [2, 4]
    assert [answer[1] for answer in wire.ask(request(5, "ping"))] == [5]
    holding.commit.settle()
    assert wire.read()[1:] == [ok(1, None), ok(3, None)]


@pytest.mark.parametrize("msgid", [0, 127, 128, 65535, 65536, 2**32 - 1])
def test_where_the_writes_were_taken_back_each_held_request_gets_the_error(holding: HoldingEngine, msgid: int) -> None:
    """D6."""
    service = make_service(holding)
    wire = Wire(service)
    wire.send(set_(msgid), request(2, "get", *ANN))
    holding.commit.settle(Unavailable("the disk is full"))
    answers = wire.read()
    assert [(answer[1], error_of(answer)) for answer in answers] == [(msgid, "unavailable"), (2, "unavailable")]
    assert "the disk is full" in answers[0][2]
    assert +service.errors == {"unavailable": 2}
    assert wire.ask(request(3, "ping")) == [ok(3, None)]


@given(data=st.data())
def test_each_request_is_answered_once_with_its_own_answer(data: st.DataObject) -> None:
    """However many commits they are held for, in whatever order those are settled, and wherever a read ends."""
    engine = HoldingEngine()
    commits = [HeldCommit() for _ in range(4)]
    held_for = data.draw(st.lists(st.integers(0, 4), max_size=30))  # 4: not at all
    wire = Wire(make_service(engine))
    asked = []

    def answer(*of: Any) -> Any:
        number = int(of[2])
        return of[2] if held_for[number] == 4 else Held(of[2], commits[held_for[number]])

    engine._later = answer  # type: ignore[method-assign]
    for number in range(len(held_for)):
        asked.append(request(number, "get", "lists", str(number)))
        if data.draw(st.booleans()):
            wire.send(*asked)
            asked.clear()
    wire.send(*asked)
    expected = [number for number, of in enumerate(held_for) if of == 4]
    assert [answer[1] for answer in wire.read()] == expected
    for of in data.draw(st.permutations(range(4))):
        fails = data.draw(st.booleans())
        commits[of].settle(Unavailable("full") if fails else None)
        expected += [number for number, its in enumerate(held_for) if its == of]
        answers = wire.read()
        assert [answer[1] for answer in answers] == expected
        for _, number, error, result in answers:
            if held_for[number] == of:
                assert (code_of(error), result) == (("unavailable", None) if fails else ("", str(number)))
            elif error is None:
                assert result == str(number)


def test_a_client_with_many_held_answers_is_read_on_when_they_are_out(
    holding: HoldingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "MAX_HELD", 50)
    wire = Wire(make_service(holding))
    count = 5000
    wire.send(*[set_(number) for number in range(count)])
    read_at_once = connection_module.READ_SIZE // len(set_(0)) + 1
    rounds = 0
    while len(holding.asked) < count:
        rounds += 1
        assert len(holding.asked) <= len(wire.read()) + 50 + read_at_once
        asked, commit = len(holding.asked), holding.commit
        wire.send(request(count, "set", *ANN, "A"))
        assert len(holding.asked) == asked  # nothing more is read meanwhile
        count += 1
        holding.commit = HeldCommit()
        commit.settle()
        wire.read()
    holding.commit.settle()
    assert rounds > 3
    assert sorted(answer[1] for answer in wire.read())[:5000] == list(range(5000))


@pytest.mark.parametrize("value", [[], [b"x" * 1000]], ids=["large requests", "large answers"])
def test_a_client_with_much_that_is_held_is_read_on_when_it_is_out(
    holding: HoldingEngine, monkeypatch: pytest.MonkeyPatch, value: list[bytes]
) -> None:
    """A thousand answers may be a gigabyte, or answer a gigabyte."""
    monkeypatch.setattr(connection_module, "MAX_HELD_BYTES", 20_000)
    holding.value = value
    wire = Wire(make_service(holding))
    pairs = [ANN] * (1 if value else 50)
    wire.send(*[request(number, "get_many", pairs) for number in range(200)])
    assert 0 < len(holding.asked) < 100
    answers: list[Any] = []
    while len(answers) < 200:
        seen = len(answers)
        commit, holding.commit = holding.commit, HeldCommit()
        commit.settle()
        answers = wire.read()
        assert len(answers) > seen
    assert [answer[1] for answer in answers] == list(range(200))


def test_a_client_that_only_waits_for_held_answers_gets_them_and_the_end(holding: HoldingEngine) -> None:
    wire = Wire(make_service(holding))
    wire.send(set_(1), set_(2))
    assert wire.connection.eof_received()  # keeps the connection open
    assert not wire.is_closing()
    holding.commit.settle()
    assert wire.read() == [ok(1, None), ok(2, None)]
    assert wire.is_closing()


def test_one_that_ends_its_half_with_too_much_held_goes_on_when_some_of_it_has_left(holding: HoldingEngine) -> None:
    """A request of it waits for its turn then, and must not be asked for again and again in one turn of the loop."""
    loop = Loop()
    wire = Wire(make_service(holding), loop=loop)
    sets: list[int] = []

    def next_sets(count: int) -> list[bytes]:
        numbers = range(len(sets), len(sets) + count)
        sets.extend(numbers)
        return [set_(number) for number in numbers]

    while wire.connection.responses.held < connection_module.MAX_HELD - 80:
        wire.send(*next_sets(40), request(5000, "ping"))  # each time others to wait for
        loop.turn()
    wire.send(*next_sets(100), *[request(6000 + scan, "scan", None, None, None, None) for scan in range(4)])
    wire.deliver()
    assert wire.connection.eof_received()  # keeps the connection open
    for _ in range(10):
        holding.commit.settle()
        holding.commit = HeldCommit()
        while loop.is_busy:
            loop.turn()
    assert {*sets, *range(6000, 6004)} <= {answer[1] for answer in wire.read()}
    assert wire.is_closing()


def test_closing_waits_for_held_answers(holding: HoldingEngine) -> None:
    """O1: what was written is acknowledged, and nothing more is executed."""
    wire = Wire(make_service(holding))
    wire.send(set_(1))
    wire.connection.drain()
    assert error_of(wire.ask(set_(2))[0]) == "shutting_down"
    wire.connection.close()
    assert not wire.is_closing()
    wire.send(set_(3))
    holding.commit.settle()
    assert wire.read()[1:] == [ok(1, None)]
    assert wire.is_closing()
    assert len(holding.asked) == 1


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_what_is_held_when_garbage_comes_still_goes_out_and_nothing_behind_is_executed(
    holding: HoldingEngine, garbage: bytes, fails: bool
) -> None:
    wire = Wire(make_service(holding))
    wire.send(set_(1), request(2, "ping"), garbage, set_(3))
    assert wire.read() == [ok(2, None)]
    assert not wire.is_closing()
    holding.commit.settle(Unavailable("full") if fails else None)
    assert [(answer[1], code_of(answer[2])) for answer in wire.read()[1:]] == [(1, "unavailable" if fails else "")]
    assert wire.is_closing()
    assert len(holding.asked) == 1


def test_garbage_that_comes_while_something_is_held_closes_once_that_is_out(holding: HoldingEngine) -> None:
    wire = Wire(make_service(holding))
    wire.send(set_(1))
    wire.send(b"\xc1", set_(2))
    assert not wire.is_closing()
    holding.commit.settle()
    assert wire.read() == [ok(1, None)]
    assert wire.is_closing()


@pytest.mark.parametrize("pipelined", [False, True])
def test_hello_is_refused_while_an_answer_is_held(holding: HoldingEngine, pipelined: bool) -> None:
    wire = Wire(make_service(holding))
    parts = (set_(1), hello(2), set_(3))
    for sent in [b"".join(parts)] if pipelined else parts:
        wire.send(sent)
    assert [(answer[1], error_of(answer)) for answer in wire.read()] == [(2, "bad_request")]
    holding.commit.settle()
    assert wire.read()[1:] == [ok(1, None)]
    assert wire.is_closing()
    assert len(holding.asked) == 1


@pytest.mark.parametrize("error", [None, Unavailable("full")])
def test_a_held_answer_for_a_client_that_has_gone_is_dropped(holding: HoldingEngine, error: Unavailable | None) -> None:
    wire = Wire(make_service(holding))
    wire.send(set_(1))
    wire.hang_up()
    holding.commit.settle(error)
    assert wire.unread == 0


def test_after_something_heavy_that_is_held_others_have_their_turn(holding: HoldingEngine) -> None:
    holding.value = []
    wire = Wire(make_service(holding))
    wire.send(*[request(number, "get_many", [ANN]) for number in range(3)], request(3, "ping"))
    assert wire.read() == [ok(3, None)]
    holding.commit.settle()
    assert wire.read()[1:] == [ok(number, []) for number in range(3)]


async def test_no_client_sees_a_write_before_the_sync_has_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1, with the default engine."""
    syncs = Gate(monkeypatch, Journal, "sync")
    directory = DataDirectory(tmp_path)
    directory.open()
    engine = EmbeddedEngine(directory, Fsync.ALWAYS, NEVER, 1000)
    await engine.open()
    service = make_service(engine)
    writer, reader = Wire(service), Wire(service)
    with syncs:
        writer.send(set_(1), request(2, "get", *ANN))
        reader.send(request(1, "get", *ANN), request(2, "scan", None, None, None, None), request(3, "ping"))
        reader.send(request(4, "get", "lists", "ben"))
        await eventually(lambda: syncs.waiting)
        await some_turns()
        assert writer.read() == []
        assert reader.read() == [ok(3, None), ok(4, "START")]
    await eventually(lambda: len(writer.read()) == 2 and len(reader.read()) == 4)
    assert writer.read() == [ok(1, None), ok(2, "A")]
    assert reader.read()[2] == ok(1, "A")
    await engine.close()
    directory.close()


# Connections of clients


def once(msgid: int, seq: int, state: str, oldest: int = 1) -> bytes:
    return request(msgid, "set", *ANN, state, {"seq": seq, "oldest": oldest})


@asynccontextmanager
async def service_on(path: Path) -> AsyncIterator[Service]:
    """With the default engine."""
    directory = DataDirectory(path)
    directory.open()
    engine = EmbeddedEngine(directory, Fsync.ALWAYS, NEVER, 1000)
    await engine.open()
    yield make_service(engine)
    await engine.close()
    directory.close()


def sessions_of(service: Service) -> int:
    return service.engine.info()["sessions"]


def test_a_hello_without_a_session_has_none(wire: Wire, service: Service) -> None:
    (welcome,) = wire.ask(hello(1))
    assert "session" not in welcome[3]
    assert [error_of(answer) for answer in wire.ask(once(2, 1, "A"))] == ["bad_request"]
    assert sessions_of(service) == 0


@pytest.mark.parametrize("session", [-1, 2**63, "7", 1.5, -1.0, 2.0**63, math.inf, math.nan, True, [7]])
def test_a_session_that_makes_no_sense_is_a_refused_hello(wire: Wire, service: Service, session: object) -> None:
    answers = wire.ask(hello(1, session=session), request(2, "set", *ANN, "A"))
    assert [error_of(answer) for answer in answers] == ["bad_request"]
    assert wire.is_closing()
    assert sessions_of(service) == 0


def test_a_session_goes_on_over_another_connection(service: Service) -> None:
    first = Wire(service)
    (welcome,) = first.ask(hello(1, session=0))
    assert welcome[3]["session"] > 0
    first.ask(once(2, 1, "A"))
    first.hang_up()
    second = Wire(service)
    assert second.ask(hello(1, session=welcome[3]["session"]))[0][3]["session"] == welcome[3]["session"]
    assert second.ask(once(2, 1, "A"), once(3, 2, "C"), once(4, 1, "A")) == [ok(number, None) for number in (2, 3, 4)]
    assert state(service) == b"C"
    assert error_of(second.ask(once(5, 1, "B"))[0]) == "number_reused"
    assert state(service) == b"C"
    assert sessions_of(service) == 1


def test_a_session_may_be_a_float(service: Service) -> None:
    first, second = Wire(service), Wire(service)
    (welcome,) = first.ask(hello(1, session=0.0))
    session = welcome[3]["session"]
    assert second.ask(hello(1, session=float(session)))[0][3]["session"] == session
    assert sessions_of(service) == 1


def test_a_session_that_is_not_known_is_answered_with_a_new_one(service: Service) -> None:
    answers = [Wire(service).ask(hello(1, session=asked))[0] for asked in (5, 5, 0)]
    assert len({welcome[3]["session"] for welcome in answers} | {5}) == 4


def test_who_may_only_read_gets_no_session(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    become = Caller.become
    monkeypatch.setattr(Caller, "become", lambda caller, _: become(caller, Role.READ))
    (welcome,) = Wire(service).ask(hello(1, session=0))
    assert welcome[3]["session"] is None
    assert code_of(welcome[3]["session_error"]) == "forbidden"
    assert sessions_of(service) == 0


def test_the_end_of_its_last_connection_leaves_a_session(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "MAX_SESSIONS", 1)
    first = Wire(service)
    session = first.ask(hello(1, session=0))[0][3]["session"]
    second = Wire(service)
    second.ask(hello(1, session=session))
    first.hang_up()
    (welcome,) = Wire(service).ask(hello(1, session=0))
    assert welcome[3]["session"] is None
    assert welcome[3]["session_error"] == "unavailable: all 1 sessions are in use"
    second.hang_up()
    assert Wire(service).ask(hello(1, session=0))[0][3]["session"] not in (None, session)


def test_a_refused_hello_leaves_no_session() -> None:
    service = make_service(token="sesame")
    Wire(service).ask(hello(1, session=0, token="wrong"))
    Wire(service).ask(hello(1, session=0, namespace=5, token="sesame"))
    assert sessions_of(service) == 0


async def test_a_new_session_is_told_when_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Gate(monkeypatch, Journal, "sync")
    async with service_on(tmp_path) as service:
        wire = Wire(service)
        with syncs:
            wire.send(hello(1, session=0), request(2, "set", *ANN, "A"), request(3, "ping"), hello(4))
            await eventually(lambda: syncs.waiting)
            await some_turns()
            assert [(answer[1], code_of(answer[2])) for answer in wire.read()] == [(3, ""), (4, "bad_request")]
        await eventually(lambda: len(wire.read()) == 4)
        told = {answer[1]: answer for answer in wire.read()}
        assert told[2] == ok(2, None)
        assert told[1][3]["session"] in service.engine.states.sessions  # type: ignore[attr-defined]
        known = Wire(service)
        assert known.ask(hello(1, session=told[1][3]["session"]))[0][3]["session"] == told[1][3]["session"]


async def test_where_a_new_session_cannot_be_written_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And everything else is as it is without."""
    disk = Disk(monkeypatch)
    async with service_on(tmp_path) as service:
        wire = Wire(service)
        disk.fill()
        wire.send(hello(1, session=0, namespace="default"), once(2, 1, "A"), request(3, "get", "lists", "ben"))
        await eventually(lambda: len(wire.read()) == 3)
        told = {answer[1]: answer for answer in wire.read()}
        assert told[1][2:] == [None, {**told[1][3], "session": None}]
        assert re.match("unavailable: .*no room", told[1][3]["session_error"])
        assert error_of(told[2]) == "unavailable"
        assert told[3] == ok(3, "START")
        assert [error_of(answer) for answer in wire.ask(once(4, 2, "A"))] == ["bad_request"]
        wire.hang_up()
        (again,) = Wire(service).ask(hello(1, session=0))
        assert (again[3]["session"], again[3]["session_error"]) == (None, told[1][3]["session_error"])
        assert sessions_of(service) == 0
        disk.make_room()


async def test_a_client_that_has_gone_before_its_session_is_durable_has_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MAX_SESSIONS", 1)
    syncs = Gate(monkeypatch, Journal, "sync")
    async with service_on(tmp_path) as service:
        wire = Wire(service)
        with syncs:
            wire.send(hello(1, session=0))
            wire.hang_up()
        await eventually(lambda: sessions_of(service) == 1 and not service.engine.commits.batch.effects)  # type: ignore[attr-defined]
        after = Wire(service)
        after.send(hello(1, session=0))
        await eventually(after.read)
        assert after.read()[0][3]["session"] is not None
        assert wire.unread == 0


# What a client may not do for long


def test_a_stranger_has_little_time(holding: HoldingEngine) -> None:
    """L3."""
    service = make_service(holding, token="sesame")
    silent, dripping, known = Wire(service), Wire(service), Wire(service)
    known.send(hello(1, token="sesame"))
    for byte in hello(1, token="sesame", client="x" * 50)[: timeouts.HELLO]:
        dripping.send(bytes([byte]))
        for wire in (silent, dripping, known):
            assert not wire.is_closing()
            wire.look()
    for wire in (silent, dripping, known):
        wire.look()
    assert [wire.is_closing() for wire in (silent, dripping, known)] == [True, True, False]
    assert service.dropped["no_hello"] == 2
    known.look(1000)
    assert not known.is_closing()


def test_a_hello_in_two_pieces_has_its_time_however_long_the_daemon_runs() -> None:
    """L3."""
    connections = Connections()
    connections.watch.now = 1000
    wire = Wire(make_service(token="sesame"), connections=connections)
    said = hello(1, token="sesame")
    wire.send(said[:10])
    wire.look(timeouts.HELLO)
    assert not wire.is_closing()
    assert wire.ask(said[10:])[0][2] is None


def test_a_message_has_to_end(wire: Wire, service: Service) -> None:
    """L3: a byte a second is too slow."""
    for byte in request(1, "set", *ANN, "A")[: timeouts.REST_OF_MESSAGE]:
        wire.send(bytes([byte]))
        wire.look()
        assert not wire.is_closing()
    wire.look()
    assert wire.is_closing()
    assert service.dropped["unfinished"] == 1


def test_a_crowd_does_not_fill_the_log(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "EVERY", 3600.0)
    with capture_logs() as logs:
        for number in range(60):
            Wire(service).send(b"\xc1" if number % 2 else msgpack.packb([SECRET]))
    assert service.dropped["garbage"] == 60
    assert len(logs) == len({entry["reason"] for entry in logs}) == 2


@pytest.mark.parametrize("token", [None, "sesame"])
@pytest.mark.parametrize(
    ("garbage", "name"),
    [("http", "an HTTP request"), ("smtp", "an SMTP or LMTP"), ("redis", "a Redis"), ("tls", "a TLS handshake")],
)
def test_another_protocol_is_named(garbage: str, name: str, token: str | None) -> None:
    with capture_logs() as logs:
        Wire(make_service(token=token)).send(GARBAGE[garbage])
    assert [(entry["event"], entry["reason"].startswith(f"{name} ")) for entry in logs] == [
        ("connection dropped", True)
    ]


def test_a_proxy_header_is_named_also_if_a_request_comes_with_it(service: Service) -> None:
    with capture_logs() as logs:
        Wire(service).send(b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 7828\r\n", request(1, "ping"))
    assert [entry["reason"].startswith("a PROXY protocol header came") for entry in logs] == [True]
    assert "192.0.2" not in str(logs)


def test_what_looks_like_another_protocol_later_on_is_not_named_so(service: Service) -> None:
    """The state of a sender may be `GET /`: what is out of step may be anything."""
    with capture_logs() as logs:
        Wire(service).send(request(1, "ping"), GARBAGE["http"])
    assert [entry["reason"] for entry in logs] == ["a message is neither a request nor a notification"]


def test_each_message_has_its_own_time(wire: Wire) -> None:
    """Each read ends in the middle of a message, and none of them takes long."""
    sent = b"".join(request(number, "set", *ANN, "A") for number in range(50))
    for start in range(0, len(sent), len(request(1, "set", *ANN, "A")) - 1):
        wire.send(sent[start : start + len(request(1, "set", *ANN, "A")) - 1])
        wire.look(timeouts.REST_OF_MESSAGE - 1)
    assert not wire.is_closing()
    wire.send(sent[-3:])
    wire.look(1000)  # saying nothing is no fault
    assert len(wire.read()) >= 48


def test_a_message_is_not_late_while_we_do_not_read(holding: HoldingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_HELD", 3)
    wire = Wire(make_service(holding))
    wire.send(*[set_(number) for number in range(10)], set_(10)[:-3])
    wire.look(50)
    assert not wire.is_closing()
    holding.commit.settle()
    wire.look(timeouts.REST_OF_MESSAGE)
    assert not wire.is_closing()
    wire.look()
    assert wire.is_closing()


def flood(service: Service, connections: Connections | None = None) -> Wire:
    """A client that asks for much and reads nothing."""
    wire = Wire(service, high_water=connection_module.HIGH_WATER, connections=connections)
    wire.send(request(0, "set", *ANN, "A" * 1000))
    wire.send(*[request(number, "get", *ANN) for number in range(3000)])
    assert wire.unread > 0
    return wire


def test_a_client_that_does_not_read_is_closed_at_last(service: Service) -> None:
    """L2."""
    wire = flood(service)
    wire.look(timeouts.READING)
    assert not wire.is_closing()
    wire._unread = wire._unread[:-1]  # it takes a byte
    wire.look(timeouts.READING)
    assert not wire.is_closing()
    wire.look(2)
    assert wire.is_closing()
    assert service.dropped["not_reading"] == 1


def test_a_client_that_does_not_read_is_counted_as_such_if_the_system_gives_it_up_first(service: Service) -> None:
    wire = flood(service)
    wire.lose(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
    assert {why: number for why, number in service.dropped.items() if number} == {"not_reading": 1}


@pytest.mark.parametrize("code", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH])
def test_a_peer_that_is_gone_is_counted(service: Service, code: int) -> None:
    wire = Wire(service)
    wire.ask(request(1, "ping"))
    wire.lose(OSError(code, "gone"))
    assert {why: number for why, number in service.dropped.items() if number} == {"dead_peer": 1}
    assert service.connections == 0


@pytest.mark.parametrize(
    "error", [None, ConnectionResetError(errno.ECONNRESET, "reset"), BrokenPipeError(errno.EPIPE, "")]
)
@pytest.mark.parametrize("reads", [True, False])
def test_what_the_client_ends_is_no_drop(service: Service, error: OSError | None, reads: bool) -> None:
    wire = Wire(service) if reads else flood(service)
    wire.lose(error)
    assert sum(service.dropped.values()) == 0


def test_what_is_no_tls_any_more_is_garbage(service: Service) -> None:
    error = ssl.SSLError(1, "decryption failed")
    error.reason = "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"
    with capture_logs() as logs:
        Wire(service).lose(error)
    assert service.dropped["garbage"] == sum(service.dropped.values()) == 1
    assert logs[0]["reason"] == "TLS has failed: decryption failed or bad record mac"


def test_what_is_answered_to_a_client_that_does_not_read_is_little(service: Service) -> None:
    """L2: one write, and that is no more than what was asked for in a part of one read."""
    assert flood(service).unread < 300 * 1024


def test_too_much_that_is_not_taken_ends_the_connection_within_a_second(service: Service) -> None:
    """L2: the transport goes on to keep what is written, however often it has said that this is enough."""
    wire = flood(service)
    wire.write(b"x" * connection_module.MAX_UNSENT)
    wire.look()
    assert wire.is_closing()


def test_a_connection_that_is_to_be_closed_does_not_wait_for_a_client_that_does_not_read(service: Service) -> None:
    wire = Wire(service, high_water=10)
    wire.send(request(1, "get", *ANN) * 2, b"\xc1")
    aborted: list[bool] = []
    wire.abort = lambda: aborted.append(True)  # type: ignore[method-assign]
    wire.look(timeouts.CLOSING)
    assert not aborted
    wire.look(2)
    assert aborted


# What all clients together may make us hold


def test_what_a_connection_makes_us_keep_is_counted_until_it_is_gone(service: Service) -> None:
    """L1."""
    budget = service.budget
    half, slow, gone = Wire(service), flood(service), Wire(service)
    half.send(request(1, "set_many", [[*ANN, "A" * 900]] * 200)[:100_000])
    gone.send(request(1, "set", *ANN, "A")[:-1])
    assert budget.used >= 100_000 + slow.unread
    gone.hang_up()
    slow.read()
    assert 100_000 <= budget.used < 101_000
    half.send(request(1, "set_many", [[*ANN, "A" * 900]] * 200)[100_000:])
    assert budget.used == 0
    assert half.read() == [ok(1, None)]


def test_garbage_is_not_kept(service: Service) -> None:
    wire = Wire(service)
    wire.send(b"\x94\x00\x01\xa3get\xdc\x04\x00", b"\xdc\x04\x00" * 20)
    assert wire.is_closing()
    assert service.budget.used == 0


@pytest.fixture
def tight() -> Service:
    """With a budget that one client has used up."""
    service = make_service(budget=Budget(100_000))
    Wire(service).send(request(1, "set_many", [[*ANN, "A" * 900]] * 200)[:101_000])
    assert service.budget.used_up
    return service


def test_where_the_budget_is_used_up_others_are_still_answered(tight: Service) -> None:
    """L1: those that ask for little, and take their answers."""
    wire = Wire(tight)
    assert wire.ask(request(1, "set", *ANN, "A" * 1000), request(2, "get", *ANN)) == [ok(1, None), ok(2, "A" * 1000)]
    assert wire.ask(request(3, "get_many", [ANN] * 3)) == [ok(3, ["A" * 1000] * 3)]
    assert error_of(wire.ask(request(4, "get_many", [ANN] * 500))[0]) == "unavailable"
    answers = wire.ask(*[request(number, "get", *ANN) for number in range(200)])
    assert [answer[1] for answer in answers] == list(range(200))


@pytest.mark.parametrize("length", [3, 500])
def test_where_the_budget_is_used_up_a_long_answer_is_refused_though_it_waits_for_the_disk(
    holding: HoldingEngine, length: int
) -> None:
    """It shows writes that are not durable yet, as all do while others write."""
    holding.value = [b"A" * 1000] * length
    service = make_service(holding, budget=Budget(100_000))
    wire, other = Wire(service), Wire(service)
    other.send(request(1, "set_many", [[*ANN, "A" * 900]] * 200)[:101_000])
    assert service.budget.used_up
    wire.send(request(1, "get_many", [ANN] * length))
    holding.commit.settle()
    ((_, _, error, result),) = wire.read()
    assert (code_of(error), result) == (("unavailable", None) if length == 500 else ("", ["A" * 1000] * length))


def test_where_the_budget_is_used_up_nobody_takes_much_more(tight: Service) -> None:
    """L2."""
    used = tight.budget.used
    slow = [flood(tight) for _ in range(5)]
    assert max(wire.unread for wire in slow) < 40_000
    assert tight.budget.used - used < 5 * (40_000 + connection_module.READ_SIZE)


def test_whoever_waits_for_the_budget_goes_on_when_there_is_room() -> None:
    service = make_service(budget=Budget(100_000))
    call = request(1, "set_many", [[*ANN, "A" * 900]] * 70)
    one, other = Wire(service), Wire(service)
    one.send(call[:-10])
    other.send(call)  # its second half is not read
    assert other.read() == []
    assert other.unsent
    one.send(call[-10:])
    assert one.read() == [ok(1, None)]
    assert other.ask() == [ok(1, None)]
    assert service.budget.used == 0


def test_where_all_wait_for_each_other_the_greediest_goes(tight: Service) -> None:
    wire = Wire(tight)
    wire.send(request(1, "set_many", [[*ANN, "A" * 900]] * 200)[:60_000])
    assert tight.budget.used_up
    dropped = tight.dropped["no_buffers"]
    wire.look(2)
    assert tight.dropped["no_buffers"] == dropped + 1


# Fairness, in turns of the loop

GET = request(1, "get", *ANN)
SCAN = request(1, "scan", None, None, None, None)
A_READ_OF_GETS = connection_module.READ_SIZE // len(GET) + 1
# What some send without end, and how many calls may be executed for all of them in a turn.
WITHOUT_END = {
    "gets": (GET, A_READ_OF_GETS),
    "sets": (request(1, "set", *ANN, "A"), A_READ_OF_GETS),
    "scans": (SCAN, 1),
    "scans among gets": (GET * 100 + SCAN, 2 * 101),  # of one who had the turn before, too
    "large ones": (request(1, "set_many", [[*ANN, "A" * 900]] * 100), 1),
    "what is not answered": (msgpack.packb([2, "x", ["y" * 100]]), 0),
}


@pytest.mark.parametrize(("asked", "at_once"), WITHOUT_END.values(), ids=WITHOUT_END)
def test_who_asks_for_little_is_answered_in_the_same_turn(service: Service, asked: bytes, at_once: int) -> None:
    """L6: whatever others ask for without end; and all of these are served."""
    loop, connections, turns = Loop(), Connections(), 30
    floods = [Wire(service, high_water=2**30, connections=connections, loop=loop) for _ in range(3)]
    other = Wire(service, connections=connections, loop=loop)
    sent = asked * (turns * connection_module.READ_SIZE // len(asked) + 1)
    for flood in floods:
        flood.send(sent)
    for turn in range(turns):
        calls, unsent = sum(service.calls.values()), [flood.unsent for flood in floods]
        other.send(request(turn, "get", "lists", "ben"))
        loop.turn()
        assert other.read()[turn:] == [ok(turn, "START")]
        # In the first turn he who comes first is served, and then he who waited.
        assert sum(service.calls.values()) - calls <= at_once * (2 if turn == 0 else 1) + 1
        for flood, before in zip(floods, unsent, strict=True):
            assert before - flood.unsent <= connection_module.READ_SIZE
    answers = [flood.unread for flood in floods]
    assert 2 * min(answers) >= max(answers)
    assert (max(answers) > 0) == (at_once > 0)


def test_heavy_requests_of_all_clients_take_turns(service: Service) -> None:
    """L6."""
    loop, connections = Loop(), Connections()
    wires = [Wire(service, connections=connections, loop=loop) for _ in range(5)]
    for wire in wires:
        wire.send(SCAN)
    for turn in range(1, 6):
        loop.turn()
        assert [len(wire.read()) for wire in wires] == [1] * turn + [0] * (5 - turn)


# The end


def test_a_draining_session_says_so_and_changes_nothing(wire: Wire, service: Service) -> None:
    wire.ask(request(1, "set", *ANN, "A"))
    wire.connection.drain()
    writes = request(2, "set", *ANN, "B"), request(3, "set", *ANN, "B", {"seq": 1, "oldest": 1})
    answers = wire.ask(*writes, request(4, "get", *ANN), request(5, "hello", {}))
    assert [error_of(answer) for answer in answers] == ["shutting_down"] * 4
    assert state(service) == b"A"


def test_sessions_say_when_the_last_one_has_gone(service: Service) -> None:
    wire = Wire(service)
    other = Wire(service, connections=wire.connections)
    assert service.connections == 2
    wire.hang_up()
    assert not wire.connections.emptied.is_set()
    other.hang_up()
    assert wire.connections.emptied.is_set()
    assert (service.connections, service.connections_total) == (0, 2)


def test_calls_and_errors_are_counted(wire: Wire) -> None:
    wire.ask(*[request(number, "get", *ANN) for number in range(3)], request(4, "none"), request(5, "get"))
    info = wire.ask(request(6, "info"))[0][3]
    assert (info["calls"]["get"], info["calls"]["info"], info["calls"]["set"]) == (3, 1, 0)
    assert {code: count for code, count in info["errors"].items() if count} == {"unknown_method": 1, "bad_request": 1}


# With a real daemon on real sockets


def resident(daemon: Daemon) -> int:
    """Bytes of memory that the daemon uses."""
    assert daemon.process is not None
    with open(f"/proc/{daemon.process.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_client_that_does_not_read_costs_little_and_holds_up_nobody(shared_daemon: Daemon) -> None:
    with RawClient(shared_daemon.address) as slow, RawClient(shared_daemon.unix_address) as other:
        for client in (slow, other):
            client.ask("hello", {"namespace": "slow"})
        other.ask("set_many", [["m", f"s{number}", "A" * 500] for number in range(400)])
        before = resident(shared_daemon)
        scan = request(1, "scan", None, None, None, None)
        slow.socket.setblocking(False)
        while select.select([], [slow.socket], [], 0.2)[1]:  # until the daemon takes no more
            slow.socket.send(scan * 100)
            assert resident(shared_daemon) - before < 30_000_000
        assert other.ask("get", "m", "s1") == "A" * 500


def test_a_client_that_reads_late_gets_all_its_answers(shared_daemon: Daemon) -> None:
    count = 20_000
    with RawClient(shared_daemon.address) as slow:
        slow.ask("hello", {"namespace": "late"})
        slow.ask("set", *ANN, "A" * 1000)
        requests = b"".join(request(number, "get", *ANN) for number in range(count))
        sending = threading.Thread(target=slow.send, args=[requests])
        sending.start()
        wait_until(lambda: unsent(slow) > 0)
        for number in range(count):
            assert slow.next() == ok(number, "A" * 1000)
        sending.join()


def unsent(client: RawClient) -> int:
    """Bytes that are in the system's hands, and that the daemon has not taken yet."""
    return int.from_bytes(fcntl.ioctl(client.socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def test_a_client_that_sends_without_end_does_not_hold_up_others(shared_daemon: Daemon) -> None:
    with RawClient(shared_daemon.address) as eager, RawClient(shared_daemon.address) as other:
        notification = msgpack.packb([2, "x", ["y" * 100]]) * 20_000
        eager.send(notification)
        assert other.ask("ping") is None
        assert eager.ask("ping") is None


def test_many_clients_are_answered_at_once(shared_daemon: Daemon) -> None:
    clients = [RawClient(shared_daemon.address) for _ in range(100)]
    for number, client in enumerate(clients):
        client.send(hello(1, namespace="many"), request(2, "set", "m", f"s{number}", f"S{number}"))
    for client in clients:
        assert [client.next()[1], client.next()] == [1, ok(2, None)]
    for number, client in enumerate(clients):
        assert client.ask("get", "m", f"s{number}") == f"S{number}"
        client.socket.close()


@pytest.mark.parametrize("garbage", ["http", "a huge array", "nested too deeply", "too large", "a response"])
def test_garbage_over_a_real_connection_closes_it(shared_daemon: Daemon, garbage: str) -> None:
    with RawClient(shared_daemon.address) as bad, RawClient(shared_daemon.address) as good:
        with suppress(ConnectionError):
            bad.send(GARBAGE[garbage])
        assert bad.is_closed()
        assert good.ask("ping") is None
