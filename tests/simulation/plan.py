"""A plan: all that a run is made of. It comes from a seed, or from a failure, without what the failure did not need.

What the product does not promise (docs/reliability.md, "What cannot be promised") is a rule here, not in the checks: a
plan does not ask for it.
"""

import dataclasses
import json
import random
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

VERSION = 1


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
    KILL_STARTS = "kill_starts"  # a kill, and one more in each of the next two starts
    POWER_STARTS = "power_starts"  # a power loss, and one more in each of the next two starts
    TERMINATE = "terminate"  # the daemon, by SIGTERM
    TERMINATE_TWICE = "terminate_twice"  # the second signal ends it at once
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
    FAILING_OPEN = "failing_open"
    FAILING_READ = "failing_read"
    FAILING_TRUNCATE = "failing_truncate"
    FAILING_REMOVE = "failing_remove"
    FAILING_LIST = "failing_list"
    FAILING_DISK = "failing_disk"  # for a while all writes, all syncs, or both fail
    CLOCK_STEP = "clock_step"  # of a machine's wall clock
    SUSPEND = "suspend"  # a machine; its CLOCK_MONOTONIC stands still
    CLIENT_CRASH = "client_crash"  # and another process takes its place
    REVOKE_TOKEN = "revoke_token"  # SIGHUP; it is valid again some time later


FULL_DISKS = frozenset({Trouble.FULL_DISK, Trouble.NEARLY_FULL_DISK})
FAILING_DISKS = frozenset(
    {
        Trouble.FAILING_WRITE,
        Trouble.FAILING_SYNC,
        Trouble.FAILING_RENAME,
        Trouble.FAILING_OPEN,
        Trouble.FAILING_READ,
        Trouble.FAILING_TRUNCATE,
        Trouble.FAILING_REMOVE,
        Trouble.FAILING_LIST,
        Trouble.FAILING_DISK,
    }
)
POWER_LOSSES = frozenset(
    {
        Trouble.POWER,
        Trouble.POWER_AT_CALL,
        Trouble.POWER_AT_KIND,
        Trouble.POWER_AFTER_RENAME,
        Trouble.POWER_STARTS,
    }
)

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
    Trouble.POWER_STARTS: 2,
    Trouble.TERMINATE: 1,
    Trouble.TERMINATE_TWICE: 1,
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
    Trouble.FAILING_OPEN: 0.5,
    Trouble.FAILING_READ: 0.5,
    Trouble.FAILING_TRUNCATE: 0.5,
    Trouble.FAILING_REMOVE: 0.5,
    Trouble.FAILING_LIST: 0.5,
    Trouble.FAILING_DISK: 1,
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
    calls: tuple[tuple[int, ...], ...]  # of each actor of each client: threads or coroutines that share its storage
    senders: tuple[str, ...]
    methods: tuple[str, ...]  # that are called
    write_deadline: float
    think: float  # between two calls of an actor, on average
    cancelled: float  # this share of the coroutines' calls is cancelled
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
    # Before all is read, the power fails once more (or the daemon is killed, if writes are not synced): "answer" at the
    # last answer of a client, "quiet" some time after it, "" not at all.
    last_outage: str

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
        fields["senders"] = _names_of("senders", fields["senders"])
        fields["methods"] = _names_of("methods", fields["methods"])
        fields["calls"] = _calls_of(fields["calls"], fields["clients"])
        return cls(**fields)


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


