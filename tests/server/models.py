"""What the engine's parts are held against: plain dicts, and short texts that collide often."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from zlib import crc32

import pytest
from hypothesis import strategies as st

from statestored.engines import queries, table
from statestored.engines.base import START, Entry, Sender
from statestored.engines.sessions import DONE, EXPIRED, OPENED, ClientSessions
from statestored.engines.states import CLEAR, PUT, Effect, States
from statestored.engines.table import Table, entries_of

Key = tuple[bytes, Sender]
Model = dict[Key, tuple[bytes, int]]  # (module, sender) -> (state, day)
Answers = dict[int, tuple[bytes, int | None]]  # by number: the answer, and the fingerprint of its write
Remembered = dict[int, tuple[int, Answers]]  # session -> oldest, and the answers

TODAY = 20_000


def sender_at(position: int) -> bytes:
    """Four bytes with this CRC-32, to which each of their bits adds a part of its own."""
    zero = crc32(bytes(4))
    parts: dict[int, tuple[int, int]] = {}  # by the highest bit of what they add: that, and the bits of the sender
    for bit in range(32):
        adds, bits = crc32((1 << bit).to_bytes(4, "big")) ^ zero, 1 << bit
        while adds.bit_length() in parts:
            adds, bits = (mine ^ other for mine, other in zip((adds, bits), parts[adds.bit_length()], strict=True))
        parts[adds.bit_length()] = adds, bits
    missing, sender = position ^ zero, 0
    while missing:
        adds, bits = parts[missing.bit_length()]
        missing, sender = missing ^ adds, sender ^ bits
    return sender.to_bytes(4, "big")


# Senders that stand where buckets begin and end, and two more in one place.
EDGES = [sender_at(position) for position in (1, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 1)]

modules = st.sampled_from([b"", b"a", b"lists", "é".encode()])
senders = st.one_of(
    st.sampled_from([None, b"", b"None", *EDGES]), st.integers(0, 50).map(lambda number: b"s%d" % number)
)
states = st.sampled_from([START, b"", b"CONFIRMING", b"POSTING", b"BOUNCING"])
days = st.integers(TODAY, TODAY + 2)
namespaces = st.sampled_from([b"default", b"other"])
effects = st.one_of(
    st.tuples(st.just(PUT), namespaces, modules, senders, states),
    st.tuples(st.just(PUT), namespaces, modules, senders, states),
    st.tuples(st.just(PUT), namespaces, modules, senders, states),
    st.tuples(st.just(CLEAR), namespaces),
)


@st.composite
def _done(draw: st.DrawFn) -> Effect:
    """The same write has the same answer wherever it comes up, and some are of a file without fingerprints."""
    session, seq = draw(st.integers(1, 2)), draw(st.integers(1, 8))
    answer = b"%d of %d" % (seq, session)
    return (DONE, session, seq, draw(st.integers(1, seq)), answer, *([crc32(answer)] if seq % 3 else []))


session_effects = _done() | st.tuples(st.sampled_from([OPENED, EXPIRED]), st.integers(1, 2))


def possible(stream: Iterable[Effect]) -> list[Effect]:
    """Those that can come to pass: an id is given out once, and nothing is done in a session that is not there."""
    given: set[int] = set()
    open_now: set[int] = set()
    chosen = []
    for effect in stream:
        kind, session = effect[:2]
        if (session in given) if kind == OPENED else session not in open_now:
            continue
        chosen.append(effect)
        if kind == OPENED:
            given.add(session)
            open_now.add(session)
        elif kind == EXPIRED:
            open_now.remove(session)
    return chosen


def remember(model: Remembered, effect: Effect) -> None:
    kind, session, *rest = effect
    if kind == OPENED:
        model.setdefault(session, (1, {}))
    elif kind == EXPIRED:
        model.pop(session, None)
    elif session in model:
        seq, oldest, answer, *fingerprint = rest
        tell(model, session, oldest)
        if seq >= model[session][0]:
            model[session] = model[session][0], {seq: (answer, *(fingerprint or [None])), **model[session][1]}


def tell(model: Remembered, session: int, oldest: int) -> None:
    if session in model:
        before, answers = model[session]
        after = max(oldest, before)
        model[session] = after, {seq: answer for seq, answer in answers.items() if seq >= after}


def remembered_after(stream: Iterable[Effect]) -> Remembered:
    model: Remembered = {}
    for effect in stream:
        remember(model, effect)
    return model


def remembered(sessions: ClientSessions) -> Remembered:
    dumped: Remembered = {}
    for session, oldest, answers in chain.from_iterable(map(sessions.dump, sessions)):
        dumped.setdefault(session, (oldest, {}))[1].update({seq: tuple(done) for seq, *done in answers})
    return dumped


def put(model: Model, module: bytes, sender: Sender, state: bytes, day: int) -> bool:
    """Whether anything changed."""
    if model.get((module, sender), (START, 0))[0] == state:
        return False
    if state == START:
        del model[module, sender]
    else:
        model[module, sender] = (state, day)
    return True


def put_in(table: Table, module: bytes, sender: Sender, state: bytes, day: int) -> bool:
    """One entry into a table; whether anything changed."""
    return table.put([(PUT, b"any", module, sender, state)], day) == 1


def apply(models: dict[bytes, Model], effect: Effect, day: int) -> bool:
    """Whether anything changed."""
    model = models.setdefault(effect[1], {})
    if len(effect) == 5:
        return put(model, *effect[2:], day)
    changed = bool(model)
    model.clear()
    return changed


def without_empty(models: dict[bytes, Model]) -> dict[bytes, Model]:
    return {name: model for name, model in models.items() if model}


def as_model(entries: Iterable[Entry]) -> Model:
    """Fails where an entry is there twice."""
    listed = list(entries)
    model = {(entry.module, entry.sender): (entry.state, entry.day) for entry in listed}
    assert len(model) == len(listed)
    return model


def entries_in(tabled: Table) -> list[Entry]:
    return [
        entry
        for covered in tabled.walk()
        for sender, held in covered.bucket.items()
        for entry in entries_of(sender, held)
    ]


def content(held: States) -> dict[bytes, Model]:
    """Namespaces that hold nothing are left out."""
    return {name: as_model(entries_in(of)) for name, of in held.tables.items() if len(of)}


@contextmanager
def small_buckets(size: int = 3) -> Iterator[None]:
    """Buckets split, and scans stop, after a few senders instead of thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "BUCKET_SIZE", size)
        patch.setattr(table, "SPLIT_EVERY", 1)
        patch.setattr(queries, "BUCKET_SIZE", size)
        yield
