"""The file of tokens: what is written into it, what is read from it, and what is refused."""

import errno
import hashlib
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from statestored import files, tokens
from statestored.errors import StartError
from statestored.locks import file_locked
from statestored.tokens import MAX_TOKENS, Role, Token, add_token, digest_of, read_tokens
from tests.server.journals import opened

DIGEST = "ab" * 32
LINES = f'role = "read"\nsha256 = "{DIGEST}"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def test_a_token_that_was_made_is_found_in_the_file(path: Path) -> None:
    token = add_token(path, "lists-2026", Role.WRITE, ["lists", 'shop "x" \\ é'])
    assert read_tokens(path) == [
        Token("lists-2026", Role.WRITE, frozenset({b"lists", 'shop "x" \\ é'.encode()}), digest_of(token.encode()))
    ]


def test_the_first_of_several_unknown_keys_is_named(path: Path) -> None:
    """In each run the same: the order of a set of texts is another in each process."""
    unknown = [f"key{number}" for number in range(30)]
    path.write_text("[one]\n" + "".join(f"{key} = 1\n" for key in unknown))
    with pytest.raises(StartError, match=f"knows no '{unknown[0]}'"):
        read_tokens(path)


def test_the_token_itself_is_not_in_the_file(path: Path) -> None:
    token = add_token(path, "lists", Role.READ, [])
    assert token not in path.read_text()
    assert hashlib.sha256(token.encode()).hexdigest() in path.read_text()


def test_a_token_is_256_random_bits_that_any_client_can_give(path: Path) -> None:
    tokens = {add_token(path, f"token-{number}", Role.READ, []) for number in range(10)}
    assert len(tokens) == 10
    assert {len(bytes.fromhex(token)) for token in tokens} == {32}


def test_without_namespaces_it_opens_all_of_them(path: Path) -> None:
    add_token(path, "all", Role.ADMIN, [])
    add_token(path, "one", Role.ADMIN, ["lists"])
    everything, one = read_tokens(path)
    assert (everything.opens(b"lists"), everything.opens(b"default")) == (True, True)
    assert (one.opens(b"lists"), one.opens(b"default")) == (True, False)


def test_what_was_in_the_file_stays(path: Path) -> None:
    path.write_text(f"# ours\n[old]   # since 2024\n{LINES}")
    add_token(path, "new", Role.WRITE, [])
    assert path.read_text().startswith(f"# ours\n[old]   # since 2024\n{LINES}\n[new]\n")
    assert [token.name for token in read_tokens(path)] == ["old", "new"]


@pytest.mark.usefixtures("open_umask")
def test_the_file_is_for_its_owner_only(path: Path) -> None:
    for name in ("one", "two"):
        add_token(path, name, Role.READ, [])
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_is_replaced_as_a_whole(path: Path) -> None:
    add_token(path, "one", Role.READ, [])
    with path.open() as reader:
        before = reader.read()
        add_token(path, "two", Role.READ, [])
        reader.seek(0)
        assert reader.read() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_the_file_stays_its_owners(path: Path) -> None:
    """A daemon that has a user of its own can still read it after root has added a token."""
    add_token(path, "one", Role.READ, [])
    os.chown(path, 10001, 10002)
    path.chmod(0o440)
    add_token(path, "two", Role.READ, [])
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777) == (10001, 10002, 0o440)


