"""What may be stored: types and lengths."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

from statestore import START, BadRequest, Entry, Limits, StateStorage, Swap, TooLong
from tests.client.test_wire import any_text

LIMITS = Limits(module=10, sender=20, state=10, items=3)


def size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@given(any_text)
def test_lengths_are_counted_in_bytes(text: str) -> None:
    checks: list[tuple[Callable[[], None], str, int]] = [
        (lambda: LIMITS.check_key(text, None), "module", 10),
        (lambda: LIMITS.check_key("", text), "sender", 20),
        (lambda: LIMITS.check_sender(text), "sender", 20),
        (lambda: LIMITS.check_state(text), "state", 10),
    ]
    for check, what, limit in checks:
        if size(text) <= limit:
            check()
        else:
            with pytest.raises(TooLong, match=f"{what} is {size(text)} bytes long, at most {limit} are allowed"):
                check()


@pytest.mark.parametrize("character", ["a", "é", "€", "\ud83d", "\U0001f48c"])
def test_the_longest_is_allowed_and_one_character_more_is_not(character: str) -> None:
    longest = character * (4096 // size(character))
    Limits().check_sender(longest)
    with pytest.raises(TooLong):
        Limits().check_sender(longest + character)


@pytest.mark.parametrize("sender", [None, "", "None", "\0", "\udc8c\ud83d"])
def test_any_str_and_none_may_be_a_sender(sender: str | None) -> None:
    Limits().check_key("", sender)
    Limits().check_sender(sender)


@pytest.mark.parametrize(
    ("module", "sender", "state", "complaint"),
    [
        (None, "a", "A", "module must be a str, not NoneType"),
        (b"m", "a", "A", "module must be a str, not bytes"),
        ("m", b"a", "A", "sender must be a str or None, not bytes"),
        ("m", 5, "A", "sender must be a str or None, not int"),
        ("m", "a", None, "state must be a str, not NoneType"),
        ("m", "a", ["A"], "state must be a str, not list"),
    ],
)
def test_other_types_are_refused(module: Any, sender: Any, state: Any, complaint: str) -> None:
    with pytest.raises(BadRequest, match=complaint):
        Limits().check_triples([(module, sender, state)])


@pytest.mark.parametrize(
    "pairs", [["ma"], [("m",)], [("m", "a", "A")], [5], [None], [{"m": "a"}], [("m", "a"), "ma"], 5, None]
)
def test_what_are_no_pairs_is_refused(pairs: Any) -> None:
    with pytest.raises(BadRequest):
        Limits().check_pairs(pairs)


def test_pairs_may_come_from_anywhere() -> None:
    expected = [("m", "a"), ("m", None)]
    assert LIMITS.check_pairs(iter(expected)) == LIMITS.check_pairs(tuple(expected)) == expected
    assert LIMITS.check_pairs([]) == []
    assert LIMITS.check_triples([]) == []


def test_one_call_may_have_so_many_items() -> None:
    LIMITS.check_pairs([("m", "a")] * 3)
    with pytest.raises(TooLong, match="items are 4, at most 3 are allowed in one call"):
        LIMITS.check_pairs([("m", "a")] * 4)
    with pytest.raises(TooLong, match="items are 4"):
        LIMITS.check_triples([("m", "a", "A")] * 4)


def test_one_bad_item_spoils_the_call() -> None:
    with pytest.raises(TooLong, match="sender is 21"):
        LIMITS.check_pairs([("m", "a"), ("m", "a" * 21)])
    with pytest.raises(TooLong, match="state is 11"):
        LIMITS.check_triples([("m", "a", "A"), ("m", "a", "A" * 11)])


def test_the_limits_are_those_of_the_design() -> None:
    assert Limits() == Limits(module=1024, sender=4096, state=1024, items=1000)


def test_a_store_must_have_every_method() -> None:
    assert StateStorage.__abstractmethods__ == {
        *("get", "set", "set_all", "compare_and_set", "get_many", "set_many"),
        *("scan", "count", "counts", "clear"),
    }


def test_results_are_plain_tuples_as_well() -> None:
    assert Entry("m", None, START, 3) == ("m", None, "START", 3)
    assert Swap(True, START) == (True, "START")
