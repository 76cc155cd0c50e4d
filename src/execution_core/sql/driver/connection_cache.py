"""Connections that are kept out of their pool between calls, and who may use one."""

import sqlite3
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final
from weakref import ref

from sqlalchemy import PoolProxiedConnection

from .compiled import Values

CURSOR: Final = "execution_core.cursor"
POLL_SECONDS: Final = 0.2
"""For how many seconds a queue waits at a stretch: meanwhile it looks for no signals."""


class IdleConnections:
    """Connections that were checked out of a pool and are kept; any thread may take one."""

    def __init__(self) -> None:
        self._connections: list[PoolProxiedConnection] = []

    def pop(self) -> PoolProxiedConnection | None:
        """Return one, or None."""
        try:
            return self._connections.pop()
        except IndexError:
            return None

    def push(self, pooled: PoolProxiedConnection) -> None:
        """Keep one; or drop it when it was lost, and the others, which most likely are as well."""
        if pooled.is_valid:
            if is_idle(pooled.driver_connection):
                self._connections.append(pooled)
                return
            pooled.invalidate()
        pooled.close()
        self.close()

    def close(self) -> None:
        """Close them all."""
        while pooled := self.pop():
            pooled.invalidate()
            pooled.close()


class Permit:
    """The right to use a connection. Another takes the place of one that is lost."""

    def __init__(self, home: "ref[Permits]") -> None:
        self._home = home

    def __del__(self) -> None:
        if (queue := self._home()) is not None:
            queue.put(Permit(self._home))


Permits = SimpleQueue[Permit]
"""Permits that nobody has. One is given back by `put` itself: no signal comes within that.

A semaphore would count. But the handler of a signal may raise between any two steps, and no
`finally` is sure to be reached.
"""


def new_permits(number: int) -> Permits:
    """Return so many, for any thread to take."""
    queue: Permits = SimpleQueue()
    home = ref(queue)
    for _ in range(number):
        queue.put(Permit(home))
    return queue


def acquire(permits: Permits) -> Permit:
    """Wait for a permit, and take it."""
    while True:
        try:
            return permits.get(timeout=POLL_SECONDS)
        except Empty:
            continue


def is_idle(driver: Any) -> bool:
    """Tell whether a connection of psycopg or sqlite3 is not, interrupted, in the middle of it."""
    if isinstance(driver, sqlite3.Connection):
        return not driver.in_transaction
    return not driver.pgconn.transaction_status  # 0 is idle, and what is closed is unknown


def cached_cursor(pooled: PoolProxiedConnection) -> Any:
    """Return psycopg's cursor of the last call on this connection, or a new one.

    A new one looks up anew how to read each column, and is garbage for the collector afterwards.
    """
    driver: Any = pooled.driver_connection
    return pooled.info.pop(CURSOR, None) or driver.cursor()


def cache_cursor(
    pooled: PoolProxiedConnection, cursor: Any, values: Values, found: Sequence[Values]
) -> None:
    """Keep a cursor for the next call, unless it would keep much that it sent or read as well."""
    if len(found) < 2:
        moved = [*values, *found[0]] if found else values
        if sum(len(value) for value in moved if type(value) is str) < 2**16:
            pooled.info[CURSOR] = cursor
