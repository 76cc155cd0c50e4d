"""Engines with sound settings, for this library's own use and for hosts that want the same."""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from ..errors import InvalidValue

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

DEFAULT_URL = "sqlite:///executions.db"
BUSY_TIMEOUT = timedelta(seconds=30)


def create_sync_engine(url: str | URL) -> Engine:
    """Return an engine for a PostgreSQL (psycopg) or SQLite URL."""
    engine: Engine = _made(create_engine, url, sqlite="pysqlite")
    return configure_sqlite(engine) if engine.dialect.name == "sqlite" else engine


def create_async_engine(url: str | URL) -> "AsyncEngine":
    """Return an asyncio engine for a PostgreSQL (psycopg) or SQLite (aiosqlite) URL."""
    from sqlalchemy.ext import asyncio  # noqa: PLC0415 - only those who use it pay for it

    engine: AsyncEngine = _made(asyncio.create_async_engine, url, sqlite="aiosqlite")
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine.sync_engine)
    return engine


def configure_sqlite(engine: Engine, *, busy_timeout: timedelta = BUSY_TIMEOUT) -> Engine:
    """Give a SQLite engine what concurrent writers need: `configure_sqlite(create_engine(url))`.

    WAL, foreign keys, a busy timeout, and transactions that begin as writers: one that reads first
    and then writes gets "database is locked" at once, whatever the timeout. For an AsyncEngine pass
    its `sync_engine`. Call it before the first connection.

    Args:
        engine: an engine over SQLite.
        busy_timeout: how long a writer waits for another one.

    Returns:
        The same engine.
    """
    if engine.dialect.name != "sqlite":
        raise InvalidValue("engine", f"must be over SQLite, not {engine.dialect.name}")
    milliseconds = busy_timeout // timedelta(milliseconds=1)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:  # noqa: ARG001
        connection.isolation_level = None  # transactions begin where `begin` says, nowhere else
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {milliseconds}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if mode := connection.get_execution_options().get("sqlite_begin", "IMMEDIATE"):
            connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def single_statements(engine: Engine) -> Engine:
    """Return the engine as it is best used for one statement at a time, which commits itself.

    PostgreSQL: autocommit, so that BEGIN and COMMIT cost no round trips. SQLite: without BEGIN, on
    an engine that `configure_sqlite` knows; elsewhere a plain transaction (SQLAlchemy's AUTOCOMMIT
    would cost more there).

    Raises:
        InvalidValue: it is over another database.
    """
    match engine.dialect.name:
        case "postgresql":
            return engine.execution_options(isolation_level="AUTOCOMMIT")
        case "sqlite":
            return engine.execution_options(sqlite_begin=None)
    raise InvalidValue("engine", f"must be over PostgreSQL or SQLite, not {engine.dialect.name}")


def database_url(url: str | URL, sqlite: str = "pysqlite") -> URL:
    """Return the URL with the driver that this library is tested with, where it names none.

    Raises:
        InvalidValue: it is no URL of PostgreSQL or SQLite.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # From None: SQLAlchemy's own message may repeat the URL, password included.
        raise InvalidValue("url", f"is no database URL, such as {DEFAULT_URL}") from None
    match parsed.drivername:
        case "postgresql" | "postgres":
            return parsed.set(drivername="postgresql+psycopg")
        case "sqlite":
            return parsed.set(drivername=f"sqlite+{sqlite}")
    if parsed.get_backend_name() not in ("postgresql", "sqlite"):
        raise InvalidValue("url", f"must be of PostgreSQL or SQLite, not {parsed.drivername}")
    return parsed


def _made(create: Callable[[URL], Any], url: str | URL, sqlite: str) -> Any:
    parsed = database_url(url, sqlite)
    try:
        return create(parsed)
    except NoSuchModuleError:
        raise InvalidValue("url", f"names an unknown driver: {parsed.drivername}") from None
    except ModuleNotFoundError as error:
        raise InvalidValue(
            "url",
            f"needs the module {error.name}: pip install 'execution-core[postgresql,asyncio]'",
        ) from error
