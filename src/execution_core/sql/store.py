"""Executions in PostgreSQL or SQLite."""

import builtins
from collections.abc import Callable, Sequence
from copy import copy
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from ..core import validation
from ..core.creation import NewExecution
from ..core.errors import InvalidValue
from ..core.log_lines import NewLogEntry
from ..core.models import Execution, ExecutionStatus, LogEntry
from ..core.selections import BatchTransition, Page, PruneRequest
from ..core.store import Returning
from ..core.transitions import Transition
from .driver import lost
from .driver.compiled import Values
from .driver.executor import CachingExecutor, Executor, execute_via_sqlalchemy
from .driver.lost import ConnectionBroken
from .recovery import inquiries
from .recovery.inquiries import Rows, VerificationSteps, Verifier
from .schema.tables import executions
from .statements import queries
from .statements.queries import Query
from .statements.rows import to_execution, to_log_entry

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

Clock = Callable[[], datetime]


class SqlExecutionStore:
    """An `ExecutionStore` over SQLAlchemy: `ExecutionManager(SqlExecutionStore(engine))`.

    Each call is one statement that commits itself. In-memory SQLite is one connection for
    everybody: there a call also commits what the host has open on it.

    Args:
        engine: the host's own engine over PostgreSQL or SQLite; never disposed of here.
        clock: what time it is, as an aware datetime, for tests; the database's clock by default.
            It should move: the history tells a hand in SQL by `updated_at` standing still.
    """

    def __init__(self, engine: Engine, *, clock: Clock | None = None) -> None:
        if not isinstance(engine, Engine):
            raise InvalidValue("engine", f"must be an Engine, not {type(engine).__name__}")
        self._bind: Executor | Connection | Session | scoped_session[Any] = Executor(engine)
        self._clock = clock

    @property
    def shares_connection(self) -> bool:
        """Whether all callers, or all of a thread's, share one connection: in-memory SQLite."""
        return isinstance(self._bind, Executor) and self._bind.shares_connection

    def within(self, transaction: "Connection | Session | scoped_session[Any]") -> Self:
        """Return a store in the caller's transaction: `store.within(session)`. It never commits."""
        from sqlalchemy.orm import Session, scoped_session  # noqa: PLC0415 - slow, and not for all

        if not isinstance(transaction, Connection | Session | scoped_session):
            raise InvalidValue(
                "transaction",
                f"must be a Connection or a Session, not {type(transaction).__name__}",
            )
        joined = copy(self)
        joined._bind = transaction  # noqa: SLF001 - a copy of its own
        return joined

    def create(self, creation: NewExecution) -> Execution | None:
        """Make one INSERT."""
        query = queries.create(creation, self._now())
        return self._one(query, partial(inquiries.verify_create, creation=creation))

    def find_by_id(self, id: str) -> Execution | None:
        """Make one SELECT."""
        return self._one(queries.find(executions.c.id, id))

    def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Make one SELECT."""
        return self._one(queries.find(executions.c.idempotency_key, key))

    def update(
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
        rows = self._rows(query, verify)
        if not rows:
            return None
        return to_execution(rows[0]) if whole else ExecutionStatus(rows[0][0])

    def update_many(self, batch: BatchTransition) -> builtins.list[Execution]:
        """Make one conditional UPDATE."""
        token = self._token()
        query = queries.update_many(batch, token, self._now())
        rows = self._rows(query, partial(inquiries.verify_batch, token=token))
        return sorted(map(to_execution, rows), key=attrgetter("id"))

    def delete(self, id: str) -> bool:
        """Make one DELETE."""
        return bool(self._rows(queries.delete(id), partial(inquiries.verify_delete, id=id)))

    def prune(self, pruning: PruneRequest) -> int:
        """Make one DELETE."""
        return len(self._rows(queries.prune(pruning, self._now()), inquiries.verify_prune))

    def log(self, line: NewLogEntry) -> LogEntry | None:
        """Make one INSERT."""
        query = queries.log(line, self._now())
        rows = self._rows(query, partial(inquiries.verify_log, line=line))
        return to_log_entry(rows[0]) if rows else None

    def logs(self, id: str, limit: int, before: str | None) -> builtins.list[LogEntry]:
        """Make one SELECT."""
        rows = self._rows(queries.logs(id, limit, before))
        return [to_log_entry(row) for row in rows]

    def list(self, page: Page) -> builtins.list[Execution]:
        """Make one SELECT."""
        return [to_execution(row) for row in self._rows(queries.page(page))]

    def _one(self, query: Query, inquire: Verifier = inquiries.verify_read) -> Execution | None:
        rows = self._rows(query, inquire)
        return to_execution(rows[0]) if rows else None

    def _rows(self, query: Query, inquire: Verifier = inquiries.verify_read) -> Sequence[Values]:
        match self._bind:
            case Executor():
                try:
                    return self._bind.rows(query)
                except (ConnectionBroken, DBAPIError) as error:
                    return _run_steps(self._bind, inquiries.resolve_outcome(error, query, inquire))
            case Connection():
                return execute_in_transaction(self._bind, query)
            case _:
                return execute_in_transaction(self._bind.connection(), query)

    @staticmethod
    def _token() -> str:
        """Return what tells a write from all others."""
        return validation.new_id()

    def _now(self) -> datetime | None:
        return read_clock(self._clock)


class OwningStore(SqlExecutionStore):
    """A store over an engine of its own, which it closes."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        if not self.shares_connection:
            self._bind = CachingExecutor(engine)

    def close(self) -> None:
        """Close all connections."""
        if isinstance(self._bind, Executor):  # a joined store holds the caller's transaction
            self._bind.close()


def _run_steps(direct: Executor, inquiry: VerificationSteps[Rows]) -> Rows:
    """Run what an inquiry asks until it returns."""
    try:
        query = next(inquiry)
        while True:
            try:
                rows = direct.rows(query)
            except Exception as error:  # noqa: BLE001 - the inquiry knows what to make of it
                query = inquiry.throw(error)
            else:
                query = inquiry.send(rows)
    except StopIteration as end:
        answer: Rows = end.value
        return answer


def execute_in_transaction(connection: Connection, query: Query) -> Sequence[Values]:
    """Run a query as part of the caller's transaction."""
    try:
        return execute_via_sqlalchemy(connection, query)
    except DBAPIError as error:
        if problem := inquiries.to_conflict(error, query):
            raise problem from error
        raise inquiries.with_schema_hint(error)  # noqa: B904 - the same error


def read_clock(clock: Clock | None) -> datetime | None:
    """Return the time of an injected clock, None without one."""
    now = clock and clock()
    if now is not None and now.tzinfo is None:
        raise InvalidValue("clock", "must return aware datetimes, as datetime.now(UTC) does")
    return now
