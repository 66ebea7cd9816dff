"""docs/formats.md is all that one needs: a reader written from it alone finds in the fixtures what was stored."""

import ast
import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgpack
import pytest

FIXTURES = sorted(path.parent for path in (Path(__file__).parent / "fixtures").glob("format-*/*/expected.json"))

FORMATS = Path(__file__).parents[1] / "docs" / "formats.md"

HEADER_SIZE, FRAME_SIZE = 512, 48
BATCH, BUCKET, FOOTER, SESSIONS = 1, 2, 3, 4  # kinds of frames
PUT, CLEAR, DONE, OPENED, EXPIRED = 1, 2, 3, 4, 5  # kinds of effects
START = "START"
MS_A_DAY = 86_400_000

Sequence = tuple[int, int]
Answers = dict[int, tuple[bytes, int | None]]  # by number: the answer, and the fingerprint of its write


class Header(NamedTuple):
    store_id: str
    file_id: bytes
    details: dict[str, Any]


class Frame(NamedTuple):
    """A whole one. `end` is the offset behind it."""

    kind: int
    sequence: Sequence
    time: int
    durable: int
    content: Any
    end: int


class Store:
    """What the files of a directory say, one after the other."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str, str | None], tuple[str, int]] = {}  # to the state and its day
        self.sessions: dict[int, tuple[int, Answers]] = {}  # to `oldest` and the answers

    def load(self, data: bytes, header: Header) -> Sequence:
        """A snapshot. Returns the last batch that may be in it."""
        *blocks, footer = frames(data, header.file_id)
        assert [frame.kind for frame in blocks] == sorted(frame.kind for frame in blocks)
        assert footer.kind == FOOTER
        assert footer.end == len(data)
        assert [frame.sequence for frame in (*blocks, footer)] == [(0, n) for n in range(1, len(blocks) + 2)]
        for block in blocks:
            if block.kind == BUCKET:
                self._load_bucket(*block.content)
            else:
                assert block.kind == SESSIONS
                for session, oldest, answers in block.content:
                    self.sessions[session] = (oldest, {seq: remembered(*of) for seq, *of in answers})
        about = footer.content
        assert (about["blocks"], about["entries"]) == (len(blocks), len(self.entries))
        epoch, counter = about["last"]
        return epoch, counter

    def _load_bucket(
        self, namespace: bytes, start: int, depth: int, held: list[Any], senders: list[bytes | None], column: list[int]
    ) -> None:
        for sender, index in zip(senders, column, strict=True):
            position = 0 if sender is None else crc32(sender)
            assert start <= position < start + 2 ** (32 - depth)
            for module, state, day in held[index]:
                self.entries[text(namespace), text(module), text_or_nil(sender)] = text(state), day

    def apply(self, batch: Frame) -> None:
        assert batch.kind == BATCH
        for kind, *what in batch.content or ():
            if kind == PUT:
                namespace, module, sender, state = what
                self._put(namespace, module, sender, state, batch.time // MS_A_DAY)
            elif kind == CLEAR:
                self.entries = {key: entry for key, entry in self.entries.items() if key[0] != text(what[0])}
            elif kind == DONE:
                self._remember(*what)
            elif kind == OPENED:
                self.sessions.setdefault(what[0], (1, {}))
            else:
                assert kind == EXPIRED
                self.sessions.pop(what[0], None)

    def _put(self, namespace: bytes, module: bytes, sender: bytes | None, state: bytes, day: int) -> None:
        key = text(namespace), text(module), text_or_nil(sender)
        if text(state) == START:
            self.entries.pop(key, None)
        elif key not in self.entries or self.entries[key][0] != text(state):
            self.entries[key] = text(state), day

    def _remember(self, session: int, seq: int, oldest: int, *done: Any) -> None:
        if session not in self.sessions:
            return
        known, answers = self.sessions[session]
        oldest = max(known, oldest)
        answers = {number: answer for number, answer in answers.items() if number >= oldest}
        if seq >= oldest:
            answers.setdefault(seq, remembered(*done))
        self.sessions[session] = oldest, answers


def read_header(data: bytes, magic: bytes) -> Header:
    assert int.from_bytes(data[508:512], "little") == crc32(data[:508])
    assert data[:8] == magic
    assert int.from_bytes(data[8:12], "little") in (1, 2)
    length = int.from_bytes(data[44:48], "little")
    assert data[48 + length : 508].strip(b"\0") == b""
    return Header(data[12:28].hex(), data[28:44], msgpack.unpackb(data[48 : 48 + length]))


def frames(data: bytes, file_id: bytes) -> Iterator[Frame]:
    """From the header on, up to the first that is not whole."""
    offset = HEADER_SIZE
    while offset + FRAME_SIZE <= len(data):
        mark, kind, length, epoch, counter, time, durable, of_payload, of_head = struct.unpack_from(
            "<4sIIIQQQII", data, offset
        )
        place = crc32(file_id + struct.pack("<Q", offset))
        start = offset + FRAME_SIZE
        payload = data[start : start + length]
        sums = crc32(payload, place), crc32(data[offset : offset + 44], place)
        if (mark, len(payload), sums) != (file_id[:4], length, (of_payload, of_head)):
            return
        content = msgpack.unpackb(payload, unicode_errors="surrogatepass") if payload else None
        offset = start + length
        yield Frame(kind, (epoch, counter), time, durable, content, offset)


def read_directory(path: Path) -> Store:
    """The steps of "Reading all of it"."""
    store = Store()
    identity = json.loads((path / "store.json").read_text())
    assert identity["format"] == 1
    numbers = [int(snapshot.stem) for snapshot in path.glob("*.snapshot")]
    first, needed = max(numbers, default=0), (0, 0)

    def read(number: int, kind: str, magic: str) -> tuple[bytes, Header]:
        data = (path / f"{number:08}.{kind}").read_bytes()
        header = read_header(data, bytes.fromhex(magic))
        assert header.store_id == identity["store_id"].replace("-", "")
        assert header.details["number"] == number
        return data, header

    if first:
        needed = store.load(*read(first, "snapshot", "93 53 54 41 54 45 53 0A"))
    chain: list[tuple[bytes, Header]] = []
    number = max(int(segment.stem) for segment in path.glob("*.journal"))
    while number >= max(first, 1):
        chain.insert(0, read(number, "journal", "93 4A 4F 55 52 4E 4C 0A"))
        number = chain[0][1].details["previous"]
    assert chain[0][1].details["number"] == max(first, 1)
    last = tuple(chain[0][1].details["after"])
    for (data, header), follower in zip(chain, [*chain[1:], None], strict=True):
        assert tuple(header.details["after"]) == last
        counts_to = len(data) if follower is None else follower[1].details["previous_end"]
        end = HEADER_SIZE
        for batch in frames(data, header.file_id):
            if batch.end > counts_to:
                break
            epoch, counter = last
            assert batch.sequence == (epoch, counter + 1) or (batch.sequence[0] > epoch and batch.sequence[1] == 1)
            store.apply(batch)
            last, end = batch.sequence, batch.end
        assert follower is None or end == counts_to
        assert follower is not None or end >= header.details["durable"]
    assert last >= needed
    return store


def remembered(answer: bytes, fingerprint: int | None = None) -> tuple[bytes, int | None]:
    return answer, fingerprint


def fingerprint(namespace: bytes, method: str, *parameters: bytes | None) -> int:
    return crc32(msgpack.packb(parameters), crc32(msgpack.packb([namespace, method])))


def text(data: bytes) -> str:
    return data.decode(errors="surrogatepass")


def text_or_nil(data: bytes | None) -> str | None:
    return None if data is None else text(data)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_by_what_the_document_says_a_fixture_is_read_as_what_was_stored(fixture: Path) -> None:
    expected = json.loads((fixture / "expected.json").read_text())
    store = read_directory(fixture / "data")
    entries = [[*key, *entry] for key, entry in store.entries.items()]
    assert sorted(entries, key=repr) == sorted(expected["entries"], key=repr)
    sessions = [
        [session, oldest, [[seq, answer.hex(), fingerprint] for seq, (answer, fingerprint) in sorted(answers.items())]]
        for session, (oldest, answers) in store.sessions.items()
    ]
    # Format 1 has no fingerprints.
    told = [[*of, [[*each, None][:3] for each in answers]] for *of, answers in expected.get("sessions", [])]
    assert sorted(sessions) == sorted(told)


def test_a_fingerprint_is_calculated_as_is_said() -> None:
    said = dict(re.findall(r"^\| (N|P|fingerprint) \| `([0-9A-Fa-f ]+)` \|$", FORMATS.read_text(), re.M))
    assert crc32(bytes.fromhex(said["P"]), crc32(bytes.fromhex(said["N"]))) == int(said["fingerprint"], 16)
    assert fingerprint(b"default", "set", b"lists", None, b"A") == int(said["fingerprint"], 16)
    last_swap = fingerprint(b"default", "compare_and_set", b"lists", b"ann@example.org", b"B", b"C")
    fixture = next(fixture for fixture in FIXTURES if fixture.parts[-2:] == ("format-2", "sessions"))
    assert last_swap in [
        of for _, answers in read_directory(fixture / "data").sessions.values() for _, of in answers.values()
    ]


def test_the_reader_knows_nothing_of_the_code() -> None:
    """Nor of the helpers of other tests, which do."""
    tree = ast.parse(Path(__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {*sys.stdlib_module_names, "msgpack", "pytest"}
