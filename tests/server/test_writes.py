"""What a write says of itself: its number, and until when it may be applied."""

import math
from typing import Any
from zlib import crc32

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from statestore.errors import BadRequest, Forbidden, NumberReused, TooLong, Unavailable, Uncertain
from statestored import audit
from statestored.commands import COMMANDS, Caller, Role
from statestored.engines.base import START
from statestored.writes import MAX_NUMBER, MAX_UNFINISHED, fingerprint, run_with
from tests.server.fakes import make_service

ANN = (b"lists", b"ann")
LATE = 1e12  # seconds, in the server's time
WRITES = {
    b"set": (*ANN, b"NEW"),
    b"set_all": (b"ann", b"NEW"),
    b"compare_and_set": (*ANN, b"OLD", b"NEW"),
    b"set_many": (((*ANN, b"NEW"),),),
    b"clear": (),
}


@pytest.fixture
def caller() -> Caller:
    """With a session, and a state to change."""
    caller = Caller(make_service(allow_clear=True))
    run(caller, b"hello", {b"session": 0})
    caller.space.set(*ANN, b"OLD")
    return caller


def run(caller: Caller, name: bytes, *params: Any, **options: Any) -> Any:
    reply = run_with(caller, COMMANDS[name], params, {key.encode(): value for key, value in options.items()})
    assert isinstance(reply, bytes)
    return msgpack.unpackb(reply, raw=True)


def numbered(seq: int, oldest: int = 1) -> dict[str, int]:
    return {"seq": seq, "oldest": oldest}


def state(caller: Caller) -> Any:
    return caller.space.get(*ANN)


def test_these_are_all_that_write() -> None:
    assert {name for name, command in COMMANDS.items() if command.writes} == set(WRITES)
    assert all(COMMANDS[name].role >= Role.WRITE for name in WRITES)


# Once


@pytest.mark.parametrize("name", WRITES)
def test_a_number_is_carried_out_once(caller: Caller, name: bytes) -> None:
    first = run(caller, name, *WRITES[name], **numbered(1))
    after = state(caller)
    assert after == (START if name == b"clear" else b"NEW")
    caller.space.set(*ANN, b"LATER")
    assert run(caller, name, *WRITES[name], **numbered(1)) == first
    assert state(caller) == b"LATER"
    run(caller, name, *WRITES[name], **numbered(2))
    assert state(caller) == (b"LATER" if name == b"compare_and_set" else after)


def test_what_changed_nothing_has_its_answer_too(caller: Caller) -> None:
    failed = run(caller, b"compare_and_set", *ANN, b"OTHER", b"NEW", **numbered(1))
    assert failed == [False, b"OLD"]
    caller.space.set(*ANN, b"OTHER")
    assert run(caller, b"compare_and_set", *ANN, b"OTHER", b"NEW", **numbered(1)) == failed
    assert state(caller) == b"OTHER"


OTHERS: dict[bytes, list[tuple[Any, ...]]] = {
    b"set": [
        (b"lists", b"ann", b"OTHER"),
        (b"lists", b"ben", b"NEW"),
        (b"list", b"sann", b"NEW"),
        (b"lists", None, b"NEW"),
    ],
    b"set_all": [(b"ann", b"OTHER"), (None, b"NEW"), (b"annN", b"EW")],
    b"compare_and_set": [(*ANN, b"NEW", b"OLD"), (*ANN, b"OLDN", b"EW"), (b"lists", b"", b"OLD", b"NEW")],
    b"set_many": [((),), (((*ANN, b"NEW"), (*ANN, b"NEW")),), (((b"lists", None, b"NEW"),),)],
    b"clear": [],
}


@pytest.mark.parametrize("name", WRITES)
def test_another_write_under_the_same_number_is_refused(caller: Caller, name: bytes) -> None:
    """K2: whatever differs, and whatever is said besides."""
    first = run(caller, name, *WRITES[name], **numbered(1))
    caller.space.set(*ANN, b"LATER")
    others = [(name, params) for params in OTHERS[name]] + [each for each in WRITES.items() if each[0] != name]
    for other, params in others:
        with pytest.raises(NumberReused, match="1 is the number of another write"):
            run(caller, other, *params, **numbered(1), not_after=LATE)
        assert state(caller) == b"LATER"
    assert run(caller, name, *WRITES[name], **numbered(1), not_after=LATE) == first
    assert state(caller) == b"LATER"


