"""What is remembered of clients' writes, held against plain dicts."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from statestore.errors import Unavailable
from statestored.engines.base import Held
from statestored.engines.sessions import (
    ANSWER_SIZE,
    DONE,
    DUMP_SIZE,
    EXPIRED,
    MAX_NUMBER,
    OPENED,
    ClientSession,
    ClientSessions,
    dump_size,
    packed,
)
from statestored.engines.states import Effect
from tests.server.fakes import HeldCommit
from tests.server.models import Remembered, possible, remember, remembered, remembered_after, session_effects, tell


def size(model: Remembered) -> int:
    return sum(ANSWER_SIZE + len(answer) for _, answers in model.values() for answer, _ in answers.values())


def made(*stream: Effect) -> ClientSessions:
    sessions = ClientSessions()
    sessions.apply(stream)
    sessions.cut()
    sessions.settle()
    return sessions


def the_session(sessions: ClientSessions, session: int = 7) -> ClientSession:
    found = sessions.get(session)
    assert found is not None
    return found


def loaded(sessions: ClientSessions) -> ClientSessions:
    again = ClientSessions()
    again.load([dump for session in sessions for dump in sessions.dump(session)])
    return again


class SessionsAgainstDicts(RuleBasedStateMachine):
    """Effects in any order, cut, settled and taken back; what clients tell stays told."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = ClientSessions()
        self.model: Remembered = {}
        self.settled: Remembered = {}  # as the model was when what is there now was last settled
        self.at_cut: Remembered = {}
        self.is_cut = False

    @rule(effect=session_effects)
    def effect(self, effect: Effect) -> None:
        remember(self.model, effect)
        self.sessions.apply([effect])

    @rule(session=st.integers(1, 2), oldest=st.integers(1, 8))
    def tell(self, session: int, oldest: int) -> None:
        found = self.sessions.get(session)
        if found is not None:
            self.sessions.tell(found, oldest)
            for model in (self.model, self.settled, self.at_cut):
                tell(model, session, oldest)

    @rule()
    def cut(self) -> None:
        """One batch is written at a time: what was cut before is settled."""
        if self.is_cut:
            self.settle()
        self.sessions.cut()
        self.at_cut, self.is_cut = dict(self.model), True

    @rule()
    def settle(self) -> None:
        if self.is_cut:
            assert self.sessions.settle() == []
            self.settled, self.is_cut = dict(self.at_cut), False

    @rule()
    def revert(self) -> None:
        self.sessions.revert()
        # What a write that was taken back has told stays told; a session that was opened meanwhile is gone.
        oldest = {session: found.oldest for session in self.sessions if (found := self.sessions.get(session))}
        self.model = dict(self.settled)
        for session in self.model:
            tell(self.model, session, oldest[session])
        self.settled, self.is_cut = dict(self.model), False

    @rule()
    def load(self) -> None:
        assert remembered(loaded(self.sessions)) == self.model
        assert loaded(self.sessions).size == self.sessions.size

    @invariant()
    def is_the_same(self) -> None:
        assert remembered(self.sessions) == self.model
        assert self.sessions.size == size(self.model)
        assert len(self.sessions) == len(self.model)


def test_sessions_are_dicts_that_can_be_taken_back() -> None:
    run = SessionsAgainstDicts.TestCase()
    run.settings = settings(max_examples=100, stateful_step_count=40)
    run.runTest()


@settings(max_examples=300)
@given(stream=st.lists(session_effects, max_size=40).map(possible), data=st.data())
def test_a_fuzzy_snapshot_and_all_effects_again_are_the_same_as_no_snapshot(
    stream: list[Effect], data: st.DataObject
) -> None:
    """Each session is dumped at a moment of its own; replaying begins before all of them."""
    begin = data.draw(st.integers(0, len(stream)))
    sessions = made(*stream[:begin])
    rest = stream[begin:]
    dumps, position = [], 0
    for session in list(sessions) + data.draw(st.lists(st.integers(1, 2), max_size=2)):
        until = data.draw(st.integers(position, len(rest)))
        sessions.apply(rest[position:until])
        position = until
        if session not in [dump[0] for dump in dumps]:
            dumps += sessions.dump(session)
    again = ClientSessions()
    again.load(dumps)
    again.apply(rest)
    assert remembered(again) == remembered_after(stream)
    assert again.size == size(remembered_after(stream))


