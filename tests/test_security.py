"""Who may connect to a real daemon, and what they may do there; and that all of it can be changed (S1 to S3)."""

import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from statestore import RemoteStorage, StateStoreError
from statestored.errors import Exit
from tests.certificates import Authority, Identity
from tests.daemon import Daemon
from tests.server.rpc import RawClient, code_of, request
from tests.server.waiting import wait_until
from tests.tokenfile import TokenFile

ANN = ("lists", "ann@secret.example")
IN_LISTS = {"namespace": "secret-lists"}
NOT_READ = '"not read again, and what was read before stays"'
SECONDS_TO_REFUSE = 4.0  # in which a peer without TLS is let go; a handshake may take longer


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Identity:
    return authority.issue("server")


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.toml")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """A daemon, not started yet."""
    with ExitStack() as stack:

        def make(*arguments: str, **more: Any) -> Daemon:
            daemon = Daemon(tmp_path, "--log-level=debug", *arguments, **more)
            stack.callback(daemon.close)
            return daemon

        yield make


Make = Callable[..., Daemon]


def with_tls(identity: Identity, client_ca: Path | None = None) -> list[str]:
    more = [] if client_ca is None else [f"--tls-client-ca={client_ca}"]
    return [f"--tls-cert={identity.certificate}", f"--tls-key={identity.key}", *more]


def trusting(authority: Authority, own: Identity | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate)
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


def is_served(address: str, context: ssl.SSLContext) -> bool:
    try:
        with RawClient(address, context) as client:
            client.send(request(1, "ping"))
            return client.next() == [1, 1, None, None]
    except (ssl.SSLError, ConnectionError):
        return False


def reload(daemon: Daemon, event: str = '"read again"', lines: int = 1) -> None:
    """Has it read its files again, and waits until it says how that went."""
    before = daemon.log().count(event)
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.log().count(event) == before + lines)


def serial_number(client: RawClient) -> str:
    assert isinstance(client.socket, ssl.SSLSocket)
    certificate = client.socket.getpeercert()
    assert certificate is not None
    return str(certificate["serialNumber"])


# TLS


def test_clients_that_trust_the_authority_are_served(make: Make, authority: Authority, server: Identity) -> None:
    daemon = make(*with_tls(server)).start()
    with RawClient(daemon.address, trusting(authority)) as client:
        client.ask("set", *ANN, "CONFIRMING")
        large = [["m", f"s{number}", "A" * 900] for number in range(1000)]
        client.ask("set_many", large)
        assert client.ask("get_many", [pair[:2] for pair in large]) == ["A" * 900] * 1000
    with RawClient(daemon.unix_address) as client:
        assert client.ask("get", *ANN) == "CONFIRMING"
    assert daemon.stop() == Exit.STOPPED


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_connection_with_tls_is_not_taken_for_a_dead_one(
    make: Make, authority: Authority, server: Identity, version: ssl.TLSVersion
) -> None:
    """Before each write it is looked whether something unread has come: the server's session tickets must not be."""
    daemon, context = make(*with_tls(server)).start(), trusting(authority)
    context.maximum_version = version
    with RemoteStorage(daemon.address, tls=context) as storage:
        for number in range(20):
            storage.set(*ANN, str(number))
        assert storage.info()["connections_total"] == 1


@pytest.mark.parametrize("fault", ["another name", "expired", "another authority"])
def test_clients_see_that_a_server_is_not_the_right_one(
    make: Make, authority: Authority, tmp_path: Path, fault: str
) -> None:
    says = {
        "another name": "certificate is not valid for",
        "expired": "certificate has expired",
        "another authority": "unable to get local issuer certificate",
    }
    signing = Authority(tmp_path, "another") if fault == "another authority" else authority
    hosts = ["mail.example"] if fault == "another name" else []
    daemon = make(*with_tls(signing.issue("server", *hosts, expired=fault == "expired"))).start()
    with pytest.raises(ssl.SSLCertVerificationError, match=says[fault]):
        RawClient(daemon.address, trusting(authority))
    wait_until(lambda: 'event="a TLS handshake failed"' in daemon.log())


