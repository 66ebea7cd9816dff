"""What a writer has sent in a round, what of it was answered, and what may therefore be found after a kill.

The daemon executes the requests of a connection in their order, and each key belongs to one writer. So its keys have
to be found as they are after some number of its calls: at least those that were acknowledged and those whose values a
get has shown, at most those that were sent. This one rule covers what is lost, what nobody wrote, and half a call.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from statestore.base import START, Pair

Answers = Iterable[tuple[Pair, str]]


class Kind(StrEnum):
    LOST = "lost"  # acknowledged, and gone: an older value or none is there
    TAKEN_BACK = "taken back"  # a get has shown it, or what the writer did later, and it is gone
    INVENTED = "invented"  # nobody wrote it there
    TORN = "torn"  # each key may be so, but not together: half a call, or one without those before it
    ANSWER = "wrong answer"  # while the daemon ran
    DAEMON = "daemon"  # it ended by itself, or did not start
    UNSOUND = "unsound"  # says the offline check


@dataclass(frozen=True)
class Fault:
    kind: Kind
    where: str
    expected: tuple[str, ...]  # any of them
    found: str

    def __str__(self) -> str:
        expected = " or ".join(_without_padding(value) for value in self.expected)
        return f"{self.kind}: {self.where}: expected {expected}, found {_without_padding(self.found)}"


@dataclass(frozen=True, slots=True)
class Call:
    """A request that writes."""

    method: str
    params: tuple[Any, ...]
    changes: Mapping[Pair, str]  # what it makes of its writer's keys, all at once
    answer: Any = None  # None: whatever it is
    about: tuple[Pair, ...] = ()  # what else the answer tells of


def value(writer: str, number: int, padding: int = 0) -> str:
    """A state that no other call writes: a writer numbers its calls."""
    return f"{writer}-{number}" + "." * padding


class History:
    """One writer in one round. `before` is what its keys held, without those in START; `first` its first number."""

    def __init__(self, writer: str, before: Mapping[Pair, str], first: int) -> None:
        self.writer = writer
        self.before = dict(before)
        self.now = dict(before)  # after all calls that were sent
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.answered: set[int] = set()  # places of calls
        self.durable = 0  # so many of the calls have to be found, for the answers say so
        self._first = first
        self._promises: list[int] = []  # for each call how many are durable once it is answered
        self._last_change: dict[Pair, int] = {}

    def record(self, call: Call) -> int:
        """Before it is sent; returns its place among the calls."""
        place = len(self.calls)
        changed = [key for key, new in call.changes.items() if self.now.get(key, START) != new]
        self._last_change.update(dict.fromkeys(changed, place + 1))
        # An answer says that the call is durable, or, where there was nothing to do, that what it tells of is.
        self._promises.append(max((self._last_change.get(key, 0) for key in (*call.changes, *call.about)), default=0))
        self.calls.append(call)
        _apply(call, self.now)
        return place

    def take_answer(self, place: int, error: str | None, result: Any) -> None:
        call = self.calls[place]
        if error is not None or call.answer not in (None, result):
            where = f"{self.writer}, {call.method}{call.params}"
            self.faults.append(Fault(Kind.ANSWER, where, (repr(call.answer),), error or repr(result)))
        if error is None:
            self.answered.add(place)
            self.durable = max(self.durable, self._promises[place])

    def after(self, count: int) -> dict[Pair, str]:
        """What the keys hold after so many of the calls."""
        state = dict(self.before)
        for call in self.calls[:count]:
            _apply(call, state)
        return state

    def touched(self) -> set[Pair]:
        return {key for call in self.calls for key in call.changes}

    def is_older(self, found: str) -> bool:
        """Whether this writer has written it in an earlier round, to whatever key."""
        number = re.fullmatch(re.escape(self.writer) + r"-(\d+)\.*", found)
        return found == START or (number is not None and int(number[1]) < self._first)


class Timeline:
    """The values that each key of a history had, by the number of calls after which it had them."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._values: dict[Pair, list[str]] = {}
        self._since: dict[Pair, list[int]] = {}
        for count, call in enumerate(history.calls, 1):
            for key, new in call.changes.items():
                self._values.setdefault(key, [self._at_first(key)]).append(new)
                self._since.setdefault(key, [0]).append(count)

    def earliest(self, key: Pair, found: str, at_least: int) -> int | None:
        """The smallest number of calls from `at_least` on, after which the key holds what was found."""
        values, since = self._of(key)
        for position in range(bisect_right(since, at_least) - 1, len(values)):
            if values[position] == found:
                return max(since[position], at_least)
        return None

    def fitting(self, found: Mapping[Pair, str], at_least: int) -> int | None:
        """The smallest number of calls from `at_least` on, after which all keys hold what was found."""
        count, start = at_least, -1
        while start < count:
            start = count
            for key, of_key in found.items():
                later = self.earliest(key, of_key, count)
                if later is None:
                    return None
                count = later
        return count

    def allowed(self, key: Pair, at_least: int) -> tuple[str, ...]:
        values, since = self._of(key)
        return tuple(values[bisect_right(since, at_least) - 1 :])

    def at(self, key: Pair, count: int) -> str:
        return self.allowed(key, count)[0]

    def _of(self, key: Pair) -> tuple[list[str], list[int]]:
        return self._values.get(key) or [self._at_first(key)], self._since.get(key) or [0]

    def _at_first(self, key: Pair) -> str:
        return self._history.before.get(key, START)