@given(stream=st.lists(session_effects, max_size=30).map(possible))
def test_effects_that_are_applied_again_do_no_harm(stream: list[Effect]) -> None:
    """Where a session has expired in between: it is opened and expires again."""
    sessions = made(*stream)
    sessions.apply(stream)
    assert remembered(sessions) == remembered_after(stream)


# One by one


def test_an_answer_is_remembered_until_the_client_says_that_it_has_it() -> None:
    sessions = made((OPENED, 7), (DONE, 7, 1, 1, b"A"), (DONE, 7, 2, 1, b"B"))
    assert [the_session(sessions).reply(seq) for seq in (1, 2, 3)] == [b"A", b"B", None]
    sessions.tell(the_session(sessions), 2)
    assert [the_session(sessions).reply(seq) for seq in (1, 2, 3)] == [None, b"B", None]


@pytest.mark.parametrize("oldest", [3, 1000, MAX_NUMBER])
def test_what_a_client_tells_may_be_far_above(oldest: int) -> None:
    sessions = made((OPENED, 7), (DONE, 7, 1, 1, b"A"), (DONE, 7, 2, 1, b"B"))
    sessions.tell(the_session(sessions), oldest)
    assert remembered(sessions) == {7: (oldest, {})}
    assert sessions.size == 0


def test_a_held_answer_is_held_until_it_is_durable() -> None:
    sessions, commit = made((OPENED, 7)), HeldCommit()
    held: Held[None] = Held(None, commit)
    held.packed = b"A"
    sessions.remember([(7, 1, 1, 5)], held)
    assert the_session(sessions).reply(1) is held
    commit.settle()
    assert the_session(sessions).reply(1) == b"A"
    assert remembered(sessions) == {7: (1, {1: (b"A", 5)})}


def test_one_that_was_refused_is_no_answer() -> None:
    """Also to somebody who asks while those who wait are being told."""
    sessions, commit = made((OPENED, 7)), HeldCommit()
    held: Held[None] = Held(None, commit)
    held.packed = b"A"
    sessions.remember([(7, 1, 1, 5)], held)
    found = []
    commit.then(lambda _, error: found.append((error is not None, the_session(sessions).reply(1))), None)
    commit.settle(Unavailable("no room"))
    assert found == [(True, None)]
    assert remembered(sessions) == {7: (1, {})}
    sessions.apply([(DONE, 7, 1, 1, b"B", 6)])
    assert the_session(sessions).reply(1) == b"B"
    assert sessions.size == ANSWER_SIZE + 1


def test_a_write_is_known_by_its_fingerprint_where_it_has_one() -> None:
    session = the_session(made((OPENED, 7), (DONE, 7, 1, 1, b"A", 5), (DONE, 7, 2, 1, b"B")))
    assert [session.is_of_another(1, fingerprint) for fingerprint in (5, 6, 0)] == [False, True, True]
    assert not session.is_of_another(2, 6)  # of a file of format 1
    assert not session.is_of_another(3, 6)


def test_a_held_write_is_known_until_it_is_refused() -> None:
    sessions, commit = made((OPENED, 7)), HeldCommit()
    held: Held[None] = Held(None, commit)
    held.packed = b"A"
    sessions.remember([(7, 1, 1, 5)], held)
    assert the_session(sessions).is_of_another(1, 6)
    commit.settle(Unavailable("no room"))
    assert not the_session(sessions).is_of_another(1, 6)


@pytest.mark.parametrize("numbers", [[(7, 2, 2, 0), (7, 1, 1, 0)], [(7, 2, 2, 0), (7, 2, 2, 1)]])
def test_what_cannot_be_carried_out_together_does_not_tell_what_its_client_has(
    numbers: list[tuple[int, int, int, int]],
) -> None:
    """It may be another client's; what comes before it is heard."""
    sessions = made((OPENED, 7), (DONE, 7, 1, 1, b"A", 5))
    assert not sessions.are_new(numbers[::-1])
    assert the_session(sessions).oldest == 1
    assert sessions.are_new([(7, 2, 2, 0)])
    assert the_session(sessions).oldest == 2


