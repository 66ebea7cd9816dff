"""The admin address: plain HTTP for health checks and metrics. `gate` protects the daemon from what is sent there."""

import asyncio
from pathlib import Path
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
from statestored.sockets import bind_tcp, bind_unix, notice_dead_peers

SETTING = "--admin-listen"
SHUTDOWN_SECONDS = 0.5  # for handlers to end that were cancelled; aiohttp's own default is a minute


class Admin:
    """`/live` while the process answers, `/ready` while clients are served, `/metrics` for those who have a token."""

    def __init__(self, service: Service) -> None:
        self._path: Path | None = None
        self._service = service
        self._metrics = Metrics(service)
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            keepalive_timeout=REQUEST_LOOKS,  # also until a request comes that aiohttp takes for one
            lingering_time=0,
            handler_cancellation=True,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        self._gate = Gate(self._new_handler, service.note_dropped, Pacer(_note_fault))

    async def listen(self, address: TcpAddress | UnixAddress) -> str:
        """Returns where it listens, with the port that was given for port 0. Raises StartError."""
        if isinstance(address, UnixAddress):
            listening = [bind_unix(address, SETTING)]
            self._path = Path(address.path)
            url = str(address)
        else:
            listening = await bind_tcp(address, SETTING)
            for sock in listening:
                notice_dead_peers(sock)
            url = f"http://{TcpAddress(*listening[0].getsockname()[:2])}"
        await self._runner.setup()
        self._gate.open(listening)
        return url

    async def close(self) -> None:
        await self._gate.close()
        await self._runner.cleanup()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _new_handler(self) -> asyncio.Protocol:
        return cast(web.Server, self._runner.server)()  # it was set up before

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


async def _close_afterwards(_request: web.Request, response: web.StreamResponse) -> None:
    """A connection has one request; see `gate`."""
    response.force_close()
    response.headers[hdrs.CONNECTION] = "close"
    response.headers[hdrs.SERVER] = "statestored"


def _note_fault(error: Exception) -> None:
    audit.internal_fault("the admin address failed", error)
