"""`prune` and `replay` with related rows that other transactions lock."""

import random
import threading
from datetime import timedelta

import pytest
from sqlalchemy import text

from execution_core import ExecutionManager, SqlExecutionStore, connect

from ..conftest import Database
from ..support.states import bring_to

NOW = timedelta(0)
SOON = "SET LOCAL lock_timeout = '5s'"  # fail instead of waiting forever

# SQLite has one writer at a time, so no transaction can interfere.
on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@on_postgresql
def test_prune_child_being_retried_keeps_parent(database: Database) -> None:
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    parent = manager.create("work")
    child = manager.create("step", parent_id=parent.id, max_attempts=2)
    manager.start(child.id)
    manager.fail(child.id, "no")
    manager.cancel(parent.id)
    with database.engine.begin() as worker:
        manager.within(worker).retry(child.id)
        with database.engine.begin() as connection:
            connection.execute(text(SOON))
            assert manager.within(connection).prune(NOW) == 0
    assert manager.prune(NOW) == 0
    assert manager.get(child.id).parent_id == parent.id
    manager.fail(child.id, "gave up")
    assert manager.prune(NOW) == 2


@on_postgresql
def test_prune_skips_rows_locked_by_worker_without_deadlock(database: Database) -> None:
    """A worker locks a replay and then logs to the replayed execution."""
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    old = bring_to(manager, "completed")
    again = manager.replay(old.id)
    with database.engine.begin() as worker:
        inside = manager.within(worker)
        inside.start(again.id)
        with database.engine.begin() as connection:
            connection.execute(text(SOON))
            assert manager.within(connection).prune(NOW) == 0
        worker.execute(text(SOON))
        inside.log(old.id, "done again")
    assert manager.prune(NOW) == 1
    assert manager.get(again.id).replay_of is None


@pytest.mark.slow
def test_prune_concurrent_calls_on_families_delete_all(database: Database) -> None:
    """Each call deletes parents and replays of rows that the others delete."""
    problems: list[BaseException] = []
    with connect(database.url) as manager:

        def prune(begin: threading.Barrier) -> None:
            begin.wait()
            try:
                while manager.prune(NOW, limit=15):
                    pass
            except Exception as problem:
                problems.append(problem)

        for seed in range(3):
            parents = [manager.create("workflow").id for _ in range(30)]
            ids = parents + [
                manager.create("step", parent_id=id).id for id in parents for _ in (1, 2)
            ]
            random.Random(seed).shuffle(ids)
            for id in ids:
                manager.cancel(id)
            for id in ids[:30]:
                manager.cancel(manager.replay(id).id)
            begin = threading.Barrier(4)
            threads = [threading.Thread(target=prune, args=(begin,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert problems == []
            while manager.prune(NOW):
                pass
            assert manager.list() == []


def test_prune_circular_parents_are_deleted(database: Database) -> None:
    with connect(database.url) as manager:
        first, second = bring_to(manager, "completed"), bring_to(manager, "failed")
        third = bring_to(manager, "running")
        for child, parent in ((first, second), (second, first), (third, first)):
            database.run(
                "UPDATE executions SET parent_id = :parent, replay_of = :parent WHERE id = :id",
                id=child.id,
                parent=parent.id,
            )
        assert manager.prune(NOW) == 0  # each is an ancestor of the third
        manager.cancel(third.id)
        assert manager.prune(NOW) == 3


def test_replay_of_child_in_callers_transaction_keeps_parent(
    database: Database,
) -> None:
    manager = ExecutionManager(SqlExecutionStore(database.engine))
    parent = manager.create("workflow")
    step = manager.create("step", parent_id=parent.id)
    manager.cancel(step.id)
    with database.engine.begin() as connection:
        again = manager.within(connection).replay(step.id)
    assert (again.parent_id, again.replay_of) == (parent.id, step.id)
