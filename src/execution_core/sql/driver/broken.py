"""The exception for a connection that broke during a statement, and its backend process."""

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError


def boot_clock() -> float:
    """Return a monotonic time in seconds; on Linux it includes the time while suspended."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class BackendProcess(NamedTuple):
    """A backend process of PostgreSQL, as learnt when its connection was first used."""

    number: int
    seen_at: float
    """When it existed already, by `boot_clock`."""


class ConnectionBroken(Exception):  # noqa: N818 - it wraps SQLAlchemy's error
    """A connection broke during a statement, so it is unknown whether the statement committed.

    Args:
        error: SQLAlchemy's error.
        backend: the backend process that ran the statement; None for SQLite.
        is_own: returns whether a number is that of a backend process which a connection of this
            engine reported. With a pooler in between, the answering process is none of them.
    """

    def __init__(
        self, error: DBAPIError, backend: BackendProcess | None, is_own: Callable[[int], bool]
    ) -> None:
        super().__init__(error)
        self.error = error
        self.backend = backend
        self.is_own = is_own
