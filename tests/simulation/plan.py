"""A plan: all that a run is made of. It comes from a seed, or from a failure, without what the failure did not need.

What the product does not promise (docs/reliability.md, "What cannot be promised") is a rule here, not in the checks: a
plan does not ask for it.
"""

import dataclasses
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

VERSION = 1
VARIANTS = 4  # of the random streams that are tried for a smaller plan


class PlanError(ValueError):
    """The plan is not one, or is of another version."""


class Trouble(StrEnum):
    """A fault that is injected."""

    POWER = "power"  # the server's machine loses power
    POWER_AT_CALL = "power_at_call"  # at one of the next calls on the disk
    POWER_AT_KIND = "power_at_kind"  # at one of the next calls of one kind
    POWER_AFTER_RENAME = "power_after_rename"  # soon after the next rename, as at the end of a snapshot
    KILL = "kill"  # of the daemon, by SIGKILL
    KILL_AT_CALL = "kill_at_call"
    KILL_AT_KIND = "kill_at_kind"
    KILL_AFTER_RENAME = "kill_after_rename"
    KILL_STARTS = (
        "kill_starts"  # a kill, one more in the next start, and one or a loss of power in the start after that
    )
    TERMINATE = "terminate"  # the daemon, by SIGTERM
    SNAPSHOT = "snapshot"  # by SIGUSR1
    PAUSE = "pause"  # the daemon, by SIGSTOP
    CUT = "cut"  # connections are reset, at one end or at both
    SILENCE = "silence"  # connections are forgotten by something in between: nothing arrives any more
    PARTITION = "partition"  # clients from the server
    ONE_WAY = "one_way"  # in one direction only
    LATE_COPIES = "late_copies"  # what is sent now arrives, but after its sender has given the connection up
    ADDRESS_DOWN = "address_down"  # one of the two addresses of the store
    SLOW_NETWORK = "slow_network"
    SLOW_DISK = "slow_disk"
    FULL_DISK = "full_disk"
    NEARLY_FULL_DISK = "nearly_full_disk"  # some bytes are left
    FAILING_WRITE = "failing_write"
    FAILING_SYNC = "failing_sync"
    FAILING_RENAME = "failing_rename"
    CLOCK_STEP = "clock_step"  # of a machine's wall clock
    SUSPEND = "suspend"  # a machine; its CLOCK_MONOTONIC stands still
    CLIENT_CRASH = "client_crash"  # and another process takes its place
    REVOKE_TOKEN = "revoke_token"  # SIGHUP; it is valid again some time later


FULL_DISKS = frozenset({Trouble.FULL_DISK, Trouble.NEARLY_FULL_DISK})
FAILING_DISKS = frozenset({Trouble.FAILING_WRITE, Trouble.FAILING_SYNC, Trouble.FAILING_RENAME})
POWER_LOSSES = frozenset({Trouble.POWER, Trouble.POWER_AT_CALL, Trouble.POWER_AT_KIND, Trouble.POWER_AFTER_RENAME})

# How often each is chosen, in comparison with the others.
WEIGHTS = {
    Trouble.POWER: 3,
    Trouble.POWER_AT_CALL: 4,
    Trouble.POWER_AT_KIND: 8,
    Trouble.POWER_AFTER_RENAME: 3,
    Trouble.KILL: 2,
    Trouble.KILL_AT_CALL: 3,
    Trouble.KILL_AT_KIND: 2,
    Trouble.KILL_AFTER_RENAME: 2,
    Trouble.KILL_STARTS: 2,
    Trouble.TERMINATE: 1,
    Trouble.SNAPSHOT: 5,
    Trouble.PAUSE: 2,
    Trouble.CUT: 5,
    Trouble.SILENCE: 3,
    Trouble.PARTITION: 3,
    Trouble.ONE_WAY: 2,
    Trouble.LATE_COPIES: 2,
    Trouble.ADDRESS_DOWN: 2,
    Trouble.SLOW_NETWORK: 2,
    Trouble.SLOW_DISK: 2,
    Trouble.FULL_DISK: 3,
    Trouble.NEARLY_FULL_DISK: 2,
    Trouble.FAILING_WRITE: 1,
    Trouble.FAILING_SYNC: 1,
    Trouble.FAILING_RENAME: 1,
    Trouble.CLOCK_STEP: 2,
    Trouble.SUSPEND: 2,
    Trouble.CLIENT_CRASH: 2,
    Trouble.REVOKE_TOKEN: 1,
}


