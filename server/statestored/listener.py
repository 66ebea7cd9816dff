"""The addresses on which the daemon answers, and the end of all connections."""

import asyncio
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from statestore.address import Address, TcpAddress, UnixAddress
from statestored.commands import Service
from statestored.datadir import StartError
from statestored.session import Session, Sessions

BACKLOG = 1024
DRAIN = 0.2  # seconds in which requests that were on their way are told that the daemon is about to end
PATIENCE = 2.0  # seconds for clients to read their last answers


class Listener:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._sessions = Sessions()
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []

    async def listen(self, addresses: Sequence[Address]) -> list[Address]:
        """Returns where it listens, with the ports that were given for port 0. Raises StartError."""
        listening: list[Address] = []
        for address in addresses:
            if isinstance(address, UnixAddress):
                listening.append(await self._listen_unix(address))
            else:
                listening += await self._listen_tcp(address)
        return listening

    async def close(self) -> None:
        """Tell, wait, close: a client learns that its request was not applied, where that is so."""
        for server in self._servers:
            server.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        for session in self._sessions:
            session.drain()
        await self._all_gone(within=DRAIN)
        for session in list(self._sessions):
            session.close()
        await self._all_gone(within=PATIENCE)
        for session in list(self._sessions):
            session.abort()

    async def _all_gone(self, within: float) -> None:
        if self._sessions:
            self._sessions.emptied.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._sessions.emptied.wait()

    def _session(self) -> Session:
        return Session(self._service, self._sessions)

    async def _listen_tcp(self, address: TcpAddress) -> list[Address]:
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._session, address.host, address.port, backlog=BACKLOG)
        except OSError as error:
            raise StartError(f"cannot listen on {address}: {_reason(error)}") from error
        self._servers.append(server)
        return [TcpAddress(*found.getsockname()[:2]) for found in server.sockets]

    async def _listen_unix(self, address: UnixAddress) -> Address:
        path = Path(address.path)
        try:
            _remove_stale(path)
            sock = socket.socket(socket.AF_UNIX)
            # The mode has to be right from the beginning: a chmod afterwards leaves a moment for others.
            umask = os.umask(0o177)
            try:
                sock.bind(address.path)
            finally:
                os.umask(umask)
            server = await asyncio.get_running_loop().create_unix_server(self._session, sock=sock, backlog=BACKLOG)
        except OSError as error:
            raise StartError(f"cannot listen on {address}: {_reason(error)}") from error
        self._servers.append(server)
        self._paths.append(path)
        return address


def _remove_stale(path: Path) -> None:
    """A socket that a killed daemon left; one that somebody answers on stays. Raises OSError."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise FileExistsError("there is a file of that name which is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError("another process listens on it")


def _reason(error: OSError) -> str:
    return (os.strerror(error.errno) if error.errno else str(error)).lower()
