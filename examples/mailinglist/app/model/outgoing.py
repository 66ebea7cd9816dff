"""Mail to people. Where the relay is away, the mail that made us write is put off (451), not lost."""

from smtplib import SMTPRecipientsRefused

from salmon.mail import MailRequest, MailResponse
from salmon.server import SMTPError

from app.model import membership
from app.model.addresses import bounce_address
from config import settings


def is_automatic(message: MailRequest) -> bool:
    """Whether no person wrote this: who answers such mail may be answered in turn, for ever (RFC 3834)."""
    return (
        not message.From
        or (message["auto-submitted"] or "no").lower() != "no"
        or (message["precedence"] or "").lower() in {"bulk", "junk", "list"}
    )


def answer(message: MailRequest, local_part: str, host: str, subject: str, body: str, about: str | None) -> None:
    """To the envelope's sender, not to what the header claims; `about` is the Message-ID that we refer to."""
    reply = MailResponse(To=message.From, From=f"{local_part}@{host}", Subject=subject, Body=body)
    reply["Reply-To"] = f"{local_part}@{host}"
    reply["Auto-Submitted"] = "auto-replied"
    if about:
        reply["In-Reply-To"] = about
    _deliver(reply, message.From, local_part.partition("-")[0], host)


def distribute(message: MailRequest, list_name: str, host: str) -> None:
    """A copy for every subscriber, the author included."""
    subscribers = membership.subscribers(list_name)
    message["List-Id"] = f"<{list_name}.{host}>"
    message["List-Unsubscribe"] = f"<mailto:{list_name}-unsubscribe@{host}>"
    message["Precedence"] = "list"
    for subscriber in subscribers:
        _deliver(message, subscriber, list_name, host)


def _deliver(message: MailRequest | MailResponse, recipient: str, list_name: str, host: str) -> None:
    try:
        settings.relay.deliver(message, To=recipient, From=bounce_address(list_name, recipient, host))
    except SMTPRecipientsRefused as refused:
        if not 500 <= refused.recipients[recipient][0] <= 599:
            raise SMTPError(451, "4.4.1 mail cannot be sent now, try again later") from refused
        membership.bounced(recipient)  # refused for good: a bounce that needs no mail
    except OSError as error:  # smtplib's errors too
        raise SMTPError(451, "4.4.1 mail cannot be sent now, try again later") from error
