"""MessagePack by hand: also what a library would not write."""

import struct

import msgpack

from tests.fuzz.choices import Choices

INTEGERS = (
    0,
    1,
    2,
    3,
    16,
    17,
    127,
    128,
    255,
    1000,
    1001,
    1024,
    65535,
    2**31,
    2**32 - 1,
    2**32,
    2**53,
    2**63,
    2**64 - 1,
)
INTEGERS += (-1, -32, -33, -128, -(2**31), -(2**63))
FLOATS = (0.0, 1.0, -1.0, 1.5, 1e300, float("nan"), float("inf"))
# Text that is text, that is nearly, and that is none.
TEXTS = (b"a", b"", b"START", b"None", b"lists", b"default", "é".encode(), b"\xed\xa0\xbd", b"\xed\xa0\xbd\xed\xb8\x80")
TEXTS += (b"\0", b"\xff", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x80", b"token", b"namespace")
LENGTHS = (16, 32, 255, 256, 1023, 1024, 1025, 4096, 4097, 65536, 2**20)
NESTED = (2, 3, 4, 5, 31, 100, 510, 511, 512, 513, 1023, 1024, 1025, 100_000)
COUNTS = (0, 1, 2, 3, 15, 16, 17, 1000, 1001, 1024, 1025, 65535, 2**20, 2**31, 2**32 - 1)

pack = msgpack.Packer(use_bin_type=True).pack


def value(choices: Choices, depth: int = 0) -> bytes:
    """Any value, packed."""
    kind = choices.below(16 if depth < 4 else 9)
    match kind:
        case 0:
            return b"\xc0"
        case 1:
            return choices.one_of((b"\xc2", b"\xc3"))
        case 2 | 3:
            return integer(choices)
        case 4 | 5 | 6:
            return text(choices)
        case 7:
            return bytes(pack(choices.one_of(FLOATS)))
        case 8:
            return bytes(pack(msgpack.ExtType(choices.below(128), choices.some())))
        case 9:
            return nested(choices)
        case 10:
            return choices.some()  # whatever it is
        case 11:
            return array_head(choices.one_of(COUNTS)) + value(choices, depth + 1)  # fewer than it says, mostly
        case 12 | 13:
            return array(*(value(choices, depth + 1) for _ in range(choices.below(5))))
        case _:
            count = choices.below(4)
            return map_head(count) + b"".join(value(choices, depth + 1) for _ in range(2 * count))


def integer(choices: Choices) -> bytes:
    """In a form that may be longer than it need be."""
    number = choices.one_of(INTEGERS)
    if choices.once_in(4) and 0 <= number < 2**32:
        return b"\xce" + struct.pack(">I", number)
    return bytes(pack(number))


def text(choices: Choices) -> bytes:
    match choices.below(8):
        case 0:
            return string(choices, choices.some())
        case 1:
            return string(choices, choices.one_of((b"x", b"\xc3", "é".encode())) * choices.one_of(LENGTHS[:-2]))
        case _:
            return string(choices, choices.one_of(TEXTS))


def string(choices: Choices, content: bytes) -> bytes:
    """As `str` or as `bin`, in a form that may be longer than it need be, or of another length than it says."""
    form = choices.below(32)
    if form < 16:
        return bytes(pack(content)) if form % 2 else str_head(len(content)) + content
    if form < 24:
        return b"\xdb" + struct.pack(">I", len(content)) + content
    if form < 31:
        return b"\xda" + struct.pack(">H", len(content)) + content
    return b"\xdb" + struct.pack(">I", choices.one_of(COUNTS)) + content


def nested(choices: Choices) -> bytes:
    """Arrays, or maps, in each other."""
    head = choices.one_of((b"\x91", b"\x81\xa1x", b"\xdd\x00\x00\x00\x01"))
    return head * choices.one_of(NESTED) + b"\xc0"


def array(*items: bytes) -> bytes:
    return array_head(len(items)) + b"".join(items)


def array_head(count: int) -> bytes:
    if count < 16:
        return bytes([0x90 + count])
    return b"\xdd" + struct.pack(">I", count)


def map_head(count: int) -> bytes:
    if count < 16:
        return bytes([0x80 + count])
    return b"\xdf" + struct.pack(">I", count)


def str_head(length: int) -> bytes:
    if length < 32:
        return bytes([0xA0 + length])
    return b"\xdb" + struct.pack(">I", length)
