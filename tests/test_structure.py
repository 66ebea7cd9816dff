"""The house: imports point down only, the client stays thin, and every module has its test file."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLIENT, SERVER = ROOT / "client" / "statestore", ROOT / "server" / "statestored"

# A module imports only from those before it, so that one can read in this order and never look ahead.
# A new module has to be put in its place here.
CLIENT_ORDER = [
    "_version",
    "errors",
    "wire",
    "address",
    "base",
    "deadline",
    "forks",
    "session",
    "protocol",
    "results",
    "outage",
    "renewal",
    "store",
    "calls",
    "dial",
    "tls",
    "connection",
    "pool",
    "settings",
    "copies",
    "storage",
    "aio_connection",
    "aio",
    "filelock",
    "mapping",
    "memory",
    "undo",
    "shelf",
    "routing",
    "testing",
    "__init__",
]
SERVER_ORDER = [
    "__init__",
    "collector",
    "errors",
    "queued_output",
    "stdio",
    "files",
    "locks",
    "framing",
    "snapshot",
    "segment",
    "trust",
    "datadir",
    "journal",
    "engines.__init__",
    "engines.base",
    "engines.sessions",
    "engines.leases",
    "engines.table",
    "engines.states",
    "engines.threads",
    "engines.turns",
    "engines.commits",
    "engines.snapshots",
    "engines.recovery",
    "engines.saver",
    "engines.queries",
    "engines.quota",
    "engines.embedded",
    "inspection",
    "salvage",
    "check",
    "repair",
    "tokens",
    "throttle",
    "audit",
    "access",
    "heavy",
    "tls",
    "clock",
    "budget",
    "timeouts",
    "answers",
    "parameters",
    "commands",
    "metrics",
    "writes",
    "responses",
    "extent",
    "intake",
    "foreign_protocols",
    "tls_transport",
    "sockets",
    "connection",
    "listener",
    "http_request",
    "pacer",
    "gate",
    "reload",
    "admin",
    "log",
    "settings",
    "descriptors",
    "memory",
    "app",
    "cli",
    "__main__",
]

# What the server takes from the client's package.
SHARED = {"statestore", "statestore.wire", "statestore.errors", "statestore.address", "statestore.base"}
# What knows of an engine only what `engines.base` says of all of them.
FRONT = (
    "tokens",
    "throttle",
    "audit",
    "access",
    "tls",
    "budget",
    "timeouts",
    "answers",
    "parameters",
    "commands",
    "metrics",
    "writes",
    "responses",
    "extent",
    "heavy",
    "intake",
    "foreign_protocols",
    "tls_transport",
    "sockets",
    "connection",
    "listener",
    "http_request",
    "pacer",
    "gate",
    "reload",
    "admin",
    "log",
    "settings",
    "cli",
    "__main__",
)
# What lies under the engines, and knows nothing of them.
BOTTOM = ("errors", "files", "locks", "framing", "snapshot", "segment", "trust", "datadir", "journal")
# Nothing but these changes the files of a data directory; `datadir` makes it, and sets files aside.
WRITING = {
    "files": {"open", "fdopen", "pwrite", "truncate", "fdatasync", "fsync", "rename", "replace", "unlink"},
    "datadir": {"mkdir", "link"},
    "locks": {"fdopen", "ftruncate", "pwrite"},
    # Sockets are files too, where no state is.
    "sockets": {"unlink"},
    # No files, but the standard streams.
    "queued_output": {"write"},
    "stdio": {"open"},
}

LIBRARIES = {"statestore": {"msgpack"}, "statestore.testing": {"msgpack", "pytest", "hypothesis"}}

# Without a test of their own: there is nothing in them, or what is in them is tested wherever it is used.
UNTESTED = {"_version", "__init__", "engines.__init__"}


def modules(package: Path) -> dict[str, Path]:
    """By their names within the package: `engines.base`."""
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in sorted(package.rglob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    """The full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            # `from statestored import files` is about the module, if there is one of that name.
            submodules = [name for alias in node.names if is_module(name := f"{node.module}.{alias.name}")]
            yield from submodules or [node.module]


def is_module(name: str) -> bool:
    path = {"statestore": CLIENT, "statestored": SERVER}.get(name.partition(".")[0])
    if path is None:
        return False
    path = path.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def within(package: Path, name: str) -> str | None:
    """The name within the package; None where it is not of it."""
    top, _, rest = name.partition(".")
    if top != package.name:
        return None
    return f"{rest}.__init__".lstrip(".") if (package / rest.replace(".", "/")).is_dir() else rest


@pytest.mark.parametrize(("package", "order"), [(CLIENT, CLIENT_ORDER), (SERVER, SERVER_ORDER)])
def test_every_module_has_its_place(package: Path, order: list[str]) -> None:
    assert sorted(modules(package)) == sorted(order)


