"""Parents and children: counting, cancelling a tree, and a parent that its children end."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from execution_core import (
    Execution,
    ExecutionManager,
    ExecutionNotFound,
    InvalidStateTransition,
    SqlExecutionStore,
    connect,
)
from execution_core.core.creation import new_execution

from ..conftest import Blocking, Database
from ..support.attempts import Outage
from ..support.history import assert_legal
from ..support.processes import PROCESSES, race

MOMENT = timedelta(milliseconds=1)


def new_batch(manager: ExecutionManager, children: int) -> tuple[Execution, list[str]]:
    """Return a parent that its children will end, and their ids."""
    batch = manager.start(manager.create("batch").id)
    ids = [manager.create("item", parent_id=batch.id).id for _ in range(children)]
    manager.finish_with_children(batch.id, attempt=1)
    return batch, ids


def finish(manager: ExecutionManager, id: str, how: str = "complete") -> None:
    manager.start(id)
    if how == "complete":
        manager.complete(id)
    elif how == "fail":
        manager.fail(id, "no")
    elif how == "sweep":
        time.sleep(0.005)
        manager.sweep(stalled_after=MOMENT, type="item")
    else:
        getattr(manager, how)(id)


ENDS = {
    "complete": "completed",
    "fail": "failed",
    "timeout": "failed",
    "cancel": "failed",
    "sweep": "failed",
}


@pytest.mark.parametrize("how", ENDS)
def test_finish_with_children_last_end_ends_the_parent(
    any_manager: ExecutionManager, how: str
) -> None:
    batch, (first, last) = new_batch(any_manager, 2)
    finish(any_manager, first)
    found = any_manager.get(batch.id)
    assert (found.status, found.attempts) == ("running", 1)
    assert found.awaits_children_since is not None
    finish(any_manager, last, how)
    found = any_manager.get(batch.id)
    assert found.status == ENDS[how]
    assert found.completed_at is not None
    assert (found.error and found.error.code) == (None if how == "complete" else "children")


def test_finish_with_children_bulk_verbs_end_the_parent(any_manager: ExecutionManager) -> None:
    batch = any_manager.start(any_manager.create("batch").id)
    items = [{"type": "item", "parent_id": batch.id} for _ in range(4)]
    created = any_manager.create_many(items)
    any_manager.finish_with_children(batch.id)
    for each in any_manager.claim("item", limit=10):
        assert each.parent_id == batch.id
    any_manager.complete_many([(each.id, None) for each in created[:2]])
    assert any_manager.get(batch.id).status == "running"
    any_manager.fail_many([(each.id, "no") for each in created[2:]])
    assert any_manager.get(batch.id).status == "failed"
    with pytest.raises(InvalidStateTransition, match="Cannot create a child of"):
        any_manager.create_many([{"type": "item"}, *items])
    assert any_manager.count(type="item") == 4


def test_create_many_below_a_parent_that_finishes_meanwhile_is_refused(
    any_manager: ExecutionManager,
) -> None:
    """The statement itself refuses it, not only the look before it."""
    parent = any_manager.create("batch").id
    news = [
        new_execution(
            "item",
            None,
            max_attempts=1,
            timeout=None,
            idempotency_key=None,
            parent_id=parent if n else None,
            metadata=None,
            start_after=None,
            max_bytes=100,
        )
        for n in range(3)
    ]
    any_manager.cancel(parent)
    store: Any = any_manager._store
    if hasattr(store, "create_many"):
        call = store.create_many(news)
        answers = any_manager.runner.run(call) if isinstance(any_manager, Blocking) else call
        assert [answer is not None for answer in answers] == [True, False, False]


def test_finish_with_children_child_completed_in_a_transaction_ends_the_parent(
    database: Database,
) -> None:
    with connect(database.url) as manager:
        batch, (id,) = new_batch(manager, 1)
        with manager.attempt(id) as attempt:
            with database.engine.begin() as connection:
                attempt.within(connection).complete()
            assert manager.get(batch.id).status == "running"
        assert manager.get(batch.id).status == "completed"


def test_finish_with_children_retrying_child_keeps_the_parent_running(
    any_manager: ExecutionManager,
) -> None:
    batch = any_manager.start(any_manager.create("batch").id)
    id = any_manager.create("item", parent_id=batch.id, max_attempts=2).id
    any_manager.finish_with_children(batch.id)
    with pytest.raises(Outage), any_manager.attempt(id, retry_on=Outage):
        raise Outage
    assert any_manager.get(batch.id).status == "running"
    with any_manager.attempt(id):
        pass
    assert any_manager.get(batch.id).status == "completed"


def test_finish_with_children_in_a_block_leaves_it_running(any_manager: ExecutionManager) -> None:
    id = any_manager.create("batch").id
    with any_manager.attempt(id) as attempt:
        child = any_manager.create("item", parent_id=id).id
        attempt.finish_with_children()
        attempt.result = "not used"
    assert any_manager.get(id).status == "running"
    with any_manager.attempt(child):
        pass
    found = any_manager.get(id)
    assert (found.status, found.result) == ("completed", None)


@pytest.mark.parametrize("when", ["before", "none"])
def test_finish_with_children_without_live_ones_ends_at_once(
    any_manager: ExecutionManager, when: str
) -> None:
    grandparent, _ = new_batch(any_manager, 0)
    assert any_manager.get(grandparent.id).status == "completed"
    top = any_manager.start(any_manager.create("top").id)
    id = any_manager.create("batch", parent_id=top.id).id
    any_manager.finish_with_children(top.id)
    with any_manager.attempt(id) as attempt:
        if when == "before":
            finish(any_manager, any_manager.create("item", parent_id=id).id, "fail")
        attempt.finish_with_children()
    expected = "failed" if when == "before" else "completed"
    assert [any_manager.get(each).status for each in (id, top.id)] == [expected] * 2


def test_finish_with_children_is_not_swept_as_stalled_but_as_overdue(
    manager: ExecutionManager,
) -> None:
    batch, _ = new_batch(manager, 1)
    late = manager.start(manager.create("late", timeout=MOMENT).id)
    manager.create("item", parent_id=late.id)
    manager.finish_with_children(late.id)
    for _ in range(2):
        manager.sweep(stalled_after=MOMENT, type="batch")
        manager.sweep(type="late")
    assert [manager.get(each.id).status for each in (batch, late)] == ["running", "timed_out"]


def test_finish_with_children_retried_parent_awaits_no_longer(manager: ExecutionManager) -> None:
    batch = manager.start(manager.create("batch", max_attempts=2).id)
    child = manager.create("item", parent_id=batch.id).id
    manager.finish_with_children(batch.id)
    finish(manager, child, "fail")
    assert manager.get(batch.id).status == "failed"
    manager.retry(child, extra_attempts=1)  # it does not change the parent
    assert manager.get(batch.id).status == "failed"
    manager.retry(batch.id)
    started = manager.start(batch.id)
    assert (started.awaits_children_since, started.error) == (None, None)
    finish(manager, child)
    assert manager.get(batch.id).status == "running"
    assert manager.finish_with_children(batch.id).status == "completed"


def test_finish_with_children_sweep_ends_what_nobody_ended(
    database: Database, manager: ExecutionManager
) -> None:
    """After a child that manual SQL or the caller's transaction has ended, or that was deleted."""
    plain = ExecutionManager(SqlExecutionStore(database.engine))
    top = manager.start(manager.create("top").id)
    batches = [manager.start(manager.create("batch", parent_id=top.id).id) for _ in range(3)]
    ids = [manager.create("item", parent_id=batch.id).id for batch in batches]
    for each in (*batches, top):
        manager.finish_with_children(each.id)
    for id in ids[:2]:
        manager.start(id)
    database.run(
        "UPDATE executions SET status = 'completed', completed_at = updated_at WHERE id = :id",
        id=ids[0],
    )
    with database.engine.begin() as connection:
        plain.within(connection).complete(ids[1])
    manager.delete(ids[2])
    assert {manager.get(each.id).status for each in (*batches, top)} == {"running"}
    assert manager.sweep(type="other") == []
    assert {manager.get(each.id).status for each in (*batches, top)} == {"completed"}
    assert_legal(database)


