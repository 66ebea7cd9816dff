"""The garbage collector, which is kept away from the entries.

It would look at millions of them again and again, and find nothing: nothing that the daemon keeps is in a cycle, so
reference counting frees all of it. Only libraries make cycles, such as aiohttp for a request that it refuses, and those
are soon dead.

So the collector looks at new objects only. It never looks again at those that it has seen once, or that were there at
a `freeze`: a cycle among them is a leak.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG_OBJECTS = 50_000  # containers made and not freed, at which it looks at them; that takes 2 to 4 ms
NEVER = 2**31 - 1  # looking at what survived took 70 ms while a store with a state for each sender grew


def tune() -> None:
    """Look at new objects only, from now on."""
    gc.set_threshold(YOUNG_OBJECTS, NEVER)


def freeze() -> None:
    """Never look again at what is there now. What is dead already is freed first, for it could not be later."""
    if gc.isenabled():  # else it is `paused`, and then all is frozen at once
        gc.collect(0)
        gc.freeze()


def empty_free_lists() -> None:
    """Give back the freed tuples and dicts that the interpreter keeps for new ones; for when many objects were freed.

    They lie scattered, and each keeps a mebibyte around it: half of what stayed when 100,000 states of their own were
    cleared. It takes less than a millisecond.
    """
    freeze()
    gc.collect()  # it has nothing to look at then, but empties those lists


@contextmanager
def paused() -> Iterator[None]:
    """Do not look while millions of objects are made, and never at them afterwards."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.collect()  # as in `empty_free_lists`
        gc.enable()
