"""Retention: what finished long ago is deleted with all that belongs to it, and nothing else."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from execution_core import (
    Execution,
    ExecutionManager,
    ExecutionNotFound,
    InvalidValue,
    SqlExecutionStore,
    connect,
)
from execution_core.core.selections import check_prune_request
from execution_core.sql.statements import queries

from ..conftest import Database
from ..support.processes import race
from ..support.states import STATES, bring_to

NOW = timedelta(0)


DAY = timedelta(days=1)


FINISHED = ("completed", "failed", "timed_out", "cancelled")


class Clock:
    """A clock that the test sets; each reading advances it by a millisecond."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 31, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


def remaining_ids(manager: ExecutionManager) -> set[str]:
    return {each.id for each in manager.list(limit=10_000)}


def test_prune_deletes_all_finished_and_no_live(any_manager: ExecutionManager) -> None:
    made = {name: bring_to(any_manager, name) for name in STATES}
    live = {each.id for each in made.values() if each.status not in FINISHED}
    assert any_manager.prune(DAY) == 0
    assert remaining_ids(any_manager) == {each.id for each in made.values()}
    assert any_manager.prune(NOW) == len(made) - len(live)
    assert remaining_ids(any_manager) == live
    assert any_manager.prune(NOW) == 0


def test_prune_age_counts_from_completion(database: Database) -> None:
    clock = Clock()
    manager = ExecutionManager(SqlExecutionStore(database.engine, clock=clock))
    old, slow = manager.create("a"), manager.create("a")
    manager.cancel(old.id)
    manager.start(slow.id)
    clock.now += 2 * DAY
    manager.complete(slow.id)
    clock.now += DAY
    assert manager.prune(3 * DAY) == 1
    assert remaining_ids(manager) == {slow.id}
    assert manager.prune(timedelta(hours=23)) == 1


def test_prune_filters_by_status_and_type(any_manager: ExecutionManager) -> None:
    made = {name: bring_to(any_manager, name) for name in FINISHED}
    assert any_manager.prune(NOW, status="completed") == 1
    assert any_manager.prune(NOW, status=["failed", "timed_out"], type="other") == 0
    assert any_manager.prune(NOW, status=["failed", "timed_out"], type="work") == 2
    assert remaining_ids(any_manager) == {made["cancelled"].id}
    assert any_manager.prune(NOW, status=[]) == 0


def test_prune_with_limit_deletes_oldest(any_manager: ExecutionManager) -> None:
    made = [any_manager.create("a") for _ in range(5)]
    for each in (made[3], made[0], made[4], made[1], made[2]):
        any_manager.cancel(each.id)
    remaining = {each.id for each in made}
    for gone in (3, 0, 4, 1, 2):
        # SQLite's clock does not distinguish finishes within one millisecond.
        assert any_manager.prune(NOW, limit=1) == 1
        remaining.discard(made[gone].id)
        assert len(remaining_ids(any_manager)) == len(remaining)
    assert any_manager.prune(NOW, limit=1) == 0


def test_prune_keeps_idempotency_keys_longer(any_manager: ExecutionManager) -> None:
    keyed = any_manager.create("a", idempotency_key="once")
    plain = any_manager.create("a")
    for each in (keyed, plain):
        any_manager.cancel(each.id)
    assert any_manager.prune(NOW, keys_older_than=DAY) == 1
    assert remaining_ids(any_manager) == {keyed.id}
    assert any_manager.create("a", idempotency_key="once").id == keyed.id
    assert any_manager.prune(DAY, keys_older_than=NOW) == 1
    assert any_manager.create("a", idempotency_key="once").id != keyed.id


