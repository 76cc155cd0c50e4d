"""One statement for many rows, beside locks, lost connections and broken rows."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from execution_core import (
    Execution,
    ExecutionManager,
    ExecutionNotFound,
    IdempotencyConflict,
    InvalidStateTransition,
    InvalidValue,
    SqlExecutionStore,
    connect,
)
from execution_core.core import transitions, validation
from execution_core.sql.schema.tables import executions
from execution_core.sql.statements import queries
from execution_core.testing.harness import build_new

from ..conftest import Database, open_asyncpg_manager
from ..support.history import assert_legal
from ..support.proxy import Cut, Proxy
from ..support.query_plans import explain, insert_rows
from .lost_connections import DAY, blocked_pids, open_bound_manager, row_lock, wait_for
from .test_lost_connections_interleaved import InterleavedManager

WRITES = [Cut.BEFORE, Cut.AFTER]


@pytest.fixture
def interleaved(proxy: Proxy, mode: str, runner: asyncio.Runner) -> Iterator[InterleavedManager]:
    interleaved = InterleavedManager(proxy, runner, mode)
    yield interleaved
    interleaved.manager.close()


@pytest.mark.parametrize("when", WRITES)
def test_fail_many_lost_connection_later_writes_answer_is_own(
    interleaved: InterleavedManager, postgres_database: Database, when: Cut
) -> None:
    """Others write before the outcome is known: what had committed is answered as it was."""
    with connect(postgres_database.url) as other:
        other.create_many([{"type": "a", "max_attempts": 3}] * 4)
        jobs = other.claim(limit=4)
        restarted, cancelled, gone, quiet = jobs

        def others() -> None:
            other.delete(gone.id)
            other.cancel(cancelled.id)
            if when is Cut.AFTER:
                other.start(restarted.id, worker="second")

        answers: list[Any] = interleaved.call(
            when,
            others,
            lambda m: m.fail_many([(each, each.id) for each in jobs], retry_after=DAY),
        )
        assert isinstance(answers[2], ExecutionNotFound)
        if when is Cut.BEFORE:
            assert isinstance(answers.pop(1), InvalidStateTransition)
            assert answers[0] == other.get(restarted.id)
        else:
            assert other.get(restarted.id).attempts == 2
            assert other.get(cancelled.id).status == "cancelled"
        for each in (each for each in answers if isinstance(each, Execution)):
            assert (each.status, each.attempts, each.worker) == ("retrying", 1, None)
            assert each.error is not None
            assert each.error.message == each.id
            assert each.due_at == each.updated_at + DAY
        assert answers[-1] == other.get(quiet.id)
    assert_legal(postgres_database)


@pytest.mark.parametrize("when", WRITES)
def test_create_many_lost_connection_later_writes_create_each_once(
    interleaved: InterleavedManager, postgres_database: Database, when: Cut
) -> None:
    items = [{"type": "a", "idempotency_key": key, "payload": key} for key in "cab"]
    with connect(postgres_database.url) as other:

        def others() -> None:
            held = other.create("a", "a", idempotency_key="a")
            other.start(held.id, worker="second")

        answers: list[Execution] = interleaved.call(when, others, lambda m: m.create_many(items))
        assert [each.payload for each in answers] == [*"cab"]
        assert answers == [other.get(each.id) for each in answers]
        assert other.count() == 3
    assert_legal(postgres_database)


@pytest.mark.parametrize("binding", ["own", "host's", "asyncpg"])
@pytest.mark.parametrize("committed", [True, False])
def test_bulk_behind_pooler_only_found_writes_are_known(
    proxy: Proxy, mode: str, binding: str, runner: asyncio.Runner, *, committed: bool
) -> None:
    opened = (
        open_asyncpg_manager(proxy.url, runner)
        if binding == "asyncpg"
        else open_bound_manager(proxy.pooled_url, mode, binding, runner)
    )
    with opened as manager:
        items = [{"type": "a"}] * 2

        def cut() -> None:
            proxy.cut(Cut.AFTER if committed else Cut.BEFORE)

        def assert_unknown(verb: str, call: Any) -> None:
            with pytest.raises(DBAPIError) as caught:
                call()
            assert f"It is unknown whether {verb} was" in caught.value.__notes__[0]

        manager.count()
        cut()
        if committed:
            assert {each.status for each in manager.create_many(items)} == {"pending"}
        else:
            assert_unknown("create", lambda: manager.create_many(items))
            manager.create_many(items)
        assert manager.count() == 2
        jobs = manager.claim(limit=2)
        cut()
        if committed:
            done = manager.complete_many([(each, 1) for each in jobs])
            assert [each.status for each in done] == ["completed"] * 2
        else:
            assert_unknown("complete", lambda: manager.complete_many([(each, 1) for each in jobs]))
            assert [manager.get(each.id) for each in jobs] == jobs
        assert proxy.waiting == 0


def test_update_each_locks_rows_in_order_of_ids(postgres_database: Database) -> None:
    """While it waits for the first, it holds no other: two callers cannot wait for each other."""
    postgres_database.empty()
    with connect(postgres_database.url) as manager:
        manager.create_many([{"type": "a"}] * 30)
        ids = [each.id for each in manager.claim(limit=30)]
        changes = [(id, transitions.complete(1, 1)) for id in reversed(ids)]
        store: Any = manager._store
        caller = threading.Thread(target=lambda: store.update_each(changes))
        with row_lock(postgres_database, ids[0]):
            caller.start()
            wait_for(lambda: blocked_pids(postgres_database))
            free = "SELECT id FROM executions WHERE id <> :id FOR UPDATE NOWAIT"
            assert len(postgres_database.rows(free, id=ids[0])) == 29
        caller.join(30)
        assert manager.count(status="completed") == 30


def test_create_many_inserts_keys_and_locks_parents_in_order(postgres_database: Database) -> None:
    postgres_database.empty()
    with connect(postgres_database.url) as manager, postgres_database.engine.connect() as open:
        keys = [f"k{n:02}" for n in range(30)]
        parents = manager.create_many([{"type": "parent"}] * 30)
        manager.within(open).create("a", idempotency_key=keys[0])
        news = [
            build_new(idempotency_key=key, parent_id=parent.id)
            for key, parent in zip(reversed(keys), parents, strict=True)
        ]
        store: Any = manager._store
        answers: list[Any] = []
        caller = threading.Thread(target=lambda: answers.extend(store.create_many(news)))
        caller.start()
        wait_for(lambda: blocked_pids(postgres_database))
        for key in keys[1:]:
            manager.create("a", idempotency_key=key)  # would wait for an earlier INSERT of it
        open.rollback()
        caller.join(30)
        created = [each.idempotency_key for each in answers if each]
        assert created == keys[:1]
        with row_lock(postgres_database, parents[0].id):
            more = [build_new(parent_id=each.id) for each in reversed(parents)]
            caller = threading.Thread(target=lambda: store.create_many(more))
            caller.start()
            wait_for(lambda: blocked_pids(postgres_database))
            free = "SELECT id FROM executions WHERE type = 'parent' AND id <> :id FOR UPDATE NOWAIT"
            assert len(postgres_database.rows(free, id=parents[0].id)) == 29
        caller.join(30)
        assert manager.count(parent_id=parents[0].id) == 1


def test_bulk_statements_read_their_rows_alone(database: Database) -> None:
    """With any statistics, and with many running executions."""
    insert_rows(database, "completed", 4_000)
    database.run("ANALYZE executions")
    insert_rows(database, "running", 4_000)
    locks = database.name == "postgresql"
    parent = "SELECT CAST(id AS text) AS id FROM executions LIMIT 1"
    parent_id = database.rows(parent)[0]["id"]
    for analyze in (False, True):
        if analyze:
            database.run("ANALYZE executions")
        running = "SELECT CAST(id AS text) AS id FROM executions WHERE status = 'running'"
        ids = [row["id"] for row in database.rows(f"{running} LIMIT 100")]
        changes = [(id, transitions.complete({"n": 1}, 1)) for id in ids]
        news = [build_new(idempotency_key=f"k{n}", parent_id=parent_id) for n in range(100)]
        for query, most in (
            (queries.update_each(changes, validation.new_id(), None, locks_rows=locks), 200),
            (queries.find_many(executions.c.id, ids), 100),
            (queries.find_many(executions.c.idempotency_key, ids), 100),
            (queries.create_many(news, None, locks_rows=locks), 1),
        ):
            plan, rows = explain(database, query)
            assert rows <= most, plan
            assert "Seq Scan" not in plan
            assert "SCAN executions" not in plan
            assert "SCAN locked" not in plan
            assert "(status=?)" not in plan, plan


def test_bulk_within_transaction_refuses_and_rolls_back(database: Database) -> None:
    """Nothing that is refused aborts the transaction; several chunks are undone together."""
    engine = create_engine(database.url)
    manager = ExecutionManager(SqlExecutionStore(engine))
    held = manager.create("a", 1, idempotency_key="held")
    items = [{"type": "a", "payload": n, "idempotency_key": f"k{n}"} for n in range(600)]
    with engine.connect() as connection:
        inside = manager.within(connection)
        for bad, problem in (
            ({"type": "a", "payload": 2, "idempotency_key": "held"}, IdempotencyConflict),
            ({"type": "a", "parent_id": validation.new_id()}, ExecutionNotFound),
            ({"type": "a", "payload": b"x"}, InvalidValue),
        ):
            with pytest.raises(problem):
                inside.create_many([*items, bad])
        assert inside.count() == 1
        created = inside.create_many(items)
        assert inside.create_many(items) == created
        jobs = inside.claim(limit=10)
        answers = inside.complete_many([*((each, 1) for each in jobs), (created[599].id, 1)])
        assert [type(each) for each in answers[9:]] == [Execution, InvalidStateTransition]
        connection.rollback()
    assert manager.list() == [held]
    with engine.begin() as connection:
        assert len(manager.within(connection).create_many(items)) == 600
    assert manager.count() == 601
    engine.dispose()


def test_bulk_with_unreadable_row_answers_the_others(
    database: Database, manager: ExecutionManager
) -> None:
    """An integer that Python cannot read was written by manual SQL."""
    manager.create_many([{"type": "a", "idempotency_key": key} for key in "abcd"])
    jobs = manager.claim(limit=4)
    value = f"'{'9' * 5000}'"
    unreadable = value if database.name == "sqlite" else f"{value}::jsonb"
    database.run(f"UPDATE executions SET payload = {unreadable} WHERE id = :id", id=jobs[1].id)
    for kinds in ([Execution] * 3, [InvalidStateTransition] * 3):
        answers = manager.complete_many([(each, 1) for each in jobs])
        assert [type(each) for each in answers] == [kinds[0], InvalidValue, *kinds[1:]]
        assert str(answers[1]).startswith(f"payload of {jobs[1].id} cannot be read")
    assert database.history(jobs[1].id)[-1] == ("running", "completed")
    with pytest.raises(InvalidValue, match="cannot be read") as caught:
        manager.create_many([{"type": "a", "idempotency_key": key} for key in "ab"])
    assert caught.value.__notes__ == ["This is about items[1] of the call."]
