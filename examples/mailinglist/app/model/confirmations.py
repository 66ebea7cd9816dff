"""Secrets that wait for their answer, where every process can see them.

Salmon's `ConfirmationStorage` is a dict of the process that asked: no other could verify the answer.
"""

import hmac

from salmon.confirm import ConfirmationEngine, ConfirmationStorage
from salmon.mail import MailRequest
from statestore import START, RemoteStorage


class SharedConfirmations(ConfirmationStorage):
    """A secret and the id of its pending mail are one state of the module `confirm:<target>`."""

    def __init__(self, store: RemoteStorage) -> None:
        self.store_of_secrets = store

    def get(self, target: str, from_address: str) -> tuple[str, str] | tuple[None, None]:
        state = self.store_of_secrets.get(f"confirm:{target}", from_address)
        if state == START:
            return None, None
        secret, pending_id = state.split(" ", 1)
        return secret, pending_id

    def store(self, target: str, from_address: str, expected_secret: str, pending_message_id: str) -> None:
        self.store_of_secrets.set(f"confirm:{target}", from_address, f"{expected_secret} {pending_message_id}")

    def delete(self, target: str, from_address: str) -> None:
        self.store_of_secrets.set(f"confirm:{target}", from_address, START)

    def clear(self) -> None:
        self.store_of_secrets.clear()


class Confirmations(ConfirmationEngine):
    """Salmon's engine, made fit for mail that is delivered twice because the first time was answered 451."""

    def register(self, target: str, message: MailRequest) -> str:
        _, replaced = self.storage.get(target, message.From)
        local_part: str = super().register(target, message)
        if replaced:
            self.delete_pending(replaced)
        return local_part

    def original(self, target: str, address: str, secret: str) -> MailRequest | None:
        """The mail that `secret` confirms. Unlike `verify`, leaves the secret valid: the caller's state is not
        stored yet. When it is, `cancel` forgets both.
        """
        expected, pending_id = self.storage.get(target, address)
        if expected is None or not hmac.compare_digest(expected, secret):
            return None
        return self.get_pending(pending_id)

    def delete_pending(self, pending_id: str) -> None:
        self.pending.mbox.discard(pending_id)  # no error if another delivery was here first
