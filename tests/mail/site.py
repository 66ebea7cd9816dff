"""The mailing list of `examples/` on a machine of its own: a store, processes of Salmon, and where their mail goes."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from email.message import EmailMessage
from pathlib import Path

from examples.demo.conversations import HOST, Conversation
from examples.demo.mta import Mta, Reply
from examples.demo.processes import port_of, start_mailinglist
from examples.demo.sink import Mail, Sink

from statestore import RemoteStorage
from tests.daemon import Daemon

ACCEPTED = Reply(250, "")
TRY_AGAIN = Reply(451, "4.3.0 state store unavailable, try again later")


class Site:
    """A sink, a daemon, and as many processes of the mailing list as are started. All of them end with `stack`."""

    def __init__(self, stack: ExitStack, directory: Path, daemon: Daemon, token: str | None = None) -> None:
        self._stack = stack
        self.directory = directory
        self._settings = {"STATESTORE_TOKEN": token} if token else {}
        self.sink = stack.enter_context(Sink())
        self.daemon = stack.enter_context(daemon)
        self.store = stack.enter_context(RemoteStorage(daemon.unix_address, token=token))

    def start_application(self, name: str, settings: Mapping[str, str], boot: str = "config.boot") -> int:
        """The port on which it takes mail. `settings` are those of the application, from its environment."""
        settings = {"STATESTORE_ADDRESS": self.daemon.address, **self._settings, **settings}
        program = start_mailinglist(self.directory, name, relay_port=self.sink.port, boot=boot, **settings)
        self._stack.enter_context(program)
        return port_of(program.wait_until_listening())

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.daemon.stop()
        try:
            yield
        finally:
            self.daemon.start()

    def state(self, list_name: str, sender: str) -> str:
        return self.store.get(f"lists:{list_name}", sender)

    def confirm_address(self, sender: str) -> str:
        """Where the newest mail to `sender` wants its answer."""
        return str(self.sink.to(sender)[-1].message["Reply-To"])

    def subscribe(self, mta: Mta, sender: str, list_name: str) -> None:
        assert send(mta, sender, f"{list_name}-subscribe") == ACCEPTED
        assert send(mta, sender, self.confirm_address(sender)) == ACCEPTED
        assert self.state(list_name, sender) == "POSTING"

    def lost(self) -> list[str]:
        """Mail that was answered 250 and that no handler has dealt with, and senders whom a failure has put aside."""
        parked = [f"parked: {path.name}" for path in self.directory.glob("run/undeliverable/new/*")]
        return parked + [f"{module} in ERROR" for module, state in self.store.counts() if state == "ERROR"]

    def faults(self, conversations: list[Conversation]) -> list[str]:
        """All that is not as it would be if the store had never been away."""
        failed = [f"{each.subscriber}, {each.list_name}: {each.failure}" for each in conversations if each.failure]
        strayed = [
            f"{each.subscriber}, {each.list_name}: ended in {state}, not in {each.ending}"
            for each in conversations
            if not each.failure and (state := self.state(each.list_name, each.subscriber)) != each.ending
        ]
        return failed + strayed + self.lost() + self._repeated({each.subscriber for each in conversations})

    def _repeated(self, subscribers: set[str]) -> list[str]:
        """Mail that somebody got twice: its handler ran to the end, and again."""
        return [
            f"{subscriber} got {count} times: {about}"
            for subscriber in sorted(subscribers)
            for about, count in Counter(map(_what, self.sink.to(subscriber))).items()
            if count > 1
        ]


def send(mta: Mta, sender: str, local_part: str, process: int = 0, **headers: str) -> Reply:
    """Delivered again for as long as it is answered 4xx, as on a machine that is slower than the deadlines."""
    return mta.deliver(process, sender, _recipient(local_part), _message(headers))


def try_once(mta: Mta, sender: str, local_part: str, process: int = 0, **headers: str) -> Reply:
    return mta.attempt(process, sender, _recipient(local_part), _message(headers))


def _recipient(local_part: str) -> str:
    return local_part if "@" in local_part else f"{local_part}@{HOST}"


def _message(headers: dict[str, str]) -> EmailMessage:
    message = EmailMessage()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return message


def _what(mail: Mail) -> tuple[str, str, str]:
    """The list, the subject, and the mail that it is or answers."""
    return mail.sender, mail.message["Subject"], mail.message["In-Reply-To"] or mail.message["Message-ID"]
