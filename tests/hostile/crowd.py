"""`python -m tests.hostile.crowd ADDRESS KIND=COUNT ...`: a process full of hostile clients.

It says a line when all have connected, and at the end, which is when its standard input ends, what became of them.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import ssl
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import cache

import uvloop

from statestore.address import TcpAddress, parse_address
from tests.hostile.clients import A_SECOND, DEAF_SECURE, HASTY, KINDS, RECEIVE_BUFFER, Fates, Hostile

SPARE_FILES = 50
CONNECTING_AT_ONCE = 100


class Crowd:
    def __init__(self, address: str, counts: dict[str, int]) -> None:
        parsed = parse_address(address)
        assert isinstance(parsed, TcpAddress)
        self._address = (parsed.host, parsed.port)
        self._counts = counts
        self.fates = {kind: Fates() for kind in counts}
        self._clients: list[Hostile] = []
        self._connecting = asyncio.Semaphore(CONNECTING_AT_ONCE)

    async def run(self) -> None:
        everybody = [kind for kind, count in self._counts.items() for _ in range(count)]
        await asyncio.gather(*(self._connect(kind) for kind in everybody if kind != HASTY))
        print("connected", flush=True)  # noqa: T201
        tasks = [asyncio.create_task(self._tick())]
        tasks += [asyncio.create_task(self._again_and_again()) for kind in everybody if kind == HASTY]
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        for task in tasks:
            task.cancel()
        for client in self._clients:
            if not client.transport.is_closing():
                client.end()
        print(json.dumps({kind: asdict(fates) for kind, fates in self.fates.items()}), flush=True)  # noqa: T201

    async def _connect(self, kind: str) -> None:
        async with self._connecting:
            loop, sock = asyncio.get_running_loop(), socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, self._address)
                tls = {"ssl": trusting(), "server_hostname": ""} if kind == DEAF_SECURE else {}
                _, client = await loop.create_connection(lambda: KINDS[kind](self.fates[kind]), sock=sock, **tls)
            except OSError:
                sock.close()
                self.fates[kind].refused += 1
            else:
                self._clients.append(client)

    async def _again_and_again(self) -> None:
        loop, fates = asyncio.get_running_loop(), self.fates[HASTY]
        while True:
            with socket.socket() as sock:
                sock.setblocking(False)
                try:
                    await loop.sock_connect(sock, self._address)
                    fates.connected += 1
                except OSError:
                    fates.refused += 1

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(A_SECOND)
            for client in self._clients:
                if not client.transport.is_closing():
                    with suppress(StopIteration):
                        client.tick()


@cache
def trusting() -> ssl.SSLContext:
    """Trusts any server: it is the client that is hostile."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def main() -> None:
    address, *given = sys.argv[1:]
    counts = {kind: int(count) for kind, _, count in (one.partition("=") for one in given)}
    allow_files(sum(counts.values()) + SPARE_FILES)
    uvloop.run(Crowd(address, counts).run())


def allow_files(count: int) -> None:
    """So many at once, or the process ends and says why."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        sys.exit(f"{count} open files are needed, and {hard} are allowed (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


if __name__ == "__main__":
    main()