@dataclass(frozen=True)
class Verdict:
    applied: int  # so many of the calls
    faults: list[Fault]


def judge(history: History, shown: Iterable[Answers], found: Mapping[Pair, str]) -> Verdict:
    """`shown` is for each connection that read what its gets were answered, in the order of the requests."""
    timeline = Timeline(history)
    reached, faults = 0, list(history.faults)
    for answers in shown:
        seen, wrong = _follow(history, timeline, answers)
        reached, faults = max(reached, seen), faults + wrong
    at_least = max(history.durable, reached)
    applied = timeline.fitting(found, at_least)
    if applied is not None:
        return Verdict(applied, faults)
    alone = [fault for key in found if (fault := _fault_of(history, timeline, key, found[key], reached))]
    return Verdict(at_least, faults + (alone or _disagreements(history, timeline, found, at_least)))


def _follow(history: History, timeline: Timeline, answers: Answers) -> tuple[int, list[Fault]]:
    """How many calls must have been executed for these answers, and those that no number of calls explains."""
    reached, faults = 0, []
    for key, answer in answers:
        later = timeline.earliest(key, answer, reached)
        if later is None:
            kind = Kind.ANSWER if _was_there(history, timeline, key, answer) else Kind.INVENTED
            where = f"a get of {_named(history, key)}"
            faults.append(Fault(kind, where, timeline.allowed(key, reached), answer))
        else:
            reached = later
    return reached, faults


def _fault_of(history: History, timeline: Timeline, key: Pair, found: str, reached: int) -> Fault | None:
    """What is wrong with a key that is looked at alone."""
    if timeline.earliest(key, found, history.durable) is None:
        kind = Kind.LOST if _was_there(history, timeline, key, found) else Kind.INVENTED
        return Fault(kind, _named(history, key), timeline.allowed(key, history.durable), found)
    if timeline.earliest(key, found, reached) is None:
        return Fault(Kind.TAKEN_BACK, _named(history, key), timeline.allowed(key, reached), found)
    return None


def _disagreements(history: History, timeline: Timeline, found: Mapping[Pair, str], at_least: int) -> list[Fault]:
    """The keys that lag behind the one that has come furthest."""
    furthest = max(timeline.earliest(key, found[key], at_least) or 0 for key in found)
    return [
        Fault(Kind.TORN, _named(history, key), (expected,), found[key])
        for key in found
        if (expected := timeline.at(key, furthest)) != found[key]
    ]


def _was_there(history: History, timeline: Timeline, key: Pair, found: str) -> bool:
    return timeline.earliest(key, found, 0) is not None or history.is_older(found)


def _apply(call: Call, state: dict[Pair, str]) -> None:
    for key, new in call.changes.items():
        if new == START:
            state.pop(key, None)
        else:
            state[key] = new


def _named(history: History, key: Pair) -> str:
    return f"{history.writer}, {key}"


def _without_padding(text: str) -> str:
    return re.sub(r"\.+$", lambda padding: f" and {len(padding[0])} dots", text)
