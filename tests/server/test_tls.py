"""Which certificates are taken, which are refused and with what words, and how they are read anew."""

import gc
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from statestored import tls as tls_module
from statestored.errors import StartError
from statestored.tls import ServerTls, TlsFiles, reason_of
from tests.certificates import Authority, Identity


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Identity:
    return authority.issue("server")


@pytest.fixture
def client_ca(authority: Authority, tmp_path: Path) -> Path:
    """A file of its own, which may be exchanged."""
    return Path(shutil.copy(authority.certificate, tmp_path / "clients.pem"))


def files(identity: Identity, client_ca: Path | None = None) -> TlsFiles:
    return TlsFiles(identity.certificate, identity.key, client_ca)


def client_context(authority: Authority, own: Identity | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate)
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


class Pair:
    """A client and a server that talk in memory. The client may come with a `session` of before."""

    def __init__(self, tls: ServerTls, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)
        self.server = tls.wrap(to_server, to_client)

    def shake_hands(self) -> str:
        """The version that they agree on. Raises the first error of either side."""
        done: set[ssl.SSLObject] = set()
        for _ in range(10):
            for side in (self.client, self.server):
                try:
                    side.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    pass
        assert len(done) == 2
        return self.client.version() or ""

    def serial_number(self) -> str:
        certificate = self.client.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


def shake_hands(tls: ServerTls, client: ssl.SSLContext) -> Pair:
    pair = Pair(tls, client)
    pair.shake_hands()
    return pair


def refusal(files: TlsFiles) -> str:
    with pytest.raises(StartError) as error:
        ServerTls(files)
    return str(error.value)


# Versions and options


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(authority: Authority, server: Identity, version: ssl.TLSVersion) -> None:
    client = client_context(authority)
    client.minimum_version = client.maximum_version = version
    assert Pair(ServerTls(files(server)), client).shake_hands() == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_older_versions_are_not(authority: Authority, server: Identity) -> None:
    client = client_context(authority)
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        shake_hands(ServerTls(files(server)), client)


def test_nothing_is_compressed_or_renegotiated(authority: Authority, server: Identity) -> None:
    pair = shake_hands(ServerTls(files(server)), client_context(authority))
    assert pair.server.compression() is None
    assert pair.server.context.options & ssl.OP_NO_RENEGOTIATION


# Certificates of the clients


def test_without_authorities_clients_need_no_certificate(authority: Authority, server: Identity) -> None:
    pair = shake_hands(ServerTls(files(server)), client_context(authority))
    assert pair.server.getpeercert() is None


def test_with_authorities_they_need_one_of_theirs(authority: Authority, server: Identity, tmp_path: Path) -> None:
    tls = ServerTls(files(server, authority.certificate))
    shake_hands(tls, client_context(authority, authority.issue("client")))
    for own, reason in (
        (None, "peer did not return a certificate"),
        (authority.issue("late", expired=True), "certificate has expired"),
        (Authority(tmp_path, "another").issue("stranger"), "unable to get local issuer certificate"),
    ):
        with pytest.raises(ssl.SSLError) as refusal:
            shake_hands(tls, client_context(authority, own))
        assert reason_of(refusal.value) == reason


# Handshakes under way


class FakeHandshake:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def fail(self, reason: str) -> None:
        self.reasons.append(reason)

    def abort(self) -> None:
        self.reasons.append("aborted")


def test_handshakes_are_under_way_until_they_end(server: Identity) -> None:
    tls = ServerTls(files(server))
    one, other = FakeHandshake(), FakeHandshake()
    tls.begin_handshake(one)
    tls.begin_handshake(other)
    assert tls.under_way == 2
    assert tls.end_handshake(one)
    assert not tls.end_handshake(one)
    assert (tls.is_under_way(one), tls.is_under_way(other), tls.under_way) == (False, True, 1)


def test_the_oldest_gives_way_if_there_are_too_many(server: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_module, "MAX_HANDSHAKES", 2)
    tls = ServerTls(files(server))
    oldest, *others = [FakeHandshake() for _ in range(3)]
    for handshake in (oldest, *others):
        tls.begin_handshake(handshake)
    assert ["gave way" in reason for reason in oldest.reasons] == [True]
    assert [other.reasons for other in others] == [[], []]


def test_all_can_be_ended(server: Identity) -> None:
    tls = ServerTls(files(server))
    handshakes = [FakeHandshake() for _ in range(3)]
    for handshake in handshakes:
        tls.begin_handshake(handshake)
    tls.abort_handshakes()
    assert [handshake.reasons for handshake in handshakes] == [["aborted"]] * 3


def test_a_failure_is_counted_and_said(server: Identity) -> None:
    tls = ServerTls(files(server))
    with capture_logs() as logs:
        tls.failed("unknown ca")
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("a TLS handshake failed", "unknown ca")]
    assert tls.failures == 1


