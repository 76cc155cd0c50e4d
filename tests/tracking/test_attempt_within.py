"""Attempts inside the caller's transaction."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    AttemptLost,
    InvalidValue,
    connect,
)
from execution_core.sql.driver.engine import create_async_engine

from ..conftest import Database


def test_attempt_within_writes_follow_the_transaction(database: Database) -> None:
    with connect(database.url) as manager:
        id = manager.create("a").id
        attempt = manager.attempt(manager.start(id)).__enter__()
        for end in ("rollback", "commit"):
            with database.engine.connect() as connection:
                inside = attempt.within(connection)
                inside.advance(1, 2, key="done", value=1)
                inside.heartbeat()
                assert inside.checkpoints == {"done": 1}
                getattr(connection, end)()
            assert manager.get(id).checkpoints == ({"done": 1} if end == "commit" else {})
            assert attempt.checkpoints == {}
        manager.cancel(id)
        with pytest.raises(AttemptLost), database.engine.begin() as connection:
            connection.execute(text("UPDATE executions SET metadata = '{\"x\": 1}'"))
            attempt.within(connection).checkpoint("done", 2)
        assert manager.get(id).metadata == {}


def test_attempt_within_runs_whole_in_the_transaction(database: Database) -> None:
    with connect(database.url) as manager:
        ids = [manager.create("a", max_attempts=2).id for _ in range(2)]
        with database.engine.connect() as connection:
            inside = manager.within(connection)
            with inside.attempt(ids[0]) as attempt:
                attempt.checkpoint("k", 1)
            connection.rollback()
            with inside.attempt(ids[1]) as attempt:
                attempt.checkpoint("k", 1)
            connection.commit()
            with pytest.raises(InvalidValue, match="heartbeat needs a connection of its own"):
                inside.attempt(ids[0], heartbeat=timedelta(seconds=1))
            view = manager.attempt(ids[0], heartbeat=timedelta(seconds=1)).within(connection)
            with pytest.raises(RuntimeError, match="An attempt has one block"), view:
                pytest.fail("it was entered")
        assert [manager.get(id).status for id in ids] == ["pending", "completed"]


def test_attempt_within_aborted_transaction_keeps_error(
    postgres_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """On PostgreSQL: SQLite does not abort a transaction after an error."""
    with connect(postgres_database.url) as manager:
        id = manager.create("a").id
        with postgres_database.engine.connect() as connection:
            with (
                pytest.raises(Exception, match="division by zero"),
                manager.within(connection).attempt(id),
            ):
                connection.execute(text("SELECT 1 / 0"))
            connection.rollback()
        assert manager.get(id).status == "pending"
    assert "could not be recorded" in caplog.text


def test_attempt_within_task_scoped_session_uses_that_session(database: Database) -> None:
    """SQLAlchemy's recipe for asyncio: one session per task, found by the current task."""
    from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker

    async def run() -> None:
        engine = create_async_engine(database.url)
        manager = AsyncExecutionManager(AsyncSqlExecutionStore(engine))
        job = await manager.create("a", max_attempts=2)
        scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        async with manager.within(scoped).attempt(job.id) as attempt:
            await attempt.update_progress(1, 2)
        assert len(scoped.registry.registry) == 1
        await scoped.commit()
        await scoped.remove()
        assert (await manager.get(job.id)).status == "completed"
        await engine.dispose()

    asyncio.run(asyncio.wait_for(run(), 30))
