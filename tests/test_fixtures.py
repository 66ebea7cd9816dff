"""Directories of every released format load for ever, and the examples in docs/formats.md are what the code writes."""

import asyncio
import json
import re
import shutil
import uuid
from pathlib import Path
from zlib import crc32

import msgpack
import pytest

from statestore import RemoteStorage, wire
from statestored import segment
from statestored.answers import NIL
from statestored.check import check
from statestored.datadir import IDENTITY, read_identity
from statestored.engines.recovery import effects_of, recover
from statestored.engines.states import States
from statestored.errors import Exit
from statestored.framing import HEADER_SIZE, Sequence
from statestored.segment import Origin, SegmentReader, SegmentWriter
from tests.daemon import Daemon
from tests.fixtures.make import expected_sessions
from tests.server.damaged import bytes_of, frames
from tests.server.journals import opened
from tests.server.models import content, remembered
from tests.server.rpc import RawClient, code_of

MADE = Path(__file__).parent / "fixtures"
FIXTURES = sorted(path.parent for path in MADE.glob("format-*/*/expected.json"))
ROOT = Path(__file__).parents[1]
FORMATS = ROOT / "docs" / "formats.md"

Entry = tuple[str, str, str | None, str, int]


def text(data: bytes | None) -> str | None:
    return None if data is None else data.decode(errors=wire.UNICODE_ERRORS)


def entries(states: States) -> set[Entry]:
    return {
        (text(namespace), text(module), text(sender), text(state), day)  # type: ignore[misc]
        for namespace, model in content(states).items()
        for (module, sender), (state, day) in model.items()
    }


def expected(fixture: Path) -> set[Entry]:
    return {tuple(entry) for entry in json.loads((fixture / "expected.json").read_text())["entries"]}


def test_there_are_fixtures() -> None:
    assert {str(path.relative_to(MADE)) for path in FIXTURES} >= {
        "format-1/journal",
        "format-1/snapshot",
        "format-1/torn",
        "format-1/sessions",
        "format-2/journal",
        "format-2/snapshot",
        "format-2/torn",
        "format-2/sessions",
        "format-2/upgraded",
    }


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_fixture_loads_as_what_was_written_and_is_left_as_it_is(fixture: Path, tmp_path: Path) -> None:
    path = shutil.copytree(fixture / "data", tmp_path / "data")
    before = bytes_of(path)
    with opened(path) as directory:
        states = States()
        asyncio.run(recover(directory, states))
    assert entries(states) == expected(fixture)
    assert remembered(states.sessions) == expected_sessions(fixture)
    assert {**bytes_of(path), "lock": b""} == {**before, "lock": b""}


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_fixture_is_sound(fixture: Path) -> None:
    """Looked at in its place: a check changes nothing."""
    before = bytes_of(fixture)
    assert check(fixture / "data").code == Exit.STOPPED
    assert bytes_of(fixture) == before


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_daemon_goes_on_with_a_fixture(fixture: Path, tmp_path: Path) -> None:
    """D9"""
    daemon = Daemon(tmp_path)
    shutil.copytree(fixture / "data", daemon.data_dir)
    before = {(namespace, module, sender): state for namespace, module, sender, state, _ in expected(fixture)}
    with daemon.start():
        assert stored(daemon) == before
        with RemoteStorage(daemon.address) as store:
            store.set("lists", "new@example.org", "ADDED")
        daemon.kill()
        assert stored(daemon.start()) == before | {("default", "lists", "new@example.org"): "ADDED"}


def stored(daemon: Daemon) -> dict[tuple[str, str, str | None], str]:
    """By namespace, module and sender: in all namespaces of the fixtures."""
    found: dict[tuple[str, str, str | None], str] = {}
    for namespace in {namespace for fixture in FIXTURES for namespace, *_ in expected(fixture)}:
        with RemoteStorage(daemon.address, namespace=namespace) as store:
            found |= {(namespace, entry.module, entry.sender): entry.state for entry in store.scan()}
    return found


SWAP = ("compare_and_set", "lists", "ann@example.org")


@pytest.mark.parametrize("fixture", ["format-1/sessions", "format-2/sessions", "format-2/upgraded"])
def test_a_write_of_before_is_still_known(fixture: str, tmp_path: Path) -> None:
    """K2. One of format 1 by its number alone, one of format 2 by what it was as well."""
    path, daemon = MADE / fixture, Daemon(tmp_path)
    shutil.copytree(path / "data", daemon.data_dir)
    session, (oldest, answers) = next(each for each in expected_sessions(path).items() if 4 in each[1][1])
    answer, fingerprint = answers[4]
    number = {"seq": 4, "oldest": oldest}
    with daemon.start(), RawClient(daemon.address) as client:
        assert client.ask("hello", {"session": session})["session"] == session
        first = msgpack.unpackb(answer)
        assert client.ask(*SWAP, "B", "C", number) == first == [True, "B"]
        error, result = client.call(*SWAP, "OTHER", "STATES", number)
        assert (error is None, code_of(error), result) == (
            (True, "", first) if fingerprint is None else (False, "number_reused", None)
        )
    assert (fingerprint is None) == (fixture != "format-2/sessions")


