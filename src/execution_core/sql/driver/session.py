"""What is known of a session of PostgreSQL: its server process, its settings, its timeouts."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from ...core.errors import InvalidValue
from .connection_cache import is_idle
from .engine import Bounds, has_iso_dates

MICROSECONDS: Final = "CAST(extract(epoch FROM {}) * 1000000 AS bigint)"
SELECT_BACKEND: Final = (
    f"SELECT pg_backend_pid(), {MICROSECONDS.format('own.backend_start')},"  # noqa: S608 - constants
    f" {MICROSECONDS.format('pg_postmaster_start_time()')}"
    " FROM pg_stat_get_activity(pg_backend_pid()) AS own"
)


BACKEND: Final = "execution_core.backend"
"""Where a connection's `info` holds its `Backend`."""
SET_BOUNDS: Final = (
    "SELECT CASE current_setting('lock_timeout')"
    " WHEN '0' THEN set_config('lock_timeout', CAST(%s AS text), false) END,"
    " CASE current_setting('statement_timeout')"
    " WHEN '0' THEN set_config('statement_timeout', CAST(%s AS text), false) END"
)
_BOUNDED: Final = "execution_core.bounded"
_OWN_TIMEOUT: Final = "execution_core.own_timeout"
"""Whether the statement_timeout is the library's, not one of the role or the URL."""


class Backend(NamedTuple):
    """A server process, as it was found when its connection was first used."""

    number: int
    started: int | None
    """In microseconds since 1970; None if the role may not see it."""
    server_started: int
    pooled: bool
    """Whether a pooler, such as PgBouncer, stands between: the next statement may be executed by
    another server process."""


UNIDENTIFIED: Final = Backend(0, None, 0, pooled=False)
"""The server process of a connection of asyncpg: the library does not ask for it."""


class ConnectionBroken(Exception):  # noqa: N818 - it wraps SQLAlchemy's error
    """A connection broke during a statement, so it is unknown whether the statement committed.

    Args:
        error: SQLAlchemy's error.
        backend: the server process that was to execute the statement. None for SQLite, and if the
            connection broke before the statement was sent.
        is_late: whether it broke because the call had taken too long.
    """

    def __init__(self, error: DBAPIError, backend: Backend | None, *, is_late: bool) -> None:
        super().__init__(error)
        self.error = error
        self.backend = backend
        self.is_late = is_late


def boot_clock() -> float:
    """Return a monotonic time in seconds; on Linux it includes the time while suspended."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def is_utf8(driver: Any) -> bool:
    """Return whether the client_encoding of a connection of psycopg is UTF8."""
    # PgBouncer repeats what the client wrote.
    return driver.info.parameter_status("client_encoding").upper() in ("UTF8", "UNICODE")


def check_encoding(driver: Any) -> None:
    """Refuse a connection of psycopg that cannot carry every text.

    Raises:
        InvalidValue: its client_encoding is not UTF8.
    """
    if not is_utf8(driver):
        encoding = driver.info.parameter_status("client_encoding")
        raise InvalidValue(
            "engine",
            f"has a connection with client_encoding {encoding}, which cannot carry every text: use"
            " create_engine(url, client_encoding='utf8')",
        )


def check_date_style(driver: Any) -> None:
    """Refuse a connection of psycopg whose times it cannot read as text.

    Raises:
        InvalidValue: its DateStyle is not ISO.
    """
    if not has_iso_dates(driver):
        style = driver.info.parameter_status("DateStyle")
        raise InvalidValue(
            "engine",
            f"has a connection with DateStyle {style!r}, whose times psycopg cannot read: use"
            " DateStyle ISO, for example ALTER ROLE ... SET DateStyle = 'ISO'",
        )


def ends_session(error: Any) -> bool:
    """Return whether an error of asyncpg means that the session ends or has ended.

    asyncpg may raise it before it sees that the server has closed the connection.
    """
    return (getattr(error, "sqlstate", None) or "").startswith(("08", "57P"))


def query_backend(connection: PoolProxiedConnection, behind_pooler: bool) -> Backend:
    """Ask a connection for its server process; a broken one can no longer say it."""
    driver: Any = connection.driver_connection
    check_encoding(driver)
    with _cursor(connection) as cursor:
        cursor.execute(SELECT_BACKEND)
        number, started, server_started = cursor.fetchone()
    # A pooler cannot know at the login which server process will execute the statements.
    pooled = behind_pooler or number != driver.info.backend_pid
    return Backend(number, started, server_started, pooled)


@contextmanager
def _cursor(connection: PoolProxiedConnection) -> Iterator[Any]:
    """Yield a cursor whose statements begin no transaction."""
    adapted: Any = connection.dbapi_connection  # waits for a driver for asyncio
    was_autocommit = adapted.autocommit
    adapted.autocommit = True
    try:
        cursor = adapted.cursor()
        yield cursor
        cursor.close()
    finally:
        if not was_autocommit and is_idle(connection.driver_connection):
            adapted.autocommit = False


def backend_of(connection: PoolProxiedConnection) -> Backend | None:
    """Return the server process of a connection, or None if it is not known."""
    return connection.info.get(BACKEND)


def may_prepare(connection: PoolProxiedConnection) -> bool | None:
    """Return what psycopg's `execute` expects: None to prepare what is often executed, or False.

    Behind a pooler, the prepared statements of two clients have the same names and are confused.
    """
    return False if connection.info[BACKEND].pooled else None


def has_bounds(connection: PoolProxiedConnection, bounded: bool) -> bool:
    """Return whether the session has been prepared for such a statement."""
    return connection.info.get(_BOUNDED) is bounded


def set_bounds(connection: PoolProxiedConnection, bounds: Bounds | None, bounded: bool) -> None:
    """Set the timeouts of the session that the role or the URL has not set.

    Not through a pooler, which would give the settings to other clients.
    """
    info = connection.info
    if has_bounds(connection, bounded):
        return
    if bounds is not None and not info[BACKEND].pooled:
        with _cursor(connection) as cursor:
            if _BOUNDED not in info:
                cursor.execute(SET_BOUNDS, bounds)
                info[_OWN_TIMEOUT] = cursor.fetchone()[1] is not None
                info[_BOUNDED] = True
            if info[_OWN_TIMEOUT] and info[_BOUNDED] is not bounded:
                timeout = bounds.statement_timeout if bounded else 0
                cursor.execute(f"SET statement_timeout = {timeout}")
    info[_BOUNDED] = bounded
