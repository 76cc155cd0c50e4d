"""Managers over engines of their own: `connect`, and `connect_async` for asyncio."""

from sqlalchemy import URL

from .sql.driver.engine import create_async_engine, create_sync_engine
from .sql.store import OwningStore
from .tracking.async_manager import AsyncExecutionManager
from .tracking.manager import ExecutionManager


def connect(url: str | URL) -> ExecutionManager:
    """Return a manager over an engine of its own: `with connect("sqlite:///jobs.db") as manager:`.

    Args:
        url: a SQLAlchemy URL for PostgreSQL (psycopg) or SQLite, whose schema is migrated.

    Returns:
        A manager whose `close()` disposes of the engine; it connects with its first call.

    Raises:
        InvalidValue: it is no such URL.
    """
    return ExecutionManager(OwningStore(create_sync_engine(url, exclusive=True)))


def connect_async(url: str | URL) -> AsyncExecutionManager:
    """Return a manager for asyncio: `async with connect_async("sqlite:///jobs.db") as manager:`.

    As `connect`; SQLite is driven by aiosqlite.
    """
    from .sql.async_store import AsyncOwningStore  # noqa: PLC0415 - slow, and not for all

    return AsyncExecutionManager(AsyncOwningStore(create_async_engine(url, exclusive=True)))