def test_finish_with_children_store_error_fails_neither_child_nor_sweep(
    database: Database, manager: ExecutionManager, caplog: pytest.LogCaptureFixture
) -> None:
    batch, (id,) = new_batch(manager, 1)
    refuse = {
        "sqlite": "CREATE TRIGGER refuse BEFORE UPDATE ON executions WHEN NEW.type = 'batch'"
        " BEGIN SELECT RAISE(ABORT, 'refused'); END",
        "postgresql": "ALTER TABLE executions ADD CONSTRAINT refuse"
        " CHECK (type <> 'batch' OR status = 'running') NOT VALID",
    }
    allow = {
        "sqlite": "DROP TRIGGER refuse",
        "postgresql": "ALTER TABLE executions DROP CONSTRAINT refuse",
    }
    database.run(refuse[database.name])
    try:
        manager.start(id)
        assert manager.complete(id).status == "completed"
        assert f"Execution {batch.id} may await children" in caplog.text
        late = manager.start(manager.create("item", timeout=timedelta(milliseconds=1)).id)
        time.sleep(0.01)
        assert [each.id for each in manager.sweep()] == [late.id]
        assert "Executions may await children" in caplog.text
    finally:
        database.run(allow[database.name])
    manager.sweep()
    assert manager.get(batch.id).status == "completed"


