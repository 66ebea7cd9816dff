"""When a call on a simulated disk fails, takes long, or is the moment of something else, such as a power loss."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

from tests.simulation.kernel import Kernel

Call = Literal["open", "read", "write", "truncate", "sync", "rename", "remove", "stat", "list", "lock", "mkdir"]
CALLS: tuple[Call, ...] = get_args(Call)
SYNC_SLOWNESS = 10.0  # how many times more than other calls a sync of a slow disk is slowed down


class Trigger(NamedTuple):
    """Runs `action` at the call with this number, counted over the whole life of the disk.

    call: only calls of this kind are counted; None: all of them.
    """

    action: Callable[[], object]
    number: int
    call: Call | None
    is_before: bool


class Failing(NamedTuple):
    """Calls of a kind fail: the next one, and all others until this time. `taken` is called for each."""

    until: float
    taken: Callable[[], object] | None


class DiskFaults:
    """The faults of one disk, which a plan injects.

    calls: how many there were; counts: how many of each kind.
    room: bytes that can still be allocated while the disk is full.
    failures_taken: how many calls have failed with EIO.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.calls = 0
        self.counts: dict[Call, int] = dict.fromkeys(CALLS, 0)
        self.room = 0
        self._triggers: list[Trigger] = []
        self.failures_taken = 0
        self._no_room_taken: Callable[[], object] | None = None
        self._failing: dict[Call, Failing] = {}  # kinds of calls that fail
        self._full_until = self._slow_until = 0.0
        self._slowness = 1.0

    # For a plan

    def on_call(
        self,
        action: Callable[[], object],
        number: int = 1,
        call: Call | None = None,
        *,
        before: bool = True,
        after_next: Call | None = None,
    ) -> None:
        """Run `action`, such as a kill or a power loss, at a call from now on: just before its effect, or just after.

        Args:
            number: 1 is the next call.
            call: Count only the calls of this kind.
            after_next: Begin to count after the next call of this kind.
        """
        if after_next is not None:
            begin_to_count = partial(self.on_call, action, number, call, before=before)
            self.on_call(begin_to_count, 1, after_next, before=False)
            return
        counted = self.calls if call is None else self.counts[call]
        self._triggers.append(Trigger(action, counted + number, call, before))

    def fail_next(self, call: Call, *, and_for: float = 0.0, taken: Callable[[], object] | None = None) -> None:
        """Let the next call of this kind fail with EIO, and all others for so many seconds.

        A write that fails has written a part. A sync that fails has the system forget what it should have written.

        Args:
            taken: Called when a call has failed because of this.
        """
        self._failing[call] = Failing(self._kernel.now + and_for, taken)

    def fill(self, seconds: float, room: int = 0, *, taken: Callable[[], object] | None = None) -> None:
        """Let the disk be full for a while, but for so many bytes. Data that replaces other data needs no room.

        Args:
            taken: Called when a write finds too little room.
        """
        self._no_room_taken = taken
        self._full_until = self._kernel.now + seconds
        self.room = room

    def slow_down(self, seconds: float, factor: float = 20.0) -> None:
        """Let all calls take so many times as long for a while, and syncs SYNC_SLOWNESS times that."""
        self._slow_until = self._kernel.now + seconds
        self._slowness = factor

    def heal(self) -> None:
        """End all faults, those included that were still to come."""
        self._triggers.clear()
        self._failing.clear()
        self._full_until = min(self._full_until, self._kernel.now)
        self._slow_until = 0.0

    # For the disk

    @property
    def is_full(self) -> bool:
        return self._kernel.now < self._full_until

    @property
    def slowness(self) -> float:
        """How many times as long a call takes now."""
        return self._slowness if self._kernel.now < self._slow_until else 1.0

    def count(self, call: Call, sync_seconds: float) -> None:
        """Count a call that begins, and run what is to happen at it. Its process may not come back from here.

        sync_seconds: for how long the call blocks after this.
        """
        self.calls += 1
        self.counts[call] += 1
        if self._triggers:
            self._run_triggers(call, sync_seconds)

    def takes_failure(self, call: Call) -> bool:
        """Return whether this call fails."""
        failing = self._failing.get(call)
        if failing is None:
            return False
        if self._kernel.now >= failing.until:
            del self._failing[call]
        self.failures_taken += 1
        if failing.taken is not None:
            failing.taken()
        return True

    def was_full_since(self, time: float) -> bool:
        """Whether the disk has been full at any moment since then."""
        return self._full_until > time

    def allocate(self, size_before: int, offset: int, size: int) -> int:
        """Return how many bytes of a write there is room for. What replaces other bytes needs none."""
        if not self.is_full:
            return size
        needed = max(offset + size - max(size_before, offset), 0)
        allocated = min(needed, self.room)
        self.room -= allocated
        if allocated < needed and self._no_room_taken is not None:
            self._no_room_taken()
        return size - needed + allocated

    def _run_triggers(self, call: Call, sync_seconds: float) -> None:
        kernel = self._kernel
        for trigger in tuple(self._triggers):
            if trigger.call not in (None, call):
                continue
            if trigger.number != (self.calls if trigger.call is None else self.counts[call]):
                continue
            self._triggers.remove(trigger)
            if trigger.is_before:
                kernel.at(kernel.now, trigger.action)
                kernel.block(1e-7)  # meanwhile the kernel runs the action
            else:
                # The process goes on until it blocks again, and each call on the disk begins with that.
                kernel.at(kernel.now + sync_seconds + 1e-9, trigger.action)
