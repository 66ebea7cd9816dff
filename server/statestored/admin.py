"""The admin address: plain HTTP for health checks and metrics."""

import asyncio
from typing import cast

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from statestore.address import TcpAddress, UnixAddress
from statestore.errors import Unauthorized, Unavailable
from statestored.commands import Service
from statestored.metrics import Metrics
from statestored.sockets import UnixSocket, bind_unix, cannot_listen
from statestored.timeouts import Dropped

SETTING = "--admin-listen"
KEEPALIVE = 30.0  # seconds; aiohttp's own default is an hour
MAX_CONNECTIONS = 32  # each takes a file descriptor; for one more the oldest goes, for that is no health check


class Admin:
    """`/live` while the process answers, `/ready` while `ready` is set, `/metrics` for those who have a token."""

    def __init__(self, service: Service) -> None:
        self.ready = False
        self._unix: UnixSocket | None = None
        self._listening: asyncio.Server | None = None
        self._service = service
        self._metrics = Metrics(service)
        self._runner = web.AppRunner(self._application(), access_log=None, keepalive_timeout=KEEPALIVE)

    async def listen(self, address: TcpAddress | UnixAddress) -> str:
        """Returns where it listens, with the port that was given for port 0. Raises StartError."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        if isinstance(address, UnixAddress):
            self._unix = bind_unix(address, SETTING)
            self._listening = await loop.create_unix_server(self._handler, sock=self._unix)
            return str(address)
        try:
            self._listening = await loop.create_server(self._handler, address.host, address.port)
        except OSError as error:
            raise cannot_listen(address, SETTING, error) from error
        return f"http://{TcpAddress(*self._listening.sockets[0].getsockname()[:2])}"

    async def close(self) -> None:
        if self._unix is not None:
            self._unix.remove()
            self._unix = None
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()

    def _handler(self) -> asyncio.BaseProtocol:
        """Of a new connection."""
        server = cast(web.Server, self._runner.server)  # it was set up before
        for oldest in server.connections[: 1 - MAX_CONNECTIONS]:
            if oldest.transport is not None:  # else it was closed, and the server has not heard of it
                self._service.note_dropped(Dropped.TOO_MANY_ADMIN)
                oldest.force_close()
        return server()

    def _application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/live", self._answer_live)
        application.router.add_get("/ready", self._answer_ready)
        application.router.add_get("/metrics", self._answer_metrics)
        return application

    async def _answer_live(self, _request: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def _answer_ready(self, _request: web.Request) -> web.Response:
        if self.ready:
            return web.Response(text="ready\n")
        return web.Response(status=503, text="not ready: loading, or about to end\n")

    async def _answer_metrics(self, request: web.Request) -> web.Response:
        if self._service.access.needed:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            given = token.encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else None
            try:
                self._service.access.admit(given, request.remote or "")
            except Unauthorized:
                return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"}, text="a token is needed\n")
            except Unavailable as error:
                return web.Response(status=429, headers={"Retry-After": "1"}, text=f"{error.detail}\n")
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
