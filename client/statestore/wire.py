"""MessagePack-RPC as both sides use it: bytes in, messages out, no sockets. protocol.md is the specification."""

from collections.abc import Callable
from typing import Any

import msgpack

REQUEST, RESPONSE, NOTIFICATION = 0, 1, 2
PROTOCOL_VERSION = 1
MAX_MSGID = 2**32 - 1
MAX_MESSAGE = 2**20  # bytes; holds 1,000 items of an everyday size, and bounds what one client can make us buffer

START = "START"  # the state of everybody who has no entry

# Any Python str survives the way there and back, lone surrogates included.
UNICODE_ERRORS = "surrogatepass"

# What `Decoder.unpack` raises where there is no whole message yet.
Incomplete = msgpack.OutOfData
# What reading a broken stream raises. After any of them the decoder is unusable, and so is the connection.
DECODE_ERRORS = (msgpack.UnpackException, ValueError, TypeError)


def packer() -> Callable[[Any], bytes]:
    """A function that packs one value. Not thread safe: one for each user."""
    pack: Callable[[Any], bytes] = msgpack.Packer(unicode_errors=UNICODE_ERRORS).pack
    return pack


def text_packer() -> Callable[[Any], bytes]:
    """As `packer`, for the server: what it holds as bytes goes out as MessagePack `str`."""
    pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=False).pack
    return pack


FIRST_BUFFER = 2**14  # bytes; msgpack would take a megabyte for each connection


class Decoder(msgpack.Unpacker):  # type: ignore[misc]  # msgpack ships no types
    """`feed(bytes)`, then iterate over the whole messages received so far.

    Both raise one of `DECODE_ERRORS` on a stream that is damaged or goes over a limit (`feed`: `msgpack.BufferFull`).

    raw: strings come out as bytes, arrays as tuples (the server's side); else as str and list (the client's).
    max_buffer: bytes of one unfinished message, and of what is fed on top of it.
    max_items: the longest array or map; its memory is taken as soon as its header is seen.
    """

    def __init__(self, *, raw: bool, max_buffer: int, max_items: int) -> None:
        super().__init__(
            raw=raw,
            use_list=not raw,
            unicode_errors=UNICODE_ERRORS,
            max_buffer_size=max_buffer,
            read_size=min(max_buffer, FIRST_BUFFER),
            max_array_len=max_items,
            max_map_len=max_items,
        )