@pytest.mark.parametrize(("package", "order"), [(CLIENT, CLIENT_ORDER), (SERVER, SERVER_ORDER)])
def test_imports_point_down_only(package: Path, order: list[str]) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules(package).items()
        for name in imports(path)
        if (target := within(package, name)) is not None and order.index(target) >= order.index(module)
    ]
    assert wrong == []


def test_the_client_does_not_know_the_server() -> None:
    wrong = [f"{module} imports {name}" for module, path in modules(CLIENT).items() for name in imports(path)]
    assert [line for line in wrong if "statestored" in line] == []


def test_the_client_needs_msgpack_only() -> None:
    for module, path in modules(CLIENT).items():
        allowed = LIBRARIES.get(f"statestore.{module}", LIBRARIES["statestore"]) | {"statestore"}
        found = {name.partition(".")[0] for name in imports(path)}
        assert found - allowed - sys.stdlib_module_names == set(), module


def test_the_server_takes_from_the_client_what_both_must_agree_on() -> None:
    found = {
        name for path in modules(SERVER).values() for name in imports(path) if name.partition(".")[0] == "statestore"
    }
    assert found <= SHARED
    users = {module for module, path in modules(SERVER).items() if "statestore" in imports(path)}
    assert users == {"__init__"}, "the package itself is there for its version only"


def test_the_front_knows_no_engine_in_particular() -> None:
    for module in FRONT:
        engines = {name for name in imports(modules(SERVER)[module]) if name.startswith("statestored.engines")}
        assert engines <= {"statestored.engines.base"}, module


def test_what_lies_below_knows_nothing_of_what_is_above() -> None:
    for module in BOTTOM:
        ours = {target for name in imports(modules(SERVER)[module]) if (target := within(SERVER, name)) is not None}
        assert ours <= {"__init__", *BOTTOM}, module


def is_writing(call: ast.Call) -> str | None:
    """The function's name, where it is one of those that make, change, move, remove or sync files."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    of = call.func.value.id if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) else ""
    if name == "open" and of != "os":
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        modes = {value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)}
        return name if any(set(mode) & set("wax+") for mode in modes) else None
    if name == "replace" and len(call.args) != 1:  # that of a string takes two
        return None
    if (of == "os" and name in OF_OS) or (of not in ("os", "files") and name in OF_PATHS):
        return name
    return None


OF_OS = {"open", "fdopen", "write", "pwrite", "writev", "pwritev", "truncate", "ftruncate", "posix_fallocate"}
OF_OS |= {"fsync", "fdatasync", "sync", "rename", "replace", "link", "symlink", "unlink", "remove"}
OF_OS |= {"mkdir", "makedirs", "rmdir"}
OF_PATHS = {"write_bytes", "write_text", "touch", "rename", "replace", "symlink_to", "hardlink_to", "unlink"}
OF_PATHS |= {"mkdir", "rmdir", "copyfile", "copy2", "rmtree", "move"}


def writing_calls(path: Path) -> set[str]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {name for call in calls if (name := is_writing(call)) is not None}


def test_files_are_changed_in_one_place_only() -> None:
    """There every step is followed by the sync that it needs, and failures are told from each other."""
    for module, path in modules(SERVER).items():
        assert writing_calls(path) <= WRITING.get(module, set()), module


def test_calls_that_change_files_are_noticed(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    for call in ("os.rename(a, b)", "os.fsync(1)", "path.unlink()", "path.write_bytes(b'')", "path.replace(b)"):
        source.write_text(f"import os\n{call}\n")
        assert writing_calls(source), call
    for call in ('open(a, "w")', 'path.open("ab")', 'path.open(mode="r+")', "os.open(path, os.O_RDWR)"):
        source.write_text(f"import os\n{call}\n")
        assert writing_calls(source) == {"open"}, call
    source.write_text('open(a)\npath.open("rb", buffering=5)\n"x".replace("a", "b")\nfiles.rename(a, b)\n')
    assert writing_calls(source) == set()


def test_nothing_is_looked_up_by_a_name_from_the_network() -> None:
    """Methods stand in a table."""
    for module in ("commands", "connection"):
        assert "getattr(" not in modules(SERVER)[module].read_text()


def expected_tests(package: Path, directory: str) -> dict[str, str]:
    return {
        module: f"tests/{directory}/test_{module.strip('_').replace('.', '_')}.py"
        for module in modules(package)
        if module not in UNTESTED
    }


@pytest.mark.parametrize(("package", "directory"), [(CLIENT, "client"), (SERVER, "server")])
def test_every_module_has_its_test_file(package: Path, directory: str) -> None:
    assert [path for path in expected_tests(package, directory).values() if not (ROOT / path).is_file()] == []
