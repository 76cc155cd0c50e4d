"""`connect_async`: a manager for asyncio over an engine of its own; the twin of `connect`."""

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from ..async_manager import AsyncExecutionManager
from .async_direct import AsyncDirect, OwnAsyncDirect
from .async_store import AsyncSqlExecutionStore
from .engines import create_async_engine


def connect_async(url: str | URL) -> AsyncExecutionManager:
    """Return a manager for asyncio: `async with connect_async("sqlite:///jobs.db") as manager:`.

    As `connect`; SQLite is driven by aiosqlite.
    """
    return AsyncExecutionManager(_AsyncOwningStore(create_async_engine(url, own=True)))


class _AsyncOwningStore(AsyncSqlExecutionStore):
    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        if engine.dialect.name == "postgresql":
            self._bind = OwnAsyncDirect(engine)

    async def close(self) -> None:
        if isinstance(self._bind, AsyncDirect):
            await self._bind.close_async()
