"""Every place where the product meets the real world, and what stands there in a simulation.

Nothing of the product is changed for the simulation, so a name that is replaced here may be gone one day: then `apply`
fails. The patches stay for as long as the process lives; a process that simulates does nothing else.
"""

import logging
import queue
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from statestore import aio_connection, connection, dial, pool
from statestore.address import TcpAddress
from statestored import (
    access,
    app,
    audit,
    collector,
    datadir,
    files,
    framing,
    journal,
    locks,
    reload,
    segment,
    settings,
    snapshot,
    sockets,
    trust,
)
from statestored import connection as server_connection
from statestored.engines import commits, embedded, leases, snapshots, table
from statestored.tokens import Role, Token, digest_of
from tests.simulation import stand_ins, threads
from tests.simulation.filesystem import DATA_DIRECTORY, DataPath, Fcntl, Os
from tests.simulation.kernel import Process, World
from tests.simulation.plan import Plan
from tests.simulation.sockets import Poll, Socket
from tests.simulation.stand_ins import Like

# What the log says of a fault in the daemon itself.
FAULTS_LOGGED = frozenset({"a request failed", "requests could not be executed"})

# What each daemon of the current run has made.
services: dict[Process, Any] = {}
listeners: dict[Process, Any] = {}
ready: dict[Process, float] = {}  # when they listened


def apply() -> None:
    """Replace all of it. Raises AttributeError if a name is no longer there."""
    stand_ins.install()
    _replace_defaults()
    _replace_disk()
    _replace_threads()
    _replace_network()
    _replace_surroundings()
    _replace_log()


def _replace(place: Any, **names: Any) -> None:
    for name, value in names.items():
        if not hasattr(place, name):
            raise AttributeError(f"{place!r} has no {name} any more, so that its stand-in has no effect")
        setattr(place, name, value)


def _replace_defaults() -> None:
    """Some classes have a real clock as a default, from before it was replaced."""
    _replace(access, Throttle=partial(access.Throttle, stand_ins.monotonic))
    _replace(app, Service=partial(_service, app.Service), Listener=partial(_listener, app.Listener))
    _replace(audit, _key=bytes(16))


def _service(make: type[Any], *arguments: Any, **named: Any) -> Any:
    """Note the service of each daemon, whose figures are looked at when all is over."""
    service = make(*arguments, started=stand_ins.monotonic(), **named)
    services[_current_process()] = service
    return service


def _listener(make: type[Any], *arguments: Any) -> Any:
    """Note the listener of each daemon, which has its connections."""
    listener = listeners[_current_process()] = make(*arguments)
    return listener


def _replace_disk() -> None:
    simulated = Os()
    for module in (files, locks, datadir, trust, segment, snapshot, framing):
        _replace(module, os=simulated)
    _replace(locks, fcntl=Fcntl(), socket=SimpleNamespace(gethostname=lambda: "server"))
    _replace(journal, boot_id=lambda: _current_process().machine.boot_id)


def _replace_threads() -> None:
    simulated = SimpleNamespace(Thread=threads.Thread, Timer=threads.Timer)
    for module in (app, reload, dial, aio_connection):
        _replace(module, threading=simulated)
    _replace(commits, ThreadPoolExecutor=threads.Executor)
    _replace(pool, queue=SimpleNamespace(SimpleQueue=threads.SimpleQueue, Empty=queue.Empty))


def _replace_network() -> None:
    _replace(sockets, socket=Like(socket, socket=Socket))
    _replace(server_connection, unacknowledged=lambda sock: sock.unacknowledged)
    open_sockets, polling = SimpleNamespace(new=Socket, forget=lambda _: None), Like(select, poll=Poll)
    for module in (dial, aio_connection):
        _replace(module, open_sockets=open_sockets)
    _replace(aio_connection, Descriptor=_NoDescriptor, select=polling)
    _replace(connection, select=polling)


class _NoDescriptor:
    """In the place of what closes a socket in a forked child."""

    def __init__(self, _number: int) -> None: ...


