"""How many wrong tokens one address may give, until it is told to come back later."""

import time
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network, ip_address

# An address may give 20 wrong tokens at once, and 8 a second in the long run. Nobody guesses a token that was made for
# it; this is for the one that somebody may have thought of, in the environment.
AT_ONCE, SECONDS_EACH = 20, 0.125
MAX_KEPT = 10_000  # addresses; each is forgotten 2.5 seconds after its last wrong token


class Throttle:
    """Each wrong token costs its address some time. Nobody waits here: whoever owes too much is sent away.

    `clock` counts seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paid: dict[str, float] = {}  # when an address will owe nothing any more; who failed last stands last

    def is_shut(self, address: str) -> bool:
        """Whether it gave too many wrong ones for now."""
        return self._paid.get(address, 0.0) - self._clock() > (AT_ONCE - 1) * SECONDS_EACH

    def failed(self, address: str) -> None:
        """It gave a wrong token."""
        now = self._clock()
        before = self._paid.pop(address, 0.0)  # taken out, so that it stands last again
        self._forget(now)
        self._paid[address] = max(before, now) + SECONDS_EACH

    def _forget(self, now: float) -> None:
        """Those in front that owe nothing, and where there are too many, those that failed longest ago."""
        for address in list(self._paid):
            if self._paid[address] > now and len(self._paid) < MAX_KEPT:
                break
            del self._paid[address]


def shared_address(peer: str) -> str:
    """What stands for whoever is behind a peer's address: of IPv6 the /64, since who has one of it has them all."""
    try:
        ip = ip_address(peer)
    except ValueError:
        return peer  # a unix socket's peers have none
    if isinstance(ip, IPv6Address):
        mapped = ip.ipv4_mapped
        return str(mapped) if mapped is not None else str(IPv6Network((int(ip), 64), strict=False))
    return str(ip)
