"""The fast path for asyncio: the twin of `direct`."""

import asyncio
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, PoolProxiedConnection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

try:
    from sqlalchemy.util import await_
except ImportError:  # before SQLAlchemy 2.1
    from sqlalchemy.util import await_only as await_

from ...core.shield import finish_despite_cancellation
from ..statements.queries import Query
from .compiled import Values, bind_values, convert_rows
from .connection_cache import IdleConnections, cache_cursor, cached_cursor, is_idle
from .engine import OWN_POOL
from .executor import Executor


class AsyncExecutor(Executor):
    """`Executor` for the driver of an AsyncEngine: one greenlet for a whole call.

    What it inherits is for that greenlet; what ends in `_async` is for everybody.
    """

    _awaits = True

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine.sync_engine)
        self._async_engine = engine
        self._options = self._ordinary.get_execution_options()

    async def rows_async(self, query: Query) -> Sequence[Values]:
        """Run a query and return all its rows.

        Raises:
            Lost: the connection was lost, and it is unknown what the query has done.
            DBAPIError: what else the driver raised, as SQLAlchemy raises it.
        """
        ordinary = self._must_use_sqlalchemy()
        work = (
            self._rows_via_sqlalchemy_async(query) if ordinary else greenlet_spawn(self.rows, query)
        )
        # psycopg ends a cancelled statement. SQLite's driver has a thread that knows of nothing: it
        # would keep its connection, and the lock on the whole database, until garbage is collected.
        return await (finish_despite_cancellation(work) if self._is_sqlite else work)

    async def _rows_via_sqlalchemy_async(self, query: Query) -> Sequence[Values]:
        connection = await self._async_engine.connect()
        try:
            return await connection.run_sync(self._run_with_options, query)
        finally:  # half given back, its place in the pool would be lost
            await finish_despite_cancellation(connection.close())

    def _run_with_options(self, connection: Connection, query: Query) -> Sequence[Values]:
        # An engine with these options awaits while it connects, and may be interrupted there.
        with connection.execution_options(**self._options).begin():
            return self._run(connection, query)

    async def close_async(self) -> None:
        """Close all connections of the engine."""
        await greenlet_spawn(self.close)

    def _execute_on(
        self, pooled: PoolProxiedConnection, text: str, values: Values
    ) -> Sequence[Values]:
        drive = _aiosqlite if self._is_sqlite else _psycopg
        found: Sequence[Values] = await_(drive(pooled, text, values))
        return found


class AsyncCachingExecutor(AsyncExecutor):
    """`AsyncExecutor` for PostgreSQL on an engine that nobody else uses: it keeps its connections.

    A pool of SQLAlchemy's needs a greenlet, since it might have to wait, and that takes as long as
    the rest of a call; here only who connects has to.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._idle = IdleConnections()
        self._rooms: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._rooms = WeakKeyDictionary()

    async def rows_async(self, query: Query) -> Sequence[Values]:
        """Run a query and return all its rows, as soon as there is a connection to spare."""
        async with self._room():
            if self._must_use_sqlalchemy():
                return await self._rows_via_sqlalchemy_async(query)
            spelled = self._compile(query)
            return convert_rows(
                spelled, await self._execute_async(spelled.text, bind_values(spelled, query))
            )

    def close(self) -> None:
        """Close all connections of the engine."""
        self._idle.close()
        super().close()

    def _room(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()  # tests, and some hosts, have one after the other
        if loop not in self._rooms:
            self._rooms[loop] = asyncio.Semaphore(OWN_POOL)
        return self._rooms[loop]

    async def _execute_async(self, text: str, values: Values) -> Sequence[Values]:
        pooled = self._idle.pop()
        try:
            if pooled is None:
                pooled = await greenlet_spawn(self._take)
            found = await _psycopg(pooled, text, values)
        except self._errors as error:
            raise await greenlet_spawn(self._failed, error, pooled, text, values) from error
        except BaseException as error:
            if pooled is not None:
                await greenlet_spawn(_drop, pooled, error)
            raise
        self._idle.push(pooled)
        return found

    def _failed(
        self, error: Any, pooled: PoolProxiedConnection | None, text: str, values: Values
    ) -> Exception:
        wrapped = self._as_sqlalchemy(error, pooled, text, values)
        if pooled is not None:
            self._idle.push(pooled)
        return wrapped


def _drop(pooled: PoolProxiedConnection, error: BaseException) -> None:
    pooled.invalidate(error)
    pooled.close()


async def _psycopg(pooled: PoolProxiedConnection, text: str, values: Values) -> Sequence[Values]:
    driver: Any = pooled.driver_connection
    own = driver.autocommit
    if not own:
        await driver.set_autocommit(True)
    try:
        cursor = cached_cursor(pooled)
        await cursor.execute(text, values)
        found: Sequence[Values] = await cursor.fetchall()
    finally:
        if not own and is_idle(driver):
            await driver.set_autocommit(False)
    cache_cursor(pooled, cursor, values, found)
    return found


async def _aiosqlite(pooled: PoolProxiedConnection, text: str, values: Values) -> Sequence[Values]:
    driver: Any = pooled.driver_connection
    found: Sequence[Values] = await driver.execute_fetchall(text, values)
    if driver.in_transaction:
        await driver.commit()
    return found