# The least and the most of each number. Those that are drawn are well within; more would only take too long.
_LIMITS: dict[str, tuple[float, float]] = {
    "clients": (1, 20),
    "blocking": (0, 20),
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
_MOST_CALLS = 1000  # of an actor
_MOST_ACTORS = 3  # of a client: as many as have names
_MOST_NAMES = 100
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
    if name == "last_outage" and value not in LAST_OUTAGES:
        raise PlanError(f"the plan's last_outage is {_short(value)}: expected one of {LAST_OUTAGES}")


def _names_of(name: str, listed: Any) -> tuple[str, ...]:
    """Raises PlanError."""
    match listed:
        case [_, *_] if len(listed) <= _MOST_NAMES and all(isinstance(item, str) for item in listed):
            pass
        case _:
            raise PlanError(f"the plan's {name} are {_short(listed)}: expected a list of 1 to {_MOST_NAMES} names")
    if name == "methods" and (unknown := [item for item in listed if item not in METHODS + BULK_METHODS]):
        raise PlanError(f"the plan's methods are {_short(listed)}: there is no {unknown[0]!r}")
    return tuple(listed)


def _calls_of(listed: Any, clients: int) -> tuple[tuple[int, ...], ...]:
    """Raises PlanError."""
    if isinstance(listed, list) and len(listed) == clients and all(map(_are_calls, listed)):
        return tuple(map(tuple, listed))
    raise PlanError(
        f"the plan's calls are {_short(listed)}: expected a list for each of the {clients} clients, with the number of "
        f"calls (0 to {_MOST_CALLS}) of each of its actors (at most {_MOST_ACTORS})"
    )


def _are_calls(listed: Any) -> bool:
    is_list = isinstance(listed, list) and len(listed) <= _MOST_ACTORS
    return is_list and all(type(calls) is int and 0 <= calls <= _MOST_CALLS for calls in listed)


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


METHODS = ("get", "get_many", "set", "set_many", "compare_and_set", "set_all")
BULK_METHODS = ("scan", "count", "clear", "set_many_large", "get_many_large")
FSYNC = ("always", "everysec", "never")
LAST_OUTAGES = ("", "quiet", "answer")


def plan_of(seed: int) -> Plan:
    """The plan of a seed: the same one in every process."""
    rng = random.Random(f"plan/{seed}")
    calls = rng.choice((10, 25, 40))
    think = rng.choice((0.001, 0.01, 0.05))
    lasts = max(calls * (think + 0.006), 0.3) * 1.5
    fsync = rng.choices(FSYNC, (6, 3, 1))[0]
    tokens, addresses = rng.random() < 0.2, rng.choice((1, 1, 2))
    clients, actors, senders = 4, 2, rng.choice((1, 2, 4))
    snapshots = rng.random() < 0.5  # many of them: then a power loss often comes just after one
    return Plan(
        seed=str(seed),
        clients=clients,
        blocking=rng.choice((0, 1, 2)),
        calls=((calls,) * actors,) * clients,
        senders=tuple(f"s{number}" for number in range(senders)),
        methods=METHODS + BULK_METHODS if rng.random() < 0.3 else METHODS,
        write_deadline=rng.choice((0.5, 1.0, 5.0)),
        think=think,
        cancelled=rng.choice((0.0, 0.0, 0.1)),
        tokens=tokens,
        addresses=addresses,
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
        events=_possible_events(_random_events(rng, lasts, tokens, addresses), fsync, rng),
        last_outage=rng.choices(LAST_OUTAGES, (4, 3, 3))[0],
    )


def _random_events(rng: random.Random, lasts: float, tokens: bool, addresses: int) -> list[Event]:
    pointless = {Trouble.REVOKE_TOKEN: not tokens, Trouble.ADDRESS_DOWN: addresses == 1}
    weights = {trouble: weight for trouble, weight in WEIGHTS.items() if not pointless.get(trouble)}
    troubles = rng.choices(list(weights), list(weights.values()), k=rng.randint(2, 12))
    return sorted(
        (Event(round(rng.uniform(0.0, lasts), 4), trouble, rng.randrange(2**16)) for trouble in troubles),
        key=lambda event: event.seconds,
    )


def _possible_events(events: list[Event], fsync: str, rng: random.Random) -> tuple[Event, ...]:
    """Keep to what is promised.

    A power loss takes what was acknowledged unless each write is synced: without that the power fails in some plans
    only, and in these less is asked (`histories.py`). A full disk behind a failed one may lose what was read: a plan
    has the one or the other.
    """
    if any(event.trouble in FAILING_DISKS for event in events):
        events = [event for event in events if event.trouble not in FULL_DISKS]
    if fsync != "always" and rng.random() < 0.6:
        events = [replace(event, trouble=Trouble.KILL) if event.trouble in POWER_LOSSES else event for event in events]
    return tuple(events)


def loses_acknowledged_writes(plan: Plan) -> bool:
    """Whether a power loss may take writes that were acknowledged, as --fsync says."""
    return plan.fsync != "always" and any(event.trouble in POWER_LOSSES for event in plan.events)
