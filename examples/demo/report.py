"""What came of it, in words and tables."""

from collections import Counter
from collections.abc import Iterator

from examples.demo.scenario import Outcome

STEPS = {"subscribe": "asked to subscribe", "confirm": "confirmed", "post": "posted, all got it", "end": "ended well"}
STATES = ["CONFIRMING", "POSTING", "BOUNCING"]


def compare(shared: Outcome, alone: Outcome) -> Iterator[str]:
    """The two runs side by side, as lines."""
    total = len(shared.conversations)
    yield f"{'':24}{'statestored':>14}{'MemoryStorage':>16}"
    for step, words in STEPS.items():
        yield f"{words:24}" + _pair(*(sum(step in c.steps for c in run.conversations) for run in (shared, alone)))
    yield f"{f'completed, of {total}':24}" + _pair(shared.completed, alone.completed)
    yield f"{'mails delivered':24}" + _pair(shared.replies.get(250, 0), alone.replies.get(250, 0))
    yield f"{'put off with 451':24}" + _pair(shared.replies.get(451, 0), alone.replies.get(451, 0))
    for name, run in (("statestored", shared), ("MemoryStorage", alone)):
        for failure, count in Counter(c.failure for c in run.conversations if c.failure).most_common(5):
            yield f"{name}: {count} ended with: {failure}"


def states(outcome: Outcome) -> Iterator[str]:
    """The final states by list. Who has left is in none: START is the absence of an entry."""
    yield f"{'':24}" + "".join(f"{state:>12}" for state in STATES)
    for module in sorted({module for module, _ in outcome.states}):
        yield f"{module:24}" + "".join(f"{outcome.states.get((module, state), 0):12}" for state in STATES)
    sums = Counter[str]()
    for (_, state), count in outcome.states.items():
        sums[state] += count
    yield f"{'all':24}" + "".join(f"{sums[state]:12}" for state in STATES)


def _pair(left: int, right: int) -> str:
    return f"{left:14}{right:16}"
