"""Ports of the loopback address that the system gives to nobody else while a test uses them."""

import socket
import sys

# Where a bound socket that does not listen keeps no process from the port that binds it with SO_REUSEADDR.
CAN_SHARE = sys.platform == "linux"


def reserve_port() -> socket.socket:
    """Return a socket that is bound to a free port and never listens: who connects to it is refused.

    A port that was found free and given back is soon the port of another socket, as of a connection that another test
    makes. As long as this socket is open the system chooses the port for no other one. A server that is told to listen
    on it can, if it sets SO_REUSEADDR and if the system is Linux.
    """
    sock = socket.socket()
    try:
        if CAN_SHARE:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
    except OSError:
        sock.close()
        raise
    return sock


def address_of(sock: socket.socket) -> str:
    """Return the address of an IPv4 socket, as a client takes it."""
    return "{}:{}".format(*sock.getsockname())
