"""The daemon's life: open, listen, answer until asked to stop, close."""

import asyncio
import gc
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress

import structlog
import uvloop

from statestore.address import Address, TcpAddress
from statestore.base import Limits
from statestored import __version__, audit, descriptors, memory
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
from statestored.errors import DiskFailed, Exit, StartError
from statestored.listener import Listener
from statestored.settings import TOKEN_VARIABLE, Settings, files_named, own_token, tls_files, unknown_variables
from statestored.tls import MAX_HANDSHAKES, ServerTls

log = structlog.get_logger()

SWITCH_INTERVAL = 0.0001  # seconds
GC_THRESHOLD = 50_000  # new containers


def run(settings: Settings, environment: Mapping[str, str]) -> None:
    """Returns when the daemon was asked to stop and has done so.

    Raises StartError or TooNew where it cannot start, DamagedFile, or DiskFailed where the disk fails meanwhile.
    """
    for name in unknown_variables(environment):
        log.warning("there is no such setting", variable=name)
    access = Access(settings.tokens, own_token(environment))
    files = tls_files(settings)
    check_addresses(settings)
    check_reach(settings, access)
    tls = None if files is None else ServerTls(files)
    check_limits(settings)
    _tune_interpreter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_signalled(settings, access, tls))


def _tune_interpreter() -> None:
    # The thread that syncs the journal must not wait 5 ms for its turn while the loop is busy.
    sys.setswitchinterval(SWITCH_INTERVAL)
    # Requests leave no cycles behind; what the collector looks for comes from connections and tasks, which are few.
    gc.set_threshold(GC_THRESHOLD)
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


async def serve(settings: Settings, access: Access, tls: ServerTls | None) -> None:
    """Runs until it is cancelled; then everything is closed in the reverse order."""
    async with AsyncExitStack() as stack:
        directory = DataDirectory(settings.data_dir, files_named(settings))
        stack.callback(directory.close)
        directory.open()
        _say(f"data directory {directory.path}")
        limits = Limits(settings.max_module, settings.max_sender, settings.max_state)
        max_memory = settings.max_memory * 2**20 or memory.available() // 2
        engine = EmbeddedEngine(
            directory,
            Fsync(settings.fsync),
            SnapshotSchedule(settings.snapshot_interval, settings.snapshot_journal_size * 2**20),
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
            budget=Budget(settings.max_buffers * 2**20),
        )
        listener = Listener(service)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, read_again, service, listener)
        admin = Admin(service)
        stack.push_async_callback(admin.close)
        _say(f"admin on {await admin.listen(settings.admin_listen)}")
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until there is something to make a snapshot of
        await engine.open()
        stack.push_async_callback(engine.close)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, engine.snapshot_soon)
        stack.push_async_callback(listener.close)
        for address in await listener.listen(settings.listen):
            _say(f"listening on {address}")
        log.info("ready", version=__version__, store_id=service.store_id, **engine.info())
        admin.ready = True
        watch = asyncio.create_task(engine.failure())
        watch.add_done_callback(_fail_stop)
        try:
            await asyncio.Event().wait()
        finally:
            admin.ready = False
            log.info("stopping")


def read_again(service: Service, listener: Listener) -> None:
    """At SIGHUP: tokens and certificates. What cannot be read stays as it was, and who may go on is not disturbed."""
    with _noted():
        audit.read_again("tokens", count=service.access.read())
        listener.renew()
    if service.tls is not None:
        with _noted():
            service.tls.read()
            audit.read_again("certificates")


@contextmanager
def _noted() -> Iterator[None]:
    try:
        yield
    except StartError as error:
        audit.not_read_again(error)


async def _until_signalled(settings: Settings, access: Access, tls: ServerTls | None) -> None:
    serving = asyncio.create_task(serve(settings, access, tls))
    _stop_on_signals(serving)
    try:
        await serving
    except asyncio.CancelledError:
        log.info("stopped")


def _stop_on_signals(serving: "asyncio.Task[None]") -> None:
    """The first signal ends it in order, the second at once."""
    loop = asyncio.get_running_loop()
    seen: list[signal.Signals] = []

    def stop(signum: signal.Signals) -> None:
        if seen:
            os._exit(128 + signum)
        seen.append(signum)
        serving.cancel()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop, signum)


def _fail_stop(watch: "asyncio.Task[None]") -> None:
    """At once: nothing that this process might still say can be relied upon."""
    if watch.cancelled() or (error := watch.exception()) is None:
        return
    about = {"error": str(error)} if isinstance(error, DiskFailed) else {"exc_info": error}
    log.critical("ended by a failure", **about)
    os._exit(Exit.DISK_FAILED)


def _say(line: str) -> None:
    """For whoever started the daemon by hand, or waits for it in a script."""
    with suppress(OSError):
        print(line, flush=True)  # noqa: T201
