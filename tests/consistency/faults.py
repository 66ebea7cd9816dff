"""Faults of the daemon and of the client. Each puts one in; the tests must notice (K3)."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from statestore.calls import Call
from statestore.connection import Connection
from statestore.pool import Place, Pool, Question
from statestore.protocol import ClientProtocol, ConnectionLost, Response, Welcome
from statestore.session import Session
from statestored import connection, intake, locks, writes
from statestored.engines import embedded, leases
from statestored.engines.base import Number, Reply
from statestored.engines.embedded import EmbeddedEngine
from statestored.engines.sessions import ClientSession, ClientSessions, packed
from statestored.errors import DiskFailed
from statestored.responses import Responses
from statestored.segment import SegmentReader, SegmentWriter

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch], None]


# The daemon


def nothing_remembered(patch: Patch) -> None:
    """What comes again is carried out again."""

    def once(_engine: EmbeddedEngine, _number: Number, write: Callable[[], Reply]) -> Reply:
        return write()

    patch.setattr(EmbeddedEngine, "once", once)
    patch.setattr(EmbeddedEngine, "once_together", once)


def done_not_replayed(patch: Patch) -> None:
    """A start forgets what was done."""
    patch.setattr(ClientSessions, "_do", lambda *_: True)


def fingerprints_ignored(patch: Patch) -> None:
    """Another write under a known number is taken for a repeated one."""
    patch.setattr(ClientSession, "is_of_another", lambda *_: False)


def done_not_in_snapshots(patch: Patch) -> None:
    dump = ClientSessions.dump

    def dump_empty(sessions: ClientSessions, session: int) -> Any:
        return [(*dumped[:2], []) for dumped in dump(sessions, session)]

    patch.setattr(ClientSessions, "dump", dump_empty)


def done_told_before_durable(patch: Patch) -> None:
    def reply(session: ClientSession, seq: int) -> bytes | None:
        return packed(session.done[seq][0]) if seq in session.done else None

    patch.setattr(ClientSession, "reply", reply)


def writes_without_effect_not_remembered(patch: Patch) -> None:
    remember = EmbeddedEngine._remember

    def remember_changes(engine: EmbeddedEngine, numbers: Sequence[Number], reply: Reply, *, changed: bool) -> None:
        if changed:
            remember(engine, numbers, reply, changed=True)

    patch.setattr(EmbeddedEngine, "_remember", remember_changes)


def oldest_not_remembered(patch: Patch) -> None:
    """What the client has the answer to is forgotten, and then it is not known that it was done."""

    def tell(sessions: ClientSessions, session: ClientSession, oldest: int) -> None:
        for seq in [seq for seq in session.done if seq < oldest]:
            sessions._forget(session, seq)

    patch.setattr(ClientSessions, "tell", tell)


def not_after_ignored(patch: Patch) -> None:
    run_with = writes.run_with

    def run_whenever(caller: Any, command: Any, params: Any, options: Any) -> Reply:
        return run_with(caller, command, params, {name: options[name] for name in options if name != writes.NOT_AFTER})

    patch.setattr(connection, "run_with", run_whenever)
    patch.setattr(intake, "run_with", run_whenever)
    patch.setattr(intake, "set_once_together", lambda *_: None)


def heads_swapped(patch: Patch) -> None:
    """Of the first two responses that leave together."""
    flush = Responses.flush

    def flush_swapped(responses: Responses) -> None:
        out = responses.out
        if len(out) >= 4:
            out[0], out[2] = out[2], out[0]
        flush(responses)

    patch.setattr(Responses, "flush", flush_swapped)


# The daemon's directory


def boot_not_compared(patch: Patch) -> None:
    """Damage is taken for a tail that a loss of power tore, though there was none (D5)."""
    open_ended = SegmentReader.open_ended
    patch.setattr(SegmentReader, "open_ended", lambda reader, _boot: open_ended(reader, bytes(16)))


def failed_sync_ignored(patch: Patch) -> None:
    """The next one may succeed, without what this one had to write (D6)."""
    sync = SegmentWriter.sync

    def sync_or_not(writer: SegmentWriter) -> None:
        with suppress(DiskFailed):
            sync(writer)

    patch.setattr(SegmentWriter, "sync", sync_or_not)


def directory_not_locked(patch: Patch) -> None:
    """D9."""
    patch.setattr(vars(locks)["fcntl"], "flock", lambda *_: None)


# The client


def new_number_for_each_attempt(patch: Patch) -> None:
    parameters = Call.parameters

    def parameters_anew(call: Call, welcome: Welcome) -> tuple[Any, ...]:
        call._store.session.unanswered.pop(call, None)
        return parameters(call, welcome)

    patch.setattr(Call, "parameters", parameters_anew)


def lost_session_ignored(patch: Patch) -> None:
    """What was sent in it is sent again in another."""
    parameters = Call.parameters

    def parameters_anew(call: Call, welcome: Welcome) -> tuple[Any, ...]:
        if call._session != welcome.session:
            call._is_in_doubt = False
        return parameters(call, welcome)

    patch.setattr(Call, "parameters", parameters_anew)


def sessions_not_waited_for(patch: Patch) -> None:
    """A write goes out without a number if there is no session now."""
    patch.setattr(Call, "refusal", lambda _call, _welcome: None)


def writes_without_a_number_repeated(patch: Patch) -> None:
    patch.setattr(Call, "_is_repeatable", lambda _call, _failure: True)
    patch.setattr(Call, "_is_in_doubt", property(lambda _: False, lambda _call, _value: None))


def dead_connections_written_to(patch: Patch) -> None:
    """It is not looked whether the server has hung up before a write is sent."""
    patch.setattr(Connection, "is_stale", property(lambda _: False))


def oldest_passes_the_unanswered(patch: Patch) -> None:
    patch.setattr(Session, "oldest", lambda _session, number: number)


def reply_taken_by_whoever_is_next(patch: Patch) -> None:
    """A connection is kept after a call that was interrupted or ran out of time, and the ids of answers are ignored."""
    receive = ClientProtocol.receive

    def receive_whatever(protocol: ClientProtocol, data: bytes) -> Response | None:
        response = receive(protocol, data)
        return response and Response(protocol._last_msgid, response.error, response.result)

    def ask_and_keep(place: Place, question: Question) -> Response | None:
        connection = place.connection
        if connection is None:
            return None
        try:
            return connection.call(*question)
        except ConnectionLost as lost:
            if not isinstance(lost.__cause__, TimeoutError):
                place.connection = None
                connection.close()
            raise

    patch.setattr(ClientProtocol, "receive", receive_whatever)
    patch.setattr(Place, "ask", ask_and_keep)
    patch.setattr(Pool, "drop_idle", lambda _: None)


# No fault


def sessions_end_soon(patch: Patch) -> None:
    """When nobody is connected."""
    patch.setattr(leases, "LIFETIME", 0.0)
    patch.setattr(embedded, "LOOK_EVERY", 0.01)


def one_session_at_a_time(patch: Patch) -> None:
    """No client gets one while another's is in use."""
    patch.setattr(embedded, "MAX_SESSIONS", 1)
