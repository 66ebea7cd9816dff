"""Notifications: executed as their requests would be, and never answered."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from statestore.errors import Full, Unavailable
from statestored.budget import Budget
from statestored.commands import COMMANDS, Service
from statestored.datadir import DataDirectory
from statestored.engines.base import START
from statestored.engines.commits import Fsync
from statestored.engines.embedded import EmbeddedEngine
from statestored.metrics import Metrics
from statestored.responses import MAX_HELD
from tests.daemon import Daemon
from tests.server.fakes import NEVER, Disk, HeldCommit, HoldingEngine, LaterEngine, Loop, Wire, make_service, some_turns
from tests.server.rpc import RawClient, error_of, notification, ok, request
from tests.server.waiting import eventually, wait_until
from tests.tokenfile import TokenFile

ANN = ("lists", "ann@a.example")
SECRET = "do.not.log@this.example"


@pytest.fixture
def service() -> Service:
    return make_service(allow_clear=True)


@pytest.fixture
def wire(service: Service) -> Wire:
    return Wire(service)


def get(msgid: int = 9) -> bytes:
    return request(msgid, "get", *ANN)


def state_of(service: Service) -> Any:
    return service.engine.space(b"default").get(ANN[0].encode(), ANN[1].encode())


def refused(service: Service) -> tuple[int, dict[str, int]]:
    """Notifications that were refused, and all errors by their codes."""
    return service.notifications_refused, dict(+service.errors)


# Executed


WRITES: dict[str, tuple[list[Any], str]] = {  # parameters, and the state afterwards
    "set": ([*ANN, "NEW"], "NEW"),
    "set_all": ([ANN[1], "NEW"], "NEW"),
    "compare_and_set": ([*ANN, "OLD", "NEW"], "NEW"),
    "set_many": ([[[*ANN, "NEW"]]], "NEW"),
    "clear": ([], "START"),
}


@pytest.mark.parametrize("method", WRITES)
def test_a_write_is_carried_out(wire: Wire, service: Service, method: str) -> None:
    params, after = WRITES[method]
    wire.ask(request(1, "set", *ANN, "OLD"))
    assert wire.ask(notification(method, *params)) == []
    assert wire.ask(get()) == [ok(9, after)]
    assert service.calls[method.encode()] == 1 + (method == "set")
    assert refused(service) == (0, {})


def test_these_are_all_that_write() -> None:
    assert {name.decode() for name, command in COMMANDS.items() if command.writes} == set(WRITES)


READS = {
    "ping": [],
    "get": [*ANN],
    "get_many": [[ANN]],
    "scan": [None, None, None, None],
    "count": [None, None],
    "info": [],
}


@pytest.mark.parametrize("method", READS)
def test_what_reads_says_nothing(wire: Wire, service: Service, method: str) -> None:
    assert wire.ask(notification(method, *READS[method])) == []
    assert wire.ask(request(1, "ping")) == [ok(1, None)]
    assert service.calls[method.encode()] == 1 + (method == "ping")


def test_its_order_with_requests_is_kept(wire: Wire) -> None:
    asked = [
        *(request(1, "set", *ANN, "A"), notification("set", *ANN, "B"), get(2)),
        *(notification("set", *ANN, "C"), request(3, "set", *ANN, "D"), get(4)),
        *(notification("set_all", ANN[1], "E"), get(5), notification("compare_and_set", *ANN, "E", "F"), get(6)),
        *(request(7, "set", *ANN, "G"), notification("set", *ANN, "H"), notification("set", *ANN, "I"), get(8)),
    ]
    expected = [ok(1, None), ok(2, "B"), ok(3, None), ok(4, "D"), ok(5, "E"), ok(6, "F"), ok(7, None), ok(8, "I")]
    assert wire.ask(*asked) == expected


def test_method_names_may_come_as_bin(wire: Wire) -> None:
    assert wire.ask(notification(b"set", b"lists", b"ann@a.example", b"A"), get()) == [ok(9, "A")]


steps = st.tuples(
    st.booleans(),  # as a notification
    st.sampled_from(["set", "set", "set", "get", "compare_and_set", "set_all", "get_many", "levitate"]),
    st.sampled_from(["A", "B", "START", "é", "t" * 1025]),
)
PARAMS: dict[str, Any] = {
    "set": lambda state: [*ANN, state],
    "get": lambda _: [*ANN],
    "compare_and_set": lambda state: [*ANN, "A", state],
    "set_all": lambda state: [ANN[1], state],
    "get_many": lambda _: [[ANN]],
    "levitate": lambda state: [state],
}


@given(steps=st.lists(steps, max_size=30), at_once=st.booleans())
def test_all_comes_to_the_same_as_with_requests(steps: list[tuple[bool, str, str]], at_once: bool) -> None:
    """But for the answers: those to the requests among them are the same, too."""
    some, plain = Wire(make_service()), Wire(make_service())
    asked, expected = [], []
    for number, (is_notification, method, state) in enumerate(steps):
        params = PARAMS[method](state)
        asked.append(notification(method, *params) if is_notification else request(number, method, *params))
        (answer,) = plain.ask(request(number, method, *params))
        expected += [] if is_notification else [answer]
    found = some.ask(*asked) if at_once else [answer for each in asked for answer in some.ask(each)]
    assert sorted(found, key=lambda answer: answer[1]) == expected
    assert some.ask(get()) == plain.ask(get())


@pytest.mark.parametrize("others", ["request", "notification"])
def test_sets_of_all_connections_are_one_write(others: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a set costs is not more as a notification."""
    service, loop = make_service(), Loop()
    wires = [Wire(service, loop=loop) for _ in range(3)]
    space = service.engine.space(b"default")
    set_many, sizes = space.set_many, []
    monkeypatch.setattr(space, "set_many", lambda triples: sizes.append(len(triples)) or set_many(triples))
    for number, wire in enumerate(wires):
        sets = [("lists", f"s{number}", state) for state in "AB"]
        is_request = others == "request" and number > 0
        requests = [request(msgid, "set", *each) for msgid, each in enumerate(sets)]
        wire.send(*(requests if is_request else [notification("set", *each) for each in sets]))
    loop.turn()
    assert sizes == [6]
    answers = [ok(0, None), ok(1, None)] if others == "request" else []
    assert [wire.read() for wire in wires] == [[], answers, answers]