def test_prune_keeps_parent_of_live_child(any_manager: ExecutionManager) -> None:
    parent = any_manager.create("workflow", max_attempts=2)
    child = any_manager.create("step", parent_id=parent.id, max_attempts=2)
    done = any_manager.create("step", parent_id=parent.id)
    any_manager.cancel(parent.id)
    any_manager.cancel(done.id)
    assert any_manager.prune(NOW) == 1
    any_manager.start(child.id)
    assert any_manager.prune(NOW) == 0
    any_manager.fail(child.id, "no", retryable=True)
    assert any_manager.prune(NOW) == 0
    assert remaining_ids(any_manager) == {parent.id, child.id}
    any_manager.fail(child.id, "no")
    assert any_manager.prune(NOW) == 2


def test_prune_keeps_all_ancestors_of_live_execution(any_manager: ExecutionManager) -> None:
    ids: list[str] = []
    for _ in range(4):
        ids.append(any_manager.create("step", parent_id=ids[-1] if ids else None).id)
    other = any_manager.create("other").id
    for id in (*ids[:-1], other):
        any_manager.cancel(id)
    assert any_manager.prune(NOW) == 1
    assert remaining_ids(any_manager) == {*ids}
    any_manager.cancel(ids[-1])
    assert any_manager.prune(NOW) == 4


def test_prune_deletes_history_and_logs_and_clears_links(
    database: Database, manager: ExecutionManager
) -> None:
    old = bring_to(manager, "completed")
    manager.log(old.id, "a line")
    again = manager.replay(old.id)
    assert manager.prune(NOW) == 1
    for table in ("execution_history", "execution_logs"):
        rows = database.rows(f"SELECT * FROM {table}")
        assert {str(row["execution_id"]) for row in rows} <= {again.id}
    assert manager.get(again.id).replay_of is None


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_delete_without_foreign_keys_clears_logs_and_links(database: Database) -> None:
    with connect(database.url) as manager:
        old = bring_to(manager, "completed")
        manager.log(old.id, "a line")
        again = manager.replay(old.id)
        with database.engine.connect() as connection:
            connection.exec_driver_sql("ROLLBACK")  # the PRAGMA works only outside transactions
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
            connection.exec_driver_sql("DELETE FROM executions WHERE id = ?", (old.id,))
            connection.exec_driver_sql("PRAGMA foreign_keys = ON")
            connection.exec_driver_sql("BEGIN")
        assert database.rows("SELECT * FROM execution_logs") == []
        assert manager.get(again.id).replay_of is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"older_than": 30}, "older_than must be a timedelta, not an int"),
        ({"older_than": timedelta(days=-1)}, "older_than must be at least 0"),
        ({"older_than": DAY, "keys_older_than": 1.5}, "keys_older_than must be a timedelta"),
        ({"older_than": DAY, "status": "running"}, "status must be one or several of completed"),
        ({"older_than": DAY, "status": ["failed", "x"]}, "status must be one or several of"),
        ({"older_than": DAY, "type": ""}, "type must not be empty"),
        ({"older_than": DAY, "limit": 0}, "limit must be from 1 to 10000, not 0"),
        ({"older_than": DAY, "limit": True}, "limit must be an integer"),
    ],
)
def test_prune_invalid_arguments_are_refused(
    any_manager: ExecutionManager, arguments: dict[str, Any], says: str
) -> None:
    done = bring_to(any_manager, "completed")
    with pytest.raises(InvalidValue, match=says):
        any_manager.prune(**arguments)
    assert remaining_ids(any_manager) == {done.id}


def test_prune_within_transaction_follows_it(database: Database) -> None:
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    done = bring_to(manager, "completed")
    with database.engine.connect() as connection:
        assert manager.within(connection).prune(NOW) == 1
        connection.rollback()
    assert manager.get(done.id) == done


# SQLite has one writer at a time: these situations cannot occur there.
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@on_postgresql
def test_prune_skips_rows_locked_by_others(database: Database) -> None:
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    failed, done = bring_to(manager, "failed"), bring_to(manager, "completed")
    with database.engine.begin() as connection:
        manager.within(connection).retry(failed.id)
        assert manager.prune(NOW) == 1
    assert remaining_ids(manager) == {failed.id}
    assert manager.get(failed.id).status == "retrying"
    with pytest.raises(ExecutionNotFound):
        manager.get(done.id)


