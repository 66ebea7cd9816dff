"""Copies and pickles: new clients with the settings of the first, and what does not go with them."""

import copy
import pickle
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from statestore import AsyncRemoteStorage, RemoteStorage, Unavailable
from statestore.address import parse_addresses
from tests.certificates import Authority
from tests.client.servers import says
from tests.daemon import Daemon

TOKEN = "a-secret-of-the-site"
CLIENTS = pytest.mark.parametrize("cls", [RemoteStorage, AsyncRemoteStorage])

Client = RemoteStorage | AsyncRemoteStorage


def by_pickle(client: Any) -> Any:
    return pickle.loads(pickle.dumps(client))


WAYS: dict[str, Callable[[Any], Any]] = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": by_pickle}
EACH_WAY = pytest.mark.parametrize("duplicate", WAYS.values(), ids=WAYS)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that asks for a token."""
    with Daemon(tmp_path_factory.mktemp("guarded"), environment={"STATESTORED_TOKEN": TOKEN}) as daemon:
        yield daemon


@EACH_WAY
@CLIENTS
def test_a_copy_has_the_settings_and_nothing_else_in_common(cls: type[Client], duplicate: Callable[[Any], Any]) -> None:
    client = cls("there:1", namespace="shop", deadline=1, write_deadline=2, store_id="s1")
    client._store.session.joins(0, 77)
    client._store.session.number("a write")
    clone = duplicate(client)
    assert type(clone) is cls
    assert clone._settings == client._settings
    assert repr(clone) == repr(client)
    assert clone._store.session.id == 0
    assert vars(clone).keys() == vars(client).keys()
    shared = [name for name, value in vars(client).items() if vars(clone)[name] is value]
    assert {name for name in shared if name not in ("_patience", "_is_in_haste", "_closings")} <= {
        "_settings",
        "_tls",
        "_loop",
        "_connection",
        "_attempt",
    }


@EACH_WAY
def test_a_copy_of_a_client_that_is_connected_asks_on_its_own(
    shared_daemon: Daemon, namespace: str, duplicate: Callable[[Any], Any]
) -> None:
    with RemoteStorage(shared_daemon.address, namespace=namespace) as storage:
        storage.set("m", "a", "A")
        with duplicate(storage) as clone:
            assert clone.get("m", "a") == "A"
            for number in range(10):
                storage.set("m", f"of the first {number}", "A")
                clone.set("m", f"of the copy {number}", "A")
            assert storage._store.session.id != clone._store.session.id
            assert storage.count("m") == 21


@EACH_WAY
async def test_a_copy_of_a_client_of_coroutines_asks_on_its_own(
    shared_daemon: Daemon, namespace: str, duplicate: Callable[[Any], Any]
) -> None:
    async with AsyncRemoteStorage(shared_daemon.address, namespace=namespace) as storage:
        await storage.set("m", "a", "A")
        async with duplicate(storage) as clone:
            for number in range(10):
                await storage.set("m", f"of the first {number}", "A")
                await clone.set("m", f"of the copy {number}", "A")
            assert await storage.count("m") == 21


@EACH_WAY
@CLIENTS
def test_a_copy_goes_on_with_the_store_that_has_answered(cls: type[Client], duplicate: Callable[[Any], Any]) -> None:
    """To another one every sender would be unknown."""
    client = cls("there:1")
    client._store._ids["of"] = "s1"
    assert duplicate(client)._settings.store_id == "s1"
    assert duplicate(client)._store.store_id == "s1"


def test_another_store_does_not_answer_a_copy(shared_daemon: Daemon, daemon: Daemon) -> None:
    with RemoteStorage(shared_daemon.address) as storage:
        storage.ping()
        storage._settings = replace(storage._settings, address=parse_addresses(daemon.address))
        with by_pickle(storage) as clone, pytest.raises(Unavailable, match="was expected"):
            clone.get("m", "a")


# The token


@CLIENTS
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_does_not_hold_the_token(cls: type[Client], protocol: int) -> None:
    assert TOKEN.encode() not in pickle.dumps(cls("there:1", token=TOKEN), protocol)


def test_the_token_is_that_of_the_environment_where_it_is_unpickled(
    guarded: Daemon, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RemoteStorage(guarded.address, namespace=namespace, token=TOKEN) as storage:
        storage.ping()
        pickled = pickle.dumps(storage)
    monkeypatch.setenv("STATESTORE_TOKEN", TOKEN)
    with pickle.loads(pickled) as clone:
        clone.set("m", "a", "A")
        assert clone.get("m", "a") == "A"


@CLIENTS
@pytest.mark.parametrize("where", ["argument", "environment"])
@pytest.mark.parametrize("there", [None, ""])
def test_without_a_token_in_the_environment_it_cannot_be_unpickled(
    cls: type[Client], where: str, there: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "environment":
        monkeypatch.setenv("STATESTORE_TOKEN", TOKEN)
    pickled = pickle.dumps(cls("there:1", token=TOKEN if where == "argument" else None))
    monkeypatch.delenv("STATESTORE_TOKEN", raising=False)
    if there is not None:
        monkeypatch.setenv("STATESTORE_TOKEN", there)
    with pytest.raises(ValueError, match=r"^token: .*set STATESTORE_TOKEN where the client is unpickled$"):
        pickle.loads(pickled)


@pytest.mark.parametrize(("token", "expected"), [(None, TOKEN), ("", "")])
def test_a_client_without_a_token_takes_that_of_the_environment_unless_it_was_told_otherwise(
    token: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any client does."""
    monkeypatch.delenv("STATESTORE_TOKEN", raising=False)
    pickled = pickle.dumps(RemoteStorage("there:1", token=token))
    assert pickle.loads(pickled)._settings.token == token
    monkeypatch.setenv("STATESTORE_TOKEN", TOKEN)
    assert pickle.loads(pickled)._settings.token == expected


