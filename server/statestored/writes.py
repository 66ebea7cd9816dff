"""What a write may say of itself in its options: until when it may be applied, and which of its session's it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from statestore.errors import BadRequest, Unavailable
from statestored.commands import Caller, Command, set_together, shown
from statestored.engines.base import MAX_NUMBER, Number, Reply

MAX_UNFINISHED = 1024  # so far may a write be from the first of its session that the client has no answer to

NOT_AFTER, SEQ, OLDEST = b"not_after", b"seq", b"oldest"
OF_WRITES = frozenset((NOT_AFTER, SEQ, OLDEST))


def run_with(caller: Caller, command: Command, params: tuple[Any, ...], options: Mapping[Any, Any]) -> Reply:
    """Runs the command as its options say. Raises BadRequest for these, Unavailable where it is too late, Uncertain."""
    for option in options:
        if option not in OF_WRITES or not command.writes:
            raise BadRequest(f"{command.name} knows no option {shown(option)}")
    not_after = _not_after(options) if NOT_AFTER in options else None

    def run() -> Reply:
        if not_after is not None and caller.service.clock.now() > not_after:
            raise Unavailable("it came after its not_after, and was not applied")
        return command.run(caller, *params)

    if SEQ in options or OLDEST in options:
        return caller.service.engine.once(_number(caller, options), run)
    return run()


def set_once_together(callers: Sequence[Caller], sets: Sequence[tuple[Any, ...]]) -> Reply | None:
    """Sets with options, by these callers, in one namespace, as one write.

    None, and nothing done, where that is not the same or one of them is unusual.
    """
    service = callers[0].service
    now = service.clock.now()
    numbers = []
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
        numbers.append((caller.session, seq, oldest))
    plain = [params[:-1] for params in sets]
    return service.engine.once_together(numbers, lambda: set_together(callers[0], plain))


def _not_after(options: Mapping[Any, Any]) -> float:
    not_after: float = options[NOT_AFTER]
    # JavaScript has one type of numbers, and writes a whole one as an integer.
    if type(not_after) not in (int, float) or not math.isfinite(not_after):
        raise BadRequest("not_after must be a number: seconds, in the server's time")
    return not_after


def _number(caller: Caller, options: Mapping[Any, Any]) -> Number:
    seq, oldest = options.get(SEQ), options.get(OLDEST)
    if type(seq) is not int or type(oldest) is not int or not 1 <= oldest <= seq <= MAX_NUMBER:
        raise BadRequest("seq and oldest must be integers, and 1 <= oldest <= seq")
    if seq - oldest >= MAX_UNFINISHED:
        raise BadRequest(f"seq may be less than {MAX_UNFINISHED} above oldest")
    if caller.session is None:
        raise BadRequest("seq needs a session: ask for one in hello's map")
    return caller.session, seq, oldest
