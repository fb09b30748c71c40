"""Open files: a server that runs out of them can't replace a worker, so there must be enough before it starts."""

import resource

from ghostserve.errors import ConfigError
from ghostserve.server.settings import ServerSettings

__all__ = ["BACKLOG", "HEADROOM", "ensure_descriptors"]

HEADROOM = 64  # connections over the limit that still get an answer; beyond them they are cut off without one
BACKLOG = 64  # connections that wait to be accepted, and that asyncio accepts in one go
_ROUNDS = 4  # such goes until the first connection that is cut off has given its file back
_PER_WORKER = 5  # channel, process, its shared memory, and what a start takes for a moment
_BASE = 96  # interpreter, libraries, log, the rendezvous


def ensure_descriptors(settings: ServerSettings, *, workers: int) -> None:
    """Raise this process's limit of open files to what connections and `workers` may take together.

    Raises `ConfigError` if it may not be raised that far.
    """
    needed = settings.limit_concurrency + HEADROOM + _ROUNDS * BACKLOG + workers * _PER_WORKER + _BASE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"this process may have {hard} files open, and {settings.limit_concurrency} connections and {workers}"
            f" workers need {needed}: raise the limit (ulimit -n), or lower --limit-concurrency"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