def finish_own(number: int, url: str, ids: list[str]) -> None:
    with connect(url) as manager:
        for id in ids[number::PROCESSES]:
            manager.start(id)
        manager.complete(ids[number])


@pytest.mark.slow
def test_finish_with_children_ended_by_eight_processes_ends_once(database: Database) -> None:
    """Eight processes finish the last eight children at the same moment."""
    with connect(database.url) as manager:
        for _ in range(3):
            top = manager.start(manager.create("top").id)
            batch = manager.start(manager.create("batch", parent_id=top.id).id)
            ids = [manager.create("item", parent_id=batch.id).id for _ in range(PROCESSES)]
            for each in (batch, top):
                manager.finish_with_children(each.id)
            race(finish_own, database.url, ids)
            for each in (batch, top):
                assert database.history(each.id) == [
                    (None, "pending"),
                    ("pending", "running"),
                    ("running", "completed"),
                ]


@pytest.mark.slow
def test_finish_with_children_deep_tree_ends_upwards(database: Database) -> None:
    with connect(database.url) as manager:
        parent: str | None = None
        ids = [
            parent := manager.start(manager.create("a", parent_id=parent).id).id
            for _ in range(1000)
        ]
        for id in ids[:-1]:
            manager.finish_with_children(id)
        manager.complete(ids[-1])
        assert manager.count(status="completed") == 1000


def test_children_are_counted_by_status(any_manager: ExecutionManager) -> None:
    batch = any_manager.start(any_manager.create("batch").id)
    empty = any_manager.children(batch.id)
    assert (empty.total, empty.finished, empty.percent, empty.by_status) == (0, 0, 100, {})
    for how in ("complete", "complete", "fail", "timeout", "cancel"):
        finish(any_manager, any_manager.create("item", parent_id=batch.id).id, how)
    any_manager.create("item", parent_id=batch.id)
    any_manager.start(any_manager.create("item", parent_id=batch.id).id)
    any_manager.create("item")
    found = any_manager.children(batch.id)
    assert (found.total, found.finished) == (7, 5)
    assert round(found.percent, 3) == 71.429
    assert {str(status): count for status, count in found.by_status.items()} == {
        "pending": 1,
        "running": 1,
        "completed": 2,
        "failed": 1,
        "timed_out": 1,
        "cancelled": 1,
    }
    assert [each.status for each in found.failed] == ["timed_out", "failed"]
    with pytest.raises(ExecutionNotFound):
        any_manager.children("0198a000-0000-7000-8000-000000000001")


def test_children_view_agrees_with_the_verb(database: Database, manager: ExecutionManager) -> None:
    batch = manager.start(manager.create("batch").id)
    for how in ("complete", "fail", "cancel"):
        finish(manager, manager.create("item", parent_id=batch.id).id, how)
    manager.create("item", parent_id=batch.id)
    (row,) = database.rows("SELECT * FROM execution_children")
    found = manager.children(batch.id)
    assert str(row.pop("parent_id")) == batch.id
    assert (row.pop("total"), row.pop("finished")) == (found.total, found.finished)
    assert row.pop("percent") == pytest.approx(found.percent)
    assert {name: n for name, n in row.items() if n} == {
        str(s): n for s, n in found.by_status.items()
    }


def new_tree(manager: ExecutionManager) -> dict[str, str]:
    """Return the ids of a root with two children, two grandchildren, and a stranger."""
    ids = {"root": manager.create("a").id}
    for name, parent in (("left", "root"), ("right", "root"), ("low", "left"), ("done", "left")):
        ids[name] = manager.create("a", parent_id=ids[parent]).id
    finish(manager, ids["done"])
    manager.start(ids["low"])
    ids["stranger"] = manager.create("a").id
    return ids


