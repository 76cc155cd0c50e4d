"""`connect` and `connect_async`: a manager over an engine of its own."""

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from ..async_manager import AsyncExecutionManager
from ..manager import ExecutionManager
from .async_store import AsyncSqlExecutionStore
from .engines import create_async_engine, create_sync_engine
from .store import SqlExecutionStore


def connect(url: str | URL) -> ExecutionManager:
    """Return a manager over an engine of its own: `with connect("sqlite:///jobs.db") as manager:`.

    Args:
        url: a SQLAlchemy URL for PostgreSQL (psycopg) or SQLite, whose schema is migrated.

    Returns:
        A manager whose `close()` disposes of the engine; it connects with its first call.

    Raises:
        InvalidValue: it is no such URL.
    """
    return ExecutionManager(_OwningStore(create_sync_engine(url)))


def connect_async(url: str | URL) -> AsyncExecutionManager:
    """Return a manager for asyncio: `async with connect_async("sqlite:///jobs.db") as manager:`.

    As `connect`; SQLite is driven by aiosqlite.
    """
    return AsyncExecutionManager(_AsyncOwningStore(create_async_engine(url)))


class _OwningStore(SqlExecutionStore):
    def close(self) -> None:
        if isinstance(self._bind, Engine):  # a joined store holds the caller's transaction
            self._bind.dispose()


class _AsyncOwningStore(AsyncSqlExecutionStore):
    async def close(self) -> None:
        if isinstance(self._bind, AsyncEngine):
            await self._bind.dispose()
