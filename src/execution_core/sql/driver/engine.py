"""Create engines with the settings that this library needs, and configure SQLite engines."""

import os
import socket
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event

from ...core import validation
from ...core.errors import InvalidValue
from . import deadlines
from .url import ASYNCPG, PSYCOPG, parse_url, sqlite_file

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

AnyEngine = TypeVar("AnyEngine", Engine, "AsyncEngine")
BEHIND_POOLER: Final = "behind_pooler"
"""The execution option and the parameter of a URL for poolers that look like a server."""
BOUNDS: Final = "execution_core_bounds"
"""The execution option with the `Bounds` of the calls."""
OWN_POOL: Final = 15
"""Maximum number of connections of the library's own engine; all of them are kept open."""
# The executor limits connections itself; QueuePool leaks a slot if a signal handler raises in it.
_UNBOUNDED: Final = {"pool_size": OWN_POOL, "max_overflow": -1}
WAL_SIZE_LIMIT: Final = 64 * 2**20
BUSY_TIMEOUT: Final = timedelta(seconds=30)
CALL_TIMEOUT: Final = timedelta(seconds=60)
MIGRATION_LOCK_TIMEOUT: Final = timedelta(seconds=10)
_MILLISECOND: Final = timedelta(milliseconds=1)
MAX_TIMEOUT: Final = validation.MAX_INTEGER * _MILLISECOND
"""The longest one that PostgreSQL and SQLite accept: 24 days."""
_FIRST_USE: Final = "execution_core.first_use"
GRACE_SECONDS: Final = 5
"""How long the server may take to answer after its own timeout."""
NETWORK: Final = {
    # libpq's parameters, in seconds; the last one is in milliseconds.
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class Bounds(NamedTuple):
    """The timeouts of a session of PostgreSQL, in milliseconds.

    The second one also limits how long a call waits for a connection, on both databases.
    """

    lock_timeout: int
    statement_timeout: int


def create_sync_engine(
    url: str | URL, *, exclusive: bool = False, bounded: bool = False, **options: Any
) -> Engine:
    """Return an engine for a PostgreSQL (psycopg) or SQLite URL.

    With `exclusive`, only this library uses the engine, and only for single statements. With
    `bounded`, a store on it has time limits, as with `exclusive`. `options` are those of
    SQLAlchemy's `create_engine`.

    Raises:
        InvalidValue: the URL is not one of these, or its driver is not installed.
    """
    parsed = parse_url(url)
    if parsed.drivername == "postgresql+psycopg_async":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return _create(create_engine, parsed, options, exclusive=exclusive, bounded=bounded)


def create_async_engine(
    url: str | URL, *, exclusive: bool = False, **options: Any
) -> "AsyncEngine":
    """Return an AsyncEngine for a PostgreSQL (psycopg) or SQLite (aiosqlite) URL."""
    from sqlalchemy.ext import asyncio  # noqa: PLC0415 - slow to import, only needed here

    parsed = parse_url(url, sqlite="aiosqlite")
    return _create(asyncio.create_async_engine, parsed, options, exclusive=exclusive)


def _create(
    create: Callable[..., AnyEngine],
    url: URL,
    options: dict[str, Any],
    *,
    exclusive: bool,
    bounded: bool = False,
) -> AnyEngine:
    postgresql = url.get_backend_name() == "postgresql"
    # Payloads are not for logs.
    settings: dict[str, Any] = {"hide_parameters": True, "execution_options": {}}
    lock_timeout = _timeout("lock_timeout", url, options, BUSY_TIMEOUT)
    call_timeout = _timeout("call_timeout", url, options, CALL_TIMEOUT)
    url = url.difference_update_query(["lock_timeout", "call_timeout"])
    if postgresql:
        url, read = _read_parameters(url)
        settings |= read
    bounds = Bounds(lock_timeout // _MILLISECOND, call_timeout // _MILLISECOND)
    if exclusive or bounded:
        settings["execution_options"] |= {BOUNDS: bounds}
    if exclusive:
        settings |= _exclusive_settings(url, options, bounds, sync=create is create_engine)
    for name in ("connect_args", "execution_options"):
        settings[name] = settings.get(name, {}) | options.pop(name, {})
    try:
        engine = create(url, **settings | options)
    except ModuleNotFoundError as error:
        extra = "postgresql" if postgresql else "asyncio"
        raise InvalidValue(
            "url", f"needs the module {error.name}: pip install 'execution-core[{extra}]'"
        ) from error
    if not postgresql:
        return configure_sqlite(engine, busy_timeout=lock_timeout)
    sync_engine: Any = getattr(engine, "sync_engine", engine)
    event.listen(sync_engine, "connect", _set_date_style)
    _limit_first_use(sync_engine, call_timeout.total_seconds() + GRACE_SECONDS)
    return engine


def _exclusive_settings(
    url: URL, options: dict[str, Any], bounds: Bounds, *, sync: bool
) -> dict[str, Any]:
    """Return the settings of an engine that only this library uses, for single statements."""
    if "isolation_level" in options:
        raise InvalidValue(
            "isolation_level", "cannot be set: each call is one statement, which commits itself"
        )
    settings: dict[str, Any] = {"pool_reset_on_return": None}  # no transaction is left open
    postgresql = url.get_backend_name() == "postgresql"
    if postgresql:
        settings["isolation_level"] = "AUTOCOMMIT"
    if "poolclass" in options:
        return settings  # it may take no other arguments
    if postgresql or (sync and sqlite_file(url)):
        return settings | _UNBOUNDED
    if sqlite_file(url):
        settings["pool_timeout"] = bounds.statement_timeout / 1000
    return settings


def _limit_first_use(engine: Engine, seconds: float) -> None:
    """Limit what SQLAlchemy asks a new connection.

    A pooler accepts it for a frozen server, and while all of its own connections are in use.
    """

    @event.listens_for(engine, "connect", insert=True)
    def begin(connection: Any, record: Any) -> None:
        driver = getattr(connection, "driver_connection", connection)
        record.info[_FIRST_USE] = deadlines.begin(driver, seconds)

    @event.listens_for(engine, "connect")
    def end(_: Any, record: Any) -> None:
        deadlines.end(record.info.pop(_FIRST_USE))


def _read_parameters(url: URL) -> tuple[URL, dict[str, Any]]:
    """Return a URL without the parameters that psycopg cannot read as text, and their settings."""
    arguments: dict[str, Any] = {"client_encoding": "utf8"}
    arguments |= {name: value for name, value in NETWORK.items() if name not in url.query}
    if "PGCONNECT_TIMEOUT" in os.environ:
        arguments.pop("connect_timeout", None)
    if not hasattr(socket, "TCP_USER_TIMEOUT"):  # libpq refuses it there
        arguments.pop("tcp_user_timeout", None)
    threshold, pooler = (url.query.get(name) for name in ("prepare_threshold", BEHIND_POOLER))
    if pooler not in (None, "true", "false"):
        raise InvalidValue("url", f"has {BEHIND_POOLER}={pooler}: use true or false")
    if threshold is not None:
        try:
            number = None if threshold == "none" else int(str(threshold))
        except ValueError:
            raise InvalidValue(
                "url",
                f"has prepare_threshold={threshold}: use a number, or none to prepare nothing",
            ) from None
        arguments["prepare_threshold"] = number
    url = url.difference_update_query(["prepare_threshold", "client_encoding", BEHIND_POOLER])
    options = {BEHIND_POOLER: True} if pooler == "true" else {}
    return url, {"connect_args": arguments, "execution_options": options}


def _timeout(name: str, url: URL, options: dict[str, Any], default: timedelta) -> timedelta:
    """Return a timeout of the caller: a timedelta, or seconds in the URL."""
    given = url.query.get(name)
    if name in options:
        timeout = validation.duration(name, options.pop(name))
    elif given is None:
        timeout = default
    else:
        try:
            timeout = validation.duration(name, timedelta(seconds=float(str(given))))
        except (ValueError, OverflowError):
            raise InvalidValue("url", f"has {name}={given}: use a number of seconds") from None
    return min(timeout, MAX_TIMEOUT)


def has_iso_dates(driver: Any) -> bool:
    """Return whether the DateStyle of a connection of psycopg is ISO."""
    return bool(driver.info.parameter_status("DateStyle").upper().startswith("ISO"))


def _set_date_style(connection: Any, record: Any) -> None:  # noqa: ARG001
    """Choose the only DateStyle whose times psycopg reads as text; a pooler keeps it per client."""
    if not has_iso_dates(connection):
        cursor = connection.cursor()
        cursor.execute("SET DateStyle = 'ISO'")
        cursor.close()
        connection.commit()


def configure_sqlite(engine: AnyEngine, *, busy_timeout: timedelta = BUSY_TIMEOUT) -> AnyEngine:
    """Configure a SQLite engine for concurrent writers: `configure_sqlite(create_engine(url))`.

    It sets WAL, foreign keys and a busy timeout, and lets transactions begin with BEGIN IMMEDIATE.
    A transaction that reads first and then writes would fail at once with "database is locked",
    however long the timeout. Transactions that only read need not wait for writers:
    `engine.execution_options(sqlite_begin="DEFERRED")`.

    Args:
        engine: an Engine or AsyncEngine over SQLite that has not connected yet.
        busy_timeout: how long a writer waits for another writer.

    Returns:
        The same engine.

    Raises:
        InvalidValue: the engine is for another database, or the timeout is not positive.
    """
    sync_engine: Any = getattr(engine, "sync_engine", engine)
    if engine.dialect.name != "sqlite":
        raise InvalidValue("engine", f"must be over SQLite, not {engine.dialect.name}")
    timeout = validation.duration("busy_timeout", busy_timeout)
    milliseconds = min(timeout, MAX_TIMEOUT) // _MILLISECOND
    if event.contains(sync_engine, "begin", begin_sqlite):
        return engine
    event.listen(sync_engine, "begin", begin_sqlite)

    @event.listens_for(sync_engine, "connect")
    def prepare(connection: Any, record: Any) -> None:  # noqa: ARG001
        connection.isolation_level = None  # only `begin_sqlite` begins transactions
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {milliseconds}")
        _enter_wal(cursor, timeout=milliseconds / 1000)
        cursor.execute("PRAGMA foreign_keys = ON")
        # Beside a long reader the WAL grows, and would keep its size for ever.
        cursor.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT}")
        cursor.close()

    return engine


def _enter_wal(cursor: Any, timeout: float) -> None:
    """Switch to WAL, repeatedly: switching a new file to WAL ignores the busy timeout."""
    limit = time.monotonic() + timeout
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > limit:
                raise
            time.sleep(0.01)
        else:
            return


def begin_sqlite(connection: Connection) -> None:
    """Begin a transaction: IMMEDIATE, or as the engine's option `sqlite_begin` says."""
    if mode := connection.get_execution_options().get("sqlite_begin", "IMMEDIATE"):
        connection.exec_driver_sql(f"BEGIN {mode}")


def for_single_statements(engine: Engine) -> Engine:
    """Return the engine with options for single statements, each of which commits itself.

    PostgreSQL uses autocommit, so that BEGIN and COMMIT cost no round trips. SQLite omits BEGIN if
    `configure_sqlite` was called, and uses a plain transaction otherwise: SQLAlchemy's AUTOCOMMIT
    costs more there.

    Raises:
        InvalidValue: the engine is for another database or driver.
    """
    if engine.dialect.name == "sqlite":
        return engine.execution_options(sqlite_begin=None)
    if engine.dialect.name == "postgresql" and engine.dialect.driver in (*PSYCOPG, ASYNCPG):
        return engine.execution_options(isolation_level="AUTOCOMMIT")
    raise InvalidValue(
        "engine",
        f"must be over SQLite, or PostgreSQL with psycopg or asyncpg, not {engine.url.drivername}",
    )
