"""The store in a file: many processes, any key, and files that are not ours."""

import copy
import dbm
import gc
import importlib
import os
import pickle
import shelve
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from statestore import START, ShelveStorage, StateStoreError, Unavailable
from tests.client.scripts import finish, run_script, start_script
from tests.faults.strace import Strace

PROCESSES, ROUNDS = 4, 25
SENDERS = [
    "a@b.example",
    "A@B.example",
    "",
    None,
    "None",
    "'None'",
    "format",
    "\0",
    "é",
    "e\u0301",
    "\ud83d",
    "\\ud83d",
]
WRITE = f"""
import sys
from statestore import START, ShelveStorage

store, name = ShelveStorage(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for number in range({ROUNDS}):
    store.set("m", f"{{name}}-{{number}}", "POSTING")
    store.set(name, "everybody", str(number))
    swapped = False
    while not swapped:
        state = store.get("m", "counter")
        swapped, _ = store.compare_and_set("m", "counter", state, str(0 if state == START else int(state) + 1))
"""


def backends() -> Iterator[str]:
    """The kinds of dbm file that this Python knows."""
    for name in ["dbm.sqlite3", "dbm.gnu", "dbm.ndbm", "dbm.dumb"]:
        with suppress(ImportError):
            yield importlib.import_module(name).__name__


@pytest.fixture(params=backends())
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a shelf of each kind can be made."""
    allow_only(request.param, monkeypatch)
    return str(tmp_path / "shelf")


def allow_only(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this be the one kind of dbm that there is."""
    monkeypatch.setattr(dbm, "_names", [kind])
    monkeypatch.setattr(dbm, "_defaultmod", None)
    monkeypatch.setattr(dbm, "_modules", {})


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file() and file.suffix != ".lock"}


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_any_sender_and_what_another_store_has_written_before(path: str) -> None:
    store = ShelveStorage(path)
    for number, sender in enumerate(SENDERS):
        store.set("m\ud83d", sender, str(number))
    later = ShelveStorage(Path(path))
    assert later.get_many([("m\ud83d", sender) for sender in SENDERS]) == [str(n) for n in range(len(SENDERS))]
    assert {(entry.sender, entry.state) for entry in later.scan()} == {(s, str(n)) for n, s in enumerate(SENDERS)}
    later.set_many([("m\ud83d", sender, START) for sender in SENDERS[:3]])
    assert store.count() == len(SENDERS) - 3
    later.clear()
    assert (store.count(), list(store.scan()), store.get("m\ud83d", "format")) == (0, [], START)


