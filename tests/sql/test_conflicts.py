"""Serialization failures, deadlocks and stale snapshots: retried, or reported as a conflict."""

import asyncio
import threading
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine

from execution_core import (
    ConcurrentUpdate,
    ExecutionManager,
    InvalidStateTransition,
    SqlExecutionStore,
    connect,
)

from ..conftest import Database
from ..support.history import assert_legal
from .lost_connections import (
    blocked_pids,
    open_bound_manager,
    row_lock,
    wait_for,
)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_conflict_outside_transaction_is_retried(
    postgres_database: Database, level: str, mode: str, runner: asyncio.Runner
) -> None:
    """The default isolation level of the server is stricter; single statements use it."""
    options = f"?options=-c%20default_transaction_isolation%3D{level.replace(' ', '%5C%20')}"
    with (
        open_bound_manager(postgres_database.url + options, "sync", "own", runner) as manager,
        connect(postgres_database.url) as other,
    ):
        for rival, expected in (("checkpoint", "running"), ("cancel", InvalidStateTransition)):
            id = other.create("work").id
            answers: list[Any] = []

            def start(id: str = id, answers: list[Any] = answers) -> None:
                try:
                    answers.append(manager.start(id).status)
                except Exception as error:
                    answers.append(type(error))

            caller = threading.Thread(target=start)
            with row_lock(postgres_database, id) as connection:
                caller.start()
                wait_for(lambda: blocked_pids(postgres_database))
                within = other.within(connection)
                within.checkpoint(id, "k", 1) if rival == "checkpoint" else within.cancel(id)
                connection.commit()
            caller.join(30)
            assert answers == [expected]


def test_conflict_repeated_raises_concurrent_update(postgres_database: Database) -> None:
    """A trigger raises a serialization failure at every UPDATE."""
    database = postgres_database
    with connect(database.url) as manager:
        id = manager.create("work").id
        database.run(
            "CREATE FUNCTION rival() RETURNS trigger LANGUAGE plpgsql AS $$"
            " BEGIN RAISE EXCEPTION 'could not serialize' USING ERRCODE = '40001'; END $$"
        )
        database.run(
            "CREATE TRIGGER rival BEFORE UPDATE ON executions FOR EACH ROW EXECUTE FUNCTION rival()"
        )
        try:
            with pytest.raises(ConcurrentUpdate, match=f"Cannot start execution {id}: another"):
                manager.start(id)
            with pytest.raises(ConcurrentUpdate, match=r"Cannot claim executions: .* try again"):
                manager.claim()
        finally:
            database.run("DROP TRIGGER rival ON executions")
            database.run("DROP FUNCTION rival()")
        assert manager.start(id).attempts == 1


def test_deadlock_in_host_transactions_raises_concurrent_update(
    postgres_database: Database,
) -> None:
    engine = create_engine(postgres_database.url)
    manager = ExecutionManager(SqlExecutionStore(engine))
    first, second = (manager.create("work").id for _ in range(2))
    outcomes: list[Any] = []

    def cross(connection: Connection, id: str) -> None:
        try:
            outcomes.append(manager.within(connection).start(id).attempts)
            connection.commit()
        except ConcurrentUpdate as problem:
            outcomes.append(problem.verb)
            connection.rollback()

    with engine.connect() as one, engine.connect() as other:
        manager.within(one).start(first)
        manager.within(other).start(second)
        caller = threading.Thread(target=cross, args=(one, second))
        caller.start()
        wait_for(lambda: blocked_pids(postgres_database))
        cross(other, first)
        caller.join(30)
    assert sorted(map(str, outcomes)) == ["1", "start"]
    assert_legal(postgres_database)
    engine.dispose()


def test_stale_snapshot_in_sqlite_raises_concurrent_update(tmp_path: Any) -> None:
    """SQLite only; test_docs.py has the same for PostgreSQL."""
    from execution_core import configure_sqlite, migrate

    url = f"sqlite:///{tmp_path}/executions.db"
    migrate.upgrade(url)
    engine = configure_sqlite(create_engine(url))
    manager = ExecutionManager(SqlExecutionStore(engine))
    id = manager.create("work").id
    reader = engine.execution_options(sqlite_begin="DEFERRED")
    with reader.connect() as connection:
        assert manager.within(connection).get(id).status == "pending"
        manager.start(id)
        with pytest.raises(ConcurrentUpdate):
            manager.within(connection).cancel(id)
        connection.rollback()
        assert manager.within(connection).cancel(id).status == "cancelled"
        connection.commit()
    engine.dispose()
