"""Conversation states for Salmon and Lamson mail applications, shared by processes through a `statestored` daemon."""

from statestore._version import __version__
from statestore.base import START, Entry, Limits, StateStorage, Swap
from statestore.errors import (
    BadRequest,
    Forbidden,
    Full,
    Internal,
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

__all__ = [
    "START",
    "BadRequest",
    "Entry",
    "Forbidden",
    "Full",
    "Internal",
    "Limits",
    "MemoryStorage",
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
