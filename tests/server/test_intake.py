"""What all connections send in one turn of the loop: each is answered what it asked, whatever the others sent."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from statestored import intake as intake_module
from statestored.answers import NIL
from statestored.commands import Service
from statestored.connection import MUCH, Connections
from statestored.engines.sessions import ANSWER_SIZE, ClientSessions
from statestored.responses import MAX_HELD
from statestored.timeouts import Dropped
from tests.server.fakes import HoldingEngine, Loop, Wire, make_service
from tests.server.rpc import error_of, ok, request

WHOLE = request(1, "set", "lists", "ann", "A" * 40)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def service() -> Service:
    return make_service()


def wires_of(service: Service, loop: Loop, number: int = 3) -> list[Wire]:
    connections = Connections()
    return [Wire(service, connections=connections, loop=loop) for _ in range(number)]


def set_of(msgid: int, sender: str, state: str, *options: Any) -> bytes:
    return request(msgid, "set", "lists", sender, state, *options)


def get_of(msgid: int, sender: str) -> bytes:
    return request(msgid, "get", "lists", sender)


def set_manys(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many triples each of them has."""
    space = service.engine.space(b"default")
    several, sizes = space.set_many, list[int]()

    def set_many(triples: Sequence[Any]) -> Any:
        sizes.append(len(triples))
        return several(triples)

    monkeypatch.setattr(space, "set_many", set_many)
    return sizes


