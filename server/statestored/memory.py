"""How much memory there is, and how it goes back to the system."""

import ctypes
import os
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

OWN_GROUPS = Path("/proc/self/cgroup")  # the control groups of this process: a line for each hierarchy
MOUNTS = Path("/proc/self/mountinfo")  # where the hierarchies are mounted: see proc(5)
# The files of a group that limit its memory. Above `high` nothing is killed, but all is slowed down to a crawl.
VERSION_1, VERSION_2 = ("memory.limit_in_bytes",), ("memory.max", "memory.high")
IS_HIERARCHICAL = "memory.use_hierarchy"  # of version 1: whether the group's limit holds for the groups in it


class Available(NamedTuple):
    """Bytes of memory that this process may use, and what says so, for the log."""

    size: int
    source: str


def available(own_groups: Path = OWN_GROUPS, mounts: Path = MOUNTS) -> Available:
    """Return the smallest of what the machine has and of the limits that hold for this process.

    These are those of its control groups, of either version, as a container or a systemd unit has them, and of the
    groups around them; and those of the process itself, as `ulimit` sets them.
    """
    machine = Available(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the machine's memory")
    # A group of version 1 without a limit says a number as well, which no machine has.
    return min([machine, *_own_limits(), *_limits_of_groups(own_groups, mounts)], key=lambda found: found.size)


def _own_limits() -> Iterator[Available]:
    for name, resource_ in (("ulimit -v", resource.RLIMIT_AS), ("ulimit -d", resource.RLIMIT_DATA)):
        limit, _ = resource.getrlimit(resource_)
        if limit != resource.RLIM_INFINITY:
            yield Available(limit, name)


class _Hierarchy(NamedTuple):
    """A mounted hierarchy of control groups, in which this process is in `group`, a path below the mount point."""

    mount_point: Path
    group: PurePosixPath
    limits: tuple[str, ...]  # the names of the files that have them


def _limits_of_groups(own_groups: Path, mounts: Path) -> Iterator[Available]:
    for hierarchy in _hierarchies(own_groups, mounts):
        for group in _around(hierarchy):
            for name in hierarchy.limits:
                with suppress(OSError, ValueError):  # it has no limit: "max", or no such file
                    if (limit := int((group / name).read_text())) > 0:
                        yield Available(limit, str(group / name))


def _around(hierarchy: _Hierarchy) -> Iterator[Path]:
    """The group, and all those around it whose limits hold for it."""
    yield hierarchy.mount_point / hierarchy.group
    for path in hierarchy.group.parents:
        group = hierarchy.mount_point / path
        with suppress(OSError):  # version 2 has no such file, and neither have kernels that know no other way
            if (group / IS_HIERARCHICAL).read_text().strip() == "0":
                return
        yield group


def _hierarchies(own_groups: Path, mounts: Path) -> Iterator[_Hierarchy]:
    """Those that can limit memory. With both versions mounted it is one of them that does."""
    own = _own_groups(own_groups)
    with suppress(OSError):
        for line in mounts.read_text(errors="surrogateescape").splitlines():
            try:
                before, _, after = line.partition(" - ")
                kind, *_, options = after.split()
                root, mount_point = map(_unescape, before.split()[3:5])
            except ValueError:  # not a line of the form that we know
                continue
            if kind == "cgroup2" and "" in own:
                yield _Hierarchy(Path(mount_point), _below(root, own[""]), VERSION_2)
            elif kind == "cgroup" and "memory" in options.split(",") and "memory" in own:
                yield _Hierarchy(Path(mount_point), _below(root, own["memory"]), VERSION_1)


def _own_groups(path: Path) -> dict[str, str]:
    """The path of the own group by the name of the controller; by an empty name that of version 2."""
    own: dict[str, str] = {}
    with suppress(OSError):
        for line in path.read_text(errors="surrogateescape").splitlines():
            with suppress(ValueError):  # not a line of the form that we know
                _, controllers, group = line.split(":", 2)
                own |= dict.fromkeys(controllers.split(","), group)
    return own


def _below(root: str, group: str) -> PurePosixPath:
    """A group's path below the one that is mounted, which is `root`.

    In a container that is often the container's own group; or the group is given as seen from elsewhere, and then the
    one that is mounted is the nearest to it that can be seen.
    """
    if ".." not in group:
        with suppress(ValueError):
            return PurePosixPath(group).relative_to(root)
    return PurePosixPath()


def _unescape(field: str) -> str:
    """A path as it is, in which mountinfo has spaces and the like as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


M_MMAP_THRESHOLD = -3
OF_ITS_OWN = 2**16  # bytes: the table of a full bucket is larger


def give_back_large_blocks() -> None:
    """What was a buffer of a client's, or a bucket, is the system's again when it is freed, and not with many at once.

    Without this glibc, once a large block was freed, puts all others among the small ones, where they leave holes:
    after clients with half a megabyte each it kept three times what they had. Other libraries do not need it.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, OF_ITS_OWN)
