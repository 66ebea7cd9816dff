"""The admin address: plain HTTP for health checks and metrics."""

from pathlib import Path

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from statestore.address import TcpAddress, UnixAddress
from statestore.errors import Unauthorized, Unavailable
from statestored.commands import Service
from statestored.errors import StartError
from statestored.metrics import Metrics
from statestored.sockets import bind_unix, reason

KEEPALIVE = 30.0  # seconds; aiohttp's own default is an hour


class Admin:
    """`/live` while the process answers, `/ready` while `ready` is set, `/metrics` for those who have a token."""

    def __init__(self, service: Service) -> None:
        self.ready = False
        self._path: Path | None = None
        self._access = service.access
        self._metrics = Metrics(service)
        self._runner = web.AppRunner(self._application(), access_log=None, keepalive_timeout=KEEPALIVE)

    async def listen(self, address: TcpAddress | UnixAddress) -> str:
        """Returns where it listens, with the port that was given for port 0. Raises StartError."""
        await self._runner.setup()
        if isinstance(address, UnixAddress):
            await web.SockSite(self._runner, bind_unix(address)).start()
            self._path = Path(address.path)
            return str(address)
        try:
            await web.TCPSite(self._runner, address.host, address.port).start()
        except OSError as error:
            raise StartError(f"cannot listen on {address} (--admin-listen): {reason(error)}") from error
        return f"http://{TcpAddress(*self._runner.addresses[0][:2])}"

    async def close(self) -> None:
        await self._runner.cleanup()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

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
        if self._access.needed:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            given = token.encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else None
            try:
                self._access.admit(given, request.remote or "")
            except Unauthorized:
                return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"}, text="a token is needed\n")
            except Unavailable as error:
                return web.Response(status=429, headers={"Retry-After": "1"}, text=f"{error.detail}\n")
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
