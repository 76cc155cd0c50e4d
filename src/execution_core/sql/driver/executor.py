"""The fast path: one statement of our own, outside any transaction, straight to the driver.

What SQLAlchemy does anew for every execution (a Connection, a context, a result) takes longer than
the statement itself. Here a statement is compiled once for a dialect, and then only values move.
Connections still come from the engine's pool, types still convert the values, errors are still
SQLAlchemy's. Only this module and its twin `async_direct` know how a driver is called.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Dialect,
    Engine,
    PoolProxiedConnection,
    SingletonThreadPool,
    StaticPool,
)
from sqlalchemy.exc import DBAPIError

from ..statements.queries import Query, Statement
from .compiled import CompiledQuery, Values, bind_values, convert_rows
from .connection_cache import (
    IdleConnections,
    acquire,
    cache_cursor,
    cached_cursor,
    is_idle,
    new_permits,
)
from .engine import OWN_POOL, begin_sqlite, for_single_statements
from .lost import BackendProcess, ConnectionBroken, boot_clock

_FLOAT8: Final = 701  # the type code of the one column whose conversion asks for one


def execute_via_sqlalchemy(connection: Connection, query: Query) -> Sequence[Values]:
    """Run a query on SQLAlchemy's own way, as part of whatever transaction there is."""
    # Whole, also where the host's engine streams.
    options = {"stream_results": False, "yield_per": None}
    return connection.execute(query.statement, query.parameters, execution_options=options).all()


