"""The daemon's life: open, listen, answer until asked to stop, close."""

import asyncio
import os
import shlex
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType

import structlog
import uvloop

from statestore.address import Address, TcpAddress
from statestore.base import Limits
from statestored import __version__, audit, collector, descriptors, memory, stdio
from statestored.access import Access
from statestored.admin import Admin
from statestored.answers import MAX_REPLY
from statestored.budget import Budget
from statestored.commands import Service
from statestored.datadir import DataDirectory
from statestored.engines.commits import Fsync
from statestored.engines.embedded import EmbeddedEngine
from statestored.engines.queries import longest_page
from statestored.engines.quota import Quota
from statestored.engines.saver import SnapshotSchedule
from statestored.engines.threads import in_thread
from statestored.errors import DiskFailed, Exit, StartError
from statestored.listener import Listener
from statestored.reload import Reload, note_requests
from statestored.settings import TOKEN_VARIABLE, Settings, files_named, own_token, tls_files, unknown_variables
from statestored.tls import MAX_HANDSHAKES, ServerTls

log = structlog.get_logger()

SWITCH_INTERVAL = 0.0001  # seconds
STOP_SECONDS = 4.0  # for all of a stop, so that with the last lines of the log it takes less than 5


def run(settings: Settings, environment: Mapping[str, str]) -> None:
    """Returns when the daemon was asked to stop and has done so.

    Raises StartError or TooNew where it cannot start, DamagedFile, or DiskFailed where the disk fails meanwhile.
    """
    for name in unknown_variables(environment):
        log.warning("there is no such setting", variable=name)
    early_reloads = note_requests()
    access = Access(settings.tokens, own_token(environment))
    files = tls_files(settings)
    check_addresses(settings)
    check_reach(settings, access)
    tls = None if files is None else ServerTls(files)
    check_limits(settings)
    audit.limit_library_logs()
    _tune_interpreter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_signalled(settings, access, tls, early_reloads))


def _tune_interpreter() -> None:
    # The thread that syncs the journal must not wait 5 ms for its turn while the loop is busy.
    sys.setswitchinterval(SWITCH_INTERVAL)
    collector.tune()
    memory.give_back_large_blocks()


def check_addresses(settings: Settings) -> None:
    """Raises StartError where one is meant for two things."""
    admin = settings.admin_listen
    is_any_port = isinstance(admin, TcpAddress) and admin.port == 0
    if admin in settings.listen and not is_any_port:
        raise StartError(f"--listen and --admin-listen are both {admin}: they need an address each")


def check_reach(settings: Settings, access: Access) -> None:
    """Raises StartError where others than this machine could connect, and nothing would ask who they are."""
    if access.needed:
        return
    if (address := _reachable(settings.admin_listen)) is not None:
        raise StartError(f"--admin-listen {address} {_needs('tokens')}")
    if settings.tls_client_ca is None and (address := _reachable(*settings.listen)) is not None:
        raise StartError(f"--listen {address} {_needs('tokens, or certificates of the clients (--tls-client-ca)')}")


def _reachable(*addresses: Address) -> Address | None:
    """The first that other machines can connect to."""
    return next((address for address in addresses if not address.is_local), None)


def _needs(what: str) -> str:
    line = shlex.join(["statestored", *sys.argv[1:]])
    return (
        f"can be reached from other machines, and that needs {what}: tokens are in a file (--tokens FILE; `statestored "
        f"token` makes them), or one is in {TOKEN_VARIABLE} (docker run -e {TOKEN_VARIABLE}=...). This would work:\n"
        f'  {TOKEN_VARIABLE}="$(openssl rand -hex 32)" {line}'
    )


def check_limits(settings: Settings) -> None:
    """Raises StartError where they contradict each other."""
    text = settings.max_module + settings.max_sender + settings.max_state
    if longest_page(text, settings.max_modules) > MAX_REPLY:
        raise StartError(
            f"--max-modules {settings.max_modules} is too much for --max-module {settings.max_module}, --max-sender "
            f"{settings.max_sender} and --max-state {settings.max_state}: an answer has at most {MAX_REPLY} bytes, "
            "and all entries of a sender must fit into one"
        )


class _Stages(AsyncExitStack):
    """What was opened, to be closed in the reverse order when the daemon is cancelled.

    The cancellation has done its work by then. Early releases of Python 3.11 take a time limit in a task that is still
    being cancelled for that cancellation: a stage whose time is over would not be closed to its end.
    """

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) is not None:
            task.uncancel()
        return await super().__aexit__(kind, error, traceback)


