"""Where an unfinished message ends, found without decoding it.

A decoder takes memory for an array when it sees its header, eight kilobytes for three bytes, and again for each one
nested in it. So what has not come whole is kept as it came, and measured here; the decoder gets whole messages.
"""

from __future__ import annotations

from contextlib import suppress

from statestore.wire import MAX_MESSAGE

# The deepest message is a set_many: an array, in it the parameters, in these the triples, in those a triple.
MAX_DEPTH = 4
# More than a thousand triples have. What a message costs follows from their number as well as from its bytes.
MAX_VALUES = 8192

# By a value's first byte: how many bytes it has, where that says it all and no values follow in it; else 0.
_SIZES = [1] * 0x80 + [0] * 0x20 + [1 + size for size in range(32)] + [0] * 0x20 + [1] * 0x20
_SIZES[0x80] = _SIZES[0x90] = 1  # an empty map, an empty array
_SIZES[0xC0:0xC4] = [1] * 4
_SIZES[0xCA:0xD4] = [5, 9, 2, 3, 5, 9, 2, 3, 5, 9]  # floats and integers
_SIZES[0xD4:0xD9] = [3, 4, 6, 10, 18]  # extensions
# Where a number stands behind the first byte: how many bytes that number has, and what the value has besides it and
# as many bytes as it says ...
_COUNTED = {0xC4: (1, 1), 0xC5: (2, 1), 0xC6: (4, 1), 0xC7: (1, 2), 0xC8: (2, 2), 0xC9: (4, 2)}
_COUNTED |= {0xDA: (2, 1), 0xDB: (4, 1)}
# ... or, of arrays and maps, how many values follow for each that it counts.
_OPENED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


class Garbage(Exception):
    """What came is no MessagePack-RPC. The connection has to be closed: nobody knows what comes next on it."""


class Extent:
    """Of the message that begins with a connection's next byte; `max_items`: in an array or a map."""

    __slots__ = ("_left", "_max_items", "_outer", "_position", "_values")

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._position = 0  # up to here it is known
        self._left = 1  # values that are still to come, in what is open ...
        self._outer: list[int] = []  # ... and in those around it
        self._values = 0  # in all that was opened so far

    def is_within(self, data: bytes | bytearray) -> bool:
        """Whether `data`, in which the message begins, holds all of it. Raises Garbage over a limit.

        To be asked again when there is more; what was looked at before is not looked at again.
        """
        position, left, outer, sizes = self._position, self._left, self._outer, _SIZES
        with suppress(IndexError):  # where `data` ends
            while True:
                while left and (size := sizes[data[position]]):
                    position += size
                    left -= 1
                if not left:
                    if not outer:
                        break
                    left = outer.pop()
                elif (first := data[position]) == 0xD9:  # a string of up to 255 bytes
                    position += 2 + data[position + 1]
                    left -= 1
                elif first in _COUNTED:
                    width, more = _COUNTED[first]
                    position += _number(data, position + 1, width) + width + more
                    left -= 1
                else:
                    size, items = (1, first & 0x0F) if 0x90 < first < 0xA0 else self._opened(data, position, first)
                    self._values += items
                    if len(outer) == MAX_DEPTH or self._values > MAX_VALUES:
                        raise Garbage(
                            f"a message of more than {MAX_VALUES} values, or nested more than {MAX_DEPTH} deep"
                        )
                    position += size
                    outer.append(left - 1)
                    left = items
        self._position, self._left = position, left
        if position > MAX_MESSAGE or (left and len(data) > MAX_MESSAGE):
            raise Garbage(f"a message of more than {MAX_MESSAGE} bytes")
        return not left and position <= len(data)

    def _opened(self, data: bytes | bytearray, position: int, first: int) -> tuple[int, int]:
        """Of an array or a map: the bytes of its header, and how many values follow."""
        if first < 0xA0:
            return 1, 2 * (first & 0x0F)
        width, each = _OPENED[first]
        number = _number(data, position + 1, width)
        if number > self._max_items:
            raise Garbage(f"an array or a map of more than {self._max_items}")
        return 1 + width, each * number


def _number(data: bytes | bytearray, position: int, width: int) -> int:
    """Raises IndexError where not all of it has come."""
    data[position + width - 1]
    return int.from_bytes(data[position : position + width])
