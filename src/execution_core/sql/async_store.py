"""Executions in PostgreSQL or SQLite, for asyncio: the twin of `store`."""

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
from .driver import lost
from .driver.async_executor import AsyncCachingExecutor, AsyncExecutor
from .driver.compiled import Values
from .driver.lost import ConnectionBroken
from .recovery import inquiries
from .recovery.inquiries import Rows, VerificationSteps, Verifier
from .schema.tables import executions
from .statements import queries
from .statements.queries import Query
from .statements.rows import to_execution, to_log_entry
from .store import Clock, execute_in_transaction, read_clock


class AsyncSqlExecutionStore:
    """`SqlExecutionStore` for asyncio: `AsyncExecutionManager(AsyncSqlExecutionStore(engine))`.

    A call that is cancelled outside a caller's transaction first ends the statement it is at.
    In-memory SQLite, one connection for all tasks, needs `configure_sqlite`.
    """

    def __init__(self, engine: AsyncEngine, *, clock: Clock | None = None) -> None:
        if not isinstance(engine, AsyncEngine):
            raise InvalidValue("engine", f"must be an AsyncEngine, not {type(engine).__name__}")
        self._bind: AsyncExecutor | AsyncConnection | AsyncSession | async_scoped_session[Any]
        self._bind = AsyncExecutor(engine)
        self._clock = clock

    @property
    def shares_connection(self) -> bool:
        """Whether all callers, or all of a thread's, share one connection: in-memory SQLite."""
        return isinstance(self._bind, AsyncExecutor) and self._bind.shares_connection

    def within(
        self, transaction: AsyncConnection | AsyncSession | async_scoped_session[Any]
    ) -> Self:
        """Return a store in the caller's transaction: `store.within(session)`. It never commits."""
        if not isinstance(transaction, AsyncConnection | AsyncSession | async_scoped_session):
            raise InvalidValue(
                "transaction",
                f"must be an AsyncConnection or an AsyncSession, not {type(transaction).__name__}",
            )
        joined = copy(self)
        joined._bind = transaction  # noqa: SLF001 - a copy of its own
        return joined

    async def create(self, creation: NewExecution) -> Execution | None:
        """Make one INSERT."""
        query = queries.create(creation, self._now())
        return await self._one(query, partial(inquiries.verify_create, creation=creation))

    async def find_by_id(self, id: str) -> Execution | None:
        """Make one SELECT."""
        return await self._one(queries.find(executions.c.id, id))

    async def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Make one SELECT."""
        return await self._one(queries.find(executions.c.idempotency_key, key))

    async def update(
        self, id: str, transition: Transition, *, returning: Returning = "execution"
    ) -> Any:  # Execution | ExecutionStatus | None, as `returning` says
        """Make one conditional UPDATE."""
        token, whole = self._token(), returning == "execution"
        query = queries.update(id, transition, token, self._now(), whole=whole)
        verify = partial(
            inquiries.verify_update,
            id=id,
            transition=transition,
            token=token,
            whole=whole,
            began=lost.boot_clock(),
        )
        rows = await self._rows(query, verify)
        if not rows:
            return None
        return to_execution(rows[0]) if whole else ExecutionStatus(rows[0][0])

    async def update_many(self, batch: BatchTransition) -> builtins.list[Execution]:
        """Make one conditional UPDATE."""
        token = self._token()
        query = queries.update_many(batch, token, self._now())
        rows = await self._rows(query, partial(inquiries.verify_batch, token=token))
        return sorted(map(to_execution, rows), key=attrgetter("id"))

    async def delete(self, id: str) -> bool:
        """Make one DELETE."""
        return bool(await self._rows(queries.delete(id), partial(inquiries.verify_delete, id=id)))

    async def prune(self, pruning: PruneRequest) -> int:
        """Make one DELETE."""
        query = queries.prune(pruning, self._now())
        return len(await self._rows(query, inquiries.verify_prune))

    async def log(self, line: NewLogEntry) -> LogEntry | None:
        """Make one INSERT."""
        query = queries.log(line, self._now())
        rows = await self._rows(query, partial(inquiries.verify_log, line=line))
        return to_log_entry(rows[0]) if rows else None

    async def logs(self, id: str, limit: int, before: str | None) -> builtins.list[LogEntry]:
        """Make one SELECT."""
        rows = await self._rows(queries.logs(id, limit, before))
        return [to_log_entry(row) for row in rows]

    async def list(self, page: Page) -> builtins.list[Execution]:
        """Make one SELECT."""
        return [to_execution(row) for row in await self._rows(queries.page(page))]

    async def _one(
        self, query: Query, inquire: Verifier = inquiries.verify_read
    ) -> Execution | None:
        rows = await self._rows(query, inquire)
        return to_execution(rows[0]) if rows else None

    async def _rows(
        self, query: Query, inquire: Verifier = inquiries.verify_read
    ) -> Sequence[Values]:
        match self._bind:
            case AsyncExecutor():
                try:
                    return await self._bind.rows_async(query)
                except (ConnectionBroken, DBAPIError) as error:
                    return await _run_steps(
                        self._bind, inquiries.resolve_outcome(error, query, inquire)
                    )
            case AsyncConnection():
                return await self._bind.run_sync(execute_in_transaction, query)
            case _:
                return await (await self._bind.connection()).run_sync(execute_in_transaction, query)

    @staticmethod
    def _token() -> str:
        """Return what tells a write from all others."""
        return validation.new_id()

    def _now(self) -> datetime | None:
        return read_clock(self._clock)


class AsyncOwningStore(AsyncSqlExecutionStore):
    """A store over an engine of its own, which it closes."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        if engine.dialect.name == "postgresql":
            self._bind = AsyncCachingExecutor(engine)

    async def close(self) -> None:
        """Close all connections."""
        if isinstance(self._bind, AsyncExecutor):
            await self._bind.close_async()


async def _run_steps(direct: AsyncExecutor, inquiry: VerificationSteps[Rows]) -> Rows:
    """Run what an inquiry asks until it returns."""
    try:
        query = next(inquiry)
        while True:
            try:
                rows = await direct.rows_async(query)
            except Exception as error:  # noqa: BLE001 - the inquiry knows what to make of it
                query = inquiry.throw(error)
            else:
                query = inquiry.send(rows)
    except StopIteration as end:
        answer: Rows = end.value
        return answer
