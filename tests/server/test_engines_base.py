"""What the daemon asks of an engine: the default engine and the tests' own have all of it."""

import inspect
from typing import get_type_hints

import pytest

from statestore.base import START as CLIENTS_START
from statestore.base import Entry as ClientsEntry
from statestored.engines.base import START, Commit, Counts, Engine, Entry, Filter, Page, Space
from statestored.engines.commits import Batch
from statestored.engines.embedded import EmbeddedEngine, EmbeddedSpace
from tests.server.fakes import LaterEngine


def methods(of: type) -> dict[str, list[str]]:
    """The public ones, with the names of their parameters."""
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in vars(of).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("protocol", "engine"), [(Engine, EmbeddedEngine), (Engine, LaterEngine), (Space, LaterEngine)]
)
def test_an_engine_has_all_that_is_asked_of_it(protocol: type, engine: type) -> None:
    has = methods(engine)
    for name, parameters in methods(protocol).items():
        assert [parameter.strip("_") for parameter in has[name]] == parameters


def test_the_embedded_space_has_all_that_is_asked_of_it() -> None:
    assert methods(Space) == methods(EmbeddedSpace)


def test_a_batch_is_a_commit() -> None:
    assert methods(Commit).items() <= methods(Batch).items()


@pytest.mark.parametrize("engine", [EmbeddedEngine, LaterEngine])
def test_an_engine_has_its_properties(engine: type) -> None:
    for name, type_ in get_type_hints(Engine).items():
        assert type(getattr(engine, name)) is type_


def test_start_is_the_clients() -> None:
    assert CLIENTS_START.encode() == START == b"START"


def test_tuples_are_in_the_order_of_the_wire() -> None:
    assert Entry._fields == ClientsEntry._fields == ("module", "sender", "state", "day")
    assert Page._fields == ("cursor", "entries")
    assert Counts._fields == ("total", "rows", "uncounted")


def test_a_filter_asks_for_everything_unless_told_otherwise() -> None:
    assert Filter() == Filter(module=None, prefix=b"", state=None)
