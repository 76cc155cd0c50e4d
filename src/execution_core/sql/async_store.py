"""The store for PostgreSQL and SQLite, for asyncio: the async twin of `store`."""

import builtins
from collections.abc import Sequence
from copy import copy
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import Any, Self

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
)

from ..core import validation
from ..core.creation import NewExecution
from ..core.errors import InvalidValue
from ..core.log_lines import NewLogEntry
from ..core.models import Execution, ExecutionStatus, LogEntry
from ..core.selections import BatchTransition, Page, PruneRequest
from ..core.store import Returning
from ..core.transitions import Transition
from .driver.async_executor import AsyncCachingExecutor, AsyncExecutor
from .driver.broken import ConnectionBroken, boot_clock
from .driver.compiled import Values
from .recovery import verify_commit
from .recovery.verify_commit import Rows, VerificationSteps, Verifier
from .schema.tables import executions
from .statements import queries
from .statements.queries import Query
from .statements.rows import to_execution, to_log_entry
from .store import Clock, execute_in_transaction, read_clock


class AsyncSqlExecutionStore:
    """`SqlExecutionStore` for asyncio: `AsyncExecutionManager(AsyncSqlExecutionStore(engine))`.

    Each call is one statement that commits itself. A cancelled call first ends its statement, or
    waits for it. With in-memory SQLite, all tasks share one connection, which needs
    `configure_sqlite`.

    Args:
        engine: the host's AsyncEngine over PostgreSQL or SQLite. The store never disposes of it.
        clock: returns the time as an aware datetime, for tests; by default the database's clock.
            It must advance: the history trigger detects manual UPDATEs by an unchanged
            `updated_at`.

    Raises:
        InvalidValue: the engine is not an AsyncEngine, or is for another database.
    """

    def __init__(self, engine: AsyncEngine, *, clock: Clock | None = None) -> None:
        if not isinstance(engine, AsyncEngine):
            raise InvalidValue("engine", f"must be an AsyncEngine, not {type(engine).__name__}")
        self._bind: AsyncExecutor | AsyncConnection | AsyncSession | async_scoped_session[Any]
        self._bind = AsyncExecutor(engine)
        self._clock = clock

    @property
    def shares_connection(self) -> bool:
        """Whether all callers, or all of one thread, share one connection: in-memory SQLite."""
        return isinstance(self._bind, AsyncExecutor) and self._bind.shares_connection

    def within(
        self, transaction: AsyncConnection | AsyncSession | async_scoped_session[Any]
    ) -> Self:
        """Return a store that runs in the caller's transaction, and never commits it.

        Example: `store.within(session)`
        """
        if not isinstance(transaction, AsyncConnection | AsyncSession | async_scoped_session):
            raise InvalidValue(
                "transaction",
                f"must be an AsyncConnection or an AsyncSession, not {type(transaction).__name__}",
            )
        store = copy(self)
        store._bind = transaction  # noqa: SLF001 - of this class
        return store

    async def create(self, new: NewExecution) -> Execution | None:
        """Insert an execution; return None if its key is held or its parent missing."""
        query = queries.create(new, self._now())
        return await self._one(query, partial(verify_commit.verify_create, new=new))

    async def find_by_id(self, id: str) -> Execution | None:
        """Select the execution with this id, or return None."""
        return await self._one(queries.find(executions.c.id, id))

    async def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Select the execution that holds this key, or return None."""
        return await self._one(queries.find(executions.c.idempotency_key, key))

    async def update(
        self, id: str, transition: Transition, *, returning: Returning = "execution"
    ) -> Any:  # Execution | ExecutionStatus | None
        """Apply a transition in one conditional UPDATE; return None if it does not apply."""
        token, whole = self._token(), returning == "execution"
        query = queries.update(id, transition, token, self._now(), whole=whole)
        verify = partial(
            verify_commit.verify_update,
            id=id,
            transition=transition,
            token=token,
            whole=whole,
            began=boot_clock(),
        )
        rows = await self._rows(query, verify)
        if not rows:
            return None
        return to_execution(rows[0]) if whole else ExecutionStatus(rows[0][0])

    async def update_many(self, batch: BatchTransition) -> builtins.list[Execution]:
        """Apply a transition to many executions in one conditional UPDATE."""
        token = self._token()
        query = queries.update_many(batch, token, self._now())
        rows = await self._rows(query, partial(verify_commit.verify_batch, token=token))
        return sorted(map(to_execution, rows), key=attrgetter("id"))

    async def delete(self, id: str) -> bool:
        """Delete an execution; return whether it existed."""
        return bool(
            await self._rows(queries.delete(id), partial(verify_commit.verify_delete, id=id))
        )

    async def prune(self, request: PruneRequest) -> int:
        """Delete finished executions in one statement; return how many."""
        query = queries.prune(request, self._now())
        return len(await self._rows(query, verify_commit.verify_prune))

    async def log(self, new: NewLogEntry) -> LogEntry | None:
        """Insert a log entry; return None if it may not be added."""
        query = queries.log(new, self._now())
        rows = await self._rows(query, partial(verify_commit.verify_log, new=new))
        return to_log_entry(rows[0]) if rows else None

    async def logs(self, id: str, limit: int, before: str | None) -> builtins.list[LogEntry]:
        """Select log entries, newest id first."""
        rows = await self._rows(queries.logs(id, limit, before))
        return [to_log_entry(row) for row in rows]

    async def list(self, page: Page) -> builtins.list[Execution]:
        """Select the executions of a page, newest id first."""
        return [to_execution(row) for row in await self._rows(queries.page(page))]

    async def _one(
        self, query: Query, verify: Verifier = verify_commit.verify_read
    ) -> Execution | None:
        rows = await self._rows(query, verify)
        return to_execution(rows[0]) if rows else None

    async def _rows(
        self, query: Query, verify: Verifier = verify_commit.verify_read
    ) -> Sequence[Values]:
        match self._bind:
            case AsyncExecutor():
                try:
                    return await self._bind.rows_async(query)
                except (ConnectionBroken, DBAPIError) as error:
                    return await _run_steps(
                        self._bind, verify_commit.resolve_outcome(error, query, verify)
                    )
            case AsyncConnection():
                return await self._bind.run_sync(execute_in_transaction, query)
            case _:
                return await (await self._bind.connection()).run_sync(execute_in_transaction, query)

    def _token(self) -> str:
        """Return the token of one write, which no other write has."""
        return validation.new_id()

    def _now(self) -> datetime | None:
        return read_clock(self._clock)


class AsyncOwningStore(AsyncSqlExecutionStore):
    """A store with an engine of its own, which `close` disposes of."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        if engine.dialect.name == "postgresql":
            self._bind = AsyncCachingExecutor(engine)

    async def close(self) -> None:
        """Close all connections."""
        if isinstance(self._bind, AsyncExecutor):
            await self._bind.close_async()


async def _run_steps(executor: AsyncExecutor, steps: VerificationSteps[Rows]) -> Rows:
    """Execute the queries that a verification yields, until it returns."""
    try:
        query = next(steps)
        while True:
            try:
                rows = await executor.rows_async(query)
            except Exception as error:  # noqa: BLE001 - the verification decides
                query = steps.throw(error)
            else:
                query = steps.send(rows)
    except StopIteration as stop:
        answer: Rows = stop.value
        return answer
