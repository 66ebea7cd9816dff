"""Every store keeps the same contract: in memory, in a shelf, and remote, for threads and for coroutines (R1)."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from statestore import AsyncRemoteStorage, MemoryStorage, RemoteStorage, ShelveStorage, StateStorage
from statestore.testing import StorageContract
from tests.client.blocking import Blocking
from tests.daemon import Daemon

MANY = 100_000
ALPHABET = "ab\0 @.é列📮\ud83d\udcee\udfff"


def many_pairs(count: int) -> list[tuple[str, str | None]]:
    """All different; None, '', lone surrogates and NULs among them."""
    draw = Random(1)  # the same each time
    texts: set[str | None] = {None, "", "None", "\0", "\ud83d"}
    while len(texts) < count // 2:
        texts.add("".join(draw.choices(ALPHABET, k=draw.randrange(1, 24))))
    return [(module, sender) for sender in sorted(texts, key=repr) for module in ("", "app\0\ud83d")]


class Contract(StorageContract):
    many = MANY

    def test_many_keys_have_each_a_state_of_its_own(self, storage: StateStorage) -> None:
        pairs = many_pairs(self.many)
        assert len(set(pairs)) == self.many
        for start in range(0, self.many, 1000):
            storage.set_many([(*pair, f"S{start + i}") for i, pair in enumerate(pairs[start : start + 1000])])
        found = [
            state for start in range(0, self.many, 1000) for state in storage.get_many(pairs[start : start + 1000])
        ]
        assert found == [f"S{number}" for number in range(self.many)]
        assert storage.count() == self.many


class TestMemoryStorage(Contract):
    @pytest.fixture
    def storage(self) -> MemoryStorage:
        return MemoryStorage()


class TestShelveStorage(Contract):
    random_runs = 5  # each call opens, writes and closes a file
    many = 1000

    @pytest.fixture
    def storage(self, tmp_path: Path) -> ShelveStorage:
        return ShelveStorage(tmp_path / "states")


class TestRemoteStorageOverTcp(Contract):
    @pytest.fixture
    def storage(self, store: RemoteStorage) -> RemoteStorage:
        return store


class TestRemoteStorageOverUnixSocket(Contract):
    @pytest.fixture
    def storage(self, shared_daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[RemoteStorage]:
        with RemoteStorage(shared_daemon.unix_address, namespace=request.node.name) as storage:
            yield storage


class TestAsyncRemoteStorage(Contract):
    @pytest.fixture
    def storage(self, shared_daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Blocking]:
        with Blocking(AsyncRemoteStorage(shared_daemon.address, namespace=f"async {request.node.name}")) as storage:
            yield storage
