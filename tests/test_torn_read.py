"""The Router asks for a sender's state once for each handler. What if it changes between two of these questions?

Two real processes of Salmon, one store. A subscriber's post is at the one when his farewell comes to the other: neither
START, for which the first question is, nor POSTING, for which a later one is, finds its state.
"""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from examples.demo.mta import Mta

from statestore import START
from tests.daemon import Daemon
from tests.mail.site import ACCEPTED, Site, send, try_once

ROOT = Path(__file__).parents[1]
PATIENCE = 30.0  # seconds after which a process has hung
ANN, BEN = "ann@torn.example", "ben@torn.example"
POST = "<post@torn.example>"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, tmp_path, Daemon(tmp_path))


def post_while_leaving(site: Site, mode: str) -> None:
    """Returns when both mails have been taken: ANN's post to the list, and her farewell, which came meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as halts, ThreadPoolExecutor(1) as pool:
        halts.settimeout(PATIENCE)
        settings = {"HALT_PORT": str(halts.getsockname()[1]), "PYTHONPATH": _python_path(), "STATE_STORE": mode}
        halting = Mta([site.start_application("halting", settings, boot="tests.mail.halting_boot")])
        other = Mta([site.start_application("other", {"STATE_STORE": mode})])
        for subscriber in (ANN, BEN):
            site.subscribe(other, subscriber, "torn")
        posting = pool.submit(try_once, halting, ANN, "torn", Message_ID=POST)
        halted, _ = halts.accept()
        with halted:
            assert send(other, ANN, "torn-unsubscribe") == ACCEPTED
            assert site.state("torn", ANN) == START
        assert posting.result(PATIENCE) == ACCEPTED


def readers(site: Site) -> list[str]:
    return [mail.recipient for mail in site.sink.copies(POST)]


def test_without_attach_the_mail_is_lost(site: Site) -> None:
    """It has been answered 250, no handler has seen it, and the one copy is where nobody looks."""
    post_while_leaving(site, "plain")
    assert readers(site) == []
    assert len(site.lost()) == 1


def test_with_attach_it_is_handled(site: Site) -> None:
    post_while_leaving(site, "attach")
    assert readers(site) == [BEN]
    assert site.lost() == []
    assert site.state("torn", ANN) == START


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