def test_sets_of_all_are_one_write(service: Service, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    wires, sizes = wires_of(service, loop), set_manys(service, monkeypatch)
    for number, wire in enumerate(wires):
        wire.send(set_of(1, f"s{number}", "A"), set_of(2, f"s{number}", "B"))
    loop.turn()
    assert [wire.read() for wire in wires] == [[ok(1, None), ok(2, None)]] * 3
    assert sizes == [6]
    assert service.calls[b"set"] == 6
    for number, wire in enumerate(wires):
        wire.send(get_of(3, f"s{number}"))
    loop.turn()
    assert [wire.read()[2:] for wire in wires] == [[ok(3, "B")]] * 3


def test_what_one_asks_is_done_in_its_order(service: Service, loop: Loop) -> None:
    one, other = wires_of(service, loop, 2)
    one.send(set_of(1, "ann", "A"), get_of(2, "ann"), set_of(3, "ann", "B"), request(4, "ping"), get_of(5, "ann"))
    other.send(get_of(1, "ben"))
    loop.turn()
    assert one.read() == [ok(1, None), ok(2, "A"), ok(3, None), ok(4, None), ok(5, "B")]
    assert other.read() == [ok(1, "START")]


def test_each_works_in_its_namespace(service: Service, loop: Loop) -> None:
    one, other, third = wires_of(service, loop)
    other.send(request(1, "hello", {"namespace": "b"}))
    loop.turn()
    other.read()
    for wire, state in ((one, "A"), (other, "B"), (third, "C")):
        wire.send(set_of(2, "ann", state))
    loop.turn()
    assert [wire.read()[-1] for wire in (one, other, third)] == [ok(2, None)] * 3
    for wire in (one, other):
        wire.send(get_of(3, "ann"))
    loop.turn()
    assert one.read()[-1] == ok(3, "C")
    assert other.read()[-1] == ok(3, "B")


@pytest.mark.parametrize(
    "wrong", [set_of(1, "ann", "A" * 2000), set_of(1, "ann", 5), request(1, "set", [], "ann", "A")]
)  # type: ignore[arg-type]
def test_one_that_is_refused_is_nothing_to_the_others(service: Service, loop: Loop, wrong: bytes) -> None:
    one, other, third = wires_of(service, loop)
    one.send(set_of(1, "one", "A"))
    other.send(wrong, set_of(2, "other", "A"))
    third.send(set_of(1, "third", "A"))
    loop.turn()
    assert one.read() == third.read() == [ok(1, None)]
    assert error_of(other.read()[0]) in ("too_long", "bad_request")
    assert other.read()[1:] == [ok(2, None)]


def test_all_are_refused_where_nothing_can_be_written(
    service: Service, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_triples: object) -> None:
        raise ZeroDivisionError

    wires = wires_of(service, loop)
    monkeypatch.setattr(service.engine.space(b"default"), "set_many", fail)
    for wire in wires:
        wire.send(set_of(1, "ann", "A"), set_of(2, "ann", "B"))
    loop.turn()
    assert [[error_of(answer) for answer in wire.read()] for wire in wires] == [["internal"] * 2] * 3


def test_what_is_held_is_let_go_together(loop: Loop) -> None:
    """D1."""
    engine = HoldingEngine()
    engine.bulk_is_atomic = True
    wires = wires_of(make_service(engine), loop)
    for number, wire in enumerate(wires):
        wire.send(set_of(number, "ann", "A"), set_of(70_000, "ann", "B"))
    loop.turn()
    assert [asked[0] for asked in engine.asked] == ["set_many"]
    assert [wire.read() for wire in wires] == [[]] * 3
    engine.commit.settle()
    assert [wire.read() for wire in wires] == [[ok(number, None), ok(70_000, None)] for number in range(3)]
    assert [wire.writes for wire in wires] == [1] * 3


@pytest.mark.parametrize("method", ["set", "get"])
def test_who_has_too_much_held_is_not_read_from(loop: Loop, method: str) -> None:
    """L3."""
    state = ["A"] if method == "set" else []
    engine = HoldingEngine()
    engine.bulk_is_atomic, engine.value = True, None if method == "set" else b"A"
    wires = wires_of(make_service(engine), loop, 2)
    for _ in range(MAX_HELD // 10 + 1):
        wires[0].send(*[request(1, method, "lists", "ann", *state)] * 10)
        wires[1].send(request(1, method, "lists", "ben", *state))
        loop.turn()
    wires[0].send(request(2, method, "lists", "ann", *state))
    wires[1].send(request(2, method, "lists", "ben", *state))
    loop.turn()
    assert [wire.unsent > 0 for wire in wires] == [True, False]
    engine.commit.settle()
    loop.turn()
    assert wires[0].unsent == 0


# What one sends is never read as another's


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
def test_half_a_request_is_completed_by_its_own_client_only(service: Service, loop: Loop, place: int, cut: int) -> None:
    wires = wires_of(service, loop)
    odd = wires.pop(place)
    odd.send(WHOLE[:cut])
    for number, wire in enumerate(wires):
        wire.send(set_of(1, f"s{number}", "B"), get_of(2, "ann"))
    loop.turn()
    assert [wire.read() for wire in wires] == [[ok(1, None), ok(2, "START")]] * 2
    assert odd.read() == []
    odd.send(WHOLE[cut:])
    loop.turn()
    assert odd.read() == [ok(1, None)]


@pytest.mark.parametrize("garbage", [b"\xc1", b"\x05", b"\x94\x07\x01\x05\x90", b"\xdf\xff\xff\xff\xff"])
def test_garbage_costs_its_own_connection_only(service: Service, loop: Loop, garbage: bytes) -> None:
    one, odd, third = wires_of(service, loop)
    one.send(set_of(1, "one", "A"))
    odd.send(set_of(1, "odd", "A"), garbage, set_of(2, "odd", "B"))
    third.send(set_of(1, "third", "A"), get_of(2, "odd"))
    loop.turn()
    assert one.read() == [ok(1, None)]
    assert third.read() == [ok(1, None), ok(2, "A")]
    assert odd.read() == [ok(1, None)]
    assert odd.is_closing()
    assert service.dropped[Dropped.GARBAGE] == 1


def stream_of(plan: random.Random, name: str) -> tuple[list[bytes], list[Any]]:
    """Requests about a sender of its own, and what they are answered."""
    requests, answers, state = [], [], "START"
    for msgid in range(plan.randrange(1, 9)):
        match plan.randrange(4):
            case 0:
                requests.append(get_of(msgid, name))
                answers.append(ok(msgid, state))
            case 1:
                requests.append(request(msgid, "compare_and_set", "lists", name, state, "CAS"))
                answers.append(ok(msgid, [True, state]))
                state = "CAS"
            case 2:
                state = "x" * plan.randrange(1, 300)
                requests.append(set_of(msgid, name, state))
                answers.append(ok(msgid, None))
            case 3:
                requests.append(request(msgid, "get_many", [["lists", name]]))
                answers.append(ok(msgid, [state]))
    return requests, answers


@given(st.integers(0, 2**32))
def test_each_is_answered_what_it_asked_however_it_comes(seed: int) -> None:
    plan, loop = random.Random(seed), Loop()
    wires = wires_of(make_service(), loop, plan.randrange(1, 6))
    expected, left = [], []
    for number in range(len(wires)):
        requests, answers = stream_of(plan, f"s{number}")
        expected.append(answers)
        left.append(b"".join(requests))
    while any(left) or loop.is_busy:
        for number, wire in enumerate(wires):
            size = plan.choice((0, 1, 5, 20, 100, 1000))
            wire.send(left[number][:size])
            left[number] = left[number][size:]
        loop.turn()
    assert [wire.read() for wire in wires] == expected


def test_a_crowd_has_its_turn_before_there_is_no_room(
    service: Service, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "TURN_SIZE", 2 * intake_module.READ_SIZE)
    wires = wires_of(service, loop, 20)
    gets = [get_of(number, "x" * 200) for number in range(12)]
    for wire in wires:
        wire.send(*gets)
    loop.turn()
    assert [len(wire.read()) for wire in wires] == [12] * 20


@pytest.mark.parametrize("size", [1, MUCH // 20 + 2])
def test_what_comes_again_in_the_same_turn_is_done_behind(service: Service, loop: Loop, size: int) -> None:
    """As it may over TLS."""
    wire, other = wires_of(service, loop, 2)
    wire.send(set_of(1, "ann", "A"))
    wire.deliver()
    other.send(set_of(1, "ben", "A"))
    other.deliver()
    wire.send(*[set_of(2, "ann", "B")] * size)
    wire.deliver()
    wire.send(get_of(3, "ann"))
    loop.turn()
    assert wire.read()[-1] == ok(3, "B")


def test_nothing_behind_garbage_is_executed(service: Service, loop: Loop) -> None:
    odd, other = wires_of(service, loop, 2)
    odd.send(b"\xc1")
    odd.deliver()
    odd.send(set_of(1, "ann", "A"))
    odd.deliver()
    other.send(get_of(1, "ann"))
    loop.turn()
    assert other.read() == [ok(1, "START")]


def test_what_came_before_the_end_is_answered(service: Service, loop: Loop) -> None:
    (wire,) = wires_of(service, loop, 1)
    wire.send(get_of(1, "ann"))
    wire.deliver()
    assert wire.read() == []
    wire.connection.eof_received()
    assert wire.read() == [ok(1, "START")]


@pytest.mark.parametrize("end", [Wire.hang_up, lambda wire: wire.connection.close()])
def test_what_came_before_a_connection_ends_is_done(service: Service, loop: Loop, end: Callable[[Wire], None]) -> None:
    one, other = wires_of(service, loop, 2)
    one.send(set_of(1, "ann", "A"))
    one.deliver()
    end(one)
    other.send(get_of(1, "ann"))
    loop.turn()
    assert other.read() == [ok(1, "A")]


def test_after_a_fault_of_ours_nothing_is_left_of_what_came(
    service: Service, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    wires = wires_of(service, loop)
    for number, wire in enumerate(wires):
        wire.send(set_of(1, f"s{number}", "A"))
    wires[1].send(request(2, "ping"))
    with monkeypatch.context() as patch:
        patch.setattr(wires[1].connection, "run", lambda *_: 1 / 0)
        with capture_logs() as logs:
            loop.turn()
    assert [entry["event"] for entry in logs] == ["requests could not be executed"]
    assert all(wire.is_closing() for wire in wires)
    (after,) = wires_of(service, loop, 1)
    after.send(set_of(1, "ann", "A"), *[get_of(2, f"s{number}") for number in range(3)])
    loop.turn()
    # That of the one with the fault was executed before it.
    assert after.read() == [ok(1, None), ok(2, "A"), ok(2, "A"), ok(2, "START")]


# Numbered sets


def sessions_of(service: Service) -> ClientSessions:
    found: ClientSessions = service.engine.states.sessions  # type: ignore[attr-defined]
    return found


def with_sessions(wires: Sequence[Wire], loop: Loop) -> None:
    for wire in wires:
        wire.send(request(0, "hello", {"session": 0}))
    loop.turn()
    for wire in wires:
        wire.read()


def wires_of_one_session(service: Service, loop: Loop) -> tuple[Wire, Wire]:
    one, other = wires_of(service, loop, 2)
    with_sessions([one], loop)
    other.send(request(0, "hello", {"session": one.connection.caller.session}))
    loop.turn()
    other.read()
    return one, other


def numbered(msgid: int, sender: str, state: str, seq: int, oldest: int | None = None) -> bytes:
    options = {"seq": seq, "oldest": seq if oldest is None else oldest, "not_after": 1e11}
    return set_of(msgid, sender, state, options)


def test_numbered_sets_of_all_are_one_write(service: Service, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """K2."""
    wires, sizes = wires_of(service, loop), set_manys(service, monkeypatch)
    with_sessions(wires, loop)
    for _ in range(2):  # the second time they are known
        for number, wire in enumerate(wires):
            wire.send(numbered(1, f"s{number}", "A", 1, 1), numbered(2, f"s{number}", "B", 2, 1))
        loop.turn()
        assert [wire.read()[-2:] for wire in wires] == [[ok(1, None), ok(2, None)]] * 3
        wires[1].send(set_of(3, "s0", "C"))
        loop.turn()
        wires[1].read()
    assert sizes == [6, 1, 1]
    wires[0].send(get_of(4, "s0"))
    loop.turn()
    assert wires[0].read()[-1] == ok(4, "C")


def test_the_same_number_twice_in_one_turn_is_one_write(service: Service, loop: Loop) -> None:
    """K2."""
    one, other = wires_of_one_session(service, loop)
    for wire in (one, other):
        wire.send(numbered(1, "ann", "A", 1))
    loop.turn()
    assert one.read()[-1] == other.read()[-1] == ok(1, None)
    assert sessions_of(service).size == ANSWER_SIZE + len(NIL)


@pytest.mark.parametrize("is_alone", [False, True])
def test_another_write_with_the_same_number_in_one_turn_is_refused(
    service: Service, loop: Loop, is_alone: bool
) -> None:
    """K2: of two clients that share a session. Others are served beside it."""
    one, other = wires_of_one_session(service, loop)
    (third,) = wires_of(service, loop, 1)
    with_sessions([third], loop)
    one.send(numbered(1, "ann", "A", 1), numbered(2, "ann", "B", 2, 1))
    if is_alone:
        loop.turn()
    other.send(numbered(1, "ann", "B", 1), numbered(2, "ann", "B", 2, 1), numbered(3, "ben", "B", 3, 1))
    third.send(numbered(1, "cid", "C", 1))
    loop.turn()
    assert one.read()[-2:] == [ok(1, None), ok(2, None)]
    refused, repeated, own = other.read()[-3:]
    assert error_of(refused) == "number_reused"
    assert (repeated, own) == (ok(2, None), ok(3, None))
    assert third.read()[-1] == ok(1, None)
    assert +service.errors == {"number_reused": 1}
    one.send(get_of(2, "ann"))
    loop.turn()
    assert one.read()[-1] == ok(2, "B")


def test_a_number_that_was_told_to_be_answered_is_not_carried_out(service: Service, loop: Loop) -> None:
    """K2: also where it is told in the same turn."""
    one, other = wires_of_one_session(service, loop)
    one.send(numbered(1, "ann", "NEW", 2, 2))
    other.send(numbered(1, "ann", "OLD", 1, 1))
    loop.turn()
    assert one.read()[-1] == ok(1, None)
    assert error_of(other.read()[-1]) == "uncertain"
    one.send(get_of(2, "ann"))
    loop.turn()
    assert one.read()[-1] == ok(2, "NEW")


def test_what_the_client_tells_to_have_is_not_in_a_snapshot(service: Service, loop: Loop) -> None:
    """K2: it tells so in the same turn."""
    (wire,) = wires_of(service, loop, 1)
    with_sessions([wire], loop)
    wire.send(*[numbered(seq, "ann", f"S{seq}", seq) for seq in range(1, 4)])
    loop.turn()
    sessions = sessions_of(service)
    (dump,) = [dump for session in sessions for dump in sessions.dump(session)]
    assert [seq for seq, *_ in dump[2]] == [3]
    loaded = ClientSessions()
    loaded.load([dump])
    assert loaded.size == sessions.size


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"seq": 1, "oldest": 1, "not_after": 0.5}, "unavailable"),
        ({"seq": 1, "oldest": 1, "not_after": float("inf")}, "bad_request"),
        ({"seq": 1, "oldest": 1, "not_after": True}, "bad_request"),
        ({"seq": 1, "oldest": 1, "not_after": 1}, "unavailable"),
        ({"seq": 0, "oldest": 0, "not_after": 1e11}, "bad_request"),
        ({"seq": 5000, "oldest": 1, "not_after": 1e11}, "bad_request"),
        ({"seq": 1.0, "oldest": 1, "not_after": 1e11}, "bad_request"),
        ({"seq": 1, "oldest": 1, "more": 1}, "bad_request"),
        ({"not_after": 0.5}, "unavailable"),
    ],
)
def test_options_that_are_refused_are_nothing_to_the_others(
    service: Service, loop: Loop, options: dict[str, Any], code: str
) -> None:
    wires = wires_of(service, loop)
    with_sessions(wires, loop)
    for number, wire in enumerate(wires):
        wire.send(set_of(1, f"s{number}", "A", options) if number == 1 else numbered(1, f"s{number}", "A", 1))
    loop.turn()
    assert [wire.read()[-1] for wire in wires[::2]] == [ok(1, None)] * 2
    assert error_of(wires[1].read()[-1]) == code
    wires[0].send(get_of(2, "s1"))
    loop.turn()
    assert wires[0].read()[-1] == ok(2, "START")


def test_a_map_that_is_no_options_is_refused(service: Service, loop: Loop) -> None:
    wires = wires_of(service, loop)
    for wire in wires:
        wire.send(msgpack.packb([0, 1, "set", ["lists", "ann", "A", 5]]))
    loop.turn()
    assert [error_of(wire.read()[-1]) for wire in wires] == ["bad_request"] * 3
