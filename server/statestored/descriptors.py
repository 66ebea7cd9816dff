"""File descriptors: every connection takes one, and the journal must never be without."""

import resource

import structlog

from statestored.errors import StartError

log = structlog.get_logger()

# For the journal and snapshots, the addresses, the event loop, and the connections of the admin address.
RESERVED = 128


def make_room(connections: int, handshakes: int = 0) -> int:
    """Let the process open so many connections, and so many more that are about to be some.

    Returns how many connections it can open, if the system allows no more. Raises StartError where there is no room for
    any.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = RESERVED + handshakes
    wanted = connections + reserved
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    if soft <= reserved:
        raise StartError(
            f"the system lets this process open {soft} files, and it needs more than {reserved}: ulimit -n"
        )
    log.warning("fewer connections than --max-connections says", connections=soft - reserved, open_files=hard)
    return soft - reserved