class _StopLimit:
    """The time that a stop may take, kept by a thread, because the event loop may be what waits.

    What still waits for the disk when the time is over is given up. Nothing is lost by it that a kill would not take,
    and that is nothing acknowledged: unless files of the store are missing, and only the snapshot that is being written
    has what was in them. Then the stop goes on until it is done.
    """

    def __init__(self) -> None:
        self.engine: EmbeddedEngine | None = None  # once it is open

    def start(self) -> None:
        timer = threading.Timer(STOP_SECONDS, self._over)
        timer.daemon = True
        timer.start()

    def _over(self) -> None:
        if self.engine is not None and self.engine.is_missing_files:
            log.warning("the stop takes long: a snapshot replaces files that were removed by another program")
            self.start()
            return
        log.warning("the stop took too long: ended without waiting for the disk")
        stdio.exit_now(Exit.STOPPED)


async def serve(
    settings: Settings,
    access: Access,
    tls: ServerTls | None,
    limit: _StopLimit | None = None,
    early_reloads: Sequence[int] = (),
) -> None:
    """Run until it is cancelled; then everything is closed in the reverse order.

    early_reloads: each SIGHUP that came since the tokens and the certificates were read, and that comes before it has a
        handler here.
    """
    async with _Stages() as stack:
        directory = DataDirectory(settings.data_dir, files_named(settings))
        stack.callback(directory.close)
        await in_thread(directory.open)
        stdio.announce(f"data directory {directory.path}")
        limits = Limits(settings.max_module, settings.max_sender, settings.max_state)
        max_memory = _max_memory(settings)
        engine = EmbeddedEngine(
            directory,
            Fsync(settings.fsync),
            SnapshotSchedule(settings.snapshot_interval, settings.snapshot_journal_size),
            settings.max_namespaces,
            Quota.of(limits, max_memory, settings.max_modules),
        )
        service = Service(
            engine,
            store_id=str(directory.store_id),
            limits=limits,
            access=access,
            tls=tls,
            allow_clear=settings.allow_clear,
            max_connections=descriptors.make_room(settings.max_connections, 0 if tls is None else MAX_HANDSHAKES),
            budget=Budget(settings.max_buffers),
        )
        listener = Listener(service)
        reload = Reload(access, tls, listener.renew)
        stack.callback(reload.cancel)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.request)
        if early_reloads:
            reload.request()
        # Before the states are loaded, which may take a while: an address in use ends the start at once.
        stack.callback(listener.unbind)
        await listener.bind(settings.listen)
        admin = Admin(service)
        stack.push_async_callback(admin.close)
        stdio.announce(f"admin on {await admin.listen(settings.admin_listen)}")
        await engine.open()
        stack.push_async_callback(engine.close)
        if limit is not None:
            limit.engine = engine
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, engine.snapshot_soon)
        stack.push_async_callback(listener.close)
        for address in await listener.listen():
            stdio.announce(f"listening on {address}")
        figures = {name: value for name, value in engine.info().items() if value != ""}
        log.info("ready", version=__version__, store_id=service.store_id, **figures)
        service.ready = True
        watch = asyncio.create_task(engine.failure())
        watch.add_done_callback(_fail_stop)
        try:
            await asyncio.Event().wait()
        finally:
            service.ready = False
            log.info("stopping")


def _max_memory(settings: Settings) -> int:
    """Bytes for all states, and a line in the log that says where that comes from."""
    if settings.max_memory:
        max_memory, source = settings.max_memory, "--max-memory"
    else:
        found = memory.available()
        max_memory, source = found.size // 2, f"half of {found.source}"
    log.info("memory for all states", max_memory=max_memory, source=source)
    return max_memory


async def _until_signalled(
    settings: Settings, access: Access, tls: ServerTls | None, early_reloads: Sequence[int]
) -> None:
    limit = _StopLimit()
    serving = asyncio.create_task(serve(settings, access, tls, limit, early_reloads))
    _stop_on_signals(serving, limit)
    try:
        await serving
    except asyncio.CancelledError:
        log.info("stopped")


def _stop_on_signals(serving: "asyncio.Task[None]", limit: _StopLimit) -> None:
    """End the daemon in order at the first signal, and at once at the second.

    Each stage of the stop ends its connections itself after a while. What it does not bound is the disk: `limit` does.
    """
    loop = asyncio.get_running_loop()
    seen: list[signal.Signals] = []

    def stop(signum: signal.Signals) -> None:
        if seen:
            os._exit(128 + signum)
        seen.append(signum)
        limit.start()
        serving.cancel()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop, signum)


def _fail_stop(watch: "asyncio.Task[None]") -> None:
    """End at once if the store has failed: nothing that this process might still answer can be relied upon."""
    if watch.cancelled() or (error := watch.exception()) is None:
        return
    about = {"error": str(error)} if isinstance(error, DiskFailed) else {"exc_info": error}
    log.critical("ended by a failure", **about)
    stdio.exit_now(Exit.DISK_FAILED)
