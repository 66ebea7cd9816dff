"""Bytes into messages and back: any text, any chunks, and limits on what others can make us hold."""

from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.wire import DECODE_ERRORS, Decoder, packer, text_packer

any_text = st.text(st.characters(codec=None))
any_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | any_text | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(any_text, inner),
    max_leaves=20,
)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces, cut at `cuts` (modulo its length)."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


def decode(decoder: Decoder, data: bytes, cuts: list[int]) -> list[Any]:
    messages = []
    for chunk in chunks(data, cuts):
        decoder.feed(chunk)
        messages += list(decoder)
    return messages


def client_decoder(max_buffer: int = 2**16, max_items: int = 100) -> Decoder:
    return Decoder(raw=False, max_buffer=max_buffer, max_items=max_items)


def server_decoder(max_buffer: int = 2**16, max_items: int = 100) -> Decoder:
    return Decoder(raw=True, max_buffer=max_buffer, max_items=max_items)


@given(values=st.lists(any_value, max_size=5), cuts=st.lists(st.integers(min_value=0)))
def test_values_come_through_in_any_chunks(values: list[Any], cuts: list[int]) -> None:
    pack = packer()
    assert decode(client_decoder(max_items=2**16), b"".join(map(pack, values)), cuts) == values


@given(any_text, st.lists(st.integers(min_value=0)))
def test_a_text_comes_back_from_a_server_that_holds_it_as_bytes(text: str, cuts: list[int]) -> None:
    (held,) = decode(server_decoder(), packer()([text]), cuts)
    assert held == (text.encode("utf-8", "surrogatepass"),)
    assert decode(client_decoder(), text_packer()(held), cuts) == [[text]]


@given(any_text, any_text)
def test_different_texts_are_different_bytes(one: str, other: str) -> None:
    assert (packer()(one) == packer()(other)) is (one == other)


def test_what_the_server_sends_as_text_is_a_messagepack_str() -> None:
    assert text_packer()(b"START") == msgpack.packb("START")


def test_the_server_reads_bin_as_text_and_arrays_as_tuples() -> None:
    assert decode(server_decoder(), msgpack.packb([b"get", "get", [1]]), []) == [(b"get", b"get", (1,))]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xc1", id="the type that is none"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array without end"),
        pytest.param(msgpack.packb([0] * 101), id="an array over the limit"),
        pytest.param(msgpack.packb(dict.fromkeys(range(101))), id="a map over the limit"),
        pytest.param(msgpack.packb("x" * 5000), id="a text over the limit"),
        pytest.param(b"\x91" * 5000, id="too deep"),
        pytest.param(b"\x81\x90\x00", id="a key that cannot be one"),
        pytest.param(b"\xc9\xff\xff\xff\xff\x01", id="an extension without end"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_what_cannot_be_a_message_is_a_decode_error(data: bytes, whole: bool) -> None:
    decoder = client_decoder(max_buffer=4096)
    with pytest.raises(DECODE_ERRORS):
        decode(decoder, data, [] if whole else list(range(len(data))))


@given(st.binary(max_size=100))
def test_noise_is_a_message_or_a_decode_error_or_not_yet_whole(data: bytes) -> None:
    with suppress(*DECODE_ERRORS):
        decode(client_decoder(), data, [])


def test_a_client_refuses_text_that_no_python_wrote() -> None:
    with pytest.raises(DECODE_ERRORS):
        decode(client_decoder(), b"\xa2\xff\xfe", [])


def test_a_message_that_ends_at_the_limit_is_whole() -> None:
    data = msgpack.packb("x" * (4096 - 3))
    assert len(data) == 4096
    assert decode(client_decoder(max_buffer=4096), data, [100]) == ["x" * 4093]
