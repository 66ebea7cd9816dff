"""The admin address: plain HTTP for health checks and metrics. `gate` protects the daemon from what is sent there."""

import asyncio
import socket
from http import HTTPStatus
from typing import cast

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST

from statestore.address import TcpAddress, UnixAddress
from statestore.errors import Unauthorized, Unavailable
from statestored import audit
from statestored.commands import Service
from statestored.gate import REQUEST_LOOKS, Gate
from statestored.metrics import Metrics
from statestored.pacer import Pacer
from statestored.sockets import address_of, bind, listen, remove_paths
from statestored.timeouts import Dropped

SETTING = "--admin-listen"
PROBES = frozenset((b"/live", b"/ready"))
SERVER_NAME = "statestored"  # aiohttp tells everybody its own release, and Python's
SHUTDOWN_SECONDS = 0.5  # for handlers to end that were cancelled; aiohttp's own default is a minute


class Admin:
    """`/live` while the process answers, `/ready` while clients are served, `/metrics` for those who have a token."""

    def __init__(self, service: Service) -> None:
        self._bound: list[socket.socket] = []
        self._service = service
        self._metrics = Metrics(service)
        self._runner = web.AppRunner(self._application(), handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS)
        self._gate = Gate(self._new_handler, service.note_dropped, Pacer(_note_fault), PROBES)

    async def listen(self, address: TcpAddress | UnixAddress) -> str:
        """Returns where it listens, with the port that was given for port 0. Raises StartError."""
        self._bound = await bind(address, SETTING)
        await self._runner.setup()
        for sock in self._bound:
            listen(sock, SETTING)
        self._gate.open(self._bound)
        found = address_of(self._bound[0])
        return f"http://{found}" if isinstance(found, TcpAddress) else str(found)

    async def close(self) -> None:
        remove_paths(self._bound)
        await self._gate.close()
        await self._runner.cleanup()

    def _new_handler(self) -> asyncio.Protocol:
        server = cast(web.Server, self._runner.server)  # it was set up before
        return _RequestHandler(server, self._service)

    def _application(self) -> web.Application:
        application = web.Application()
        application.on_response_prepare.append(_close_afterwards)
        application.router.add_get("/live", self._answer_live)
        application.router.add_get("/ready", self._answer_ready)
        application.router.add_get("/metrics", self._answer_metrics)
        return application

    async def _answer_live(self, _request: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def _answer_ready(self, _request: web.Request) -> web.Response:
        if not self._service.ready:
            return web.Response(status=503, text="not ready: loading, or about to end\n")
        refused = self._service.engine.info().get("writes_refused")
        return web.Response(text=f"ready, but writes are refused: {refused}\n" if refused else "ready\n")

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


class _RequestHandler(web.RequestHandler):
    """Serves a connection, which has one request. One that cannot be parsed is no fault, and is not logged as one."""

    __slots__ = ("_service",)

    def __init__(self, server: web.Server, service: Service) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # nobody needs a line for each request
            keepalive_timeout=REQUEST_LOOKS,  # seconds until aiohttp, too, takes what it was handed for a request
            lingering_time=0,
        )
        self._service = service

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status != HTTPStatus.BAD_REQUEST:
            return super().handle_error(request, status, exc, message)
        self._service.note_dropped(Dropped.GARBAGE, "admin address: a request that cannot be parsed")
        response = web.Response(status=status, text="this request cannot be parsed\n")
        response.headers[hdrs.SERVER] = SERVER_NAME
        response.force_close()
        return response


async def _close_afterwards(_request: web.Request, response: web.StreamResponse) -> None:
    """A connection has one request; see `gate`."""
    response.force_close()
    response.headers[hdrs.CONNECTION] = "close"
    response.headers[hdrs.SERVER] = SERVER_NAME


def _note_fault(error: Exception) -> None:
    audit.internal_fault("the admin address failed", error)
