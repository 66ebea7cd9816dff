"""The mail server in front of the application: delivers by LMTP, and again later what was answered 4xx."""

import smtplib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from email import policy
from email.message import EmailMessage
from typing import NamedTuple

ATTEMPT_TIMEOUT = 90.0  # seconds; longer than the application waits for its store
RETRY_INTERVAL = 1.0
QUEUE_LIFETIME = 30.0  # how long a mail is tried; in earnest it is days


class Reply(NamedTuple):
    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Mta:
    """Used by several threads, each of which delivers one mail at a time.

    `on_reply` is called with every reply, those that put a mail off included.
    """

    def __init__(self, ports: Sequence[int], on_reply: Callable[[Reply], None] = lambda _: None) -> None:
        self._ports = ports
        self._on_reply = on_reply
        self._flushed = threading.Condition()
        self.replies: Counter[int] = Counter()  # protected by _flushed
        self._retrying = True  # protected by _flushed

    def deliver(self, hop: int, sender: str, recipient: str, message: EmailMessage) -> Reply:
        """The reply that settles it; the next attempt at a deferred mail goes to the next process."""
        give_up = time.monotonic() + QUEUE_LIFETIME
        while True:
            reply = self.attempt(hop, sender, recipient, message)
            with self._flushed:
                if not 400 <= reply.code <= 499 or not self._retrying or time.monotonic() > give_up:
                    return reply
                self._flushed.wait(RETRY_INTERVAL)
            hop += 1

    def attempt(self, hop: int, sender: str, recipient: str, message: EmailMessage) -> Reply:
        """One LMTP transaction with process number `hop`, counted round and round."""
        port = self._ports[hop % len(self._ports)]
        reply = _transaction(port, sender, recipient, message)
        with self._flushed:
            self.replies[reply.code] += 1
        self._on_reply(reply)
        return reply

    def stop_retrying(self) -> None:
        """From now on the first reply settles it: nothing will be better later."""
        with self._flushed:
            self._retrying = False
            self._flushed.notify_all()

    def flush(self) -> None:
        """Try everything that waits at once (what `postqueue -f` does)."""
        with self._flushed:
            self._flushed.notify_all()


def _transaction(port: int, sender: str, recipient: str, message: EmailMessage) -> Reply:
    with smtplib.LMTP("127.0.0.1", port, local_hostname="mta.example", timeout=ATTEMPT_TIMEOUT) as lmtp:
        try:
            lmtp.sendmail(sender, recipient, message.as_bytes(policy=policy.SMTP))
        except smtplib.SMTPResponseException as refused:
            text = refused.smtp_error
            return Reply(refused.smtp_code, text.decode() if isinstance(text, bytes) else text)
    return Reply(250, "")
