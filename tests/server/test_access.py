"""Which tokens open, what becomes of those that do not, and how they change."""

from collections import Counter
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from statestore.errors import StateStoreError, Unauthorized, Unavailable
from statestored import access as access_module
from statestored import audit
from statestored.access import Access
from statestored.errors import StartError
from statestored.throttle import AT_ONCE, Throttle
from statestored.tokens import Role, add_token

PEER = "192.0.2.1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def outcome(access: Access, given: object, peer: str = PEER) -> str:
    try:
        return access.admit(given, peer).name
    except StateStoreError as error:
        return error.wire_code


def test_without_tokens_none_is_needed(path: Path) -> None:
    assert not Access().needed
    assert Access(own="sesame").needed
    add_token(path, "lists", Role.READ, [])
    assert Access(path).needed


def test_a_token_of_the_file_opens_and_so_does_the_one_of_the_environment(path: Path) -> None:
    token = add_token(path, "lists", Role.READ, ["lists"])
    access = Access(path, "sesame")
    assert access.admit(token.encode(), PEER).role is Role.READ
    assert access.admit(b"sesame", PEER).role is Role.ADMIN
    assert access.admit(b"sesame", PEER).opens(b"anything")


@pytest.mark.parametrize("given", [None, b"", b"sesam", b"sesame ", b"SESAME", b"\xff", 7, "sesame", [], {}])
def test_nothing_else_does(given: object) -> None:
    access = Access(own="sesame")
    with capture_logs() as logs, pytest.raises(Unauthorized, match="token") as refusal:
        access.admit(given, PEER)
    assert "sesam" not in str(refusal.value)
    assert "sesam" not in str(logs)
    assert access.refused == 1


def test_what_the_file_has_is_no_token(path: Path) -> None:
    """Whoever reads the file, or a copy of it, has nothing in hand."""
    add_token(path, "lists", Role.READ, [])
    digest = path.read_text().split('sha256 = "')[1][:64]
    access = Access(path)
    assert outcome(access, digest.encode()) == "unauthorized"
    assert outcome(access, bytes.fromhex(digest)) == "unauthorized"


def test_all_tokens_are_compared_whatever_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In constant time: neither the place of a token nor what it begins with is to be seen from outside."""
    tokens = [add_token(path, f"t{number}", Role.READ, []) for number in range(5)]
    access = Access(path)
    compared: Counter[tuple[bytes, bytes]] = Counter()
    compare = access_module.hmac.compare_digest
    monkeypatch.setattr(
        access_module.hmac, "compare_digest", lambda one, two: (compared.update([(one, two)]), compare(one, two))[1]
    )
    for given in (tokens[0], tokens[-1], "guess"):
        compared.clear()
        outcome(access, given.encode())
        assert compared.total() == 5


def test_one_that_was_admitted_is_found_without_comparing_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After SIGHUP this is done for each connection, and nobody else is heard meanwhile."""
    token = [add_token(path, f"t{number}", Role.READ, []) for number in range(5)][-1]
    access = Access(path)
    admitted = access.admit(token.encode(), PEER)
    path.write_text(path.read_text().replace('"read"', '"write"'))
    access.read()
    monkeypatch.delattr(access_module.hmac, "compare_digest")
    assert (found := access.renewed(admitted)) is not None
    assert found.role is Role.WRITE


def test_a_file_that_is_wrong_is_refused(path: Path) -> None:
    with pytest.raises(StartError, match=str(path)):
        Access(path)


def test_a_file_that_is_read_again_counts_from_then_on(path: Path) -> None:
    old = add_token(path, "old", Role.READ, [])
    access = Access(path, "sesame")
    admitted = access.admit(old.encode(), PEER)
    new = add_token(path, "new", Role.READ, [])
    assert outcome(access, new.encode()) == "unauthorized"
    assert access.read() == 3
    assert outcome(access, new.encode()) == "new"
    path.write_text("[new]" + path.read_text().partition("[new]")[2])
    access.read()
    assert outcome(access, old.encode()) == "unauthorized"
    assert access.renewed(admitted) is None
    assert outcome(access, new.encode()) == "new"
    assert outcome(access, b"sesame") == "STATESTORED_TOKEN"


@pytest.mark.parametrize("content", ["", "[old", None])
def test_a_new_file_that_is_wrong_changes_nothing(path: Path, content: str | None) -> None:
    token = add_token(path, "old", Role.READ, [])
    access = Access(path)
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(StartError):
        access.read()
    assert outcome(access, token.encode()) == "old"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_after_too_many_wrong_ones_more_of_them_are_put_off_and_right_ones_are_not() -> None:
    """Or whoever guesses would keep out all that come from the same address."""
    clock = Clock()
    access = Access(own="sesame", throttle=Throttle(clock))
    assert [outcome(access, b"guess") for _ in range(AT_ONCE)] == ["unauthorized"] * AT_ONCE
    assert [outcome(access, wrong) for wrong in (b"guess", b"", None)] == ["unavailable"] * 3
    assert outcome(access, b"sesame") == "STATESTORED_TOKEN"
    assert outcome(access, b"guess", "192.0.2.2") == "unauthorized"
    assert (access.refused, access.shut_out) == (AT_ONCE + 1, 3)
    clock.now += 0.2
    assert outcome(access, b"guess") == "unauthorized"


def test_that_it_can_be_tried_again_is_said() -> None:
    access = Access(own="sesame")
    for _ in range(AT_ONCE):
        outcome(access, b"guess")
    with pytest.raises(Unavailable, match="try again") as refusal:
        access.admit(b"guess", PEER)
    assert refusal.value.retry
    assert PEER not in str(refusal.value)


def test_right_ones_cost_nothing() -> None:
    access = Access(own="sesame")
    assert {outcome(access, b"sesame") for _ in range(10 * AT_ONCE)} == {"STATESTORED_TOKEN"}


def test_the_log_says_that_but_not_what_or_whence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "EVERY", 0.0)
    access = Access(own="sesame")
    with capture_logs() as logs:
        for _ in range(AT_ONCE + 100):
            outcome(access, b"guess")
    assert len(logs) == AT_ONCE, "what is not looked at is not worth a line either"
    assert len({entry["peer"] for entry in logs}) == 1
    assert "too many" in logs[-1]["event"]
    assert PEER not in str(logs)
    assert "guess" not in str(logs)
