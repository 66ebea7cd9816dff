"""Somebody who kills the daemon again and again while mail is handled, and starts it anew each time."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from random import Random
from types import TracebackType
from typing import Self

from examples.demo.mta import Mta, Reply
from examples.demo.sink import Mail

from tests.daemon import Daemon

LONGEST_OUTAGE = 1.0  # seconds, where no mail is put off in that time


class Killer:
    """A kill comes at the Nth reply or answer since the daemon was there, N being drawn from 1 to 2 * `every`.

    Every other time the daemon is started at once, so that mail which is under way waits for it; else when a mail has
    been put off. The context ends with the daemon running.
    """

    def __init__(self, daemon: Daemon, random: Random, every: int) -> None:
        self.kills = 0
        self._daemon = daemon
        self._random = random
        self._every = every
        self._lock = threading.Lock()  # protects _left
        self._left = 0  # events until the next kill; at and below 0 the daemon is not there
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

    def watch(self, mta: Mta) -> Self:
        """For use as a context: until its end the daemon is killed. Where it does not start, mail is not retried."""
        self._mta = mta
        return self

    def __enter__(self) -> Self:
        self._draw()
        self._pool = ThreadPoolExecutor(1)
        self._operator = self._pool.submit(self._run)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with self._lock:
            self._left = 0
        self._killed.put(False)
        with self._pool:
            self._operator.result()

    def _happened(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left != 0:
                return
            self._daemon.send_signal(signal.SIGKILL)
        self._put_off.clear()
        self._killed.put(True)

    def _run(self) -> None:
        try:
            while self._killed.get():
                self.kills += 1
                self._daemon.wait()
                if self.kills % 2:
                    self._put_off.wait(LONGEST_OUTAGE)
                self._daemon.start()
                self._mta.flush()
                self._draw()
        except BaseException:
            self._mta.stop_retrying()
            raise

    def _draw(self) -> None:
        with self._lock:
            self._left = self._random.randint(1, 2 * self._every)