def test_clients_need_a_certificate_where_authorities_for_them_are_given(
    make: Make, authority: Authority, server: Identity, tmp_path: Path
) -> None:
    stranger, late = Authority(tmp_path, "another").issue("stranger"), authority.issue("late", expired=True)
    daemon = make(*with_tls(server, authority.certificate)).start()
    for number, own in enumerate((None, stranger, late), 1):
        # With TLS 1.3 a client is done before the server has seen its certificate, and hears of it later.
        assert not is_served(daemon.address, trusting(authority, own))
        wait_until(lambda number=number: daemon.log().count('event="a TLS handshake failed"') == number)
    with RawClient(daemon.address, trusting(authority, authority.issue("client"))) as client:
        client.ask("set", *ANN, "CONFIRMING")
        assert client.ask("info")["tls_failures"] == 3


def test_certificates_of_the_clients_are_enough_to_listen_to_other_machines(
    make: Make, authority: Authority, server: Identity
) -> None:
    daemon = make(*with_tls(server, authority.certificate))
    daemon.address = "0.0.0.0:0"
    daemon.start()
    address = daemon.address.replace("0.0.0.0", "127.0.0.1")
    assert is_served(address, trusting(authority, authority.issue("client")))
    assert not is_served(address, trusting(authority))


def test_clients_that_pipeline_large_calls_over_tls_are_served(
    make: Make, authority: Authority, server: Identity
) -> None:
    """What waits for its turn in the daemon is no reason to close the connection."""
    daemon = make(*with_tls(server)).start()
    context, calls, clients = trusting(authority), 30, 6
    triples = [["lists", f"sender{number}" + "x" * 1000, "Q" * 900] for number in range(100)]
    with RawClient(daemon.address, context) as client:
        client.ask("set_many", triples)
    asked = b"".join(request(number, "get_many", [triple[:2] for triple in triples]) for number in range(calls))

    def ask(_: int) -> list[int]:
        with RawClient(daemon.address, context) as client:
            sending = threading.Thread(target=client.send, args=(asked,))
            sending.start()
            try:
                return [client.next()[1] for _ in range(calls)]
            finally:
                sending.join()

    with ThreadPoolExecutor(clients) as threads:
        assert list(threads.map(ask, range(clients))) == [list(range(calls))] * clients