def _replace_surroundings() -> None:
    """What is left out: the admin address, standard output, limits of the system, the garbage collector."""
    _replace(app, Admin=_NoAdmin, stdio=SimpleNamespace(announce=_announce, exit_now=_exit))
    _replace(app, os=SimpleNamespace(_exit=_exit))
    _replace(app, descriptors=SimpleNamespace(make_room=lambda connections, _handshakes: connections))
    _replace(access, read_tokens=lambda tokens: tokens.read())
    _replace(collector, gc=_NoCollector())


class _NoCollector:
    """A process that simulates collects between two runs."""

    isenabled = bool

    def collect(self, _generation: int = 2) -> None: ...

    freeze = disable = enable = collect


class _NoAdmin:
    def __init__(self, _service: object) -> None: ...

    async def listen(self, _address: object) -> str:
        return "nowhere"

    async def close(self) -> None: ...


def _announce(line: str) -> None:
    daemon = _current_process()
    daemon.kernel.note(daemon.name, "says", line)
    if line.startswith("listening on"):
        ready.setdefault(daemon, daemon.kernel.now)


def _exit(code: int) -> None:
    _current_process().exit(code)


def _replace_log() -> None:
    structlog.configure(processors=[_log], cache_logger_on_first_use=False)
    for name, level in (("statestore", logging.CRITICAL + 1), ("asyncio", logging.CRITICAL + 1)):
        logging.getLogger(name).setLevel(level)


def _log(_logger: object, level: str, event: Any) -> Any:
    """Write the log into the trace."""
    process = World.kernel.current
    if process is not None:
        World.kernel.note(process.name, f"log.{level}", str(event)[:300])
        if event.get("event") in FAULTS_LOGGED:
            World.kernel.fail(f"{process.name}: {event!r}")
    raise structlog.DropEvent


def _current_process() -> Process:
    return threads.current_process()


class TokenFile:
    """In the place of a file of tokens: those that are valid now."""

    def __init__(self, valid: set[str]) -> None:
        self._valid = valid

    def read(self) -> list[Token]:
        return [Token(token, Role.ADMIN, None, digest_of(token.encode())) for token in sorted(self._valid)]


def access_by(valid: set[str] | None) -> access.Access:
    """valid: tokens, which may change; None: nobody is asked for one."""
    return access.Access(None if valid is None else TokenFile(valid))  # type: ignore[arg-type]


def settings_of(plan: Plan, addresses: tuple[TcpAddress, ...]) -> settings.Settings:
    return settings.Settings(
        data_dir=DataPath(DATA_DIRECTORY),
        listen=addresses,
        admin_listen=TcpAddress("127.0.0.1", 0),
        engine="embedded:",
        tokens=None,
        tls_cert=None,
        tls_key=None,
        tls_client_ca=None,
        allow_clear=True,
        fsync=plan.fsync,
        snapshot_interval=plan.snapshot_interval,
        snapshot_journal_size=2**20,
        max_module=1024,
        max_sender=4096,
        max_state=1024,
        max_namespaces=1000,
        max_modules=100,
        max_memory=2**26,
        max_connections=1000,
        max_buffers=2**25,
        log_level="info",
        log_format="text",
    )


@contextmanager
def sizes_of(plan: Plan) -> Iterator[None]:
    """Make the product's sizes as small as the plan has them, so that rotations and snapshots come often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "SEGMENT_SIZE", plan.segment_size)
        patch.setattr(segment, "RESERVE", plan.reserve)
        patch.setattr(snapshots, "FLUSH_EVERY", plan.flush_every)
        patch.setattr(table, "BUCKET_SIZE", plan.bucket_size)
        patch.setattr(table, "SPLIT_EVERY", 1 if plan.bucket_size < 100 else table.SPLIT_EVERY)
        patch.setattr(embedded, "MAX_SESSIONS", plan.max_sessions)
        patch.setattr(leases, "LIFETIME", plan.session_lifetime)
        patch.setattr(embedded, "LOOK_EVERY", min(embedded.LOOK_EVERY, plan.session_lifetime / 4))
        patch.setattr(audit, "limit", audit.LineLimit())
        services.clear()
        listeners.clear()
        ready.clear()
        yield