class Executor:
    """Runs single statements, which commit themselves, on connections of an engine's pool.

    Raises:
        InvalidValue: the engine is over another database or driver.
    """

    _awaits = False  # whether it can wait for a driver for asyncio

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ordinary = for_single_statements(engine)
        self._errors = engine.dialect.loaded_dbapi.Error
        self._is_sqlite = engine.dialect.name == "sqlite"
        self.shares_connection = isinstance(engine.pool, StaticPool | SingletonThreadPool)
        self._never_direct = isinstance(engine.pool, StaticPool) or (
            engine.dialect.is_async and not self._awaits
        )
        # The style of parameters in which no driver looks up names.
        kind: Callable[..., Dialect] = type(engine.dialect)
        self._dialect = kind(paramstyle="qmark" if self._is_sqlite else "format")
        self._compiled: dict[Statement, CompiledQuery] = {}
        self._backends: deque[int] = deque(maxlen=1000)

    def rows(self, query: Query) -> Sequence[Values]:
        """Run a query and return all its rows.

        Raises:
            Lost: the connection was lost, and it is unknown what the query has done.
            DBAPIError: what else the driver raised, as SQLAlchemy raises it.
        """
        if self._must_use_sqlalchemy():
            return self._rows_via_sqlalchemy(query)
        spelled = self._compile(query)
        return convert_rows(spelled, self._execute(spelled.text, bind_values(spelled, query)))

    def close(self) -> None:
        """Close all connections of the engine."""
        self.engine.dispose()

    def _rows_via_sqlalchemy(self, query: Query) -> Sequence[Values]:
        with self._ordinary.begin() as connection:
            return self._run(connection, query)

    def _run(self, connection: Connection, query: Query) -> Sequence[Values]:
        backend = self._learn_backend(connection.connection)
        try:
            return execute_via_sqlalchemy(connection, query)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise self._lost(error, backend) from error
            raise

    def _must_use_sqlalchemy(self) -> bool:
        """Tell whether a statement had better go SQLAlchemy's way.

        Because somebody wants to see, or to change, what SQLAlchemy does; because callers share one
        connection, and so its transaction; or because the driver is for asyncio, and this is not.
        """
        engine = self.engine
        events, of_dialect = engine.dispatch, engine.dialect.dispatch
        return bool(
            self._never_direct
            or events.before_cursor_execute
            or events.after_cursor_execute
            or events.before_execute
            or events.after_execute
            or events.engine_connect
            or events.commit
            or (events.begin and any(each is not begin_sqlite for each in events.begin))
            or of_dialect.do_execute
            or of_dialect.handle_error
            or engine.logger.isEnabledFor(logging.INFO)
            or "schema_translate_map" in engine.get_execution_options()
        )

    def _compile(self, query: Query) -> CompiledQuery:
        statement = query.statement
        if spelled := self._compiled.get(statement):
            return spelled
        dialect = self._dialect
        compiled: Any = statement.compile(dialect=dialect)
        parameters = [
            (name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for name in compiled.positiontup
        ]
        readers = [
            column.type.dialect_impl(dialect).result_processor(dialect, _FLOAT8)
            for column in statement.exported_columns
        ]
        columns = [(n, reader) for n, reader in enumerate(readers) if reader]
        constants = {  # such as an OFFSET 0 that SQLite's LIMIT brings along
            name: compiled.params[name] for name, _ in parameters if name not in query.parameters
        }
        spelled = CompiledQuery(str(compiled), constants, parameters, columns)
        return self._compiled.setdefault(statement, spelled)

    def _execute(self, text: str, values: Values) -> Sequence[Values]:
        pooled = None
        try:
            pooled = self._take()
            return self._execute_on(pooled, text, values)
        except self._errors as error:
            raise self._as_sqlalchemy(error, pooled, text, values) from error
        except BaseException as error:
            if pooled is not None:
                pooled.invalidate(error)  # an interrupt may have left anything behind
            raise
        finally:
            if pooled is not None:
                self._checkin(pooled)

    def _take(self) -> PoolProxiedConnection:
        pooled = self.engine.raw_connection()
        self._learn_backend(pooled)
        return pooled

    def _learn_backend(self, pooled: PoolProxiedConnection) -> BackendProcess | None:
        """Learn the server process of a connection: one that is lost can no longer tell."""
        if not self._is_sqlite and BACKEND not in pooled.info:
            driver: Any = pooled.driver_connection
            backend = BackendProcess(driver.info.backend_pid, boot_clock())
            pooled.info[BACKEND] = backend
            self._backends.append(backend.number)
        return pooled.info.get(BACKEND)

    def _lost(self, error: DBAPIError, backend: BackendProcess | None) -> ConnectionBroken:
        return ConnectionBroken(error, backend, self._backends.__contains__)

    def _checkin(self, pooled: PoolProxiedConnection) -> None:
        pooled.close()

    def _execute_on(
        self, pooled: PoolProxiedConnection, text: str, values: Values
    ) -> Sequence[Values]:
        driver: Any = pooled.driver_connection
        if self._is_sqlite:
            found: Sequence[Values] = driver.execute(text, values).fetchall()
            driver.commit()  # where the host lets the driver begin transactions by itself
            return found
        own = driver.autocommit
        if not own:
            driver.autocommit = True  # no BEGIN and no COMMIT: one round trip
        try:
            cursor = cached_cursor(pooled)
            found = cursor.execute(text, values).fetchall()
        finally:
            if not own and is_idle(driver):
                driver.autocommit = False
        cache_cursor(pooled, cursor, values, found)
        return found

    def _as_sqlalchemy(
        self,
        error: Any,
        pooled: PoolProxiedConnection | None,
        text: str,
        values: Values,
    ) -> Exception:
        dialect = self.engine.dialect
        # A connection that was never made has no say in whether it was lost.
        lost = bool(dialect.is_disconnect(error, pooled and pooled.dbapi_connection, None))
        backend = None if pooled is None else pooled.info.get(BACKEND)
        if pooled is not None:
            if lost:
                # Drop it, and whatever was connected before it, as SQLAlchemy does.
                self.engine.pool._invalidate(pooled, error)  # noqa: SLF001 - there is no public way
            else:
                pooled.rollback()
        wrapped: Any = DBAPIError.instance(
            None if pooled is None else text,
            None if pooled is None else tuple(values),
            error,
            self._errors,
            hide_parameters=self.engine.hide_parameters,
            connection_invalidated=lost,
            dialect=dialect,
        )
        return self._lost(wrapped, backend) if lost else wrapped


class CachingExecutor(Executor):
    """`Executor` on an engine that nobody else uses: it keeps its connections.

    They need no reset and no going through SQLAlchemy's pool, which takes as long as all else that
    a call does, and which may lose a place to a signal whose handler raises.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._idle = IdleConnections()
        self._permits = new_permits(OWN_POOL)

    def rows(self, query: Query) -> Sequence[Values]:
        """Run a query and return all its rows, as soon as there is a connection to spare."""
        permit = acquire(self._permits)
        try:
            return super().rows(query)
        finally:
            self._permits.put(permit)
            del permit  # which the traceback of an error would keep

    def close(self) -> None:
        """Close all connections of the engine."""
        self._idle.close()
        super().close()

    def _take(self) -> PoolProxiedConnection:
        return self._idle.pop() or super()._take()

    def _checkin(self, pooled: PoolProxiedConnection) -> None:
        self._idle.push(pooled)


BACKEND: Final = "execution_core.backend"
