"""What the daemon can be asked, and what it says to whatever else."""

import asyncio
import inspect
import time
from itertools import count
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from statestore.base import Limits
from statestore.errors import (
    BadRequest,
    Forbidden,
    Full,
    StateStoreError,
    TooLong,
    Unauthorized,
    UnknownMethod,
)
from statestore.protocol import ClientProtocol
from statestored import audit
from statestored.answers import MAX_REPLY
from statestored.commands import COMMANDS, Caller, check_params, find_command, set_together
from statestored.engines.base import Filter, Held
from statestored.engines.queries import longest_page
from statestored.engines.quota import Quota
from statestored.settings import Settings
from statestored.tokens import ROLES, Role
from statestored.writes import run_with
from tests.server.fakes import STORE_ID, HoldingEngine, LaterEngine, engine_without_files, make_service
from tests.tokenfile import TokenFile

ANN = (b"lists", b"ann@a.example")
SURROGATE = b"\xed\xa0\x80"


@pytest.fixture
def caller() -> Caller:
    return Caller(make_service(allow_clear=True))


def call(caller: Caller, method: str, *params: Any) -> Any:
    """As a session does it; strings of the result are bytes."""
    command = find_command(caller, method.encode())
    params, options = check_params(command, params)
    reply = run_with(caller, command, params, options)
    assert isinstance(reply, bytes)
    return msgpack.unpackb(reply, raw=True, strict_map_key=False)


