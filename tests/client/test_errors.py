"""The error tree: what it says on the wire, and what Salmon makes of it."""

import copy
import pickle
import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.errors import (
    BY_WIRE_CODE,
    Forbidden,
    Full,
    ShuttingDown,
    StateStoreError,
    TooLong,
    Unavailable,
    Uncertain,
    from_wire,
    to_wire,
)
from statestore.protocol import WrongServer, WrongStore
from tests.client.scripts import run_script

CLASSES = list(BY_WIRE_CODE.values())
EVERY_CLASS: list[type[StateStoreError]] = [*CLASSES, StateStoreError, WrongServer, WrongStore]
DETAIL = "10.0.0.7:7828: réfusé\nline two"
TRY_AGAIN = "451 4.3.0 state store unavailable, try again later"
SENDER_TOO_LONG = "sender is 5000 bytes long, at most 4096 are allowed"


class FakeSMTPError(Exception):
    """Of the shape of Salmon's, whose `__init__` must not be what decides."""

    def __init__(self, *_: object) -> None:
        raise AssertionError("Salmon's own __init__ was called")


@pytest.fixture
def no_salmon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "salmon.server", raising=False)


@pytest.fixture
def salmon(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("salmon.server")
    module.SMTPError = FakeSMTPError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "salmon.server", module)


@pytest.mark.parametrize("cls", CLASSES)
@given(detail=st.text())
def test_an_error_comes_through_the_wire_as_it_was(cls: type[StateStoreError], detail: str) -> None:
    error = from_wire(to_wire(cls(detail)))
    assert isinstance(error, cls)
    assert error.detail == detail


def test_each_error_has_a_code_of_its_own_on_the_wire() -> None:
    assert set(BY_WIRE_CODE) == {
        *("bad_request", "unknown_method", "too_long", "unauthorized", "forbidden"),
        *("full", "unavailable", "uncertain", "number_reused", "shutting_down", "internal"),
    }
    assert all(issubclass(cls, StateStoreError) and cls.wire_code == code for code, cls in BY_WIRE_CODE.items())


@pytest.mark.usefixtures("no_salmon")
@pytest.mark.parametrize("said", ["", "out_of_cheese: again", "Full: x", " full: x", ": x"])
def test_an_error_of_a_later_version_says_its_code_and_that_nothing_was_done(said: str) -> None:
    error = from_wire(said)
    assert type(error) is StateStoreError
    assert error.detail == said
    assert (error.applied, error.retry) == ("no", False)


def test_an_error_needs_no_sentence() -> None:
    assert isinstance(from_wire("full"), Full)


def test_only_what_may_pass_is_repeated_and_only_uncertain_may_have_been_applied() -> None:
    assert {cls for cls in EVERY_CLASS if cls.retry} == {Unavailable, ShuttingDown}
    assert {cls for cls in EVERY_CLASS if cls.applied == "maybe"} == {Uncertain}


@pytest.mark.usefixtures("no_salmon")
@pytest.mark.parametrize("cls", EVERY_CLASS)
def test_without_salmon_an_error_is_itself_and_says_its_detail(cls: type[StateStoreError]) -> None:
    error = cls(DETAIL)
    assert type(error) is cls
    assert not isinstance(error, FakeSMTPError)
    assert str(error) == error.detail == DETAIL


@pytest.mark.usefixtures("salmon")
@pytest.mark.parametrize("cls", EVERY_CLASS)
def test_with_salmon_an_error_is_an_smtp_error_and_says_only_the_reply(cls: type[StateStoreError]) -> None:
    with pytest.raises(FakeSMTPError) as caught:
        raise cls(DETAIL)
    error = caught.value
    assert isinstance(error, cls)
    assert type(error).__name__ == cls.__name__
    assert str(error) == TRY_AGAIN
    assert (error.code, error.message) == (451, TRY_AGAIN.removeprefix("451 "))
    assert error.detail == DETAIL


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (TooLong(SENDER_TOO_LONG), (553, "5.1.7 sender address too long")),
        (TooLong("module is 5000 bytes long"), (451, "4.3.0 state store unavailable, try again later")),
        (TooLong("senders are many"), (451, "4.3.0 state store unavailable, try again later")),
        (Full("sender is 5000 bytes long"), (451, "4.3.0 state store unavailable, try again later")),
        (from_wire(f"too_long: {SENDER_TOO_LONG}"), (553, "5.1.7 sender address too long")),
    ],
)
def test_only_a_sender_that_is_too_long_is_refused_for_good(error: StateStoreError, reply: tuple[int, str]) -> None:
    assert (error.code, error.message) == reply


@pytest.mark.usefixtures("no_salmon")
def test_the_class_is_chosen_when_raising(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Unavailable("x")
    module = ModuleType("salmon.server")
    monkeypatch.setitem(sys.modules, "salmon.server", module)
    half_loaded = Unavailable("x")
    module.SMTPError = FakeSMTPError  # type: ignore[attr-defined]
    after = Unavailable("x")
    assert [isinstance(error, FakeSMTPError) for error in (before, half_loaded, after)] == [False, False, True]
    assert type(after) is type(Unavailable("y"))


@pytest.mark.usefixtures("salmon")
@pytest.mark.parametrize("cls", EVERY_CLASS)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_copies_are_of_the_same_class(cls: type[StateStoreError], duplicate: object) -> None:
    error = duplicate(cls(DETAIL))  # type: ignore[operator]
    assert type(error) is type(cls(DETAIL))
    assert error.detail == DETAIL


@pytest.mark.usefixtures("salmon")
def test_a_pickle_can_be_read_where_salmon_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(Forbidden(DETAIL))
    monkeypatch.delitem(sys.modules, "salmon.server")
    assert type(pickle.loads(pickled)) is Forbidden


def test_the_real_salmon_takes_every_error_for_its_own() -> None:
    printed = run_script(
        """
        import pickle
        import salmon.server
        from statestore.errors import BY_WIRE_CODE, StateStoreError
        from statestore.protocol import WrongServer, WrongStore

        for cls in [*BY_WIRE_CODE.values(), StateStoreError, WrongServer, WrongStore]:
            try:
                raise cls("sender at mx.example:7828\\n")
            except salmon.server.SMTPError as error:
                again = pickle.loads(pickle.dumps(error))
                assert type(again) is type(error) and again.detail == error.detail == "sender at mx.example:7828\\n"
                assert isinstance(error, cls) and str(error) == f"{error.code} {error.message}"
                print(cls.__name__, error)
        """
    )
    replies = dict(line.split(" ", 1) for line in printed.splitlines())
    assert replies.pop("TooLong") == "553 5.1.7 sender address too long"
    assert replies == {cls.__name__: TRY_AGAIN for cls in EVERY_CLASS if cls is not TooLong}


def test_the_client_never_imports_salmon() -> None:
    imported = run_script(
        """
        import importlib, pkgutil, sys
        import statestore

        class NoSalmon:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("salmon", "lamson"):
                    raise AssertionError(f"{name} is imported")

        sys.meta_path.insert(0, NoSalmon())
        for module in pkgutil.iter_modules(statestore.__path__, "statestore."):
            importlib.import_module(module.name)
        statestore.Unavailable("x")
        print(*sys.modules)
        """
    ).split()
    assert "statestore.routing" in imported
    assert "salmon" not in imported


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_needs_no_detail(cls: type[StateStoreError]) -> None:
    assert to_wire(cls()) == f"{cls.wire_code}: "
