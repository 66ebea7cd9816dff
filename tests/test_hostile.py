"""`python -m tests.hostile`, made small: some of each kind at once, and a well-behaved client beside them."""

from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.hostile import __main__ as command
from tests.hostile.attack import ENVIRONMENT, Outcome, attack, fill
from tests.hostile.bystander import Latency
from tests.hostile.clients import HALF_SECURE, HASTY, KINDS, TOKEN, Fates
from tests.hostile.judge import MAX_GROWTH, MAX_P99, complaints
from tests.server.rpc import RawClient

COUNTS = {"silent": 25, "dripping": 25, "dripping-hello": 25, "deaf": 25, "endless": 1, "flooding": 1, HASTY: 2}
SECONDS = 14.0  # longer than half a message may take
LATE = 10.0  # seconds more than it should take; the machine may be busy


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    with Daemon(tmp_path_factory.mktemp("hostile"), environment=ENVIRONMENT) as daemon:
        fill(daemon)
        outcome = attack(daemon, COUNTS, seconds=SECONDS, calm=0.5)
        assert daemon.stop() == 0
        return outcome


def test_the_client_beside_them_is_answered(outcome: Outcome) -> None:
    """It checks what it is answered, too."""
    for latency in outcome.during:
        assert latency.count >= 10
        assert latency.longest < 2000


def test_memory_is_bounded(outcome: Outcome) -> None:
    assert outcome.memory_growth < MAX_GROWTH


@pytest.mark.parametrize(("kind", "seconds"), [("silent", 5), ("dripping-hello", 5), ("dripping", 10)])
def test_who_wastes_time_is_closed_in_time(outcome: Outcome, kind: str, seconds: float) -> None:
    fates = outcome.fates[kind]
    assert (fates.connected, len(fates.closed)) == (COUNTS[kind], COUNTS[kind])
    assert seconds - 1 < min(fates.closed)
    assert max(fates.closed) < seconds + LATE


@pytest.mark.parametrize("kind", ["endless", "flooding"])
def test_who_asks_without_end_is_answered_too(outcome: Outcome, kind: str) -> None:
    assert outcome.fates[kind].answers > 100_000
    assert outcome.fates[kind].closed == []


def test_no_descriptor_is_left(outcome: Outcome) -> None:
    assert outcome.fates[HASTY].connected > 10
    assert outcome.files_after <= outcome.files_before


def test_handshakes_that_are_not_finished_are_ended_in_time(tmp_path: Path) -> None:
    with command.make_daemon(tmp_path, HALF_SECURE) as daemon:
        fill(daemon)
        outcome = attack(daemon, {HALF_SECURE: 50}, seconds=7.0, calm=0.5, beside=daemon.unix_address)
        with RawClient(daemon.unix_address) as client:
            client.ask("hello", {"token": TOKEN})
            assert client.ask("info")["tls_failures"] == 50
        assert daemon.stop() == 0
    fates = outcome.fates[HALF_SECURE]
    assert (fates.connected, len(fates.closed)) == (50, 50)
    assert max(fates.closed) < 5 + LATE
    assert outcome.during[0].longest < 2000
    assert outcome.memory_growth < MAX_GROWTH


# The long version


def outcome_of(fates: Fates, kind: str = "silent", growth: int = 0, p99: float = 1.0, waited: float = 0.25) -> Outcome:
    latencies = (Latency(100, 2.0, p99, 50.0), Latency(10, 2.0, 50.0, 50.0))
    return Outcome(latencies, latencies, {kind: fates}, 1000, 1000 + growth, 1000, 20, 50, 20, waited)


def test_the_command_tells_what_came_of_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fates = Fates(connected=3, closed=[5.1, 5.6, 5.6], answers=7)
    monkeypatch.setattr(command, "attack", lambda *_, **__: outcome_of(fates))
    assert command.main(["silent", "--clients", "3"]) == 0
    output = capsys.readouterr().out
    assert "get beside  p50   2.00 ms" in output
    assert "3 connected, 0 refused, 3 closed by the daemon, after 5.1 to 5.6 s" in output
    assert "FAILED" not in output
    fates.closed.pop()
    monkeypatch.setattr(Daemon, "stop", lambda _: 4)
    assert command.main(["silent", "--clients", "3"]) == 1
    output = capsys.readouterr().out
    assert "FAILED      1 were not closed" in output
    assert "FAILED      the daemon ended with 4" in output


def complaint(kind: str, fates: Fates, seconds: float = 90.0, **more: Any) -> str:
    return " / ".join(complaints(kind, seconds, outcome_of(fates, kind, **more)))


def test_memory_is_judged() -> None:
    """L2."""
    fates = Fates(connected=1)
    assert complaint(HASTY, fates, growth=MAX_GROWTH) == ""
    assert complaint(HASTY, fates, growth=MAX_GROWTH + 1) == "memory grew by more than 100 MiB"
    assert complaint(HASTY, Fates()) == "none has connected"


@pytest.mark.parametrize(
    ("kind", "latest"), [("silent", 8), ("dripping-hello", 8), (HALF_SECURE, 8), ("dripping", 13), ("deaf", 65)]
)
def test_it_is_judged_whether_all_are_closed_in_time(kind: str, latest: int) -> None:
    """L2, L3."""
    assert complaint(kind, Fates(connected=2, closed=[5.0, latest])) == ""
    assert "the last was closed after" in complaint(kind, Fates(connected=2, closed=[5.0, latest + 0.1]))
    assert complaint(kind, Fates(connected=2, closed=[5.0])) == "1 were not closed"
    assert f"stay for {latest} s" in complaint(kind, Fates(connected=2, closed=[5.0, 5.0]), seconds=latest - 0.1)


@pytest.mark.parametrize("kind", ["endless", "flooding"])
def test_it_is_judged_how_fast_the_others_are_served(kind: str) -> None:
    """L6: without the time in which the daemon had no processor."""
    fates = Fates(connected=1)
    assert complaint(kind, fates, p99=MAX_P99, waited=0.0) == ""
    assert complaint(kind, fates, p99=9.9, waited=0.5) == ""
    assert "p99 of the gets is 5.05 ms" in complaint(kind, fates, p99=10.1, waited=0.5)
    assert "were closed" in complaint(kind, Fates(connected=1, closed=[3.0]))
    assert complaint("silent", Fates(connected=1, closed=[5.0]), p99=99.0) == ""


def test_an_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["noisy"])
    assert "there is no kind noisy" in capsys.readouterr().err
    assert "silent" in KINDS
