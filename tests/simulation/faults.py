"""Defects that are put into the product, to see whether the simulation finds them.

They are those of `tests.crash.faults` and `tests.consistency.faults`. Here they are put in for one run at a time and
taken out completely, because one process runs thousands of seeds, most of them without a defect.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isfunction
from types import ModuleType
from typing import Any, cast

import pytest

from tests.consistency import faults as of_consistency
from tests.crash import faults as of_crashes

Fault = Callable[[pytest.MonkeyPatch], None]

# These are in the same module, and only make something happen sooner.
_NO_DEFECTS = {"sessions_end_soon", "one_session_at_a_time"}


def _functions_of(module: ModuleType) -> dict[str, Fault]:
    return {
        name: function
        for name, function in vars(module).items()
        if isfunction(function) and function.__module__ == module.__name__ and name not in _NO_DEFECTS
    }


FAULTS: dict[str, Fault] = _functions_of(of_crashes) | _functions_of(of_consistency)


class NeverReached(Exception):
    """No run has called anything that the defect replaces: the plans, or the patches of the simulation, avoid it."""


class Seeded:
    """A defect that is in the product. was_reached: something that it replaces was called."""

    def __init__(self) -> None:
        self.was_reached = False


@contextmanager
def seeded(name: str) -> Iterator[Seeded]:
    """Put a defect into the product for one run: some keep what they have seen.

    It goes on top of the patches of the simulation. Raises KeyError if there is no such defect, and AttributeError if
    the product has no such name any more as the defect replaces.
    """
    defect = Seeded()
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[name](cast(pytest.MonkeyPatch, _NotingPatch(patch, defect)))
        yield defect


def first_to_find(name: str, seeds: Iterable[int], fails: Callable[[int], bool]) -> int | None:
    """Return the first of the seeds whose run fails with the defect, or None.

    Raises NeverReached if no run fails, and none could: then it says nothing that the defect was not found.
    """
    was_reached = False
    for seed in seeds:
        with seeded(name) as defect:
            if fails(seed):
                return seed
        was_reached = was_reached or defect.was_reached
    if not was_reached:
        raise NeverReached(name)
    return None


class _NotingPatch:
    """Patches as a MonkeyPatch does, and has each function that it puts in note that it was called."""

    def __init__(self, patch: pytest.MonkeyPatch, defect: Seeded) -> None:
        self._patch = patch
        self._defect = defect

    def setattr(self, target: object, name: str, value: object) -> None:
        noting = property(self._noting(value.fget), value.fset) if isinstance(value, property) else self._noting(value)
        self._patch.setattr(target, name, noting)

    def _noting(self, function: object) -> Callable[..., Any]:
        if not isfunction(function):
            raise TypeError(f"a defect has to replace functions, to have it noted when it is reached: {function!r}")

        @wraps(function)
        def noting(*arguments: Any, **named: Any) -> Any:
            self._defect.was_reached = True
            return function(*arguments, **named)

        return noting
