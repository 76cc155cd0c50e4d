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
from ..core.creation import Creation
from ..core.errors import InvalidValue
from ..core.log_lines import Line
from ..core.models import Execution, ExecutionStatus, LogEntry
from ..core.selections import Batch, Page, Pruning
from ..core.transitions import Transition
from .driver import lost
from .driver.async_executor import AsyncDirect, OwnAsyncDirect
from .driver.compiled import Values
from .driver.lost import Lost
from .recovery import inquiries
from .recovery.inquiries import Inquire, Inquiry, Rows
from .schema.tables import executions
from .statements import queries
from .statements.queries import Query
from .statements.rows import execution, log_entry
from .store import Clock, joined, read


class AsyncSqlExecutionStore:
    """`SqlExecutionStore` for asyncio: `AsyncExecutionManager(AsyncSqlExecutionStore(engine))`.

    A call that is cancelled outside a caller's transaction first ends the statement it is at.
    In-memory SQLite, one connection for all tasks, needs `configure_sqlite`.
    """

    def __init__(self, engine: AsyncEngine, *, clock: Clock | None = None) -> None:
        if not isinstance(engine, AsyncEngine):
            raise InvalidValue("engine", f"must be an AsyncEngine, not {type(engine).__name__}")
        self._bind: AsyncDirect | AsyncConnection | AsyncSession | async_scoped_session[Any]
        self._bind = AsyncDirect(engine)
        self._clock = clock

    @property
    def shares_connection(self) -> bool:
        """Whether all callers, or all of a thread's, share one connection: in-memory SQLite."""
        return isinstance(self._bind, AsyncDirect) and self._bind.shares_connection

    def within(
        self, transaction: AsyncConnection | AsyncSession | async_scoped_session[Any]
    ) -> Self:
        """Return a store in the caller's transaction: `store.within(session)`. It never commits."""
        if not isinstance(transaction, AsyncConnection | AsyncSession | async_scoped_session):
            raise InvalidValue(
                "connection_or_session",
                f"must be an AsyncConnection or an AsyncSession, not {type(transaction).__name__}",
            )
        joined = copy(self)
        joined._bind = transaction  # noqa: SLF001 - a copy of its own
        return joined

    async def create(self, creation: Creation) -> Execution | None:
        """Make one INSERT."""
        query = queries.create(creation, self._now())
        return await self._one(query, partial(inquiries.of_create, creation=creation))

    async def find_by_id(self, id: str) -> Execution | None:
        """Make one SELECT."""
        return await self._one(queries.find(executions.c.id, id))

    async def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Make one SELECT."""
        return await self._one(queries.find(executions.c.idempotency_key, key))

    async def update(self, id: str, transition: Transition) -> Execution | None:
        """Make one conditional UPDATE."""
        rows = await self._change(id, transition, whole=True)
        return execution(rows[0]) if rows else None

    async def write(self, id: str, transition: Transition) -> ExecutionStatus | None:
        """Make one conditional UPDATE."""
        rows = await self._change(id, transition, whole=False)
        return ExecutionStatus(rows[0][0]) if rows else None

    async def update_many(self, batch: Batch) -> builtins.list[Execution]:
        """Make one conditional UPDATE."""
        token = self._token()
        query = queries.change_many(batch, token, self._now())
        rows = await self._rows(query, partial(inquiries.of_batch, token=token))
        return sorted(map(execution, rows), key=attrgetter("id"))

    async def delete(self, id: str) -> bool:
        """Make one DELETE."""
        return bool(await self._rows(queries.remove(id), partial(inquiries.of_delete, id=id)))

    async def prune(self, pruning: Pruning) -> int:
        """Make one DELETE."""
        query = queries.prune(pruning, self._now())
        return len(await self._rows(query, inquiries.of_prune))

    async def log(self, line: Line) -> LogEntry | None:
        """Make one INSERT."""
        query = queries.log(line, self._now())
        rows = await self._rows(query, partial(inquiries.of_log, line=line))
        return log_entry(rows[0]) if rows else None

    async def logs(self, id: str, limit: int, before: str | None) -> builtins.list[LogEntry]:
        """Make one SELECT."""
        rows = await self._rows(queries.logs(id, limit, before))
        return [log_entry(row) for row in rows]

    async def list(self, page: Page) -> builtins.list[Execution]:
        """Make one SELECT."""
        return [execution(row) for row in await self._rows(queries.page(page))]

    async def _change(self, id: str, transition: Transition, *, whole: bool) -> Sequence[Values]:
        token = self._token()
        query = queries.change(id, transition, token, self._now(), whole=whole)
        inquire = partial(
            inquiries.of_change,
            id=id,
            transition=transition,
            token=token,
            whole=whole,
            began=lost.clock(),
        )
        return await self._rows(query, inquire)

    async def _one(self, query: Query, inquire: Inquire = inquiries.of_read) -> Execution | None:
        rows = await self._rows(query, inquire)
        return execution(rows[0]) if rows else None

    async def _rows(self, query: Query, inquire: Inquire = inquiries.of_read) -> Sequence[Values]:
        match self._bind:
            case AsyncDirect():
                try:
                    return await self._bind.rows_async(query)
                except (Lost, DBAPIError) as error:
                    return await _asked(self._bind, inquiries.known(error, query, inquire))
            case AsyncConnection():
                return await self._bind.run_sync(joined, query)
            case _:
                return await (await self._bind.connection()).run_sync(joined, query)

    @staticmethod
    def _token() -> str:
        """Return what tells a write from all others."""
        return validation.new_id()

    def _now(self) -> datetime | None:
        return read(self._clock)


class AsyncOwningStore(AsyncSqlExecutionStore):
    """A store over an engine of its own, which it closes."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        if engine.dialect.name == "postgresql":
            self._bind = OwnAsyncDirect(engine)

    async def close(self) -> None:
        """Close all connections."""
        if isinstance(self._bind, AsyncDirect):
            await self._bind.close_async()


async def _asked(direct: AsyncDirect, inquiry: Inquiry[Rows]) -> Rows:
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
