"""The addresses on which the daemon answers, and the end of all connections."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

from statestore.address import Address
from statestored.commands import Service
from statestored.connection import Connection, Connections
from statestored.intake import Intake
from statestored.sockets import BACKLOG, address_of, bind, listen, remove_paths
from statestored.timeouts import EVERY
from statestored.tls import ServerTls
from statestored.tls_transport import TlsTransport

SETTING = "--listen"
DRAIN = 0.2  # seconds in which requests that were on their way are told that the daemon is about to end
PATIENCE = 2.0  # seconds for clients to read their last answers


class Listener:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._connections = Connections()
        # There need be no loop yet.
        self._intake = Intake(service, lambda callback: asyncio.get_running_loop().call_soon(callback))
        self._taken: list[socket.socket] = []
        self._bound: list[socket.socket] = []  # of these, those that are not listening yet
        self._servers: list[asyncio.Server] = []
        self._next_look: asyncio.TimerHandle | None = None

    async def bind(self, addresses: Sequence[Address]) -> None:
        """Take the addresses: from now on they are in use, and clients that connect are refused. Raises StartError."""
        for address in addresses:
            bound = await bind(address, SETTING)
            self._taken += bound
            self._bound += bound

    async def listen(self) -> list[Address]:
        """Serve clients. Returns where, with the ports that were given for port 0. Raises StartError."""
        self._look_at_connections()
        listening: list[Address] = []
        while self._bound:
            sock = self._bound[0]
            listen(sock, SETTING)
            listening.append(address_of(sock))
            has_tls = self._service.tls is not None and sock.family != socket.AF_UNIX
            protocol = self._tls_transport if has_tls else self._connection
            self._servers.append(await asyncio.get_running_loop().create_server(protocol, sock=sock, backlog=BACKLOG))
            del self._bound[0]  # it is the server's now
        return listening

    def unbind(self) -> None:
        """Give the addresses back, whether somebody has listened on them or not."""
        taken, self._taken = self._taken, []
        remove_paths(taken)
        while self._bound:
            self._bound.pop().close()
        while self._servers:
            self._servers.pop().close()

    def renew(self) -> None:
        """After a change of the tokens: all connections are what theirs allow now, or end."""
        for connection in list(self._connections):
            connection.renew()

    async def close(self) -> None:
        """Tell, wait, close: a client learns that its request was not applied, where that is so."""
        self._connections.ending = True  # one may be open already, or in its handshake, of which we were not told
        self.unbind()
        if self._service.tls is not None:
            self._service.tls.abort_handshakes()
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

    def _tls_transport(self) -> TlsTransport:
        call_soon = asyncio.get_running_loop().call_soon
        return TlsTransport(cast(ServerTls, self._service.tls), self._connection, self._connections.watch, call_soon)