def test_the_methods_are_those_of_the_protocol() -> None:
    assert {name.decode(): (command.arity, command.role) for name, command in COMMANDS.items()} == {
        "hello": (1, Role.NOBODY),
        "ping": (0, Role.READ),
        "get": (2, Role.READ),
        "set": (3, Role.WRITE),
        "set_all": (2, Role.WRITE),
        "compare_and_set": (4, Role.WRITE),
        "get_many": (1, Role.READ),
        "set_many": (1, Role.WRITE),
        "scan": (4, Role.READ),
        "count": (2, Role.READ),
        "clear": (0, Role.ADMIN),
        "info": (0, Role.READ),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_as_many_parameters_as_it_says(name: bytes) -> None:
    command = COMMANDS[name]
    assert command.name.encode() == name
    assert len(inspect.signature(command.run).parameters) == 1 + command.arity


# What each method does


def test_get_and_set(caller: Caller) -> None:
    assert call(caller, "get", *ANN) == b"START"
    assert call(caller, "set", *ANN, b"CONFIRMING") is None
    assert call(caller, "get", *ANN) == b"CONFIRMING"
    assert call(caller, "set", *ANN, b"START") is None
    assert call(caller, "get", *ANN) == b"START"
    assert call(caller, "info")[b"entries"] == 0


@pytest.mark.parametrize("sender", [None, b"", b"None", b"A@B", b"a@b", b"\0", SURROGATE, "é".encode(), b"x" * 4096])
def test_senders_are_kept_apart_and_as_they_are(caller: Caller, sender: bytes | None) -> None:
    others = [None, b"", b"None", b"a@b", b"A@B", b"\0", SURROGATE]
    for other in others:
        if other != sender:
            call(caller, "set", b"lists", other, b"OTHER")
    assert call(caller, "get", b"lists", sender) == b"START"
    call(caller, "set", b"lists", sender, b"ITS")
    assert call(caller, "get", b"lists", sender) == b"ITS"
    assert [sender, b"ITS"] in [entry[1:3] for entry in call(caller, "scan", None, None, None, None)[1]]


def test_texts_go_out_as_messagepack_str(caller: Caller) -> None:
    call(caller, "set", *ANN, b"CONFIRMING")
    for method, params in (("get", ANN), ("scan", (None, None, None, None)), ("count", (None, None))):
        command = COMMANDS[method.encode()]
        assert b"\xaaCONFIRMING" in command.run(caller, *params)  # a fixstr of ten bytes


def test_set_all(caller: Caller) -> None:
    for module in (b"a", b"b"):
        call(caller, "set", module, b"ann", b"POSTING")
    call(caller, "set", b"a", b"ben", b"POSTING")
    assert call(caller, "set_all", b"ann", b"BOUNCING") == 2
    assert call(caller, "get_many", ((b"a", b"ann"), (b"b", b"ann"), (b"a", b"ben"))) == [
        b"BOUNCING",
        b"BOUNCING",
        b"POSTING",
    ]
    assert call(caller, "set_all", b"ann", b"START") == 2
    assert call(caller, "set_all", b"ann", b"BOUNCING") == 0


def test_compare_and_set(caller: Caller) -> None:
    assert call(caller, "compare_and_set", *ANN, b"POSTING", b"B") == [False, b"START"]
    assert call(caller, "compare_and_set", *ANN, b"START", b"A") == [True, b"START"]
    assert call(caller, "compare_and_set", *ANN, b"START", b"B") == [False, b"A"]
    assert call(caller, "compare_and_set", *ANN, b"A", b"START") == [True, b"A"]
    assert call(caller, "get", *ANN) == b"START"


def test_bulk(caller: Caller) -> None:
    assert call(caller, "set_many", ((*ANN, b"A"), (b"lists", None, b"B"), (*ANN, b"C"))) is None
    assert call(caller, "get_many", ((b"lists", None), ANN, (b"x", b"y"))) == [b"B", b"C", b"START"]
    assert call(caller, "get_many", ()) == []


def test_scan(caller: Caller) -> None:
    call(caller, "set_many", ((b"a", b"ann", b"A"), (b"a", b"ben", b"B"), (b"b", b"ann", b"A")))
    day = call(caller, "scan", None, b"a", b"ann", None)[1][0][3]
    assert call(caller, "scan", None, b"a", b"an", None) == [None, [[b"a", b"ann", b"A", day]]]
    assert len(call(caller, "scan", None, None, b"ann", None)[1]) == 2
    assert call(caller, "scan", None, None, None, b"B") == [None, [[b"a", b"ben", b"B", day]]]


def test_count(caller: Caller) -> None:
    call(caller, "set_many", ((b"a", b"ann", b"A"), (b"a", b"ben", b"B"), (b"b", b"ann", b"A")))
    assert call(caller, "count", b"a", None)[b"total"] == 2
    assert call(caller, "count", None, b"A")[b"total"] == 2
    everything = call(caller, "count", None, None)
    assert sorted(everything.pop(b"rows")) == [[b"a", b"A", 1], [b"a", b"B", 1], [b"b", b"A", 1]]
    assert everything == {b"total": 3, b"uncounted": 0}


def test_clear_is_off_unless_allowed() -> None:
    caller = Caller(make_service())
    call(caller, "set", *ANN, b"A")
    with pytest.raises(Forbidden, match="--allow-clear"):
        call(caller, "clear")
    assert call(caller, "get", *ANN) == b"A"


def test_clear_forgets_one_namespace(caller: Caller) -> None:
    other = Caller(caller.service)
    call(other, "hello", {b"namespace": b"other"})
    for each in (caller, other):
        call(each, "set", *ANN, b"A")
    assert call(caller, "clear") is None
    assert (call(caller, "get", *ANN), call(other, "get", *ANN)) == (b"START", b"A")


def test_namespaces_are_apart(caller: Caller) -> None:
    other = Caller(caller.service)
    call(other, "hello", {b"namespace": b"other"})
    call(caller, "set", *ANN, b"A")
    assert call(other, "get", *ANN) == b"START"
    assert call(other, "scan", None, None, None, None) == [None, []]
    assert call(other, "count", None, None)[b"total"] == 0
    assert call(other, "set_all", ANN[1], b"B") == 0


def test_info_names_what_the_protocol_promises(caller: Caller) -> None:
    info = call(caller, "info")
    assert info[b"store_id"] == STORE_ID.encode()
    assert (info[b"engine"], info[b"bulk_is_atomic"]) == (b"embedded", True)
    assert info[b"uptime"] >= 0
    assert info[b"server"].startswith(b"statestored ")
    assert info[b"calls"].keys() == set(COMMANDS)


@pytest.mark.parametrize("now", [0.0, 2.0**32])
def test_the_uptime_does_not_follow_a_clock_that_is_set(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, now: float
) -> None:
    monkeypatch.setattr(time, "time", lambda: now)
    assert 0 <= call(caller, "info")[b"uptime"] < 60


def test_hello_answers_who_it_is() -> None:
    caller = Caller(make_service(limits=Limits(10, 20, 30)))
    welcome = call(caller, "hello", {b"version": 1, b"client": b"test", b"from a later release": [1]})
    assert welcome[b"version"] == 1
    assert welcome[b"store_id"] == STORE_ID.encode()
    assert welcome[b"limits"] == {b"module": 10, b"sender": 20, b"state": 30, b"items": 1000}
    assert isinstance(welcome[b"time"], float)
    assert welcome[b"features"] == [b"sessions", b"not_after"]
    assert b"session" not in welcome


# Who may


def test_without_a_token_everybody_may_do_everything(caller: Caller) -> None:
    assert caller.role is Role.ADMIN


@pytest.mark.parametrize("method", [name.decode() for name in COMMANDS if name != b"hello"])
def test_a_stranger_may_do_nothing(method: str) -> None:
    with pytest.raises(Unauthorized, match="token is needed"):
        find_command(Caller(make_service(token="sesame")), method.encode())


@pytest.mark.parametrize("token", ["sesame", "sésame", "x" * 500])
def test_the_right_token_opens(token: str) -> None:
    caller = Caller(make_service(token=token))
    call(caller, "hello", {b"token": token.encode()})
    assert call(caller, "ping") is None


@pytest.mark.parametrize(
    "given", [b"", b"sesam", b"sesamE", b"sesame\n", "sésame".encode(), 5, True, None, (), b"\xff"]
)
def test_any_other_token_does_not(given: object) -> None:
    caller = Caller(make_service(token="sesame"))
    for about in ({b"token": given}, {}):
        with pytest.raises(Unauthorized):
            call(caller, "hello", about)
    assert caller.role is Role.NOBODY


def test_a_refused_hello_says_what_is_wrong_and_not_what_is_right() -> None:
    caller = Caller(make_service(token="sesame"))
    with pytest.raises(Unauthorized, match="the token is wrong") as wrong:
        call(caller, "hello", {b"token": b"guess"})
    with pytest.raises(Unauthorized, match="a token is needed") as missing:
        call(caller, "hello", {})
    assert "sesame" not in str(wrong.value) + str(missing.value)


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.toml")


@pytest.mark.parametrize("role", ROLES)
def test_a_token_gives_its_role(tokens: TokenFile, role: str) -> None:
    token = tokens.add("one", role)
    caller = Caller(make_service(tokens=tokens.path))
    call(caller, "hello", {b"token": token.encode()})
    assert caller.role is ROLES[role]


def test_a_token_opens_its_namespaces_only(tokens: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "EVERY", 0.0)
    token = tokens.add("one", "admin", "lists", "shop").encode()
    service = make_service(tokens=tokens.path)
    for namespace in (b"lists", b"shop"):
        call(caller := Caller(service), "hello", {b"token": token, b"namespace": namespace})
        call(caller, "set", b"m", namespace, b"A")
    for about in ({b"namespace": b"another"}, {b"namespace": b"list"}, {b"namespace": b""}, {}):
        with capture_logs() as logs, pytest.raises(Forbidden, match="does not open this namespace"):
            call(caller := Caller(service), "hello", {b"token": token, **about})
        assert caller.role is Role.NOBODY
        assert [entry["token"] for entry in logs] == ["one"]
        assert "another" not in str(logs)
    assert service.engine.info()["namespaces"] == 2


def test_a_namespace_is_refused_only_to_who_has_a_token(tokens: TokenFile) -> None:
    """Nobody else learns which there are."""
    tokens.add("one", "read", "lists")
    caller = Caller(make_service(tokens=tokens.path))
    for namespace in (b"lists", b"another"):
        with pytest.raises(Unauthorized, match="the token is wrong"):
            call(caller, "hello", {b"token": b"guess", b"namespace": namespace})


def known(tokens: TokenFile, token: str, namespace: str = "lists") -> Caller:
    caller = Caller(make_service(tokens=tokens.path))
    call(caller, "hello", {b"token": token.encode(), b"namespace": namespace.encode()})
    return caller


def renew(caller: Caller) -> bool:
    caller.service.access.read()
    return caller.renew()


@pytest.mark.parametrize("role", ROLES)
def test_a_new_role_counts_from_then_on(tokens: TokenFile, role: str) -> None:
    caller = known(tokens, tokens.add("one", "write", "lists"))
    tokens.change_role("one", role)
    assert renew(caller)
    assert caller.role is ROLES[role]


def test_a_token_that_is_gone_ends_it(tokens: TokenFile) -> None:
    tokens.add("another", "admin")
    caller = known(tokens, tokens.add("one", "write", "lists"))
    assert renew(caller)
    tokens.remove("one")
    assert not renew(caller)


def test_a_token_that_has_another_name_is_still_the_same(tokens: TokenFile) -> None:
    caller = known(tokens, tokens.add("one", "write", "lists"))
    tokens.path.write_text(tokens.path.read_text().replace("[one]", "[two]"))
    assert renew(caller)


def test_a_token_of_the_same_name_is_another(tokens: TokenFile) -> None:
    tokens.add("another", "admin")
    caller = known(tokens, tokens.add("one", "write", "lists"))
    tokens.remove("one")
    tokens.add("one", "write", "lists")
    assert not renew(caller)


@pytest.mark.parametrize(("namespaces", "goes_on"), [(["lists", "shop"], True), (["shop"], False)])
def test_a_namespace_that_it_opens_no_more_ends_it(tokens: TokenFile, namespaces: list[str], goes_on: bool) -> None:
    caller = known(tokens, tokens.add("one", "write", "lists"))
    tokens.change_namespaces("one", *namespaces)
    assert renew(caller) is goes_on


def test_new_tokens_mean_nothing_to_strangers_and_where_none_is_needed(tokens: TokenFile, caller: Caller) -> None:
    tokens.add("one")
    stranger = Caller(make_service(tokens=tokens.path))
    assert renew(stranger)
    assert stranger.role is Role.NOBODY
    assert caller.renew()
    assert caller.role is Role.ADMIN


def test_clear_leaves_a_line_about_who_did_it(tokens: TokenFile) -> None:
    token = tokens.add("one", "admin")
    caller = Caller(make_service(tokens=tokens.path, allow_clear=True))
    call(caller, "hello", {b"token": token.encode(), b"namespace": b"secret"})
    with capture_logs() as logs:
        call(caller, "clear")
    assert [(entry["event"], entry["token"]) for entry in logs] == [("all states of a namespace were forgotten", "one")]
    assert "secret" not in str(logs)


@pytest.mark.parametrize("error", [None, Full("the disk is full")])
def test_what_is_cleared_is_logged_once_it_is_durable_and_not_where_it_is_taken_back(error: Full | None) -> None:
    engine = HoldingEngine()
    caller = Caller(make_service(engine, allow_clear=True))
    with capture_logs() as logs:
        COMMANDS[b"clear"].run(caller)
        assert logs == []
        engine.commit.settle(error)
    assert len(logs) == (error is None)


@pytest.mark.parametrize("error", [None, Full("the disk is full")])
async def test_nor_where_an_engine_that_answers_later_did_not_clear(error: Full | None) -> None:
    engine = LaterEngine()
    caller = Caller(make_service(engine, allow_clear=True))
    with capture_logs() as logs:
        reply = COMMANDS[b"clear"].run(caller)
        assert logs == []
        (answer,) = engine.answers
        answer.set_result(None) if error is None else answer.set_exception(error)
        await asyncio.wait([reply])
        assert reply.exception() is error
    assert len(logs) == (error is None)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != b"hello"])
