"""A snapshot file is what was written, or it is damaged: nothing in between."""

import errno
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestored import files, framing
from statestored.errors import DamagedFile, DiskFailed, NoRoom, TooNew
from statestored.files import temporary_name
from statestored.framing import FRAME_SIZE, HEADER_SIZE, Frame, Kind, pack_frame, pack_header, unpack_header
from statestored.framing import Sequence as Number
from statestored.snapshot import (
    MAGIC,
    Footer,
    SnapshotWriter,
    content_of,
    footer_of,
    read_begin_time,
    read_snapshot,
    verify_snapshot,
)
from tests.server.journals import flipped

STORE = uuid.UUID("7d1c6f0e-0d6a-4b1e-9f4c-2f8e6a1b3c5d")
OTHER = uuid.UUID("11111111-2222-4333-8444-555555555555")
FILE = b"some random id.."
TIME = 1_700_000_000_000
LAST = Number(3, 44)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5).map(tuple),
    max_leaves=20,
)
Contents = Sequence[Any]
SOME: Contents = ((b"default", 0, 0, b"ann@a.example"), (1, 2))


def write(path: Path, contents: Contents = SOME, store: uuid.UUID = STORE) -> bytes:
    with SnapshotWriter(path, store, TIME) as writer:
        for content in contents:
            writer.add(Kind.BUCKET, content)
        writer.finish(len(contents), LAST)
    return path.read_bytes()


def crafted(path: Path, *frames: tuple[int, tuple[int, int], Any]) -> None:
    """With checksums that are right, whatever they are over."""
    data = pack_header(MAGIC, STORE, FILE, {"number": int(path.stem)})
    for kind, number, content in frames:
        payload = msgpack.packb(content)
        data += pack_frame(FILE, len(data), kind, Number(*number), TIME, 0, payload)  # type: ignore[arg-type]
    path.write_bytes(data)


def read(path: Path) -> list[Frame]:
    return list(read_snapshot(path, STORE))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00000001.snapshot"


@given(contents=st.lists(values, max_size=8), flushed=st.sets(st.integers(0, 8)))
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, contents: Contents, flushed: set[int]
) -> None:
    path = tmp_path_factory.mktemp("snapshot") / "00000001.snapshot"
    with SnapshotWriter(path, STORE, TIME) as writer:
        for number, content in enumerate(contents):
            writer.add(Kind.BUCKET, content)
            if number in flushed:
                writer.flush()
        writer.finish(17, LAST)
    *found, footer = read(path)
    assert [content_of(path, frame) for frame in found] == contents
    assert [frame.kind for frame in found] == [Kind.BUCKET] * len(contents)
    assert [frame.sequence for frame in found] == [(0, number + 1) for number in range(len(contents))]
    assert {frame.time for frame in (*found, footer)} == {TIME}
    assert footer_of(path, footer) == Footer(blocks=len(contents), entries=17, last=LAST)
    verify_snapshot(path, STORE)


def test_text_of_every_kind_is_kept(path: Path) -> None:
    texts = (b"", b"\0", "é".encode(), b"\xed\xa0\x80", None)
    write(path, [texts])
    assert content_of(path, read(path)[0]) == texts


