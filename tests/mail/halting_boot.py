"""Boots the mailing list with a store that halts the process once, when its first question has been answered.

It connects to the test at HALT_PORT to say so, and goes on when the test closes that connection.
"""

import os
import socket
from collections.abc import Iterable

import statestore
from statestore.base import Pair, Sender


class HaltingStorage(statestore.RemoteStorage):
    halted = False

    def get(self, module: str, sender: Sender) -> str:
        state = super().get(module, sender)
        self._halt_once()
        return state

    def get_many(self, pairs: Iterable[Pair]) -> list[str]:
        states = super().get_many(pairs)
        self._halt_once()
        return states

    def _halt_once(self) -> None:
        if not self.halted:
            HaltingStorage.halted = True
            with socket.create_connection(("127.0.0.1", int(os.environ["HALT_PORT"]))) as test:
                test.recv(1)


statestore.RemoteStorage = HaltingStorage  # type: ignore[misc]

import config.boot  # noqa: E402, F401  # the application's own; it has to see the above
