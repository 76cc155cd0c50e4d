"""Idle connections that an executor keeps outside their pool, and permits to use one.

An engine of this library's own is used for single statements alone. Its connections need no reset
between calls, so the executor keeps them instead of returning them to SQLAlchemy's pool: that saves
a check-out and a check-in per call, which take as long as the rest of it. The executor then has to
limit the number of connections itself, and the limit must survive a signal handler that raises
anywhere. Permits do that; SQLAlchemy's pool would leak a slot.
"""

import math
import select
import sqlite3
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final
from weakref import ref

from sqlalchemy import PoolProxiedConnection

from ...core.errors import InvalidValue
from ..statements.queries import Rows
from .engine import OWN_POOL

CURSOR: Final = "execution_core.cursor"
_POLL: Final = "execution_core.poll"
POLL_SECONDS: Final = 0.2
"""Longest single wait for a permit: Python runs signal handlers between two waits."""
MAX_CACHED_CHARACTERS: Final = 2**16


class IdleConnections:
    """Connections that were checked out of a pool and are kept; any thread may use one."""

    def __init__(self) -> None:
        self._connections: list[PoolProxiedConnection] = []

    def pop(self) -> PoolProxiedConnection | None:
        """Remove and return a connection, or return None."""
        try:
            return self._connections.pop()
        except IndexError:
            return None

    def push(self, connection: PoolProxiedConnection) -> None:
        """Keep a connection for the next call.

        A broken connection is closed with all others, because most likely they broke as well.
        """
        if connection.is_valid:
            self._connections.append(connection)
        else:
            connection.close()
            self.close()

    def close(self) -> None:
        """Close all kept connections."""
        while connection := self.pop():
            connection.invalidate()
            connection.close()


class Permit:
    """Permission to check out a connection; a garbage-collected permit is replaced."""

    def __init__(self, queue: "ref[Permits]") -> None:
        self._queue = queue

    def __del__(self) -> None:
        if (queue := self._queue()) is not None:
            queue.put(Permit(self._queue))


Permits = SimpleQueue[Permit]
"""The free permits. `put` returns one; it is a single C call, so no signal can interrupt it.

A semaphore would only count. If a signal handler raises between two steps, a `finally` may not be
reached, and the count would stay too low for ever. A lost permit is collected, and so replaced.
"""


def new_permits(number: int) -> Permits:
    """Return `number` free permits, for any thread to acquire."""
    permits: Permits = SimpleQueue()
    queue = ref(permits)
    for _ in range(number):
        permits.put(Permit(queue))
    return permits


def acquire(permits: Permits, seconds: float | None) -> Permit:
    """Wait for a free permit and return it.

    Raises:
        TimeoutError: there was none for so many seconds.
    """
    limit = math.inf if seconds is None else time.monotonic() + seconds
    while True:
        try:
            return permits.get(timeout=POLL_SECONDS)
        except Empty:
            if time.monotonic() > limit:
                raise no_connection(seconds) from None


def no_connection(seconds: float | None) -> TimeoutError:
    """Return the error of a call that waited too long for a connection."""
    return TimeoutError(
        f"All {OWN_POOL} connections of this manager were in use for {seconds:g} seconds, probably"
        " by calls that wait for locks. Nothing was changed: end the transactions that hold the"
        " locks, and try again."
    )


def is_idle(driver: Any) -> bool:
    """Return whether a connection of psycopg or sqlite3 is outside of any transaction."""
    if isinstance(driver, sqlite3.Connection):
        return not driver.in_transaction
    return not driver.pgconn.transaction_status  # 0 is idle; a closed connection has "unknown"


def check_committed(driver: Any) -> None:
    """Raise if a single statement has left a transaction open, so that nothing was committed.

    Raises:
        InvalidValue: a pooler, such as Pgpool in raw mode, has begun a transaction of its own.
    """
    if not is_idle(driver):
        raise InvalidValue(
            "engine",
            "left a transaction open after a single statement, so nothing was committed: a pooler"
            " begins transactions of its own",
        )


def has_ended(connection: PoolProxiedConnection) -> bool:
    """Return whether the server has ended a connection of psycopg, without a round trip.

    A statement that is sent on such a connection would have an unknown outcome.
    """
    driver: Any = connection.driver_connection
    if driver.closed:
        return True
    poll = connection.info.get(_POLL)
    if poll is None:
        if not hasattr(select, "poll"):  # Windows
            return False
        poll = connection.info[_POLL] = select.poll()
        poll.register(driver.pgconn.socket, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


def cached_cursor(connection: PoolProxiedConnection) -> Any:
    """Return the cursor of the last call on this connection of psycopg, or a new one.

    A new cursor looks up the loader of each column again, and leaves garbage to collect.
    """
    if (cursor := connection.info.pop(CURSOR, None)) is not None:
        return cursor
    driver: Any = connection.driver_connection
    # Binary results: psycopg reads times as text only with the DateStyle ISO.
    return driver.cursor(binary=True)


def cache_cursor(
    connection: PoolProxiedConnection, cursor: Any, values: Sequence[Any], rows: Rows
) -> None:
    """Cache the cursor unless it holds over 64 KiB of parameters or results, or several rows."""
    if len(rows) < 2:
        held = [*values, *rows[0]] if rows else values
        if sum(len(value) for value in held if type(value) is str) < MAX_CACHED_CHARACTERS:
            connection.info[CURSOR] = cursor
