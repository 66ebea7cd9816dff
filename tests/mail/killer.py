"""Somebody who kills the daemon again and again while mail is handled, and starts it anew each time."""

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from random import Random

from examples.demo.mta import Mta, Reply
from examples.demo.sink import Mail

from tests.daemon import Daemon
from tests.mail.postfix import PostfixMta

LONGEST_OUTAGE = 1.0  # seconds, where no mail is put off in that time


class Killer:
    """A kill comes at the Nth reply or answer since the daemon was there, N being drawn from 1 to 2 * `every`.

    Every other time the daemon is started at once, so that mail which is under way waits for it; else when a mail has
    been put off.
    """

    def __init__(self, daemon: Daemon, random: Random, every: int) -> None:
        self.kills = 0
        self._daemon = daemon
        self._random = random
        self._every = every
        self._lock = threading.Lock()  # protects _left
        self._left = 0  # events until the next kill; from 0 on there is none
        self._killed: SimpleQueue[bool] = SimpleQueue()  # False at the end
        self._put_off = threading.Event()

    def on_reply(self, reply: Reply) -> None:
        if reply.code == 451:
            self._put_off.set()
        self._happened()

    def on_answer(self, mail: Mail) -> None:
        """In the sink, before it accepts: what the handler has to say is out, its state not stored yet."""
        if mail.message["List-Id"] is None:
            self._happened()

    @contextmanager
    def at_work(self, mta: Mta | PostfixMta) -> Iterator[None]:
        """Ends with the daemon running. Where that does not start, `mta` stops retrying."""
        self._draw()
        with ThreadPoolExecutor(1) as pool:
            operator = pool.submit(self._run, mta)
            try:
                yield
            finally:
                self._killed.put(False)
                operator.result()
                self._left = 0  # nothing happens any more until somebody goes on

    def _happened(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left != 0:
                return
            self._daemon.send_signal(signal.SIGKILL)
        self._put_off.clear()
        self._killed.put(True)

    def _run(self, mta: Mta | PostfixMta) -> None:
        try:
            while self._killed.get():
                self.kills += 1
                self._daemon.wait()
                if self.kills % 2:
                    self._put_off.wait(LONGEST_OUTAGE)
                self._daemon.start()
                mta.flush()
                self._draw()
        except BaseException:
            mta.stop_retrying()
            raise

    def _draw(self) -> None:
        with self._lock:
            self._left = self._random.randint(1, 2 * self._every)