def test_the_longest_sender_has_room(path: str) -> None:
    store = ShelveStorage(path)
    for character in ("x", "\ud83d"):
        sender = character * (4096 // len(character.encode("utf-8", "surrogatepass")))
        store.set("m", sender, "A")
        assert store.get("m", sender) == "A"


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "shelf")
    processes = [start_script(WRITE, path, f"p{number}") for number in range(PROCESSES)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        finish(process)
    store = ShelveStorage(path)
    assert store.get("m", "counter") == str(PROCESSES * ROUNDS - 1)
    assert store.counts()["m", "POSTING"] == PROCESSES * ROUNDS
    last = [(f"p{number}", "everybody") for number in range(PROCESSES)]
    assert store.get_many(last) == [str(ROUNDS - 1)] * PROCESSES


def test_threads_that_write_at_once_lose_nothing(path: str) -> None:
    store = ShelveStorage(path)

    def work(thread: int) -> None:
        for number in range(5):
            store.set("m", f"{thread}-{number}", "A")
            store.set(f"m{thread}", "everybody", str(number))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert store.count("m") == 30
    assert store.get_many([(f"m{thread}", "everybody") for thread in range(6)]) == ["4"] * 6


def test_no_file_stays_open(path: str) -> None:
    store = ShelveStorage(path)
    before = open_files()
    for number in range(5):
        store.set("m", "a", str(number))
        store.get("m", "a")
        next(store.scan())
        with pytest.raises(StateStoreError):
            store.get("m", 5)  # type: ignore[arg-type]
    assert open_files() == before


def test_a_refused_file_is_closed(path: str) -> None:
    other_shelf(path)
    before = open_files()
    with pytest.raises(Unavailable):
        ShelveStorage(path).get("m", "a")
    assert open_files() == before


def test_an_exception_inside_closes_the_file_and_gives_the_lock_back(path: str) -> None:
    store = ShelveStorage(path)
    store.set("m", "a", "A")
    before = open_files()
    with pytest.raises(KeyboardInterrupt), store._held():
        raise KeyboardInterrupt
    assert open_files() == before
    assert store.get("m", "a") == "A"


def other_shelf(path: str) -> None:
    with shelve.open(path) as shelf:
        shelf["['lists', 'a@b.example']"] = "POSTING"


def shelf_with_a_format(path: str) -> None:
    with shelve.open(path) as shelf:
        shelf["format"] = "statestore 999"


def text_file(path: str) -> None:
    Path(path).write_text("not a shelf at all\n")


def damaged_file(path: str) -> None:
    ShelveStorage(path).set("m", "a", "A")
    for file in Path(path).parent.glob("shelf*"):
        if file.stat().st_size > 16:
            file.write_bytes(file.read_bytes()[:16] + b"\xa5" * (file.stat().st_size - 16))


@pytest.mark.filterwarnings("ignore:unclosed database")  # dbm.sqlite3 leaves a damaged one to the garbage collector
@pytest.mark.parametrize("make", [other_shelf, shelf_with_a_format, text_file, damaged_file])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(path: str, make: Callable[[str], None]) -> None:
    make(path)
    directory = Path(path).parent
    before = contents(directory)
    for call in (lambda: ShelveStorage(path).get("m", "a"), lambda: ShelveStorage(path).set("m", "a", "A")):
        with pytest.raises(Unavailable) as caught:
            call()
        assert f"shelf {path}: " in caught.value.detail
    assert contents(directory) == before
    del caught
    gc.collect()


def test_a_file_of_salmons_own_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = str(tmp_path / "states")
    run_script(
        """
        import sys
        from salmon.routing import ShelveStorage
        ShelveStorage(sys.argv[1]).set("lists", "a@b.example", "POSTING")
        """,
        path,
    )
    before = contents(tmp_path)
    with pytest.raises(Unavailable, match="not made by this ShelveStorage; give another path"):
        ShelveStorage(path).set("lists", "a@b.example", "CONFIRMING")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\xfe", id="no pickle"),
        pytest.param(pickle.dumps({"m": ("A", 1)})[:-4], id="half a pickle"),
        pytest.param(b"cnosuchmodule\nThing\n.", id="a module that is not there"),
        pytest.param(b"cos\nnosuchname\n.", id="a name that is not there"),
        pytest.param(b"I\xe9\n.", id="a number that is none"),
        pytest.param(b"g7\n.", id="a reference to nothing"),
        pytest.param(pickle.dumps(5), id="a value of another shape"),
    ],
)
def test_a_damaged_entry_is_unavailable_not_start(path: str, damage: bytes) -> None:
    store = ShelveStorage(path)
    store.set_many([("m", "a", "A"), ("m", "b", "B")])
    with closing(dbm.open(path, "w")) as raw:
        raw[b"'a'"] = damage
    for call in (lambda: store.get("m", "a"), lambda: list(store.scan()), lambda: store.set("m", "a", "Z")):
        with pytest.raises(Unavailable) as caught:
            call()
        assert path in caught.value.detail
    assert store.get("m", "b") == "B"


def unusable_paths(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "file").write_text("x")
    yield tmp_path / "missing" / "shelf"
    yield tmp_path / "file" / "shelf"
    if os.geteuid() != 0:  # root may read everything
        (tmp_path / "closed").mkdir(mode=0)
        yield tmp_path / "closed" / "shelf"


@pytest.mark.skipif(sys.platform == "win32", reason="no modes here")
def test_a_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for unusable in unusable_paths(tmp_path):
        with pytest.raises(Unavailable) as caught:
            ShelveStorage(unusable).get("m", "a")
        assert f"shelf {unusable}: " in caught.value.detail


def test_what_holds_the_lock_is_waited_for(path: str) -> None:
    store = ShelveStorage(path)
    with ThreadPoolExecutor(1) as pool:
        with store._held() as senders:
            waiting = pool.submit(store.get, "m", "a")
            senders["a"] = {"m": ("A", 1)}
        assert waiting.result(20) == "A"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))])