# Reading anew


def test_a_new_certificate_is_for_new_connections(authority: Authority, server: Identity) -> None:
    tls = ServerTls(files(server))
    before = shake_hands(tls, client_context(authority))
    between = Pair(tls, client_context(authority))
    authority.issue("server")
    tls.read()
    after = shake_hands(tls, client_context(authority))
    between.shake_hands()
    assert before.serial_number() == between.serial_number() != after.serial_number()
    before.client.write(b"still there")
    assert before.server.read() == b"still there"


def test_new_authorities_are_for_new_connections(
    authority: Authority, server: Identity, client_ca: Path, tmp_path: Path
) -> None:
    """Also for a client that comes with a session of before: it is not resumed."""
    tls = ServerTls(files(server, client_ca))
    client = client_context(authority, authority.issue("client"))
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    session = shake_hands(tls, client).client.session
    other = Authority(tmp_path, "other")
    client_ca.write_bytes(other.certificate.read_bytes())
    tls.read()
    with pytest.raises(ssl.SSLError):
        Pair(tls, client, session).shake_hands()


@pytest.mark.parametrize("broken", ["certificate", "key", "authority", "missing"])
def test_what_cannot_be_read_changes_nothing(
    authority: Authority, server: Identity, client_ca: Path, broken: str
) -> None:
    client = client_context(authority, authority.issue("client"))
    tls = ServerTls(files(server, client_ca))
    before = shake_hands(tls, client).serial_number()
    match broken:
        case "certificate":
            server.certificate.write_bytes(authority.issue("other").certificate.read_bytes())
        case "key":
            server.key.write_text("")
        case "authority":
            client_ca.write_text("")
        case "missing":
            server.certificate.unlink()
    with pytest.raises(StartError):
        tls.read()
    assert shake_hands(tls, client).serial_number() == before


def test_what_was_read_before_is_freed_at_once(server: Identity) -> None:
    """Nothing waits for the garbage collector, which does not look at what was there when a store had been loaded."""
    tls = ServerTls(files(server))
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(each, ssl.SSLContext) for each in gc.get_objects())
        assert before
        for _ in range(5):
            tls.read()
        assert sum(isinstance(each, ssl.SSLContext) for each in gc.get_objects()) == before
    finally:
        gc.enable()


# Refusals


def test_a_file_that_is_not_there_is_named_with_its_setting(server: Identity, tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert refusal(TlsFiles(none, server.key)) == f"--tls-cert {none} cannot be read: No such file or directory"
    assert refusal(TlsFiles(server.certificate, none)) == f"--tls-key {none} cannot be read: No such file or directory"
    assert f"--tls-client-ca {none} cannot be read" in refusal(files(server, none))
    assert f"--tls-cert {tmp_path} cannot be read: Is a directory" in refusal(TlsFiles(tmp_path, server.key))


def test_a_key_of_another_certificate_is_refused(authority: Authority, server: Identity) -> None:
    other = authority.issue("other")
    said = refusal(TlsFiles(server.certificate, other.key))
    assert said == f"--tls-key {other.key} is not the key of --tls-cert {server.certificate}"


@pytest.mark.parametrize("content", ["", "rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_without_what_should_be_in_it_is_named(server: Identity, tmp_path: Path, content: str) -> None:
    file = tmp_path / "file.pem"
    file.write_text(content)
    file.chmod(0o600)
    assert refusal(TlsFiles(file, server.key)) == f"--tls-cert {file} holds no certificate in PEM"
    assert refusal(files(server, file)) == f"--tls-client-ca {file} holds no certificate in PEM"
    assert refusal(TlsFiles(server.certificate, file)).startswith(f"--tls-key {file} holds no key that can be used")


def test_the_key_in_place_of_the_certificate_is_refused(server: Identity) -> None:
    assert "--tls-cert" in refusal(TlsFiles(server.key, server.key))
    assert "--tls-key" in refusal(TlsFiles(server.certificate, server.certificate))


def test_an_encrypted_key_is_refused_instead_of_asking_for_the_pass_phrase(server: Identity, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.key"
    command = ["openssl", "pkey", "-aes256", "-in", server.key, "-passout", "pass:sesame", "-out", encrypted]
    subprocess.run(command, check=True)
    said = refusal(TlsFiles(server.certificate, encrypted))
    assert said.startswith(f"--tls-key {encrypted} is encrypted")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_key_that_others_can_read_is_warned_about(server: Identity, mode: int, warned: bool) -> None:
    server.key.chmod(mode)
    with capture_logs() as logs:
        ServerTls(files(server))
    assert [entry["log_level"] for entry in logs] == ["warning"] * warned
