"""The server's time, by which clients say until when a write may be applied."""

import time

# What goes on while the machine sleeps, where the system has it.
_steady = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SteadyClock:
    """Seconds since 1970 as the system had them when this was made, and from then on never set."""

    def __init__(self) -> None:
        self._offset = time.time() - time.clock_gettime(_steady)

    def now(self) -> float:
        return self._offset + time.clock_gettime(_steady)
