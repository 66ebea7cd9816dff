"""`python -m tests.hostile`: each kind in turn, with a daemon of its own; exits 1 where L2, L3 or L6 does not hold."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.certificates import Authority
from tests.command import say
from tests.daemon import Daemon
from tests.hostile.attack import ENVIRONMENT, Outcome, attack, fill
from tests.hostile.bystander import Latency
from tests.hostile.clients import DEAF_SECURE, HASTY, KINDS, SECURE
from tests.hostile.crowd import SPARE_FILES, allow_files
from tests.hostile.judge import complaints

FEW = {"endless": 1, "flooding": 1, HASTY: 50}  # of these that keep a whole processor busy
LONG = {"deaf": 75.0, DEAF_SECURE: 75.0, "dripping": 20.0}  # seconds, where the daemon has to lose its patience
SECONDS = 10.0
CALM = 5.0


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    allow_files(options.clients + SPARE_FILES)
    failed = False
    for kind in options.kinds or KINDS:
        count = min(options.clients, FEW.get(kind, options.clients))
        seconds = options.seconds or LONG.get(kind, SECONDS)
        with tempfile.TemporaryDirectory() as directory, make_daemon(Path(directory), kind) as daemon:
            fill(daemon)
            beside = daemon.unix_address if kind in SECURE else None
            outcome = attack(daemon, {kind: count}, seconds=seconds, calm=CALM, beside=beside)
            say(*_lines(f"{kind}, {count} clients, {seconds:g} s", outcome))
            wrong = list(complaints(kind, seconds, outcome))
            if code := daemon.stop():
                wrong.append(f"the daemon ended with {code}")
            for what in wrong:
                say(f"  FAILED      {what}")
            failed = failed or bool(wrong)
    return int(failed)


def make_daemon(directory: Path, kind: str) -> Daemon:
    """With TLS at its TCP address where that is what the kind is about."""
    if kind not in SECURE:
        return Daemon(directory, environment=ENVIRONMENT)
    identity = Authority(directory).issue("server")
    flags = (f"--tls-cert={identity.certificate}", f"--tls-key={identity.key}")
    return Daemon(directory, *flags, environment=ENVIRONMENT)


def _lines(title: str, outcome: Outcome) -> list[str]:
    lines = ["", title]
    for name, latency in zip(("get", "set"), outcome.before, strict=True):
        lines.append(f"  {name} before  {_shown(latency)}")
    for name, latency in zip(("get", "set"), outcome.during, strict=True):
        lines.append(f"  {name} beside  {_shown(latency)}")
    lines.append(
        f"  memory      {_mib(outcome.memory_before)}, at most {_mib(outcome.memory_most)} "
        f"(+{_mib(outcome.memory_growth)}), afterwards {_mib(outcome.memory_after)}"
    )
    lines.append(f"  open files  {outcome.files_before}, at most {outcome.files_most}, then {outcome.files_after}")
    lines.append(f"  processor   the daemon waited for one {outcome.waited:.0%} of the time")
    for fates in outcome.fates.values():
        after = f", after {min(fates.closed):.1f} to {max(fates.closed):.1f} s" if fates.closed else ""
        lines.append(
            f"  clients     {fates.connected:,} connected, {fates.refused:,} refused, "
            f"{len(fates.closed):,} closed by the daemon{after}; {fates.answers:,} bytes of answers"
        )
    return lines


def _shown(latency: Latency) -> str:
    return (
        f"p50 {latency.p50:6.2f} ms  p99 {latency.p99:6.2f} ms  longest {latency.longest:7.2f} ms  ({latency.count:,})"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--clients", type=int, default=1000, help="of a kind, at most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="that they stay (default: until the daemon loses its patience)")
    options = parser.parse_args(arguments)
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"there is no kind {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
