"""The contract over any mapping from a sender to its states; `MemoryStorage` and `ShelveStorage` lend the mapping."""

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager

from statestore.base import START, Entry, Limits, Pair, Sender, StateStorage, Swap, Triple

States = dict[str, tuple[str, int]]  # module -> (state, day)
SECONDS_A_DAY = 86400


class MappingStorage(StateStorage):
    """A store whose every operation holds the whole mapping for itself."""

    limits = Limits()

    @abstractmethod
    def _held(self) -> AbstractContextManager[MutableMapping[Sender, States]]:
        """The mapping, for us alone until the context ends."""

    def get(self, module: str, sender: Sender) -> str:
        self.limits.check_key(module, sender)
        with self._held() as senders:
            return _get(senders, module, sender)

    def set(self, module: str, sender: Sender, state: str) -> None:
        self.set_many([(module, sender, state)])

    def set_all(self, sender: Sender, state: str) -> int:
        self.limits.check_sender(sender)
        self.limits.check_state(state)
        with self._held() as senders:
            modules = list(senders.get(sender, ()))
            for module in modules:
                _put(senders, module, sender, state)
            return len(modules)

    def compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> Swap:
        self.limits.check_key(module, sender)
        self.limits.check_state(expected)
        self.limits.check_state(state)
        with self._held() as senders:
            previous = _get(senders, module, sender)
            if previous == expected:
                _put(senders, module, sender, state)
            return Swap(previous == expected, previous)

    def get_many(self, pairs: Iterable[Pair]) -> list[str]:
        checked = self.limits.check_pairs(pairs)
        with self._held() as senders:
            return [_get(senders, module, sender) for module, sender in checked]

    def set_many(self, triples: Iterable[Triple]) -> None:
        checked = self.limits.check_triples(triples)
        with self._held() as senders:
            for module, sender, state in checked:
                _put(senders, module, sender, state)

    def scan(self, module: str | None = None, prefix: str = "", state: str | None = None) -> Iterator[Entry]:
        self.limits.check_filter(module, prefix, state)
        with self._held() as senders:
            found = [
                Entry(its_module, sender, its_state, day)
                for sender, states in senders.items()
                if (sender or "").startswith(prefix)
                for its_module, (its_state, day) in states.items()
                if module in (None, its_module) and state in (None, its_state)
            ]
        return iter(found)

    def count(self, module: str | None = None, state: str | None = None) -> int:
        return sum(1 for _ in self.scan(module, state=state))

    def counts(self) -> dict[tuple[str, str], int]:
        return dict(Counter((entry.module, entry.state) for entry in self.scan()))

    def clear(self) -> None:
        with self._held() as senders:
            senders.clear()


def _get(senders: MutableMapping[Sender, States], module: str, sender: Sender) -> str:
    return senders.get(sender, {}).get(module, (START, 0))[0]


def _put(senders: MutableMapping[Sender, States], module: str, sender: Sender, state: str) -> None:
    states = senders.get(sender, {})
    if states.get(module, (START, 0))[0] == state:
        return  # no change: the day of the last one stays
    if state == START:
        del states[module]
    else:
        states[module] = (state, int(time.time() // SECONDS_A_DAY))
    if states:
        senders[sender] = states  # assigned, not only changed: a shelf keeps nothing else
    else:
        del senders[sender]
