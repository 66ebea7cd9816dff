"""Target: the client's side of a connection, and anything as what a server sends."""

from typing import Any

import msgpack

from statestore.errors import BY_WIRE_CODE, StateStoreError
from statestore.protocol import MAX_REPLY_ITEMS, ClientProtocol, Response, Welcome, WrongServer
from statestore.wire import DECODE_ERRORS, UNICODE_ERRORS
from tests.fuzz.choices import Choices
from tests.fuzz.connections import pieces
from tests.fuzz.packing import array, integer, map_head, pack, text, value

_WELCOME = ("version", "server", "store_id", "features", "limits", "time")
_LIMITS = ("module", "sender", "state", "items")


def client_bytes(data: bytes) -> None:
    """A stream as it is."""
    choices = Choices(data)
    plan = choices.random()
    _receive(list(pieces(choices.rest(), plan)))


def client_messages(data: bytes) -> None:
    """A stream of responses, most of which are as they should be."""
    choices = Choices(data)
    plan = choices.random()
    received = []
    while choices and len(received) < 20:
        received.append(_message(choices))
    _receive(list(pieces(b"".join(received), plan)))


def _receive(received: list[bytes]) -> None:
    """Either what was sent comes out of it, or WrongServer, and no sooner than there is something wrong."""
    protocol, found, error = ClientProtocol(), [], None
    try:
        for piece in received:
            protocol.feed(piece)
            while (response := protocol.next_response()) is not None:
                found.append(response)
    except WrongServer as wrong:
        error = wrong
    for response in found:
        _check(response)
    expected, is_right = _expected(b"".join(received))
    if error is None:
        assert is_right, "nothing was noticed"
        assert len(found) == len(expected)
    else:
        assert not is_right, f"refused: {error}"
        assert len(found) <= len(expected)
    for response, (msgid, said, result) in zip(found, expected, strict=False):
        assert response.msgid == msgid
        assert (response.error is None) == (said is None)
        if response.error is None:  # a NaN is not equal to itself
            assert repr(response.result) == repr(result)


def _check(response: Response) -> None:
    """A response, and what is made of it where it answers a hello."""
    assert isinstance(response.msgid, int)
    if response.error is not None:
        assert isinstance(response.error, StateStoreError)
        assert response.error.message.isascii()
        assert response.error.code in (451, 553)
        return
    try:
        welcome = Welcome.parse(response.result)
        welcome.check_version()
    except WrongServer:
        return
    assert isinstance(welcome.store_id, str)
    assert all(type(getattr(welcome.limits, name)) is int for name in _LIMITS)


def _expected(stream: bytes) -> tuple[list[tuple[int, Any, Any]], bool]:
    """The responses in it, up to what is none; and whether nothing was wrong."""
    unpacker = msgpack.Unpacker(
        unicode_errors=UNICODE_ERRORS, max_array_len=MAX_REPLY_ITEMS, max_map_len=MAX_REPLY_ITEMS
    )
    if stream and stream[0] not in (0x93, 0x94):
        return [], False
    unpacker.feed(stream)
    found = []
    while True:
        try:
            message = unpacker.unpack()
        except msgpack.OutOfData:
            return found, True
        except DECODE_ERRORS:
            return found, False
        match message:
            case [1, int(msgid), None | str() as error, result]:
                found.append((msgid, error, result))
            case [2, _, _]:
                pass
            case _:
                return found, False


def _message(choices: Choices) -> bytes:
    match choices.below(16):
        case 0:
            return array(b"\x02", text(choices), value(choices))
        case 1:
            return value(choices)
        case 2:
            return array(value(choices), value(choices), value(choices), value(choices))
        case 3 | 4 | 5:
            return array(b"\x01", integer(choices), b"\xc0", _welcome(choices))
        case 6 | 7 | 8:
            code = choices.one_of([*BY_WIRE_CODE, "", "later"])
            return array(b"\x01", integer(choices), pack(f"{code}: ") if choices.below(2) else value(choices), b"\xc0")
        case _:
            return array(b"\x01", integer(choices), b"\xc0", value(choices))


def _welcome(choices: Choices) -> bytes:
    welcome = {name: value(choices) if choices.once_in(8) else pack("1") for name in _WELCOME}
    limits = {name: value(choices) if choices.once_in(8) else pack(1000) for name in _LIMITS}
    if not choices.once_in(8):
        welcome["limits"] = _map(limits)
    if not choices.once_in(8):
        welcome["version"] = pack(1)
    return _map(welcome)


def _map(of: dict[str, bytes]) -> bytes:
    return map_head(len(of)) + b"".join(pack(name) + packed for name, packed in of.items())
