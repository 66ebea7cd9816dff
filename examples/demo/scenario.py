"""One run of all conversations: with the daemon, which is restarted on the way, or with Salmon's own storage."""

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from examples.demo.conversations import Conversation, Correspondence, make_conversations
from examples.demo.mta import Mta
from examples.demo.outage import Outage
from examples.demo.processes import Daemon, port_of, start_mailinglist
from examples.demo.sink import Sink
from statestore import RemoteStorage

PROCESSES = 3
# Shorter than an application in earnest should have: some mail shall be answered 451 in a short outage.
DEADLINES = {"STATESTORE_DEADLINE": "0.5", "STATESTORE_WRITE_DEADLINE": "10"}

Say = Callable[[str], None]


@dataclass
class Outcome:
    conversations: list[Conversation]
    replies: dict[int, int]  # SMTP code -> how many
    states: dict[tuple[str, str], int]  # (module, state) -> how many entries, of all processes together

    @property
    def completed(self) -> int:
        return sum(not conversation.failure for conversation in self.conversations)


def run_shared(directory: Path, count: int, workers: int, say: Say) -> Outcome:
    """Three processes, one daemon."""
    with ExitStack() as stack:
        sink = stack.enter_context(Sink())
        daemon = stack.enter_context(Daemon(directory))
        say(f"daemon (pid {daemon.pid}) listens on {daemon.address}")
        settings = {"STATE_STORE": "attach", "STATESTORE_ADDRESS": daemon.address, **DEADLINES}
        ports = _start_processes(stack, directory, sink, settings, PROCESSES, say)
        conversations = make_conversations(count)
        outage = Outage(after=count * 3 // 2, say=say)  # when half of them have confirmed
        mta = Mta(ports, outage.on_reply)
        operator = stack.enter_context(ThreadPoolExecutor(1)).submit(outage.run, daemon, mta)
        _converse(Correspondence(conversations, mta, sink, workers), say)
        operator.result()
        store = stack.enter_context(RemoteStorage(daemon.address))
        for conversation in conversations:
            _check_state(conversation, store)
        return Outcome(conversations, dict(mta.replies), store.counts())


def run_alone(directory: Path, count: int, workers: int, say: Say, processes: int = PROCESSES) -> Outcome:
    """Each process with a MemoryStorage and a ConfirmationStorage of its own, which are Salmon's."""
    with ExitStack() as stack:
        sink = stack.enter_context(Sink())
        ports = _start_processes(stack, directory, sink, {"STATE_STORE": "memory"}, processes, say)
        conversations = make_conversations(count)
        mta = Mta(ports)
        _converse(Correspondence(conversations, mta, sink, workers), say)
        return Outcome(conversations, dict(mta.replies), _noted_states(directory / "run"))


def _start_processes(
    stack: ExitStack, directory: Path, sink: Sink, settings: dict[str, str], count: int, say: Say
) -> list[int]:
    programs = [
        stack.enter_context(start_mailinglist(directory, f"salmon{n}", relay_port=sink.port, **settings))
        for n in range(count)
    ]
    ports = [port_of(program.wait_until_listening()) for program in programs]
    pairs = zip(programs, ports, strict=True)
    say("Salmon by LMTP: " + ", ".join(f"pid {program.pid} on port {port}" for program, port in pairs))
    return ports


def _noted_states(run_directory: Path) -> dict[tuple[str, str], int]:
    """What each process has noted of its own MemoryStorage, added up."""
    states = Counter[tuple[str, str]]()
    for record in run_directory.glob("states-*.json"):
        for module, state, count in json.loads(record.read_text(encoding="utf-8")):
            states[module, state] += count
    return dict(states)


def _converse(mails: Correspondence, say: Say) -> None:
    for step in (mails.subscribe, mails.confirm, mails.post, mails.end):
        mails.take(step)
        done = sum(step.__name__ in conversation.steps for conversation in mails.conversations)
        say(f"{step.__name__}: {done} of {len(mails.conversations)}")


def _check_state(conversation: Conversation, store: RemoteStorage) -> None:
    state = store.get(f"lists:{conversation.list_name}", conversation.subscriber)
    if not conversation.failure and state != conversation.ending:
        conversation.failure = f"ended in {state}, not in {conversation.ending}"
