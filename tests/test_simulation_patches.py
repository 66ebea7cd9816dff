"""Nothing of the real world is left in the product when the patches are in it, or a run would not follow its seed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Modules that no simulated process uses: the admin address, standard output, and what goes with them.
NOT_SIMULATED = {"statestored.admin", "statestored.gate", "statestored.pacer", "statestored.queued_output"}

# What is left in the others, and why it does no harm.
HARMLESS = {
    "statestore.aio_connection: socket socket": "for constants; it makes its sockets by open_sockets",
    "statestore.connection: socket socket": "for constants; its socket is made by dial",
    "statestore.dial: socket socket": "for constants; it makes its sockets by open_sockets",
    "statestore.filelock: fcntl fcntl": "no simulated client locks a file",
    "statestore.forks: threading threading": "nothing is forked",
    "statestore.session: threading threading": "for a lock; no thread waits while it holds it",
    "statestored.access: Throttle.func.__init__ (default) time.monotonic": "it is given another clock",
    "statestored.throttle: Throttle.__init__ (default) time.monotonic": "it is given another clock",
    "statestored.files: fcntl fcntl": "for F_FULLFSYNC, which Linux has not",
    "statestored.sockets: fcntl fcntl": "for `unacknowledged`, which is replaced where it is called",
    "statestored.listener: socket socket": "for constants and types",
    **{
        f"statestored.{module}: {name}.__init__ (closure) time.monotonic": "the time of the start is given"
        for module, name in {
            "app": "Service.0",
            "commands": "Service",
            "connection": "Service",
            "intake": "Service",
            "listener": "Service",
            "metrics": "Service",
            "responses": "Service",
        }.items()
    },
}

PROGRAM = """
import importlib, os, pkgutil, random, select, socket, sys, threading, time, queue, fcntl
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FunctionType, ModuleType

real = {
    name: value
    for module, names in {
        time: ("monotonic", "monotonic_ns", "time", "time_ns", "perf_counter", "clock_gettime", "sleep"),
        os: ("urandom", "getrandom"),
        socket: ("socket", "create_connection", "create_server", "socketpair", "getaddrinfo"),
        threading: ("Thread", "Timer", "Lock", "RLock", "Event", "Condition"),
        select: ("select", "poll", "epoll"),
        queue: ("Queue", "SimpleQueue"),
    }.items()
    for name in names
    for value in [getattr(module, name)]
    for name in [f"{module.__name__}.{name}"]
}
real["ThreadPoolExecutor"] = ThreadPoolExecutor
real |= {module.__name__: module for module in (socket, threading, select, queue, fcntl)}
by_id = {id(value): name for name, value in real.items()}

from tests.simulation import patches
patches.apply()
EXTRA

def look(where, value, depth, seen):
    if id(value) in by_id:
        print(where, by_id[id(value)])
        return
    if depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, partial):
        for name, part in [("func", value.func), *enumerate(value.args), *value.keywords.items()]:
            look(f"{where}.{name}", part, depth - 1, seen)
    elif isinstance(value, (staticmethod, classmethod)):
        look(where, value.__func__, depth, seen)
    elif isinstance(value, property):
        look(where, value.fget, depth, seen)
    elif isinstance(value, FunctionType):
        for default in [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]:
            look(f"{where} (default)", default, depth - 1, seen)
        for cell in value.__closure__ or ():
            try:
                look(f"{where} (closure)", cell.cell_contents, depth - 1, seen)
            except ValueError:
                pass
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            look(f"{where}[]", item, depth - 1, seen)
    elif isinstance(value, dict):
        for key, item in value.items():
            look(f"{where}[{key!r:.30}]", item, depth - 1, seen)
    elif isinstance(value, type):
        if value.__module__.partition(".")[0] in ("statestore", "statestored"):
            for name, item in vars(value).items():
                look(f"{where}.{name}", item, depth - 1, seen)

for name in sorted(sys.modules):
    if name.partition(".")[0] in ("statestore", "statestored"):
        seen = set()
        for key, value in list(vars(sys.modules[name]).items()):
            if not key.startswith("__"):
                look(f"{name}: {key}", value, 4, seen)
"""


def left(extra: str = "") -> list[str]:
    """Return each place of a real clock, socket, thread and so on, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("EXTRA", extra)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def of_simulated_modules(lines: list[str]) -> set[str]:
    return {line for line in lines if line.partition(":")[0] not in NOT_SIMULATED}


def test_nothing_real_is_left_but_what_does_no_harm() -> None:
    assert of_simulated_modules(left()) == HARMLESS.keys()


def test_a_new_place_is_noticed() -> None:
    extra = """
from statestored.engines import saver, states
saver.clock = real["time.perf_counter"]
states.States.wait = lambda self, clock=real["time.monotonic"]: clock()
states.States.make = real["threading.Event"]
"""
    assert of_simulated_modules(left(extra)) >= {
        "statestored.engines.saver: clock time.perf_counter",
        "statestored.engines.states: States.wait (default) time.monotonic",
        "statestored.engines.states: States.make threading.Event",
    }