@dataclass(frozen=True, slots=True)
class Event:
    """A trouble, when it comes, and the seed of what it chooses, such as which connections are cut."""

    seconds: float
    trouble: Trouble
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes are in bytes, times in seconds."""

    seed: str  # of the random streams
    clients: int  # processes, each on a machine of its own
    blocking: int  # of these, so many use RemoteStorage and threads; the others use AsyncRemoteStorage
    actors: int  # threads or coroutines of each client that share its storage
    calls: int  # of each actor
    senders: int
    write_deadline: float
    think: float  # between two calls of an actor, on average
    cancelled: float  # this share of the coroutines' calls is cancelled
    bulk: bool  # there are also scans, counts, `clear` and large bulk calls
    tokens: bool  # the daemon asks for one
    addresses: int  # of the store
    cold: bool  # clients and troubles do not wait until the daemon listens for the first time
    fsync: str
    segment_size: int
    reserve: int  # of a segment, that is allocated at once
    flush_every: int  # of a snapshot
    bucket_size: int  # of the table, in senders
    snapshot_interval: float
    sync_time: float
    latency: float  # of the network, but for a few packets that take up to 50 times as long
    max_sessions: int
    session_lifetime: float  # of one that nobody is in
    events: tuple[Event, ...]
    last_outage: bool  # at the end the power fails once more (or the daemon is killed, if writes are not synced)

    def to_json(self) -> str:
        fields: dict[str, Any] = {"version": VERSION}
        for field in dataclasses.fields(self):
            fields[field.name] = getattr(self, field.name)
        fields["events"] = [[event.seconds, event.trouble, event.seed] for event in self.events]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises PlanError."""
        try:
            fields = json.loads(text, parse_constant=_refuse_constant)
        except RecursionError:
            raise PlanError("the plan is nested too deeply") from None
        except ValueError as error:
            raise PlanError(f"the plan is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise PlanError(f"the plan is not an object: {text[:60]}")
        version = fields.pop("version", None)
        if isinstance(version, bool) or version != VERSION:
            raise PlanError(f"the plan is of version {version!r}, and this simulation reads version {VERSION} only")
        known = {field.name: None for field in dataclasses.fields(cls)}
        if wrong := sorted(known.keys() ^ fields.keys()):
            raise PlanError(f"the plan's fields are not those of a plan: {', '.join(wrong)} missing or unknown")
        for name, value in fields.items():
            _check_field(name, value)
        if fields["blocking"] > fields["clients"]:
            raise PlanError(
                f"the plan's blocking is {fields['blocking']}: expected at most {fields['clients']}, its clients"
            )
        fields["events"] = _events_of(fields["events"])
        return cls(**fields)


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


# The least and the most of each number. Those that are drawn are well within; more would only take too long.
_LIMITS: dict[str, tuple[float, float]] = {
    "clients": (1, 20),
    "blocking": (0, 20),
    "actors": (1, 3),  # as many as have names
    "calls": (1, 1000),
    "senders": (1, 100),
    "write_deadline": (0.01, 60),
    "think": (0.0001, 10),
    "cancelled": (0, 1),
    "addresses": (1, 2),
    "segment_size": (1, 2**30),
    "reserve": (1, 2**30),
    "flush_every": (1, 2**30),
    "bucket_size": (1, 2**20),
    "snapshot_interval": (0, 3600),
    "sync_time": (0, 10),
    "latency": (0, 10),
    "max_sessions": (1, 10**6),
    "session_lifetime": (0.01, 10**6),
}
_MOST_SECONDS = 1000  # at which a trouble may come
_MOST_EVENTS = 1000
_LONGEST_SEED = 100
_KINDS = {"str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}
_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


def _check_field(name: str, value: Any) -> None:
    """Raises PlanError."""
    kind = Plan.__annotations__[name]
    if kind in (str, int, float, bool):
        types = _TYPES[kind.__name__]
        if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
            raise PlanError(f"the plan's {name} is {_short(value)}: expected {_KINDS[kind.__name__]}")
    if kind in (int, float):
        least, most = _LIMITS[name]
        if not least <= value <= most:  # so it is with infinity, which json reads from 1e999
            raise PlanError(f"the plan's {name} is {_short(value)}: expected {least:,} to {most:,}")
    if name == "seed" and len(value) > _LONGEST_SEED:
        raise PlanError(f"the plan's seed is {_short(value)}: expected at most {_LONGEST_SEED} characters")
    if name == "fsync" and value not in FSYNC:
        raise PlanError(f"the plan's fsync is {_short(value)}: expected one of {', '.join(FSYNC)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _events_of(listed: Any) -> tuple[Event, ...]:
    """Raises PlanError."""
    if not isinstance(listed, list):
        raise PlanError(f"the plan's events are {_short(listed)}: expected a list")
    if len(listed) > _MOST_EVENTS:
        raise PlanError(f"the plan has {len(listed):,} events: expected at most {_MOST_EVENTS:,}")
    return tuple(map(_event_of, listed))


def _event_of(item: Any) -> Event:
    """Raises PlanError."""
    match item:
        case [int() | float() as seconds, str(name), int(seed)] if not (
            isinstance(seconds, bool) or isinstance(seed, bool)
        ):
            if name not in list(Trouble):
                raise PlanError(f"the plan's event {_short(item)} has a trouble that is not known")
            if not (0 <= seconds <= _MOST_SECONDS and 0 <= seed < 2**64):
                raise PlanError(
                    f"the plan's event {_short(item)} is none: expected 0 to {_MOST_SECONDS:,} seconds, "
                    "and a seed from 0 to 2**64 - 1"
                )
            return Event(seconds, Trouble(name), seed)
    raise PlanError(f"the plan's event {_short(item)} is none: expected [seconds, trouble, seed]")


FSYNC = ("always", "everysec", "never")


def plan_of(seed: int) -> Plan:
    """The plan of a seed: the same one in every process."""
    rng = random.Random(f"plan/{seed}")
    calls = rng.choice((10, 25, 40))
    think = rng.choice((0.001, 0.01, 0.05))
    lasts = max(calls * (think + 0.006), 0.3) * 1.5
    fsync = rng.choices(FSYNC, (6, 3, 1))[0]
    snapshots = rng.random() < 0.5  # many of them: then a power loss often comes just after one
    return Plan(
        seed=str(seed),
        clients=4,
        blocking=rng.choice((0, 1, 2)),
        actors=2,
        calls=calls,
        senders=rng.choice((1, 2, 4)),
        write_deadline=rng.choice((0.5, 1.0, 5.0)),
        think=think,
        cancelled=rng.choice((0.0, 0.0, 0.1)),
        bulk=rng.random() < 0.3,
        tokens=rng.random() < 0.2,
        addresses=rng.choice((1, 1, 2)),
        cold=rng.random() < 0.1,
        fsync=fsync,
        segment_size=rng.choice((1500, 20_000, 2**26)),
        reserve=rng.choice((512, 4096, 2**16)),
        flush_every=rng.choice((200, 2**20)),
        bucket_size=rng.choice((2, 2730)),
        snapshot_interval=rng.choice((0.05, 0.5) if snapshots else (0.0, 3.0)),
        sync_time=rng.choice((0.0002, 0.005, 0.05)),
        latency=rng.choice((0.0002, 0.002, 0.02)),
        max_sessions=rng.choice((10_000, 10_000, 10_000, 6)),
        session_lifetime=rng.choice((3600.0, 3600.0, 0.2, 2.0)),
        events=_possible_events(_random_events(rng, lasts), fsync, rng),
        last_outage=rng.random() < 0.6,
    )


def _random_events(rng: random.Random, lasts: float) -> list[Event]:
    troubles = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=rng.randint(2, 12))
    return sorted(
        (Event(round(rng.uniform(0.0, lasts), 4), trouble, rng.randrange(2**16)) for trouble in troubles),
        key=lambda event: event.seconds,
    )


def _possible_events(events: list[Event], fsync: str, rng: random.Random) -> tuple[Event, ...]:
    """Keep to what is promised.

    A power loss takes what was acknowledged unless each write is synced: without that the power fails in some plans
    only, and in these nothing is asked about what was written before. A full disk behind a failed one may lose what was
    read: a plan has the one or the other.
    """
    if any(event.trouble in FAILING_DISKS for event in events):
        events = [event for event in events if event.trouble not in FULL_DISKS]
    if fsync != "always" and rng.random() < 0.6:
        events = [replace(event, trouble=Trouble.KILL) if event.trouble in POWER_LOSSES else event for event in events]
    return tuple(events)


def loses_acknowledged_writes(plan: Plan) -> bool:
    """Whether a power loss may take writes that were acknowledged, as --fsync says."""
    return plan.fsync != "always" and any(event.trouble in POWER_LOSSES for event in plan.events)


def keeps_sessions(plan: Plan) -> bool:
    """Whether no session can be lost, so that each write has an answer if there is time to repeat it.

    Calls that are cancelled may close their storage, and a closed storage repeats nothing. A clock that is wrong makes
    the server refuse a write as too late.
    """
    losses = FULL_DISKS | FAILING_DISKS | {Trouble.REVOKE_TOKEN, Trouble.CLOCK_STEP, Trouble.SUSPEND}
    return (
        plan.session_lifetime >= 3600
        and plan.max_sessions >= 10_000
        and not plan.cancelled
        and not loses_acknowledged_writes(plan)
        and not any(event.trouble in losses for event in plan.events)
    )


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
    if plan.blocking:
        yield replace(plan, blocking=0)
    if plan.blocking < plan.clients:
        yield replace(plan, blocking=plan.clients)
    if plan.clients > 1:
        yield replace(plan, clients=plan.clients - 1, blocking=min(plan.blocking, plan.clients - 1))
    if plan.actors > 1:
        yield replace(plan, actors=1)
    for calls in (plan.calls // 2, plan.calls - 1):
        if calls:
            yield replace(plan, calls=calls)
    if plan.senders > 1:
        yield replace(plan, senders=1)
    for plainer in (
        {"cancelled": 0.0},
        {"bulk": False},
        {"tokens": False},
        {"cold": False},
        {"addresses": 1},
        {"last_outage": False},
        {"snapshot_interval": 0.0},
        {"max_sessions": 10_000},
        {"session_lifetime": 3600.0},
    ):
        candidate = replace(plan, **plainer)  # type: ignore[arg-type]
        if candidate != plan:
            yield candidate