def test_a_role_may_what_those_before_it_may(caller: Caller, role: Role, name: bytes) -> None:
    caller.become(role)
    if COMMANDS[name].role <= role:
        assert find_command(caller, name) is COMMANDS[name]
        assert COMMANDS[name].heavy or caller.allowed[name] is COMMANDS[name]
    else:
        assert name not in caller.allowed
        with pytest.raises((Unauthorized, Forbidden)):
            find_command(caller, name)


def test_a_reader_is_told_which_role_is_missing(caller: Caller) -> None:
    caller.become(Role.READ)
    with pytest.raises(Forbidden, match="set needs the role write"):
        find_command(caller, b"set")


# What makes no sense


@pytest.mark.parametrize("name", [b"", b"GET", b"get ", b"__init__", b"run", b"\xff" * 100, b"x" * 10_000])
def test_other_methods_are_unknown(caller: Caller, name: bytes) -> None:
    with pytest.raises(UnknownMethod) as error:
        find_command(caller, name)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", [None, 5, (), {}, 1.5])
def test_a_method_has_a_name(caller: Caller, name: object) -> None:
    with pytest.raises(BadRequest):
        find_command(caller, name)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_method_takes_its_parameters_and_one_map(name: bytes) -> None:
    command = COMMANDS[name]
    params = (None,) * command.arity
    assert check_params(command, params) == check_params(command, (*params, {})) == (params, {})
    assert check_params(command, (*params, {b"fence": 1})) == (params, {b"fence": 1})
    for wrong in ((*params, None), (*params, {}, {}), params[1:] if params else (1,), {}, None, 5):
        with pytest.raises(BadRequest):
            check_params(command, wrong)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.binary(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(COMMANDS)), data=st.data())
