"""Lives of a daemon, each up to a crash in the last, and what the next start finds after every one of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random

from statestored.engines.commits import Fsync
from tests.crash.check import Starts
from tests.crash.disk import Disk
from tests.crash.history import History, Needed, Promises, Violation
from tests.crash.states import States, digest
from tests.crash.trace import Image, Trace, changes_disk, in_words
from tests.crash.workload import Script, record

SHOWN = 15  # events before the crash, in a report


@dataclass
class Life:
    """Of a daemon, and of those before it since the power last came.

    begin: the position in the trace at which this one started.
    first: the last batch that was on the disk before the trace.
    boot: of the machine.
    """

    fsync: Fsync
    trace: Trace
    history: History
    begin: int = 0
    first: int = 0
    boot: bytes = b"boot 1"

    @property
    def next_boot(self) -> bytes:
        return b"boot %d" % (int(self.boot.split()[1]) + 1)


@dataclass(frozen=True)
class Moment:
    """Of a life, before the disk can hold anything else. `position`: of the last event before it."""

    position: int
    disk: Disk
    needed: Needed


def moments(life: Life) -> Iterator[Moment]:
    """Each must be done with before the next."""
    disk, promises = Disk(life.trace.base), Promises(always=life.fsync is Fsync.ALWAYS, first=life.first)
    for position, event in enumerate(life.trace.events):
        if position > life.begin and changes_disk(event):
            yield Moment(position, disk, promises.needed)
        disk.apply(event)
        promises.apply(event)
    yield Moment(len(life.trace.events), disk, promises.needed)


class Explorer:
    """Tries crash states, each one once, in a directory of its own.

    states: those after a loss of power that it has tried.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._rng = Random(seed)
        (directory / "starts").mkdir()
        self._starts = Starts(directory / "starts")
        self._lives = 0
        self._found: dict[tuple[bytes, bytes], int] = {}  # in this life: by state and boot, the last batch there
        self.states: set[bytes] = set()

    def close(self) -> None:
        self._starts.close()

    # Lives

    def first_life(self, fsync: Fsync, script: Script) -> Life:
        return self._live(Life(fsync, Trace(), History()), {}, script)

    def life_after_power_loss(self, life: Life, moment: Moment, script: Script) -> Life:
        """From one of the states of that moment."""
        image = States(moment.disk, self._rng).random()
        found = self._check(life, moment, image, life.next_boot, moment.needed.after_power_loss)
        after = Life(life.fsync, Trace(image), life.history.up_to(found), first=found, boot=life.next_boot)
        return self._live(after, image, script)

    def life_after_kill(self, life: Life, moment: Moment, script: Script, *, is_full: bool = False) -> Life:
        """What was written is still there, though not on the disk. `is_full`: the disk, when it starts."""
        image = moment.disk.shown()
        found = self._check(life, moment, image, life.boot, moment.needed.after_kill)
        trace, history = life.trace.up_to(moment.position), life.history.up_to(found)
        after = Life(life.fsync, trace, history, moment.position, life.first, life.boot)
        return self._live(after, image, script, is_full)

    def _live(self, life: Life, image: Image, script: Script, is_full: bool = False) -> Life:
        directory = self._directory / f"life{self._lives}"
        self._lives += 1
        directory.mkdir()
        for name, content in image.items():
            (directory / name).write_bytes(content)
        record(directory, life.trace, life.history, script, life.fsync, life.boot, is_full)
        return life

    # Crashes

    def explore(self, life: Life, picks: int) -> None:
        """A kill and losses of power at every moment of it: all states, or `picks` random ones where they are many."""
        self._found = {}
        for moment in moments(life):
            self._try(life, moment, moment.disk.shown(), life.boot, moment.needed.after_kill)
            states = States(moment.disk, self._rng)
            images = states.all() if states.are_few else chain(states.corners(), states.some(picks))
            for image in images:
                self.states.add(digest(image))
                self._try(life, moment, image, life.next_boot, moment.needed.after_power_loss)

    def _try(self, life: Life, moment: Moment, image: Image, boot: bytes, needed: int) -> None:
        key = digest(image), boot
        found = self._found.get(key)
        if found is None or found < needed:
            self._found[key] = self._check(life, moment, image, boot, needed)

    def _check(self, life: Life, moment: Moment, image: Image, boot: bytes, needed: int) -> int:
        """The last batch that a start finds."""
        try:
            content = self._starts.content(image, boot)
        except Exception as error:
            raise Violation(_report(life, moment, image, boot, f"it does not start: {error!r}")) from error
        found = life.history.found(content)
        if found is None:
            raise Violation(_report(life, moment, image, boot, f"what never was: {content}"))
        if found < needed:
            raise Violation(_report(life, moment, image, boot, f"batch {found} is the last, not {needed}"))
        return found


def _report(life: Life, moment: Moment, image: Image, boot: bytes, fault: str) -> str:
    """All that one needs to see how it came."""
    position, shown = moment.position, moment.disk.shown()
    events = [
        f"  {number} {in_words(event)}"
        for number, event in enumerate(life.trace.events[:position])
        if number >= position - SHOWN
    ]
    files = [
        f"  {name}: {len(content)} bytes, {'as' if content == shown.get(name) else 'other than'} the system shows it"
        for name, content in sorted(image.items())
    ]
    missing = [f"  {name}: missing" for name in sorted(shown.keys() - image.keys())]
    crash = "a kill" if boot == life.boot else "a loss of power"
    return "\n".join([f"after {crash} at {position}: {fault}", *events, "what is there:", *files, *missing])
