"""What may have to wait for the disk runs beside the loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

from statestored.errors import AttemptFailed, DiskFailed

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: object, executor: Executor | None = None) -> T:
    """Who is cancelled meanwhile learns of it when the function has returned: its files are still open until then.

    Raises what the function does, even then; but an OSError that is not AttemptFailed as DiskFailed.
    """
    running = asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if (error := running.exception()) is not None and not isinstance(failure := _as_failure(error), AttemptFailed):
            raise failure from error
        raise
    except AttemptFailed:
        raise
    except OSError as error:
        raise _as_failure(error) from error
    finally:
        del running  # it has the error, whose traceback has this frame: a cycle


def _as_failure(error: BaseException) -> BaseException:
    return DiskFailed(error) if isinstance(error, OSError) and not isinstance(error, AttemptFailed) else error
