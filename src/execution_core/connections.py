"""Managers with an engine of their own: `connect`, and `connect_async` for asyncio."""

from typing import Any

from sqlalchemy import URL

from .sql.driver.engine import create_async_engine, create_sync_engine
from .sql.store import OwningStore
from .tracking.async_manager import AsyncExecutionManager
from .tracking.manager import ExecutionManager


def connect(
    url: str | URL, *, schema: str | None = None, **engine_options: Any
) -> ExecutionManager:
    """Return a manager with an engine of its own: `with connect("sqlite:///jobs.db") as manager:`.

    Args:
        url: the SQLAlchemy URL of a migrated database: PostgreSQL (psycopg) or SQLite.
        schema: the schema of PostgreSQL that contains the tables; by default the first one of the
            `search_path` that has them.
        engine_options: those of SQLAlchemy's `create_engine`, such as `connect_args`, and two
            timedeltas: `lock_timeout`, how long a call waits for a lock (30 seconds), and
            `call_timeout`, how long it may take as a whole and may wait for a connection (60
            seconds). In the URL both are numbers of seconds: `?lock_timeout=5`.

    Returns:
        A manager whose `close()` disposes of the engine. It connects at its first call.

    Raises:
        InvalidValue: the URL is not one of these, or its driver is not installed.
    """
    engine = create_sync_engine(url, exclusive=True, **engine_options)
    return ExecutionManager(OwningStore(engine, schema))


def connect_async(
    url: str | URL, *, schema: str | None = None, **engine_options: Any
) -> AsyncExecutionManager:
    """Return a manager for asyncio: `async with connect_async("sqlite:///jobs.db") as manager:`.

    Args:
        url: as for `connect`; SQLite uses the driver aiosqlite.
        schema: as for `connect`.
        engine_options: as for `connect`.

    Returns:
        A manager whose `close()` disposes of the engine. It connects at its first call.

    Raises:
        InvalidValue: the URL is not one of these, or its driver is not installed.
    """
    from .sql.async_store import AsyncOwningStore  # noqa: PLC0415 - slow to import

    engine = create_async_engine(url, exclusive=True, **engine_options)
    return AsyncExecutionManager(AsyncOwningStore(engine, schema))
