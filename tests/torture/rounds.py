"""The rounds: load, kill, start, read back; until one finds a fault, whose traces another round would cover."""

import time
from concurrent.futures import ThreadPoolExecutor
from random import Random

from statestore.base import Pair
from tests.daemon import Daemon
from tests.torture.model import Fault, Kind, judge
from tests.torture.offline import check
from tests.torture.pipeline import connect
from tests.torture.plan import Plan, draw_plan
from tests.torture.readback import read_all, read_keys
from tests.torture.readers import Reader
from tests.torture.report import Tally
from tests.torture.victim import Victim
from tests.torture.writers import Writer

WRITERS_A_READER = 3

Watched = list[tuple[Writer, Reader]]


class Torture:
    """Of one daemon on one directory, which has to be new."""

    def __init__(self, daemon: Daemon, *, seed: int, rounds: int, writers: int) -> None:
        self.tally = Tally()
        self._victim = Victim(daemon, self.tally)
        self._seed = seed
        self._rounds = rounds
        # One has a namespace that is cleared at times; those of the others grow.
        self._writers = [Writer(number, clears=number == 0) for number in range(writers)]
        self._readers = max(1, writers // WRITERS_A_READER)

    def run(self) -> list[Fault]:
        """The faults of the first round that has any."""
        faults = self._victim.start()
        # The threads run until the daemon is gone.
        with ThreadPoolExecutor(len(self._writers) + self._readers) as threads, self._victim.daemon:
            for number in range(1, self._rounds + 1):
                faults = faults or self._round(number, threads)
        return faults or check(self._victim.daemon.data_dir)

    def _round(self, number: int, threads: ThreadPoolExecutor) -> list[Fault]:
        self.tally.rounds = number
        random = Random(f"{self._seed}/{number}")
        plan = draw_plan(random, number, self._rounds)
        for writer in self._writers:
            writer.begin(Random(random.random()))
        watched = [(random.choice(self._writers), Reader(Random(random.random()))) for _ in range(self._readers)]
        return self._load_and_kill(plan, watched, threads) or self._restart(plan) or self._verdict(plan, watched)

    def _load_and_kill(self, plan: Plan, watched: Watched, threads: ThreadPoolExecutor) -> list[Fault]:
        users: list[tuple[str, Writer | Reader]] = [(writer.name, writer) for writer in self._writers]
        users += [(writer.name, reader) for writer, reader in watched]
        addresses = self._victim.addresses
        clients = [connect(addresses[place % 2], namespace) for place, (namespace, _) in enumerate(users)]
        running = [threads.submit(user.run, client) for (_, user), client in zip(users, clients, strict=True)]
        time.sleep(plan.before)
        faults = self._victim.snapshot(awaited=plan.awaited) if plan.snapshot else []
        time.sleep(plan.after)
        closed = sum(future.done() for future in running)
        faults += self._victim.kill("under load")
        for future in running:
            future.result()
        if closed and not faults:
            faults = [Fault(Kind.DAEMON, "under load", ("to keep all connections",), f"that it closed {closed}")]
        return faults

    def _restart(self, plan: Plan) -> list[Fault]:
        self._victim.keep_files()
        faults = check(self._victim.killed) if plan.whole else []
        if plan.kill_start_at is not None:
            faults = faults or self._victim.start_and_kill(plan.kill_start_at)
        return faults or self._victim.start()

    def _verdict(self, plan: Plan, watched: Watched) -> list[Fault]:
        faults = [fault for _, reader in watched for fault in reader.faults]
        for writer in self._writers:
            shown = [reader.shown() for whose, reader in watched if whose is writer]
            found = self._read_back(writer, whole=plan.whole)
            verdict = judge(writer.history, shown, found)
            writer.settle(verdict.applied)
            self.tally.judged(writer.history, verdict, shown, found)
            faults += verdict.faults
        return faults

    def _read_back(self, writer: Writer, *, whole: bool) -> dict[Pair, str]:
        """All that this round has written, or the whole namespace."""
        address, touched = self._victim.addresses[0], writer.history.touched()
        if whole:
            return read_all(address, writer.name, touched | writer.history.before.keys())
        return read_keys(address, writer.name, touched)
