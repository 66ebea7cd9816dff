"""The reader: a client that reads everything after the end of all troubles, and compares the methods' answers."""

import asyncio

from statestore import AsyncRemoteStorage
from statestore.base import START
from tests.simulation import loop
from tests.simulation.clients import Actor, Client
from tests.simulation.history import MODULES, Call, History

DEADLINE = 30.0  # seconds; the daemon may still have to start


class Reader(Client):
    """Reads the whole store; each of its calls must succeed."""

    def start_reading(self, history: History) -> None:
        actor = Actor(history, self.process.name, self.process, 0, is_reader=True)
        actor.client = self
        actor.read_deadline = self._options["deadline"] = DEADLINE
        self._begin()

        async def main() -> None:
            async with AsyncRemoteStorage(**self._options) as storage:
                await self._get_all(storage, actor)
                await asyncio.sleep(max(history.writes_end_at - history.kernel.now, 0.0))
                await self._get_all(storage, actor)
                await self._compare(storage, actor.seen)

        def ended(code: object) -> None:
            self.end()
            if code is not None:
                self._kernel.fail(f"the reader raised {code!r}")

        self.process.on_exit = ended
        loop.run(self.process, main)

    async def _get_all(self, storage: AsyncRemoteStorage, actor: Actor) -> None:
        for sender in self._history.senders():
            for module in MODULES:
                await actor.ask(storage, Call("get", sender, (module,)))

    async def _compare(self, storage: AsyncRemoteStorage, gotten: dict[tuple[str, str], str]) -> None:
        """Compare the answers of all reading methods, which must agree because no write is carried out any more.

        gotten: the states that `get` returned, by module and sender.
        """
        entries = {(entry.module, entry.sender): entry.state async for entry in storage.scan()}
        count = await storage.count()
        expected = {pair: entries.get(pair, START) for pair in gotten} | entries
        states = dict(zip(expected, await storage.get_many(list(expected)), strict=True))
        if states != expected or count != len(entries):
            self._kernel.fail(f"scan says {entries}, get_many {states}, count {count}")
        if any(expected[pair] != state for pair, state in gotten.items()):
            self._kernel.fail(f"scan says {entries}, get {gotten}")
