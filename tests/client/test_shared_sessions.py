"""Another client is in a client's session, as after a copy of its process or machine: it leaves, and loses nothing."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest

from statestore import AsyncRemoteStorage, RemoteStorage, StateStorage
from statestore.errors import Unavailable, Uncertain
from tests.client.blocking import Blocking
from tests.client.servers import WELCOME, answers

REUSED = "number_reused: 1 is the number of another write in this session"
PASSED = "uncertain: the client has had its answer to everything before number 9"
Client = Callable[..., AbstractContextManager[StateStorage]]


def blocking(address: str, **settings: Any) -> AbstractContextManager[StateStorage]:
    return RemoteStorage(address, **settings)


def asynchronous(address: str, **settings: Any) -> AbstractContextManager[StateStorage]:
    return Blocking(AsyncRemoteStorage(address, **settings))


both_clients = pytest.mark.parametrize("client", [blocking, asynchronous])


class Sessions:
    """A server. `shared`: whether all writes are refused with `refusal`, when so many sessions have been given out.

    hellos: which session each asked for; refused, applied: state and options of the writes.
    """

    def __init__(self, refusal: str, shared: Callable[[int], bool] = lambda session: session == 1) -> None:
        self._refusal = refusal
        self._is_shared = shared
        self._lock = threading.Lock()
        self._given = 0
        self.hellos: list[int] = []
        self.refused: list[dict[str, Any]] = []
        self.applied: list[dict[str, Any]] = []

    def answer(self, method: str, params: list[Any]) -> tuple[str | None, Any]:
        with self._lock:
            if method == "hello":
                return None, WELCOME | {"features": ["sessions"], "session": self._session(params[0]["session"])}
            if method == "get":
                return None, "A"
            is_refused = self._is_shared(self._given)
            (self.refused if is_refused else self.applied).append({"state": params[2], **params[-1]})
            return self._refusal if is_refused else None, None

    def _session(self, asked: int) -> int:
        self.hellos.append(asked)
        if asked == 0:
            self._given += 1
        return asked or self._given


@both_clients
@pytest.mark.parametrize("refusal", [REUSED, PASSED])
def test_what_was_refused_is_repeated_in_a_new_session(client: Client, refusal: str) -> None:
    """It was sent once only: so it was not applied, whichever of the two is said."""
    sessions = Sessions(refusal)
    with answers(sessions.answer) as server, client(server.address) as storage:
        storage.set("m", "a", "A")
        storage.set("m", "a", "B")
    assert sessions.hellos == [0, 0]
    assert [write["state"] for write in sessions.refused] == ["A"]
    assert [write["state"] for write in sessions.applied] == ["A", "B"]
    first, second = [write["seq"] for write in sessions.applied]
    assert second > first > sessions.refused[0]["seq"]  # no number is given twice


@both_clients
def test_reading_goes_on_where_it_was(client: Client) -> None:
    sessions = Sessions(REUSED)
    with answers(sessions.answer) as server, client(server.address) as storage:
        for _ in range(3):
            storage.set("m", "a", "A")
            assert storage.get("m", "a") == "A"
    assert sessions.hellos == [0, 0]


@both_clients
def test_many_at_once_leave_the_session_once(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    sessions = Sessions(REUSED)
    with answers(sessions.answer) as server, client(server.address) as storage, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: storage.set("m", "a", str(number)), range(40)))
    assert sorted(int(write["state"]) for write in sessions.applied) == list(range(40))
    assert len({write["seq"] for write in sessions.applied}) == 40
    assert caplog.text.count("another client writes in the session of this one") == 1


@both_clients
def test_a_server_that_always_says_so_is_unavailable_in_the_end(client: Client) -> None:
    sessions = Sessions(REUSED, shared=lambda _: True)
    with (
        answers(sessions.answer) as server,
        client(server.address, write_deadline=0.5) as storage,
        pytest.raises(Unavailable, match="is the number of another write"),
    ):
        storage.set("m", "a", "A")
    assert 2 <= len(sessions.refused) <= 30  # with pauses


@both_clients
def test_what_may_have_been_applied_before_is_uncertain(client: Client) -> None:
    """The first copy had no answer; what follows goes by another session."""
    sessions, lost = Sessions(PASSED), []

    def answer(method: str, params: list[Any]) -> tuple[str | None, Any]:
        if method == "set" and not lost:
            lost.append(params)
            raise ConnectionError
        return sessions.answer(method, params)

    with answers(answer) as server, client(server.address) as storage:
        with pytest.raises(Uncertain, match="may have been applied"):
            storage.set("m", "a", "A")
        storage.set("m", "a", "B")
    assert sessions.hellos == [0, 1, 0]
    assert [write["state"] for write in sessions.applied] == ["B"]


@both_clients
def test_a_number_of_another_was_never_ours_even_if_it_was_sent_before(client: Client) -> None:
    sessions, lost = Sessions(REUSED), []

    def answer(method: str, params: list[Any]) -> tuple[str | None, Any]:
        if method == "set" and not lost:
            lost.append(params)
            raise ConnectionError
        return sessions.answer(method, params)

    with answers(answer) as server, client(server.address) as storage:
        storage.set("m", "a", "A")
    assert sessions.hellos == [0, 1, 0]
    assert [write["state"] for write in sessions.applied] == ["A"]