def finished_with_child(manager: ExecutionManager) -> tuple[str, str]:
    """Return the ids of a finished parent and of its finished child, which can be replayed."""
    parent = manager.create("work").id
    step = manager.create("step", parent_id=parent).id
    for id in (step, parent):
        manager.cancel(id)
    return parent, step


@on_postgresql
def test_prune_skips_parent_of_uncommitted_child(database: Database) -> None:
    """The transaction of the child locks the parent until the child is visible."""
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    parent, step = finished_with_child(manager)
    with database.engine.begin() as connection:
        child = manager.within(connection).replay(step)
        assert manager.prune(NOW, type="work") == 0
    assert manager.prune(NOW, type="work") == 0
    assert manager.get(child.id).parent_id == parent


@on_postgresql
def test_prune_keeps_parent_of_child_committed_meanwhile(database: Database) -> None:
    """The statement has chosen the parent and waits; then the child is committed."""
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    parent, step = finished_with_child(manager)
    database.run(
        # Called after the row was chosen by status and age: it waits for the lock of the test.
        "CREATE OR REPLACE FUNCTION test_wait(id uuid) RETURNS boolean LANGUAGE plpgsql VOLATILE"
        " AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN true; END $$"
    )
    pruned: list[int] = []

    def prune() -> None:
        statement, parameters, *_ = queries.prune(
            check_prune_request(NOW, None, "work", None, 10), None
        )
        with database.engine.begin() as connection:
            compiled: Any = statement.compile(dialect=database.engine.dialect)
            waiting = compiled.string.replace(
                "ORDER BY executions.completed_at",
                "AND test_wait(executions.id) ORDER BY executions.completed_at",
            )
            assert waiting != compiled.string
            values = {**compiled.params, **parameters}
            found = connection.exec_driver_sql(
                waiting, {name: values[name] for name in compiled.params}
            )
            pruned.append(len(found.all()))

    with database.engine.begin() as gate:
        gate.execute(text("SELECT pg_advisory_xact_lock(4711)"))
        thread = threading.Thread(target=prune)
        thread.start()
        waits = text(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
            " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
        )
        while not gate.scalar(waits):
            pass
        child = manager.replay(step)
    thread.join()
    database.run("DROP FUNCTION test_wait(uuid)")
    assert pruned == [0]
    assert manager.get(child.id).parent_id == parent


def prune_all(number: int, url: str) -> int:
    pruned = 0
    with connect(url) as manager:
        while batch := manager.prune(NOW, limit=7):
            pruned += batch
    return pruned


@pytest.mark.slow
def test_prune_by_eight_processes_deletes_each_once(database: Database) -> None:
    with connect(database.url) as manager:
        kept = bring_to(manager, "running")
        for _ in range(200):
            manager.cancel(manager.create("a").id)
        counts = race(prune_all, database.url)
        # A row that one process skipped was deleted by the one that had locked it.
        assert sum(counts) == 200
        assert remaining_ids(manager) == {kept.id}


def make_children(
    number: int, url: str, families: list[tuple[str, str]]
) -> list[tuple[str | None, str]]:
    made = []
    with connect(url) as manager:
        for _, step in families:
            try:
                if number % 2:
                    child = manager.replay(step)
                    made.append((child.parent_id, child.id))
                else:
                    manager.prune(NOW, limit=1)
            except ExecutionNotFound:
                pass
    return made


@pytest.mark.slow
def test_prune_beside_creates_keeps_parents(database: Database) -> None:
    with connect(database.url) as manager:
        families = [finished_with_child(manager) for _ in range(100)]
        for made in race(make_children, database.url, families):
            for parent, child in made:
                found: Execution = manager.get(child)
                assert found.parent_id == parent
                if parent is not None:
                    manager.get(parent)