def test_cancel_tree_cancels_what_is_live_below(any_manager: ExecutionManager) -> None:
    ids = new_tree(any_manager)
    assert any_manager.cancel_tree(ids["left"], "enough", by="ada") == 2
    statuses = {name: str(any_manager.get(id).status) for name, id in ids.items()}
    assert statuses == {
        "root": "pending",
        "left": "cancelled",
        "right": "pending",
        "low": "cancelled",
        "done": "completed",
        "stranger": "pending",
    }
    assert any_manager.get(ids["low"]).metadata == {"cancellation_reason": "enough"}
    assert any_manager.cancel_tree(ids["root"]) == 2
    assert any_manager.cancel_tree(ids["root"]) == 0
    assert any_manager.get(ids["stranger"]).status == "pending"
    with pytest.raises(ExecutionNotFound):
        any_manager.cancel_tree("0198a000-0000-7000-8000-000000000001")


def test_cancel_tree_records_the_actor(database: Database, manager: ExecutionManager) -> None:
    ids = new_tree(manager)
    manager.cancel_tree(ids["root"], by="ada")
    rows = database.rows("SELECT actor FROM execution_history WHERE to_status = 'cancelled'")
    assert [row["actor"] for row in rows] == ["ada"] * 4


def test_cancel_tree_below_an_awaiting_parent_ends_it(any_manager: ExecutionManager) -> None:
    batch, (id,) = new_batch(any_manager, 1)
    assert any_manager.cancel_tree(id) == 1
    assert any_manager.get(batch.id).status == "failed"


def test_cancel_tree_waits_for_a_locked_child(postgres_database: Database) -> None:
    """A row that a heartbeat locks must not be left out."""
    postgres_database.empty()
    with connect(postgres_database.url) as manager:
        ids = new_tree(manager)
        with postgres_database.engine.connect() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '10s'"))
            manager.within(connection).heartbeat(ids["low"])
            threading.Timer(0.5, connection.commit).start()
            assert manager.cancel_tree(ids["root"]) == 4
            connection.close()


@pytest.mark.slow
def test_cancel_tree_wide_tree_is_cancelled_whole(database: Database) -> None:
    with connect(database.url) as manager:
        root = manager.create("root").id
        template = manager.create("item", parent_id=root).id
        numbers = {
            "sqlite": "WITH RECURSIVE n(i) AS"
            " (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10999)",
            "postgresql": "WITH n(i) AS (SELECT generate_series(1, 10999))",
        }
        new_id = {
            "sqlite": "printf('0198a000-0000-7000-8000-%012d', i)",
            "postgresql": "CAST('0198a000-0000-7000-8000-'"
            " || lpad(CAST(i AS text), 12, '0') AS uuid)",
        }
        database.run(
            f"INSERT INTO executions (id, type, parent_id) {numbers[database.name]}"
            f" SELECT {new_id[database.name]}, type, parent_id FROM executions, n"
            " WHERE id = :template",
            template=template,
        )
        assert manager.cancel_tree(root) == 11_001
        assert manager.count(status="cancelled") == 11_001


CREATES: dict[str, Callable[[Any, str], Any]] = {
    "create": lambda m, id: m.create("item", parent_id=id),
    "create with a key": lambda m, id: m.create("item", parent_id=id, idempotency_key="k"),
}


@pytest.mark.parametrize("how", CREATES)
def test_create_below_a_finished_parent_is_refused(any_manager: ExecutionManager, how: str) -> None:
    for end in ("complete", "fail", "timeout", "cancel"):
        parent = any_manager.create("batch").id
        finish(any_manager, parent, end)
        with pytest.raises(InvalidStateTransition, match=f"Cannot create a child of .*{parent}"):
            CREATES[how](any_manager, parent)
    assert any_manager.count(type="item") == 0


def test_create_repeated_below_a_finished_parent_finds_the_first(
    any_manager: ExecutionManager,
) -> None:
    parent = any_manager.create("batch").id
    child = any_manager.create("item", parent_id=parent, idempotency_key="k")
    any_manager.cancel(parent)
    assert any_manager.create("item", parent_id=parent, idempotency_key="k") == child


def test_replay_below_a_finished_parent_is_allowed(any_manager: ExecutionManager) -> None:
    parent = any_manager.create("batch").id
    child = any_manager.create("item", parent_id=parent).id
    for id in (child, parent):
        any_manager.cancel(id)
    assert any_manager.replay(child).parent_id == parent
