"""Puts the application together; run by `salmon start --boot config.boot`."""

import logging

from salmon.confirm import ConfirmationStorage
from salmon.queue import Queue
from salmon.routing import Router
from salmon.server import LMTPReceiver, Relay
from statestore import RemoteStorage
from statestore.routing import attach

from app.model.confirmations import Confirmations, SharedConfirmations
from app.model.maildir import make_maildir
from app.model.memory import OneProcessStorage

from . import settings

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")

if settings.state_store == "memory":
    settings.store = Router.STATE_STORE = OneProcessStorage(settings.run_directory)
    secrets = ConfirmationStorage()
else:
    settings.store = RemoteStorage()
    if settings.state_store == "plain":
        Router.STATE_STORE = settings.store
    else:
        attach(Router, settings.store)
    # A namespace of their own: `set_all` on a subscriber must not turn his secret into a state.
    secrets = SharedConfirmations(RemoteStorage(namespace="confirmations"))

settings.confirmations = Confirmations(make_maildir(settings.run_directory / "pending"), secrets)
settings.relay = Relay(settings.relay_config["host"], settings.relay_config["port"])

Router.defaults(**settings.router_defaults)
Router.load(settings.handlers)
# Mail that no handler took, or at which one failed: Salmon has answered 250, so this is its only copy.
Router.UNDELIVERABLE_QUEUE = Queue(make_maildir(settings.run_directory / "undeliverable"))

settings.receiver = LMTPReceiver(settings.receiver_config["host"], settings.receiver_config["port"])
print("listening on {}:{}".format(*settings.receiver.socket.getsockname()), flush=True)
