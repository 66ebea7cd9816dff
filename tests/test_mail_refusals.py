"""R2: real Salmon, a real daemon, real mail. Whatever is wrong with the store, the LMTP client sees 250 or 451, and
when it has been mended all mail is handled.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest
from examples.demo.mta import Mta, Reply

from statestore import START
from tests.daemon import Daemon
from tests.faults.filesystem import fill, small_filesystem
from tests.mail.site import ACCEPTED, TRY_AGAIN, Site, send, try_once

MIB = 2**20
DEADLINES = {"STATE_DEADLINE": "0.4", "STATE_WRITE_DEADLINE": "0.6"}
TOKEN = "a-token-for-mail"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    with small_filesystem(directory / "small", 16 * MIB) as disk, ExitStack() as stack:
        daemon = Daemon(directory, environment={"STATESTORED_TOKEN": TOKEN})
        daemon.data_dir = disk / "data"
        yield Site(stack, directory, daemon, TOKEN)


@pytest.fixture(scope="module")
def mta(site: Site) -> Mta:
    """Delivers to two processes, of which each has its way of using the store."""
    return Mta([site.start_application(mode, {"STATE_STORE": mode, **DEADLINES}) for mode in ("attach", "plain")])


def try_both(mta: Mta, sender: str, local_part: str, **headers: str) -> set[Reply]:
    return {try_once(mta, sender, local_part, process, **headers) for process in (0, 1)}


Trouble = Callable[[Site], AbstractContextManager[None]]


def store_is_down(site: Site) -> AbstractContextManager[None]:
    return site.outage()


@contextmanager
def token_is_revoked(site: Site) -> Iterator[None]:
    site.daemon.stop()
    site.daemon.environment["STATESTORED_TOKEN"] = "another-token"
    site.daemon.start()
    yield
    site.daemon.stop()
    site.daemon.environment["STATESTORED_TOKEN"] = TOKEN
    site.daemon.start()


@contextmanager
def another_store_answers(site: Site) -> Iterator[None]:
    site.daemon.stop()
    place = site.daemon.data_dir
    site.daemon.data_dir = place.with_name("another")
    site.daemon.start()
    yield
    site.daemon.stop()
    site.daemon.data_dir = place
    site.daemon.start()


@contextmanager
def disk_is_full(site: Site) -> Iterator[None]:
    """Also for a daemon that starts: it has no journal yet that it could write to."""
    filler = fill(site.daemon.data_dir.parent)
    site.daemon.kill()
    site.daemon.start()
    yield
    filler.unlink()


# What goes wrong, and whether states can be read nevertheless.
TROUBLES = [
    (store_is_down, False),
    (token_is_revoked, False),
    (another_store_answers, False),
    (disk_is_full, True),
]


@pytest.mark.parametrize(("trouble", "readable"), TROUBLES)
def test_mail_is_put_off_and_completes_when_all_is_well_again(
    site: Site, mta: Mta, trouble: Trouble, readable: bool
) -> None:
    name = trouble.__name__.replace("_", "")
    new, asked, member = (f"{who}@{name}.example" for who in ("new", "asked", "member"))
    site.subscribe(mta, member, name)
    assert send(mta, asked, f"{name}-subscribe", process=1) == ACCEPTED  # so both processes know the store
    confirmation, bounce = site.confirm_address(asked), site.sink.to(member)[-1].sender
    with trouble(site):
        assert try_both(mta, new, f"{name}-subscribe") == {TRY_AGAIN}
        # As a stranger he would be told 550, for good: nobody is one because his state could not be asked for.
        assert try_both(mta, asked, confirmation) == {TRY_AGAIN}
        posted = try_both(mta, member, name, Message_ID=f"<post@{name}.example>")
        assert posted == {ACCEPTED if readable else TRY_AGAIN}
        assert try_both(mta, "", bounce) == {TRY_AGAIN}
    assert [site.state(name, sender) for sender in (new, asked, member)] == [START, "CONFIRMING", "POSTING"]
    assert send(mta, new, f"{name}-subscribe") == ACCEPTED
    assert send(mta, asked, confirmation) == ACCEPTED
    assert send(mta, member, name, Message_ID=f"<post@{name}.example>") == ACCEPTED
    assert send(mta, "", bounce) == ACCEPTED
    assert [site.state(name, sender) for sender in (new, asked, member)] == ["CONFIRMING", "POSTING", "BOUNCING"]
    assert {mail.recipient for mail in site.sink.copies(f"<post@{name}.example>")} >= {asked, member}
    assert site.lost() == []
    assert set(mta.replies) == {250, 451}
