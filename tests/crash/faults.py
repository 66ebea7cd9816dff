"""Faults of the daemon. Each of these puts one in, for as long as the patch lasts; the tests must notice (K3)."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Sequential
from typing import Any, BinaryIO

import pytest

from statestore.errors import StateStoreError
from statestored import files, framing, segment, snapshot
from statestored.datadir import DataDirectory
from statestored.engines import recovery, snapshots
from statestored.engines.base import Sender
from statestored.engines.commits import Batch, GroupCommit
from statestored.engines.embedded import EmbeddedSpace
from statestored.engines.sessions import DONE, ClientSessions
from statestored.engines.states import Effect, States
from statestored.framing import Frame, Sequence
from statestored.journal import End, Journal, JournalReader
from statestored.segment import SegmentWriter
from statestored.snapshot import SnapshotWriter

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], None]


# Sessions


def answer_not_written(patch: Patch) -> None:
    """A write that has a number is durable, and its answer is not."""
    commit = GroupCommit.commit

    def commit_all_but_answers(commits: GroupCommit, effects: Sequential[Effect]) -> Batch | None:
        batch = commit(commits, effects)
        if batch is not None and effects[0][0] == DONE:
            batch.effects.pop()
        return batch

    patch.setattr(GroupCommit, "commit", commit_all_but_answers)


def answer_in_the_next_batch(patch: Patch) -> None:
    """It is durable soon after its write."""
    commit = GroupCommit.commit

    def commit_later(commits: GroupCommit, effects: Sequential[Effect]) -> Batch | None:
        def commit_now(_: None, error: StateStoreError | None) -> None:
            if error is None:
                commit(commits, effects)

        if effects[0][0] == DONE:
            commits.batch.then(commit_now, None)
            return commits.batch
        return commit(commits, effects)

    patch.setattr(GroupCommit, "commit", commit_later)


def sessions_not_in_snapshot(patch: Patch) -> None:
    async def write_none(_sessions: ClientSessions, _writer: SnapshotWriter) -> None: ...

    patch.setattr(snapshots, "_write_sessions", write_none)


def sessions_not_taken_back(patch: Patch) -> None:
    patch.setattr(ClientSessions, "revert", lambda sessions: sessions.settle())


# Writing the journal


def acknowledged_before_synced(patch: Patch) -> None:
    """The sync comes once the answers are out."""
    written = GroupCommit._written

    def append(commits: GroupCommit, time: int, effects: Sequential[Effect]) -> None:
        commits._journal.reserve()
        commits._journal.append(time, commits._packed(effects))

    def answer_and_sync(commits: GroupCommit, error: BaseException | None) -> None:
        written(commits, error)
        commits._thread.submit(commits._journal.sync)

    patch.setattr(GroupCommit, "_append_and_sync", append)
    patch.setattr(GroupCommit, "_written", answer_and_sync)


def segment_never_synced(patch: Patch) -> None:
    def sync(writer: SegmentWriter) -> None:
        writer.durable = writer.end

    patch.setattr(SegmentWriter, "sync", sync)


def mark_too_high(patch: Patch) -> None:
    """A batch says that everything before it is on the disk, although it was only written."""
    append = SegmentWriter.append

    def append_marked(writer: SegmentWriter, sequence: Sequence, time: int, payload: bytes) -> None:
        writer.durable = writer.end
        append(writer, sequence, time, payload)

    patch.setattr(SegmentWriter, "append", append_marked)


def mark_of_what_came_during_the_sync(patch: Patch) -> None:
    """What was appended while a sync was under way counts as synced."""

    def sync(writer: SegmentWriter) -> None:
        files.sync_file(writer._file)
        writer.durable = writer.end

    patch.setattr(SegmentWriter, "sync", sync)


def full_segment_not_synced(patch: Patch) -> None:
    """The next one says that it follows, and up to where, before that is on the disk."""
    rotate = Journal.rotate

    def rotate_unsynced(journal: Journal) -> None:
        with pytest.MonkeyPatch.context() as unsynced:
            unsynced.setattr(journal._writer, "sync", lambda: None)
            rotate(journal)

    patch.setattr(Journal, "rotate", rotate_unsynced)


# The directory


def directory_never_synced(patch: Patch) -> None:
    patch.setattr(files, "put_in_place", lambda temporary, path: files.rename(temporary, path))


def names_found_not_synced(patch: Patch) -> None:
    """A start builds on names that only the system's cache has."""
    begin = Journal.begin

    def begin_at_once(journal: Journal) -> None:
        with pytest.MonkeyPatch.context() as unsynced:
            # The first sync is left out. It restores the function at once, before any other thread can call it.
            unsynced.setattr(files, "sync_directory", lambda _: unsynced.undo())
            begin(journal)

    patch.setattr(Journal, "begin", begin_at_once)