def test_a_client_without_tls_is_let_go_where_there_is_tls(make: Make, server: Identity) -> None:
    daemon = make(*with_tls(server)).start()
    for sent, reason in (
        (request(0, "ping"), "a client without TLS came"),
        (b"GET / HTTP/1.0\r\n\r\n", "an HTTP request came"),
        (b"EHLO mail.example\r\n", "an SMTP or LMTP client came"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 7828\r\n" + request(0, "ping"), "a PROXY protocol header came"),
    ):
        with RawClient(daemon.address) as client:
            client.socket.settimeout(SECONDS_TO_REFUSE)
            client.send(sent)
            assert client.is_closed()
        line = f'event="a TLS handshake failed" reason="{reason}'
        wait_until(lambda line=line: line in daemon.log())
    assert "192.0.2.1" not in daemon.log()
    with RawClient(daemon.unix_address) as client:
        assert client.ask("info")["tls_failures"] == 4


def test_a_client_with_tls_is_let_go_where_there_is_none(make: Make, authority: Authority) -> None:
    daemon = make().start()
    assert not is_served(daemon.address, trusting(authority))
    with RawClient(daemon.address) as client:
        assert client.ask("info")["connections_dropped"] == 1
    line = 'event="connection dropped" reason="a TLS handshake came, and this address has no TLS'
    wait_until(lambda: line in daemon.log())


# Reading again what can change


def test_a_new_certificate_reaches_new_connections_and_disturbs_no_other(
    make: Make, authority: Authority, server: Identity
) -> None:
    daemon = make(*with_tls(server)).start()
    context = trusting(authority)
    with Busy(lambda: RawClient(daemon.address, context)) as before:
        authority.issue("server")
        reload(daemon, lines=2)
        with RawClient(daemon.address, context) as after:
            assert serial_number(after) != serial_number(before.client)
            after.ask("ping")
    assert daemon.stop() == Exit.STOPPED


def test_a_certificate_that_cannot_be_used_leaves_all_as_it_was(
    make: Make, authority: Authority, server: Identity
) -> None:
    daemon = make(*with_tls(server)).start()
    context = trusting(authority)
    with Busy(lambda: RawClient(daemon.address, context)) as before:
        server.key.write_bytes(authority.issue("other").key.read_bytes())
        reload(daemon, NOT_READ)
        assert f"--tls-key {server.key} is not the key of --tls-cert" in daemon.log()
        with RawClient(daemon.address, context) as after:
            assert serial_number(after) == serial_number(before.client)


def test_asked_a_thousand_times_it_reads_a_few_times_and_the_last_state(
    make: Make, authority: Authority, server: Identity, tokens: TokenFile
) -> None:
    token = tokens.add("one", "write")
    daemon = make(*with_tls(server), f"--tokens={tokens.path}").start()
    context = trusting(authority)
    with Busy(lambda: knowing(daemon.unix_address)(token)) as busy:
        for _ in range(1000):
            daemon.send_signal(signal.SIGHUP)
        authority.issue("server")
        new = str(x509.load_pem_x509_certificate(server.certificate.read_bytes()).serial_number)
        daemon.send_signal(signal.SIGHUP)

        def is_new() -> bool:
            with RawClient(daemon.address, context) as client:
                return int(serial_number(client), 16) == int(new)

        wait_until(is_new)
        busy.goes_on()
    assert daemon.stop() == Exit.STOPPED


def test_tokens_are_changed_while_everybody_goes_on_who_may(make: Make, tokens: TokenFile) -> None:
    """Rotation: the new token is added, clients move to it, the old one is taken back."""
    old = tokens.add("old", "write")
    daemon = make(f"--tokens={tokens.path}").start()
    known = knowing(daemon.address)
    with Busy(lambda: known(old)) as of_old, Busy(lambda: known(old)) as another_of_old:
        new = tokens.add("new", "write")
        reload(daemon)
        with Busy(lambda: known(new)) as of_new:
            for _ in range(20):
                reload(daemon)
            for one in (of_old, another_of_old, of_new):
                one.goes_on()
            tokens.remove("old")
            reload(daemon)
            of_old.ends()
            another_of_old.ends()
            of_new.goes_on()
            with RawClient(daemon.address) as client:
                assert code_of(client.call("hello", {"token": old})[0]) == "unauthorized"
    assert daemon.stop() == Exit.STOPPED


# A program that does not go on with its start, once it has read its tokens, before the file `go_on` is there.
SLOW_START = """
import pathlib, sys, time
from statestored.datadir import DataDirectory

told, go_on, then = pathlib.Path(sys.argv.pop(1)), pathlib.Path(sys.argv.pop(1)), DataDirectory.open

def open_later(directory):
    told.touch()
    while not go_on.exists():
        time.sleep(0.01)
    then(directory)

DataDirectory.open = open_later
from statestored.__main__ import main
main()
"""


def test_tokens_that_change_while_it_starts_are_read_again(make: Make, tokens: TokenFile, tmp_path: Path) -> None:
    old = tokens.add("old", "write")
    daemon, told, go_on = make(f"--tokens={tokens.path}"), tmp_path / "told", tmp_path / "go_on"
    daemon.program = (sys.executable, "-c", SLOW_START, str(told), str(go_on))
    with daemon.launch():
        wait_until(told.exists)
        new = tokens.add("new", "write")
        daemon.send_signal(signal.SIGHUP)
        go_on.touch()
        daemon.wait_until_listening()
        wait_until(lambda: '"read again"' in daemon.log())
        for token in (old, new):
            with knowing(daemon.unix_address)(token) as client:
                client.ask("ping")


def test_a_file_of_tokens_that_is_wrong_leaves_all_as_it_was(make: Make, tokens: TokenFile) -> None:
    token = tokens.add("one", "write")
    daemon = make(f"--tokens={tokens.path}").start()
    known = knowing(daemon.address)
    for content in ("", "[one", '[one]\nrole = "root"\n'):
        tokens.path.write_text(content)
        with Busy(lambda: known(token)) as before:
            reload(daemon, NOT_READ)
            before.goes_on()
            with known(token) as after:
                after.ask("ping")


def test_a_change_of_its_role_reaches_a_connection_that_is_open(make: Make, tokens: TokenFile) -> None:
    token = tokens.add("one", "read")
    daemon = make(f"--tokens={tokens.path}").start()
    with knowing(daemon.address)(token) as client:
        for role, code in (("write", ""), ("read", "forbidden"), ("admin", "")):
            tokens.change_role("one", role)
            reload(daemon)
            assert code_of(client.call("set", *ANN, role)[0]) == code
        assert client.ask("get", *ANN) == "admin"


def test_a_namespace_taken_from_a_token_ends_the_connections_in_it(make: Make, tokens: TokenFile) -> None:
    token = tokens.add("one", "write", "secret-lists", "shop")
    daemon = make(f"--tokens={tokens.path}").start()
    known = knowing(daemon.address)
    with known(token, **IN_LISTS) as in_lists, known(token, namespace="shop") as in_shop:
        tokens.change_namespaces("one", "shop")
        reload(daemon)
        assert in_lists.is_closed()
        in_shop.ask("ping")


def test_asked_to_read_again_it_goes_on_where_there_is_nothing_to_read(make: Make) -> None:
    daemon = make().start()
    with RawClient(daemon.address) as client:
        for _ in range(3):
            reload(daemon)
        client.ask("ping")


def knowing(address: str) -> Callable[..., RawClient]:
    def known(token: str, **about: str) -> RawClient:
        client = RawClient(address)
        client.ask("hello", {"token": token, **about})
        return client

    return known


class Busy:
    """A client that writes without a pause, on one connection."""

    def __init__(self, connect: Callable[[], RawClient]) -> None:
        self.client = connect()
        self._answers = 0
        self._ended = threading.Event()
        self._stopping = False
        self._expected = False
        self._thread = threading.Thread(target=self._run)

    def goes_on(self) -> None:
        """Its connection is the one that it had, and is answered."""
        answers = self._answers
        wait_until(lambda: self._answers > answers + 10)

    def ends(self) -> None:
        """The daemon closes its connection."""
        self._expected = True
        wait_until(self._ended.is_set)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self.client.send(request(1, "set", *ANN, str(self._answers)))
                if (answer := self.client.next()) is None:
                    return
                assert answer == [1, 1, None, None]
                self._answers += 1
        except OSError:
            pass
        finally:
            self._ended.set()

    def __enter__(self) -> "Busy":
        self._thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._expected:
            self.goes_on()
        self._stopping = True
        self._thread.join()
        self.client.__exit__()


# Roles and namespaces


def test_each_role_may_what_it_says(make: Make, tokens: TokenFile) -> None:
    given = {role: tokens.add(role, role) for role in ("read", "write", "admin")}
    daemon = make(f"--tokens={tokens.path}", "--allow-clear").start()
    calls = {"get": ANN, "info": (), "set": (*ANN, "A"), "set_all": (ANN[1], "A"), "clear": ()}
    allowed = {}
    for role, token in given.items():
        with knowing(daemon.address)(token) as client:
            allowed[role] = {name for name, params in calls.items() if client.call(name, *params)[0] is None}
    assert allowed == {
        "read": {"get", "info"},
        "write": {"get", "info", "set", "set_all"},
        "admin": {"get", "info", "set", "set_all", "clear"},
    }
    with RawClient(daemon.address) as stranger:
        assert {code_of(stranger.call(name, *params)[0]) for name, params in calls.items()} == {"unauthorized"}


def test_clear_is_off_for_an_admin_too_unless_it_is_allowed(make: Make, tokens: TokenFile) -> None:
    token = tokens.add("one", "admin")
    daemon = make(f"--tokens={tokens.path}").start()
    with knowing(daemon.address)(token) as client:
        assert code_of(client.call("clear")[0]) == "forbidden"


def test_a_token_opens_its_own_namespaces(make: Make, tokens: TokenFile) -> None:
    token = tokens.add("one", "admin", "secret-lists")
    daemon = make(f"--tokens={tokens.path}").start()
    with knowing(daemon.address)(token, **IN_LISTS) as client:
        client.ask("set", *ANN, "A")
    for about in ({}, {"namespace": "shop"}):
        with RawClient(daemon.address) as client:
            client.send(request(1, "hello", {"token": token, **about}) + request(2, "set", *ANN, "B"))
            _, _, error, _ = client.next()
            assert code_of(error) == "forbidden"
            assert client.is_closed()


def test_the_numbers_are_for_every_role_and_nobody_else(make: Make, tokens: TokenFile) -> None:
    token = tokens.add("one", "read", "secret-lists")
    daemon = make(f"--tokens={tokens.path}", environment={"STATESTORED_TOKEN": "sesame of the environment"}).start()
    for given in (token, "sesame of the environment"):
        assert "statestored_tokens_refused_total 0.0" in metrics(daemon, given)
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        metrics(daemon, "guess")
    assert refused.value.read() == b"a token is needed\n"
    assert "statestored_tokens_refused_total 1.0" in metrics(daemon, token)


def metrics(daemon: Daemon, token: str) -> str:
    asked = urllib.request.Request(f"{daemon.admin}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=10) as response:
        return response.read().decode()  # type: ignore[no-any-return]


# Throttling


def test_guesses_are_put_off_and_right_tokens_from_the_same_address_are_not(make: Make, tokens: TokenFile) -> None:
    token = tokens.add("one", "write")
    daemon = make(f"--tokens={tokens.path}").start()

    def outcome(given: str, source: str = "") -> str:
        with RawClient(daemon.address, source=source) as client:
            code = code_of(client.call("hello", {"token": given})[0])
            assert not code or client.is_closed()
            return code

    with Busy(lambda: knowing(daemon.address)(token)) as before:
        for _ in range(5):
            wait_until(lambda: outcome("guess") == "unavailable")
            assert outcome(token) == ""
        assert outcome("guess", source="127.0.0.2") == "unauthorized", "another address has nothing to do with it"
        before.goes_on()
    with knowing(daemon.address)(token) as client:
        info = client.ask("info")
    assert info["tokens_refused"] >= 20
    assert info["tokens_not_looked_at"] >= 1


# Secrets


# The daemon, with a fault of ours: an exception that says what was asked.
FAULTY = """
from dataclasses import replace
from statestored.__main__ import main
from statestored.commands import COMMANDS
COMMANDS[b"get_many"] = replace(COMMANDS[b"get_many"], run=lambda caller, pairs: {}[pairs])
main()
"""


def test_the_log_gives_nothing_away(make: Make, tokens: TokenFile, authority: Authority, server: Identity) -> None:
    """Of a run in which all goes wrong that can."""
    given = [tokens.add("one", "admin", "secret-lists"), tokens.add("two", "admin"), "guess-secret", "own-secret-of-it"]
    daemon = make(
        *with_tls(server),
        f"--tokens={tokens.path}",
        "--allow-clear",
        environment={"STATESTORED_TOKEN": "own-secret-of-it", "STATESTORED_LOG_FORMAT": "json"},
    )
    daemon.program = [sys.executable, "-c", FAULTY]
    daemon.start()
    context = trusting(authority)
    for token in given:
        for about in (IN_LISTS, {"namespace": "secret-shop"}, {}):
            with RawClient(daemon.address, context) as client:
                if client.call("hello", {"token": token, **about})[0] is None:
                    client.ask("set", *ANN, "SECRET")
                    assert code_of(client.call("get_many", [ANN])[0]) == "internal"
                    client.ask("clear")
                    client.send(request(1, "none", "secret") + b"GET /secret HTTP/1.0\r\n\r\n")
                    client.next()
    with RawClient(daemon.address) as plain:
        plain.send(b"GET /secret HTTP/1.0\r\n\r\n")
        plain.is_closed()
    while "too many wrong tokens" not in daemon.log():
        with RawClient(daemon.unix_address) as client:
            client.call("hello", {"token": "guess-secret"})
    reload(daemon, lines=2)
    tokens.path.write_text("[one]\nsecret = true\n")
    reload(daemon, NOT_READ)
    with pytest.raises(urllib.error.HTTPError):
        metrics(daemon, "guess-secret")
    assert daemon.stop() == Exit.STOPPED
    log = daemon.log()
    for event in (
        "wrong token",
        "does not open",
        "too many wrong",
        "were forgotten",
        "TLS handshake",
        "read again",
        "Traceback of KeyError",
    ):
        assert event in log
    log = log.replace("knows no 'secret'", "")
    assert not [word for word in (*given, "secret", "SECRET", "127.0.0.1") if word in log]
    hashes = re.findall(r"[0-9a-f]{64}", log)
    assert hashes == []


# What the documents say


ROOT = Path(__file__).parents[1]
README, HANDBOOK = ((ROOT / name).read_text() for name in ("README.md", "docs/operating.md"))


def commands(document: str, beginning: str) -> list[str]:
    """Those of a document that begin so."""
    found = re.findall(rf"^    ({beginning}(?:.*\\\n)*.*)$", document, re.M)
    assert found
    return found


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Runs a command in a directory of its own, which is ours, too. Returns what it says."""
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"}

    def run(command: str) -> str:
        return subprocess.check_output(
            ["/bin/sh", "-ec", command], env=environment, stderr=subprocess.PIPE, text=True, timeout=30
        ).strip()

    return run


Shell = Callable[[str], str]


def start_as(command: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> tuple[Daemon, str]:
    """The daemon of a command, but for the port; and its address, under the name that its certificate has."""
    _, listen, address, *arguments = shlex.split(command)
    assert (listen, address) == ("--listen", "0.0.0.0:7828")
    daemon = make(*arguments)
    daemon.address = "0.0.0.0:0"
    daemon.start()
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *more, **named: look_up("127.0.0.1", *more, **named))
    return daemon, daemon.address.replace("0.0.0.0", "states.example")


@pytest.mark.parametrize("document", [README, HANDBOOK], ids=["README.md", "operating.md"])
def test_their_commands_let_clients_in_by_tls_and_with_a_token(
    make: Make, shell: Shell, monkeypatch: pytest.MonkeyPatch, document: str
) -> None:
    shell(commands(document, "openssl req")[0])
    token = shell(commands(document, "statestored token")[0].partition(" && ")[0])
    daemon, address = start_as(commands(document, "statestored --listen")[0], make, monkeypatch)
    (connecting,) = re.findall(r'RemoteStorage\("states\.example:7828".*?\)', document)
    connecting = connecting.replace("states.example:7828", address).replace('"..."', repr(token))
    with eval(connecting, {"RemoteStorage": RemoteStorage}) as store:
        store.set(*ANN, "CONFIRMING")
        assert store.get(*ANN) == "CONFIRMING"
    assert "can read the key" not in daemon.log()


def test_their_commands_let_clients_in_by_certificates(
    make: Make, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in commands(HANDBOOK, "openssl req"):
        shell(command)
    daemon, address = start_as(commands(HANDBOOK, "statestored --listen")[1], make, monkeypatch)
    with RemoteStorage(address, tls="server.pem", tls_cert="client.pem", tls_key="client.key") as store:
        store.set(*ANN, "CONFIRMING")
        assert store.get(*ANN) == "CONFIRMING"
    with RemoteStorage(address, tls="server.pem", deadline=0.5) as store, pytest.raises(StateStoreError):
        store.get(*ANN)
    assert "can read the key" not in daemon.log()


def test_their_commands_make_tokens_that_work(make: Make, shell: Shell, tmp_path: Path) -> None:
    given = [
        shell(commands(HANDBOOK, "export STATESTORE_TOKEN")[0] + "; echo $STATESTORE_TOKEN"),
        shell(commands(HANDBOOK, "statestored token")[0].partition(" && ")[0]),
    ]
    daemon = make(f"--tokens={tmp_path / 'tokens.toml'}").start()
    for token in given:
        with knowing(daemon.address)(token, namespace="lists") as client:
            client.ask("set", *ANN, "A")


# Refusals at the start


def test_settings_that_contradict_each_other_are_refused_with_their_names(
    make: Make, authority: Authority, server: Identity, tmp_path: Path
) -> None:
    other, none = authority.issue("other"), tmp_path / "none"
    certificate, key = f"--tls-cert={server.certificate}", f"--tls-key={server.key}"
    for arguments, named in (
        ([certificate], ["--tls-cert", "--tls-key"]),
        ([key], ["--tls-key", "--tls-cert"]),
        ([f"--tls-client-ca={authority.certificate}"], ["--tls-client-ca", "--tls-cert"]),
        ([certificate, f"--tls-key={other.key}"], ["--tls-key", "--tls-cert"]),
        ([f"--tls-cert={none}", key], ["--tls-cert", str(none)]),
        ([certificate, key, f"--tls-client-ca={none}"], ["--tls-client-ca", str(none)]),
        ([f"--tokens={none}"], ["--tokens", str(none)]),
        (["--listen=127.0.0.1:1", "--admin-listen=127.0.0.1:1"], ["--listen and --admin-listen are both 127.0.0.1:1"]),
        (["--listen=0.0.0.0:0", certificate, key], ["--listen 0.0.0.0:0", "--tokens", "--tls-client-ca"]),
        (["--admin-listen=0.0.0.0:0"], ["--admin-listen 0.0.0.0:0", "--tokens"]),
    ):
        done = make(*arguments).run()
        assert (done.returncode, done.stdout) == (Exit.CANNOT_START, "")
        assert all(name in done.stderr for name in named), done.stderr
        assert "Traceback" not in done.stderr
