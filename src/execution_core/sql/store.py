"""The store for PostgreSQL and SQLite."""

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
from .driver.broken import ConnectionBroken, boot_clock
from .driver.compiled import Values
from .driver.executor import CachingExecutor, Executor, execute_via_sqlalchemy
from .recovery import verify_commit
from .recovery.verify_commit import Rows, VerificationSteps, Verifier
from .schema.tables import executions
from .statements import queries
from .statements.queries import Query
from .statements.rows import to_execution, to_log_entry

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

Clock = Callable[[], datetime]


class SqlExecutionStore:
    """An `ExecutionStore` over SQLAlchemy: `ExecutionManager(SqlExecutionStore(engine))`.

    Each call is one statement that commits itself. With in-memory SQLite, all callers share one
    connection: there a call also commits the host's open transaction.

    Args:
        engine: the host's engine over PostgreSQL or SQLite. The store never disposes of it.
        clock: returns the time as an aware datetime, for tests; by default the database's clock.
            It must advance: the history trigger detects manual UPDATEs by an unchanged
            `updated_at`.

    Raises:
        InvalidValue: the engine is not an Engine, or is for another database.
    """

    def __init__(self, engine: Engine, *, clock: Clock | None = None) -> None:
        if not isinstance(engine, Engine):
            raise InvalidValue("engine", f"must be an Engine, not {type(engine).__name__}")
        self._bind: Executor | Connection | Session | scoped_session[Any] = Executor(engine)
        self._clock = clock

    @property
    def shares_connection(self) -> bool:
        """Whether all callers, or all of one thread, share one connection: in-memory SQLite."""
        return isinstance(self._bind, Executor) and self._bind.shares_connection

    def within(self, transaction: "Connection | Session | scoped_session[Any]") -> Self:
        """Return a store that runs in the caller's transaction, and never commits it.

        Example: `store.within(session)`
        """
        from sqlalchemy.orm import Session, scoped_session  # noqa: PLC0415 - slow to import

        if not isinstance(transaction, Connection | Session | scoped_session):
            raise InvalidValue(
                "transaction",
                f"must be a Connection or a Session, not {type(transaction).__name__}",
            )
        store = copy(self)
        store._bind = transaction  # noqa: SLF001 - of this class
        return store

    def create(self, new: NewExecution) -> Execution | None:
        """Insert an execution; return None if its key is held or its parent missing."""
        query = queries.create(new, self._now())
        return self._one(query, partial(verify_commit.verify_create, new=new))

    def find_by_id(self, id: str) -> Execution | None:
        """Select the execution with this id, or return None."""
        return self._one(queries.find(executions.c.id, id))

    def find_by_idempotency_key(self, key: str) -> Execution | None:
        """Select the execution that holds this key, or return None."""
        return self._one(queries.find(executions.c.idempotency_key, key))

    def update(
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
        rows = self._rows(query, verify)
        if not rows:
            return None
        return to_execution(rows[0]) if whole else ExecutionStatus(rows[0][0])

    def update_many(self, batch: BatchTransition) -> builtins.list[Execution]:
        """Apply a transition to many executions in one conditional UPDATE."""
        token = self._token()
        query = queries.update_many(batch, token, self._now())
        rows = self._rows(query, partial(verify_commit.verify_batch, token=token))
        return sorted(map(to_execution, rows), key=attrgetter("id"))

    def delete(self, id: str) -> bool:
        """Delete an execution; return whether it existed."""
        return bool(self._rows(queries.delete(id), partial(verify_commit.verify_delete, id=id)))

    def prune(self, request: PruneRequest) -> int:
        """Delete finished executions in one statement; return how many."""
        return len(self._rows(queries.prune(request, self._now()), verify_commit.verify_prune))

    def log(self, new: NewLogEntry) -> LogEntry | None:
        """Insert a log entry; return None if it may not be added."""
        query = queries.log(new, self._now())
        rows = self._rows(query, partial(verify_commit.verify_log, new=new))
        return to_log_entry(rows[0]) if rows else None

    def logs(self, id: str, limit: int, before: str | None) -> builtins.list[LogEntry]:
        """Select log entries, newest id first."""
        rows = self._rows(queries.logs(id, limit, before))
        return [to_log_entry(row) for row in rows]

    def list(self, page: Page) -> builtins.list[Execution]:
        """Select the executions of a page, newest id first."""
        return [to_execution(row) for row in self._rows(queries.page(page))]

    def _one(self, query: Query, verify: Verifier = verify_commit.verify_read) -> Execution | None:
        rows = self._rows(query, verify)
        return to_execution(rows[0]) if rows else None

    def _rows(self, query: Query, verify: Verifier = verify_commit.verify_read) -> Sequence[Values]:
        match self._bind:
            case Executor():
                try:
                    return self._bind.rows(query)
                except (ConnectionBroken, DBAPIError) as error:
                    return _run_steps(
                        self._bind, verify_commit.resolve_outcome(error, query, verify)
                    )
            case Connection():
                return execute_in_transaction(self._bind, query)
            case _:
                return execute_in_transaction(self._bind.connection(), query)

    def _token(self) -> str:
        """Return the token of one write, which no other write has."""
        return validation.new_id()

    def _now(self) -> datetime | None:
        return read_clock(self._clock)


class OwningStore(SqlExecutionStore):
    """A store with an engine of its own, which `close` disposes of."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        if not self.shares_connection:
            self._bind = CachingExecutor(engine)

    def close(self) -> None:
        """Close all connections."""
        if isinstance(self._bind, Executor):  # not for a store of `within`
            self._bind.close()


def _run_steps(executor: Executor, steps: VerificationSteps[Rows]) -> Rows:
    """Execute the queries that a verification yields, until it returns."""
    try:
        query = next(steps)
        while True:
            try:
                rows = executor.rows(query)
            except Exception as error:  # noqa: BLE001 - the verification decides
                query = steps.throw(error)
            else:
                query = steps.send(rows)
    except StopIteration as stop:
        answer: Rows = stop.value
        return answer


def execute_in_transaction(connection: Connection, query: Query) -> Sequence[Values]:
    """Execute a query in the caller's transaction."""
    try:
        return execute_via_sqlalchemy(connection, query)
    except DBAPIError as error:
        if problem := verify_commit.to_conflict(error, query):
            raise problem from error
        raise verify_commit.with_schema_hint(error)  # noqa: B904 - the same error


def read_clock(clock: Clock | None) -> datetime | None:
    """Return the time of an injected clock, or None if there is none."""
    now = clock and clock()
    if now is not None and now.tzinfo is None:
        raise InvalidValue("clock", "must return aware datetimes, such as datetime.now(UTC)")
    return now
