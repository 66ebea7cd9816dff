"""What Prometheus reads, by its own conventions."""

import re
from pathlib import Path
from typing import Any

import msgpack
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from statestore.errors import BY_WIRE_CODE
from statestored import __version__, audit, stdio
from statestored.commands import COMMANDS, Service
from statestored.datadir import DataDirectory
from statestored.engines.commits import Fsync
from statestored.engines.embedded import EmbeddedEngine
from statestored.metrics import ENGINE_METRICS, Metrics
from statestored.timeouts import Dropped
from tests.server.fakes import NEVER, LaterEngine, Wire, engine_without_files, make_service
from tests.server.rpc import request

UNITS_THAT_ARE_NOT_BASE = r"milliseconds|minutes|hours|days|kilobytes|megabytes|percent"


@pytest.fixture
def service() -> Service:
    return make_service()


def families(service: Service) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(Metrics(service).text().decode())}


def values(service: Service) -> dict[tuple[str, ...], float]:
    """By the sample's name and the values of its labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(service).values()
        for sample in family.samples
    }


def use(service: Service) -> Wire:
    """A little of everything."""
    wire = Wire(service)
    for name, command in reversed(COMMANDS.items()):  # hello comes last, and is refused
        wire.send(request(1, name.decode(), *[None] * command.arity))
    wire = Wire(service)
    wire.ask(request(1, "set", "lists", "ann", "A"), request(2, "get", "lists", "ann"), request(3, "none"))
    Wire(service).ask(msgpack.packb(5))
    return wire


def test_names_and_types_are_as_prometheus_wants_them(service: Service) -> None:
    use(service)
    for name, family in families(service).items():
        assert family.documentation.strip(), name
        assert family.type in ("counter", "gauge"), name
        assert re.fullmatch(r"(statestored|process|python)_[a-z0-9_]+", name)
        assert not re.search(UNITS_THAT_ARE_NOT_BASE, name)
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            assert all(re.fullmatch(r"[a-z_]+", label) for label in sample.labels)


def test_each_series_is_there_once(service: Service) -> None:
    use(service)
    lines = [line.rpartition(" ")[0] for line in Metrics(service).text().decode().splitlines() if line[:1] != "#"]
    assert len(lines) == len(set(lines))
    heads = [line for line in Metrics(service).text().decode().splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))


def test_what_happened_is_counted(service: Service) -> None:
    wire = use(service)
    found = values(service)
    assert found["statestored_requests_total", "set"] == 2
    assert found["statestored_requests_total", "ping"] == 1
    assert found["statestored_errors_total", "unknown_method"] == 1
    assert found["statestored_errors_total", "bad_request"] > 1
    assert found["statestored_connections_accepted_total",] == 3
    assert found["statestored_connections_dropped_total", "garbage"] == 1
    assert {key[1] for key in found if key[0] == "statestored_connections_dropped_total"} == set(Dropped)
    assert found["statestored_buffered_bytes",] == 0
    assert found["statestored_connections",] == 3
    assert found["statestored_entries",] == found["statestored_namespaces",] == 1
    assert found["statestored_changes_since_snapshot",] == 1
    wire.hang_up()
    assert values(service)["statestored_connections",] == 2


def test_lines_that_the_log_lacks_are_counted(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio.log_output, "dropped", 7)
    assert values(service)["statestored_log_lines_dropped_total",] == 7


def test_every_method_has_a_series_from_the_beginning(service: Service) -> None:
    found = values(service)
    assert {key[1] for key in found if key[0] == "statestored_requests_total"} == {name.decode() for name in COMMANDS}


def test_every_error_code_has_a_series_from_the_beginning(service: Service) -> None:
    """A rate that begins with the first error would miss it."""
    found = values(service)
    assert {key[1] for key in found if key[0] == "statestored_errors_total"} == set(BY_WIRE_CODE)
    assert sum(value for key, value in found.items() if key[0] == "statestored_errors_total") == 0


def test_no_series_appears_later_than_clients_are_served(service: Service) -> None:
    before = values(service).keys()
    use(service)
    assert values(service).keys() == before


def test_what_is_known_while_the_states_are_loaded_is_shown() -> None:
    loading = EmbeddedEngine(DataDirectory(Path("/nowhere")), Fsync.NEVER, NEVER, 9)
    service = make_service(loading)
    found = values(service)
    assert found["statestored_ready",] == found["statestored_entries",] == 0
    assert ("statestored_journal_bytes",) not in found, "nobody knows yet"
    service.ready = True
    assert values(service)["statestored_ready",] == 1


def test_that_writes_are_refused_is_shown(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert values(service)["statestored_writes_refused",] == 0
    monkeypatch.setattr(service.engine.commits, "refused_because", "no room", raising=False)  # type: ignore[attr-defined]
    assert values(service)["statestored_writes_refused",] == 1


def test_log_lines_that_were_left_out_are_counted(service: Service) -> None:
    for _ in range(3):
        audit.handshake_failed("unknown ca")
    assert values(service)["statestored_log_lines_suppressed_total",] == 2


def test_no_series_grows_with_what_is_stored_or_asked(service: Service) -> None:
    def fill(start: int) -> None:
        wire = Wire(service)
        for number in range(start, start + 200):
            wire.send(request(1, "set", f"module{number}", f"sender{number}", f"STATE{number}"))
            wire.send(request(2, f"method{number}"), request(3, "get", *["x"] * (number % 7)))
            Wire(service).send(request(4, "hello", {"namespace": f"n{number}", "token": f"t{number}"}))
        wire.read()

    use(service)
    fill(0)
    before = values(service).keys()
    fill(200)
    assert values(service).keys() == before


def test_nothing_of_what_is_stored_is_in_it(service: Service) -> None:
    wire = Wire(service)
    wire.ask(request(0, "hello", {"namespace": "secret-1"}), request(1, "set", "secret-2", "secret-3", "secret-4"))
    wire.ask(request(2, "secret-5"))
    assert b"secret" not in Metrics(service).text()


def test_codes_are_those_of_the_protocol(service: Service) -> None:
    use(service)
    codes = {key[1] for key in values(service) if key[0] == "statestored_errors_total"}
    assert codes == set(BY_WIRE_CODE)


def test_all_that_the_engine_says_is_shown(service: Service) -> None:
    assert isinstance(service.engine, EmbeddedEngine)  # though without files
    assert service.engine.info().keys() == ENGINE_METRICS.keys()
    for _, name, _ in ENGINE_METRICS.values():
        assert any(key[0].removesuffix("_total") == name for key in values(service))


def test_an_engine_need_not_say_anything() -> None:
    engine: Any = LaterEngine()
    assert ("statestored_entries",) not in values(make_service(engine))


def test_the_release_is_shown(service: Service) -> None:
    assert values(service)["statestored_build_info", __version__] == 1


def test_two_services_do_not_share_their_numbers() -> None:
    one, other = make_service(engine_without_files()), make_service(engine_without_files())
    use(one)
    assert values(other)["statestored_requests_total", "set"] == 0