def numbered(seq: int, state: str, **options: Any) -> bytes:
    return notification("set", *ANN, state, {"seq": seq, "oldest": 1, **options})


def test_options_are_heard(wire: Wire, service: Service) -> None:
    wire.ask(request(1, "hello", {"session": 0}))
    assert wire.ask(numbered(1, "A", not_after=1e12), get()) == [ok(9, "A")]
    wire.ask(request(2, "set", *ANN, "LATER"))
    assert wire.ask(numbered(1, "A"), get()) == [ok(9, "LATER")]
    assert refused(service) == (0, {})
    wire.ask(numbered(1, "B"), numbered(2, "C", not_after=0.5), numbered(3, "D", fence=1))
    assert wire.ask(get()) == [ok(9, "LATER")]
    assert refused(service) == (3, {"number_reused": 1, "unavailable": 1, "bad_request": 1})


# Refused


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (notification("set", *ANN), "bad_request"),
        (notification("set", *ANN, 5), "bad_request"),
        (msgpack.packb([2, "set", 5]), "bad_request"),
        (notification("get", *ANN, {"fence": 1}), "bad_request"),
        (notification("set", "m" * 1025, SECRET, "A"), "too_long"),
        (notification("get", "m" * 1025, SECRET), "too_long"),
        (notification("clear"), "forbidden"),
    ],
)
def test_a_refused_one_is_counted_and_never_answered(sent: bytes, code: str) -> None:
    service = make_service()
    wire = Wire(service)
    with capture_logs() as logs:
        assert wire.ask(sent * 3, request(1, "ping")) == [ok(1, None)]
    assert refused(service) == (3, {code: 3})
    assert logs == [
        {"event": "a notification was refused, and its client does not know", "code": code, "log_level": "warning"}
    ]


@pytest.mark.parametrize("name", ["levitate", b"levitate", "", 5, None, ["set"], {"set": 1}])
def test_an_unknown_method_is_ignored(wire: Wire, service: Service, name: Any) -> None:
    assert wire.ask(notification(name, *ANN, "A"), msgpack.packb([2, name, 5]), request(1, "ping")) == [ok(1, None)]
    assert refused(service) == (0, {})
    assert wire.ask(request(2, "hello", {}))[0][2] is not None  # late, for a ping came before


def test_a_stranger_changes_nothing() -> None:
    service = make_service(token="sesame")
    assert Wire(service).ask(notification("set", *ANN, "A"), notification("levitate")) == []
    assert refused(service) == (1, {"unauthorized": 1})
    assert state_of(service) == START


def test_who_may_only_read_changes_nothing(tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path / "tokens.toml")
    token = tokens.add("reader", "read")
    service = make_service(tokens=tokens.path)
    wire = Wire(service)
    wire.ask(request(1, "hello", {"token": token}))
    assert wire.ask(notification("set", *ANN, "A"), get()) == [ok(9, "START")]
    assert refused(service) == (1, {"forbidden": 1})


