"""Servers that stand where a daemon should: of another kind, silent, or between a client and its daemon."""

import asyncio
import socket
import ssl
import threading
from asyncio import StreamReader, StreamWriter
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from unittest.mock import patch

import msgpack

from statestore.wire import RESPONSE, Decoder
from tests.certificates import Identity
from tests.ports import address_of, reserve_port

PATIENCE = 20.0  # seconds after which a test has hung
DRIP = 0.01  # seconds from one byte to the next
WELCOME = {"store_id": "s1", "version": 1, "limits": {"module": 1024, "sender": 4096, "state": 1024, "items": 1000}}


class Server:
    """`serve` runs for each connection, which ends when it returns; all in a thread with a loop of its own."""

    def __init__(
        self, serve: Callable[[StreamReader, StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
    ) -> None:
        self._serve = serve
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-server")
        self.connections = 0
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._handle, "127.0.0.1", 0, ssl=self._tls))
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def in_loop(self, function: Callable[[], object]) -> None:
        """Calls it soon, where the connections are served."""
        self._loop.call_soon_threadsafe(function)

    async def _handle(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (ConnectionError, EOFError, asyncio.CancelledError):
            pass  # the client, the test or the daemon is gone
        finally:
            if self._tls is None:
                writer.close()
            else:
                writer.transport.abort()  # `close` would wait until the client takes its leave, too

    async def _close(self) -> None:
        """Also what has only just been accepted, and is still in its TLS handshake."""
        self._server.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)


_nobodys_ports: list[socket.socket] = []  # to the end of the process


def refused() -> str:
    """An address where nobody listens."""
    _nobodys_ports.append(reserve_port())
    return address_of(_nobodys_ports[-1])


@contextmanager
def never_accepting() -> Iterator[str]:
    """An address where the kernel accepts connections for a process that does not look."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield "{}:{}".format(*sock.getsockname())


@contextmanager
def black_hole() -> Iterator[str]:
    """An address that takes no connection and refuses none: its backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        target = server.getsockname()
        with closing(socket.socket()) as first, closing(socket.socket()) as second:
            for sock in (first, second):
                sock.setblocking(False)
                sock.connect_ex(target)
            yield "{}:{}".format(*target)


def found(*addresses: str) -> Callable[..., list[Any]]:
    """A `getaddrinfo` that finds these, whatever it is asked for."""
    targets = [tuple(address.rsplit(":", 1)) for address in addresses]
    return lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, int(port))) for host, port in targets]


@contextmanager
def hanging_look_up() -> Iterator[None]:
    """Name servers that do not answer."""
    answered = threading.Event()
    with patch("socket.getaddrinfo", lambda *_, **__: answered.wait(PATIENCE) and []):
        try:
            yield
        finally:
            answered.set()
            for thread in threading.enumerate():
                if thread.name == "statestore-look-up" and thread.ident is not None:  # else it has not begun
                    thread.join(PATIENCE)


def says(data: bytes) -> Server:
    """A server that greets with `data`, and listens."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(data)
        await reader.read()

    return Server(serve)


@contextmanager
def nobody() -> Iterator[str]:
    """An address where nobody listens."""
    yield refused()


@contextmanager
def silent() -> Iterator[str]:
    """One where connections are accepted, and that is all."""
    with says(b"") as server:
        yield server.address


@contextmanager
def silent_after_the_hello() -> Iterator[str]:
    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        await Messages(reader).read()
        writer.write(msgpack.packb([RESPONSE, 1, None, WELCOME]))
        await reader.read()

    with Server(serve) as server:
        yield server.address


@contextmanager
def hanging_up() -> Iterator[str]:
    """One where connections end as soon as something is asked."""

    async def serve(reader: StreamReader, _: StreamWriter) -> None:
        await Messages(reader).read()

    with Server(serve) as server:
        yield server.address


async def drip(writer: StreamWriter, data: bytes) -> None:
    """A byte at a time."""
    for byte in data:
        writer.write(bytes([byte]))
        await asyncio.sleep(DRIP)


@contextmanager
def dripping_from_the_first_byte() -> Iterator[str]:
    """One where an answer that is too long to come in time comes byte by byte."""

    async def serve(_: StreamReader, writer: StreamWriter) -> None:
        await drip(writer, b"\x94\x01\x01\xc0\xdb\x00\x0f\xff\xff" + b"x" * 10_000)

    with Server(serve) as server:
        yield server.address


@contextmanager
def dripping_after_the_hello() -> Iterator[str]:
    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        messages = Messages(reader)
        await messages.read()
        writer.write(msgpack.packb([RESPONSE, 1, None, WELCOME]))
        await messages.read()
        await drip(writer, b"\x94\x01\x02\xc0\xdb\x00\x0f\xff\xff" + b"x" * 10_000)

    with Server(serve) as server:
        yield server.address


def answers(answer: Callable[[str, list[Any]], tuple[Any, Any]], tls: ssl.SSLContext | None = None) -> Server:
    """A server that speaks our protocol: `answer(method, params)` is (error, result), or raises to hang up."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        requests = msgpack.Unpacker()
        while received := await reader.read(2**16):
            requests.feed(received)
            for _, msgid, method, params in requests:
                writer.write(msgpack.packb((RESPONSE, msgid, *answer(method, params))))

    return Server(serve, tls)


