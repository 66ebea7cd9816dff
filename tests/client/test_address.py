"""Addresses, good and bad."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.address import DEFAULT_PORT, Address, TcpAddress, UnixAddress, parse_address, parse_addresses


@pytest.mark.parametrize(
    ("text", "address", "written"),
    [
        ("mx.example", TcpAddress("mx.example", 7828), "mx.example:7828"),
        ("mx.example:80", TcpAddress("mx.example", 80), "mx.example:80"),
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0), "127.0.0.1:0"),
        ("10.1.2.3:65535", TcpAddress("10.1.2.3", 65535), "10.1.2.3:65535"),
        ("[::1]:80", TcpAddress("::1", 80), "[::1]:80"),
        ("[::1]", TcpAddress("::1", 7828), "[::1]:7828"),
        ("::1", TcpAddress("::1", 7828), "[::1]:7828"),
        ("[fe80::1%eth0]:80", TcpAddress("fe80::1%eth0", 80), "[fe80::1%eth0]:80"),
        ("  localhost:80\n", TcpAddress("localhost", 80), "localhost:80"),
        ("unix:/run/states.sock", UnixAddress("/run/states.sock"), "unix:/run/states.sock"),
        ("unix:/run/a b:80", UnixAddress("/run/a b:80"), "unix:/run/a b:80"),
    ],
)
def test_good_addresses(text: str, address: Address, written: str) -> None:
    assert parse_address(text) == address
    assert str(address) == written
    assert parse_address(written) == address


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected host"),
        (" ", "expected host"),
        (":80", "expected host"),
        ("7828", "expected host"),
        ("mx example", "expected host"),
        ("user@mx.example", "expected host"),
        ("http://mx.example:80/", "expected host"),
        ("mx.example/7828", "expected host"),
        ("[]:80", "expected host"),
        ("mx.example:80:90", "expected host"),
        ("127.0.0.1:7828:7829", "expected host"),
        ("mx\0example", "expected host"),
        ("mx.example:", "the port must be a number"),
        ("http://mx.example", "the port must be a number"),
        ("mx.example:http", "the port must be a number"),
        ("mx.example:-1", "the port must be a number"),
        ("mx.example:+80", "the port must be a number"),
        ("mx.example:8_0", "the port must be a number"),
        ("mx.example:٨٠", "the port must be a number"),
        ("mx.example:²", "the port must be a number"),
        ("mx.example:65536", "the port must be a number"),
        ("[::1]:", "the port must be a number"),
        ("[::1", "written [address]:port"),
        ("[::1]80", "written [address]:port"),
        ("unix:", "needs an absolute path"),
        ("unix:run/states.sock", "needs an absolute path"),
    ],
)
def test_a_bad_address_is_named_in_the_error(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"^address ") as caught:
        parse_address(text)
    assert repr(text.strip()) in str(caught.value)
    assert complaint in str(caught.value)


@given(st.text())
def test_what_was_understood_can_be_written_and_read_again(text: str) -> None:
    with suppress(ValueError):
        address = parse_address(text)
        assert parse_address(str(address)) == address


def test_the_default_port_can_be_another() -> None:
    assert DEFAULT_PORT == 7828
    assert parse_address("localhost", 7829) == TcpAddress("localhost", 7829)


def test_several_addresses_keep_their_order() -> None:
    assert parse_addresses("b, a:1,unix:/s") == (TcpAddress("b", 7828), TcpAddress("a", 1), UnixAddress("/s"))


@pytest.mark.parametrize("text", ["", "a,", ",a", "a,,b", "a,b:x"])
def test_one_bad_address_spoils_the_list(text: str) -> None:
    with pytest.raises(ValueError, match=r"^address '(b:x)?'"):
        parse_addresses(text)


@pytest.mark.parametrize(
    ("text", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("[::1]", True),
        ("localhost", True),
        ("localhost.", True),
        ("LocalHost", True),
        ("unix:/s", True),
        ("0.0.0.0", False),
        ("[::]", False),
        ("10.0.0.1", False),
        ("mx.example", False),
        ("localhost.example", False),
        ("localhost..", False),
    ],
)
def test_what_only_this_machine_can_reach(text: str, is_local: bool) -> None:
    assert parse_address(text).is_local is is_local


@pytest.mark.parametrize(("text", "ip"), [("127.0.0.1", "127.0.0.1"), ("[::1]:80", "::1"), ("localhost", "None")])
def test_only_a_name_has_to_be_looked_up(text: str, ip: str) -> None:
    address = parse_address(text)
    assert isinstance(address, TcpAddress)
    assert str(address.ip) == ip
