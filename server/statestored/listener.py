"""The addresses on which the daemon answers, and the end of all connections."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress

from statestore.address import Address, TcpAddress, UnixAddress
from statestored.commands import Service
from statestored.connection import Connection, Connections
from statestored.intake import Intake
from statestored.sockets import UnixSocket, bind_unix, cannot_listen, notice_dead_peers
from statestored.timeouts import EVERY

SETTING = "--listen"
BACKLOG = 1024
DRAIN = 0.2  # seconds in which requests that were on their way are told that the daemon is about to end
# With TLS the loop takes over all that the system has received, up to 256 KiB, though the connection does not read on,
# and keeps the memory. So the system is not to receive so much ahead; Linux takes twice what is said.
TLS_RECEIVED = 2**14
TLS_PATIENCE = 5.0  # seconds for a peer to complete a handshake, or the end of a connection
PATIENCE = 2.0  # seconds for clients to read their last answers


class Listener:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._connections = Connections()
        # There need be no loop yet.
        self._intake = Intake(service, lambda callback: asyncio.get_running_loop().call_soon(callback))
        self._servers: list[asyncio.Server] = []
        self._unix: list[UnixSocket] = []
        self._next_look: asyncio.TimerHandle | None = None

    async def listen(self, addresses: Sequence[Address]) -> list[Address]:
        """Returns where it listens, with the ports that were given for port 0. Raises StartError."""
        self._look_at_connections()
        listening: list[Address] = []
        for address in addresses:
            if isinstance(address, UnixAddress):
                listening.append(await self._listen_unix(address))
            else:
                listening += await self._listen_tcp(address)
        return listening

    def renew(self) -> None:
        """After a change of the tokens: all connections are what theirs allow now, or end."""
        for connection in list(self._connections):
            connection.renew()

    async def close(self) -> None:
        """Tell, wait, close: a client learns that its request was not applied, where that is so."""
        self._connections.ending = True  # one may be open already, or in its handshake, of which we were not told
        while self._unix:
            self._unix.pop().remove()
        for server in self._servers:
            server.close()
        for connection in self._connections:
            connection.drain()
        await self._all_gone(within=DRAIN)
        for connection in list(self._connections):
            connection.close()
        await self._all_gone(within=PATIENCE)
        for connection in list(self._connections):
            connection.abort()
        if self._next_look is not None:
            self._next_look.cancel()

    def _look_at_connections(self) -> None:
        """Once a second: what lasts too long, or takes too much, is ended."""
        self._next_look = asyncio.get_running_loop().call_later(EVERY, self._look_at_connections)
        self._connections.watch.tick()
        self._service.budget.tick()

    async def _all_gone(self, within: float) -> None:
        if self._connections:
            self._connections.emptied.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._connections.emptied.wait()

    def _connection(self) -> Connection:
        return Connection(self._service, self._connections, self._intake, asyncio.get_running_loop().call_soon)

    async def _listen_tcp(self, address: TcpAddress) -> list[Address]:
        loop, tls = asyncio.get_running_loop(), self._service.tls
        patience = None if tls is None else TLS_PATIENCE
        try:
            server = await loop.create_server(
                self._connection,
                address.host,
                address.port,
                backlog=BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=patience,
                ssl_shutdown_timeout=patience,
            )
        except OSError as error:
            raise cannot_listen(address, SETTING, error) from error
        self._servers.append(server)
        for sock in server.sockets:
            notice_dead_peers(sock)
            if tls is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TLS_RECEIVED)
        return [TcpAddress(*found.getsockname()[:2]) for found in server.sockets]

    async def _listen_unix(self, address: UnixAddress) -> Address:
        sock = bind_unix(address, SETTING)
        self._unix.append(sock)
        server = await asyncio.get_running_loop().create_unix_server(self._connection, sock=sock, backlog=BACKLOG)
        self._servers.append(server)
        return address
