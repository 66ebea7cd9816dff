"""Real Salmon, a real daemon, real mail: what the LMTP client is told when the store cannot be asked.

Salmon answers 250 where a store raises an ordinary exception: the mail would be lost, and its sender in ERROR.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from examples.demo.mta import Mta, Reply
from examples.demo.sink import Mail

from statestore import START
from tests.daemon import Daemon
from tests.mail.site import ACCEPTED, TRY_AGAIN, Site, send, try_once

DEADLINES = {"STATESTORE_DEADLINE": "0.5", "STATESTORE_WRITE_DEADLINE": "0.8"}


@pytest.fixture(scope="module", params=["attach", "plain"])
def mode(request: pytest.FixtureRequest) -> str:
    """How the application uses its store."""
    return str(request.param)


@pytest.fixture(scope="module")
def site(mode: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp(mode)
    with ExitStack() as stack:
        site = Site(stack, directory, Daemon(directory))
        yield site
        assert site.lost() == []


@pytest.fixture(scope="module")
def mta(site: Site, mode: str) -> Mta:
    return start_application(site, mode, "salmon", site.daemon.address)


def start_application(site: Site, mode: str, name: str, address: str) -> Mta:
    settings = {"STATE_STORE": mode, "STATESTORE_ADDRESS": address, **DEADLINES}
    return Mta([site.start_application(name, settings)])


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
    site.subscribe(mta, cleo, "hung")


def test_an_application_may_start_before_its_store(site: Site, mode: str) -> None:
    emil = "emil@early.example"
    with site.outage():
        mta = start_application(site, mode, "early", site.daemon.address)
        assert try_once(mta, emil, "early-subscribe") == TRY_AGAIN
    site.subscribe(mta, emil, "early")


def test_a_port_where_something_else_answers_is_an_outage(site: Site, mode: str) -> None:
    mta = start_application(site, mode, "misled", f"127.0.0.1:{site.sink.port}")
    assert try_once(mta, "fay@misled.example", "misled-subscribe") == TRY_AGAIN


def test_a_sender_that_is_too_long_is_refused_for_good(site: Site, mta: Mta) -> None:
    sender = "g" * 5000 + "@long.example"
    assert send(mta, sender, "long-subscribe") == Reply(553, "5.1.7 sender address too long")
    assert site.store.count("lists:long") == 0
    site.subscribe(mta, "gil@long.example", "long")


def test_a_bounce_ends_all_conversations_of_its_subscriber(site: Site, mta: Mta) -> None:
    hal, ida = "hal+x=y@bounce.example", "ida@bounce.example"
    for subscriber, list_name in [(hal, "bouncea"), (ida, "bouncea"), (hal, "bounceb")]:
        site.subscribe(mta, subscriber, list_name)
    verp = site.sink.to(hal)[-1].sender
    with site.outage():
        assert try_once(mta, "", verp) == TRY_AGAIN
    assert send(mta, "", verp) == ACCEPTED
    assert site.store.get_many([("lists:bouncea", hal), ("lists:bounceb", hal)]) == ["BOUNCING", "BOUNCING"]
    assert send(mta, ida, "bouncea", Message_ID="<post@bounce.example>") == ACCEPTED
    assert [mail.recipient for mail in site.sink.copies("<post@bounce.example>")] == [ida]
    assert send(mta, hal, "bouncea").code == 550
    site.subscribe(mta, hal, "bouncea")


@pytest.mark.parametrize(("sender", "headers"), [("", {}), ("jo@auto.example", {"Auto-Submitted": "auto-replied"})])
def test_nobody_answers_automatic_mail(site: Site, mta: Mta, sender: str, headers: dict[str, str]) -> None:
    assert send(mta, sender, "auto-subscribe", **headers) == ACCEPTED
    assert site.sink.to(sender) == []
    assert site.store.count("lists:auto") == 0
