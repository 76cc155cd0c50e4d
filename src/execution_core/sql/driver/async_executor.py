"""Execute single statements directly on a driver for asyncio: the async twin of `executor`."""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
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
from ..statements.queries import Query, Rows
from . import deadlines
from .compiled import compile_query
from .connection_cache import (
    cache_cursor,
    cached_cursor,
    check_committed,
    has_ended,
    is_idle,
    no_connection,
)
from .engine import OWN_POOL
from .executor import Executor
from .session import has_bounds, may_prepare


class AsyncExecutor(Executor):
    """`Executor` for the driver of an AsyncEngine: one greenlet runs a whole call.

    The inherited methods run inside that greenlet; callers use the methods ending in `_async`.
    """

    _supports_async_drivers = True

    def __init__(
        self, engine: AsyncEngine, call_timeout: timedelta | None = None, schema: str | None = None
    ) -> None:
        super().__init__(engine.sync_engine, call_timeout, schema)
        self._async_engine = engine
        self._options = self._sqlalchemy_engine.get_execution_options()

    async def rows_async(self, query: Query) -> Rows:
        """Execute a query and return all its rows, as `rows` does."""
        work = (
            self._rows_via_sqlalchemy_async(query)
            if self._must_use_sqlalchemy()
            else greenlet_spawn(self.rows, query)
        )
        # psycopg ends a cancelled statement itself. aiosqlite does not: its thread would keep the
        # connection, and the lock on the whole database, until the connection is collected.
        return await (finish_despite_cancellation(work) if self._is_sqlite else work)

    async def _rows_via_sqlalchemy_async(self, query: Query) -> Rows:
        with self._foreign_errors_wrapped():
            connection = await self._async_engine.connect()
        try:
            return await connection.run_sync(self._run_with_options, query)
        finally:  # an interrupted check-in would leak a slot of the pool
            await finish_despite_cancellation(connection.close())

    def _run_with_options(self, connection: Connection, query: Query) -> Rows:
        if self._is_asyncpg:
            driver: Any = connection.connection.driver_connection
            while driver.is_closed():  # the server has ended it meanwhile
                connection.invalidate()
                driver = connection.connection.driver_connection
        # Set here and not on the engine: an AsyncEngine with options awaits in `connect`, where a
        # cancellation would leak the connection.
        with connection.execution_options(**self._options).begin():
            return self._run(connection, query)

    async def close_async(self) -> None:
        """Close all connections of the engine."""
        await greenlet_spawn(self.close)

    def _execute_on(
        self, connection: PoolProxiedConnection, text: str, values: Sequence[Any]
    ) -> Rows:
        execute = _execute_on_aiosqlite if self._is_sqlite else _execute_on_psycopg
        rows: Rows = await_(execute(connection, text, values))
        return rows


class AsyncCachingExecutor(AsyncExecutor):
    """`AsyncExecutor` for a PostgreSQL engine that only this library uses: it keeps connections.

    SQLAlchemy's pool needs a greenlet even if it need not wait, and a greenlet takes as long as the
    rest of a call. Here only connecting needs one.
    """

    def _reset(self) -> None:
        super()._reset()
        self._semaphores = WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[asyncio.Semaphore, asyncio.Semaphore]
        ]()

    async def rows_async(self, query: Query) -> Rows:
        """Execute a query and return all its rows; wait while all connections are in use."""
        semaphore = self._semaphore(query.reserved)
        try:
            async with asyncio.timeout(self._patience) if semaphore.locked() else nullcontext():
                await semaphore.acquire()
        except TimeoutError:
            raise no_connection(self._patience) from None
        try:
            if self._must_use_sqlalchemy():
                return await self._rows_via_sqlalchemy_async(query)
            compiled = compile_query(query, self._dialect_type, self._schema)
            return compiled.convert(
                await self._execute_async(query, compiled.text, compiled.bind(query))
            )
        finally:
            semaphore.release()

    def _semaphore(self, reserved: bool = False) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()  # tests, and some hosts, use one loop after another
        if loop not in self._semaphores:
            self._semaphores[loop] = asyncio.Semaphore(OWN_POOL), asyncio.Semaphore(1)
        return self._semaphores[loop][reserved]

    async def _execute_async(self, query: Query, text: str, values: Sequence[Any]) -> Rows:
        connection, call = self._idle.pop(), None
        try:
            while connection is not None and has_ended(connection):
                await greenlet_spawn(self._drop, connection)
                connection = self._idle.pop()
            if connection is None:
                connection = await greenlet_spawn(self._checkout_live)
            call = self._begin_call(connection, query)
            if not has_bounds(connection, query.bounded):
                await greenlet_spawn(self._prepare_session, connection, query.bounded)
            rows = await _execute_on_psycopg(connection, text, values)
        except self._errors as error:
            raise await greenlet_spawn(
                self._wrap_and_checkin, error, connection, call, text, values
            ) from error
        except BaseException:
            if connection is not None:
                await greenlet_spawn(self._drop, connection)
            raise
        finally:
            deadlines.end(call)
        self._idle.push(connection)
        return rows

    def _wrap_and_checkin(
        self, error: Any, connection: PoolProxiedConnection | None, *details: Any
    ) -> Exception:
        wrapped = self._wrap_error(error, connection, *details)
        if connection is not None:
            self._idle.push(connection)
        return wrapped


async def _execute_on_psycopg(
    connection: PoolProxiedConnection, text: str, values: Sequence[Any]
) -> Rows:
    driver: Any = connection.driver_connection
    was_autocommit = driver.autocommit
    if not was_autocommit:
        await driver.set_autocommit(True)
    try:
        cursor = cached_cursor(connection)
        await cursor.execute(text, values, prepare=may_prepare(connection))
        rows: Rows = await cursor.fetchall()
        check_committed(driver)
    finally:
        if not was_autocommit and is_idle(driver):
            await driver.set_autocommit(False)
    cache_cursor(connection, cursor, values, rows)
    return rows


async def _execute_on_aiosqlite(
    connection: PoolProxiedConnection, text: str, values: Sequence[Any]
) -> Rows:
    driver: Any = connection.driver_connection
    rows: Rows = await driver.execute_fetchall(text, values)
    if driver.in_transaction:
        await driver.commit()
    return rows
