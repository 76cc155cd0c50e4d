"""The store for PostgreSQL and SQLite, for asyncio. Its methods are in `store_methods`."""

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, Self, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session

from ..core import validation
from ..core.errors import InvalidValue
from ..core.models import Execution, LogEntry
from ..core.steps import run_async, with_coroutines
from .driver.async_executor import AsyncCachingExecutor, AsyncExecutor
from .driver.engine import CALL_TIMEOUT
from .driver.session import ConnectionBroken
from .driver.url import check_schema
from .recovery import verify_commit
from .recovery.verify_commit import Verifier
from .statements.queries import Query
from .store import execute_in_transaction
from .store_methods import Clock, Convert, StoreMethods

T = TypeVar("T")
Awaited = Coroutine[Any, Any, T]


@with_coroutines("current_transaction")
class AsyncSqlExecutionStore(
    StoreMethods[
        Awaited[Execution | None],
        Awaited[list[Execution]],
        Awaited[LogEntry | None],
        Awaited[list[LogEntry]],
        Awaited[bool],
        Awaited[int],
    ]
):
    """`SqlExecutionStore` for asyncio: `AsyncExecutionManager(AsyncSqlExecutionStore(engine))`.

    Each call is one statement that commits itself. A cancelled call first ends its statement, or
    waits for it. With in-memory SQLite, all tasks share one connection, which needs
    `configure_sqlite`.

    Args:
        engine: the host's AsyncEngine over PostgreSQL (psycopg or asyncpg) or SQLite. The store
            never disposes of it.
        clock: returns the time as an aware datetime, for tests; by default the database's clock.
            It must advance: the history trigger detects manual UPDATEs by an unchanged
            `updated_at`.
        call_timeout: how long a call may take on PostgreSQL. A call that takes longer loses its
            connection.
        schema: the schema of PostgreSQL that contains the tables; by default the first one of the
            `search_path` that has them.

    Raises:
        InvalidValue: the engine is not an AsyncEngine, or is for another database.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        clock: Clock | None = None,
        call_timeout: timedelta = CALL_TIMEOUT,
        schema: str | None = None,
    ) -> None:
        if not isinstance(engine, AsyncEngine):
            raise InvalidValue("engine", f"must be an AsyncEngine, not {type(engine).__name__}")
        self._schema = check_schema(schema, engine.dialect.name)
        self._locks_rows = engine.dialect.name == "postgresql"
        timeout = validation.duration("call_timeout", call_timeout)
        self._bind = AsyncExecutor(engine, timeout, self._schema)
        self._clock = clock

    def within(
        self, transaction: AsyncConnection | AsyncSession | async_scoped_session[Any]
    ) -> Self:
        """Return a store that runs in the caller's transaction, and never commits it.

        Example: `store.within(session)`
        """
        types = (AsyncConnection, AsyncSession, async_scoped_session)
        return self._within(transaction, types, "an AsyncConnection or an AsyncSession")

    async def _ask(self, query: Query, convert: Convert, verify: Verifier | None = None) -> Any:
        return convert(await self._rows(query, verify))

    async def _rows(self, query: Query, verify: Verifier | None) -> Any:
        match self._bind:
            case AsyncExecutor():
                try:
                    return await self._bind.rows_async(query)
                except (ConnectionBroken, SQLAlchemyError) as error:
                    steps = verify_commit.resolve_outcome(error, query, verify)
                    return await run_async(steps, self._bind.rows_async)
            case AsyncConnection():
                connection = self._bind
            case _:
                connection = await self._bind.connection()
        return await connection.run_sync(execute_in_transaction, query, self._schema)


class AsyncOwningStore(AsyncSqlExecutionStore):
    """A store with an engine of its own, which `close` disposes of."""

    def __init__(self, engine: AsyncEngine, schema: str | None = None) -> None:
        super().__init__(engine, schema=schema)
        if engine.dialect.name == "postgresql":
            self._bind = AsyncCachingExecutor(engine, schema=self._schema)

    async def close(self) -> None:
        """Close all connections."""
        if isinstance(self._bind, AsyncExecutor):  # not for a store of `within`
            await self._bind.close_async()
