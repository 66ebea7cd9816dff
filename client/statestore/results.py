"""What the result of each method looks like: a caller gets that, or an error."""

from collections.abc import Callable
from typing import Any


def fits(method: str, params: tuple[Any, ...], result: Any) -> bool:
    """Whether `result` can be the answer to `method(*params)`."""
    return _CHECKS.get(method, _is_anything)(result, params)


def counted(answer: dict[str, Any], state: str | None) -> int | None:
    """How many entries in `state` a `count` has found; None where it did not look at all of them: then scan."""
    if state is not None and answer["uncounted"]:
        return None
    total: int = answer["total"]
    return total


def counted_by_state(answer: dict[str, Any]) -> dict[tuple[str, str], int] | None:
    """How many entries of each (module, state) it has found; None where it did not look at all."""
    if answer["uncounted"]:
        return None
    return {(module, state): count for module, state, count in answer["rows"]}


def _is_anything(_result: Any, _params: tuple[Any, ...]) -> bool:
    return True


def _is_text(result: Any, _: Any = None) -> bool:
    return type(result) is str


def _is_number(result: Any, _: Any = None) -> bool:
    return type(result) is int


def _is_map(result: Any, _: Any = None) -> bool:
    return type(result) is dict


def _is_swap(result: Any, _: Any) -> bool:
    return _is_row(result, bool, str)


def _are_states(result: Any, params: tuple[Any, ...]) -> bool:
    return type(result) is list and len(result) == len(params[0]) and all(map(_is_text, result))


def _is_page(result: Any, _: Any) -> bool:
    if type(result) is not list or len(result) != 2:
        return False
    cursor, entries = result
    return (cursor is None or _is_text(cursor)) and _are_rows(entries, str, str | None, str, int)


def _are_counts(result: Any, _: Any) -> bool:
    return (
        _is_map(result)
        and _is_number(result.get("total"))
        and _is_number(result.get("uncounted"))
        and _are_rows(result.get("rows"), str, str, int)
    )


def _are_rows(rows: Any, *types: Any) -> bool:
    return type(rows) is list and all(_is_row(row, *types) for row in rows)


def _is_row(row: Any, *types: Any) -> bool:
    return type(row) is list and len(row) == len(types) and all(map(isinstance, row, types))


# Of the others the result says nothing.
_CHECKS: dict[str, Callable[[Any, tuple[Any, ...]], bool]] = {
    "get": _is_text,
    "set_all": _is_number,
    "compare_and_set": _is_swap,
    "get_many": _are_states,
    "scan": _is_page,
    "count": _are_counts,
    "info": _is_map,
}
