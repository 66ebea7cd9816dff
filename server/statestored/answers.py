"""What engines answer, packed: at once, when a commit is durable, or when an engine says."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from typing import TypeVar

from statestore.errors import StateStoreError, TooLong
from statestore.wire import MAX_MESSAGE, text_packer
from statestored.engines.base import START, Answer, Counts, Held, Reply

MAX_REPLY = MAX_MESSAGE  # bytes of a result
NIL = b"\xc0"

T = TypeVar("T")
pack = text_packer()


def reply(answer: Answer[T], pack_value: Callable[[T], bytes]) -> Reply:
    """As the caller is to get it. Where it comes later, `pack_value` may refuse it with a StateStoreError then."""
    if isinstance(answer, Held):
        if answer.packed is None:
            answer.packed = pack_value(answer.value)
        return answer
    if isinstance(answer, Future):
        return _later(answer, pack_value)
    return pack_value(answer)


def _later(answer: Future[T], pack_value: Callable[[T], bytes]) -> Future[bytes]:
    packed: Future[bytes] = answer.get_loop().create_future()

    def finish(done: Future[T]) -> None:
        if packed.cancelled():
            return
        if done.cancelled():
            packed.cancel()
        elif (error := done.exception()) is not None:
            packed.set_exception(error)
        else:
            try:
                packed.set_result(pack_value(done.result()))
            except StateStoreError as refusal:
                packed.set_exception(refusal)

    answer.add_done_callback(finish)
    return packed


def pack_nil(_: None) -> bytes:
    return NIL


# The answers of `get` for states seen before. START is not among them: where nothing is found, nothing was checked.
packed_states: dict[object, bytes] = {}
MAX_PACKED_STATES = 4096  # states are few, unless an application keeps something of the sender's in them


def pack_state(state: bytes) -> bytes:
    packed = pack(state)
    if state != START and len(packed_states) < MAX_PACKED_STATES:
        packed_states[state] = packed
    return packed


def pack_states(states: list[bytes]) -> bytes:
    packed = pack(states)
    if len(packed) > MAX_REPLY:
        raise TooLong(f"items are so many that their states take {len(packed)} bytes: ask for fewer at once")
    return packed


def pack_counts(counts: Counts) -> bytes:
    return pack(counts._asdict())