@CLIENTS
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_copy_in_the_same_process_has_the_token(cls: type[Client], duplicate: Callable[[Any], Any]) -> None:
    client = cls("there:1", token=TOKEN)
    assert duplicate(client)._settings.token == TOKEN
    assert duplicate([client])[0]._settings.token == TOKEN


# Certificates


@CLIENTS
def test_a_context_goes_with_a_copy_and_not_with_a_pickle(cls: type[Client]) -> None:
    context = ssl.create_default_context()
    client = cls("there:1", tls=context)
    assert copy.copy(client)._tls is copy.deepcopy(client)._tls is context
    with pytest.raises(TypeError, match=r"^tls: an SSLContext cannot be pickled; give the path"):
        pickle.dumps(client)


@EACH_WAY
@CLIENTS
def test_paths_go_with_every_copy(cls: type[Client], duplicate: Callable[[Any], Any], authority: Authority) -> None:
    own = authority.issue("client")
    client = cls("there:1", tls=authority.certificate, tls_cert=own.certificate, tls_key=own.key)
    clone = duplicate(client)
    assert clone._settings == client._settings
    assert isinstance(clone._tls, ssl.SSLContext)


# Subclasses, and what holds a client


class Shop(RemoteStorage):
    def __init__(self, name: str, orders: list[str]) -> None:
        self.name = name
        super().__init__("there:1", namespace=name)
        self.orders = orders


@EACH_WAY
def test_what_a_subclass_adds_is_copied_as_usual(duplicate: Callable[[Any], Any]) -> None:
    shop = Shop("shop", ["tea"])
    clone = duplicate(shop)
    assert type(clone) is Shop
    assert (clone.name, clone.orders, clone._settings.namespace) == ("shop", ["tea"], "shop")
    assert (clone.orders is shop.orders) == (duplicate is copy.copy)


def test_two_names_of_one_client_are_those_of_one_copy() -> None:
    storage = RemoteStorage("there:1")
    for duplicate in (copy.deepcopy, by_pickle):
        one, other = duplicate([storage, storage])
        assert one is other is not storage


def test_a_client_that_contains_itself_can_be_copied() -> None:
    shop = Shop("shop", [])
    shop.itself = shop  # type: ignore[attr-defined]
    for duplicate in (copy.deepcopy, by_pickle):
        clone = duplicate(shop)
        assert clone.itself is clone is not shop


def test_a_copy_asks_nobody() -> None:
    with says(b"") as server:
        storage = RemoteStorage(server.address)
        for duplicate in WAYS.values():
            duplicate(storage)
        assert server.connections == 0
