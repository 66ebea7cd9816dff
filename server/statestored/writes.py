"""What a write may say of itself in its options: until when it may be applied, and which of its session's it is.

A number stands for one write. If it comes again, the fingerprint of the write tells whether that is the same one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from zlib import crc32

from statestore import wire
from statestore.errors import BadRequest, NumberReused, Unavailable
from statestored import audit
from statestored.commands import Caller, Command, set_together, shown
from statestored.engines.base import MAX_NUMBER, Reply

MAX_UNFINISHED = 1024  # so far may a write be from the first of its session that the client has no answer to

NOT_AFTER, SEQ, OLDEST = b"not_after", b"seq", b"oldest"
OF_WRITES = frozenset((NOT_AFTER, SEQ, OLDEST))

_pack = wire.packer()


def run_with(caller: Caller, command: Command, params: tuple[Any, ...], options: Mapping[Any, Any]) -> Reply:
    """Run the command as its options say.

    Raises what the command does; BadRequest for the options; Unavailable if it is too late; Uncertain, or NumberReused
    (see `Engine.once`).
    """
    for option in options:
        if option not in OF_WRITES or not command.writes:
            raise BadRequest(f"{command.name} knows no option {shown(option)}")
    not_after = _not_after(options) if NOT_AFTER in options else None

    def run() -> Reply:
        if not_after is not None and caller.service.clock.now() > not_after:
            raise Unavailable("it came after its not_after, and was not applied")
        return command.run(caller, *params)

    if SEQ in options or OLDEST in options:
        session, seq, oldest = _number(caller, options)
        number = session, seq, oldest, fingerprint(caller.namespace, command.name, params)
        try:
            return caller.service.engine.once(number, run)
        except NumberReused:
            audit.number_reused(command.name, session)
            raise
    return run()


def fingerprint(namespace: bytes, method: str, params: tuple[Any, ...]) -> int:
    """Return 32 bits that are the same for the same write, and nearly always others for another.

    It goes by the decoded values, so a text may come as `str` or as `bin`; and MessagePack has the length of each, so
    where one parameter ends counts too. It is remembered in the files: docs/formats.md defines it. CRC-32 of packed
    parameters takes 0.2 us for a set (BLAKE2b 0.5), and tells all texts of one length apart that differ in up to 4
    bytes in a row; other differences go unnoticed once in 2^32 times.
    """
    return crc32(_pack(params), _fingerprint_of(namespace, method))


@lru_cache(1024)
def _fingerprint_of(namespace: bytes, method: str) -> int:
    return crc32(_pack((namespace, method)))


def set_once_together(callers: Sequence[Caller], sets: Sequence[tuple[Any, ...]]) -> Reply | None:
    """Sets with options, by these callers, in one namespace, as one write.

    None, and nothing done, where that is not the same or one of them is unusual.
    """
    service = callers[0].service
    now = service.clock.now()
    of_sets = _fingerprint_of(callers[0].namespace, "set")
    plain, numbers = [], []
    for caller, params in zip(callers, sets, strict=True):
        options = params[-1]
        if type(options) is not dict or options.keys() != OF_WRITES or caller.session is None:
            return None
        seq, oldest, not_after = options[SEQ], options[OLDEST], options[NOT_AFTER]
        if not (
            type(seq) is type(oldest) is int
            and 1 <= oldest <= seq <= MAX_NUMBER
            and seq - oldest < MAX_UNFINISHED
            and type(not_after) is float
            and now <= not_after < math.inf
        ):
            return None
        triple = params[:-1]
        plain.append(triple)
        numbers.append((caller.session, seq, oldest, crc32(_pack(triple), of_sets)))
    return service.engine.once_together(numbers, lambda: set_together(callers[0], plain))


def _not_after(options: Mapping[Any, Any]) -> float:
    not_after: float = options[NOT_AFTER]
    # JavaScript has one type of numbers, and writes a whole one as an integer.
    if type(not_after) not in (int, float) or not math.isfinite(not_after):
        raise BadRequest("not_after must be a number: seconds, in the server's time")
    return not_after


def _number(caller: Caller, options: Mapping[Any, Any]) -> tuple[int, int, int]:
    """Return the session, `seq` and `oldest`."""
    seq, oldest = options.get(SEQ), options.get(OLDEST)
    if type(seq) is not int or type(oldest) is not int or not 1 <= oldest <= seq <= MAX_NUMBER:
        raise BadRequest("seq and oldest must be integers, and 1 <= oldest <= seq")
    if seq - oldest >= MAX_UNFINISHED:
        raise BadRequest(f"seq may be less than {MAX_UNFINISHED} above oldest")
    if caller.session is None:
        raise BadRequest("seq needs a session: ask for one in hello's map")
    return caller.session, seq, oldest
