"""Targets: files with right headers, frames and checksums, and anything in them.

Only a fault of ours, or somebody with a key to the house, could write such files. All the more they must not take the
daemon's memory, or its time, or be served.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from statestored.datadir import IDENTITY
from statestored.framing import HEADER_SIZE, Kind, pack_frame, pack_header
from statestored.framing import Sequence as Number
from statestored.segment import MAGIC as SEGMENT_MAGIC
from statestored.snapshot import MAGIC as SNAPSHOT_MAGIC
from tests.fuzz.choices import Choices
from tests.fuzz.packing import array, array_head, pack, text, value
from tests.fuzz.stores import Thorough, look_at_files
from tests.server.models import TODAY, sender_at

STORE_ID = uuid.UUID("9a598c34-74b9-4d3c-8a40-f13d2a42f7c8")
FILE_ID = bytes(range(0xA0, 0xB0))
TIME = TODAY * 86_400_000
NUMBERS = (0, 1, 2, 3, 511, 512, 513, 2**31, 2**32 - 1)
LARGE = (*NUMBERS, TIME, 2**63, 2**64 - 1)
SENDERS = [None, b"", *map(sender_at, (0, 1, 2**30, 2**31, 3 * 2**30, 2**32 - 1))]
DEPTHS = (0, 1, 2, 18, 19, 24, 28, 31, 32, 33, 64, 2**32, 2**63)
STARTS = (0, 2**30, 2**31, 3 * 2**30, 2**32 - 1, 2**32, 2**63)
DAYS = (TODAY, TODAY + 1, 0, 2**64 - 1)

IDENTITY_FILE = b'{"format": 1, "store_id": "%s"}\n' % str(STORE_ID).encode()


def journal_content(data: bytes) -> None:
    """One or two segments."""
    choices = Choices(data)
    files = {IDENTITY: IDENTITY_FILE}
    end, after = 0, Number(0, 0)
    for number in range(1, 2 + choices.below(2)):
        origin = origin_of(number, previous=number - 1, previous_end=end, after=tuple(after))
        segment, last = _segment(choices, _changed(choices, origin), number)
        files[f"{number:08}.journal"] = segment
        end, after = len(segment), last or after
    look_at_files(files, Thorough.of(choices))


def snapshot_content(data: bytes) -> None:
    """A snapshot, and the segment that belongs to it."""
    choices = Choices(data)
    blocks = [_bucket(choices) for _ in range(1 + choices.below(3))]
    snapshot = pack_header(SNAPSHOT_MAGIC, STORE_ID, FILE_ID, _changed(choices, {"number": 2}))
    for number, block in enumerate(blocks, 1):
        snapshot += _frame(choices, len(snapshot), Kind.BUCKET, Number(0, number), block)
    entries = choices.below(8) if choices.once_in(8) else _count_entries(blocks)
    footer = {"blocks": len(blocks), "entries": entries, "last": (1, 1)}
    packed = msgpack.packb(_changed(choices, footer)) if not choices.once_in(32) else value(choices)
    snapshot += _frame(choices, len(snapshot), Kind.FOOTER, Number(0, len(blocks) + 1), packed)
    look_at_files(with_snapshot(snapshot), Thorough.of(choices))


def origin_of(number: int, **more: Any) -> dict[str, Any]:
    """What the header of a segment says."""
    usual = {"epoch": number, "boot": bytes(16), "previous": 0, "previous_end": 0, "after": (0, 0)}
    return {"number": number, "durable": HEADER_SIZE, **usual, **more}


def segment_header(origin: dict[str, Any]) -> bytes:
    return pack_header(SEGMENT_MAGIC, STORE_ID, FILE_ID, origin)


def with_snapshot(snapshot: bytes) -> dict[str, bytes]:
    """All files of a store that has this one and a segment without batches."""
    journal = segment_header(origin_of(2, after=(1, 1)))
    return {IDENTITY: IDENTITY_FILE, "00000002.snapshot": snapshot, "00000002.journal": journal}


def snapshot_of(bucket: object, *, time: int = TIME, **footer: object) -> bytes:
    """With one bucket, and a footer that says it, where it is not told otherwise."""
    snapshot = pack_header(SNAPSHOT_MAGIC, STORE_ID, FILE_ID, {"number": 2})
    told = {"blocks": 1, "entries": 1, "last": (1, 1), **footer}
    for number, (kind, content) in enumerate(((Kind.BUCKET, bucket), (Kind.FOOTER, told)), 1):
        packed = msgpack.packb(content)
        snapshot += pack_frame(FILE_ID, len(snapshot), kind, Number(0, number), time, 0, packed)
    return snapshot


def _segment(choices: Choices, origin: dict[str, Any], epoch: int) -> tuple[bytes, Number | None]:
    segment = segment_header(origin)
    number = None
    for counter in range(1, 1 + choices.below(5)):
        number = Number(epoch, counter)
        segment += _frame(choices, len(segment), Kind.BATCH, number, _batch(choices))
    return segment, number


def _frame(choices: Choices, offset: int, kind: int, number: Number, payload: bytes) -> bytes:
    time, durable = TIME, HEADER_SIZE
    if choices.once_in(16):
        kind = choices.one_of(NUMBERS)
    if choices.once_in(16):
        number = Number(choices.one_of(NUMBERS), choices.one_of(LARGE))
    if choices.once_in(8):
        time, durable = choices.one_of(LARGE), choices.one_of(LARGE)
    return pack_frame(FILE_ID, offset, kind, number, time, durable, payload)  # type: ignore[arg-type]


def _batch(choices: Choices) -> bytes:
    match choices.below(8):
        case 6:
            return b""
        case 7:
            return value(choices)
        case _:
            return array(*(_effect(choices) for _ in range(choices.below(5))))


def _effect(choices: Choices) -> bytes:
    if choices.once_in(8):
        parts = [pack(2), _of(choices, (b"default", b"other"))]
    elif choices.once_in(8):
        parts = [pack(choices.one_of((4, 5))), pack(choices.one_of((7, 8, *LARGE)))]
    elif choices.once_in(8):
        parts = [pack(3), *(pack(choices.one_of((1, 1, 2, 7, *LARGE))) for _ in range(3)), pack(b"\xc0")]
        parts += [pack(choices.one_of(LARGE))] * choices.below(2)  # in format 1 there is no fingerprint
    else:
        parts = [pack(1), _of(choices, (b"default", b"other")), _of(choices, (b"a", b"lists", b""))]
        parts += [_of(choices, SENDERS), _of(choices, (b"A", b"START", b"B", b""))]
    return array(*_parts_changed(choices, parts))


def _bucket(choices: Choices) -> bytes:
    depth, start = choices.one_of((0, 0, 1, 2)), 0
    if choices.once_in(4):
        depth = choices.one_of(DEPTHS)
    if choices.once_in(4):
        start = choices.one_of(STARTS)
    held = [array(*_cells(choices)) for _ in range(1 + choices.below(3))]
    senders = [_of(choices, (sender,)) for sender in SENDERS[: choices.below(len(SENDERS) + 1)]]
    column = [pack(choices.below(len(held))) for _ in senders]
    parts = [_of(choices, (b"default", b"other")), pack(start), pack(depth)]
    for items in (held, senders, column):
        changed = _parts_changed(choices, items)
        parts.append(array_head(len(changed)) + b"".join(changed))
    return array(*_parts_changed(choices, parts))


def _cells(choices: Choices) -> list[bytes]:
    modules = (b"a", b"lists", b"")[: 1 + choices.below(3)]
    if choices.once_in(16):
        modules = choices.one_of(((), (b"a", b"a")))
    return [
        array(
            *_parts_changed(choices, [pack(module), _of(choices, (b"A", b"B", b"START")), pack(choices.one_of(DAYS))])
        )
        for module in modules
    ]


def _of(choices: Choices, usual: Sequence[bytes | None]) -> bytes:
    """One of these, mostly."""
    if choices.once_in(32):
        return value(choices)
    one = choices.one_of(usual)
    return text(choices) if choices.once_in(32) else bytes(pack(one))


def _parts_changed(choices: Choices, parts: list[bytes]) -> list[bytes]:
    """Mostly as they are; one is another, or there is one more, or one less."""
    parts = list(parts)
    change: dict[int, Callable[[int], object]] = {
        1: lambda at: parts.__setitem__(at, value(choices)),
        2: lambda at: parts.insert(at, value(choices)),
        3: lambda at: parts.pop(at),
    }
    kind = choices.below(64)
    if parts and kind in change:
        change[kind](choices.below(len(parts)))
    return parts


def _changed(choices: Choices, details: dict[str, Any]) -> dict[str, Any]:
    if choices.once_in(8):
        name = choices.one_of([*details, "more"])
        if choices.below(4):
            return {**details, name: choices.one_of((None, -1, "1", b"", [], {}, 1.5, *LARGE))}
        return {other: of for other, of in details.items() if other != name}
    return details


def _count_entries(blocks: Sequence[bytes]) -> int:
    """As a footer would say, if it can be said."""
    count = 0
    for block in blocks:
        try:
            _, _, _, held, _, column = msgpack.unpackb(block, raw=True, use_list=False)
            count += sum(len(held[index]) for index in column)
        except (ValueError, TypeError, LookupError, msgpack.UnpackException):
            continue
    return count
