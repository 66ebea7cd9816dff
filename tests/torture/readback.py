"""What is in the store after a restart."""

from collections.abc import Iterable

from statestore.base import START, Pair
from tests.torture.pipeline import connect

ITEMS = 1000  # in one get_many
MAX_PAGES = 100_000  # of a scan, which else might never end


def read_keys(address: str, namespace: str, keys: Iterable[Pair]) -> dict[Pair, str]:
    found: dict[Pair, str] = {}
    with connect(address, namespace) as client:
        wanted = list(keys)
        for pairs in (wanted[at : at + ITEMS] for at in range(0, len(wanted), ITEMS)):
            found.update(zip(pairs, client.ask("get_many", pairs), strict=True))
    return found


def read_all(address: str, namespace: str, expected: Iterable[Pair]) -> dict[Pair, str]:
    """All entries; what is expected and has none is in START."""
    found = dict.fromkeys(expected, START)
    cursor = None
    with connect(address, namespace) as client:
        for _ in range(MAX_PAGES):
            cursor, entries = client.ask("scan", cursor, None, "", None)
            found.update({(module, sender): state for module, sender, state, _day in entries})
            if cursor is None:
                return found
    raise AssertionError(f"a scan of {namespace} does not end")
