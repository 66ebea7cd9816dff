"""Real Salmon, a real daemon, real mail: what the LMTP client is told when the store cannot be asked.

Salmon answers 250 where a store raises an ordinary exception: the mail would be lost, and its sender in ERROR.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from email.message import EmailMessage
from pathlib import Path

import pytest
from examples.demo.mta import Mta, Reply
from examples.demo.processes import Daemon, port_of, start_mailinglist
from examples.demo.sink import Mail, Sink

from statestore import START, RemoteStorage

DEADLINES = {"STATE_DEADLINE": "0.5", "STATE_WRITE_DEADLINE": "0.8"}
TRY_AGAIN = Reply(451, "4.3.0 state store unavailable, try again later")
ACCEPTED = Reply(250, "")


class Site:
    """A sink, a daemon and one process of the mailing list."""

    def __init__(self, stack: ExitStack, directory: Path, mode: str) -> None:
        self._stack = stack
        self._directory = directory
        self._mode = mode
        self.sink = stack.enter_context(Sink())
        self.daemon = stack.enter_context(Daemon(directory))
        self.store = stack.enter_context(RemoteStorage(self.daemon.address))

    def start_application(self, name: str, address: str) -> Mta:
        settings = {"STATE_STORE": self._mode, "STATE_STORE_ADDRESS": address, **DEADLINES}
        program = start_mailinglist(self._directory, name, relay_port=self.sink.port, **settings)
        self._stack.enter_context(program)
        return Mta([port_of(program.wait_until_listening())])

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
        return str(self.sink.to(sender)[-1].message["Reply-To"])


@pytest.fixture(scope="module", params=["attach", "plain"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        site = Site(stack, tmp_path_factory.mktemp(request.param), request.param)
        yield site
        assert "ERROR" not in {state for _, state in site.store.counts()}


@pytest.fixture(scope="module")
def mta(site: Site) -> Mta:
    return site.start_application("salmon", site.daemon.address)


def send(mta: Mta, sender: str, local_part: str, **headers: str) -> Reply:
    """Delivered again for as long as it is answered 4xx, as on a machine that is slower than the deadlines."""
    return mta.deliver(0, sender, _recipient(local_part), _message(headers))


def try_once(mta: Mta, sender: str, local_part: str) -> Reply:
    return mta.attempt(0, sender, _recipient(local_part), _message({}))


def _recipient(local_part: str) -> str:
    return local_part if "@" in local_part else f"{local_part}@lists.example"


def _message(headers: dict[str, str]) -> EmailMessage:
    message = EmailMessage()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return message


def subscribe(site: Site, mta: Mta, sender: str, list_name: str) -> None:
    assert send(mta, sender, f"{list_name}-subscribe") == ACCEPTED
    assert send(mta, sender, site.confirm_address(sender)) == ACCEPTED
    assert site.state(list_name, sender) == "POSTING"


def test_mail_in_an_outage_is_deferred_and_completes_when_delivered_again(site: Site, mta: Mta) -> None:
    ann = "ann@outage.example"
    assert send(mta, ann, "outage-subscribe") == ACCEPTED
    with site.outage():
        assert try_once(mta, ann, site.confirm_address(ann)) == TRY_AGAIN
        assert try_once(mta, ann, "outage") == TRY_AGAIN
    assert site.state("outage", ann) == "CONFIRMING"
    assert send(mta, ann, site.confirm_address(ann)) == ACCEPTED
    assert site.state("outage", ann) == "POSTING"


def test_an_outage_after_the_handler_ran_leaves_nobody_in_error(site: Site, mta: Mta) -> None:
    ben = "ben@late.example"

    def stop_daemon(_: Mail) -> None:
        site.sink.before_accepting = lambda _: None
        site.daemon.stop()

    site.sink.before_accepting = stop_daemon
    try:
        assert try_once(mta, ben, "late-subscribe") == TRY_AGAIN
    finally:
        site.daemon.stop()
        site.daemon.start()
    assert len(site.sink.to(ben)) == 1  # so the handler ran; its state could not be stored
    assert site.state("late", ben) == START
    assert send(mta, ben, "late-subscribe") == ACCEPTED
    assert site.state("late", ben) == "CONFIRMING"
    assert send(mta, ben, site.confirm_address(ben)) == ACCEPTED
    assert site.state("late", ben) == "POSTING"


def test_a_daemon_that_does_not_answer_is_an_outage(site: Site, mta: Mta) -> None:
    cleo = "cleo@hung.example"
    os.kill(site.daemon.pid, signal.SIGSTOP)
    try:
        assert try_once(mta, cleo, "hung-subscribe") == TRY_AGAIN
    finally:
        os.kill(site.daemon.pid, signal.SIGCONT)
    subscribe(site, mta, cleo, "hung")


def test_another_store_at_the_same_address_is_an_outage(site: Site, mta: Mta, tmp_path: Path) -> None:
    dora = "dora@other.example"
    subscribe(site, mta, dora, "other")
    with site.outage(), Daemon(tmp_path, site.daemon.address):
        assert try_once(mta, dora, "other") == TRY_AGAIN
    assert send(mta, dora, "other") == ACCEPTED


def test_an_application_may_start_before_its_store(site: Site) -> None:
    emil = "emil@early.example"
    with site.outage():
        mta = site.start_application("early", site.daemon.address)
        assert try_once(mta, emil, "early-subscribe") == TRY_AGAIN
    subscribe(site, mta, emil, "early")


def test_a_port_where_something_else_answers_is_an_outage(site: Site) -> None:
    mta = site.start_application("misled", f"127.0.0.1:{site.sink.port}")
    assert try_once(mta, "fay@misled.example", "misled-subscribe") == TRY_AGAIN


def test_a_sender_that_is_too_long_is_refused_for_good(site: Site, mta: Mta) -> None:
    sender = "g" * 5000 + "@long.example"
    assert send(mta, sender, "long-subscribe") == Reply(553, "5.1.7 sender address too long")
    assert site.store.count("lists:long") == 0
    subscribe(site, mta, "gil@long.example", "long")


def test_a_bounce_ends_all_conversations_of_its_subscriber(site: Site, mta: Mta) -> None:
    hal, ida = "hal+x=y@bounce.example", "ida@bounce.example"
    for subscriber, list_name in [(hal, "bouncea"), (ida, "bouncea"), (hal, "bounceb")]:
        subscribe(site, mta, subscriber, list_name)
    verp = site.sink.to(hal)[-1].sender
    with site.outage():
        assert try_once(mta, "", verp) == TRY_AGAIN
    assert send(mta, "", verp) == ACCEPTED
    assert site.store.get_many([("lists:bouncea", hal), ("lists:bounceb", hal)]) == ["BOUNCING", "BOUNCING"]
    assert send(mta, ida, "bouncea", Message_ID="<post@bounce.example>") == ACCEPTED
    assert [mail.recipient for mail in site.sink.copies("<post@bounce.example>")] == [ida]
    assert send(mta, hal, "bouncea").code == 550
    subscribe(site, mta, hal, "bouncea")


@pytest.mark.parametrize(("sender", "headers"), [("", {}), ("jo@auto.example", {"Auto-Submitted": "auto-replied"})])
def test_nobody_answers_automatic_mail(site: Site, mta: Mta, sender: str, headers: dict[str, str]) -> None:
    assert send(mta, sender, "auto-subscribe", **headers) == ACCEPTED
    assert site.sink.to(sender) == []
    assert site.store.count("lists:auto") == 0
