"""A Postfix of the test's own in front of an application, from nothing but Debian's package.

Its configuration, queue and log are in a temporary directory, and it listens on loopback only. To start one takes root.
"""

import json
import os
import re
import shutil
import smtplib
import socket
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from email import policy
from email.message import EmailMessage
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from examples.demo.conversations import HOST
from examples.demo.mta import Reply

COMMANDS = "/usr/sbin"  # not on every user's path
PATIENCE = 30.0  # seconds for one command
POLL = 0.05  # seconds between looks into the log
FLUSH_INTERVAL = 1.0  # seconds

# What docs/mail.md shows is `transport_maps` and what follows; the rest keeps this Postfix to itself.
MAIN = """\
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
maillog_file = {home}/maillog
maillog_file_prefixes = {home}
inet_interfaces = loopback-only
inet_protocols = ipv4
myhostname = mx.example
mydestination =
alias_maps =
relay_domains = {host}
# Reports of mail that bounced, if there were any.
default_transport = smtp:[127.0.0.1]:{sink}
smtp_dns_support_level = disabled
lmtp_dns_support_level = disabled
enable_long_queue_ids = yes

transport_maps = pipemap:{{inline:{{{{{host}=application}}}},randmap:{{{processes}}}}}
lmtp_destination_concurrency_limit = 2
lmtp_destination_recipient_limit = 2
"""
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup   unix n - n 60 1 pickup
cleanup  unix n - n - 0 cleanup
qmgr     unix n - n 300 1 qmgr
rewrite  unix - - n - - trivial-rewrite
bounce   unix - - n - 0 bounce
defer    unix - - n - 0 bounce
trace    unix - - n - 0 bounce
flush    unix n - n - 0 flush
proxymap unix - - n - - proxymap
showq    unix n - n - - showq
error    unix - - n - - error
retry    unix - - n - - error
lmtp     unix - - n - - lmtp
smtp     unix - - n - - smtp
scache   unix - - n - 1 scache
postlog  unix-dgram n - n - 1 postlogd
"""
# An attempt's line: `... postfix/lmtp[7]: 4Cq...: to=<...>, ... status=deferred (host ... said: 451 ...)`
ATTEMPT = re.compile(r"postfix/\w+\[\d+\]: (\w+): to=<.* status=(\w+) \((.*)\)$", re.M)

Queued = dict[str, Any]  # a mail as `postqueue -j` shows it: `queue_name`, `recipients` with a `delay_reason` each


class Attempt(NamedTuple):
    """`status` is `sent`, `deferred` or `bounced`; `said` what the application answered, or why it was not asked."""

    status: str
    said: str

    @property
    def reply(self) -> Reply:
        """Code 0 where the application was not asked."""
        found = re.search(r"(?:^|said: )(\d{3}) (.*)", self.said)
        return Reply(int(found[1]), found[2]) if found else Reply(0, self.said)


class Postfix:
    """Delivers mail for the lists to the LMTP servers on `ports`, to any of them; reports of failures go to `sink`."""

    def __init__(self, ports: Sequence[int], sink: int) -> None:
        self._ports = ports
        self._sink = sink
        self._lock = threading.Lock()  # protects the two below
        self._attempts: dict[str, list[Attempt]] = defaultdict(list)  # by queue id
        self._read = 0  # bytes of the log

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # Under a directory that others than root may enter, as Postfix does most of its work without rights.
            self._home = Path(tempfile.mkdtemp(prefix="postfix-"))
            stack.callback(shutil.rmtree, self._home)
            # Kept for Postfix by a socket that never listens.
            reserved = stack.enter_context(socket.socket())
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            self.port: int = reserved.getsockname()[1]
            self._configure()
            stack.callback(self._stop)
            self._run("postfix", "start")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()

    def submit(self, sender: str, recipient: str, message: EmailMessage) -> str:
        """Postfix has the mail then; under what id."""
        with smtplib.SMTP("127.0.0.1", self.port, "home.example", PATIENCE) as smtp:
            smtp.ehlo()
            smtp.mail(sender)
            smtp.rcpt(recipient)
            code, text = smtp.data(message.as_bytes(policy=policy.SMTP))
        queued = re.search(rb"queued as (\w+)", text)
        assert queued, f"{code} {text!r}\n{self.log()}"
        return queued[1].decode()

    def attempts(self) -> list[Attempt]:
        """All so far."""
        with self._lock:
            self._read_log()
            return [attempt for attempts in self._attempts.values() for attempt in attempts]

    def attempts_at(self, queue_id: str) -> list[Attempt]:
        """All so far at one mail, the oldest first."""
        with self._lock:
            self._read_log()
            return list(self._attempts[queue_id])

    def queue(self) -> list[Queued]:
        return [json.loads(line) for line in self._run("postqueue", "-j").splitlines()]

    def flush(self) -> None:
        """Try everything that is deferred at once."""
        self._run("postqueue", "-f")

    def complaints(self) -> list[str]:
        """What Postfix itself finds wrong."""
        return [line for line in self.log().splitlines() if re.search(r": (warning|error|fatal|panic): ", line)]

    def log(self) -> str:
        return (self._home / "maillog").read_text()

    def _read_log(self) -> None:
        with (self._home / "maillog").open("rb") as log:
            log.seek(self._read)
            lines, newline, _ = log.read().rpartition(b"\n")
        self._read += len(lines) + len(newline)
        for queue_id, status, said in ATTEMPT.findall(lines.decode()):
            self._attempts[queue_id].append(Attempt(status, said))

    def _configure(self) -> None:
        processes = ",".join(f"lmtp:inet:127.0.0.1:{port}" for port in self._ports)
        main = MAIN.format(home=self._home, host=HOST, sink=self._sink, processes=processes)
        assert os.geteuid() == 0, "only root can start a Postfix: run this as root"
        assert shutil.which("postfix", path=COMMANDS), "there is no Postfix here: tests/install-tools.sh installs it"
        self._home.chmod(0o755)
        for part in ("etc", "queue", "data"):
            (self._home / part).mkdir()
            (self._home / part).chmod(0o755)
        (self._home / "etc" / "main.cf").write_text(main)
        (self._home / "etc" / "master.cf").write_text(MASTER.format(port=self.port))
        shutil.chown(self._home / "data", "postfix")

    def _stop(self) -> None:
        """By the pid that it has noted; also where its start has failed half-way."""
        self._run("postfix", "stop", check=False)

    def _run(self, command: str, action: str, *, check: bool = True) -> str:
        done = subprocess.run(
            [f"{COMMANDS}/{command}", "-c", self._home / "etc", action],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command} {action}: {done.stdout}{done.stderr}"
        return done.stdout


class PostfixMta:
    """In the place of the demo's mail server: delivers by a real one.

    That tries a deferred mail again after minutes; inside of the context it is told to every second, as by an operator
    who does not want to wait.
    """

    def __init__(self, postfix: Postfix, on_reply: Callable[[Reply], None]) -> None:
        self._postfix = postfix
        self._on_reply = on_reply
        self._ended = threading.Event()
        self._flushing = threading.Lock()
        self._flusher = threading.Thread(target=self._flush_again_and_again)

    def __enter__(self) -> Self:
        self._flusher.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop_retrying()
        self._flusher.join()

    def deliver(self, _hop: int, sender: str, recipient: str, message: EmailMessage) -> Reply:
        """The reply that settles it."""
        queue_id = self._postfix.submit(sender, recipient, message)
        seen = 0
        while True:
            attempts = self._postfix.attempts_at(queue_id)
            for attempt in attempts[seen:]:
                self._on_reply(attempt.reply)
            seen = len(attempts)
            if attempts and (attempts[-1].status != "deferred" or self._ended.is_set()):
                return attempts[-1].reply
            time.sleep(POLL)

    def stop_retrying(self) -> None:
        self._ended.set()

    def flush(self) -> None:
        self._postfix.flush()

    @contextmanager
    def without_flushing(self) -> Iterator[None]:
        """What is deferred stays so."""
        with self._flushing:
            yield
        self.flush()

    def _flush_again_and_again(self) -> None:
        while not self._ended.wait(FLUSH_INTERVAL):
            with self._flushing:
                self.flush()
