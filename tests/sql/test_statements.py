"""The statements sent to the database, counted at the driver: one per successful verb."""

import asyncio
import re
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
)
from execution_core.sql.driver.engine import create_async_engine, create_sync_engine

from ..conftest import Blocking, Database


class Wire:
    """Records the statements that a connection runs (SQLite) or sends (PostgreSQL).

    SQLite calls back for each statement. For PostgreSQL, libpq writes a trace of the protocol: each
    statement is one Execute or one simple Query.
    """

    def __init__(self, engine: Any) -> None:
        self.statements: list[str] = []
        self.trace = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by the tests
        sync = getattr(engine, "sync_engine", engine)
        self.is_sqlite = sync.dialect.name == "sqlite"
        event.listen(sync, "connect", self.watch)

    def watch(self, connection: Any, record: Any) -> None:
        driver = getattr(connection, "driver_connection", connection)
        if hasattr(driver, "pgconn"):
            driver.pgconn.trace(self.trace.fileno())
        elif hasattr(driver, "_conn"):
            driver._conn.set_trace_callback(self.statements.append)
        else:
            driver.set_trace_callback(self.statements.append)

    def pop_statements(self) -> list[str]:
        """Return the statements since the last call."""
        if self.is_sqlite:
            statements, self.statements[:] = self.statements[:], []
            return statements
        self.trace.seek(0)
        trips = re.findall(r"^.*\tF\t\d+\t(?:Execute|Query).*$", self.trace.read(), re.MULTILINE)
        self.trace.seek(0)
        self.trace.truncate()
        return trips


def drop_sqlite_triggers(database: Database) -> None:
    """Drop the triggers of SQLite, which also calls back for the statements of triggers."""
    if database.name == "sqlite":
        for row in database.rows("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            database.run(f"DROP TRIGGER {row['name']}")


@pytest.fixture
def watched(database: Database, mode: str, runner: asyncio.Runner) -> Any:
    drop_sqlite_triggers(database)
    if mode == "sync":
        engine = create_sync_engine(database.url)
        wire = Wire(engine)
        yield ExecutionManager(SqlExecutionStore(engine)), wire
        engine.dispose()
    else:
        async_engine = create_async_engine(database.url)
        wire = Wire(async_engine)
        manager = AsyncExecutionManager(AsyncSqlExecutionStore(async_engine))
        yield Blocking(manager, runner), wire
        runner.run(async_engine.dispose())
    wire.trace.close()


def test_statements_of_each_verb_are_counted(watched: tuple[ExecutionManager, Wire]) -> None:
    manager, wire = watched

    def counted(call: Callable[[], Any], times: int = 1) -> Any:
        wire.pop_statements()
        answer = call()
        statements = wire.pop_statements()
        assert len(statements) == times, statements
        return answer

    manager.list()  # connects
    parent = counted(lambda: manager.create("a"))
    id = counted(lambda: manager.create("a", max_attempts=9, idempotency_key="k")).id
    child = counted(lambda: manager.create("a", parent_id=parent.id)).id
    # psycopg prepares a statement at its sixth execution, so repeat it eight times.
    for n in range(8):
        counted(lambda: manager.start(id, worker="w"))
        counted(lambda: manager.update_progress(id, 1, 2, message="m"))
        counted(lambda: manager.checkpoint(id, "k", [1]))
        counted(lambda: manager.advance(id, 1, 2, key="k", value=[1]))
        counted(lambda: manager.heartbeat(id))
        owner = manager.attempt(manager.get(id)).__enter__()
        counted(lambda: owner.advance(1, 2, key="k", value=[1]))  # noqa: B023
        counted(lambda: list(owner.each([1], checkpoint=f"at-{n}")))  # noqa: B023
        counted(owner.heartbeat)
        counted(lambda: owner.log("m"))  # noqa: B023
        counted(lambda: manager.fail(id, "no", retryable=True))
    counted(lambda: manager.fail(id, "no"))
    counted(lambda: manager.retry(id))
    counted(lambda: manager.start(id))
    counted(lambda: manager.timeout(id))
    # The second one ends what awaits its children.
    counted(lambda: manager.sweep(stalled_after=timedelta(days=1)), 2)
    counted(lambda: manager.claim("a", limit=2))
    with manager.attempt(manager.get(child)) as attempt:
        wire.pop_statements()
    assert len(wire.pop_statements()) == 2  # the second one ends a parent that awaits its children
    counted(lambda: manager.cancel(parent.id, "why"))
    counted(lambda: manager.get(id))
    counted(lambda: manager.list(status="failed", type="a", limit=3))
    counted(lambda: manager.find_by_idempotency_key("k"))
    counted(lambda: manager.log(id, "m", data=[1]))
    counted(lambda: manager.logs(id))
    # The triggers of SQLite are dropped: no history is found, so the execution is read as well.
    counted(lambda: manager.history(id), 2 if wire.is_sqlite else 1)
    counted(lambda: manager.attempts(id), 2 if wire.is_sqlite else 1)
    counted(lambda: manager.replay(parent.id), 2)
    counted(lambda: manager.prune(timedelta(days=1)))
    # SQLite also calls back for the four foreign keys that the DELETE checks.
    counted(lambda: manager.delete(child), 5 if wire.is_sqlite else 1)
    # A read follows only if the UPDATE matched no row, or the key of a create is taken.
    with pytest.raises(Exception, match="cancelled"):
        counted(lambda: manager.start(parent.id), 2)
    with pytest.raises(Exception, match="no longer owns"):
        counted(attempt.heartbeat, 2)
    counted(lambda: manager.create("a", idempotency_key="k"), 2)


def test_statements_of_bulk_verbs_are_counted(watched: tuple[ExecutionManager, Wire]) -> None:
    manager, wire = watched

    def counted(call: Callable[[], Any], times: int = 1) -> Any:
        wire.pop_statements()
        answer = call()
        statements = wire.pop_statements()
        assert len(statements) == times, statements
        return answer

    id = manager.create("a").id
    counted(lambda: manager.create_many([{"type": "a"}] * 500))
    counted(lambda: manager.create_many([{"type": "b"}] * 501), 2)
    keyed = [{"type": "a", "idempotency_key": key} for key in "xyz"]
    counted(lambda: manager.create_many(keyed), 2)
    counted(lambda: manager.create_many(keyed))
    counted(lambda: manager.create_many([{"type": "c", "parent_id": id}] * 3), 2)
    jobs = manager.claim("b", limit=500)
    ends = [(job, 1) for job in jobs]
    counted(lambda: manager.complete_many(ends))
    counted(lambda: manager.complete_many(ends), 2)  # one SELECT explains all refusals


def test_statements_within_transaction_include_begin_and_commit(database: Database) -> None:
    """The control of the recorder: it also counts BEGIN and COMMIT."""
    drop_sqlite_triggers(database)
    engine = create_sync_engine(database.url)
    wire = Wire(engine)
    manager = ExecutionManager(SqlExecutionStore(engine))
    manager.list()
    wire.pop_statements()
    with engine.begin() as connection:
        manager.within(connection).create("a")
    assert len(wire.pop_statements()) == 3
    wire.trace.close()
    engine.dispose()


def test_sqlite_settings_are_wal_foreign_keys_busy_timeout_and_full(database: Database) -> None:
    if database.name == "postgresql":
        with pytest.raises(Exception, match="engine must be over SQLite, not postgresql"):
            configure_sqlite(database.engine)
        return
    settings = {
        name: database.rows(f"PRAGMA {name}")[0].popitem()[1]
        for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
    }
    assert settings == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "busy_timeout": 30_000,
        "synchronous": 2,
    }
