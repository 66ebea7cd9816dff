"""A program that hands a client that was used to two processes of `multiprocessing`.

python -m tests.workers ADDRESS blocking|async spawn|forkserver|fork WRITES
"""

import asyncio
import multiprocessing
import sys

from statestore import AsyncRemoteStorage, RemoteStorage


def work(storage: RemoteStorage | AsyncRemoteStorage, name: str, writes: int) -> None:
    if isinstance(storage, AsyncRemoteStorage):
        asyncio.run(work_async(storage, name, writes))
        return
    for number in range(writes):
        storage.set("m", f"{name} {number}", name)
        assert storage.get("m", f"{name} {number}") == name


async def work_async(storage: AsyncRemoteStorage, name: str, writes: int) -> None:
    async with storage:
        for number in range(writes):
            await storage.set("m", f"{name} {number}", name)
            assert await storage.get("m", f"{name} {number}") == name


def main(address: str, kind: str, method: str, writes: str) -> None:
    storage = {"blocking": RemoteStorage, "async": AsyncRemoteStorage}[kind](address, namespace="identity")
    work(storage, "parent", int(writes))
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=work, args=(storage, name, int(writes))) for name in ("first", "second")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


if __name__ == "__main__":
    main(*sys.argv[1:])
