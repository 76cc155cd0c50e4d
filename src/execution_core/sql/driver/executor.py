"""Execute single statements directly on the driver, each in a transaction of its own.

For each execution SQLAlchemy creates a Connection, a context and a result, which takes longer than
the statement itself. An executor compiles a statement once per dialect, and then only binds values.
The connections still come from the engine's pool, SQLAlchemy's types still convert the values, and
errors are still SQLAlchemy's. Only this module and `async_executor` call a driver.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from sqlalchemy import (
    Connection,
    Dialect,
    Engine,
    PoolProxiedConnection,
    SingletonThreadPool,
    StaticPool,
)
from sqlalchemy.exc import DBAPIError

from ..statements.queries import Query, Rows, Statement
from . import deadlines
from .backend import SELECT_BACKEND, Backend, ConnectionBroken, check_date_style, check_encoding
from .connection_cache import (
    IdleConnections,
    acquire,
    cache_cursor,
    cached_cursor,
    check_committed,
    has_ended,
    is_idle,
    new_permits,
)
from .engine import (
    BEHIND_POOLER,
    BOUNDS,
    GRACE_SECONDS,
    OWN_POOL,
    Bounds,
    begin_sqlite,
    for_single_statements,
)
from .url import PSYCOPG

BACKEND: Final = "execution_core.backend"
SET_BOUNDS: Final = (
    "SELECT CASE current_setting('lock_timeout')"
    " WHEN '0' THEN set_config('lock_timeout', CAST(%s AS text), false) END,"
    " CASE current_setting('statement_timeout')"
    " WHEN '0' THEN set_config('statement_timeout', CAST(%s AS text), false) END"
)
SET_BY_US: Final = "execution_core.statement_timeout"
_FLOAT8: Final = 701  # the type code of the only column whose converter needs one
Converter = Callable[[Any], Any]


class CompiledQuery(NamedTuple):
    """The SQL text of a statement, and the converters of its parameters and result columns."""

    text: str
    constants: Mapping[str, Any]
    parameters: Sequence[tuple[str, Converter | None]]
    columns: Sequence[tuple[int, Converter]]

    def bind(self, query: Query) -> Sequence[Any]:
        """Return the parameters of a query in the order and types that the driver expects."""
        given = query.parameters
        if self.constants:
            given = {**self.constants, **given}
        return [
            convert(given[name]) if convert else given[name] for name, convert in self.parameters
        ]

    def convert(self, rows: Rows) -> Rows:
        """Return rows of the driver with the values that SQLAlchemy would return."""
        return [self._convert_row(row) for row in rows] if self.columns else rows

    def _convert_row(self, row: Sequence[Any]) -> Sequence[Any]:
        values = list(row)
        for n, convert in self.columns:
            if (value := values[n]) is not None:
                values[n] = convert(value)
        return values


def execute_via_sqlalchemy(
    connection: Connection, query: Query, backend: Backend | None = None
) -> Rows:
    """Execute a query with SQLAlchemy, in the current transaction of the connection."""
    # Fetch all rows at once, also if the host's engine streams.
    options = {"stream_results": False, "yield_per": None}
    driver: Any = connection.connection.driver_connection
    if connection.dialect.driver in PSYCOPG:
        check_encoding(driver)
        check_date_style(driver)
    threshold = getattr(driver, "prepare_threshold", None)
    if backend is not None and backend.pooled:
        driver.prepare_threshold = None
    try:
        result = connection.execute(query.statement, query.parameters, execution_options=options)
        return result.all()
    finally:
        if backend is not None and backend.pooled:
            driver.prepare_threshold = threshold


def may_prepare(connection: PoolProxiedConnection) -> bool | None:
    """Return what psycopg's `execute` expects: None to prepare what is often executed, or False.

    Behind a pooler, two clients' prepared statements with one name would be taken for each other.
    """
    return False if connection.info[BACKEND].pooled else None


class Executor:
    """Executes single statements, which commit themselves, on connections of an engine's pool.

    Raises:
        InvalidValue: the engine is for another database or driver.
    """

    _supports_async_drivers = False

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sqlalchemy_engine = for_single_statements(engine)
        self._errors = engine.dialect.loaded_dbapi.Error
        self._is_sqlite = engine.dialect.name == "sqlite"
        self.shares_connection = isinstance(engine.pool, StaticPool | SingletonThreadPool)
        self._always_use_sqlalchemy = isinstance(engine.pool, StaticPool) or (
            engine.dialect.is_async and not self._supports_async_drivers
        )
        # Positional parameters: the driver need not look up names.
        dialect_type: Callable[..., Dialect] = type(engine.dialect)
        self._dialect = dialect_type(paramstyle="qmark" if self._is_sqlite else "format")
        self._compiled: dict[Statement, CompiledQuery] = {}
        options = engine.get_execution_options()
        self._bounds: Bounds | None = options.get(BOUNDS)
        self._patience = None if self._bounds is None else self._bounds.statement_timeout / 1000
        self._reset()

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
            with self._sqlalchemy_engine.begin() as connection:
                return self._run(connection, query)
        compiled = self._compile(query)
        bounded = query.verb != "prune"
        return compiled.convert(self._execute(compiled.text, compiled.bind(query), bounded))

    def close(self) -> None:
        """Close all connections of the engine."""
        self._idle.close()
        self.engine.dispose()

    def _run(self, connection: Connection, query: Query) -> Rows:
        backend = None
        try:
            backend = self._learn_backend(connection.connection)
            return execute_via_sqlalchemy(connection, query, backend)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise ConnectionBroken(error, backend) from error
            raise

    def _must_use_sqlalchemy(self) -> bool:
        """Return whether SQLAlchemy must execute the statements.

        That is so if the host listens to events, logs statements or translates schemas; if all
        callers share one connection, and so its transaction; or if the driver is for asyncio alone.
        """
        engine = self.engine
        events, dialect_events = engine.dispatch, engine.dialect.dispatch
        return bool(
            self._always_use_sqlalchemy
            or events.before_cursor_execute
            or events.after_cursor_execute
            or events.before_execute
            or events.after_execute
            or events.engine_connect
            or events.commit
            or (events.begin and any(each is not begin_sqlite for each in events.begin))
            or dialect_events.do_execute
            or dialect_events.handle_error
            or engine.logger.isEnabledFor(logging.INFO)
            or "schema_translate_map" in engine.get_execution_options()
        )

    def _compile(self, query: Query) -> CompiledQuery:
        statement = query.statement
        if known := self._compiled.get(statement):
            return known
        dialect = self._dialect
        compiled: Any = statement.compile(dialect=dialect)
        parameters = [
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup
        ]
        converters = [
            column.type.dialect_impl(dialect).result_processor(dialect, _FLOAT8)
            for column in statement.exported_columns
        ]
        columns = [(n, convert) for n, convert in enumerate(converters) if convert]
        constants = {  # such as the OFFSET 0 that SQLAlchemy adds to LIMIT on SQLite
            name: compiled.params[name] for name, _ in parameters if name not in query.parameters
        }
        new = CompiledQuery(str(compiled), constants, parameters, columns)
        return self._compiled.setdefault(statement, new)

    def _execute(self, text: str, values: Sequence[Any], bounded: bool) -> Rows:
        connection = call = None
        try:
            connection = self._checkout_live()
            call = self._begin_call(connection, bounded)
            self._learn_backend(connection)
            self._set_bounds(connection, bounded)
            return self._execute_on(connection, text, values)
        except self._errors as error:
            raise self._wrap_error(error, connection, text, values) from error
        except BaseException as error:
            if connection is not None:
                connection.invalidate(error)  # an interrupted connection is in an unknown state
            raise
        finally:
            deadlines.end(call)
            if connection is not None:
                self._checkin(connection)

    def _begin_call(self, connection: PoolProxiedConnection, bounded: bool) -> int | None:
        """Begin the time limit of a call on an engine of the library's own."""
        if self._patience is None or not bounded:
            return None
        return deadlines.begin(connection.driver_connection, self._patience + GRACE_SECONDS)

    def _set_bounds(self, connection: PoolProxiedConnection, bounded: bool) -> None:
        """Set the timeouts of the session that the role or the URL has not set.

        Not through a pooler, which would give the settings to other clients.
        """
        if self._bounds is None or self._has_bounds(connection, bounded):
            return
        info, cursor = connection.info, connection.cursor()
        if BOUNDS not in info:
            cursor.execute(SET_BOUNDS, self._bounds)
            found: Any = cursor.fetchone()
            info[BOUNDS], info[SET_BY_US] = True, found[1] is not None
        if info[BOUNDS] is not bounded and info[SET_BY_US]:
            timeout = self._bounds.statement_timeout if bounded else 0
            cursor.execute(f"SET statement_timeout = {timeout}")
        info[BOUNDS] = bounded
        cursor.close()

    def _has_bounds(self, connection: PoolProxiedConnection, bounded: bool) -> bool:
        if self._bounds is None or connection.info[BACKEND].pooled:
            return True
        return connection.info.get(BOUNDS) is bounded

    def _checkout_live(self) -> PoolProxiedConnection:
        """Check out a connection that the server has not ended meanwhile."""
        while True:
            connection = self._checkout()
            if self._is_sqlite or not has_ended(connection):
                return connection
            self._drop(connection)

    def _checkout(self) -> PoolProxiedConnection:
        return self.engine.raw_connection()

    def _learn_backend(self, connection: PoolProxiedConnection) -> Backend | None:
        """Return the server process of a connection, queried when the connection is first used.

        A broken connection can no longer report it.
        """
        if not self._is_sqlite and BACKEND not in connection.info:
            connection.info[BACKEND] = self._query_backend(connection)
        return connection.info.get(BACKEND)

    def _query_backend(self, connection: PoolProxiedConnection) -> Backend:
        driver: Any = connection.driver_connection
        check_encoding(driver)
        adapted: Any = connection.dbapi_connection  # waits for a driver for asyncio
        was_autocommit = adapted.autocommit
        adapted.autocommit = True
        try:
            cursor = adapted.cursor()
            cursor.execute(SELECT_BACKEND)
            number, started, server_started = cursor.fetchone()
            cursor.close()
        finally:
            if not was_autocommit and is_idle(driver):
                adapted.autocommit = False
        # A pooler cannot know at the login which server process will execute the statements.
        pooled = number != driver.info.backend_pid
        pooled |= bool(self.engine.get_execution_options().get(BEHIND_POOLER))
        return Backend(number, started, server_started, pooled)

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
        self, error: Any, connection: PoolProxiedConnection | None, text: str, values: Sequence[Any]
    ) -> Exception:
        dialect = self.engine.dialect
        dbapi_connection = connection and connection.dbapi_connection
        broken = bool(dialect.is_disconnect(error, dbapi_connection, None))
        backend = None if connection is None else connection.info.get(BACKEND)
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
        return ConnectionBroken(wrapped, backend) if broken else wrapped


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
        permits = self._reserved if query.skip_locked else self._permits
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


_of_own_engines: Final = WeakSet[Executor]()
_inherited: Final = list[object]()
"""Connections of the parent of a forked process. To close them here would end its sessions."""


def reset_after_fork(executor: Executor) -> None:
    """Let an executor begin without connections in each forked process."""
    _of_own_engines.add(executor)


def forget_inherited_connections() -> None:
    """Let every executor of a forked process begin without the connections of its parent."""
    for executor in [*_of_own_engines]:
        _inherited.append((executor._idle, executor.engine.pool))  # noqa: SLF001 - of this module
        executor.engine.dispose(close=False)
        executor._reset()  # noqa: SLF001


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=forget_inherited_connections)
