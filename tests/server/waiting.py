"""Waiting for what is about to become true, instead of for a while."""

import asyncio
import time
from collections.abc import Callable

PATIENCE = 10.0  # seconds; only what never becomes true takes so long
STEP = 0.002


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {PATIENCE:g} s"
        time.sleep(STEP)


async def eventually(condition: Callable[[], object]) -> None:
    """As `wait_until`, while the loop goes on."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {PATIENCE:g} s"
        await asyncio.sleep(STEP)
