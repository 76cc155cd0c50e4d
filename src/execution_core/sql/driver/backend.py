"""The server process behind a connection of PostgreSQL, and the exception when it is lost."""

import sys
import time
from typing import Any, Final, NamedTuple

from sqlalchemy.exc import DBAPIError

from ...core.errors import InvalidValue

MICROSECONDS: Final = "CAST(extract(epoch FROM {}) * 1000000 AS bigint)"
SELECT_BACKEND: Final = (
    f"SELECT pg_backend_pid(), {MICROSECONDS.format('own.backend_start')},"  # noqa: S608 - constants
    f" {MICROSECONDS.format('pg_postmaster_start_time()')}"
    " FROM pg_stat_get_activity(pg_backend_pid()) AS own"
)


class Backend(NamedTuple):
    """A server process, as it was found when its connection was first used."""

    number: int
    started: int | None
    """In microseconds since 1970; None if the role may not see it."""
    server_started: int
    pooled: bool
    """Whether a pooler, such as PgBouncer, stands between: the next statement may be executed by
    another server process."""


class ConnectionBroken(Exception):  # noqa: N818 - it wraps SQLAlchemy's error
    """A connection broke during a statement, so it is unknown whether the statement committed.

    Args:
        error: SQLAlchemy's error.
        backend: the server process that was to execute the statement. None for SQLite, and if the
            connection broke before the statement was sent.
    """

    def __init__(self, error: DBAPIError, backend: Backend | None) -> None:
        super().__init__(error)
        self.error = error
        self.backend = backend


def boot_clock() -> float:
    """Return a monotonic time in seconds; on Linux it includes the time while suspended."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def check_encoding(driver: Any) -> None:
    """Refuse a connection of psycopg that cannot carry every text.

    Raises:
        InvalidValue: its client_encoding is not UTF8.
    """
    encoding = driver.info.parameter_status("client_encoding")
    if encoding.upper() not in ("UTF8", "UNICODE"):  # PgBouncer repeats what the client wrote
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
    style = driver.info.parameter_status("DateStyle")
    if not style.upper().startswith("ISO"):
        raise InvalidValue(
            "engine",
            f"has a connection with DateStyle {style!r}, whose times psycopg cannot read: use"
            " DateStyle ISO, for example ALTER ROLE ... SET DateStyle = 'ISO'",
        )