def test_whatever_the_parameters_an_error_is_one_of_ours_and_changes_nothing(name: bytes, data: st.DataObject) -> None:
    caller = Caller(make_service())
    call(caller, "set", *ANN, b"A")
    command = COMMANDS[name]
    params = data.draw(st.tuples(*[values] * command.arity))
    try:
        command.run(caller, *params)
    except StateStoreError:
        assert call(caller, "scan", None, None, None, None)[1][0][:3] == [*ANN, b"A"]
        assert call(caller, "info")[b"changes_since_snapshot"] == 1


LIMITS = Limits(module=5, sender=6, state=7, items=3)
AT_MOST = {"module": b"m" * 5, "sender": b"s" * 6, "state": b"t" * 7}
TAKES = {
    "get": ("module", "sender"),
    "set": ("module", "sender", "state"),
    "set_all": ("sender", "state"),
    "compare_and_set": ("module", "sender", "state", "state"),
    "count": ("module", "state"),
}


@pytest.mark.parametrize(
    ("method", "position"), [(method, position) for method, names in TAKES.items() for position in range(len(names))]
)
def test_a_text_may_be_as_long_as_its_limit(method: str, position: int) -> None:
    caller = Caller(make_service(limits=LIMITS))
    params = [AT_MOST[name] for name in TAKES[method]]
    call(caller, method, *params)
    params[position] += b"x"
    with pytest.raises(TooLong, match=rf"is {len(params[position])} bytes long, at most {len(params[position]) - 1} "):
        call(caller, method, *params)


