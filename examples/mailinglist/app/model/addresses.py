"""The addresses of a list: <list>@, <list>-subscribe@, <list>-confirm-<secret>@, <list>-bounce-<subscriber>@."""


def list_of(address: str) -> str:
    """The list that an address belongs to, whatever it is for."""
    return address.partition("@")[0].partition("-")[0]


def bounce_address(list_name: str, subscriber: str, host: str) -> str:
    """The envelope sender of mail to a subscriber, so that its bounce names him (VERP)."""
    local, _, domain = subscriber.rpartition("@")
    return f"{list_name}-bounce-{local}={domain}@{host}"


def bounced_subscriber(encoded: str) -> str:
    """What `bounce_address` put between `-bounce-` and the `@`. A domain has no `=`, a local part may."""
    local, _, domain = encoded.rpartition("=")
    return f"{local}@{domain}"