def test_while_the_daemon_ends_it_is_refused(wire: Wire, service: Service) -> None:
    wire.connection.drain()
    wire.ask(notification("set", *ANN, "A"), notification("levitate"))
    assert refused(service) == (1, {"shutting_down": 1})
    assert state_of(service) == START


def test_a_fault_of_ours_is_counted_and_logged(wire: Wire, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.engine.space(b"default"), "set_all", lambda *_: 1 / 0)
    with capture_logs() as logs:
        assert wire.ask(notification("set_all", ANN[1], "A"), request(1, "ping")) == [ok(1, None)]
    assert refused(service) == (1, {"internal": 1})
    assert logs[0]["event"] == "a request failed"


def test_the_figures_say_how_many_were_refused(wire: Wire, service: Service) -> None:
    wire.ask(notification("set"), notification("set", *ANN, "A"))
    assert wire.ask(request(1, "info"))[0][3]["notifications_refused"] == 1
    assert b"statestored_notifications_refused_total 1.0" in Metrics(service).text()


# hello


def test_a_hello_works_without_its_answer(wire: Wire) -> None:
    assert wire.ask(notification("hello", {"namespace": "other"}), notification("set", *ANN, "A"), get()) == [
        ok(9, "A")
    ]
    default = Wire(wire.connection._service)
    assert default.ask(get()) == [ok(9, "START")]


@pytest.mark.parametrize("about", [{"namespace": 5}, {"namespace": "n" * 256}, {"session": -1}, 5])
def test_behind_a_refused_hello_nothing_is_executed(wire: Wire, service: Service, about: Any) -> None:
    sent = notification("hello", about), notification("set", *ANN, "A"), request(1, "set", *ANN, "B")
    assert wire.ask(*sent) == []
    assert wire.is_closing()
    assert state_of(service) == START
    assert service.notifications_refused == 1


@pytest.mark.parametrize("first", [notification("set", *ANN, "A"), notification("get", *ANN), notification("set")])
@pytest.mark.parametrize("pipelined", [False, True])
def test_it_comes_before_a_hello_as_its_request_would(wire: Wire, first: bytes, pipelined: bool) -> None:
    if not pipelined:
        wire.ask(first)
        first = b""
    (answer,) = wire.ask(first, request(1, "hello", {}), request(2, "ping"))
    assert error_of(answer) == "bad_request"
    assert wire.is_closing()


def test_an_unknown_one_may_come_before_a_hello(wire: Wire) -> None:
    (answer,) = wire.ask(notification("levitate"), request(1, "hello", {}))
    assert answer[2] is None


def test_a_hello_with_a_token_admits() -> None:
    wire = Wire(make_service(token="sesame"))
    assert wire.ask(notification("hello", {"token": "sesame"}), get()) == [ok(9, "START")]


async def test_a_session_that_is_opened_later_is_not_told(tmp_path: Path) -> None:
    async with on_disk(tmp_path) as service:
        wire = Wire(service)
        wire.send(notification("hello", {"session": 0}))
        await eventually(lambda: not wire.connection.responses.waiting)
        assert wire.read() == []
        assert wire.connection.caller.session is not None


# What waits for the disk, or for an engine


@pytest.fixture
def holding() -> HoldingEngine:
    engine = HoldingEngine()
    engine.bulk_is_atomic = True
    return engine