def test_the_file_stays_open_to_those_to_whom_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment that it is in place: a daemon of another user may read it at any time."""
    add_token(path, "one", Role.READ, [])
    path.chmod(0o640)
    group = path.stat().st_gid
    seen: list[tuple[int, int]] = []
    put_in_place = files.put_in_place

    def look(temporary: Path, target: Path) -> None:
        seen.append((temporary.stat().st_mode & 0o7777, temporary.stat().st_gid))
        put_in_place(temporary, target)

    monkeypatch.setattr(files, "put_in_place", look)
    add_token(path, "two", Role.READ, [])
    assert seen == [(0o640, group)]


def test_a_file_that_cannot_be_kept_as_it_was_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_token(path, "one", Role.READ, [])
    before = path.read_text()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(files.os, "fchown", refuse)
    with pytest.raises(StartError, match="not permitted"):
        add_token(path, "two", Role.READ, [])
    assert path.read_text() == before


def test_a_link_to_the_file_stays_one(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    add_token(link, "one", Role.READ, [])
    assert link.is_symlink()
    assert len(read_tokens(path)) == 1


def test_a_link_of_a_link_to_no_file_yet_is_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(path)
    add_token(tmp_path / "first", "one", Role.READ, [])
    assert len(read_tokens(path)) == 1
    assert not path.is_symlink()


def test_links_that_lead_to_each_other_are_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(path)
    path.symlink_to(tmp_path / "other")
    with pytest.raises(StartError, match=os.strerror(errno.ELOOP)):
        add_token(path, "one", Role.READ, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_a_link_of_another_user_is_not_followed(path: Path, tmp_path: Path) -> None:
    """Root would change any file for that user."""
    link = tmp_path / "link"
    link.symlink_to(path)
    os.chown(link, 10001, 10001, follow_symlinks=False)
    with pytest.raises(StartError, match=f"{link} is a symbolic link that belongs to user 10001: name the file itself"):
        add_token(link, "one", Role.READ, [])
    assert not path.exists()


def test_nothing_is_written_through_a_link_for_the_temporary_name(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name cannot be foreseen; this is for somebody who is lucky."""
    victim, planted = tmp_path / "victim", tmp_path / "planted"
    victim.write_text("precious")
    planted.symlink_to(victim)
    monkeypatch.setattr(files, "random_name", lambda _: planted)
    add_token(path, "one", Role.READ, [])
    assert victim.read_text() == "precious"
    assert len(read_tokens(path)) == 1


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a]\n[b", "é", "\udcff", "x" * 65])
def test_a_name_that_would_break_the_file_is_refused(path: Path, name: str) -> None:
    with pytest.raises(
        ValueError, match=r"is no name for a token: it needs 1 to 64 letters \(A-Z, a-z\), digits, - and _"
    ):
        add_token(path, name, Role.READ, [])
    assert not path.exists()


@pytest.mark.parametrize(
    ("namespace", "says"), [("\udcff", "not UTF-8"), ("x" * 256, "256 bytes"), ("é" * 128, "256 ")]
)
def test_a_namespace_that_cannot_be_is_refused(path: Path, namespace: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"is no name for a namespace: .*{says}"):
        add_token(path, "one", Role.READ, ["lists", namespace])
    assert not path.exists()


@pytest.mark.parametrize("namespace", ["", "x" * 255, "\x00\x1f\x7f\x80", '"\\\n', "\U0001f4e8", "\u2028"])
def test_any_other_namespace_can_be_given(path: Path, namespace: str) -> None:
    add_token(path, "one", Role.READ, [namespace])
    assert read_tokens(path)[0].namespaces == {namespace.encode()}


def test_a_name_is_there_only_once(path: Path) -> None:
    add_token(path, "one", Role.READ, [])
    before = path.read_text()
    with pytest.raises(
        StartError, match=f"^{path} has a token called one already: choose another name, or remove its lines first$"
    ):
        add_token(path, "one", Role.READ, [])
    assert path.read_text() == before


@pytest.mark.parametrize(("content", "says"), [("[one]\nrolle = 1\n", "rolle"), ("[one", "at the end")])
def test_a_file_that_is_wrong_already_is_left_alone(path: Path, content: str, says: str) -> None:
    path.write_text(content)
    with pytest.raises(StartError, match=f"^{path}: .*{says}.*that was so before, and nothing was added"):
        add_token(path, "two", Role.READ, [])
    assert path.read_text() == content


def test_a_file_that_has_all_that_it_may_have_is_left_alone(path: Path) -> None:
    tables = [f'[t{number}]\nrole = "read"\nsha256 = "{number:064x}"\n' for number in range(MAX_TOKENS)]
    path.write_text("".join(tables))
    with pytest.raises(StartError, match=f"{path} has {MAX_TOKENS} tokens already"):
        add_token(path, "more", Role.READ, [])
    assert path.read_text() == "".join(tables)


def test_one_who_cannot_have_the_lock_in_time_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PATIENCE_SECONDS", 0.05)
    lock = path.with_name(".tokens.toml.lock")
    with file_locked(lock, 1), pytest.raises(StartError, match=f"cannot write {path}: .*for too long"):
        add_token(path, "one", Role.READ, [])
    assert not path.exists()


def test_the_file_may_be_in_the_data_directory_of_a_running_daemon(tmp_path: Path) -> None:
    """Which the daemon has locked."""
    with opened(tmp_path):
        add_token(tmp_path / "tokens.toml", "one", Role.READ, [])


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "tokens.toml"
    with pytest.raises(StartError, match=str(path)):
        add_token(path, "one", Role.READ, [])
    with pytest.raises(StartError, match=str(path)):
        read_tokens(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no token"),
        ("# nothing yet\n", "has no token"),
        ("[one", "tokens.toml: "),
        (f"[one]\n{LINES}[one]\n{LINES}", "one"),
        (f"[one]\n{LINES}[two]\n{LINES}", "two tokens have the same sha256"),
        (f"['a b']\n{LINES}", "'a b' is no name"),
        ("one = 5", "one must be a table"),
        (f'[one]\nsha256 = "{DIGEST}"', "role must be one of read, write, admin"),
        (f'[one]\nrole = "root"\nsha256 = "{DIGEST}"', "role must be one of read, write, admin"),
        (f'[one]\nrole = "nobody"\nsha256 = "{DIGEST}"', "role must be one of read, write, admin"),
        (f'[one]\nrole = ["read"]\nsha256 = "{DIGEST}"', "role must be one of"),
        ('[one]\nrole = "read"', "sha256 must be 64 hexadecimal digits"),
        ('[one]\nrole = "read"\nsha256 = "abc"', "sha256 must be 64 hexadecimal digits"),
        (f'[one]\nrole = "read"\nsha256 = "{DIGEST.upper()}"', "sha256 must be 64 hexadecimal digits"),
        (f'[one]\nnamespace = ["lists"]\n{LINES}', "knows no 'namespace'"),
        (f'[one]\nnamespaces = "lists"\n{LINES}', "namespaces must be an array of strings"),
        (f"[one]\nnamespaces = [5]\n{LINES}", "namespaces must be an array of strings"),
        (f"[one]\nnamespaces = []\n{LINES}", "leave it out for all"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_what_is_wrong(path: Path, text: str, says: str) -> None:
    path.write_text(text)
    with pytest.raises(StartError) as refusal:
        read_tokens(path)
    assert str(refusal.value).startswith(f"--tokens {path}")
    assert says in str(refusal.value)
    assert DIGEST not in str(refusal.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_is_named(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartError, match=f"--tokens {path} cannot be read"):
        read_tokens(path)


def test_there_are_not_so_many_that_looking_for_one_takes_long(path: Path) -> None:
    tables = [f'[t{number}]\nrole = "read"\nsha256 = "{number:064x}"\n' for number in range(MAX_TOKENS + 1)]
    path.write_text("".join(tables[:-1]))
    assert len(read_tokens(path)) == MAX_TOKENS
    path.write_text("".join(tables))
    with pytest.raises(StartError, match=f"{MAX_TOKENS + 1} tokens, at most {MAX_TOKENS}"):
        read_tokens(path)


def test_the_form_that_the_module_describes_is_the_one_that_is_read(path: Path) -> None:
    described = "\n".join(line.strip() for line in tokens.__doc__.split("\n\n")[2].splitlines())
    about = tomllib.loads(described)["lists-2026"]
    assert about.keys() == {"role", "namespaces", "sha256"}
    path.write_text(described.replace(about["sha256"], DIGEST))
    assert read_tokens(path)[0].opens(b"lists")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "directory"])
def test_what_is_no_regular_file_is_refused_and_stays(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "tokens.toml"
    make(path)
    before = path.stat()
    with pytest.raises(StartError, match="not a regular file"):
        add_token(path, "one", Role.WRITE, ())
    assert os.path.samestat(path.stat(), before)
