"""What subscribers do, one mail after the other, and how they know that it worked: by the mail that they get.

Each mail of a conversation goes to another process than the one before.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import make_msgid
from enum import StrEnum

from examples.demo.mta import Mta, Reply
from examples.demo.sink import Mail, Sink

HOST = "lists.example"
LISTS_EACH = 2  # lists that one subscriber is on: a bounce must end both conversations
CONVERSATIONS_A_LIST = 10  # every post goes to so many
SEED = 7828


class Ending(StrEnum):
    """What a subscriber does last; the value is the state that this leaves."""

    STAYS = "POSTING"
    LEAVES = "START"
    BOUNCES = "BOUNCING"


@dataclass
class Conversation:
    """`failure` is the first thing that went wrong; nothing more is sent after it."""

    subscriber: str
    list_name: str
    ending: Ending
    first_hop: int
    request_id: str = ""
    steps: list[str] = field(default_factory=list)
    failure: str = ""

    @property
    def address(self) -> str:
        return f"{self.list_name}@{HOST}"


def make_conversations(count: int) -> list[Conversation]:
    """The same ones each time. `count` is a multiple of `LISTS_EACH`."""
    kinds = itertools.cycle([Ending.STAYS, Ending.LEAVES, Ending.STAYS, Ending.BOUNCES])
    endings = list(itertools.islice(kinds, count // LISTS_EACH))
    random.Random(SEED).shuffle(endings)  # else all of a list's subscribers may end alike
    lists = max(LISTS_EACH, count // CONVERSATIONS_A_LIST)
    return [
        Conversation(
            subscriber=f"person{number // LISTS_EACH:03}@home.example",
            list_name=f"list{number % lists:02}",
            ending=endings[number // LISTS_EACH],
            first_hop=number,
        )
        for number in range(count)
    ]


class Correspondence:
    """All conversations, step by step; within a step, many at a time."""

    def __init__(self, conversations: list[Conversation], mta: Mta, sink: Sink, workers: int) -> None:
        self.conversations = conversations
        self._mta = mta
        self._sink = sink
        self._workers = workers

    def take(self, step: Callable[[Conversation], str]) -> None:
        """Do `step` in every conversation that has not failed. It returns what went wrong, '' if nothing did."""

        def one(conversation: Conversation) -> None:
            conversation.failure = step(conversation)
            if not conversation.failure:
                conversation.steps.append(step.__name__)

        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(one, self._going()))

    def subscribe(self, conversation: Conversation) -> str:
        message = _mail(conversation, "subscribe")
        conversation.request_id = message["Message-ID"]
        reply = self._send(conversation, f"{conversation.list_name}-subscribe@{HOST}", message)
        return _unless(self._confirmations(conversation), reply, "no request to confirm")

    def confirm(self, conversation: Conversation) -> str:
        newest = self._confirmations(conversation)[-1]
        reply = self._send(conversation, newest.message["Reply-To"], _mail(conversation, newest.message["Subject"]))
        # A welcome refers to the request, which waited among the pending mail.
        return _unless(self._answer(conversation, "Welcome", conversation.request_id), reply, "no welcome")

    def post(self, conversation: Conversation) -> str:
        members = {other.subscriber for other in self._going() if other.list_name == conversation.list_name}
        message = _mail(conversation, "Good morning")
        reply = self._send(conversation, conversation.address, message)
        reached = Counter(mail.recipient for mail in self._sink.copies(message["Message-ID"]))
        everybody_once = reached == Counter(members)
        return _unless(everybody_once, reply, f"{reached.total()} copies to {len(members)} subscribers")

    def end(self, conversation: Conversation) -> str:
        match conversation.ending:
            case Ending.STAYS:
                return ""
            case Ending.LEAVES:
                message = _mail(conversation, "unsubscribe")
                reply = self._send(conversation, f"{conversation.list_name}-unsubscribe@{HOST}", message)
                goodbye = self._answer(conversation, "You have left", message["Message-ID"])
                return _unless(goodbye, reply, "no goodbye")
            case Ending.BOUNCES:
                copies = [mail for mail in self._to(conversation) if mail.message["List-Id"]]
                message = EmailMessage()
                message["From"] = "Mail Delivery System <MAILER-DAEMON@home.example>"
                message["Subject"] = "Undelivered mail returned to sender"
                # Its envelope's sender is empty; whom it is about stands in the address that it goes to.
                reply = self._mta.deliver(self._hop(conversation), "", copies[-1].sender, message)
                return _unless(reply.code == 250, reply, "not taken")

    def _going(self) -> list[Conversation]:
        return [conversation for conversation in self.conversations if not conversation.failure]

    def _send(self, conversation: Conversation, recipient: str, message: EmailMessage) -> Reply:
        return self._mta.deliver(self._hop(conversation), conversation.subscriber, recipient, message)

    def _hop(self, conversation: Conversation) -> int:
        return conversation.first_hop + len(conversation.steps)

    def _to(self, conversation: Conversation) -> list[Mail]:
        """What the subscriber got about this list."""
        return [
            mail
            for mail in self._sink.to(conversation.subscriber)
            if mail.sender.startswith(f"{conversation.list_name}-bounce-")
        ]

    def _confirmations(self, conversation: Conversation) -> list[Mail]:
        return [mail for mail in self._to(conversation) if "-confirm-" in (mail.message["Reply-To"] or "")]

    def _answer(self, conversation: Conversation, subject: str, message_id: str) -> bool:
        return any(
            mail.message["Subject"].startswith(subject) and mail.message["In-Reply-To"] == message_id
            for mail in self._to(conversation)
        )


def _mail(conversation: Conversation, subject: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = conversation.subscriber
    message["To"] = conversation.address
    message["Subject"] = subject
    message["Message-ID"] = make_msgid(domain="home.example")
    message.set_content("Hello.\n")
    return message


def _unless(evidence: object, reply: Reply, missing: str) -> str:
    if reply.code != 250:
        return str(reply)
    return "" if evidence else missing
