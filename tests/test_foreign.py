"""MessagePack-RPC clients from npm, written by people who never heard of us, talk to the daemon."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from statestore import RemoteStorage

FOREIGN = Path(__file__).parent / "foreign"
PACKAGES = tuple(json.loads((FOREIGN / "package.json").read_text())["dependencies"])
INSTALL = "npm ci --prefix tests/foreign"

ANSWERS = {
    "ping": "answered",
    "stranger": "START",
    "known": "CONFIRMING",
    "nonAscii": "ΑΝΑΜΟΝΉ",
    "noSender": "BOUNCED",
    "emptySender": "START",
    "forgotten": "START",
    "unknownNotification": "sent",
    "notified": "BOUNCED",
    "refusedNotification": "sent",
    "afterErrors": "BOUNCED",
    "pipelinedSets": 100,
    "pipelinedGets": ["X" * (5 * i + 1) for i in range(100)],
}
REPEATED = {"answers": [[True, "START"], [True, "START"]], "isOneSession": True}


def converse(package: str, address: str, module: str) -> dict[str, object]:
    """What the daemon at `address` answered to `package`, as foreign/client.js reports it."""
    node = shutil.which("node")
    if node is None:
        pytest.fail(f"node is not on the PATH; install Node.js 18 or newer, then run: {INSTALL}")
    if not (FOREIGN / "node_modules" / package).is_dir():
        pytest.fail(f"the npm package {package} is not installed; run: {INSTALL}")
    command = [node, FOREIGN / "client.js", package, address, module]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout, done.stderr or "the connection was closed before the last answer"
    return json.loads(done.stdout)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_foreign_client(package: str, daemon) -> None:
    module = f"app.handlers.{package}"
    answers = converse(package, daemon.address, module)
    assert str(answers.pop("unknownMethod")).startswith("unknown_method: ")
    assert str(answers.pop("wrongParams")).startswith("bad_request: ")
    if package != "neovim":
        assert answers.pop("repeated") == REPEATED
    assert answers == ANSWERS

    # What JavaScript stored is found under the same keys by Python.
    with RemoteStorage(daemon.address) as storage:
        assert storage.get(module, "jörg+列表-📮@exämple.org") == "ΑΝΑΜΟΝΉ"
        assert storage.get(module, None) == "BOUNCED"
        assert storage.info()["notifications_refused"] == 1