@pytest.mark.usefixtures("open_umask")
def test_it_is_for_its_owner_only(path: Path) -> None:
    write(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_format_is_the_one_that_is_described(path: Path) -> None:
    data = write(path, [[1]])
    header = unpack_header(path, data, b"\x93STATES\n")
    assert (header.store_id, header.details) == (STORE, {b"number": 1})
    block = data[HEADER_SIZE : HEADER_SIZE + FRAME_SIZE + 2]
    assert block == pack_frame(header.file_id, HEADER_SIZE, Kind.BUCKET, Number(0, 1), TIME, 0, b"\x91\x01")
    footer = data[HEADER_SIZE + len(block) + FRAME_SIZE :]
    assert msgpack.unpackb(footer) == {"blocks": 1, "entries": 1, "last": [3, 44]}


def test_each_file_has_an_id_of_its_own(path: Path) -> None:
    one, other = write(path), write(path)
    assert one != other
    assert len(one) == len(other)


def test_nothing_is_under_its_name_before_it_is_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D7: file, name, directory, in this order."""
    steps: list[tuple[str, bool, bytes]] = []
    temporary, rename = temporary_name(path), files.rename

    def renamed(source: Path, target: Path) -> None:
        steps.append(("rename", path.exists(), source.read_bytes()))
        rename(source, target)

    monkeypatch.setattr(files, "sync_file", lambda _: steps.append(("sync", path.exists(), temporary.read_bytes())))
    monkeypatch.setattr(files, "rename", renamed)
    monkeypatch.setattr(files, "sync_directory", lambda _: steps.append(("directory", path.exists(), b"")))
    data = write(path)
    assert steps == [("sync", False, data), ("rename", False, data), ("directory", True, b"")]


def test_adding_only_takes_note(path: Path) -> None:
    """The loop adds; what waits for the disk, `flush`, runs in another thread."""
    with SnapshotWriter(path, STORE, TIME) as writer:
        writer.flush()
        assert (writer.unwritten, temporary_name(path).stat().st_size) == (0, HEADER_SIZE)
        writer.add(Kind.BUCKET, [1])
        assert (writer.unwritten, temporary_name(path).stat().st_size) == (FRAME_SIZE + 2, HEADER_SIZE)
        writer.flush()
        assert (writer.unwritten, temporary_name(path).stat().st_size) == (0, HEADER_SIZE + FRAME_SIZE + 2)
        writer.finish(1, LAST)
    verify_snapshot(path, STORE)


@pytest.mark.parametrize("step", ["write_at", "sync_file", "rename"])
@pytest.mark.parametrize("error", [NoRoom(errno.ENOSPC, "full"), DiskFailed(OSError(errno.EIO, "broken"))])
def test_a_failure_leaves_nothing_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(files, step, fail)
    with pytest.raises(type(error)):
        write(path)
    assert list(path.parent.iterdir()) == []


def test_a_failure_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise NoRoom(errno.ENOSPC, "full")

    data = write(path)
    monkeypatch.setattr(files, "write_at", fail)
    with pytest.raises(NoRoom):
        write(path, [[5]])
    assert [each.read_bytes() for each in path.parent.iterdir()] == [data]


def test_every_flipped_bit_is_seen(path: Path) -> None:
    """D5."""
    data = write(path)
    for bit in range(8 * len(data)):
        path.write_bytes(flipped(data, bit))
        with pytest.raises(DamagedFile):
            verify_snapshot(path, STORE)


def test_every_cut_is_seen(path: Path) -> None:
    data = write(path)
    for size in range(len(data)):
        for behind in (b"", bytes(8192)):
            path.write_bytes(data[:size] + behind)
            with pytest.raises(DamagedFile):
                verify_snapshot(path, STORE)


@given(junk=st.binary(min_size=1, max_size=40))
def test_junk_behind_it_is_seen(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("snapshot") / "00000001.snapshot"
    data = write(path)
    path.write_bytes(data + junk)
    with pytest.raises(DamagedFile, match="follows the footer") as damage:
        verify_snapshot(path, STORE)
    assert damage.value.offset == len(data)


def test_a_whole_snapshot_behind_it_is_junk_as_well(path: Path) -> None:
    data = write(path)
    path.write_bytes(data + data)
    with pytest.raises(DamagedFile):
        verify_snapshot(path, STORE)


def test_the_damaged_block_is_found(path: Path) -> None:
    data = bytearray(write(path, [[1], [2], [3]]))
    second = HEADER_SIZE + FRAME_SIZE + 2
    data[second + FRAME_SIZE] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile) as damage:
        read(path)
    assert damage.value.offset == second
    assert f"{path} is damaged at byte {second}" in str(damage.value)


def test_blocks_in_another_order_are_damage(path: Path) -> None:
    data = write(path, [[1], [2]])
    size = FRAME_SIZE + 2
    first, second, rest = (data[HEADER_SIZE:][at:to] for at, to in ((0, size), (size, 2 * size), (2 * size, None)))
    path.write_bytes(data[:HEADER_SIZE] + second + first + rest)
    with pytest.raises(DamagedFile):
        verify_snapshot(path, STORE)


def test_a_block_of_another_file_is_damage(path: Path) -> None:
    """Its place and its checksum are right; as after a lost write, into a file whose blocks were used before."""
    old, new = write(path), write(path)
    path.write_bytes(new[:HEADER_SIZE] + old[HEADER_SIZE:])
    with pytest.raises(DamagedFile):
        verify_snapshot(path, STORE)


def test_a_snapshot_of_another_store_is_refused(path: Path) -> None:
    write(path, store=OTHER)
    with pytest.raises(DamagedFile) as damage:
        verify_snapshot(path, STORE)
    for name in (path, STORE, OTHER):
        assert str(name) in str(damage.value)


def test_a_snapshot_under_another_number_is_refused(path: Path) -> None:
    """It would be taken for one of other batches."""
    write(path)
    renamed = path.rename(path.with_name("00000002.snapshot"))
    with pytest.raises(DamagedFile, match="made as number 1"):
        verify_snapshot(renamed, STORE)


def test_a_later_format_is_too_new(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(framing, "FORMAT", 3)
        write(path)
    with pytest.raises(TooNew) as refusal:
        verify_snapshot(path, STORE)
    assert str(path) in str(refusal.value)
    assert "format 3" in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 600, MAGIC, b"\0" * 600, MAGIC * 70])
def test_any_other_file_is_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"header|does not begin"):
        verify_snapshot(path, STORE)


def footer(**changed: Any) -> dict[str, Any]:
    return {"blocks": 1, "entries": 0, "last": LAST} | changed


BUCKET = (Kind.BUCKET, (0, 1), [1])


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([BUCKET], "no whole block"),
        ([BUCKET, BUCKET, (Kind.FOOTER, (0, 2), footer())], "block 1 where 2 should be"),
        ([(Kind.BUCKET, (0, 2), [1])], "block 2 where 1 should be"),
        ([(Kind.BUCKET, (1, 1), [1])], "block 1 where 1 should be"),
        ([BUCKET, (Kind.FOOTER, (0, 2), footer(blocks=2))], "counts other blocks"),
        ([BUCKET, (Kind.FOOTER, (0, 2), {"blocks": 1})], "footer makes no sense"),
        ([BUCKET, (Kind.FOOTER, (0, 2), footer(last=[1, 2, 3]))], "footer makes no sense"),
        ([BUCKET, (Kind.FOOTER, (0, 2), [1, 0])], "footer makes no sense"),
        ([BUCKET, (Kind.FOOTER, (0, 2), footer()), (Kind.BUCKET, (0, 3), [1])], "follows the footer"),
    ],
)
def test_what_we_never_wrote_is_damage_in_spite_of_its_checksum(
    path: Path, frames: list[tuple[int, tuple[int, int], Any]], says: str
) -> None:
    crafted(path, *frames)
    with pytest.raises(DamagedFile, match=says):
        verify_snapshot(path, STORE)


@pytest.mark.parametrize("kind", [Kind.BATCH, 9])
def test_a_block_of_a_later_release_is_too_new(path: Path, kind: int) -> None:
    crafted(path, (kind, (0, 1), [1]), (Kind.FOOTER, (0, 2), footer()))
    block, _ = read(path)
    with pytest.raises(TooNew, match=f"{path} has a block of kind {int(kind)},"):
        content_of(path, block)


def test_a_file_that_is_not_there_is_no_damage(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify_snapshot(path, STORE)


@pytest.mark.parametrize("contents", [SOME, ()])
def test_it_says_when_its_writing_began(tmp_path: Path, contents: Contents) -> None:
    path = tmp_path / "00000007.snapshot"
    write(path, contents)
    assert read_begin_time(path, STORE) == TIME
    with pytest.raises(DamagedFile):
        read_begin_time(path, OTHER)
