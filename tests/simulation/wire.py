"""What goes over the network, as lines of the trace."""

from typing import Any

import msgpack

from statestore.wire import UNICODE_ERRORS
from tests.simulation.kernel import Kernel
from tests.simulation.tcp import End, Mark, Segment


class WireTrace:
    """The network's tap: shows each message when its last byte is sent, and each segment when it arrives."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._unpackers: dict[End, msgpack.Unpacker] = {}

    def __call__(self, what: str, end: End, segment: Segment) -> None:
        if what == "sends" and isinstance(segment, bytes):
            unpacker = self._unpackers.get(end)
            if unpacker is None:
                unpacker = self._unpackers[end] = msgpack.Unpacker(unicode_errors=UNICODE_ERRORS)
            unpacker.feed(segment)
            for message in unpacker:
                self._kernel.show(end.process.name, what, f"{end.connection} {_described(message)}")
        else:
            size = segment.name if isinstance(segment, Mark) else f"{len(segment)} bytes"
            self._kernel.show(end.process.name, what, f"{end.connection} {size}")


def _described(message: Any) -> str:
    match message:
        case [0, msgid, method, params]:
            return f"request {msgid} {method}({', '.join(map(repr, params))})"
        case [1, msgid, None, result]:
            return f"response {msgid} {result!r}"
        case [1, msgid, error, _]:
            return f"response {msgid} error {error!r}"
        case _:
            return repr(message)
