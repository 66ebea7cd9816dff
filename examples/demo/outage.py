"""Somebody restarts the daemon while mail comes in."""

import threading
from collections.abc import Callable

from examples.demo.mta import Mta, Reply
from examples.demo.processes import Daemon

MAIL_TIMEOUT = 60.0  # seconds until so much mail was delivered
LONGEST_OUTAGE = 3.0  # where all mail waits, and none is put off, in that time


class Outage:
    """Stops the daemon at the `after`th reply; starts it when a mail has been put off for that."""

    def __init__(self, after: int, say: Callable[[str], None]) -> None:
        self._after = after
        self._say = say
        self._replies = 0
        self._lock = threading.Lock()  # protects _replies
        self._due = threading.Event()
        self._put_off = threading.Event()

    def on_reply(self, reply: Reply) -> None:
        with self._lock:
            self._replies += 1
            if self._replies >= self._after:
                self._due.set()
        if reply.code == 451:
            self._put_off.set()

    def run(self, daemon: Daemon, mta: Mta) -> None:
        """Raises what went wrong; then no mail waits for the daemon any more."""
        try:
            if not self._due.wait(MAIL_TIMEOUT):
                raise TimeoutError(f"fewer than {self._after} mails in {MAIL_TIMEOUT:g} s")
            self._restart(daemon)
        except BaseException:
            mta.stop_retrying()
            raise
        mta.flush()
        self._say("daemon is back")

    def _restart(self, daemon: Daemon) -> None:
        if status := daemon.stop():
            raise RuntimeError(f"the daemon ended with status {status}")
        self._say("daemon stopped; mail goes on coming in")
        self._put_off.wait(LONGEST_OUTAGE)
        daemon.start()
