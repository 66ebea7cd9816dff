"""The contract finds what is wrong with a store: each of these is broken in one way, and must fail."""

import inspect
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import Phase, settings

from statestore import START, Entry, Limits, MemoryStorage, Swap
from statestore.base import Pair, Sender, Triple
from statestore.testing import StorageContract, each_example

Broken = (Exception, pytest.fail.Exception)


@pytest.fixture(autouse=True)
def _no_search_for_smaller_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a store fails is all that is asked; how briefly it can takes many times as long."""
    brief = settings(each_example, phases=[Phase.explicit, Phase.generate], database=None)
    monkeypatch.setattr("statestore.testing.each_example", brief)


def run_contract(storage: MemoryStorage) -> None:
    """As pytest runs it, up to the first test that fails; the short ones come first."""
    contract = StorageContract()
    tests = [test for name, test in inspect.getmembers(contract, inspect.ismethod) if name.startswith("test_")]
    assert len(tests) > 10
    for test in sorted(tests, key=lambda test: (hasattr(test, "hypothesis"), "like_a_dict" in test.__name__)):
        for case in cases(test):
            test(storage=storage, **case)


def cases(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """The arguments of each run of a test that is parametrized, once."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    if not marks:
        yield {}
    for mark in marks:
        names, values = mark.args
        for value in values:
            yield {names: value} if isinstance(names, str) else dict(zip(names, value, strict=True))


def same(text: Any) -> Any:
    return text


class Translating(MemoryStorage):
    """Keeps something else than it is given."""

    def __init__(
        self,
        *,
        module: Callable[[Any], Any] = same,
        sender: Callable[[Any], Any] = same,
        state: Callable[[Any], Any] = same,
    ) -> None:
        super().__init__()
        self.module, self.sender, self.state = module, sender, state

    def get(self, module: str, sender: Sender) -> str:
        return self.get_many([(module, sender)])[0]

    def get_many(self, pairs: Iterable[Pair]) -> list[str]:
        checked = self.limits.check_pairs(pairs)
        return super().get_many([(self.module(module), self.sender(sender)) for module, sender in checked])

    def set_many(self, triples: Iterable[Triple]) -> None:
        checked = self.limits.check_triples(triples)
        super().set_many([(self.module(m), self.sender(sender), self.state(state)) for m, sender, state in checked])

    def set_all(self, sender: Sender, state: str) -> int:
        self.limits.check_sender(sender)
        return super().set_all(self.sender(sender), state)

    def compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> Swap:
        self.limits.check_key(module, sender)
        return super().compare_and_set(self.module(module), self.sender(sender), expected, state)


def of_str(change: Callable[[str], Any]) -> Callable[[Sender], Any]:
    return lambda sender: None if sender is None else change(sender)