def test_the_same_write_in_another_namespace_is_another(caller: Caller) -> None:
    run(caller, b"set", *ANN, b"NEW", **numbered(1))
    other = Caller(caller.service)
    run(other, b"hello", {b"session": caller.session, b"namespace": b"other"})
    with pytest.raises(NumberReused):
        run(other, b"set", *ANN, b"NEW", **numbered(1))
    assert other.space.get(*ANN) == START


def test_a_write_that_changed_nothing_is_told_from_others_too(caller: Caller) -> None:
    run(caller, b"set", *ANN, b"OLD", **numbered(1))
    with pytest.raises(NumberReused):
        run(caller, b"set", *ANN, b"NEW", **numbered(1))
    assert state(caller) == b"OLD"


def test_the_log_says_that_two_clients_share_a_session_and_no_more(caller: Caller) -> None:
    """S3, and it says so once a second."""
    run(caller, b"set", *ANN, b"NEW", **numbered(1))
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(NumberReused):
                run(caller, b"set", b"lists", b"secret@example.org", b"SECRET", **numbered(1))
    (line,) = logs
    assert line == {
        "event": "a write has the number of another one: two clients share a session",
        "log_level": "warning",
        "method": "set",
        "session": audit.pseudonym(str(caller.session)),
    }


def test_the_fingerprint_is_the_one_that_is_described() -> None:
    """docs/formats.md. It is in the files: with another one, a repeated write would be refused after an upgrade."""
    described = b"\x92\xc4\x07default\xa3set\x93\xc4\x05lists\xc0\xc4\x01A"
    assert fingerprint(b"default", "set", (b"lists", None, b"A")) == crc32(described) == 0x709C76E4


TEXTS = st.none() | st.binary(max_size=3) | st.sampled_from([b"None", b"a" * 300])


@given(st.lists(st.tuples(st.sampled_from(sorted(WRITES)), st.lists(TEXTS, max_size=4).map(tuple)), unique=True))
def test_short_texts_that_differ_in_anything_have_other_fingerprints(
    writes: list[tuple[bytes, tuple[Any, ...]]],
) -> None:
    assert len({fingerprint(b"default", name.decode(), params) for name, params in writes}) == len(writes)


def test_without_a_number_it_is_carried_out_each_time(caller: Caller) -> None:
    assert run(caller, b"compare_and_set", *ANN, b"OLD", b"NEW") == [True, b"OLD"]
    assert run(caller, b"compare_and_set", *ANN, b"OLD", b"NEW") == [False, b"NEW"]


def test_what_was_refused_is_not_remembered(caller: Caller) -> None:
    with pytest.raises(TooLong):
        run(caller, b"set", b"x" * 2000, b"ann", b"A", **numbered(1))
    with pytest.raises(BadRequest):
        run(caller, b"set", *ANN, None, **numbered(1))
    caller.service.allow_clear = False
    with pytest.raises(Forbidden):
        run(caller, b"clear", **numbered(1))
    assert run(caller, b"set", *ANN, b"NEW", **numbered(1)) is None
    assert state(caller) == b"NEW"


def test_numbers_may_come_in_any_order(caller: Caller) -> None:
    for seq in (3, 1, 2):
        run(caller, b"set", *ANN, b"%d" % seq, **numbered(seq))
        assert state(caller) == b"%d" % seq


def test_a_number_below_what_the_client_has_is_uncertain(caller: Caller) -> None:
    run(caller, b"set", *ANN, b"A", **numbered(1))
    run(caller, b"set", *ANN, b"B", **numbered(6, 6))
    with pytest.raises(Uncertain, match="before number 6"):
        run(caller, b"set", *ANN, b"A", **numbered(1))
    with pytest.raises(Uncertain):
        run(caller, b"set", *ANN, b"A", **numbered(5, 5))
    assert state(caller) == b"B"
    assert run(caller, b"set", *ANN, b"C", **numbered(7, 2)) is None


def test_the_sessions_of_two_clients_have_numbers_of_their_own(caller: Caller) -> None:
    other = Caller(caller.service)
    run(other, b"hello", {b"session": 0})
    run(caller, b"set", *ANN, b"A", **numbered(1))
    run(other, b"set", *ANN, b"B", **numbered(1))
    assert state(caller) == b"B"


def test_another_connection_of_the_client_gets_the_answer_too(caller: Caller) -> None:
    run(caller, b"set", *ANN, b"A", **numbered(1))
    caller.leave()
    again = Caller(caller.service)
    welcome = run(again, b"hello", {b"session": caller.session})
    assert welcome[b"session"] == caller.session
    caller.space.set(*ANN, b"LATER")
    run(again, b"set", *ANN, b"A", **numbered(1))
    assert state(caller) == b"LATER"


