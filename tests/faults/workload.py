"""One client that writes values of which no two are the same, and remembers what was acknowledged, and when."""

import time
from collections.abc import Mapping
from pathlib import Path

from statestore.base import START, Pair
from statestored.framing import HEADER_SIZE, Frame, read_frame, unpack_header
from statestored.segment import MAGIC
from tests.server.rpc import RawClient, request
from tests.torture.model import Call, Fault, History, judge, value
from tests.torture.pipeline import connect
from tests.torture.readback import read_all

NAMESPACE = "writer"
MODULE = "app.join"


class Gone(Exception):
    """The daemon has ended."""


class Workload:
    """`before` is what is stored in its namespace, `first` the number of its first call: none was given before."""

    def __init__(self, before: Mapping[Pair, str] | None = None, first: int = 1) -> None:
        self.history = History(NAMESPACE, before or {}, first)
        self.answered_last = 0.0  # when, in seconds since 1970
        self.number = first
        self._client: RawClient | None = None
        self._unanswered = 0

    def connect(self, address: str) -> None:
        self._client = connect(address, NAMESPACE)

    def write(self, *calls: Call) -> None:
        """All of them at once. Returns when they are answered."""
        self.send(*calls)
        self.take_answers()

    def send(self, *calls: Call) -> None:
        """Raises Gone."""
        assert self._client is not None
        requests = [request(self.history.record(call), call.method, *call.params) for call in calls]
        self._unanswered += len(calls)
        try:
            self._client.send(*requests)
        except ConnectionError:
            self.take_answers()  # there may be some of earlier ones

    def take_answers(self) -> None:
        """All that are still to come. Raises Gone where they do not."""
        assert self._client is not None
        while self._unanswered:
            answer = self._client.next()
            if answer is None:
                self._client.socket.close()
                raise Gone
            self._unanswered -= 1
            _, place, error, result = answer
            self.answered_last = time.time()
            self.history.take_answer(place, error, result)

    def ask(self, method: str, *params: object) -> object:
        """While nothing is under way. Raises Gone."""
        assert self._client is not None
        try:
            self._client.send(request(0, method, *params))
        except ConnectionError:
            raise Gone from None
        if (answer := self._client.next()) is None:
            raise Gone
        assert answer[2] is None, answer
        return answer[3]

    def set(self, sender: str, padding: int = 0) -> Call:
        key, new = (MODULE, sender), self._new(padding)
        return Call("set", (*key, new), {key: new})

    def remove(self, sender: str) -> Call:
        key = (MODULE, sender)
        return Call("set", (*key, START), {key: START})

    def set_many(self, *senders: str, padding: int = 0) -> Call:
        """The same value under each."""
        new = self._new(padding)
        changes = {(MODULE, sender): new for sender in senders}
        return Call("set_many", ([(*key, new) for key in changes],), changes)

    def close(self) -> None:
        if self._client is not None:
            self._client.socket.close()

    def verdict(self, address: str) -> list[Fault]:
        """What is wrong with what is found after a restart."""
        found = read_all(address, NAMESPACE, self.history.touched() | self.history.before.keys())
        return judge(self.history, [], found).faults

    def _new(self, padding: int = 0) -> str:
        self.number += 1
        return value(NAMESPACE, self.number - 1, padding)


def newest_segment(data_dir: Path) -> Path:
    return max(data_dir.glob("*.journal"))


def batches(segment: Path) -> list[Frame]:
    """The whole batches in a segment. It may be written meanwhile."""
    with segment.open("rb") as file:
        file_id = unpack_header(segment, file.read(HEADER_SIZE), MAGIC).file_id
        found: list[Frame] = []
        while (frame := read_frame(file, found[-1].end if found else HEADER_SIZE, file_id)) is not None:
            found.append(frame)
        return found


def behind_batches(segment: Path) -> bytes:
    return segment.read_bytes()[max([frame.end for frame in batches(segment)], default=HEADER_SIZE) :]


def is_marked(data_dir: Path) -> bool:
    """Whether the journal says that its last batch is on the disk."""
    last = batches(newest_segment(data_dir))[-1:]
    return not last or not last[0].payload
