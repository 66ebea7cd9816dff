"""The clients' sessions: the answers to their writes, for as long as a client may ask for one again.

A client numbers its writes, and says with each from which number on it has no answer yet. Where it repeats a write that
was carried out, it gets the answer of that one time (this is RIFL; Lee et al., SOSP 2015).

Sessions change by effects, as the tables do, and in the same batches. A write that changed nothing has none, and is
remembered in memory only: after a restart no copy of it can come but one that its client still waits for, and to carry
that out again comes to the same as if it had come late. (If another client that shares the session has used the number
meanwhile, the copy is refused instead. That is as good, because the write has changed nothing.)

With each answer goes the fingerprint of its write. If the same number comes with another fingerprint, it is another
write: two clients share the session, for example after a copy of a process or of a virtual machine. Files of format 1
have no fingerprints: an answer that was read from one has None, and answers any write with its number.

    (DONE, session, seq, oldest, answer, fingerprint)   a write changed something, and was answered so
    (OPENED, session)
    (EXPIRED, session)
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from statestored.engines.base import MAX_NUMBER, Held, Number

DONE, OPENED, EXPIRED = 3, 4, 5
MAX_FINGERPRINT = 2**32 - 1
ANSWER_SIZE = 300  # bytes of memory that go with an answer, about
DUMP_SIZE = 2**18  # bytes of memory, about, of which a dump is: half a millisecond's work

Undo = tuple[Any, ...]  # a function, and its arguments
# Session, oldest, and (seq, answer, fingerprint) of what was done from there on.
Dump = tuple[int, int, list[tuple[int, bytes, int | None]]]
Done = tuple[bytes | Held[Any], int | None]  # the answer to a write, and its fingerprint


class ClientSession:
    """oldest: the client has the answers to all writes with smaller numbers. done: those to the others, as far as they
    were carried out. size: bytes of memory that these take, about.
    """

    __slots__ = ("done", "oldest", "size")

    def __init__(self) -> None:
        self.oldest = 1
        self.size = 0
        self.done: dict[int, Done] = {}

    def reply(self, seq: int) -> bytes | Held[Any] | None:
        """Held as long as it follows from something that is not durable. None: the write was not carried out."""
        if seq not in self.done:
            return None
        reply, _ = self.done[seq]
        if isinstance(reply, Held) and reply.until.is_settled:
            return reply.packed if reply.until.error is None else None
        return reply

    def is_of_another(self, seq: int, fingerprint: int) -> bool:
        """Return whether a write that was carried out under this number had another fingerprint."""
        return self.reply(seq) is not None and self.done[seq][1] not in (fingerprint, None)


class ClientSessions:
    """All that are known. What was applied can be taken back until it is settled, as `States` has it.

    size: bytes of memory that the answers take, about.
    """

    def __init__(self) -> None:
        self.size = 0
        self._sessions: dict[int, ClientSession] = {}
        self._undo: list[Undo] = []  # since the last cut; each takes one effect back
        self._undo_cut: list[Undo] = []  # before that, and not settled

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sessions)

    def get(self, session: int) -> ClientSession | None:
        return self._sessions.get(session)

    def are_new(self, numbers: Sequence[Number]) -> bool:
        """Whether all of these can be carried out in one. What they tell up to one that cannot is heard in any case."""
        if len(numbers) > 1 and len({(session, seq) for session, seq, _, _ in numbers}) < len(numbers):
            return False
        for session, seq, oldest, _ in numbers:
            found = self._sessions.get(session)
            if found is None or seq in found.done:
                return False
            self.tell(found, oldest)
            if seq < found.oldest:
                return False
        return True

    def tell(self, session: ClientSession, oldest: int) -> None:
        """What the client has the answers to need not be remembered."""
        if oldest <= session.oldest:
            return
        is_near = oldest - session.oldest <= len(session.done)
        told = range(session.oldest, oldest) if is_near else [seq for seq in session.done if seq < oldest]
        for seq in told:
            self._forget(session, seq)
        session.oldest = oldest

    def remember(self, numbers: Iterable[Number], reply: bytes | Held[Any]) -> None:
        """In place of what was taken back, or of the same in another form. What the client tells to have is not."""
        answer = packed(reply)
        for session, seq, _, fingerprint in numbers:
            found = self._sessions[session]
            if seq < found.oldest:
                continue
            before = found.done.get(seq)
            if before is not None and before[0] is answer:  # its effect was just applied, so the size is the same
                found.done[seq] = reply, fingerprint
            else:
                self._remember(found, seq, (reply, fingerprint))

    def apply(self, effects: Iterable[Sequence[Any]]) -> int:
        """Returns how many changed anything. Raises ValueError or TypeError for what is none of the effects above."""
        return sum(map(self._apply, effects))

    def cut(self) -> None:
        self._undo_cut, self._undo = self._undo, []

    def settle(self) -> list[Any]:
        """Returns nothing that it would take long to free."""
        self._undo_cut = []
        return []

    def revert(self) -> None:
        for undo, *what in reversed(self._undo_cut + self._undo):
            undo(*what)
        self._undo_cut, self._undo = [], []

    def dump(self, session: int) -> Iterator[Dump]:
        """For a snapshot: one dump, or several with some of the answers each, as all is when that one is asked for.

        Nothing where it has expired meanwhile.
        """
        found = self._sessions.get(session)
        if found is None:
            return
        answers: list[tuple[int, bytes, int | None]] = []
        size = 0
        for seq in list(found.done):
            reply = found.reply(seq)
            size += ANSWER_SIZE  # also where the client has told meanwhile that it has it: to look takes time, too
            if reply is not None:
                answer = packed(reply)
                answers.append((seq, answer, found.done[seq][1]))
                size += len(answer)
            if size >= DUMP_SIZE:
                yield session, found.oldest, answers
                answers, size = [], 0
        yield session, found.oldest, answers

    def load(self, dumps: Iterable[Dump]) -> None:
        """As `dump` gave them, one after the other. Raises ValueError or TypeError where these are no dumps."""
        for session, oldest, answers in dumps:
            self._apply((OPENED, session))
            self.tell(self._sessions[session], _number(oldest))
            for seq, answer, *fingerprint in answers:
                self._apply((DONE, session, seq, oldest, answer, *fingerprint))
        self.cut()
        self.settle()

    def _apply(self, effect: Sequence[Any]) -> bool:
        kind, session, *rest = effect
        _number(session)
        if kind == DONE:
            return self._do(session, *rest)
        if rest or kind not in (OPENED, EXPIRED):
            raise ValueError(f"an effect of kind {kind if type(kind) is int else '?'} with {len(effect)} parts")
        return self._open(session) if kind == OPENED else self._expire(session)

    def _do(self, session: int, seq: int, oldest: int, answer: bytes, fingerprint: int | None = None) -> bool:
        if not (type(seq) is type(oldest) is int and 0 < oldest <= seq <= MAX_NUMBER and type(answer) is bytes):
            raise ValueError("a write that was done and has no number or no answer")
        if fingerprint is not None and (type(fingerprint) is not int or not 0 <= fingerprint <= MAX_FINGERPRINT):
            raise ValueError("a write that was done and has another fingerprint than 32 bits")
        found = self._sessions.get(session)
        if found is None:  # it expires further down in the journal that is replayed
            return False
        self.tell(found, oldest)
        if seq >= found.oldest and (seq not in found.done or found.reply(seq) is None):
            self._remember(found, seq, (answer, fingerprint))
            self._undo.append((self._forget, found, seq))
        return True

    def _open(self, session: int) -> bool:
        if session in self._sessions:
            return False
        self._put(session, ClientSession())
        self._undo.append((self._take, session))
        return True

    def _expire(self, session: int) -> bool:
        if session not in self._sessions:
            return False
        self._undo.append((self._put, session, self._take(session)))
        return True

    def _put(self, session: int, client: ClientSession) -> None:
        self._sessions[session] = client
        self.size += client.size

    def _take(self, session: int) -> ClientSession:
        client = self._sessions.pop(session)
        self.size -= client.size
        return client

    def _remember(self, session: ClientSession, seq: int, done: Done) -> None:
        before = session.done.get(seq)
        session.done[seq] = done
        self._grow(session, _size(done) - (0 if before is None else _size(before)))

    def _forget(self, session: ClientSession, seq: int) -> None:
        before = session.done.pop(seq, None)
        if before is not None:
            self._grow(session, -_size(before))

    def _grow(self, session: ClientSession, size: int) -> None:
        session.size += size
        self.size += size


def packed(reply: bytes | Held[Any]) -> bytes:
    """The answer as it goes over the wire."""
    if isinstance(reply, bytes):
        return reply
    if reply.packed is None:
        raise TypeError("an answer that nobody has packed")
    return reply.packed


def dump_size(dump: Dump) -> int:
    """Bytes of memory that what is in it takes, about."""
    _, _, answers = dump
    return ANSWER_SIZE * (1 + len(answers)) + sum(len(answer) for _, answer, _ in answers)


def _size(done: Done) -> int:
    return ANSWER_SIZE + len(packed(done[0]))


def _number(value: object) -> int:
    if type(value) is not int or not 0 < value <= MAX_NUMBER:
        raise ValueError("a session, or a write, whose number is none")
    return value
