"""What an administrator sets, all of it from the environment; `boot.py` fills in the rest.

Where the store is, and what it asks for, `RemoteStorage` takes from there by itself: STATESTORE_ADDRESS and so on.
"""

import os
from pathlib import Path
from typing import Any

from salmon.server import LMTPReceiver

# Several processes on one machine differ in this port only; 0 takes any free one, printed at start.
receiver_config = {"host": "127.0.0.1", "port": int(os.environ.get("LMTP_PORT", "8824"))}
relay_config = {"host": "127.0.0.1", "port": int(os.environ.get("RELAY_PORT", "25"))}

# attach: the Router asks RemoteStorage once for each mail; plain: it is set as STATE_STORE and no more;
# memory: Salmon's own storages, for one process only.
state_store = os.environ.get("STATE_STORE", "attach")

# Shared by all processes of the machine: pending mail of any of them can be confirmed at any other.
run_directory = Path(os.environ.get("RUN_DIRECTORY", "run"))

handlers = ["app.handlers.lists", "app.handlers.bounces"]
router_defaults = {"list_name": "[a-z0-9]+", "host": "[^@]+"}

# Set by boot.py.
receiver: LMTPReceiver
relay: Any
store: Any
confirmations: Any
