"""What happens in a life: each of these is one for `workload.record`."""

from contextlib import suppress
from random import Random

import pytest

from statestore.errors import Unavailable
from statestored.engines import commits
from statestored.engines.base import Sender
from statestored.errors import DamagedFile
from tests.crash.workload import OTHER, SENDERS, Client, Clock, Script
from tests.server.waiting import eventually

COMMITS_IN_A_SNAPSHOT = 15
NEVER = 3600.0  # seconds
SESSIONS = 3  # at the same time, at most
WRITES = ("set", "set", "large", "many", "many", "wide", "module", "all", "remove", "clear")
WRITES += ("once", "once", "repeat", "session")


async def few_writes(client: Client) -> None:
    """So short that every crash state can be tried."""
    client.set(b"ann", client.value())
    await client.answered()
    await client.marked()
    client.set_many({b"ann": client.value(400), b"ben": client.value(400), b"cid": client.value(400)})
    await client.turn()
    client.get(b"ann")
    client.remove(b"ben")
    await client.answered()
    client.set(b"ann", client.value())


async def one_write(client: Client) -> None:
    """After a recovery: it adds to what was found, and repeats what is remembered."""
    client.look_at_sessions()
    for session in [*client.sessions]:
        client.set_once(session, b"ben", client.value())
    client.set(b"ann", client.value())
    client.get(b"ann")
    await client.answered()


async def reads(client: Client) -> None:
    """Of what was found."""
    client.look_at_sessions()
    for sender in SENDERS:
        client.get(sender)


async def writes_during_a_sync(client: Client) -> None:
    """For `everysec`, where they are acknowledged meanwhile."""
    client.set(b"ann", client.value(700))
    client.recorder.syncs_end.clear()
    await eventually(lambda: client.recorder.syncing)
    client.set(b"ben", client.value(700))
    await client.answered()
    client.recorder.syncs_end.set()
    await eventually(lambda: not client.recorder.syncing)
    client.set(b"cid", client.value(700))
    await client.answered()


async def full_during_a_sync(client: Client) -> None:
    """For `everysec`: the sync before a new segment has not all that the old one holds."""
    client.set(b"ann", client.value(700))
    client.recorder.syncs_end.clear()
    await eventually(lambda: client.recorder.syncing)
    rotated = client.fill_segment()
    await client.answered()
    client.recorder.syncs_end.set()
    await eventually(rotated)
    client.set(b"ann", client.value())
    await client.answered()


async def snapshot_of_what_is_not_synced(client: Client) -> None:
    """For `everysec`: a write comes right behind the rotation, and it is the snapshot alone that has it synced."""
    client.set(b"ann", client.value())
    await client.answered()
    await client.marked()
    rotate = client.engine.commits.rotate

    async def rotate_and_write() -> tuple[int, int]:
        rotated = await rotate()
        client.set(b"ann", client.value())
        return rotated

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commits, "SYNC_EVERY", NEVER)
        patch.setattr(client.engine.commits, "rotate", rotate_and_write)
        await client.snapshot()
    await client.answered()


async def a_bit_of_everything(client: Client) -> None:
    """So short that every moment of it can be a life's last."""
    client.open_session()
    await few_writes(client)
    (session,) = client.sessions
    await client.rotated()
    client.set_once(session, b"ben", client.value())
    await client.snapshot()
    client.set_once(session, b"cid", client.value(), unfinished=1)
    await client.answered()


def busy(clock: Clock, seed: int, rounds: int = 3) -> Script:
    """Everything that changes files: writes of all kinds, segments that are full, snapshots, and idle moments."""

    async def script(client: Client) -> None:
        rng = Random(seed)
        for _ in range(rounds):
            await _some_writes(client, clock, rng, 12)
            await client.rotated()
            await _some_writes(client, clock, rng, 6)
            await client.marked()
            await _snapshot(client, clock, rng)
        await _some_writes(client, clock, rng, 6)

    return script


def full_disk(clock: Clock, seed: int) -> Script:
    """Writes are refused for a while, and what was written in part is taken back."""

    async def script(client: Client) -> None:
        rng = Random(seed)
        for _ in range(3):
            await _some_writes(client, clock, rng, 6)
            client.recorder.is_full = True
            for _ in range(3):
                with suppress(Unavailable):
                    client.set_many({sender: client.value(500) for sender in rng.sample(SENDERS, 4)})
                with suppress(Unavailable):
                    client.open_session()
                for session in [*client.sessions]:
                    with suppress(Unavailable):
                        client.set_once(session, b"s1", client.value())
                await client.turn()
            await client.answered()
            for sender in SENDERS:
                client.get(sender)
            client.recorder.is_full = False
            await client.writable()
            client.look_at_sessions()

    return script


async def bad_snapshot(client: Client) -> None:
    """What is written to it is not what it should be."""
    for sender in SENDERS:
        client.set(sender, client.value())
    await client.answered()
    client.recorder.is_snapshot_damaged = True
    with suppress(DamagedFile):
        await client.snapshot()
    client.set(b"ann", client.value())
    await client.answered()


async def _some_writes(client: Client, clock: Clock, rng: Random, number: int) -> None:
    for _ in range(number):
        _write(client, rng)
        client.get(rng.choice(SENDERS))
        if rng.random() < 0.3:
            await client.answered()
        elif rng.random() < 0.7:
            await client.turn()
        if rng.random() < 0.1:
            clock.day += 1
    await client.answered()


def _write(client: Client, rng: Random) -> None:
    sender: Sender = rng.choice(SENDERS)
    namespace = rng.choice((b"default", OTHER))
    match rng.choice(WRITES):
        case "set":
            client.set(sender, client.value(), namespace=namespace)
        case "large":
            client.set(sender, client.value(700), namespace=namespace)
        case "many":
            senders = rng.sample(SENDERS, 5)
            client.set_many({sender: client.value(rng.choice((0, 0, 400))) for sender in senders}, namespace)
        case "wide":
            client.set_many({sender: client.value(550) for sender in rng.sample(SENDERS, 6)}, namespace)
        case "module":
            client.set(sender, client.value(), module=b"admin", namespace=namespace)
        case "all":
            client.set_all(sender, client.value(), namespace)
        case "remove":
            client.remove(sender, namespace)
        case "clear":
            client.clear()
        case "once" if client.sessions:
            client.set_once(rng.choice([*client.sessions]), sender, client.value(), rng.choice((0, 0, 1, 5)))
        case "repeat" if client.sessions:
            client.repeat(rng.choice([*client.sessions]))
        case _ if len(client.sessions) < SESSIONS:
            client.open_session()
        case _:
            client.expire(rng.choice([*client.sessions]))


async def _snapshot(client: Client, clock: Clock, rng: Random) -> None:
    """With commits before the walk, behind it, and while the file is synced."""
    snapshot = client.snapshot()
    for _ in range(COMMITS_IN_A_SNAPSHOT):
        await _some_writes(client, clock, rng, 1)
        if snapshot.done():
            break
    await snapshot
