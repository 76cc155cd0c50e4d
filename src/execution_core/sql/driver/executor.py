"""Execute single statements directly on the driver, each in a transaction of its own.

For each execution SQLAlchemy creates a Connection, a context and a result, which takes longer than
the statement itself. An executor compiles a statement once per dialect, and then only binds values.
The connections still come from the engine's pool, SQLAlchemy's types still convert the values, and
errors are still SQLAlchemy's. Only this module and `async_executor` call a driver.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, PoolProxiedConnection, SingletonThreadPool, StaticPool
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..statements.queries import Query, Rows
from . import deadlines
from .compiled import compile_query
from .connection_cache import (
    IdleConnections,
    acquire,
    cache_cursor,
    cached_cursor,
    check_committed,
    has_ended,
    is_idle,
    new_permits,
    no_connection,
)
from .engine import (
    BEHIND_POOLER,
    BOUNDS,
    GRACE_SECONDS,
    OWN_POOL,
    Bounds,
    for_single_statements,
)
from .forks import keep, reset_in_children
from .session import (
    BACKEND,
    SELECT_BACKEND,
    UNIDENTIFIED,
    Backend,
    ConnectionBroken,
    backend_of,
    ends_session,
    may_prepare,
    query_backend,
    set_bounds,
)
from .url import ASYNCPG
from .via_sqlalchemy import execute_via_sqlalchemy, must_use_sqlalchemy

NOT_CONNECTED: Final = (
    "No connection could be opened, so nothing was changed: the server is unreachable, or it or a"
    " pooler in front of it is too busy to answer within call_timeout."
)


class Executor:
    """Executes single statements, which commit themselves, on connections of an engine's pool.

    Raises:
        InvalidValue: the engine is for another database or driver.
    """

    _supports_async_drivers = False

    def __init__(
        self, engine: Engine, call_timeout: timedelta | None = None, schema: str | None = None
    ) -> None:
        self.engine = engine
        self._schema = schema
        self._sqlalchemy_engine = for_single_statements(engine)
        self._errors = engine.dialect.loaded_dbapi.Error
        self._is_sqlite = engine.dialect.name == "sqlite"
        self.shares_connection = isinstance(engine.pool, StaticPool | SingletonThreadPool)
        self._is_asyncpg = engine.dialect.driver == ASYNCPG
        # One connection for all callers is one transaction for all; other drivers are not known.
        self._always_use_sqlalchemy = (
            isinstance(engine.pool, StaticPool)
            or self._is_asyncpg
            or (engine.dialect.is_async and not self._supports_async_drivers)
        )
        # asyncpg raises some errors that are not those of the dialect.
        driver: Any = engine.dialect.loaded_dbapi
        self._foreign_errors: tuple[type[Exception], ...] = (
            (OSError, driver.asyncpg.PostgresError) if self._is_asyncpg else ()
        )
        self._dialect_type = type(engine.dialect)
        options = engine.get_execution_options()
        self._bounds: Bounds | None = options.get(BOUNDS)
        self._behind_pooler = bool(options.get(BEHIND_POOLER))
        self._time_limit = self._patience = None
        if self._bounds is not None:
            self._patience = self._bounds.statement_timeout / 1000
            self._time_limit = None if self._is_sqlite else self._patience + GRACE_SECONDS
        elif call_timeout is not None and not self._is_sqlite:
            self._time_limit = call_timeout.total_seconds()
        self._reset()
        if not self.shares_connection:
            reset_in_children(self)

    def _reset(self) -> None:
        """Begin without any connection."""
        self._idle = IdleConnections()  # none, unless a subclass keeps connections

    def rows(self, query: Query) -> Rows:
        """Execute a query and return all its rows.

        Raises:
            ConnectionBroken: the connection broke, so it is unknown whether the query committed.
            DBAPIError: any other error of the driver, as SQLAlchemy raises it.
        """
        if self._must_use_sqlalchemy():
            with self._foreign_errors_wrapped(), self._sqlalchemy_engine.begin() as connection:
                return self._run(connection, query)
        compiled = compile_query(query, self._dialect_type, self._schema)
        return compiled.convert(self._execute(query, compiled.text, compiled.bind(query)))

    def close(self) -> None:
        """Close all connections of the engine."""
        self._idle.close()
        self.engine.dispose()

    def forget_inherited(self) -> None:
        """Begin without the connections of the parent of a forked process."""
        keep((self._idle, self.engine.pool))
        self.engine.dispose(close=False)
        self._reset()

    @contextmanager
    def _foreign_errors_wrapped(self) -> Iterator[None]:
        """Raise errors of connecting with asyncpg as SQLAlchemy raises those of psycopg."""
        try:
            yield
        except self._foreign_errors as error:
            raise OperationalError(None, None, error) from error

    def _run(self, connection: Connection, query: Query) -> Rows:
        backend = None
        pooled: Any = connection.connection
        call = self._begin_call(pooled, query)
        try:
            backend = self._prepare_session(pooled, query.bounded)
            return execute_via_sqlalchemy(connection, query, self._schema, backend)
        except self._errors as error:  # of the query for the backend, which SQLAlchemy does not see
            raise self._wrap_error(error, pooled, call, SELECT_BACKEND, ()) from error
        except DBAPIError as error:
            if self._is_asyncpg and ends_session(error.orig):
                connection.invalidate(error)
            elif not error.connection_invalidated:
                raise
            late = deadlines.has_expired(call)
            raise ConnectionBroken(error, backend, is_late=late) from error
        except self._foreign_errors as error:
            connection.invalidate(error)
            broken = OperationalError(None, None, error, connection_invalidated=True)
            late = isinstance(error, TimeoutError)  # of the host's command_timeout
            raise ConnectionBroken(broken, backend, is_late=late) from error
        finally:
            deadlines.end(call)

    def _must_use_sqlalchemy(self) -> bool:
        return self._always_use_sqlalchemy or must_use_sqlalchemy(self.engine)

    def _execute(self, query: Query, text: str, values: Sequence[Any]) -> Rows:
        connection = call = None
        try:
            connection = self._checkout_live()
            call = self._begin_call(connection, query)
            self._prepare_session(connection, query.bounded)
            return self._execute_on(connection, text, values)
        except self._errors as error:
            raise self._wrap_error(error, connection, call, text, values) from error
        except BaseException as error:
            if connection is not None:
                connection.invalidate(error)  # an interrupted connection is in an unknown state
            raise
        finally:
            deadlines.end(call)
            if connection is not None:
                self._checkin(connection)

    def _begin_call(self, connection: PoolProxiedConnection, query: Query) -> int | None:
        """Begin the time limit of a call, if it has one."""
        if self._time_limit is None or not query.bounded:
            return None
        return deadlines.begin(connection.driver_connection, self._time_limit)

    def _checkout_live(self) -> PoolProxiedConnection:
        """Check out a connection that the server has not ended meanwhile."""
        while True:
            connection = self._checkout()
            if self._is_sqlite or not has_ended(connection):
                return connection
            self._drop(connection)

    def _checkout(self) -> PoolProxiedConnection:
        try:
            return self.engine.raw_connection()
        except PoolTimeout as error:
            if self._patience is None:
                raise
            raise no_connection(self._patience) from error
        except DBAPIError as error:  # of SQLAlchemy's own queries on a new connection
            error.add_note(NOT_CONNECTED)
            raise

    def _prepare_session(self, connection: PoolProxiedConnection, bounded: bool) -> Backend | None:
        """Learn and set what is to be known of a session before a statement is sent."""
        if self._is_sqlite:
            return None
        if self._is_asyncpg:
            return UNIDENTIFIED
        if BACKEND not in connection.info:
            connection.info[BACKEND] = query_backend(connection, self._behind_pooler)
        set_bounds(connection, self._bounds, bounded)
        return backend_of(connection)

    def _checkin(self, connection: PoolProxiedConnection) -> None:
        connection.close()

    def _drop(self, connection: PoolProxiedConnection) -> None:
        connection.invalidate()
        connection.close()

    def _execute_on(
        self, connection: PoolProxiedConnection, text: str, values: Sequence[Any]
    ) -> Rows:
        driver: Any = connection.driver_connection
        if self._is_sqlite:
            rows: Rows = driver.execute(text, values).fetchall()
            driver.commit()  # the host may let the driver begin transactions implicitly
            return rows
        was_autocommit = driver.autocommit
        if not was_autocommit:
            driver.autocommit = True  # no BEGIN and no COMMIT: one round trip
        try:
            cursor = cached_cursor(connection)
            rows = cursor.execute(text, values, prepare=may_prepare(connection)).fetchall()
            check_committed(driver)
        finally:
            if not was_autocommit and is_idle(driver):
                driver.autocommit = False
        cache_cursor(connection, cursor, values, rows)
        return rows

    def _wrap_error(
        self,
        error: Any,
        connection: PoolProxiedConnection | None,
        call: int | None,
        text: str,
        values: Sequence[Any],
    ) -> Exception:
        dialect = self.engine.dialect
        dbapi_connection = connection and connection.dbapi_connection
        broken = bool(dialect.is_disconnect(error, dbapi_connection, None))
        backend = None if connection is None else backend_of(connection)
        if connection is not None and broken:
            # Invalidate it and all older connections, as SQLAlchemy does.
            self.engine.pool._invalidate(connection, error)  # noqa: SLF001 - not public
        elif connection is not None:
            connection.rollback()
        wrapped: Any = DBAPIError.instance(
            None if connection is None else text,
            None if connection is None else tuple(values),
            error,
            self._errors,
            hide_parameters=self.engine.hide_parameters,
            connection_invalidated=broken,
            dialect=dialect,
        )
        if connection is None and not self._is_sqlite:
            wrapped.add_note(NOT_CONNECTED)
        late = deadlines.has_expired(call)
        return ConnectionBroken(wrapped, backend, is_late=late) if broken else wrapped


class CachingExecutor(Executor):
    """`Executor` for an engine that only this library uses: it keeps idle connections.

    See `connection_cache` for the reasons.
    """

    def _reset(self) -> None:
        super()._reset()
        self._permits, self._reserved = new_permits(OWN_POOL), new_permits(1)

    def rows(self, query: Query) -> Rows:
        """Execute a query and return all its rows; wait while all connections are in use."""
        # Heartbeats must not wait for calls that wait for locks.
        permits = self._reserved if query.reserved else self._permits
        permit = acquire(permits, self._patience)
        try:
            return super().rows(query)
        finally:
            permits.put(permit)
            del permit  # the traceback of an error would keep it alive

    def _checkout(self) -> PoolProxiedConnection:
        return self._idle.pop() or super()._checkout()

    def _checkin(self, connection: PoolProxiedConnection) -> None:
        self._idle.push(connection)
