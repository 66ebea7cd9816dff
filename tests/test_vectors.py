"""The vectors, protocol.md's examples among them, against the daemon and against the client's core.

protocol.md says what stands in a vector.
"""

import itertools
import json
import re
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgpack
import pytest

from statestore.errors import BY_WIRE_CODE, StateStoreError
from statestore.protocol import ClientProtocol, Response, Welcome, WrongServer
from statestore.wire import MAX_MSGID, NOTIFICATION
from statestored.commands import COMMANDS
from statestored.tokens import ROLES, digest_of
from tests.daemon import Daemon

DIRECTORY = Path(__file__).parent / "vectors"
DOCUMENT = (Path(__file__).parent.parent / "protocol.md").read_text()
TOKEN = "open sesame"
PATIENCE = 20.0  # seconds, for an answer that does not come
PIECES = 8192  # of a longer message; sending each byte by itself takes too long there


@dataclass(frozen=True)
class Vector:
    name: str
    request: bytes
    response: bytes
    file: str
    decoded: dict[str, list[Any]] = field(default_factory=dict)
    about: str = ""
    method: str = ""
    before: tuple[str, ...] = ()
    varies: tuple[str, ...] = ()
    closes: bool = False
    ends: bool = False
    first: bool = False
    only: str = ""
    daemon: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def is_refused(self) -> bool:
        return any(isinstance(error, str) for _, _, error, _ in decode(self.response))


def load() -> Iterator[Vector]:
    for path in sorted(DIRECTORY.glob("*.json")):
        for found in json.loads(path.read_text())["vectors"]:
            data = {key: join(found.pop(key)) for key in ("request", "response")}
            yield Vector(**data, **found, file=path.stem)


def join(parts: str | list[Any]) -> bytes:
    if isinstance(parts, str):
        return bytes.fromhex(parts)
    return b"".join(bytes.fromhex(p) if isinstance(p, str) else bytes.fromhex(p["repeat"]) * p["times"] for p in parts)


def decode(data: bytes) -> list[Any]:
    """The whole messages in `data`, as vectors have them in `decoded`."""
    unpacker = msgpack.Unpacker(unicode_errors="surrogateescape", max_buffer_size=0)
    unpacker.feed(data)
    return [to_json(message) for message in unpacker]


def to_json(value: Any) -> Any:
    match value:
        case list():
            return [to_json(item) for item in value]
        case dict():
            return {key: to_json(item) for key, item in value.items()}
        case bytes():
            return {"$bin": value.hex()}
        case str() if any("\udc80" <= c <= "\udcff" for c in value):
            return {"$str": value.encode("utf-8", "surrogateescape").hex()}
        case _:
            return value


def to_python(value: Any) -> Any:
    """What the client has in place of a decoded value."""
    match value:
        case list():
            return [to_python(item) for item in value]
        case {"$str": digits}:
            return bytes.fromhex(digits).decode("utf-8", "surrogatepass")
        case dict():
            return {key: to_python(item) for key, item in value.items()}
        case _:
            return value


def comparable(vector: Vector, messages: list[Any]) -> list[Any]:
    """The messages without what need not be the same."""
    for path in vector.varies:
        blur(messages, path.split("/")[1:])
    return [without_sentence(message) for message in messages]


def blur(value: Any, path: list[str]) -> None:
    """Put a value's type in place of the value. A path that leads nowhere is left alone."""
    first, *rest = path
    for key in range(len(value)) if first == "*" else [int(first) if isinstance(value, list) else first]:
        with suppress(LookupError, TypeError):
            if rest:
                blur(value[key], rest)
            else:
                value[key] = type(value[key]).__name__


def without_sentence(message: Any) -> Any:
    match message:
        case [1, msgid, str(error), result]:
            words = 2 if error.startswith("too_long:") else 1
            return [1, msgid, error.split(" ")[:words], result]
    return message


def renumber(message: bytes, msgid: int) -> bytes:
    """The message with another id, where it has one that is a single byte."""
    return message[:2] + msgpack.packb(msgid) + message[3:]


def in_pieces(data: bytes, how: str) -> Iterator[bytes]:
    size = len(data) // (1 if how == "whole" else PIECES) + 1
    return (data[start : start + size] for start in range(0, len(data), size))


