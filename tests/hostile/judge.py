"""What the requirements say of an attack: L2 and L3 of what becomes of the clients, L6 of who is served beside them."""

from collections.abc import Iterator

from tests.hostile.attack import Outcome
from tests.hostile.clients import DEAF_SECURE, HALF_SECURE

MAX_GROWTH = 100 * 2**20  # bytes
MAX_P99 = 5.0  # milliseconds, of a get beside those that ask without end
ASKING = ("endless", "flooding")  # and take their answers, so that they have to be served
# Seconds until those that waste time are closed. Who does not read learns of it by writing, a second or two later.
CLOSED_AFTER = {
    "silent": 5.0,
    "dripping-hello": 5.0,
    HALF_SECURE: 5.0,
    "dripping": 10.0,
    "deaf": 62.0,
    DEAF_SECURE: 62.0,
}
LATE = 3.0  # seconds more; the daemon looks once a second


def complaints(kind: str, seconds: float, outcome: Outcome) -> Iterator[str]:
    """What is wrong, where the clients were all of this kind and stayed for so many seconds."""
    fates = outcome.fates[kind]
    if outcome.memory_growth > MAX_GROWTH:
        yield f"memory grew by more than {MAX_GROWTH >> 20} MiB"
    if kind in ASKING:
        if fates.closed or fates.refused:
            yield "those that take their answers were closed, or refused"
        if (p99 := undisturbed_p99(outcome)) > MAX_P99:
            yield f"p99 of the gets is {p99:.2f} ms without the daemon's waiting for a processor, over {MAX_P99:g} ms"
    if kind in CLOSED_AFTER:
        latest = CLOSED_AFTER[kind] + LATE
        if seconds < latest:
            yield f"they have to stay for {latest:g} s, or nobody knows whether they are closed in time"
        elif len(fates.closed) < fates.connected:
            yield f"{fates.connected - len(fates.closed):,} were not closed"
        elif fates.closed and max(fates.closed) > latest:
            yield f"the last was closed after {max(fates.closed):.1f} s, later than {latest:g} s"
    if not fates.connected:
        yield "none has connected"


def undisturbed_p99(outcome: Outcome) -> float:
    """Milliseconds of a get, without the part of the time in which the daemon had no processor, for the others had."""
    return outcome.during[0].p99 * (1 - min(outcome.waited, 1.0))
