"""Copies and pickles of a client: each is a new client with the same settings, in a session of its own.

Two clients in one session would give the same numbers to different writes, and the daemon would take the one for a
repetition of the other.
"""

import copy
from dataclasses import replace
from typing import Any, Self, TypeVar

from statestore.settings import Settings
from statestore.store import Store


class Copyable:
    """What `RemoteStorage` and `AsyncRemoteStorage` have in common: they are made from their settings alone.

    Attributes that a subclass adds are copied as those of any object are; its `__init__` is not called for a copy.
    """

    _settings: Settings
    _store: Store

    def _set_up(self, settings: Settings) -> None:
        """Set all attributes of a client that has not been used yet."""
        raise NotImplementedError

    def __copy__(self) -> Self:
        clone = new_client(type(self), self._settings_of_copy())
        vars(clone).update(self._added_to(clone))
        return clone

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = clone = new_client(type(self), self._settings_of_copy())
        vars(clone).update(copy.deepcopy(self._added_to(clone), memo))
        return clone

    def __reduce__(self) -> tuple[Any, ...]:
        settings = self._settings_of_copy()
        bare = new_client(type(self), replace(settings, tls=None, tls_cert=None, tls_key=None))
        return new_client, (type(self), settings), self._added_to(bare)

    def _settings_of_copy(self) -> Settings:
        """The settings, with the store that has answered: in another one every sender would be unknown."""
        return replace(self._settings, store_id=self._store.store_id)

    def _added_to(self, client: Self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in vars(client)}


Client = TypeVar("Client", bound=Copyable)


def new_client(cls: type[Client], settings: Settings) -> Client:
    client = cls.__new__(cls)
    client._set_up(settings)
    return client
