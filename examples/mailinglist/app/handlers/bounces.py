"""What comes back. The sender is a mail daemon, or nobody (''): it has no conversation with us."""

# ruff: noqa: N802  (a state is the name of its function)

from salmon.mail import MailRequest
from salmon.routing import route, stateless

from app.model import membership
from app.model.addresses import bounced_subscriber


# Anybody can write to this address; a list in earnest signs what stands in it.
@route("(list_name)-bounce-(subscriber)@(host)", subscriber="[^@]+=[^@]+")
@stateless
def START(_message: MailRequest, subscriber: str, **_captures: str) -> None:
    membership.bounced(bounced_subscriber(subscriber))
