"""A list's conversation with one address: START -> CONFIRMING -> POSTING -> START, or BOUNCING.

A list exists as soon as somebody subscribes to it. Every handler may see the same mail twice: a 451 after its work,
because the store went away, makes the MTA deliver it again.
"""

# ruff: noqa: N802  (a state is the name of its function)

from collections.abc import Callable

from salmon.mail import MailRequest
from salmon.routing import Router, route, route_like, state_key_generator
from salmon.server import SMTPError

from app.model import addresses, membership
from app.model.outgoing import answer, distribute, is_automatic
from config import settings

State = Callable[..., None]


@state_key_generator
def one_conversation_for_each_list(_module: str, message: MailRequest) -> str:
    return membership.key(addresses.list_of(message.To))


@route("(list_name)(action)@(host)", action="|-subscribe|-unsubscribe|-confirm-[0-9a-f]+")
def START(message: MailRequest, list_name: str, action: str, host: str) -> State | None:
    return stranger(message, list_name, action, host)


@route_like(START)
def CONFIRMING(message: MailRequest, list_name: str, action: str, host: str) -> State | None:
    if is_automatic(message):
        return None
    if action == "-subscribe":
        return ask(message, list_name, host)
    if action == "-unsubscribe":
        return START
    welcome(message, list_name, action.removeprefix("-confirm-"), host)
    return None  # it has stored POSTING


@route_like(START)
def POSTING(message: MailRequest, list_name: str, action: str, host: str) -> State | None:
    if is_automatic(message):
        return None
    if action == "-unsubscribe":
        answer(message, list_name, host, f"You have left {list_name}", "Goodbye.\n", message["message-id"])
        return START
    if action.startswith("-confirm-"):  # again: what is left of the first time
        settings.confirmations.cancel(list_name, message.From, action.removeprefix("-confirm-"))
    elif action == "":
        distribute(message, list_name, host)
    return None  # not POSTING: to store what is there already could undo a bounce that came meanwhile


@route_like(START)
def BOUNCING(message: MailRequest, list_name: str, action: str, host: str) -> State | None:
    """Who writes to us can be reached again, but has to show it."""
    return stranger(message, list_name, action, host)


@route_like(START)
def ERROR(message: MailRequest, list_name: str, action: str, host: str) -> State | None:
    """Where Salmon puts the sender of a mail that made a handler fail; without this he would stay there."""
    return stranger(message, list_name, action, host)


def stranger(message: MailRequest, list_name: str, action: str, host: str) -> State | None:
    if is_automatic(message):
        return None
    if action == "-subscribe":
        return ask(message, list_name, host)
    if action == "-unsubscribe":
        return START
    if action == "":
        raise SMTPError(550, "5.7.1 you are not subscribed to this list")
    raise SMTPError(550, "5.7.1 you have not asked to subscribe to this list")


def ask(message: MailRequest, list_name: str, host: str) -> State:
    local_part = settings.confirmations.register(list_name, message)
    body = f"Answer this mail to subscribe to {list_name}@{host}.\nIf you did not ask for it, do nothing.\n"
    answer(message, local_part, host, f"Confirm your subscription to {list_name}", body, message["message-id"])
    return CONFIRMING


def welcome(message: MailRequest, list_name: str, secret: str, host: str) -> None:
    request = settings.confirmations.original(list_name, message.From, secret)
    if request is None:
        raise SMTPError(550, "5.7.1 this does not confirm anything")
    body = f"Post to {list_name}@{host}; write to {list_name}-unsubscribe@{host} to leave.\n"
    answer(message, list_name, host, f"Welcome to {list_name}", body, request["message-id"])
    # Not left to the Router: the secret must outlive a failure to store the state, or nothing could be tried again.
    Router.set_state(__name__, message, POSTING.__name__)
    settings.confirmations.cancel(list_name, message.From, secret)
