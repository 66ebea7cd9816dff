"""A snapshot file is what was written, or it is damaged: nothing in between."""

import struct
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestored import files, snapshot
from statestored.errors import DamagedFile, TooNew
from statestored.files import temporary_name
from statestored.snapshot import (
    BUCKET,
    EFFECTS,
    FOOTER,
    MAGIC,
    Block,
    SnapshotWriter,
    read_snapshot,
    verify_snapshot,
)

STORE = uuid.UUID("7d1c6f0e-0d6a-4b1e-9f4c-2f8e6a1b3c5d")
OTHER = uuid.UUID("11111111-2222-4333-8444-555555555555")
HEADER = 8 + 4 + 16 + 16 + 4
FRAME = 4 * 4

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5).map(tuple),
    max_leaves=20,
)
blocks = st.lists(st.tuples(st.sampled_from([BUCKET, EFFECTS]), values), max_size=8)
Contents = Sequence[tuple[int, Any]]
SOME: Contents = ((BUCKET, (b"default", 0, 0, b"ann@a.example")), (EFFECTS, (1, 2)))


def write(path: Path, contents: Contents = SOME, store: uuid.UUID = STORE) -> bytes:
    with SnapshotWriter(path, store) as writer:
        for kind, content in contents:
            writer.write(kind, content)
        writer.finish(len(contents))
    return path.read_bytes()


def read(path: Path) -> list[Block]:
    return list(read_snapshot(path, STORE))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00000001.snapshot"


@given(contents=blocks)
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, contents: Contents) -> None:
    path = tmp_path_factory.mktemp("snapshot") / "s"
    write(path, contents)
    *found, footer = read(path)
    assert [(block.kind, block.content) for block in found] == contents
    assert (footer.kind, footer.content) == (FOOTER, {b"blocks": len(contents), b"entries": len(contents)})


def test_text_of_every_kind_is_kept(path: Path) -> None:
    texts = (b"", b"\0", "é".encode(), b"\xed\xa0\x80", None)
    write(path, [(BUCKET, texts)])
    assert read(path)[0].content == texts


