"""R2: real Salmon, a real daemon, real mail. Whatever is wrong with the store, the LMTP client sees 250 or 451, and
when it has been mended all mail is handled.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest
from examples.demo.mta import Mta, Reply

from statestore import RemoteStorage, Unauthorized
from statestored.commands import Role
from statestored.tokens import add_token
from tests.daemon import Daemon
from tests.faults.filesystem import fill, small_filesystem
from tests.mail.site import ACCEPTED, TRY_AGAIN, Site, send, try_once
from tests.server.waiting import wait_until

MIB = 2**20
DEADLINES = {"STATE_DEADLINE": "0.4", "STATE_WRITE_DEADLINE": "0.6"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    tokens = directory / "tokens.toml"
    token = add_token(tokens, "lists", Role.WRITE, ())
    with small_filesystem(directory / "small", 16 * MIB) as disk, ExitStack() as stack:
        daemon = Daemon(directory, f"--tokens={tokens}")
        daemon.data_dir = disk / "data"
        yield Site(stack, directory, daemon, token)


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
    tokens = site.directory / "tokens.toml"
    known = tokens.read_text()
    tokens.write_text("")
    add_token(tokens, "others", Role.WRITE, ())
    site.daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: not lets_in(site.store))
    yield
    tokens.write_text(known)
    site.daemon.send_signal(signal.SIGHUP)


def lets_in(store: RemoteStorage) -> bool:
    try:
        store.ping()
    except Unauthorized:
        return False
    return True


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


# What goes wrong, and which mail is handled nevertheless.
TROUBLES = [
    (store_is_down, set()),
    (token_is_revoked, set()),
    (another_store_answers, set()),
    (disk_is_full, {"post"}),  # a post only reads
]


@pytest.mark.parametrize(("trouble", "handled"), TROUBLES)
def test_mail_is_put_off_and_completes_when_all_is_well_again(
    site: Site, mta: Mta, trouble: Trouble, handled: set[str]
) -> None:
    name = trouble.__name__.replace("_", "")
    new, asked, member = (f"{who}@{name}.example" for who in ("new", "asked", "member"))
    site.subscribe(mta, member, name)
    assert send(mta, asked, f"{name}-subscribe", process=1) == ACCEPTED  # so both processes know the store
    mails = {
        "subscribe": (new, f"{name}-subscribe"),
        # A stranger would be told 550, for good: nobody becomes one because his state could not be asked for.
        "confirm": (asked, site.confirm_address(asked)),
        "post": (member, name),
        "bounce": ("", site.sink.to(member)[-1].sender),
    }
    with trouble(site):
        for mail, (sender, recipient) in mails.items():
            replies = try_both(mta, sender, recipient, Message_ID=f"<{mail}@{name}.example>")
            assert replies == {ACCEPTED if mail in handled else TRY_AGAIN}, mail
    for mail, (sender, recipient) in mails.items():
        if mail not in handled:
            assert send(mta, sender, recipient, Message_ID=f"<{mail}@{name}.example>") == ACCEPTED
    assert [site.state(name, sender) for sender in (new, asked, member)] == ["CONFIRMING", "POSTING", "BOUNCING"]
    assert member in {mail.recipient for mail in site.sink.copies(f"<post@{name}.example>")}
    assert site.lost() == []
    assert set(mta.replies) == {250, 451}
