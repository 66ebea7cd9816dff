"""Targets: a connection of the real service on the real engine, and anything as a stream, in pieces of any size."""

from __future__ import annotations

import asyncio
import functools
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import uvloop
from structlog.testing import capture_logs

from statestore.errors import BY_WIRE_CODE
from statestored import commands
from statestored.budget import Budget
from statestored.commands import Service
from statestored.connection import Connections
from statestored.datadir import DataDirectory
from statestored.engines.commits import Fsync
from statestored.engines.embedded import EmbeddedEngine
from statestored.engines.quota import Quota
from statestored.timeouts import READING
from tests.fuzz.choices import Choices
from tests.fuzz.model import REFUSAL, Entries, Expected, Figures, Model, Page, Total, Welcome
from tests.fuzz.place import place
from tests.fuzz.requests import TOKEN, hello, stream
from tests.server.fakes import NEVER, Wire, make_service
from tests.server.rpc import request

CODES = set(BY_WIRE_CODE) - {"internal"}
TURNS = 300  # of the loop, after which an answer is not coming any more
NEW_JOURNAL_AFTER = 5000  # inputs
MAX_PIECES = 200  # about
FEATURES = frozenset(getattr(commands, "FEATURES", ()))
MAX_NAMESPACES = 10_000
QUOTA = Quota(modules=1000)


def connection_bytes(data: bytes) -> None:
    """A stream as it is."""
    choices = Choices(data)
    with_token, plan = choices.once_in(4), choices.random()
    play([choices.rest()], plan, with_token=with_token)


def connection_messages(data: bytes) -> None:
    """A stream of requests, nearly all of which are as they should be."""
    choices = Choices(data)
    with_token, plan = choices.once_in(4), choices.random()
    play([stream(choices)], plan, with_token=with_token)


def connections_together(data: bytes) -> None:
    """Several of these, each in a namespace of its own, and little memory for all of them."""
    choices = Choices(data)
    plan = choices.random()
    streams = [hello(b"space%d" % number) + stream(choices) for number in range(2 + choices.below(3))]
    play(streams, plan, with_token=False)


def play(streams: Sequence[bytes], plan: Random, *, with_token: bool) -> None:
    """What connections answer to these, held against the model; and whether others are answered afterwards."""
    try:
        with capture_logs() as logs:
            _server().run(streams, plan, TOKEN if with_token else None)
    except BaseException:
        _server().close()  # what is left in it would be held against the next input
        _server.cache_clear()
        raise
    for entry in logs:
        if "exc_info" in entry:
            raise AssertionError(f"the log says: {entry['event']}") from entry["exc_info"]
        assert entry["log_level"] not in ("error", "critical"), entry


@functools.cache
def _server() -> Server:
    return Server()


