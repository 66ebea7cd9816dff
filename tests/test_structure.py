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
    "protocol",
    "connection",
    "pool",
    "storage",
    "filelock",
    "mapping",
    "memory",
    "shelf",
    "routing",
    "testing",
    "__init__",
]
SERVER_ORDER = [
    "__init__",
    "errors",
    "files",
    "datadir",
    "snapshot",
    "engines.__init__",
    "engines.base",
    "engines.table",
    "engines.states",
    "engines.snapshots",
    "engines.queries",
    "engines.embedded",
    "commands",
    "metrics",
    "session",
    "sockets",
    "listener",
    "admin",
    "log",
    "settings",
    "app",
    "cli",
    "__main__",
]

# What the server takes from the client's package.
SHARED = {"statestore", "statestore.wire", "statestore.errors", "statestore.address", "statestore.base"}
# What knows of an engine only what `engines.base` says of all of them.
FRONT = ("commands", "metrics", "session", "sockets", "listener", "admin", "log", "settings", "cli", "__main__")
# What lies under the engines, and knows nothing of them.
BOTTOM = ("errors", "files", "datadir", "snapshot")

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


def test_nothing_is_looked_up_by_a_name_from_the_network() -> None:
    """Methods stand in a table."""
    for module in ("commands", "session"):
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
