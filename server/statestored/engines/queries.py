"""Looking at a table: scans that go on where they stopped, and counts."""

import heapq
import struct

from statestore.errors import BadRequest
from statestored.engines.base import Counts, Filter, Page, Sender
from statestored.engines.table import BUCKET_SIZE, POSITION_BITS, Bucket, Table, entries_of, position_of

# Bytes in a scan's page, or in the rows of a count, about: far below the longest reply, since a page always ends with
# a whole sender.
PAGE_BYTES = 2**18
OVERHEAD = 16  # bytes that an entry or a row takes besides its text, at most
MAX_ROWS = 1000  # of a count
LEAST_A_BUCKET = 50  # senders: what looking at an empty bucket is worth, for they can be many

# A cursor, in hexadecimal: a position, four bytes; within a bucket, the sender seen last follows: 00 for None, or 01
# and its text.
_POSITION = struct.Struct(">I")
_Place = tuple[int, bytes]


def scan(table: Table, cursor: bytes | None, wanted: Filter) -> Page:
    """Looks at about as many senders as a bucket has. Raises BadRequest for a cursor that no scan gave."""
    position, after = _read_cursor(cursor)
    page = Page(None, [])
    looked_at = size = 0
    for covered in table.walk(position):
        for place, sender in _in_order(covered.bucket, wanted.prefix):
            if place <= (position, after):
                continue
            for entry in entries_of(sender, covered.bucket[sender]):
                if wanted.module in (None, entry.module) and wanted.state in (None, entry.state):
                    page.entries.append(entry)
                    size += len(entry.module) + len(sender or b"") + len(entry.state) + OVERHEAD
            if size >= PAGE_BYTES:
                return page._replace(cursor=_write_cursor(*place))
        looked_at += max(len(covered.bucket), LEAST_A_BUCKET)
        if looked_at >= BUCKET_SIZE and covered.end < 1 << POSITION_BITS:
            return page._replace(cursor=_write_cursor(covered.end, b""))
    return page


def longest_page(text: int, modules: int) -> int:
    """Bytes, where an entry has so many bytes of text, and a sender entries in so many modules."""
    return PAGE_BYTES + modules * (text + OVERHEAD)


def count(table: Table, module: bytes | None, state: bytes | None) -> Counts:
    """Looks at what the table has counted all along, not at its entries."""
    matching = [row for row in table.counts() if module in (None, row[0]) and state in (None, row[1])]
    rows = []
    size = 0
    for row in heapq.nlargest(MAX_ROWS, matching, key=lambda row: row[2]):
        size += len(row[0]) + len(row[1]) + OVERHEAD
        if size > PAGE_BYTES:
            break
        rows.append(row)
    counted = sum(row[2] for row in matching)
    others = table.uncounted(module)
    total = counted + others if state is None else counted
    return Counts(total, rows, uncounted=counted + others - sum(row[2] for row in rows))


def _in_order(bucket: Bucket, prefix: bytes) -> list[tuple[_Place, Sender]]:
    """The senders that begin with `prefix`, in the order of a walk."""
    return sorted(
        ((position_of(sender), b"\0" if sender is None else b"\1" + sender), sender)
        for sender in bucket
        if (sender or b"").startswith(prefix)
    )


def _write_cursor(position: int, after: bytes) -> bytes:
    return (_POSITION.pack(position) + after).hex().encode()


def _read_cursor(cursor: bytes | None) -> _Place:
    """The position to go on at, and the sender there to go on after."""
    if cursor is None:
        return 0, b""
    try:
        plain = bytes.fromhex(cursor.decode())
        return _POSITION.unpack_from(plain)[0], plain[_POSITION.size :]
    except (ValueError, struct.error):
        raise BadRequest("cursor is not one that a scan gave") from None
