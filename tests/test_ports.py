"""A port that is reserved is nobody's, but of the server that is told to listen on it."""

import errno
import socket

import pytest

from tests.ports import CAN_SHARE, address_of, reserve_port


def test_who_connects_to_a_reserved_port_is_refused() -> None:
    with reserve_port() as reserved, socket.socket() as client:
        assert client.connect_ex(reserved.getsockname()) == errno.ECONNREFUSED
        assert address_of(reserved) == f"127.0.0.1:{reserved.getsockname()[1]}"


@pytest.mark.skipif(not CAN_SHARE, reason="only Linux lets a server bind a port that is bound already")
def test_a_server_can_listen_on_a_reserved_port_again_and_again() -> None:
    with reserve_port() as reserved:
        for _ in range(2):
            with (
                socket.create_server(reserved.getsockname()) as server,
                socket.create_connection(server.getsockname()),
            ):
                pass
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(reserved.getsockname())
