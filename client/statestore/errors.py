"""The one error tree of client and daemon.

Each class knows its code on the wire, whether the request may have been applied, and whether asking again can help.
Where Salmon's server is loaded, every error is also a `salmon.server.SMTPError`: its receivers then answer the mail
with 451 (or 553) and leave the sender's state alone, instead of accepting a mail that nobody handled.
"""

import functools
import sys
from typing import Any, ClassVar, Self, cast


class StateStoreError(Exception):
    """Something about the store went wrong; `detail` says what, for a log, not for the mail's sender.

    `code` (int) and `message` (one line of ASCII, no host, no address) are the SMTP reply that fits.
    """

    wire_code: ClassVar[str] = ""
    applied: ClassVar[str] = "no"  # "no", or "maybe" where the request may have been carried out
    retry: ClassVar[bool] = False  # whether the same request can succeed a little later

    def __new__(cls, *_args: object) -> Self:
        # Decided when raising: Salmon may be imported after us, or never.
        smtp_error = getattr(sys.modules.get("salmon.server"), "SMTPError", None)
        if smtp_error is not None and not issubclass(cls, smtp_error):
            both: type[Self] = _as_smtp_error(cast(Any, cls), smtp_error)
            return super().__new__(both)
        return super().__new__(cls)

    def __init__(self, detail: str = "") -> None:
        Exception.__init__(self, detail)
        self.detail = detail

    @property
    def code(self) -> int:
        return 451

    @property
    def message(self) -> str:
        return "4.3.0 state store unavailable, try again later"

    def __str__(self) -> str:
        return self.detail

    def __reduce__(self) -> tuple[Any, ...]:
        # The variant made for Salmon exists in this process only; the other side makes its own.
        return type(self)._plain(), (self.detail,)

    @classmethod
    def _plain(cls) -> type["StateStoreError"]:
        return cls


class BadRequest(StateStoreError):
    """The request makes no sense: a wrong type, a wrong number of parameters, text that is not text."""

    wire_code = "bad_request"


class UnknownMethod(StateStoreError):
    """The server does not know this method; it may be older than the client."""

    wire_code = "unknown_method"


class TooLong(StateStoreError):
    """A name, a state or a message is over the server's limit; `detail` begins with what it is."""

    wire_code = "too_long"

    @property
    def code(self) -> int:
        return 553 if self.detail.startswith("sender ") else 451

    @property
    def message(self) -> str:
        return "5.1.7 sender address too long" if self.code == 553 else super().message


class Unauthorized(StateStoreError):
    """No token, or a wrong one."""

    wire_code = "unauthorized"


class Forbidden(StateStoreError):
    """The server does not allow this to this client."""

    wire_code = "forbidden"


class Full(StateStoreError):
    """The store takes no new entries; reading, removing and usual changes work."""

    wire_code = "full"


class Unavailable(StateStoreError):
    """The store could not be asked within the deadline, or is not the one that was expected."""

    wire_code = "unavailable"
    retry = True


class Uncertain(StateStoreError):
    """The request was sent and had no answer, for whatever reason: it was applied, or may be until its deadline.

    After that, `get` tells what came of it.
    """

    wire_code = "uncertain"
    applied = "maybe"


class NumberReused(StateStoreError):
    """The write's number is that of another write of the same session, which two clients then share; not applied.

    A `RemoteStorage` that is answered so writes on in a new session, and its callers do not see this error.
    """

    wire_code = "number_reused"


class ShuttingDown(StateStoreError):
    """The server is about to end and has not applied the request."""

    wire_code = "shutting_down"
    retry = True


class Internal(StateStoreError):
    """A fault of the server's own, which its log describes."""

    wire_code = "internal"


BY_WIRE_CODE: dict[str, type[StateStoreError]] = {
    cls.wire_code: cls
    for cls in (
        BadRequest,
        UnknownMethod,
        TooLong,
        Unauthorized,
        Forbidden,
        Full,
        Unavailable,
        Uncertain,
        NumberReused,
        ShuttingDown,
        Internal,
    )
}


def to_wire(error: StateStoreError) -> str:
    """The error as it stands in a response: `code: detail`."""
    return f"{error.wire_code}: {error.detail}"


def from_wire(text: str) -> StateStoreError:
    """The error that a response carries. One with an unknown code is a plain `StateStoreError` with all of it.

    The protocol says of it that nothing was applied, and that asking again does not help.
    """
    code, _, detail = text.partition(": ")
    cls = BY_WIRE_CODE.get(code)
    return StateStoreError(text) if cls is None else cls(detail)


@functools.cache
def _as_smtp_error(cls: Any, smtp_error: Any) -> Any:
    """The class that is both; made once for each."""

    def smtp_reply(self: StateStoreError) -> str:
        return f"{self.code} {self.message}"  # Salmon's receivers send str(error) as it is

    def plain() -> Any:
        return cls

    body = {"__str__": smtp_reply, "__module__": cls.__module__, "__doc__": cls.__doc__, "_plain": staticmethod(plain)}
    return type(cls.__name__, (cls, smtp_error), body)
