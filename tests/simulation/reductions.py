"""Smaller plans: what may be left out of a plan that fails, to see whether it still fails."""

from collections.abc import Iterator
from dataclasses import replace

from tests.simulation.plan import Plan

VARIANTS = 4  # of the random streams that are tried for a smaller plan


def smaller(plan: Plan) -> Iterator[Plan]:
    """Plans with something left out, the boldest first, each with several random streams.

    Whatever is left out gives everything after it other random numbers, so that the same fault may need other ones.
    """
    for candidate in _with_less(plan):
        yield candidate
        for variant in range(1, VARIANTS):
            yield replace(candidate, seed=f"{plan.seed.partition('.')[0]}.{variant}")


def _with_less(plan: Plan) -> Iterator[Plan]:
    for size in (len(plan.events) // 2, 4, 2, 1):
        if size:
            for start in range(0, len(plan.events), size):
                yield replace(plan, events=plan.events[:start] + plan.events[start + size :])
    if plan.clients > 1:
        for left_out in range(plan.clients):
            yield _without_client(plan, left_out)
    if plan.blocking:
        yield replace(plan, blocking=0)
    if plan.blocking < plan.clients:
        yield replace(plan, blocking=plan.clients)
    yield from _with_fewer_calls(plan)
    if len(plan.senders) > 1:
        for dropped in plan.senders:
            yield replace(plan, senders=tuple(sender for sender in plan.senders if sender != dropped))
    if len(plan.methods) > 1:
        for dropped in plan.methods:
            yield replace(plan, methods=tuple(method for method in plan.methods if method != dropped))
    for plainer in (
        {"cancelled": 0.0},
        {"tokens": False},
        {"cold": False},
        {"addresses": 1},
        {"last_outage": ""},
        {"last_outage": "quiet"} if plan.last_outage else {},
        {"snapshot_interval": 0.0},
        {"max_sessions": 10_000},
        {"session_lifetime": 3600.0},
    ):
        candidate = replace(plan, **plainer)
        if candidate != plan:
            yield candidate


def _without_client(plan: Plan, left_out: int) -> Plan:
    """The blocking clients are the first ones."""
    calls = plan.calls[:left_out] + plan.calls[left_out + 1 :]
    return replace(plan, clients=plan.clients - 1, blocking=plan.blocking - (left_out < plan.blocking), calls=calls)


def _with_fewer_calls(plan: Plan) -> Iterator[Plan]:
    """Half as many of all actors, or none of one, or half as many, or one less."""
    if (halves := tuple(tuple(calls // 2 for calls in actors) for actors in plan.calls)) and any(map(any, halves)):
        yield replace(plan, calls=halves)
    for fewer in (lambda _: 0, lambda calls: calls // 2, lambda calls: calls - 1):
        for client, actors in enumerate(plan.calls):
            for actor, calls in enumerate(actors):
                if calls:
                    changed = (*actors[:actor], fewer(calls), *actors[actor + 1 :])
                    yield replace(plan, calls=(*plan.calls[:client], changed, *plan.calls[client + 1 :]))