# Snapshots


def snapshot_renamed_before_synced(patch: Patch) -> None:
    finish = SnapshotWriter.finish

    def flush_unsynced(writer: SnapshotWriter) -> None:
        data, writer._unwritten, writer.unwritten = b"".join(writer._unwritten), [], 0
        files.write_at(writer._file, data, writer.size - len(data))

    def finish_and_sync(writer: SnapshotWriter, entries: int, last: Sequence) -> None:
        finish(writer, entries, last)
        with files.open_to_read(writer._path) as file:
            files.sync_file(file)

    patch.setattr(SnapshotWriter, "flush", flush_unsynced)
    patch.setattr(SnapshotWriter, "finish", finish_and_sync)


def segments_removed_before_snapshot(patch: Patch) -> None:
    """Before it has its name."""
    finish = SnapshotWriter.finish

    def remove_and_finish(writer: SnapshotWriter, entries: int, last: Sequence) -> None:
        DataDirectory(writer._path.parent).remove_before(int(writer._path.stem))
        finish(writer, entries, last)

    patch.setattr(SnapshotWriter, "finish", remove_and_finish)


def snapshot_not_verified(patch: Patch) -> None:
    patch.setattr(snapshot, "verify_snapshot", lambda *_: None)


def snapshot_before_journal(patch: Patch) -> None:
    """It has commits that the journal on the disk has not yet."""

    async def durable(commits: GroupCommit) -> Sequence:
        return commits._journal.last

    patch.setattr(GroupCommit, "durable", durable)


# Recovery


def tail_not_copied(patch: Patch) -> None:
    """What a start reads from the system's cache counts as being on the disk (D10)."""
    batches = JournalReader.batches

    def batches_as_they_are(reader: JournalReader) -> Iterator[Frame]:
        yield from batches(reader)
        if reader.has_copies:
            reader.end = End(reader.end.segment, reader.offset, reader.last)

    patch.setattr(JournalReader, "batches", batches_as_they_are)


def tail_not_synced_where_it_cannot_be_copied(patch: Patch) -> None:
    patch.setattr(Journal, "_sync_found", lambda _: None)


def copies_synced_too_late(patch: Patch) -> None:
    """The new segment has its name before what it has copied is on the disk."""
    make = SegmentWriter.__init__

    def make_and_copy(writer: SegmentWriter, path: Any, store_id: Any, origin: Any, copies: Iterable[Frame]) -> None:
        make(writer, path, store_id, origin, [])
        for frame in copies:
            writer.append(frame.sequence, frame.time, frame.payload)
        writer.sync()

    patch.setattr(SegmentWriter, "__init__", make_and_copy)


def batch_applied_twice(patch: Patch) -> None:
    """Each one again after the next."""
    replay = recovery.replay_batch
    last: list[tuple[States, Frame]] = []

    def replay_again(path: Any, frame: Frame, states: States) -> None:
        replay(path, frame, states)
        for into, before in last:
            if into is states and before.end == frame.offset:
                replay(path, before, states)
        last[:] = [(states, frame)]

    patch.setattr(recovery, "replay_batch", replay_again)


def payload_not_checked(patch: Patch) -> None:
    """A frame whose head is whole counts as whole."""

    def read_frame(file: BinaryIO, offset: int, file_id: bytes) -> Frame | None:
        head = file.read(framing.FRAME_SIZE)
        found = next(framing.find_frames(head, offset, file_id), None)
        if found is None or found.offset != offset:
            return None
        kind, length, *sequence = framing._FRAME.unpack_from(head)[1:5]
        time, durable = framing._FRAME.unpack_from(head)[5:7]
        payload = file.read(length)
        return Frame(kind, Sequence(*sequence), time, durable, payload, offset) if len(payload) == length else None

    patch.setattr(segment, "read_frame", read_frame)


# The states in memory


def nothing_taken_back(patch: Patch) -> None:
    """Where there is no room, what was refused stays."""
    patch.setattr(States, "revert", lambda _: None)


def get_not_held(patch: Patch) -> None:
    """It says what is not on the disk yet."""

    def get(space: EmbeddedSpace, module: bytes, sender: Sender) -> bytes:
        return space._table.get(module, sender)

    patch.setattr(EmbeddedSpace, "get", get)
