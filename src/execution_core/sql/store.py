"""The store for PostgreSQL and SQLite. Its methods are in `store_methods`."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..core import validation
from ..core.errors import InvalidValue
from ..core.models import Execution, LogEntry
from ..core.steps import run
from .driver.engine import CALL_TIMEOUT
from .driver.executor import CachingExecutor, Executor
from .driver.session import ConnectionBroken
from .driver.url import check_schema
from .driver.via_sqlalchemy import execute_via_sqlalchemy
from .recovery import verify_commit
from .recovery.verify_commit import Verifier
from .statements.queries import Query, Rows
from .store_methods import Clock, Convert, StoreMethods

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session


class SqlExecutionStore(
    StoreMethods[Execution | None, list[Execution], LogEntry | None, list[LogEntry], bool, int]
):
    """An `ExecutionStore` over SQLAlchemy: `ExecutionManager(SqlExecutionStore(engine))`.

    Each call is one statement that commits itself. With in-memory SQLite, all callers share one
    connection: there a call also commits the host's open transaction.

    Args:
        engine: the host's engine over PostgreSQL or SQLite. The store never disposes of it.
        clock: returns the time as an aware datetime, for tests; by default the database's clock.
            It must advance: the history trigger detects manual UPDATEs by an unchanged
            `updated_at`.
        call_timeout: how long a call may take on PostgreSQL. A call that takes longer loses its
            connection.
        schema: the schema of PostgreSQL that contains the tables; by default the first one of the
            `search_path` that has them.

    Raises:
        InvalidValue: the engine is not an Engine, or is for another database.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Clock | None = None,
        call_timeout: timedelta = CALL_TIMEOUT,
        schema: str | None = None,
    ) -> None:
        if not isinstance(engine, Engine):
            raise InvalidValue("engine", f"must be an Engine, not {type(engine).__name__}")
        self._schema = check_schema(schema, engine.dialect.name)
        self._locks_rows = engine.dialect.name == "postgresql"
        timeout = validation.duration("call_timeout", call_timeout)
        self._bind = Executor(engine, timeout, self._schema)
        self._clock = clock

    def within(self, transaction: "Connection | Session | scoped_session[Any]") -> Self:
        """Return a store that runs in the caller's transaction, and never commits it.

        Example: `store.within(session)`
        """
        from sqlalchemy.orm import Session, scoped_session  # noqa: PLC0415 - slow to import

        types = (Connection, Session, scoped_session)
        return self._within(transaction, types, "a Connection or a Session")

    def _ask(self, query: Query, convert: Convert, verify: Verifier | None = None) -> Any:
        return convert(self._rows(query, verify))

    def _rows(self, query: Query, verify: Verifier | None) -> Rows:
        match self._bind:
            case Executor():
                try:
                    return self._bind.rows(query)
                except (ConnectionBroken, SQLAlchemyError) as error:
                    steps = verify_commit.resolve_outcome(error, query, verify)
                    return run(steps, self._bind.rows)
            case Connection():
                return execute_in_transaction(self._bind, query, self._schema)
            case _:
                return execute_in_transaction(self._bind.connection(), query, self._schema)


class OwningStore(SqlExecutionStore):
    """A store with an engine of its own, which `close` disposes of."""

    def __init__(self, engine: Engine, schema: str | None = None) -> None:
        super().__init__(engine, schema=schema)
        if not self.shares_connection:
            self._bind = CachingExecutor(engine, schema=self._schema)

    def close(self) -> None:
        """Close all connections."""
        if isinstance(self._bind, Executor):  # not for a store of `within`
            self._bind.close()


def execute_in_transaction(connection: Connection, query: Query, schema: str | None) -> Rows:
    """Execute a query in the caller's transaction."""
    try:
        return execute_via_sqlalchemy(connection, query, schema)
    except DBAPIError as error:
        if problem := verify_commit.to_conflict(error, query):
            raise problem from error
        raise verify_commit.with_advice(error)  # noqa: B904 - the same error
