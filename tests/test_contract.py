"""Every store of ours keeps the same contract: in memory, in a shelf, remote for threads, and for coroutines (R1)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from statestore import AsyncRemoteStorage, MemoryStorage, RemoteStorage, ShelveStorage
from statestore.testing import StorageContract
from tests.client.blocking import Blocking
from tests.daemon import Daemon


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    def storage(self) -> MemoryStorage:
        return MemoryStorage()


class TestShelveStorage(StorageContract):
    random_runs = 5  # each call opens, writes and closes a file

    @pytest.fixture
    def storage(self, tmp_path: Path) -> ShelveStorage:
        return ShelveStorage(tmp_path / "states")


class TestRemoteStorageOverTcp(StorageContract):
    @pytest.fixture
    def storage(self, store: RemoteStorage) -> RemoteStorage:
        return store


class TestRemoteStorageOverUnixSocket(StorageContract):
    @pytest.fixture
    def storage(self, shared_daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[RemoteStorage]:
        with RemoteStorage(shared_daemon.unix_address, namespace=request.node.name) as storage:
            yield storage


class TestAsyncRemoteStorage(StorageContract):
    @pytest.fixture
    def storage(self, shared_daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Blocking]:
        with Blocking(AsyncRemoteStorage(shared_daemon.address, namespace=f"async {request.node.name}")) as storage:
            yield storage