def punctual(clock: Callable[[], float]) -> Server:
    """A server that takes no `set` after its `not_after`, by its own `clock`."""

    def answer(method: str, params: list[Any]) -> tuple[str | None, Any]:
        if method == "hello":
            return None, WELCOME | {"features": ["sessions", "not_after"], "session": 7, "time": clock()}
        is_late = method == "set" and clock() > params[-1]["not_after"]
        return "unavailable: too late" if is_late else None, None

    return answers(answer)


def server_context(identity: Identity, client_ca: Path | None = None) -> ssl.SSLContext:
    """For a server that is `identity`. client_ca: the authority whose certificates clients have to show."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
    context.load_cert_chain(identity.certificate, identity.key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Messages:
    """Whole messages out of a stream, still as bytes."""

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader

    async def read(self) -> bytes:
        """The next one, of a peer that sends nothing on top of it. Raises EOFError."""
        decoder, data = Decoder(raw=True, max_buffer=2**24, max_items=2**20), b""
        while True:
            if not (received := await self._reader.read(2**16)):
                raise EOFError
            data += received
            decoder.feed(received)
            if next(decoder, None) is not None:
                return data


class Cut(NamedTuple):
    """How many bytes of a request, and then of its reply, go through before the connection is cut; None: all."""

    request: int | None = None
    reply: int | None = None


async def write_all(writer: StreamWriter, data: bytes) -> None:
    writer.write(data)


class Proxy(Server):
    """Between a client and the daemon at `target`.

    cuts: for each method, what happens to the next calls of it.
    write_reply: how a reply to anything but a hello goes out.
    """

    def __init__(self, target: str) -> None:
        super().__init__(self._relay)
        self._target = target
        self.methods: list[str] = []  # asked for so far, without hello
        self.cuts: defaultdict[str, list[Cut]] = defaultdict(list)
        self.write_reply: Callable[[StreamWriter, bytes], Awaitable[None]] = write_all

    async def _relay(self, client: StreamReader, to_client: StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        daemon, to_daemon = await asyncio.open_connection(host, int(port))
        requests, replies = Messages(client), Messages(daemon)
        try:
            while True:
                request = await requests.read()
                method = msgpack.unpackb(request, unicode_errors="surrogatepass")[2]
                cut = self.cuts[method].pop(0) if self.cuts[method] else Cut()
                if method != "hello":
                    self.methods.append(method)
                to_daemon.write(request[: cut.request])
                if cut.request is not None:
                    return
                reply = await replies.read()
                write = write_all if method == "hello" else self.write_reply
                await write(to_client, reply[: cut.reply])
                if cut.reply is not None:
                    return
        finally:
            to_daemon.close()


class Severing(Server):
    """Between a client that pipelines and the daemon at `target`: each connection is cut after so many bytes."""

    def __init__(self, target: str, bytes_until_cut: Callable[[], int | None]) -> None:
        """bytes_until_cut: asked for each direction of each connection; None: never."""
        super().__init__(self._relay)
        self._target = target
        self._bytes_until_cut = bytes_until_cut

    async def _relay(self, client: StreamReader, to_client: StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        daemon, to_daemon = await asyncio.open_connection(host, int(port))
        directions = [
            asyncio.ensure_future(self._pass_on(client, to_daemon)),
            asyncio.ensure_future(self._pass_on(daemon, to_client)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.wait(directions)
            to_daemon.close()
            to_client.transport.abort()  # what the client has not got yet it does not get

    async def _pass_on(self, reader: StreamReader, writer: StreamWriter) -> None:
        left = self._bytes_until_cut()
        while data := await reader.read(2**16):
            writer.write(data[:left])
            if left is not None and (left := left - len(data)) <= 0:
                return