def test_it_and_its_copies_stay_with_their_file_in_another_directory(
    duplicate: Callable[[ShelveStorage], ShelveStorage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon goes to `/`, and a process that unpickles it may be elsewhere: to another file all senders are new."""
    monkeypatch.chdir(tmp_path)
    store = ShelveStorage("states")
    store.set("m", "a", "A")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.get("m", "a") == "A"
    assert duplicate(store).get("m", "a") == "A"


# An entry that grows beyond its place, one that is added, and one that is removed.
CHANGES = [("a", "B" * 1000), ("b", "B"), ("c", START)]
CHANGE = f"""
import dbm, sys
dbm._names = [sys.argv[2]]
from statestore import ShelveStorage

store = ShelveStorage(sys.argv[1])
for sender, state in {CHANGES!r}:
    store.set("m", sender, state)
    print(sender, flush=True)
"""
# Calls that change files. The script's own output is one of them.
CALLS = (
    "/^(p?write(64|v)?|sendfile|copy_file_range|f?truncate|rename(at2?)?|unlink(at)?|mkdir(at)?|rmdir|f?chmod(at)?)$"
)
MAX_CALLS = 300


def fill(path: str) -> ShelveStorage:
    """Return a shelf in which the senders of CHANGES have their first states, and one more sender has one."""
    store = ShelveStorage(path)
    store.set_many([("m", "a", "A"), ("m", "c", "A"), ("m", "other", "A")])
    return store


def killed_at(call: int, directory: Path, path: str) -> tuple[list[str], bool]:
    """Run CHANGE and kill it at one of CALLS. Returns what it acknowledged, and whether it came to its end before."""
    strace = Strace(directory / "trace", (), CALLS, f"{CALLS}:signal=KILL:when={call}")
    kind = dbm._names[0]  # type: ignore[attr-defined]
    command = [*strace.command(), sys.executable, "-c", CHANGE, path, kind]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    return process.stdout.split(), process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="strace is for Linux")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("is_new", [False, True])
def test_a_kill_at_any_call_loses_nothing(path: str, tmp_path: Path, is_new: bool) -> None:
    for call in range(1, MAX_CALLS):
        directory = tmp_path / str(call)
        directory.mkdir()
        path = str(directory / "shelf")
        expected = {"a": {START}, "b": {START}, "c": {START}}
        if not is_new:
            fill(path)
            expected |= {"a": {"A"}, "c": {"A"}, "other": {"A"}}
        done, is_over = killed_at(call, directory, path)
        for sender, state in CHANGES[: len(done)]:
            expected[sender] = {state}
        for sender, state in CHANGES[len(done) :][:1]:  # it was under way
            expected[sender] |= {state}
        store = ShelveStorage(path)
        for sender, states in expected.items():
            assert store.get("m", sender) in states, f"call {call}, {sender}, acknowledged: {done}"
        store.set("m", "next", "A")
        assert store.get("m", "next") == "A"
        if is_over:
            break
    assert is_over
    assert call > len(CHANGES)  # it was killed before


@pytest.mark.parametrize("count", [1, 2])
def test_an_exception_in_the_middle_takes_back_all_changes(path: str, count: int) -> None:
    store = fill(path)

    def change() -> None:
        with store._held() as senders:
            for number in range(count):
                senders[str(number)] = {"m": ("B", 1)}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change()
    assert store.count() == 3
    assert store.get("m", "other") == "A"


@pytest.mark.parametrize("index", [None, b""])
def test_a_shelf_without_its_index_is_unavailable_not_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: bytes | None
) -> None:
    """A process that was killed while it wrote a `dbm.dumb` without a copy leaves no index, or an empty one."""
    allow_only("dbm.dumb", monkeypatch)
    store = fill(str(tmp_path / "shelf"))
    (tmp_path / "shelf.dir").rename(tmp_path / "shelf.bak")
    if index is not None:
        (tmp_path / "shelf.dir").write_bytes(index)
    before = contents(tmp_path)
    for call in (lambda: store.get("m", "a"), lambda: store.set("m", "a", "B"), store.clear):
        with pytest.raises(Unavailable):
            call()
    assert contents(tmp_path) == before
    (tmp_path / "shelf.bak").rename(tmp_path / "shelf.dir")
    assert store.get("m", "a") == "A"


def test_a_copy_that_lost_a_file_takes_nothing_from_the_shelf(path: str, tmp_path: Path) -> None:
    """A program that removes old files may find it before the next call does."""
    store = fill(path)
    with store._held() as senders:
        senders["b"] = {"m": ("B", 1)}
        saved = Path(path + ".undo")
        kept = tmp_path / "kept"
        shutil.copytree(saved, kept)
    kept.rename(saved)  # as if it had been killed at its end
    for lost in list(saved.iterdir()):
        removed = lost.rename(tmp_path / "lost")
        with pytest.raises(Unavailable, match="should have"):
            store.get("m", "other")
        removed.rename(lost)
    assert (store.get("m", "b"), store.get("m", "other")) == (START, "A")
