"""A WSGI application for uWSGI, which imports it and then forks its workers, by fork(2) and without Python's hooks.

Each request sets the state of a sender of its own (its path) and answers what it reads of it.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from statestore import RemoteStorage

storage = RemoteStorage(namespace="uwsgi")
storage.ping()


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    sender = environ["PATH_INFO"]
    storage.set("m", sender, sender)
    answer = f"{storage.get('m', sender)} {os.getpid()}"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer.encode()]