ALL = {vector.name: vector for vector in load()}
FOR_DAEMON = [vector for vector in ALL.values() if vector.only != "client" and vector.daemon != "stopping"]
FOR_CLIENT = [vector for vector in ALL.values() if vector.only != "server"]

one_by_one = pytest.mark.parametrize("how", ["whole", "byte by byte"])


def each(vectors: list[Vector]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", vectors, ids=str)


class Peer:
    """A bare connection."""

    LAST = MAX_MSGID - 1  # an id that no vector uses

    def __init__(self, address: str, **about: str) -> None:
        """Says hello if there is something to say with it."""
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        if about:
            self.ask("hello", about)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, method: str, *params: Any) -> bytes:
        self.send(msgpack.packb((0, 0, method, params)))
        return self.next()

    def send(self, data: bytes, how: str = "whole") -> None:
        """Stops where the other side has closed the connection."""
        with suppress(ConnectionError):
            for piece in in_pieces(data, how):
                self._socket.sendall(piece)

    def end(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def next(self) -> bytes:
        """One message."""
        while True:
            unpacker = msgpack.Unpacker()
            unpacker.feed(self._received)
            with suppress(msgpack.OutOfData):
                unpacker.skip()
                message, self._received = self._received[: unpacker.tell()], self._received[unpacker.tell() :]
                return message
            chunk = self._socket.recv(65536)
            assert chunk, "the connection was closed"
            self._received += chunk

    def until_now(self, expected: int) -> bytes:
        """All that is answered to what was sent, so many messages or others. The connection is alive afterwards.

        A count follows from all writes before it, so that its answer overtakes none that waits for the disk; only a new
        session's may come later.
        """
        self.send(msgpack.packb((0, self.LAST, "count", (None, None))))
        messages: list[bytes] = []
        counted = False
        while not counted or len(messages) < expected:
            message = self.next()
            if decode(message)[0][1] == self.LAST:
                counted = True
            else:
                messages.append(message)
        return b"".join(messages)

    def until_closed(self) -> bytes:
        received = [self._received]
        with suppress(ConnectionResetError):  # it was closed while something was still on its way
            while chunk := self._socket.recv(65536):
                received.append(chunk)
        return b"".join(received)


@pytest.fixture(scope="module")
def guarded_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("guarded")
    tokens = directory / "tokens.toml"
    roles = {"admin": TOKEN, "read": "look only"}
    tokens.write_text(
        "\n".join(
            f'[{role}]\nrole = "{role}"\nsha256 = "{digest_of(token.encode()).hex()}"' for role, token in roles.items()
        )
    )
    with Daemon(directory, "--max-namespaces=1", f"--tokens={tokens}") as daemon:
        yield daemon


class Scene:
    """The connection that a vector is run on, after what has to be said `before`, and a neighbour of it."""

    def __init__(self, vector: Vector, daemon: Daemon, namespace: str) -> None:
        address = daemon.address
        own = {} if vector.first else {"namespace": namespace}
        self.peer = Peer(address, **own)
        self._neighbour = Peer(address, **({"token": TOKEN} if vector.daemon == "guarded" else own))
        if vector.daemon != "guarded":
            self._neighbour.ask("clear")  # those that are first share a namespace
        for earlier in map(ALL.__getitem__, vector.before):
            self.peer.send(earlier.request)
            self.peer.next()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.__exit__()
        self._neighbour.__exit__()

    def look(self) -> list[bytes]:
        """What the neighbour sees."""
        return [self._neighbour.ask("count", None, None), self._neighbour.ask("scan", None, None, "", None)]


@pytest.fixture
def scene(vector: Vector, request: pytest.FixtureRequest) -> Iterator[Scene]:
    daemon = request.getfixturevalue("guarded_daemon" if vector.daemon == "guarded" else "shared_daemon")
    with Scene(vector, daemon, request.node.name) as scene:
        yield scene


# The daemon


def by_id(messages: bytes) -> list[tuple[int, bytes]]:
    """Responses, which come in any order: those of writes, and of what follows from them, wait for the disk."""
    unpacker = msgpack.Unpacker(unicode_errors="surrogatepass")
    unpacker.feed(messages)
    found, start = [], 0
    for _, msgid, _, _ in unpacker:
        found.append((msgid, messages[start : unpacker.tell()]))
        start = unpacker.tell()
    return sorted(found)


@one_by_one
@each([vector for vector in FOR_DAEMON if not vector.closes])
def test_the_daemon_answers(vector: Vector, how: str, scene: Scene) -> None:
    seen = scene.look()
    scene.peer.send(vector.request, how)
    answered = scene.peer.until_now(len(decode(vector.response)))
    if vector.varies or vector.is_refused:
        assert comparable(vector, decode(answered)) == comparable(vector, decode(vector.response))
    else:
        assert by_id(answered) == by_id(vector.response)
    if vector.is_refused:
        assert scene.look() == seen


@one_by_one
@each([vector for vector in FOR_DAEMON if vector.closes])
def test_the_daemon_closes_the_connection(vector: Vector, how: str, scene: Scene) -> None:
    seen = scene.look()
    scene.peer.send(vector.request, how)
    if vector.ends:
        scene.peer.end()
    answered = scene.peer.until_closed()
    assert comparable(vector, decode(answered)) == comparable(vector, decode(vector.response))
    assert scene.look() == seen


def test_the_daemon_answers_all_at_once(shared_daemon: Daemon) -> None:
    ids = itertools.count(1)
    sent, expected = b"", {}
    for vector in FOR_DAEMON:
        alone = not (vector.first or vector.closes or vector.daemon)
        if alone and vector.request.startswith(b"\x94\0\1") and len(decode(vector.request)) == 1:
            sent += msgpack.packb((0, next(ids), "clear", ()))
            for earlier in vector.before:
                sent += renumber(ALL[earlier].request, next(ids))
            expected[msgid := next(ids)] = vector
            sent += renumber(vector.request, msgid)
    with Peer(shared_daemon.address, namespace="all at once") as peer:
        peer.send(sent)
        messages = sorted(decode(peer.until_now(len(expected))), key=lambda message: message[1])

    assert [message[1] for message in messages] == list(range(1, next(ids)))
    for message in messages:
        if (vector := expected.get(message[1])) is not None:
            message[1] = 1
            assert comparable(vector, [message]) == comparable(vector, decode(vector.response)), vector.name


def test_the_daemon_is_about_to_end(tmp_path: Path) -> None:
    vector = ALL["shutting_down"]
    with Daemon(tmp_path) as daemon, Peer(daemon.address) as peer:
        # Without end, so that some of it arrives in the short time between the signal and the end.
        writer = threading.Thread(target=peer.send, args=(vector.request * 1_000_000,))
        writer.start()
        peer.next()
        daemon.send_signal(signal.SIGTERM)
        answers = [message for message, _ in itertools.groupby(decode(peer.until_closed()))]
        writer.join()
        assert daemon.wait() == 0
    before, after = answers
    assert before == [1, 1, None, "START"]
    assert comparable(vector, [after]) == comparable(vector, decode(vector.response))


# The client


@each([vector for vector in FOR_CLIENT if "request" in vector.decoded])
def test_the_client_asks(vector: Vector) -> None:
    [[_, msgid, method, params]] = to_python(vector.decoded["request"])
    assert ClientProtocol().request(method, tuple(params)) == (msgid, vector.request)


@pytest.mark.parametrize(
    ("name", "namespace", "token"), [("hello", "lists", None), ("hello_token", "default", TOKEN)], ids=str
)
def test_the_client_says_hello(name: str, namespace: str, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statestore.protocol.__version__", "1.0")
    assert ClientProtocol().hello(namespace, token) == (1, ALL[name].request)
    [[_, _, _, result]] = ALL[name].decoded["response"]
    welcome = Welcome.parse(result)
    assert (welcome.store_id, welcome.version) == (result["store_id"], result["version"])
    assert {key: getattr(welcome.limits, key) for key in result["limits"]} == result["limits"]


@one_by_one
@each(FOR_CLIENT)
def test_the_client_understands(vector: Vector, how: str) -> None:
    for junk in (b"", b"\x94\x01"):
        check_responses(vector, responses(in_pieces(vector.response + junk, how)))
    for junk in (b"\xc1", b"\r\n", vector.request):
        understood: list[Response] = []
        with pytest.raises(WrongServer):
            understood.extend(responses(in_pieces(vector.response + junk, how)))
        check_responses(vector, understood)


def responses(pieces: Iterable[bytes]) -> Iterator[Response]:
    """What the client makes of them."""
    protocol = ClientProtocol()
    for piece in pieces:
        protocol.feed(piece)
        yield from iter(protocol.next_response, None)


def check_responses(vector: Vector, understood: Iterable[Response]) -> None:
    expected = (message for message in vector.decoded["response"] if message[0] != NOTIFICATION)
    for response, (_, msgid, error, result) in zip(understood, expected, strict=True):
        assert (response.msgid, response.result) == (msgid, to_python(result))
        check_error(response.error, error)


def check_error(error: StateStoreError | None, text: str | None) -> None:
    if text is None:
        assert error is None
        return
    code, _, detail = text.partition(": ")
    known = BY_WIRE_CODE.get(code)
    assert isinstance(error, known or StateStoreError)
    assert (error.wire_code, error.detail) == ((code, detail) if known else ("", text))


# The document and the vectors themselves


@dataclass(frozen=True)
class Example:
    """Of protocol.md: a block of lines with a sign, bytes, and behind three spaces what they mean."""

    sent: bytes
    answered: bytes
    meaning: list[Any]

    LINE = re.compile(r"(->|<-|  ) ((?:[0-9a-f]+ ?)+?)(?: {2,}(\S.*))?")

    @classmethod
    def parse(cls, lines: list[str]) -> Self:
        data, meanings, sign = {"->": b"", "<-": b""}, [], ""
        for line in lines:
            match = cls.LINE.fullmatch(line)
            assert match, f"not a line of an example: {line}"
            if match[1] != "  ":
                sign = match[1]
                meanings.append("")
            data[sign] += bytes.fromhex(match[2])
            meanings[-1] += " " + (match[3] or "")
        return cls(data["->"], data["<-"], [json.loads(meaning) for meaning in meanings])


def examples() -> dict[str, Example]:
    found = {}
    for block in re.findall(r"^```vector\n(.*?)^```$", DOCUMENT, re.M | re.S):
        title, *lines = block.splitlines()
        found[title.removeprefix("# ")] = Example.parse(lines)
    return found


EXAMPLES = examples()


def test_names_are_unique() -> None:
    names = [vector.name for vector in load()]
    assert sorted(names) == sorted(set(names))


@each([vector for vector in ALL.values() if vector.decoded])
def test_decoded_forms_are_those_of_the_bytes(vector: Vector) -> None:
    for side, messages in vector.decoded.items():
        assert decode(getattr(vector, side)) == messages


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_is_a_vector(name: str) -> None:
    example, vector = EXAMPLES[name], ALL[name]
    assert (example.sent, example.answered) == (vector.request, vector.response)
    assert example.meaning == vector.decoded["request"] + vector.decoded["response"]


def test_each_vector_of_a_method_is_an_example() -> None:
    assert {vector.name for vector in ALL.values() if vector.method or vector.file == "methods"} <= EXAMPLES.keys()
    for vector in ALL.values():
        if vector.method:
            assert vector.decoded["request"][0][2] == vector.method


def test_each_method_has_a_section_and_a_vector() -> None:
    methods = {name.decode() for name in COMMANDS}
    _, _, rest = DOCUMENT.partition("\n## Methods\n")
    section, _, _ = rest.partition("\n## ")
    assert set(re.findall(r"^### (\w+)$", section, re.M)) == methods
    assert {vector.method for vector in ALL.values() if vector.method} == methods


def test_each_role_is_described_with_its_methods() -> None:
    table = re.findall(r"^\| `(read|write|admin)` \| (.*) \|$", DOCUMENT, re.M)
    assert {role: set(re.findall(r"`(\w+)`", methods)) for role, methods in table} == {
        role: {command.name for command in COMMANDS.values() if command.role is value} for role, value in ROLES.items()
    }


def test_each_error_code_is_described() -> None:
    table = re.findall(r"^\| `(\w+)` \| (no|maybe) \| (yes|no) \|", DOCUMENT, re.M)
    assert {code: (applied, retry == "yes") for code, applied, retry in table} == {
        code: (error.applied, error.retry) for code, error in BY_WIRE_CODE.items()
    }
