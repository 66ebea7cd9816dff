"""A mail run: all conversations, from the first mail to the last."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from examples.demo.conversations import Correspondence, make_conversations
from examples.demo.mta import Mta

from tests.daemon import Daemon
from tests.mail.killer import Killer
from tests.mail.postfix import Postfix, PostfixMta, Queued
from tests.mail.site import Site

PROCESSES = 3
WORKERS = 6  # mails under way at once
# The first is short, so that some mail is put off; the second outlives every outage, so that none is handled twice.
DEADLINES = {"STATESTORE_DEADLINE": "0.5", "STATESTORE_WRITE_DEADLINE": "30"}

PATIENCE = 60.0  # seconds until all mail has been deferred, after the outage should have ended
LOOK_INTERVAL = 0.2


@dataclass
class Outcome:
    """`replies`: how often the application's LMTP client saw each code (0: it could not ask).
    `deferred`: what was in Postfix's queue when the outage ended.
    """

    faults: list[str]
    replies: Counter[int]
    kills: int
    deferred: list[Queued] = field(default_factory=list)


def run_with_kills(directory: Path, conversations: int, every: int, seed: int) -> Outcome:
    """The daemon is killed at about every `every`th mail."""
    with ExitStack() as stack:
        site = Site(stack, directory, Daemon(directory))
        killer = Killer(site.daemon, Random(seed), every)
        ports = _start_processes(site)
        mta = Mta(ports, killer.on_reply)
        site.sink.before_accepting = killer.on_answer
        mails = Correspondence(make_conversations(conversations), mta, site.sink, WORKERS)
        with killer.at_work(mta):
            for step in (mails.subscribe, mails.confirm, mails.post, mails.end):
                mails.take(step)
        return Outcome(site.faults(mails.conversations) + _strange(mta.replies), mta.replies, killer.kills)


def run_behind_postfix(directory: Path, conversations: int, every: int, seed: int, outage: float) -> Outcome:
    """The daemon is killed at about every `every`th request to subscribe, and away for `outage` seconds when the
    confirmations come: no mail is at a process then that could wait there, so all of it is deferred.
    """
    with ExitStack() as stack:
        site = Site(stack, directory, Daemon(directory))
        killer = Killer(site.daemon, Random(seed), every)
        postfix = stack.enter_context(Postfix(_start_processes(site), site.sink.port))
        mta = stack.enter_context(PostfixMta(postfix, killer.on_reply))
        site.sink.before_accepting = killer.on_answer
        mails = Correspondence(make_conversations(conversations), mta, site.sink, workers=conversations)
        with killer.at_work(mta):
            mails.take(mails.subscribe)
        deferred = _confirm_in_an_outage(site.daemon, mails, mta, postfix, outage)
        mails.take(mails.post)
        mails.take(mails.end)
        replies = Counter(attempt.reply.code for attempt in postfix.attempts())
        left = [f"left in the queue: {mail}" for mail in postfix.queue()]
        faults = site.faults(mails.conversations) + _strange(replies) + left + postfix.complaints()
        return Outcome(faults, replies, killer.kills, deferred)


def _start_processes(site: Site) -> list[int]:
    """Their ports."""
    return [site.start_application(f"salmon{number}", DEADLINES) for number in range(PROCESSES)]


def _strange(replies: Counter[int]) -> list[str]:
    return [f"answered {code}, {count} times" for code, count in replies.items() if code not in (250, 451)]


def _confirm_in_an_outage(
    daemon: Daemon, mails: Correspondence, mta: PostfixMta, postfix: Postfix, seconds: float
) -> list[Queued]:
    """What is in the queue when the daemon comes back."""
    going = sum(not conversation.failure for conversation in mails.conversations)
    daemon.kill()
    back = time.monotonic() + seconds
    with ThreadPoolExecutor(1) as pool:
        try:
            with mta.without_flushing():
                confirming = pool.submit(mails.take, mails.confirm)
                while not (len(queue := postfix.queue()) == going and _all_deferred(queue) and time.monotonic() > back):
                    assert time.monotonic() < back + PATIENCE, f"not deferred: {queue}\n{postfix.log()}"
                    if confirming.done():
                        break  # what did not wait was refused
                    time.sleep(LOOK_INTERVAL)
                daemon.start()
        except BaseException:
            mta.stop_retrying()
            raise
        confirming.result()
    return queue


def _all_deferred(queue: list[Queued]) -> bool:
    return all(mail["queue_name"] == "deferred" for mail in queue)
