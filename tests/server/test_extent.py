"""Where a message ends, and what is refused before it takes memory."""

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore.wire import MAX_MESSAGE
from statestored.extent import MAX_DEPTH, MAX_VALUES, Extent, Garbage

TRIPLES = msgpack.packb([0, 1, "set_many", [[["m" * 40, "s" * 300, "A"]] * 1000, {"seq": 1, "not_after": 1.5}]])


def end_of(data: bytes, step: int) -> int | None:
    """After how many bytes of `data`, which come so many at a time, the message is whole."""
    extent, come = Extent(1024), bytearray()
    while len(come) < len(data):
        come += data[len(come) : len(come) + step]
        if extent.is_within(come):
            return len(come)
    return None


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=300))
    | st.sampled_from([b"x" * size for size in (31, 32, 255, 256, 65535, 65536)])
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@settings(max_examples=60)
@given(value=values, behind=st.binary(max_size=5), bins=st.booleans())
def test_a_message_is_whole_with_its_last_byte(value: Any, behind: bytes, bins: bool) -> None:
    data = msgpack.packb(value, use_bin_type=bins)
    try:
        assert end_of(data + behind, 1) == len(data)
        assert Extent(1024).is_within(data + behind)
        assert not Extent(1024).is_within(data[:-1])
    except Garbage:
        assert depth_of(value) > MAX_DEPTH


@pytest.mark.parametrize("first", range(256))
def test_each_kind_of_value_ends_where_the_decoder_says(first: int) -> None:
    data = bytes([first]) + b"\1" * 40 if first in (0xC7, 0xC8, 0xC9) else bytes([first]) + bytes(40)
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=2**30, raw=True)
    data += b"\1" * 300
    if first in (0xC9, 0xC1):
        return  # no value, or one of 16 MiB
    unpacker.feed(data)
    try:
        unpacker.unpack()
    except ValueError:  # an integer for a key
        return
    end = unpacker.tell()
    assert Extent(1024).is_within(data)
    assert not Extent(1024).is_within(data[: end - 1])


@pytest.mark.parametrize("step", [7, 16384])
def test_the_longest_call_is_measured_however_it_is_cut(step: int) -> None:
    assert end_of(TRIPLES, step) == len(TRIPLES)


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


REFUSED = {
    "an array that is too long": b"\xdc\x04\x01",
    "an array of billions": b"\xdd\xff\xff\xff\xff",
    "a map of billions": b"\xdf\xff\xff\xff\xff",
    "too deep": nested(MAX_DEPTH + 1),
    "long arrays in each other": b"\xdc\x04\x00" * 9,
    "maps in each other": b"\x81\xa1a" * 9,
    "too many values": b"\x9f" + (b"\xdc\x03\xff" + b"\xc0" * 0x3FF) * 9,
    "a string over the limit": b"\x91\xdb" + (MAX_MESSAGE + 1).to_bytes(4),
    "bytes over the limit": b"\xc6\xff\xff\xff\xff",
    "many strings over the limit": b"\xdc\x04\x00" + (b"\xda\x08\x00" + b"x" * 2048) * 520,
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("step", [1, 1000])
def test_over_a_limit_it_is_garbage_without_being_whole(data: bytes, step: int) -> None:
    """L1."""
    with pytest.raises(Garbage):
        end_of(data, step)


def test_at_the_limits_it_is_none() -> None:
    for data in (
        nested(MAX_DEPTH),
        b"\xdc\x04\x00" + b"\xc0" * 1024,
        b"\x94" + (b"\xdc\x04\x00" + b"\xc0" * 1024) * 4,
        b"\xdb" + (MAX_MESSAGE - 5).to_bytes(4) + b"x" * (MAX_MESSAGE - 5),
    ):
        assert end_of(data, 4096) == len(data)
    assert MAX_VALUES > 1000 * 4 + 20


def test_a_chain_of_headers_costs_nothing() -> None:
    """L1: the decoder took eight kilobytes for each three bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(Garbage):
            Extent(1024).is_within(b"\xdc\x04\x00" * 1000)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()
