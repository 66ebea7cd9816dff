"""The outside world: an SMTP server that takes all mail and keeps it."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from types import TracebackType
from typing import Self

from aiosmtpd.smtp import SMTP, Envelope, Session

START_TIMEOUT = 10.0


@dataclass(frozen=True)
class Mail:
    sender: str
    recipient: str
    message: EmailMessage


@dataclass
class Sink:
    """`port` is valid inside of the context. A mail can be found here before its sender sees it accepted."""

    before_accepting: Callable[[Mail], None] = lambda _: None
    port: int = 0
    # Only ever added to, in the sink's thread.
    _by_recipient: dict[str, list[Mail]] = field(default_factory=lambda: defaultdict(list))
    _by_message_id: dict[str, list[Mail]] = field(default_factory=lambda: defaultdict(list))

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(START_TIMEOUT)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def to(self, recipient: str) -> list[Mail]:
        """What `recipient` has got so far, the oldest first."""
        return list(self._by_recipient.get(recipient, ()))

    def copies(self, message_id: str) -> list[Mail]:
        return list(self._by_message_id.get(message_id, ()))

    # aiosmtpd finds it by its name.
    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, _class=EmailMessage, policy=policy.default)
        for recipient in envelope.rcpt_tos:
            mail = Mail(envelope.mail_from or "", recipient, message)
            self.before_accepting(mail)
            self._by_recipient[recipient].append(mail)
            self._by_message_id[message["Message-ID"]].append(mail)
        return "250 2.0.0 taken"

    async def _listen(self) -> asyncio.Server:
        def connection() -> SMTP:
            return SMTP(self, hostname="sink.example", loop=self._loop)

        return await self._loop.create_server(connection, "127.0.0.1", 0)
