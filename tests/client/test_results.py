"""What the result of each method looks like, and what does not."""

from typing import Any

import pytest

from statestore.results import counted, counted_by_state, fits

COUNTS = {"total": 3, "uncounted": 0, "rows": [["m", "A", 3]]}
RIGHT = [
    ("get", "A"),
    ("set_all", 3),
    ("compare_and_set", [True, "A"]),
    ("get_many", ["A", "B"]),
    ("scan", [None, []]),
    ("scan", ["x", [["m", None, "A", 20000], ["m", "a", "A", 20000]]]),
    ("count", COUNTS),
    ("count", COUNTS | {"new": None}),
    ("info", {}),
    ("ping", None),
    ("set", None),
    ("set", "what a later server may say"),
]
WRONG: list[tuple[str, Any]] = [
    ("get", b"A"),
    ("set_all", True),
    ("compare_and_set", ["A", "A"]),
    ("compare_and_set", [True, None]),
    ("compare_and_set", [True, "A", "B"]),
    ("get_many", ["A"]),
    ("get_many", ["A", None]),
    ("get_many", {"A": "B", "C": "D"}),
    ("scan", [None]),
    ("scan", [5, []]),
    ("scan", [None, None]),
    ("scan", [None, [["m", "a", "A"]]]),
    ("scan", [None, [["m", 5, "A", 20000]]]),
    ("count", COUNTS | {"total": None}),
    ("count", COUNTS | {"rows": [["m", "A"]]}),
    ("count", {"total": 3, "rows": []}),
]
NOTHING_BUT_WRONG = [
    (method, result)
    for method in ("get", "set_all", "compare_and_set", "get_many", "scan", "count", "info")
    for result in (None, 5.0, [], "A" if method != "get" else 5)
]


@pytest.mark.parametrize(("method", "result"), RIGHT)
def test_what_a_server_answers_fits(method: str, result: Any) -> None:
    assert fits(method, ([("m", "a"), ("m", "b")],), result)


@pytest.mark.parametrize(("method", "result"), WRONG + NOTHING_BUT_WRONG)
def test_what_no_caller_could_use_does_not(method: str, result: Any) -> None:
    assert not fits(method, ([("m", "a"), ("m", "b")],), result)


def test_a_count_that_is_not_of_all_is_none() -> None:
    partly = COUNTS | {"uncounted": 2}
    assert counted(COUNTS, None) == counted(COUNTS, "A") == counted(partly, None) == 3
    assert counted(partly, "A") is counted_by_state(partly) is None
    assert counted_by_state(COUNTS) == {("m", "A"): 3}
