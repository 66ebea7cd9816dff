"""Exits 0 where the admin address answers that the daemon is ready. Imports as little as it can: it runs often."""

import os
import socket
import sys

TIMEOUT = 2.0  # seconds; below that of the Dockerfile, so that a reason is given

# As statestore.address reads it, which would import too much.
address = os.environ.get("STATESTORED_ADMIN_LISTEN", "127.0.0.1:7829").strip()
try:
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT)
        connection.connect(address.removeprefix("unix:"))
    else:
        if address.startswith("["):
            host, _, port = address[1:].partition("]")
        elif address.count(":") > 1:
            host, port = address, ""
        else:
            host, _, port = address.partition(":")
        # An address of all interfaces is one to listen on, not one to call.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        connection = socket.create_connection((host, int(port.lstrip(":") or 7829)), TIMEOUT)
    with connection:
        connection.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
        answer = connection.recv(64)
except OSError as error:
    sys.exit(f"{address}: {error}")
if b" 200 " not in answer:
    sys.exit(f"{address}: not ready: loading, or about to end")
