"""The clients' sessions: the answers to their writes, for as long as a client may ask for one again.

A client numbers its writes, and says with each from which number on it has no answer yet. Where it repeats a write that
was carried out, it gets the answer of that one time (this is RIFL; Lee et al., SOSP 2015).

Sessions change by effects, as the tables do, and in the same batches. A write that changed nothing has none, and is
remembered in memory only: after a restart no copy of it can come but one that its client still waits for, and to carry
that out anew comes to the same as if it had come late.

    (DONE, session, seq, oldest, answer)   a write changed something, and was answered so
    (OPENED, session)
    (EXPIRED, session)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from statestore.errors import StateStoreError
from statestored.engines.base import Held, Reply

DONE, OPENED, EXPIRED = 3, 4, 5
MAX_ID = 2**63 - 1

Dump = tuple[int, int, list[tuple[int, bytes]]]  # session, oldest, and (seq, answer) of what was done from there on


class Done:
    """A write that was carried out, and its result as packed for the wire.

    held: the same, as long as it follows from something that is not durable.
    """

    __slots__ = ("answer", "held")

    def __init__(self, answer: Any, held: Held[Any] | None = None) -> None:
        self.answer = answer
        self.held = held

    def reply(self) -> Reply:
        if self.held is not None and self.held.until.is_settled:
            self.held = None
        return self.answer if self.held is None else self.held


class ClientSession:
    """oldest: the client has the answers to all writes with smaller numbers. done: the others that were carried out."""

    __slots__ = ("done", "oldest")

    def __init__(self) -> None:
        self.oldest = 1
        self.done: dict[int, Done] = {}

    def tell(self, oldest: int) -> None:
        """What the client has the answer to need not be remembered."""
        if oldest > self.oldest:
            self.oldest = oldest
            for seq in [seq for seq in self.done if seq < oldest]:
                del self.done[seq]

    def forget_refused(self, seq: int, error: StateStoreError | None) -> None:
        """Where what the write follows from was taken back."""
        if error is not None:
            self.done.pop(seq, None)


class ClientSessions:
    """All that are known. What was applied can be taken back until it is settled, as `States` has it."""

    def __init__(self) -> None:
        self._sessions: dict[int, ClientSession] = {}
        self._undo: list[Callable[[], object]] = []  # since the last cut; each takes one effect back
        self._undo_cut: list[Callable[[], object]] = []  # before that, and not settled

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sessions)

    def get(self, session: int) -> ClientSession | None:
        return self._sessions.get(session)

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
        for undo in reversed(self._undo_cut + self._undo):
            undo()
        self._undo_cut, self._undo = [], []

    def dump(self, session: int) -> Dump | None:
        """For a snapshot; None where it has expired meanwhile."""
        found = self._sessions.get(session)
        if found is None:
            return None
        return session, found.oldest, [(seq, done.answer) for seq, done in found.done.items()]

    def load(self, dumps: Iterable[Dump]) -> None:
        """Into sessions that are none so far. Raises ValueError or TypeError where these are no dumps."""
        for session, oldest, answers in dumps:
            self._apply((OPENED, session))
            self._sessions[session].tell(_number(oldest))
            for seq, answer in answers:
                self._apply((DONE, session, seq, oldest, answer))
        self.cut()
        self.settle()

    def _apply(self, effect: Sequence[Any]) -> bool:
        kind, session, *rest = effect
        _number(session)
        if kind == DONE:
            return self._do(session, *rest)
        if rest or kind not in (OPENED, EXPIRED):
            raise ValueError(f"an effect of the kind {kind} with {len(effect)} parts")
        return self._open(session) if kind == OPENED else self._expire(session)

    def _do(self, session: int, seq: int, oldest: int, answer: bytes) -> bool:
        if not isinstance(answer, bytes) or not _number(oldest) <= _number(seq):
            raise ValueError("a write that was done and has no number or no answer")
        found = self._sessions.get(session)
        if found is None:  # it expires further down in the journal that is replayed
            return False
        found.tell(oldest)
        if seq >= found.oldest:
            found.done.setdefault(seq, Done(answer))
            self._undo.append(partial(found.done.pop, seq, None))
        return True

    def _open(self, session: int) -> bool:
        if session in self._sessions:
            return False
        self._sessions[session] = ClientSession()
        self._undo.append(partial(self._sessions.pop, session, None))
        return True

    def _expire(self, session: int) -> bool:
        expired = self._sessions.pop(session, None)
        if expired is not None:
            self._undo.append(partial(self._sessions.__setitem__, session, expired))
        return expired is not None


def _number(value: object) -> int:
    if type(value) is not int or not 0 < value <= MAX_ID:
        raise ValueError(f"{value!r} is no number of a session or a write")
    return value
