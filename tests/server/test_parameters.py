"""What requests bring."""

from collections.abc import Callable

import pytest

from statestore.base import Limits
from statestore.errors import BadRequest, StateStoreError, TooLong
from statestored.parameters import check_item, check_items, check_key, check_stored_text, check_text, check_triple

LIMITS = Limits(module=5, sender=6, state=7, items=3)


def test_what_is_as_it_should_be_comes_back() -> None:
    assert check_key(LIMITS, b"m" * 5, b"s" * 6) == (b"m" * 5, b"s" * 6)
    assert check_key(LIMITS, b"", None) == (b"", None)
    assert check_triple(LIMITS, b"m", None, b"t" * 7) == (b"m", None, b"t" * 7)
    assert check_triple(LIMITS, b"m", b"", b"t") == (b"m", b"", b"t")
    assert check_items(LIMITS, (1, 2, 3)) == (1, 2, 3)
    assert check_item((1, 2), 2) == (1, 2)


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (lambda: check_key(LIMITS, b"m" * 6, b"s"), "module is 6 bytes long, at most 5 are allowed"),
        (lambda: check_key(LIMITS, b"m", b"s" * 7), "sender is 7 bytes long, at most 6 are allowed"),
        (lambda: check_triple(LIMITS, b"m", b"s", b"t" * 8), "state is 8 bytes long, at most 7 are allowed"),
        (lambda: check_text("prefix", "ééé".encode(), 5), "prefix is 6 bytes long, at most 5 are allowed"),
        (lambda: check_items(LIMITS, (1, 2, 3, 4)), "items are 4, at most 3 are allowed in one call"),
    ],
)
def test_what_is_too_long_is_refused_with_its_name_and_its_limit(check: Callable[[], object], says: str) -> None:
    """L1. Limits count bytes."""
    with pytest.raises(TooLong, match=says):
        check()


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (lambda: check_key(LIMITS, None, b"s"), "module must be a string$"),
        (lambda: check_key(LIMITS, b"m", 5), "sender must be a string or nil"),
        (lambda: check_triple(LIMITS, b"m", b"s", bytearray(b"t")), "state must be a string$"),
        (lambda: check_items(LIMITS, [1]), "an array of items"),
        (lambda: check_item(b"ms", 2), "each item must be an array of 2"),
        (lambda: check_item((1, 2, 3), 2), "each item must be an array of 2"),
    ],
)
def test_what_has_another_type_is_refused(check: Callable[[], object], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        check()


def test_what_is_stored_is_text() -> None:
    """R1: a lone surrogate is text too."""
    lone = "\ud83d".encode(errors="surrogatepass")
    assert check_stored_text("state", lone, 7) == lone
    with pytest.raises(BadRequest, match="state is not UTF-8: invalid start byte at byte 1"):
        check_stored_text("state", b"a\xff", 7)
    assert check_text("state", b"a\xff", 7) == b"a\xff"  # what is only looked for


@pytest.mark.parametrize("sender", [b"secret" * 1000, b"secret\xff", (b"secret",)])
def test_errors_do_not_repeat_what_was_sent(sender: object) -> None:
    """S3: they end up in the logs of clients."""
    with pytest.raises(StateStoreError) as error:
        check_triple(Limits(), b"m", sender, b"t")
    assert "secret" not in str(error.value)
