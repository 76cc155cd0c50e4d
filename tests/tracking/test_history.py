"""`history` and `attempts`: how an execution came to its status, as frozen models."""

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import Table, create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    AttemptRecord,
    ExecutionFailure,
    ExecutionManager,
    ExecutionNotFound,
    ExecutionStatus,
    HistoryEntry,
    InvalidValue,
    SqlExecutionStore,
    tables,
)
from execution_core.core.validation import new_id

from ..conftest import Blocking, Database
from ..support.memory import AsyncMemoryStore, memory_store
from ..support.states import STATES, bring_to


def rows(database: Database, table: Table, id: str, order: str) -> list[Any]:
    query = select(table).where(table.c.execution_id == id).order_by(table.c[order])
    with database.engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


@pytest.mark.parametrize("state", STATES)
def test_history_and_attempts_equal_table_and_view(
    database: Database, manager: ExecutionManager, state: str
) -> None:
    bring_to(manager, "failed-last")
    execution = bring_to(manager, state)
    recorded = rows(database, tables.execution_history, execution.id, "seq")
    history = manager.history(execution.id)
    assert history == [HistoryEntry(**row) for row in recorded]
    assert (len(history), history[-1].to_status) == (len(STATES[state]) + 1, execution.status)
    made = rows(database, tables.execution_attempts, execution.id, "attempt")
    attempts = manager.attempts(execution.id)
    assert attempts == [AttemptRecord(**row) for row in made]
    assert len(attempts) == execution.attempts


def test_history_shows_who_did_what_and_why(manager: ExecutionManager) -> None:
    id = manager.create("work", max_attempts=2).id
    manager.start(id, worker="host-1")
    error = ExecutionFailure(message="no answer", code="E1", stack="line 1", retryable=True)
    manager.fail(id, error, by="ada")
    manager.start(id, worker="host-2")
    manager.cancel(id, "withdrawn", by="bob")

    history = manager.history(id)
    assert [(e.seq, e.from_status, e.to_status, e.attempt) for e in history] == [
        (1, None, "pending", 0),
        (2, "pending", "running", 1),
        (3, "running", "retrying", 1),
        (4, "retrying", "running", 2),
        (5, "running", "cancelled", 2),
    ]
    assert all(isinstance(each.to_status, ExecutionStatus) for each in history)
    assert [each.error for each in history] == [None, None, error, None, None]
    assert (history[1].worker, history[2].actor) == ("host-1", "ada")
    assert (history[4].actor, history[4].reason) == ("bob", "withdrawn")
    assert [each.occurred_at for each in history] == sorted(each.occurred_at for each in history)
    assert history[0].occurred_at.utcoffset() == timedelta(0)

    first, second = manager.attempts(id)
    assert (first.attempt, first.worker, first.outcome, first.error) == (
        *(1, "host-1", "failed"),
        error,
    )
    assert (first.started_at, first.ended_at) == (history[1].occurred_at, history[2].occurred_at)
    assert (second.outcome, second.error, second.ended_at) == (
        *("cancelled", None),
        history[4].occurred_at,
    )
    assert second.duration_seconds is not None
    assert second.duration_seconds >= 0


def test_attempts_of_running_and_released_execution(manager: ExecutionManager) -> None:
    id = manager.create("work").id
    assert manager.attempts(id) == []
    manager.start(id)
    (running,) = manager.attempts(id)
    assert (running.outcome, running.ended_at, running.duration_seconds) == ("running", None, None)
    manager.release(id)
    assert [each.outcome for each in manager.attempts(id)] == ["released"]
    with pytest.raises(ValidationError, match="frozen"):
        running.outcome = "failed"  # type: ignore[misc]


@pytest.mark.parametrize("verb", ["history", "attempts"])
def test_history_unknown_execution_raises_not_found(manager: ExecutionManager, verb: str) -> None:
    bring_to(manager, "completed")
    for id in (new_id(), "garbage"):
        with pytest.raises(ExecutionNotFound):
            getattr(manager, verb)(id)


@pytest.mark.parametrize("verb", ["history", "attempts"])
def test_history_of_store_without_it_raises(mode: str, runner: Any, verb: str) -> None:
    asynchronous: Any = Blocking(AsyncExecutionManager(AsyncMemoryStore()), runner)
    manager = ExecutionManager(memory_store()) if mode == "sync" else asynchronous
    id = manager.create("work").id
    with pytest.raises(NotImplementedError, match=f"Store cannot read the {verb} of an execution"):
        getattr(manager, verb)(id)


def test_history_within_shows_own_transaction(database: Database) -> None:
    engine = create_engine(database.url)
    manager = ExecutionManager(SqlExecutionStore(engine))
    id = manager.create("work").id
    with engine.connect() as connection:
        inside = manager.within(connection)
        inside.start(id, worker="host")
        assert [each.to_status for each in inside.history(id)] == ["pending", "running"]
        assert [each.worker for each in inside.attempts(id)] == ["host"]
        with pytest.raises(ExecutionNotFound):
            inside.attempts(new_id())
        connection.rollback()
    assert len(manager.history(id)) == 1
    assert manager.attempts(id) == []
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_history_within_async_shows_own_transaction(
    database: Database, runner: Any, driver: str
) -> None:
    async def run() -> None:
        engine = create_async_engine(url)
        manager = AsyncExecutionManager(AsyncSqlExecutionStore(engine))
        id = (await manager.create("work")).id
        async with engine.connect() as connection:
            inside = manager.within(connection)
            await inside.start(id, worker="host")
            assert [each.to_status for each in await inside.history(id)] == ["pending", "running"]
            assert [each.worker for each in await inside.attempts(id)] == ["host"]
            await connection.rollback()
        assert await manager.attempts(id) == []
        await engine.dispose()

    url = database.engine.url.set(drivername=f"postgresql+{driver}")
    if database.name == "sqlite":
        url = database.engine.url.set(drivername="sqlite+aiosqlite")
    runner.run(run())


def test_history_unreadable_error_is_named(database: Database, manager: ExecutionManager) -> None:
    id = bring_to(manager, "failed").id
    error = '{"message": "no", "n": ' + "9" * 5000 + "}"
    value = "CAST(:error AS jsonb)" if database.name == "postgresql" else ":error"
    where = "WHERE execution_id = :id AND error IS NOT NULL"
    database.run(f"UPDATE execution_history SET error = {value} {where}", id=id, error=error)
    for read in (manager.history, manager.attempts):
        with pytest.raises(InvalidValue, match=f"error of {id} cannot be read by Python"):
            read(id)