@pytest.mark.parametrize("method", ["get_many", "set_many"])
def test_a_bulk_call_has_so_many_items_at_most(method: str) -> None:
    caller = Caller(make_service(limits=LIMITS))
    item = (b"m", b"s", b"t")[: 2 if method == "get_many" else 3]
    call(caller, method, (item,) * 3)
    with pytest.raises(TooLong, match="items are 4, at most 3"):
        call(caller, method, (item,) * 4)


@pytest.mark.parametrize("params", [(b"m" * 6, None, None), (None, b"s" * 7, None), (None, None, b"t" * 8)])
def test_a_scan_asks_for_what_could_be_there(params: tuple[bytes | None, ...]) -> None:
    with pytest.raises(TooLong):
        call(Caller(make_service(limits=LIMITS)), "scan", None, *params)


@pytest.mark.parametrize("namespace", [b"n" * 256, 5, None, ()])
def test_a_namespace_is_a_short_string(caller: Caller, namespace: object) -> None:
    with pytest.raises((TooLong, BadRequest), match="namespace"):
        call(caller, "hello", {b"namespace": namespace})
    call(caller, "hello", {b"namespace": b"n" * 255})


@pytest.mark.parametrize("bad", [b"\xff", b"ok\xc3", b"\xc0\x80", b"\xf5\x80\x80\x80"])
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("set", ("BAD", b"s", b"t")),
        ("set", (b"m", "BAD", b"t")),
        ("set", (b"m", b"s", "BAD")),
        ("set_all", ("BAD", b"t")),
        ("set_all", (b"s", "BAD")),
        ("compare_and_set", (b"m", "BAD", b"START", b"t")),
        ("compare_and_set", (b"m", b"s", b"START", "BAD")),
        ("set_many", (((b"m", b"s", b"t"), (b"m", "BAD", b"t")),)),
    ],
)
def test_what_is_no_text_is_not_stored(caller: Caller, method: str, params: tuple[Any, ...], bad: bytes) -> None:
    """It would break everybody who reads it."""

    def fill_in(value: Any) -> Any:
        return tuple(map(fill_in, value)) if isinstance(value, tuple) else bad if value == "BAD" else value

    with pytest.raises(BadRequest, match="not UTF-8"):
        call(caller, method, *fill_in(params))
    assert call(caller, "count", None, None)[b"total"] == 0