@pytest.mark.parametrize("made", ["format-1", "format-2"])
def test_what_is_in_the_fixtures_of_a_format(made: str) -> None:
    """What they are for: a chain of segments with copies, a snapshot with a journal, a batch that is there in part."""
    directory = MADE / made
    segments = sorted((directory / "journal" / "data").glob("*.journal"))
    assert {path.read_bytes()[8] for path in directory.glob("*/data/0*")} == {int(made[-1])}
    store_id = read_identity(directory / "journal" / "data" / IDENTITY)
    origins = [SegmentReader(path, store_id).origin for path in segments]
    assert [origin.previous for origin in origins] == [0, 1, 2]
    assert [origin.durable > HEADER_SIZE for origin in origins] == [False, True, True]
    assert {path.name for path in (directory / "snapshot" / "data").iterdir()} == {
        "store.json",
        "00000002.snapshot",
        "00000002.journal",
    }
    assert "the last 90 bytes are no whole batch" in check(directory / "torn" / "data").report
    sessions = directory / "sessions" / "data"
    batches = [(path, frame) for path in sessions.glob("*.journal") for frame in frames(path)]
    effects = [effect for path, frame in batches for some in effects_of(path, frame) for effect in some]
    assert {kind for kind, *_ in effects} == {1, 3, 4, 5}
    assert [frame.kind for frame in frames(sessions / "00000002.snapshot")] == [2, 4, 3]
    assert len(expected_sessions(sessions.parent)) == 2
    everything = set().union(*map(expected, FIXTURES))
    assert {sender for _, _, sender, _, _ in everything} >= {None, "\ud83d@example.org", "a\0b"}
    assert len({namespace for namespace, *_ in everything}) == 3


# docs/formats.md


def example(kind: str) -> str:
    """What is said of it."""
    return FORMATS.read_text().partition(f"\n### A {kind}\n")[2].partition("\n### ")[0]


def documented(kind: str) -> bytes:
    """The example, from its dump."""
    text = example(kind)
    match = re.search(r"^Of (\d+) bytes", text, re.M)
    assert match
    data = bytearray(int(match[1]))
    for offset, line in re.findall(r"^    ([0-9a-f]{8}) ((?: {1,2}[0-9a-f]{2}){1,16}) +\|", text, re.M):
        at, part = int(offset, 16), bytes.fromhex(line)
        data[at : at + len(part)] = part
    return bytes(data)


def test_the_example_is_what_the_code_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment.os, "urandom", lambda size: bytes(range(0xA0, 0xA0 + size)))
    path, store_id = tmp_path / "00000002.journal", uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
    origin = Origin(2, 2, bytes(range(0xB0, 0xC0)), previous=1, previous_end=600, after=Sequence(1, 3))
    writer = SegmentWriter(path, store_id, origin, [])
    effects = [(1, b"default", b"lists", b"ann@example.org", b"CONFIRMING")]
    writer.append(Sequence(2, 1), 1735689600000, wire.packer()(effects))
    writer.sync()
    writer.append(Sequence(2, 2), 1735689600050, b"")
    writer.close()
    assert path.read_bytes() == documented("segment")


def test_the_other_example_is_a_fixture() -> None:
    (fixture,) = [fixture for fixture in FIXTURES if str(fixture.relative_to(ROOT)) in example("snapshot")]
    assert (fixture / "data" / "00000002.snapshot").read_bytes() == documented("snapshot")


def test_an_answer_is_remembered_as_is_said() -> None:
    assert "the answer nil is `C4 01 C0`" in FORMATS.read_text()
    assert wire.packer()(NIL) == bytes.fromhex("C4 01 C0")


@pytest.mark.parametrize(("kind", "offsets"), [("segment", (512, 608)), ("snapshot", (512, 608, 740))])
def test_its_checksums_are_calculated_as_is_said(kind: str, offsets: tuple[int, ...]) -> None:
    """By nothing but the words of the document."""
    data = documented(kind)
    file_id = data[28:44]
    wanted = re.findall(r"^\| [^|]+ \| [^|]+ \| `([0-9a-f]{8})` \|$", example(kind), re.M)
    calculated = [crc32(data[:508])]
    for offset in offsets:
        length = int.from_bytes(data[offset + 8 : offset + 12], "little")
        place = crc32(file_id + offset.to_bytes(8, "little"))
        payload = crc32(data[offset + 48 : offset + 48 + length], place)
        head = crc32(data[offset : offset + 44], place)
        assert [payload, head] == [int.from_bytes(data[offset + at : offset + at + 4], "little") for at in (40, 44)]
        calculated += [place, payload, head]
    assert calculated[0] == int.from_bytes(data[508:512], "little")
    assert wanted == [f"{checksum:08x}" for checksum in calculated]
