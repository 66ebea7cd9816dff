"""Who may come in: the one place where a token is looked at, for the protocol and for the admin address."""

import hmac
from pathlib import Path

from statestore.errors import Unauthorized, Unavailable
from statestored import audit
from statestored.throttle import Throttle, shared_address
from statestored.tokens import Role, Token, digest_of, read_tokens

OWN_NAME = "STATESTORED_TOKEN"


class Access:
    """Tokens of a file, and one from the environment, which may do everything. Without any, nobody is asked.

    Raises StartError where the file cannot be read or is wrong.
    """

    def __init__(self, path: Path | None = None, own: str | None = None, throttle: Throttle | None = None) -> None:
        self._path = path
        self._own = [] if own is None else [Token(OWN_NAME, Role.ADMIN, None, digest_of(own.encode()))]
        self._throttle = throttle or Throttle()
        self._tokens: dict[bytes, Token] = {}  # by digest
        self.needed = path is not None or own is not None
        self.refused = 0  # wrong tokens
        self.shut_out = 0  # wrong tokens that came after too many others
        self.read()

    def read(self) -> int:
        """The file, anew. Returns how many tokens there are. Raises StartError, and goes on with those of before."""
        tokens = self._own if self._path is None else [*self._own, *read_tokens(self._path)]
        self._tokens = {token.digest: token for token in tokens}
        return len(self._tokens)

    def admit(self, given: object, peer: str) -> Token:
        """The token that is meant; `given` is as it came, and `peer` the address that it came from.

        Raises Unauthorized, or Unavailable where too many wrong ones came from there. A right one is admitted all the
        same: nobody guesses 256 bits, and to shut those out who have them would do an attacker's work.
        """
        found = self._find(digest_of(given)) if isinstance(given, bytes) else None
        if found is None:
            self._refuse(shared_address(peer))
            raise Unauthorized("the token is wrong" if given else "a token is needed: put it into hello's map")
        return found

    def renewed(self, token: Token) -> Token | None:
        """What one that was admitted may do now; None where it is gone."""
        return self._tokens.get(token.digest)

    def _find(self, digest: bytes) -> Token | None:
        """In a time that says nothing about what is similar: all are compared, to the end."""
        found = None
        for token in self._tokens.values():
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def _refuse(self, address: str) -> None:
        """Raises Unavailable where its wrong tokens are too many."""
        if self._throttle.is_shut(address):
            self.shut_out += 1
            raise Unavailable("too many wrong tokens came from this address: try again in a moment")
        self.refused += 1
        self._throttle.failed(address)
        if self._throttle.is_shut(address):
            audit.peer_shut_out(address)
        else:
            audit.token_refused(address)