@pytest.mark.parametrize("bad", [(b"m", b"s"), (b"m", b"s", 5), 5, (b"m" * 2000, b"s", b"t"), (None, b"s", b"t")])
def test_a_bulk_call_is_checked_as_a_whole(caller: Caller, bad: object) -> None:
    with pytest.raises((BadRequest, TooLong)):
        call(caller, "set_many", ((*ANN, b"A"), bad))
    assert call(caller, "get", *ANN) == b"START"


def largest(setting: str) -> int:
    return int(Settings.__dataclass_fields__[setting].metadata["type"].max)


def test_the_longest_answers_fit_into_what_a_client_takes() -> None:
    """L1, with the largest names and states that the settings allow, and as many modules as then are allowed."""
    limits = Limits(largest("max_module"), largest("max_sender"), largest("max_state"))
    modules = next(n for n in count(1) if longest_page(limits.module + limits.sender + limits.state, n + 1) > MAX_REPLY)
    caller = Caller(make_service(engine_without_files(quota=Quota(modules=modules)), limits=limits))
    for number in range(300):
        text = b"%05d" % number
        call(caller, "set", b"m" * (limits.module - 5) + text[-2:], b"ben" + text, b"t" * (limits.state - 5) + text)
    for number in range(modules):
        module = b"m" * (limits.module - 5) + b"%05d" % number
        call(caller, "set", module, b"s" * limits.sender, b"t" * (limits.state - 5) + b"%05d" % number)
    pairs = tuple((b"m" * (limits.module - 5) + b"00", b"ben%05d" % (100 * number)) for number in range(3))
    answers = [
        COMMANDS[b"get_many"].run(caller, pairs * (MAX_REPLY // (3 * limits.state + 9))),
        COMMANDS[b"count"].run(caller, None, None),
    ]
    cursor = None
    while True:
        answers.append(page := COMMANDS[b"scan"].run(caller, cursor, None, None, None))
        cursor = msgpack.unpackb(page, raw=True)[0]
        if cursor is None:
            break
    for result in answers:
        assert isinstance(result, bytes)
        assert len(result) <= MAX_REPLY
        client = ClientProtocol()
        client.feed(b"\x94\x01\x01\xc0" + result)
        assert client.next_response() is not None


def test_an_answer_that_would_be_too_long_is_refused(caller: Caller) -> None:
    """L1: all states that may be asked for at once fit, with the default limits; with others they may not."""
    limits = Limits(state=4096)
    caller = Caller(make_service(limits=limits))
    for limit, fits in ((1024, True), (4096, False)):
        call(caller, "set", *ANN, b"A" * limit)
        if fits:
            assert len(call(caller, "get_many", (ANN,) * limits.items)) == limits.items
        else:
            with pytest.raises(TooLong, match=r"^items "):
                call(caller, "get_many", (ANN,) * limits.items)


def test_sets_that_come_together_get_their_own_due_where_there_is_no_room_for_all() -> None:
    """L5: those that change what is there are not refused for the sake of the new ones, nor new ones that fit."""
    caller = Caller(make_service(engine_without_files(quota=Quota.of(Limits(), 5000, modules=2))))
    call(caller, "set", *ANN, b"A")
    assert set_together(caller, [(b"m%d" % number, b"ben", b"A") for number in range(3)]) is None
    assert call(caller, "count", None, None)[b"total"] == 1
    assert set_together(caller, [(*ANN, b"B"), (b"lists", b"ben", b"A")]) is not None


# Engines that answer later


LATER: list[tuple[str, tuple[Any, ...], tuple[Any, ...], Any, Any]] = [
    ("get", ANN, ("get", *ANN), b"A", b"A"),
    ("set", (*ANN, b"A"), ("set", *ANN, b"A"), None, None),
    ("set_all", (b"ann", b"A"), ("set_all", b"ann", b"A"), 3, 3),
    ("compare_and_set", (*ANN, b"A", b"B"), ("compare_and_set", *ANN, b"A", b"B"), (True, b"A"), [True, b"A"]),
    ("get_many", ((ANN,),), ("get_many", [ANN]), [b"A"], [b"A"]),
    ("set_many", (((*ANN, b"A"),),), ("set_many", [(*ANN, b"A")]), None, None),
    ("scan", (None, None, None, None), ("scan", None, Filter()), (None, []), [None, []]),
    ("clear", (), ("clear",), None, None),
]


@pytest.mark.parametrize(("method", "params", "asked", "answer", "result"), LATER, ids=[case[0] for case in LATER])
async def test_an_answer_may_come_later(
    method: str, params: tuple[Any, ...], asked: tuple[Any, ...], answer: Any, result: Any
) -> None:
    engine = LaterEngine()
    caller = Caller(make_service(engine, allow_clear=True))
    reply = COMMANDS[method.encode()].run(caller, *params)
    assert engine.asked == [asked]
    assert not isinstance(reply, bytes)
    assert not reply.done()
    engine.answers[0].set_result(answer)
    assert msgpack.unpackb(await reply, raw=True) == result


@pytest.mark.parametrize(("method", "params", "asked", "answer", "result"), LATER, ids=[case[0] for case in LATER])
def test_an_answer_may_be_held(
    method: str, params: tuple[Any, ...], asked: tuple[Any, ...], answer: Any, result: Any
) -> None:
    engine = HoldingEngine()
    engine.value = answer
    reply = COMMANDS[method.encode()].run(Caller(make_service(engine, allow_clear=True)), *params)
    assert engine.asked == [asked]
    assert isinstance(reply, Held)
    assert reply.until is engine.commit
    assert reply.packed is not None
    assert msgpack.unpackb(reply.packed, raw=True) == result


async def test_an_error_may_come_later() -> None:
    engine = LaterEngine()
    reply = COMMANDS[b"get"].run(Caller(make_service(engine)), *ANN)
    assert isinstance(reply, asyncio.Future)
    for answer in engine.answers:
        answer.set_exception(Forbidden("not you"))
    with pytest.raises(Forbidden, match="not you"):
        await reply


async def test_an_answer_that_is_given_up_is_no_answer_that_never_comes() -> None:
    engine = LaterEngine()
    reply = COMMANDS[b"set"].run(Caller(make_service(engine)), *ANN, b"A")
    assert isinstance(reply, asyncio.Future)
    engine.answers[0].cancel()
    done, _ = await asyncio.wait([reply], timeout=1)
    assert done


async def test_nobody_minds_an_answer_that_nobody_waits_for() -> None:
    engine = LaterEngine()
    reply = COMMANDS[b"set"].run(Caller(make_service(engine)), *ANN, b"A")
    assert isinstance(reply, asyncio.Future)
    reply.cancel()
    engine.answers[0].set_result(None)
    await asyncio.sleep(0)


def test_what_is_there_can_be_asked_for_though_the_namespaces_are_too_many() -> None:
    """As after lowering the setting."""
    engine = engine_without_files(max_namespaces=3)
    for name in (b"one", b"two"):
        engine.space(name).set(*ANN, name)
    engine._max_namespaces = 1
    caller = Caller(make_service(engine))
    for name in (b"one", b"two"):
        call(caller, "hello", {b"namespace": name})
        assert call(caller, "get", *ANN) == name
    with pytest.raises(Full):
        call(caller, "hello", {b"namespace": b"three"})


def test_what_takes_long_for_the_greatest_is_heavy() -> None:
    """L6: whoever sends many of these in a row gets one in a turn of the loop."""
    light = {name.decode() for name, command in COMMANDS.items() if not command.heavy}
    assert light == {"hello", "ping", "get", "set", "compare_and_set"}
