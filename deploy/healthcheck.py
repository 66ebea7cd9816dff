"""Exits 0 where the admin address answers that the daemon is ready. Imports as little as it can: it runs often."""

import os
import socket
import sys

host, _, port = os.environ.get("STATESTORED_ADMIN_LISTEN", "127.0.0.1:7829").rpartition(":")
host = host.strip("[]")
# An address of all interfaces is one to listen on, not one to call.
host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
with socket.create_connection((host, int(port)), timeout=2) as connection:
    connection.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
    sys.exit(b" 200 " not in connection.recv(64))