@pytest.mark.usefixtures("open_umask")
def test_it_is_for_its_owner_only(path: Path) -> None:
    write(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_format_is_the_one_that_is_described(path: Path) -> None:
    data = write(path, [(BUCKET, [1])])
    magic, version, store, file_id, checksum = struct.unpack_from("<8sI16s16sI", data)
    assert (magic, version, store) == (b"\x93STATES\n", 1, STORE.bytes)
    assert checksum == crc32(data[: HEADER - 4])
    kind, length, payload, frame = struct.unpack_from("<IIII", data, HEADER)
    assert (kind, length, payload) == (1, 2, crc32(b"\x91\x01"))
    assert frame == crc32(file_id + struct.pack("<Q", HEADER) + data[HEADER : HEADER + 12])
    assert data[HEADER + FRAME :][:2] == b"\x91\x01"


def test_each_file_has_an_id_of_its_own(tmp_path: Path) -> None:
    one, other = write(tmp_path / "1"), write(tmp_path / "2")
    assert one != other
    assert len(one) == len(other)


def test_nothing_is_under_its_name_before_it_is_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr(files, "sync_file", lambda _: steps.append((path.exists(), temporary_name(path).exists())))
    monkeypatch.setattr(files, "sync_directory", lambda _: steps.append((path.exists(), temporary_name(path).exists())))
    with SnapshotWriter(path, STORE) as writer:
        writer.write(BUCKET, [1])
        assert not path.exists()
        size = writer.size
        writer.finish(0)
    assert steps == [(False, True), (True, False)]
    assert path.stat().st_size > size


def test_sync_says_how_much_is_on_the_disk(path: Path) -> None:
    with SnapshotWriter(path, STORE) as writer:
        assert (writer.size, writer.synced) == (HEADER, 0)
        writer.sync()
        assert writer.synced == HEADER
        writer.write(BUCKET, [1])
        assert (writer.size, writer.synced) == (HEADER + FRAME + 2, HEADER)
        writer.finish(0)


@pytest.mark.parametrize("step", ["write_all", "sync_file", "put_in_place"])
def test_a_failure_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(files, step, fail)
    with pytest.raises(OSError, match="no space left"):
        write(path)
    assert list(path.parent.iterdir()) == []


def test_every_flipped_bit_is_seen(path: Path) -> None:
    data = write(path)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises((DamagedFile, TooNew)):
            verify_snapshot(path, STORE)


def test_every_cut_is_seen(path: Path) -> None:
    data = write(path)
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(DamagedFile):
            verify_snapshot(path, STORE)


@given(junk=st.binary(min_size=1, max_size=40))
def test_junk_behind_it_is_seen(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("snapshot") / "s"
    data = write(path)
    path.write_bytes(data + junk)
    with pytest.raises(DamagedFile) as damage:
        verify_snapshot(path, STORE)
    assert damage.value.offset == len(data)


def test_a_whole_snapshot_behind_it_is_junk_as_well(path: Path) -> None:
    data = write(path)
    path.write_bytes(data + data)
    with pytest.raises(DamagedFile):
        verify_snapshot(path, STORE)


def test_the_damaged_block_is_found(path: Path) -> None:
    data = bytearray(write(path, [(BUCKET, [1]), (BUCKET, [2]), (BUCKET, [3])]))
    second = HEADER + FRAME + 2
    data[second + FRAME] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile) as damage:
        read(path)
    assert damage.value.offset == second
    assert f"{path} is damaged at byte {second}" in str(damage.value)


def test_blocks_in_another_order_are_damage(path: Path) -> None:
    data = write(path, [(BUCKET, [1]), (BUCKET, [2])])
    size = FRAME + 2
    first, second, rest = data[HEADER:][:size], data[HEADER + size :][:size], data[HEADER + 2 * size :]
    path.write_bytes(data[:HEADER] + second + first + rest)
    with pytest.raises(DamagedFile):
        verify_snapshot(path, STORE)


def test_a_block_of_another_file_is_damage(tmp_path: Path) -> None:
    """Its place and its checksum are right; as after a lost write, into a file whose blocks were used before."""
    path = tmp_path / "2"
    old, new = write(tmp_path / "1"), write(path)
    path.write_bytes(new[:HEADER] + old[HEADER:])
    with pytest.raises(DamagedFile):
        verify_snapshot(path, STORE)


def test_a_snapshot_of_another_store_is_refused(path: Path) -> None:
    write(path, store=OTHER)
    with pytest.raises(DamagedFile) as damage:
        verify_snapshot(path, STORE)
    for name in (path, STORE, OTHER):
        assert str(name) in str(damage.value)


def test_a_later_format_is_too_new(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(snapshot, "FORMAT", 2)
        write(path)
    with pytest.raises(TooNew) as refusal:
        verify_snapshot(path, STORE)
    assert str(path) in str(refusal.value)
    assert "format 2" in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 500, MAGIC, b"\0" * 500])
def test_any_other_file_is_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"header|does not begin"):
        verify_snapshot(path, STORE)


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ((9, [1]), "unknown kind 9"),
        ((FOOTER, {"blocks": 2, "entries": 0}), "counts 2 blocks, the file has 1"),
        ((FOOTER, {"entries": 0}), "footer"),
        ((FOOTER, [1, 0]), "footer"),
    ],
)
def test_what_we_never_wrote_is_damage_in_spite_of_its_checksum(path: Path, last: tuple[int, Any], says: str) -> None:
    with SnapshotWriter(path, STORE) as writer:
        writer.write(BUCKET, [1])
        writer.write(*last)
        with pytest.raises(DamagedFile, match=says):
            verify_snapshot(temporary_name(path), STORE)
        writer.finish(0)


def test_a_file_that_is_not_there_is_no_damage(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify_snapshot(path, STORE)
