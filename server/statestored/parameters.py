"""What requests bring, checked: each function returns what it was given, or raises BadRequest or TooLong."""

from __future__ import annotations

from typing import Any

from statestore.base import Limits
from statestore.errors import BadRequest, TooLong
from statestore.wire import UNICODE_ERRORS
from statestored.engines.base import Sender


def check_key(limits: Limits, module: object, sender: object) -> tuple[bytes, Sender]:
    if sender is not None:
        sender = check_text("sender", sender, limits.sender)
    return check_text("module", module, limits.module), sender


def check_triple(limits: Limits, module: object, sender: object, state: object) -> tuple[bytes, Sender, bytes]:
    """What is about to be stored: it must be text, or one foreign client would break every reader."""
    if sender is not None:
        sender = check_stored_text("sender", sender, limits.sender)
    return check_stored_text("module", module, limits.module), sender, check_stored_text("state", state, limits.state)


def check_stored_text(what: str, value: object, limit: int) -> bytes:
    text = check_text(what, value, limit)
    if not text.isascii():
        try:
            text.decode("utf-8", UNICODE_ERRORS)
        except UnicodeDecodeError as error:
            raise BadRequest(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None
    return text


def check_text(what: str, value: object, limit: int) -> bytes:
    if type(value) is not bytes:
        raise BadRequest(f"{what} must be a string{' or nil' if what == 'sender' else ''}")
    if len(value) > limit:
        raise TooLong(f"{what} is {len(value)} bytes long, at most {limit} are allowed")
    return value


def check_items(limits: Limits, value: object) -> tuple[object, ...]:
    if type(value) is not tuple:
        raise BadRequest("expected an array of items")
    if len(value) > limits.items:
        raise TooLong(f"items are {len(value)}, at most {limits.items} are allowed in one call")
    return value


def check_item(value: object, size: int) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) != size:
        raise BadRequest(f"each item must be an array of {size}")
    return value
