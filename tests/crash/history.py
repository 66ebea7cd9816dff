"""What was committed, batch by batch, and which of it has to be there after a loss of power, or after a kill."""

from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple, Self

from statestored.engines.base import START, Sender
from statestored.engines.states import CLEAR, PUT, Effect, States
from tests.crash.trace import Acknowledged, Created, Event, Served, SyncBegun, SyncEnded, Written, is_journal
from tests.server.models import Key, Model, Remembered, apply, content, remember, remembered, without_empty


class Content(NamedTuple):
    """Of a store. namespaces: those without entries are left out."""

    namespaces: dict[bytes, Model]
    sessions: Remembered

    @classmethod
    def of(cls, states: States) -> Self:
        return cls(content(states), remembered(states.sessions))

    def after(self, effects: Sequence[Effect], day: int) -> "Content":
        namespaces, sessions = deepcopy(self)
        for effect in effects:
            if effect[0] in (PUT, CLEAR):
                apply(namespaces, effect, day)
            else:
                remember(sessions, effect)
        return Content(without_empty(namespaces), sessions)


NOTHING = Content({}, {})


class Violation(AssertionError):
    """The daemon does not do what it has to: after a start there is something else than there has to be, for one."""


class History:
    """What was there after each batch, and before the first one. Batches that were taken back are not in it."""

    def __init__(self, contents: Sequence[Content] = (NOTHING,)) -> None:
        self._contents = list(contents)
        self._batches: dict[object, tuple[int, int]] = {}  # what answers are held until: the batch's number and day

    @property
    def last(self) -> int:
        """The number of the last batch."""
        return len(self._contents) - 1

    @property
    def content(self) -> Content:
        """What is there after it."""
        return self._contents[-1]

    def state(self, namespace: bytes, key: Key) -> bytes:
        return self.content.namespaces.get(namespace, {}).get(key, (START, 0))[0]

    def modules(self, namespace: bytes, sender: Sender) -> list[bytes]:
        """Those that have an entry for the sender."""
        return [module for module, other in self.content.namespaces.get(namespace, {}) if other == sender]

    def go_back(self, batch: int) -> None:
        """Later ones were lost."""
        del self._contents[batch + 1 :]

    def up_to(self, batch: int) -> "History":
        """It may go on another way behind that batch."""
        return History(self._contents[: batch + 1])

    def commit(self, until: object, effects: Sequence[Effect], day: int) -> int:
        """Which batch it belongs to, the one that is durable when `until` is; 0 where it changes nothing."""
        number, day = self._batches.get(until, (self.last + 1, day))
        after = self.content.after(effects, day)
        if after == self.content:
            return 0
        self._batches[until] = number, day
        self._contents[number:] = [after]
        return number

    def refuse(self, batch: int) -> None:
        """It and all later ones were taken back."""
        del self._contents[batch:]

    def changed_last(self, namespace: bytes, key: Key) -> int:
        """The first batch since which the entry is as it is."""
        now, number = self.state(namespace, key), self.last
        while number and self._contents[number - 1].namespaces.get(namespace, {}).get(key, (START, 0))[0] == now:
            number -= 1
        return number

    def done(self, session: int, seq: int) -> int:
        """The batch in which a write was done that is remembered."""
        number = self.last
        while seq in self._contents[number - 1].sessions.get(session, (1, {}))[1]:
            number -= 1
        return number

    def found(self, content: Content) -> int | None:
        """The last batch after which this was there; None: it never was."""
        return next((number for number in range(self.last, -1, -1) if self._contents[number] == content), None)


class Needed(NamedTuple):
    """The last batch that has to be there, with all before it."""

    after_power_loss: int
    after_kill: int


class Promises:
    """What has to be there, as the trace goes on.

    With `always`, whatever was acknowledged. Else only what a completed sync covers; but all of it where it is the
    daemon alone that is killed. What a start found and served has to stay in any case.
    """

    def __init__(self, *, always: bool, first: int = 0) -> None:
        """`first`: the batch up to which everything was there before the trace."""
        self._always = always
        self._needed = Needed(first, first)
        self._journals: set[int] = set()
        self._written_last = 0  # the segment with the last batch
        self._unsynced: dict[int, int] = {}  # by segment, the last batch in it that was acknowledged
        self._syncs: dict[int, int] = {}  # that are under way, and the last batch that they cover

    @property
    def needed(self) -> Needed:
        return self._needed

    def apply(self, event: Event) -> None:
        match event:
            case Created(file, name) if is_journal(name):
                self._journals.add(file)
            case Written(file) if file in self._journals:
                self._written_last = file
            case Acknowledged(batch):
                self._unsynced[self._written_last] = max(batch, self._unsynced.get(self._written_last, 0))
                self._raise(batch if self._always else 0, batch)
            case Served(batch):
                self._raise(batch, batch)
            case SyncBegun(number, int(file)):
                self._syncs[number] = self._unsynced.get(file, 0)
            case SyncEnded(number):
                self._raise(self._syncs.pop(number, 0), 0)
            case _:
                pass

    def _raise(self, after_power_loss: int, after_kill: int) -> None:
        before = self._needed
        self._needed = Needed(
            max(before.after_power_loss, after_power_loss), max(before.after_kill, after_kill, after_power_loss)
        )
