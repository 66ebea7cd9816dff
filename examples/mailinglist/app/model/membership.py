"""Who is on a list. The states are the only record of it: a subscriber is whoever is in POSTING."""

from config import settings


def key(list_name: str) -> str:
    """Under which "module" a list's conversations are stored: one state for each list that a sender is on."""
    return f"lists:{list_name}"


def subscribers(list_name: str) -> list[str]:
    """Complete or an exception: no copy of a post goes out before we know all who should have one."""
    entries = settings.store.scan(module=key(list_name), state="POSTING")
    return sorted({entry.sender for entry in entries})


def bounced(address: str) -> int:
    """Nothing more goes to this address, on any list. Returns on how many it was."""
    return settings.store.set_all(address, "BOUNCING")
