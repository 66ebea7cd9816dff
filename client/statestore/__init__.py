"""Conversation states for Salmon and Lamson mail applications, shared by processes through a `statestored` daemon."""

from typing import TYPE_CHECKING, Any

from statestore._version import __version__
from statestore.base import START, Entry, Limits, StateStorage, Swap
from statestore.errors import (
    BadRequest,
    Forbidden,
    Full,
    Internal,
    NumberReused,
    ShuttingDown,
    StateStoreError,
    TooLong,
    Unauthorized,
    Unavailable,
    Uncertain,
    UnknownMethod,
)
from statestore.memory import MemoryStorage
from statestore.shelf import ShelveStorage
from statestore.storage import RemoteStorage

if TYPE_CHECKING:
    from statestore.aio import AsyncRemoteStorage

__all__ = [
    "START",
    "AsyncRemoteStorage",
    "BadRequest",
    "Entry",
    "Forbidden",
    "Full",
    "Internal",
    "Limits",
    "MemoryStorage",
    "NumberReused",
    "RemoteStorage",
    "ShelveStorage",
    "ShuttingDown",
    "StateStorage",
    "StateStoreError",
    "Swap",
    "TooLong",
    "Unauthorized",
    "Unavailable",
    "Uncertain",
    "UnknownMethod",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """`AsyncRemoteStorage`, when it is first asked for: asyncio would make this import half as long again."""
    if name != "AsyncRemoteStorage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from statestore.aio import AsyncRemoteStorage

    return AsyncRemoteStorage
