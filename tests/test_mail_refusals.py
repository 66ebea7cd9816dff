"""R2: real Salmon, a real daemon, real mail. Whatever is wrong with the store, the LMTP client sees 250 or 451, and
when it has been mended all mail is handled.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from examples.demo.mta import Mta, Reply

from statestore import START, Full, RemoteStorage, Unauthorized
from statestored.commands import Role
from statestored.tokens import add_token
from tests.certificates import Authority
from tests.daemon import Daemon
from tests.faults.filesystem import fill, small_filesystem
from tests.mail.site import ACCEPTED, TRY_AGAIN, Site, send, try_once
from tests.server.waiting import wait_until

MIB = 2**20
DEADLINES = {"STATESTORE_DEADLINE": "0.4", "STATESTORE_WRITE_DEADLINE": "0.6"}


class GuardedSite(Site):
    """Its daemon asks for a token and speaks TLS, but for us; its disk and its share of the memory are small."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.tokens = directory / "tokens.toml"
        self.authority = Authority(directory)
        server = self.authority.issue("server")
        daemon = Daemon(
            directory,
            f"--tokens={self.tokens}",
            f"--tls-cert={server.certificate}",
            f"--tls-key={server.key}",
            "--max-memory=1",
        )
        daemon.data_dir = stack.enter_context(small_filesystem(directory / "small", 16 * MIB)) / "data"
        self.token = add_token(self.tokens, "lists", Role.WRITE, ())
        super().__init__(stack, directory, daemon, self.token)

    def read_again(self) -> None:
        """Tokens and certificate."""
        self.daemon.send_signal(signal.SIGHUP)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedSite]:
    with ExitStack() as stack:
        yield GuardedSite(stack, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def mta(site: GuardedSite) -> Mta:
    """Delivers to two processes, of which each has its way of using the store."""
    settings = {"STATESTORE_TLS": str(site.authority.certificate), **DEADLINES}
    return Mta([site.start_application(mode, {"STATE_STORE": mode, **settings}) for mode in ("attach", "plain")])


def try_both(mta: Mta, sender: str, local_part: str, **headers: str) -> set[Reply]:
    return {try_once(mta, sender, local_part, process, **headers) for process in (0, 1)}


Trouble = Callable[[GuardedSite], AbstractContextManager[None]]


def store_is_down(site: GuardedSite) -> AbstractContextManager[None]:
    return site.outage()


@contextmanager
def token_is_revoked(site: GuardedSite) -> Iterator[None]:
    known = site.tokens.read_text()
    site.tokens.write_text("")
    add_token(site.tokens, "others", Role.WRITE, ())
    site.read_again()
    wait_until(lambda: not lets_in(site.store))
    yield
    site.tokens.write_text(known)
    site.read_again()


def lets_in(store: RemoteStorage) -> bool:
    try:
        store.ping()
    except Unauthorized:
        return False
    return True


@contextmanager
def certificate_has_expired(site: GuardedSite) -> Iterator[None]:
    """What is connected goes on; a restart ends that."""
    site.authority.issue("server", expired=True)
    site.daemon.kill()
    site.daemon.start()
    yield
    site.authority.issue("server")
    site.read_again()


@contextmanager
def another_store_answers(site: GuardedSite) -> Iterator[None]:
    place = site.daemon.data_dir
    site.daemon.stop()
    site.daemon.data_dir = place.with_name("another")
    site.daemon.start()
    yield
    site.daemon.stop()
    site.daemon.data_dir = place
    site.daemon.start()


@contextmanager
def disk_is_full(site: GuardedSite) -> Iterator[None]:
    """Also for a daemon that starts: it has no journal yet that it could write to."""
    filler = fill(site.daemon.data_dir.parent)
    site.daemon.kill()
    site.daemon.start()
    yield
    filler.unlink()


@contextmanager
def memory_is_full(site: GuardedSite) -> Iterator[None]:
    """Of another application's states. What is there can still be changed."""
    with RemoteStorage(site.daemon.unix_address, namespace="another", token=site.token) as another:
        taken = write_until_full(another)
        yield
        for sender in taken:
            another.set("another", sender, START)


def write_until_full(store: RemoteStorage) -> list[str]:
    """The senders whose states it took: first long names, then short ones, so that there is no room for any."""
    taken: list[str] = []
    for length in (4000, 1):
        with suppress(Full):
            for number in range(1000):  # four times what there is room for
                sender = f"{number}@{'x' * length}"
                store.set("another", sender, "STATE")
                taken.append(sender)
    return taken


# What goes wrong, and which mail is handled nevertheless.
TROUBLES = [
    (store_is_down, set()),
    (token_is_revoked, set()),
    (certificate_has_expired, set()),
    (another_store_answers, set()),
    (disk_is_full, {"post"}),  # a post only reads
    (memory_is_full, {"confirm", "post", "bounce"}),  # the others make new entries
]


@pytest.mark.parametrize(("trouble", "handled"), TROUBLES)
def test_mail_is_put_off_and_completes_when_all_is_well_again(
    site: GuardedSite, mta: Mta, trouble: Trouble, handled: set[str]
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