def test_an_answer_must_have_been_packed() -> None:
    with pytest.raises(TypeError, match="packed"):
        packed(Held(None, HeldCommit()))


def test_what_changes_nothing_is_no_change() -> None:
    sessions = made((OPENED, 7))
    assert sessions.apply([(OPENED, 7), (EXPIRED, 8), (DONE, 8, 1, 1, b"A")]) == 0
    assert sessions.apply([(OPENED, 8), (DONE, 8, 1, 1, b"A"), (EXPIRED, 8)]) == 3
    assert list(sessions.dump(8)) == []


def test_a_dump_does_not_take_long_however_much_is_remembered() -> None:
    """D7."""
    sessions = made((OPENED, 7), *[(DONE, 7, seq, 1, b"A") for seq in range(1, 10_001)])
    dumps = list(sessions.dump(7))
    assert [session for session, _, _ in dumps] == [7] * len(dumps)
    assert max(map(dump_size, dumps)) <= DUMP_SIZE + 2 * ANSWER_SIZE + 1
    assert [seq for _, _, answers in dumps for seq, *_ in answers] == list(range(1, 10_001))


def test_nor_does_it_where_most_of_it_is_forgotten_meanwhile() -> None:
    """D7: what is not there any more is looked for, too."""
    sessions = made((OPENED, 7), *[(DONE, 7, seq, 1, b"A") for seq in range(1, 10_001)])
    dumps = sessions.dump(7)
    first = next(dumps)
    sessions.tell(the_session(sessions), 10_000)
    rest = list(dumps)
    assert len(rest) > 10
    assert [(oldest, answers) for _, oldest, answers in rest if answers] == [(10_000, [(10_000, b"A", None)])]
    again = ClientSessions()
    again.load([first, *rest])
    assert remembered(again) == {7: (10_000, {10_000: (b"A", None)})}
    assert again.size == sessions.size


@pytest.mark.parametrize(
    "effect",
    [
        *(
            (OPENED,),
            (OPENED, 0),
            (OPENED, -1),
            (OPENED, MAX_NUMBER + 1),
            (OPENED, True),
            (OPENED, b"7"),
            (OPENED, 7, 1),
        ),
        *((EXPIRED,), (EXPIRED, None), (EXPIRED, 7, 1), (6, 7), (0, 7)),
        *((DONE, 7), (DONE, 7, 1, 1), (DONE, 7, 1, 1, None), (DONE, 7, 1, 1, "A"), (DONE, 7, 1, 1, b"A", 0, 0)),
        *((DONE, 7, 1, 1, b"A", fingerprint) for fingerprint in (-1, 2**32, 1.0, True, b"5")),
        *((DONE, 7, 0, 0, b"A"), (DONE, 7, 1, 2, b"A"), (DONE, 7, 1.0, 1, b"A"), (DONE, 7, MAX_NUMBER + 1, 1, b"A")),
    ],
)
def test_what_is_no_effect_is_refused(effect: Effect) -> None:
    with pytest.raises((ValueError, TypeError)):
        made((OPENED, 7)).apply([effect])


@pytest.mark.parametrize(
    "dumps",
    [
        *(7, None, [7], [()], [(7, 1)], [(7, 1, 7)], [(7, 0, [])], [(0, 1, [])], [(7, 1, [], 0)], [(7, b"1", [])]),
        *([(7, 1, [1])], [(7, 1, [(1,)])], [(7, 1, [(1, None)])], [(7, 2, [(1, b"A")])], [(7, 1, [(b"1", b"A")])]),
        *([(7, 1, [(1, b"A", -1)])], [(7, 1, [(1, b"A", b"5")])], [(7, 1, [(1, b"A", 5, 5)])]),
    ],
)
def test_what_is_no_dump_is_refused(dumps: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        ClientSessions().load(dumps)