def test_a_session_that_is_not_there_any_more_is_uncertain(caller: Caller) -> None:
    caller.session = 5
    with pytest.raises(Uncertain, match="expired"):
        run(caller, b"set", *ANN, b"A", **numbered(1))
    assert state(caller) == b"OLD"


@pytest.mark.parametrize(
    "options",
    [
        {"seq": 1},
        {"oldest": 1},
        numbered(0, 0),
        numbered(1, 0),
        numbered(1, 2),
        numbered(-1, -1),
        numbered(MAX_NUMBER + 1, MAX_NUMBER + 1),
        numbered(MAX_UNFINISHED + 1, 1),
        {"seq": 1.0, "oldest": 1.0},
        {"seq": True, "oldest": True},
        {"seq": b"1", "oldest": b"1"},
        {"seq": None, "oldest": None},
        {"not_after": True},
        {"not_after": None},
        {"not_after": math.nan},
        {"not_after": math.inf},
        {"not_after": b"5.0"},
        {"fence": 1},
    ],
)
def test_options_that_make_no_sense_are_refused_and_nothing_is_done(caller: Caller, options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        run(caller, b"set", *ANN, b"NEW", **options)
    assert state(caller) == b"OLD"


@pytest.mark.parametrize("seq", [MAX_UNFINISHED, MAX_NUMBER])
def test_the_largest_numbers_are_taken(caller: Caller, seq: int) -> None:
    run(caller, b"set", *ANN, b"NEW", **numbered(seq, seq - MAX_UNFINISHED + 1))
    caller.space.set(*ANN, b"LATER")
    run(caller, b"set", *ANN, b"NEW", **numbered(seq, seq))
    assert state(caller) == b"LATER"


def test_a_number_needs_a_session() -> None:
    with pytest.raises(BadRequest, match="hello"):
        run(Caller(make_service()), b"set", *ANN, b"NEW", **numbered(1))


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WRITES])
@pytest.mark.parametrize("option", ["seq", "oldest", "not_after", "fence"])
def test_what_does_not_write_knows_no_option(caller: Caller, name: bytes, option: str) -> None:
    with pytest.raises(BadRequest, match=f"{name.decode()} knows no option '{option}'"):
        run(caller, name, *[None] * COMMANDS[name].arity, **{option: 1})


def test_an_unknown_option_is_not_repeated_at_length(caller: Caller) -> None:
    with pytest.raises(BadRequest) as error:
        run(caller, b"ping", **{"x" * 100_000: 1})
    assert len(str(error.value)) < 300


# Not too late


class Clock:
    def __init__(self, now: float) -> None:
        self.time = now

    def now(self) -> float:
        return self.time


@pytest.fixture
def clock(caller: Caller) -> Clock:
    clock = Clock(1000.0)
    caller.service.clock = clock  # type: ignore[assignment]
    return clock


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_is_too_late_is_not_applied(caller: Caller, clock: Clock, name: bytes) -> None:
    with pytest.raises(Unavailable, match="not_after"):
        run(caller, name, *WRITES[name], not_after=clock.time - 0.001)
    assert state(caller) == b"OLD"
    run(caller, name, *WRITES[name], not_after=clock.time)
    assert state(caller) != b"OLD"


def test_whole_seconds_may_be_an_integer(caller: Caller, clock: Clock) -> None:
    now = int(clock.time)
    run(caller, b"set", *ANN, b"NEW", not_after=now)
    for late in (now - 1, 0, -(2**63)):
        with pytest.raises(Unavailable, match="not_after"):
            run(caller, b"set", *ANN, b"LATE", not_after=late)
    assert state(caller) == b"NEW"
    run(caller, b"set", *ANN, b"LATER", not_after=2**64 - 1)
    assert state(caller) == b"LATER"


def test_the_answer_of_what_was_applied_in_time_comes_also_too_late(caller: Caller, clock: Clock) -> None:
    in_time = {"not_after": clock.time + 1, **numbered(1)}
    swapped = run(caller, b"compare_and_set", *ANN, b"OLD", b"NEW", **in_time)
    clock.time += 2
    assert run(caller, b"compare_and_set", *ANN, b"OLD", b"NEW", **in_time) == swapped


def test_what_came_too_late_is_not_remembered(caller: Caller, clock: Clock) -> None:
    with pytest.raises(Unavailable):
        run(caller, b"set", *ANN, b"NEW", not_after=clock.time - 1, **numbered(1))
    run(caller, b"set", *ANN, b"NEW", **numbered(1))
    assert state(caller) == b"NEW"
