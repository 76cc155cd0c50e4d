"""A connection that broke during a statement, and the server process behind it."""

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError


def boot_clock() -> float:
    """Return seconds that pass by also while the machine is suspended, where it can tell."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class BackendProcess(NamedTuple):
    """A server process: its number, and when it was there already, by our `clock`."""

    number: int
    met: float


class ConnectionBroken(Exception):  # noqa: N818 - the error is SQLAlchemy's
    """A connection was lost during a statement.

    Args:
        error: SQLAlchemy's error.
        backend: the server process that was at it; None without a server.
        is_own: tells whether a number is that of a connection's server process, as it is unless
            there is a pooler in between.
    """

    def __init__(
        self, error: DBAPIError, backend: BackendProcess | None, is_own: Callable[[int], bool]
    ) -> None:
        super().__init__(error)
        self.error = error
        self.backend = backend
        self.is_own = is_own
