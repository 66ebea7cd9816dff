"""What happens to the daemon and to the network while the clients call, drawn at random."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from tests.daemon import Daemon
from tests.proxy import BOTH, Direction, Proxy

ANY_PORT = "127.0.0.1:0"
BETWEEN = (0.02, 0.1)  # seconds without any: in most of it the clients come to know that all is well
SHORT = (0.0, 0.1)  # seconds that one lasts
LONG = (0.5, 2.0)  # so that calls are given up meanwhile
OFTEN_SHORT = 0.9
CUT_WITHIN = 120  # bytes: a request and its answer have about 50
CUT_PATIENCE = 0.5  # seconds


class Troubles:
    """One after the other; each is over when its method returns, but for a cut that waits for its bytes."""

    def __init__(self, random: Random, daemon: Daemon, proxies: Sequence[Proxy]) -> None:
        self.made: Counter[str] = Counter()
        self._random = random
        self._daemon = daemon
        self._proxies = proxies

    def make(self, wanted: Callable[[], bool], most: int) -> None:
        """For as long as they are wanted, but no more than so many: then the clients can do the rest of their calls."""
        kinds = dict(KINDS)
        while wanted() and self.made.total() < most:
            time.sleep(self._random.uniform(*BETWEEN))
            (kind,) = self._random.choices(list(kinds), list(kinds.values()))
            self.made[kind.__name__] += 1
            kind(self)

    def kill(self) -> None:
        self._daemon.kill()
        self._start_again()

    def stop_and_start(self) -> None:
        self._daemon.stop()
        self._start_again()

    def pause(self) -> None:
        """SIGSTOP."""
        self._daemon.send_signal(signal.SIGSTOP)
        self._last()
        self._daemon.send_signal(signal.SIGCONT)

    def kill_paused(self) -> None:
        """What it has not read is never executed."""
        self._daemon.send_signal(signal.SIGSTOP)
        time.sleep(self._random.uniform(*SHORT))
        self.kill()

    def cut(self) -> None:
        for proxy in self._some():
            proxy.cut(reset=self._random.random() < 0.5)

    def cut_after(self) -> None:
        for proxy in self._some():
            count = self._random.randrange(CUT_WITHIN)
            proxy.cut_after(self._random.choice(BOTH), count, reset=self._random.random() < 0.5)

    def lose_answer_and_kill(self) -> None:
        cut = self._random.choice(self._proxies).cut_after(Direction.REPLIES, 0)
        cut.done.wait(CUT_PATIENCE)
        self.kill()

    def hold(self) -> None:
        """A black hole, or half open; afterwards all goes on, or is lost."""
        held = self._some()
        directions = self._random.choice([BOTH, *((direction,) for direction in BOTH)])
        for proxy in held:
            proxy.hold(*directions)
        self._last()
        if self._random.random() < 0.5:
            self._each(held, Proxy.cut)
        self._each(held, Proxy.heal)

    def late(self) -> None:
        """Requests come when they have been repeated elsewhere."""
        held = self._some()
        for proxy in held:
            proxy.hold(Direction.REQUESTS)
        time.sleep(self._random.uniform(*SHORT))
        self._each(held, Proxy.stop_accepting)
        self._each(held, Proxy.hang_up)
        time.sleep(self._random.uniform(*SHORT))
        self._each(held, Proxy.heal)
        self._each(held, Proxy.accept_again)

    def slow(self) -> None:
        slowed = self._some()
        for proxy in slowed:
            proxy.delay(self._random.uniform(0, 0.005))
            if self._random.random() < 0.5:
                proxy.drip()
        self._last()
        self._each(slowed, Proxy.heal)

    def refuse(self) -> None:
        refusing = self._some()
        self._each(refusing, Proxy.stop_accepting)
        self._each(refusing, Proxy.cut)
        self._last()
        self._each(refusing, Proxy.accept_again)

    def _start_again(self) -> None:
        """At the same address, or at another."""
        time.sleep(self._random.uniform(*SHORT))
        if self._random.random() < 0.5:
            self._daemon.address = ANY_PORT
        self._daemon.start()
        for proxy in self._proxies:
            proxy.target = self._daemon.address

    def _last(self) -> None:
        time.sleep(self._random.uniform(*(SHORT if self._random.random() < OFTEN_SHORT else LONG)))

    def _some(self) -> list[Proxy]:
        return self._random.sample(self._proxies, self._random.randint(1, len(self._proxies)))

    def _each(self, proxies: Sequence[Proxy], command: Callable[[Proxy], None]) -> None:
        for proxy in proxies:
            command(proxy)


KINDS: dict[Callable[[Troubles], None], int] = {
    Troubles.kill: 3,
    Troubles.stop_and_start: 1,
    Troubles.pause: 4,
    Troubles.kill_paused: 1,
    Troubles.cut: 6,
    Troubles.cut_after: 12,
    Troubles.lose_answer_and_kill: 3,
    Troubles.hold: 5,
    Troubles.late: 6,
    Troubles.slow: 3,
    Troubles.refuse: 3,
}
