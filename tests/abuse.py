"""What applications do to a client: exceptions out of signals' handlers at any moment, deadlines far too short, broken
connections, forks in the middle of it all. Each answer is checked, and in the end the client has lost nothing.

    python -m tests.abuse interrupts 1000000    # operations
    python -m tests.abuse forks 1000

A third argument is the address of a daemon that runs already.
"""

import os
import random
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

from statestore import RemoteStorage, StateStoreError
from statestore.dial import open_sockets
from tests.daemon import Daemon

POOL, THREADS, KEYS = 4, 6, 50
ANSWERS_OF_A_CONNECTION = 200
INTERRUPTED_WITHIN = 0.002  # seconds
# What has to have happened in the end, so often at least, of what is otherwise a matter of luck and of the machine.
ENOUGH = Counter({"interrupts": 10, "aside": 10, "interrupted": 10, "too late": 10, "broken": 10})


class Interrupt(BaseException):
    """What a handler raises."""


def interrupt(*_: object) -> None:
    raise Interrupt


def fill(storage: RemoteStorage) -> None:
    """Each key has a state that says which key it is."""
    storage.set_many([("m", str(number), f"S{number}") for number in range(KEYS)])


def ask(storage: RemoteStorage, operation: int) -> None:
    """One operation, whose answer can be no other's."""
    number = operation % KEYS
    if operation % 10 == 0:
        assert storage.compare_and_set("m", str(number), "another", "wrong") == (False, f"S{number}")
    elif operation % 10 == 1:
        other = (number + 1) % KEYS
        assert storage.get_many([("m", str(number)), ("m", str(other))]) == [f"S{number}", f"S{other}"]
    elif operation % 10 == 2:
        own = f"of {os.getpid()} {threading.get_ident()}"  # nobody else writes to it
        state = f"S{operation}"
        storage.set("m", own, state)
        assert storage.compare_and_set("m", own, state, "SWAPPED") == (True, state)
        assert storage.get("m", own) == "SWAPPED"
    else:
        state = storage.get("m", str(number))
        assert state == f"S{number}", f"{state} is not of {number}"


def interrupts(address: str, operations: int) -> None:
    """The main thread is interrupted, others are busy beside it, on a pool that is too small; connections break."""
    storage = RemoteStorage(address, namespace="abuse", pool=POOL, deadline=30)
    hasty = RemoteStorage(address, namespace="abuse", pool=POOL, deadline=0.0005, write_deadline=0.0005)
    fill(storage)
    done = threading.Event()
    faults: list[BaseException] = []
    outcomes: Counter[str] = Counter()

    def answers() -> int:
        return outcomes["aside"] + outcomes["interrupted"]

    def work(kind: str) -> None:
        """Until it is done, or interrupted."""
        for operation in count():
            if done.is_set():
                return
            ask(storage, operation)
            outcomes[kind] += 1

    def work_in_haste() -> None:
        for operation in count():
            if done.wait(0.001):  # most fail at once, and would leave no time to the others
                return
            try:
                ask(hasty, operation)
                outcomes["in haste"] += 1
            except StateStoreError:
                outcomes["too late"] += 1

    def break_connections() -> None:
        """By what was answered, not by the clock: on a slow machine too there must be time for an answer."""
        next_at = 0
        while not done.wait(0.001):
            if answers() >= next_at:
                next_at += ANSWERS_OF_A_CONNECTION
                with suppress(OSError, IndexError):  # it is not connected, or there is none
                    connected = [sock for sock in open_sockets if sock.fileno() >= 0]
                    random.choice(connected).shutdown(socket.SHUT_RDWR)
                    outcomes["broken"] += 1

    def aside(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as fault:
            faults.append(fault)

    works = [*(partial(work, "aside") for _ in range(THREADS)), work_in_haste, break_connections]
    threads = [threading.Thread(target=aside, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    signal.signal(signal.SIGALRM, interrupt)
    within = INTERRUPTED_WITHIN
    while not faults and (answers() < operations or not outcomes >= ENOUGH):
        before = outcomes["interrupted"]
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, within))
            work("interrupted")
        except Interrupt:
            outcomes["interrupts"] += 1
        # Where the machine is so busy that nothing is answered within that time, it gets more.
        within = within * 2 if outcomes["interrupted"] == before else INTERRUPTED_WITHIN
    done.set()
    for thread in threads:
        thread.join(60)
    assert not faults, faults
    for using in (storage, hasty):
        check_nothing_is_lost(using)
    print(dict(outcomes))  # noqa: T201


def check_nothing_is_lost(storage: RemoteStorage) -> None:
    assert storage._pool.free == POOL, "a place in the pool is lost"
    assert not storage._store.session.unanswered, "a write has no end"


def forks(address: str, number: int) -> None:
    """Children of a busy process, each of which asks on its own; the parent's threads notice nothing."""
    storage = RemoteStorage(address, namespace="abuse", pool=POOL, deadline=30)
    fill(storage)
    done, faults, asked = threading.Event(), [], Counter[str]()

    def work() -> None:
        operation = 0
        try:
            while not done.is_set():
                ask(storage, operation := operation + 1)
                asked["parent"] += 1
                if operation % 20 == 0:
                    storage.close()  # so that some are connecting at any time
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for child in range(number):
        pid = os.fork()
        if pid == 0:
            os._exit(in_child(storage, child))
        _, status = os.waitpid(pid, 0)
        if status or faults:
            done.set()
            sys.exit(f"child {child} ended with {status}; in the parent: {faults}")
    done.set()
    for thread in threads:
        thread.join(60)
    assert not faults, faults
    check_nothing_is_lost(storage)
    print(dict(asked))  # noqa: T201


def in_child(storage: RemoteStorage, child: int) -> int:
    """Its exit code: 0, 1 where it shares a socket with its parent, 2 where it could not ask."""
    try:
        links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
        if any("socket:" in os.readlink(link) for link in links if os.path.islink(link)):
            return 1
        ask(storage, child)
        storage.set("child", str(child), "HERE")
        check_nothing_is_lost(storage)
    except BaseException as fault:
        print(repr(fault), file=sys.stderr)  # noqa: T201
        return 2
    return 0


def main(kind: str, number: str, address: str = "") -> None:
    abuse = {"interrupts": interrupts, "forks": forks}[kind]
    if address:
        abuse(address, int(number))
        return
    with tempfile.TemporaryDirectory() as directory, Daemon(Path(directory)) as daemon:
        abuse(daemon.address, int(number))


if __name__ == "__main__":
    # That is what is tried here; it goes well where no lock of ours is held for ever in the child.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    main(*sys.argv[1:])