def ascii_only(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


class StoresStart(MemoryStorage):
    def set_many(self, triples: Iterable[Triple]) -> None:
        checked = self.limits.check_triples(triples)
        super().set_many(checked)
        for module, sender, state in checked:
            if state == START:
                self._senders.setdefault(sender, {})[module] = (START, 20_500)


class StoresStrangers(MemoryStorage):
    """As librelist's, and Django's get_or_create."""

    def get(self, module: str, sender: Sender) -> str:
        state = super().get(module, sender)
        self._senders.setdefault(sender, {}).setdefault(module, (state, 20_500))
        return state


class LosesAnEntry(MemoryStorage):
    """Each fifth."""

    writes = 0

    def set_many(self, triples: Iterable[Triple]) -> None:
        for triple in self.limits.check_triples(triples):
            self.writes += 1
            if self.writes % 5:
                super().set_many([triple])


class KeepsOneModule(MemoryStorage):
    def set_many(self, triples: Iterable[Triple]) -> None:
        for module, sender, state in self.limits.check_triples(triples):
            super().set_all(sender, START)
            super().set_many([(module, sender, state)])


class AlwaysSwaps(MemoryStorage):
    def compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> Swap:
        _, previous = super().compare_and_set(module, sender, expected, state)
        self.set(module, sender, state)
        return Swap(True, previous)


class NeverSwaps(MemoryStorage):
    def compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> Swap:
        before = self.get(module, sender)
        _, previous = super().compare_and_set(module, sender, expected, state)
        self.set(module, sender, before)
        return Swap(False, previous)


class SwapsAndSaysSo(MemoryStorage):
    """But says what there is now, not what there was."""

    def compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> Swap:
        swapped, _ = super().compare_and_set(module, sender, expected, state)
        return Swap(swapped, self.get(module, sender))


class SetsTheFirstOnly(MemoryStorage):
    def set_all(self, sender: Sender, state: str) -> int:
        self.limits.check_state(state)
        modules = [entry.module for entry in self.scan() if entry.sender == sender]
        for module in modules[:1]:
            self.set(module, sender, state)
        return len(modules)


class SetsAllOfEverybody(MemoryStorage):
    def set_all(self, sender: Sender, state: str) -> int:
        changed = super().set_all(sender, state)
        return changed + sum(
            MemoryStorage.set_all(self, other, state) for other in list(self._senders) if other != sender
        )


class MiscountsSetAll(MemoryStorage):
    def set_all(self, sender: Sender, state: str) -> int:
        return max(1, super().set_all(sender, state))


class ChecksAsItGoes(MemoryStorage):
    def set_many(self, triples: Iterable[Triple]) -> None:
        for triple in list(triples)[: self.limits.items]:
            super().set_many([triple])


class KeepsTheEarlier(MemoryStorage):
    def set_many(self, triples: Iterable[Triple]) -> None:
        super().set_many(reversed(self.limits.check_triples(triples)))


class AnswersInOrderOfItsOwn(MemoryStorage):
    def get_many(self, pairs: Iterable[Pair]) -> list[str]:
        return super().get_many(sorted(self.limits.check_pairs(pairs), key=repr))


class JoinsKeys(MemoryStorage):
    """So that ('a:b', 'c') and ('a', 'b:c') are one."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, Pair] = {}

    def _key(self, module: str, sender: Sender) -> Pair:
        self.limits.check_key(module, sender)
        return (module, sender) if sender is None else self._first.setdefault(f"{module}:{sender}", (module, sender))

    def get(self, module: str, sender: Sender) -> str:
        return super().get(*self._key(module, sender))

    def get_many(self, pairs: Iterable[Pair]) -> list[str]:
        return super().get_many([self._key(*pair) for pair in self.limits.check_pairs(pairs)])

    def set_many(self, triples: Iterable[Triple]) -> None:
        checked = self.limits.check_triples(triples)
        super().set_many([(*self._key(module, sender), state) for module, sender, state in checked])

    def compare_and_set(self, module: str, sender: Sender, expected: str, state: str) -> Swap:
        return super().compare_and_set(*self._key(module, sender), expected, state)


class Scanning(MemoryStorage):
    """Looks for something else than is wanted, or finds something else."""

    def __init__(
        self,
        wanted: Callable[..., tuple[Any, ...]] = lambda *wanted: wanted,
        found: Callable[[Iterator[Entry]], Iterator[Entry]] = same,
    ) -> None:
        super().__init__()
        self.wanted, self.found = wanted, found

    def scan(self, module: str | None = None, prefix: str = "", state: str | None = None) -> Iterator[Entry]:
        return self.found(super().scan(*self.wanted(module, prefix, state)))


class Unlimited(MemoryStorage):
    limits = Limits(module=10**6, sender=10**6, state=10**6, items=10**6)


class CountsCharacters(MemoryStorage):
    limits = Limits(module=4096, sender=4096 * 3, state=1024 * 3)


class NoLimits(Limits):
    def check_key(self, module: object, sender: object) -> None: ...
    def check_sender(self, sender: object) -> None: ...
    def check_state(self, state: object) -> None: ...


class TakesAnyType(MemoryStorage):
    limits = NoLimits()


class ForgetsNothing(MemoryStorage):
    def clear(self) -> None:
        pass


class CountsOneTooMany(MemoryStorage):
    def count(self, module: str | None = None, state: str | None = None) -> int:
        return super().count(module, state) + 1


class CountsModulesOnly(MemoryStorage):
    def counts(self) -> dict[tuple[str, str], int]:
        return {(entry.module, entry.state): self.count(entry.module) for entry in self.scan()}


BROKEN: dict[str, Callable[[], MemoryStorage]] = {
    "folds the case of senders": lambda: Translating(sender=of_str(str.casefold)),
    "folds the case of modules": lambda: Translating(module=str.casefold),
    "folds the case of states": lambda: Translating(state=str.upper),
    "takes None for 'None'": lambda: Translating(sender=str),
    "takes None for ''": lambda: Translating(sender=lambda sender: sender or ""),
    "takes '' for None": lambda: Translating(sender=lambda sender: sender or None),
    "strips senders": lambda: Translating(sender=of_str(str.strip)),
    "strips states": lambda: Translating(state=str.strip),
    "normalises senders": lambda: Translating(sender=of_str(lambda text: unicodedata.normalize("NFC", text))),
    "replaces surrogates": lambda: Translating(sender=of_str(ascii_only)),
    "replaces surrogates in states": lambda: Translating(state=ascii_only),
    "ends senders at NUL": lambda: Translating(sender=of_str(lambda text: text.partition("\0")[0])),
    "cuts senders": lambda: Translating(sender=of_str(lambda text: text[:255])),
    "stores START": StoresStart,
    "stores strangers": StoresStrangers,
    "loses an entry": LosesAnEntry,
    "keeps one module": KeepsOneModule,
    "always swaps": AlwaysSwaps,
    "never swaps": NeverSwaps,
    "answers the new state": SwapsAndSaysSo,
    "set_all sets the first": SetsTheFirstOnly,
    "set_all sets everybody's": SetsAllOfEverybody,
    "set_all miscounts": MiscountsSetAll,
    "set_many checks as it goes": ChecksAsItGoes,
    "set_many keeps the earlier": KeepsTheEarlier,
    "get_many has its own order": AnswersInOrderOfItsOwn,
    "joins keys": JoinsKeys,
    "scan ignores the module": lambda: Scanning(lambda _, prefix, state: (None, prefix, state)),
    "scan ignores the prefix": lambda: Scanning(lambda module, _, state: (module, "", state)),
    "scan ignores the state": lambda: Scanning(lambda module, prefix, _: (module, prefix, None)),
    "scan finds all twice": lambda: Scanning(found=lambda entries: (entry for entry in entries for _ in "12")),
    "scan forgets None": lambda: Scanning(found=lambda entries: (e for e in entries if e.sender is not None)),
    "scan knows no days": lambda: Scanning(found=lambda entries: (entry._replace(day=0) for entry in entries)),
    "has no limits": Unlimited,
    "counts characters": CountsCharacters,
    "takes any type": TakesAnyType,
    "clear does nothing": ForgetsNothing,
    "counts one too many": CountsOneTooMany,
    "counts modules only": CountsModulesOnly,
}


@pytest.mark.parametrize("make", [MemoryStorage, Translating, Scanning])
def test_a_right_store_keeps_the_contract(make: Callable[[], MemoryStorage]) -> None:
    run_contract(make())


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_store_does_not(fault: str) -> None:
    with pytest.raises(Broken):
        run_contract(BROKEN[fault]())


def test_without_a_store_there_is_nothing_to_test() -> None:
    with pytest.raises(NotImplementedError, match="override this fixture"):
        inspect.unwrap(StorageContract.storage)(StorageContract())
