"""The admin address: is it alive, is it ready, what do the numbers say."""

import asyncio
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from statestore.address import Address, TcpAddress, UnixAddress
from statestored import audit
from statestored.access import Access
from statestored.admin import Admin
from statestored.commands import Service
from statestored.errors import StartError
from statestored.gate import MAX_RECEIVING
from statestored.metrics import Metrics
from statestored.throttle import AT_ONCE, Throttle
from tests.server.fakes import make_service
from tests.tokenfile import TokenFile

ANY_PORT = TcpAddress("127.0.0.1", 0)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        yield Path(directory) / "s"


@asynccontextmanager
async def serving(
    address: Address = ANY_PORT, service: Service | None = None, **settings: Any
) -> AsyncIterator[tuple[Admin, str]]:
    admin = Admin(service or make_service(**settings))
    try:
        yield admin, await admin.listen(address)
    finally:
        await admin.close()


async def get(url: str, **headers: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.text()


async def test_it_is_live_before_it_is_ready() -> None:
    service = make_service()
    async with serving(service=service) as (_, url):
        assert await get(f"{url}/live") == (200, "live\n")
        assert (await get(f"{url}/ready"))[0] == 503
        service.ready = True
        assert await get(f"{url}/ready") == (200, "ready\n")
        service.ready = False
        assert (await get(f"{url}/ready"))[0] == 503


async def test_metrics_are_what_prometheus_reads() -> None:
    async with serving() as (_, url), aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        names = {family.name for family in text_string_to_metric_families(await response.text())}
        assert {"statestored_requests", "statestored_entries", "process_resident_memory_bytes"} <= names


@pytest.mark.parametrize("given", ["", "sesame", "Bearer", "Bearer sesam", "Basic sesame", "Bearer sésame"])
async def test_metrics_need_a_token_where_there_are_some(given: str) -> None:
    async with serving(token="sesame") as (_, url):
        status, text = await get(f"{url}/metrics", **{"Authorization": given} if given else {})
        assert status == 401
        assert "statestored_" not in text
        assert "sesame" not in text


@pytest.mark.parametrize("token", ["sesame", "sésame"])
async def test_metrics_are_there_for_the_token(token: str) -> None:
    async with serving(token=token) as (_, url):
        for scheme in ("Bearer", "bearer"):
            assert (await get(f"{url}/metrics", Authorization=f"{scheme} {token}"))[0] == 200


@pytest.mark.parametrize("role", ["read", "write", "admin"])
async def test_metrics_are_there_for_a_token_of_any_role(role: str, tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path / "tokens.toml")
    token = tokens.add("one", role, "lists")
    async with serving(tokens=tokens.path) as (_, url):
        assert (await get(f"{url}/metrics", Authorization=f"Bearer {token}"))[0] == 200


async def test_who_gives_wrong_tokens_is_told_to_wait() -> None:
    service = make_service()
    service.access = Access(own="sesame", throttle=Throttle(clock=lambda: 1000.0))
    async with serving(service=service) as (_, url):
        given = [*["guess"] * (AT_ONCE + 1), "sesame"]
        statuses = [(await get(f"{url}/metrics", Authorization=f"Bearer {token}"))[0] for token in given]
        assert statuses == [401] * AT_ONCE + [429, 200]
        assert (await get(f"{url}/live"))[0] == 200


@pytest.mark.parametrize("path", ["/live", "/ready"])
async def test_health_needs_no_token(path: str) -> None:
    service = make_service(token="sesame")
    service.ready = True
    async with serving(service=service) as (_, url):
        assert (await get(url + path))[0] == 200


@pytest.mark.parametrize("path", ["/", "/metrics/x", "/../etc/passwd", "/%00"])
async def test_there_is_nothing_else(path: str) -> None:
    async with serving() as (_, url):
        assert (await get(url + path))[0] == 404


async def test_nothing_can_be_sent_to_it() -> None:
    async with serving() as (_, url), aiohttp.ClientSession() as session, session.post(f"{url}/live") as response:
        assert response.status == 405


async def test_a_port_in_use_is_refused_with_its_name_and_flag() -> None:
    async with serving() as (_, url):
        host, _, port = url.removeprefix("http://").partition(":")
        with pytest.raises(StartError) as refusal:
            async with serving(address=TcpAddress(host, int(port))):
                pass
    assert f"cannot listen on {host}:{port} (--admin-listen): " in str(refusal.value)
    assert "address already in use" in str(refusal.value)


@pytest.mark.usefixtures("open_umask")
async def test_a_unix_socket_is_for_its_owner_only(path: Path) -> None:
    async with serving(address=UnixAddress(str(path))) as (_, url):
        assert url == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        connector = aiohttp.UnixConnector(str(path))
        async with aiohttp.ClientSession(connector=connector) as session, session.get("http://x/live") as response:
            assert response.status == 200


async def test_a_socket_of_another_process_in_the_place_of_its_own_stays(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        async with serving(address=UnixAddress(str(path))):
            path.unlink()
            other.bind(str(path))
        assert path.exists()


async def test_where_too_many_are_connected_the_oldest_go() -> None:
    """L4: a crowd that says nothing takes no file descriptors from the journal, and holds up no health check."""
    service = make_service()
    async with serving(service=service) as (_, url):
        host, _, port = url.removeprefix("http://").rpartition(":")
        crowd = [await asyncio.open_connection(host, int(port)) for _ in range(MAX_RECEIVING + 5)]
        assert await get(f"{url}/live") == (200, "live\n")
        assert service.dropped["too_many_admin"] == 6
        for reader, _ in crowd[:5]:
            assert await reader.read() == b""
        reader, writer = crowd[-1]
        writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        for _, writer in crowd:
            writer.close()


# What other programs than browsers and probes send


async def raw(url: str, *pieces: bytes) -> bytes:
    """The whole of what is answered to exactly this."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    answered = await reader.read()
    writer.close()
    return answered


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /live HTTP/1.0\r\n\r\n", 200),
        (b"GET /live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", 200),
        (b"GET http://x/live HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /live?a=b HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd", 200),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 200),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"BREW /live HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /%zz%00%ff HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET //// HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET [::1 HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nExpect: 200-ok\r\n\r\n", 417),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd", 200),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nCookie: \xff=\xfe; ;=\r\nAuthorization: \xff\r\n\r\n", 200),
        (b"POST /live HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
async def test_odd_requests_are_answered_without_a_word_in_the_log(
    data: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as (_, url):
        with capture_logs() as logs:
            answered = await raw(url, data)
        assert answered.startswith((b"HTTP/1.1 %d " % status, b"HTTP/1.0 %d " % status)), answered[:80]
        assert len(re.findall(rb"^HTTP/1", answered, re.M)) == 1
        assert [entry for entry in logs if entry["event"] != "connection dropped"] == []
        assert "aiohttp" not in answered.decode("latin-1")
    assert [record.message for record in caplog.records] == []


async def test_a_head_request_has_no_body() -> None:
    async with serving() as (_, url):
        head, _, body = (await raw(url, b"HEAD /live HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert body == b""


async def test_a_client_that_waits_before_it_sends_its_body_is_answered() -> None:
    async with serving() as (_, url):
        head = b"POST /live HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        answered = await raw(url, head, b"abcd")
        assert answered.startswith((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 405"))
        assert b"HTTP/1.1 405" in answered


async def test_every_response_ends_its_connection() -> None:
    """And says so: a client that would send a second request gets a new connection for it."""
    async with serving() as (_, url):
        for path in (b"/live", b"/nothing", b"/metrics"):
            request = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n" % path
            answered = await raw(url, request * 3)
            assert answered.count(b"HTTP/1.1") == 1
            assert b"\r\nConnection: close\r\n" in answered


async def test_a_handler_that_fails_is_one_line_a_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audit.limit_library_logs()
    monkeypatch.setattr(Metrics, "text", lambda _: 1 / 0)
    async with serving() as (_, url):
        for _ in range(3):
            assert (await get(f"{url}/metrics"))[0] == 500
        assert (await get(f"{url}/live"))[0] == 200
    assert len(caplog.records) == 1
    assert audit.limit.suppressed == 2


async def test_ready_says_that_writes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And still answers 200, for reading goes on."""
    service = make_service()
    service.ready = True
    monkeypatch.setattr(service.engine.commits, "refused_because", "no room", raising=False)  # type: ignore[attr-defined]
    async with serving(service=service) as (_, url):
        assert await get(f"{url}/ready") == (200, "ready, but writes are refused: no room\n")


async def test_a_host_name_is_served_on_all_its_addresses_that_can_be_bound() -> None:
    async with serving(address=TcpAddress("localhost", 0)) as (_, url):
        assert await get(f"{url}/live") == (200, "live\n")
