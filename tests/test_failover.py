"""Several addresses of one store: a client goes on where one of them dies, or is something else."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from statestore import AsyncRemoteStorage, RemoteStorage, StateStorage, Unavailable
from tests.client.blocking import Blocking
from tests.client.servers import black_hole, refused, says
from tests.client.timing import READ_DEADLINE, takes, within
from tests.daemon import Daemon
from tests.proxy import Proxy

HTTP = b"HTTP/1.1 400 Bad Request\r\n\r\n"

Client = Callable[..., AbstractContextManager[StateStorage]]


@pytest.fixture(params=["threads", "coroutines"])
def client(request: pytest.FixtureRequest) -> Client:
    def make(*addresses: str, **settings: Any) -> AbstractContextManager[StateStorage]:
        settings |= {"address": ",".join(addresses), "namespace": request.node.name}
        return RemoteStorage(**settings) if request.param == "threads" else Blocking(AsyncRemoteStorage(**settings))

    return make


@pytest.fixture
def first(shared_daemon: Daemon) -> Iterator[Proxy]:
    with Proxy(shared_daemon.address) as proxy:
        yield proxy


@pytest.fixture
def second(shared_daemon: Daemon) -> Iterator[Proxy]:
    with Proxy(shared_daemon.address) as proxy:
        yield proxy


def die(proxy: Proxy) -> None:
    proxy.stop_accepting()
    proxy.cut()


def test_a_client_goes_on_at_the_other_address_when_its_own_dies(client: Client, first: Proxy, second: Proxy) -> None:
    with client(first.address, second.address) as storage:
        for number, (dies, other) in enumerate([(first, second), (second, first), (first, second)]):
            storage.set("m", "a", str(number))
            before = other.connections
            die(dies)
            assert storage.compare_and_set("m", "a", str(number), "SWAPPED") == (True, str(number))
            assert storage.get("m", "a") == "SWAPPED"
            assert other.connections > before
            dies.accept_again()


def test_a_client_goes_on_at_the_other_address_when_its_own_falls_silent(
    client: Client, first: Proxy, second: Proxy
) -> None:
    with client(first.address, second.address, deadline=15.0) as storage:
        storage.set("m", "a", "A")
        first.hold()
        assert storage.get("m", "a") == "A"
        connections = first.connections
        second.cut()
        storage.set("m", "a", "B")
        assert first.connections == connections, "it answered last at the second"


def test_an_address_that_is_down_costs_its_time_once(client: Client, second: Proxy) -> None:
    with black_hole() as hole, client(hole, second.address, deadline=4.0) as storage:
        storage.set("m", "a", "A")
        second.cut()
        with within(1.0):  # its share of a call's time
            assert storage.get("m", "a") == "A"


def test_something_else_at_one_address_does_not_matter_where_the_store_is_at_another(
    client: Client, second: Proxy
) -> None:
    with says(HTTP) as http, client(http.address, second.address) as storage:
        storage.set("m", "a", "A")
        assert storage.get("m", "a") == "A"


def test_another_store_ends_the_call_wherever_ours_may_be(
    client: Client, first: Proxy, second: Proxy, tmp_path: Path
) -> None:
    with Daemon(tmp_path) as another, client(first.address, another.address, second.address) as storage:
        storage.set("m", "a", "A")
        die(first)
        with within(2.0), pytest.raises(Unavailable, match=r"the store \S+ answers where \S+ was expected"):
            storage.get("m", "a")
        assert second.connections == 0


def test_where_something_else_is_at_all_addresses_each_is_told_at_once(client: Client) -> None:
    with says(HTTP) as http, says(b"220 mx.example ESMTP\r\n") as smtp:
        with client(http.address, smtp.address) as storage, within(2.0), pytest.raises(Unavailable) as caught:
            storage.get("m", "a")
        assert f"{http.address}: what answers is not statestored but an HTTP server; " in caught.value.detail
        assert f"{smtp.address}: what answers is not statestored but an SMTP or LMTP server" in caught.value.detail


def test_where_one_address_may_come_back_it_is_waited_for(client: Client) -> None:
    away = refused()
    with says(HTTP) as http, client(http.address, away, deadline=READ_DEADLINE) as storage:
        with takes(READ_DEADLINE), pytest.raises(Unavailable) as caught:
            storage.get("m", "a")
        assert f"{http.address}: what answers is not statestored but an HTTP server; " in caught.value.detail
        assert f"{away}: connection refused" in caught.value.detail
