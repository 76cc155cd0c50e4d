"""`connect` and `connect_async`: a manager over an engine of its own."""

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from ..async_manager import AsyncExecutionManager
from ..manager import ExecutionManager
from .async_direct import AsyncDirect, OwnAsyncDirect
from .async_store import AsyncSqlExecutionStore
from .direct import Direct, OwnDirect
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
    return ExecutionManager(_OwningStore(create_sync_engine(url, own=True)))


def connect_async(url: str | URL) -> AsyncExecutionManager:
    """Return a manager for asyncio: `async with connect_async("sqlite:///jobs.db") as manager:`.

    As `connect`; SQLite is driven by aiosqlite.
    """
    return AsyncExecutionManager(_AsyncOwningStore(create_async_engine(url, own=True)))


class _OwningStore(SqlExecutionStore):
    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        if engine.dialect.name == "postgresql":
            self._bind = OwnDirect(engine)

    def close(self) -> None:
        if isinstance(self._bind, Direct):  # a joined store holds the caller's transaction
            self._bind.close()


class _AsyncOwningStore(AsyncSqlExecutionStore):
    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        if engine.dialect.name == "postgresql":
            self._bind = OwnAsyncDirect(engine.sync_engine)

    async def close(self) -> None:
        if isinstance(self._bind, AsyncDirect):
            await self._bind.close_async()