class Server:
    """One for all inputs: after each of them it holds nothing."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._runner.get_loop().set_exception_handler(self._note)
        self._reports: list[Any] = []
        self._inputs = 0
        self._runner.run(self._open())

    def run(self, streams: Sequence[bytes], plan: Random, token: bytes | None) -> None:
        self._inputs += 1
        self._runner.run(self._play(streams, plan, token))
        if self._inputs % NEW_JOURNAL_AFTER == 0:
            self._runner.run(self._reopen())
        assert self._reports == []

    def close(self) -> None:
        self._runner.run(self._close())
        self._runner.close()

    async def _open(self) -> None:
        self._place = place()
        self._directory = DataDirectory(self._place)
        self._directory.open()
        self._engine = EmbeddedEngine(self._directory, Fsync.NEVER, NEVER, MAX_NAMESPACES, QUOTA)
        await self._engine.open()

    async def _close(self) -> None:
        await self._engine.close()
        self._directory.close()
        shutil.rmtree(self._place)

    async def _reopen(self) -> None:
        """The journal would fill the disk; and it has to load."""
        await self._engine.close()
        self._directory.close()
        self._directory = DataDirectory(self._place)
        self._directory.open()
        again = EmbeddedEngine(self._directory, Fsync.NEVER, NEVER, MAX_NAMESPACES, QUOTA)
        await again.open()
        assert len(again.states) == 0
        self._engine = again
        await self._close()
        await self._open()

    def _note(self, _loop: asyncio.AbstractEventLoop, report: dict[str, Any]) -> None:
        self._reports.append(report)

    async def _play(self, streams: Sequence[bytes], plan: Random, token: bytes | None) -> None:
        # Time goes by, and there is little memory: then clients may be dropped, else not.
        is_impatient = plan.random() < 0.2
        budget = Budget(plan.choice((2**14, 2**16, 2**20)) if is_impatient else 2**25)
        text = None if token is None else token.decode()
        service = make_service(self._engine, allow_clear=True, token=text, budget=budget)
        connections, high_water = Connections(), plan.choice((64, 65536))
        players = [
            Player(Wire(service, high_water=high_water, connections=connections), one, token, plan) for one in streams
        ]
        sending = list(players)
        while sending:
            player = plan.choice(sending)
            if not player.send():
                sending.remove(player)
            if plan.random() < 0.1:
                await asyncio.sleep(0)
            if is_impatient and plan.random() < 0.1:
                connections.watch.tick()
                budget.tick()
        await _turns_until(lambda: all(player.is_through() for player in players), players)
        if is_impatient:
            for _ in range(READING + 2):
                connections.watch.tick()
                budget.tick()
            await _turns_until(lambda: True, players)
        for player in players:
            entries = player.judge(is_impatient=is_impatient)
            player.wire.hang_up()
            for namespace, expected in entries.items():
                await self._see(service, namespace, None if is_impatient else expected)
        assert service.connections == 0
        assert budget.used == 0

    async def _see(self, service: Service, namespace: bytes, entries: Entries | None) -> None:
        """That another client finds exactly these, where it is known; then they go."""
        wire = Wire(service)
        wire.send(request(1, "hello", {"namespace": namespace, "token": TOKEN}))
        wire.send(request(2, "set", "probe", "probe@a.example", "A"), request(3, "get", "probe", "probe@a.example"))
        wire.send(request(4, "scan", None, None, None, None), request(5, "clear"))
        await _turns_until(lambda: len(wire.read()) == 5, [])
        answers = {answer[1]: answer for answer in wire.read()}
        assert answers[2] == [1, 2, None, None]
        assert answers[3] == [1, 3, None, "A"]
        assert answers[5] == [1, 5, None, None]
        if entries is not None:
            wanted = {(*key, state) for key, state in entries.items()} | {(b"probe", b"probe@a.example", b"A")}
            _compare_answer(Page(wanted, is_whole=True), answers[4])
        wire.hang_up()


class Player:
    """A client: what it sends, in pieces, and what it must be answered."""

    def __init__(self, wire: Wire, received: bytes, token: bytes | None, plan: Random) -> None:
        self.wire = wire
        self._received = received
        self._token = token
        self._plan = plan
        self._pieces = pieces(received, plan)
        self._expected = list(Model(token, FEATURES).expected(received))
        self._wanted = sum(one.is_answered for one in self._expected)

    def send(self) -> bool:
        """The next piece; whether there was one."""
        piece = next(self._pieces, None)
        if piece is not None:
            self.wire.send(piece)
        if self._plan.random() < 0.1:
            self.wire.read()
        return piece is not None

    def is_through(self) -> bool:
        if self.wire.is_closing():
            return True
        connection = self.wire.connection
        is_idle = not (self.wire.unsent or connection.stopped or connection.responses.waiting)
        return is_idle and len(self.wire.read()) >= self._wanted

    def judge(self, *, is_impatient: bool) -> dict[bytes, Entries | None]:
        """Fails where it was answered otherwise. Returns what it has stored, by namespace; None if that is not known.

        is_impatient: it may have been dropped at any time, and nobody knows what of the last was done.
        """
        answers, closed = self.wire.read(), self.wire.is_closing()
        answered = self._wanted
        if not is_impatient:
            answered = _count_answered(self._expected, len(answers), closed=closed)
        whole = [one for one in self._expected if one.is_answered]
        _compare(whole[:answered], answers)
        done = len(self._expected)
        if answered < len(whole):  # notifications before the next one are done, too
            done = next(at for at, one in enumerate(self._expected) if one is whole[answered])
        # Did the connection end before such a notification, or only after it?
        is_known = not (closed and any(one.is_silent and one.may_close for one in self._expected[:done]))
        model = Model(self._token, FEATURES)
        for _ in zip(range(done), model.expected(self._received), strict=False):
            pass
        return {namespace: entries if is_known else None for namespace, entries in model.spaces.items()}


async def _turns_until(condition: Callable[[], bool], players: Sequence[Player]) -> None:
    """Of the loop, in which all of them go on; and one more, in which nothing may be answered twice."""
    for _ in range(TURNS):
        for player in players:
            player.wire.read()
            player.wire.send()
        if condition():
            break
        await asyncio.sleep(0)
    await asyncio.sleep(0)


def pieces(received: bytes, plan: Random) -> Iterator[bytes]:
    longest = max(plan.choice((1, 3, 20, 1000, 16_384, 100_000)), len(received) // MAX_PIECES)
    at = 0
    while at < len(received):
        size = plan.randint(1, longest)
        yield received[at : at + size]
        at += size


def _count_answered(expected: list[Expected], answers: int, *, closed: bool) -> int:
    """How many of them must have been answered: all up to where the connection was closed."""
    whole = [one for one in expected if one.is_answered]
    end = expected[-1] if expected and expected[-1].msgid is None else None
    if not closed:
        assert answers == len(whole), f"{answers} answers to {len(whole)} requests"
        assert end is None or end.may_close, "it is not closed"
        return answers
    assert answers <= len(whole), f"{answers} answers to {len(whole)} requests"
    if answers == len(whole):
        assert end is not None or any(one.may_close for one in expected), "closed, and nothing was wrong"
    else:
        assert any(one.may_close for one in whole[: answers + 1]), f"closed after {answers} of {len(whole)} answers"
    return answers


def _compare(expected: list[Expected], answers: list[Any]) -> None:
    """Answers go by their ids; the same id may have been used for several requests."""
    by_id: dict[int, list[Any]] = defaultdict(list)
    for one in expected:
        assert one.msgid is not None
        by_id[one.msgid].append(one.answer)
    for answer in answers:
        assert type(answer) is list, answer
        assert len(answer) == 4, answer
        assert answer[0] == 1, answer
        wanted = by_id.get(answer[1])
        assert wanted, f"an answer that nobody asked for: {answer}"
        if len(wanted) == 1:
            _compare_answer(wanted.pop(), answer)
        else:
            wanted.remove(next(one for one in wanted if _fits(one, answer)))


def _fits(wanted: Any, answer: list[Any]) -> bool:
    try:
        _compare_answer(wanted, answer)
    except AssertionError:
        return False
    return True


def _compare_answer(wanted: Any, answer: list[Any]) -> None:
    _, _, error, result = answer
    if wanted is REFUSAL:
        assert result is None, answer
        assert type(error) is str, answer
        assert error.partition(": ")[0] in CODES, answer
        return
    assert error is None, (wanted, answer)
    match wanted, result:
        case Total(total), {"total": found, "rows": [*_], "uncounted": 0}:
            assert found == total, (wanted, answer)
        case Page(), [cursor, [*entries]]:
            found = {tuple(map(_bytes, entry[:3])) for entry in entries}
            assert len(found) == len(entries), answer
            assert found <= wanted.entries, (wanted, answer)
            assert found == wanted.entries or cursor is not None or not wanted.is_whole, (wanted, answer)
        case Welcome(), dict():
            assert {"version", "server", "store_id", "features", "limits", "time"} <= set(result), answer
        case Figures(), dict():
            assert {"store_id", "entries", "calls"} <= set(result), answer
        case _:
            assert _bytes(result) == wanted, (wanted, answer)


def _bytes(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    return tuple(map(_bytes, value)) if isinstance(value, list) else value