@pytest.mark.parametrize("method", ["set", "compare_and_set", "set_all", "get"])
def test_a_client_has_no_more_under_way_than_with_requests(holding: HoldingEngine, method: str) -> None:
    """L2."""
    service = make_service(holding)
    params = [*ANN, *["A"] * (method != "get"), *["B"] * (method == "compare_and_set")]
    if method == "set_all":
        params = [ANN[1], "A"]
    wire = Wire(service)
    for _ in range(3 * MAX_HELD // 10):
        wire.send(*[notification(method, *params)] * 10)
    under_way = wire.connection.responses.held
    assert MAX_HELD <= under_way <= MAX_HELD + 1000
    assert wire.unsent > 0
    for _ in range(4):
        settle(holding, [wire])
    assert wire.unsent == 0
    assert wire.read() == []


def settle(holding: HoldingEngine, wires: list[Wire]) -> None:
    """All that was asked so far; then the rest is read."""
    settled, holding.commit = holding.commit, HeldCommit()
    settled.settle()
    for wire in wires:
        wire.send()


def test_what_they_take_is_in_the_budget_as_with_requests(holding: HoldingEngine) -> None:
    used = []
    for asked in (request(1, "set", "lists", "x" * 2000, "A"), notification("set", "lists", "x" * 2000, "A")):
        service = make_service(holding, budget=Budget(2**20))
        wires = [Wire(service) for _ in range(40)]
        for wire in wires:
            wire.send(*[asked] * 50)
        assert service.budget.used_up
        used.append(service.budget.used)
        for _ in range(4):
            settle(holding, wires)
        assert service.budget.used == 0
        assert [wire.unsent for wire in wires] == [0] * 40
    assert used[1] == pytest.approx(used[0], rel=0.01)


def test_answers_to_requests_beside_them_leave_alone(holding: HoldingEngine) -> None:
    wire = Wire(make_service(holding))
    wire.send(request(1, "set", *ANN, "A"), notification("set", *ANN, "B"), request(2, "set", *ANN, "C"))
    assert wire.read() == []
    holding.commit.settle()
    assert wire.read() == [ok(1, None), ok(2, None)]
    assert wire.writes == 1


@pytest.mark.parametrize("has_gone", [False, True])
def test_what_is_taken_back_is_refused(holding: HoldingEngine, has_gone: bool) -> None:
    """Also if the client has closed the connection, as one that waits for nothing does."""
    service = make_service(holding)
    wire = Wire(service)
    wire.send(notification("set", *ANN, "B"), notification("set", *ANN, "C"), notification("set_all", ANN[1], "D"))
    if has_gone:
        wire.hang_up()
    holding.commit.settle(Unavailable("no room"))
    assert wire.read() == []
    assert refused(service) == (3, {"unavailable": 3})


def test_a_connection_that_ends_waits_for_them(holding: HoldingEngine) -> None:
    wire = Wire(make_service(holding))
    wire.send(notification("set", *ANN, "B"))
    assert wire.connection.eof_received()
    assert not wire.is_closing()
    holding.commit.settle()
    assert wire.is_closing()


async def test_an_answer_that_comes_later_is_dropped() -> None:
    engine = LaterEngine()
    service = make_service(engine)
    wire = Wire(service)
    wire.send(notification("set", *ANN, "B"), notification("get", *ANN), request(1, "get", *ANN))
    engine.answers[0].set_exception(Full("no"))
    engine.answers[1].set_result(b"A")
    engine.answers[2].set_result(b"A")
    await some_turns()
    assert wire.read() == [ok(1, "A")]
    assert refused(service) == (1, {"full": 1})
    assert wire.connection.responses.waiting == 0


@asynccontextmanager
async def on_disk(path: Path) -> AsyncIterator[Service]:
    directory = DataDirectory(path)
    directory.open()
    engine = EmbeddedEngine(directory, Fsync.ALWAYS, NEVER, max_namespaces=10)
    await engine.open()
    yield make_service(engine)
    await engine.close()
    directory.close()


async def test_on_a_full_disk_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D6."""
    disk = Disk(monkeypatch)
    async with on_disk(tmp_path) as service:
        wire = Wire(service)
        disk.fill()
        wire.send(notification("set", *ANN, "A"), notification("set", *ANN, "B"))
        await eventually(lambda: service.notifications_refused == 2)
        wire.send(notification("set", *ANN, "C"))
        await eventually(lambda: service.notifications_refused == 3)
        assert dict(+service.errors) == {"unavailable": 3}
        assert wire.ask(get()) == [ok(9, "START")]
        disk.make_room()


# Over real connections


def test_it_is_there_after_a_kill(tmp_path: Path) -> None:
    """What another client was told of is durable."""
    with Daemon(tmp_path) as daemon:
        with RawClient(daemon.address) as client:
            client.send(notification("set", *ANN, "A"), get())
            assert client.next() == ok(9, "A")
        daemon.kill()
        daemon.start()
        with RawClient(daemon.address) as client:
            assert client.ask("get", *ANN) == "A"


def test_a_client_may_send_it_and_go(shared_daemon: Daemon) -> None:
    with RawClient(shared_daemon.address) as client:
        client.send(*(notification("set", "and go", f"s{number}", "A") for number in range(5000)))
    with RawClient(shared_daemon.address) as other:
        wait_until(lambda: other.ask("count", "and go", None)["total"] == 5000)


def test_one_that_sends_without_end_does_not_hold_up_others(shared_daemon: Daemon) -> None:
    """L6."""
    with RawClient(shared_daemon.address) as eager, RawClient(shared_daemon.address) as other:
        eager.send(notification("set", "eager", "s", "A") * 50_000)
        assert other.ask("ping") is None
        assert eager.ask("get", "eager", "s") == "A"
