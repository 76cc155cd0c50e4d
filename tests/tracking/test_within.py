"""`within`: the manager joins the caller's transaction and never ends it."""

import asyncio
import gc
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ExecutionManager,
    ExecutionNotFound,
    IdempotencyConflict,
    InvalidStateTransition,
    InvalidValue,
    MaxRetriesExceeded,
    SqlExecutionStore,
    StaleAttempt,
    configure_sqlite,
    connect,
    connect_async,
)

from ..conftest import Blocking, Database
from ..support.memory import memory_store
from ..support.sampling import in_whole
from ..support.states import STATES

KINDS: dict[str, Callable[[Any], Any]] = {
    "Connection": lambda engine: engine.connect(),
    "Session": Session,
    "scoped_session": lambda engine: scoped_session(sessionmaker(engine)),
    "AsyncConnection": lambda engine: engine.connect(),
    "AsyncSession": AsyncSession,
    "async_scoped_session": lambda engine: async_scoped_session(
        async_sessionmaker(engine), scopefunc=asyncio.current_task
    ),
    "asyncpg-AsyncConnection": lambda engine: engine.connect(),
    "asyncpg-AsyncSession": AsyncSession,
}


class Caller:
    """A host with its own SQLAlchemy engine and an open transaction."""

    def __init__(
        self, kind: str, database: Database, runner: asyncio.Runner, configured: bool
    ) -> None:
        self.runner = runner
        self.is_async = kind.lower().startswith("async")
        url = make_url(database.url)
        if database.name == "sqlite":
            url = url.set(drivername="sqlite+aiosqlite" if self.is_async else "sqlite")
        elif "asyncpg" in kind:
            url = url.set(drivername="postgresql+asyncpg")
        make: Callable[..., Any] = create_async_engine if self.is_async else create_engine
        self.engine = make(url)
        if configured and database.name == "sqlite":
            configure_sqlite(self.engine.sync_engine if self.is_async else self.engine)
        outside: Any
        if self.is_async:
            outside = Blocking(AsyncExecutionManager(AsyncSqlExecutionStore(self.engine)), runner)
        else:
            outside = ExecutionManager(SqlExecutionStore(self.engine))
        self.outside: ExecutionManager = outside
        self.transaction: Any = KINDS[kind](self.engine)
        if "AsyncConnection" in kind:
            self.run_awaitable(self.transaction.start())
        self.inside: ExecutionManager = self.outside.within(self.transaction)

    def run_awaitable(self, answer: Any) -> Any:
        async def finish() -> Any:
            return await answer

        return (
            self.runner.run(finish()) if self.is_async and hasattr(answer, "__await__") else answer
        )

    def do(self, verb: str, *args: Any) -> Any:
        return self.run_awaitable(getattr(self.transaction, verb)(*args))

    def close(self) -> None:
        self.do("close")
        self.run_awaitable(self.engine.dispose())


@pytest.fixture(params=[k for k in KINDS if k != "async_scoped_session"])
def caller(
    request: pytest.FixtureRequest, database: Database, runner: asyncio.Runner
) -> Iterator[Caller]:
    caller = Caller(request.param, database, runner, configured=True)
    yield caller
    caller.close()


def call_every_verb(manager: ExecutionManager) -> list[str]:
    """Call every verb, and return the ids of the executions that remain."""
    ids = []
    for state, steps in STATES.items():
        execution = manager.create("work", {"n": 1}, max_attempts=2, idempotency_key=state)
        for step in steps:
            execution = step(manager, execution.id)
        ids.append(execution.id)
    parent, gone = ids[0], manager.create("gone").id
    child = manager.create("child", parent_id=parent, idempotency_key="child").id
    manager.update_progress(child, 1, 2)
    manager.checkpoint(child, "k", 1)
    manager.delete(gone)
    assert manager.get(child).checkpoints == {"k": 1}
    assert manager.find_by_idempotency_key("child") == manager.get(child)
    assert [e.id for e in manager.list(limit=len(ids) + 1)] == [child, *reversed(ids)]
    return [*ids, child]


def test_within_rollback_undoes_every_verb(database: Database, caller: Caller) -> None:
    kept = caller.outside.create("kept")
    call_every_verb(caller.inside)
    caller.inside.start(kept.id)
    caller.do("rollback")
    assert caller.outside.list() == [kept]
    assert database.history(kept.id) == [(None, "pending")]
    assert len(database.rows("SELECT * FROM execution_history")) == 1


def test_within_commit_commits_every_verb(database: Database, caller: Caller) -> None:
    ids = call_every_verb(caller.inside)
    before = [caller.inside.get(id) for id in ids]
    caller.do("commit")
    assert [caller.outside.get(id) for id in ids] == before
    assert len(database.history(ids[2])) == 4


def test_within_claim_and_sweep_follow_the_transaction(database: Database, caller: Caller) -> None:
    """As the first statement, too: a driver may not begin a transaction for every statement."""
    job = caller.outside.create("a", max_attempts=2, timeout=timedelta(milliseconds=1))
    for end in ("rollback", "commit"):
        (claimed,) = caller.inside.claim()
        assert claimed.id == job.id
        caller.do(end)
        assert caller.outside.get(job.id).status == ("pending" if end == "rollback" else "running")
    time.sleep(0.01)
    for end in ("rollback", "commit"):
        (swept,) = caller.inside.sweep(stalled_after=timedelta(hours=1))
        caller.inside.retry(swept.id)
        caller.do(end)
        assert caller.outside.get(job.id).status == ("running" if end == "rollback" else "retrying")


def test_within_before_commit_is_invisible_to_others(database: Database, caller: Caller) -> None:
    id = caller.inside.create("a", idempotency_key="k").id
    with connect(database.url) as other, pytest.raises(ExecutionNotFound):
        other.get(id)
    caller.do("commit")
    with connect(database.url) as other:
        assert other.get(id).idempotency_key == "k"


def test_within_commits_with_the_callers_rows(database: Database, caller: Caller) -> None:
    database.run("CREATE TABLE shipments (id integer)")
    for end, count in (("rollback", 0), ("commit", 1)):
        caller.do("execute", text("INSERT INTO shipments VALUES (7)"))
        caller.inside.create("ship-order", {"order": 7}, idempotency_key="ship-7")
        caller.do(end)
        assert len(database.rows("SELECT * FROM shipments")) == count
        assert len(database.rows("SELECT * FROM executions")) == count
    database.run("DROP TABLE shipments")


def test_within_refusal_leaves_transaction_usable(database: Database, caller: Caller) -> None:
    inside = caller.inside
    done = inside.create("a", 1, idempotency_key="k")
    nobody = inside.create("gone").id
    inside.delete(nobody)
    inside.start(done.id)
    refused: list[tuple[type[Exception], Callable[[], object]]] = [
        (ExecutionNotFound, lambda: inside.create("b", parent_id=nobody)),
        (ExecutionNotFound, lambda: inside.create("b", parent_id="nope")),
        (ExecutionNotFound, lambda: inside.start(nobody)),
        (ExecutionNotFound, lambda: inside.delete(nobody)),
        (IdempotencyConflict, lambda: inside.create("a", 2, idempotency_key="k")),
        (InvalidStateTransition, lambda: inside.start(done.id)),
        (StaleAttempt, lambda: inside.complete(done.id, attempt=7)),
        (InvalidValue, lambda: inside.complete(done.id, b"x")),
        (InvalidValue, lambda: inside.complete(done.id, "\0")),
    ]
    for problem, call in refused:
        with pytest.raises(problem):
            call()
    inside.fail(done.id, "no")
    with pytest.raises(MaxRetriesExceeded):
        inside.retry(done.id)
    caller.do("commit")
    assert [e.status for e in caller.outside.list()] == ["failed"]


def test_within_sees_keys_committed_by_others(database: Database, caller: Caller) -> None:
    with connect(database.url) as other:
        held = other.create("a", 1, idempotency_key="k")
    assert caller.inside.create("a", 1, idempotency_key="k") == held
    with pytest.raises(IdempotencyConflict):
        caller.inside.create("a", 2, idempotency_key="k")
    caller.inside.start(held.id)
    caller.do("commit")
    assert caller.outside.get(held.id).status == "running"


def test_within_savepoint_rollback_undoes_verbs(database: Database, caller: Caller) -> None:
    first = caller.inside.create("a")
    savepoint = caller.do("begin_nested")
    caller.inside.start(first.id)
    caller.run_awaitable(savepoint.rollback())
    assert caller.inside.get(first.id).status == "pending"
    caller.do("commit")
    assert caller.outside.get(first.id) == first


@pytest.mark.parametrize("kind", KINDS)
def test_engine_with_default_settings_works(
    database: Database, runner: asyncio.Runner, kind: str
) -> None:
    caller = Caller(kind, database, runner, configured=False)
    call_every_verb(caller.outside)
    for execution in caller.outside.list():
        caller.outside.delete(execution.id)
    if kind != "async_scoped_session":  # its scope is the task, and each call is a task here
        call_every_verb(caller.inside)
        caller.do("rollback")
        assert caller.outside.list() == []
    caller.close()


def test_within_async_scoped_session_works(database: Database, runner: asyncio.Runner) -> None:
    caller = Caller("async_scoped_session", database, runner, configured=False)

    async def work() -> None:
        manager = AsyncExecutionManager(AsyncSqlExecutionStore(caller.engine))
        await manager.within(caller.transaction).create("a")
        await caller.transaction.rollback()
        assert await manager.list() == []
        await manager.within(caller.transaction).create("a")
        await caller.transaction.commit()
        await caller.transaction.remove()
        assert len(await manager.list()) == 1

    runner.run(work())
    runner.run(caller.engine.dispose())


def test_engine_with_begin_recipe_commits(database: Database) -> None:
    """The BEGIN recipe of SQLAlchemy's documentation, without `configure_sqlite`."""
    engine = create_engine(database.url)
    if database.name == "sqlite":

        @event.listens_for(engine, "connect")
        def on_connect(connection: Any, record: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def on_begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN")

    manager = ExecutionManager(SqlExecutionStore(engine))
    created = manager.create("a")
    with connect(database.url) as other:
        assert other.get(created.id) == created
    engine.dispose()


def test_within_other_objects_are_refused(database: Database, runner: asyncio.Runner) -> None:
    sync, asynchronous = (
        Caller("Session", database, runner, True),
        Caller("AsyncSession", database, runner, True),
    )
    cases: list[tuple[ExecutionManager, Any]] = [
        (sync.outside, asynchronous.transaction),
        (sync.outside, sync.engine),
        (sync.outside, None),
        (asynchronous.outside, sync.transaction),
        (asynchronous.outside, asynchronous.engine),
    ]
    for manager, wrong in cases:
        with pytest.raises(InvalidValue) as caught:
            manager.within(wrong)
        assert caught.value.argument == "transaction"
    with pytest.raises(InvalidValue, match="engine must be an Engine, not AsyncEngine"):
        SqlExecutionStore(asynchronous.engine)
    with pytest.raises(InvalidValue, match="engine must be an AsyncEngine, not Engine"):
        AsyncSqlExecutionStore(sync.engine)
    with pytest.raises(NotImplementedError, match="MemoryStore cannot join a transaction"):
        ExecutionManager(memory_store()).within(sync.transaction)
    sync.close()
    asynchronous.close()


def test_within_closing_keeps_the_pool(database: Database) -> None:
    with connect(database.url) as manager, database.engine.connect() as connection:
        created = manager.create("a")
        pool = manager._store._bind.engine.pool
        with manager.within(connection) as joined:
            assert joined.get(created.id) == created
        assert manager._store._bind.engine.pool is pool


@pytest.mark.parametrize("options", [{"stream_results": True}, {"yield_per": 2}])
def test_engine_with_streaming_works(database: Database, options: dict[str, Any]) -> None:
    engine = create_engine(database.url).execution_options(**options)
    manager = ExecutionManager(SqlExecutionStore(engine))
    call_every_verb(manager)
    with engine.connect() as connection:
        assert manager.within(connection).create("a").status == "pending"
    engine.dispose()


def test_engine_with_json_deserializer_works(database: Database) -> None:
    engine = create_engine(database.url, json_deserializer=lambda text: "the host's value")
    manager = ExecutionManager(SqlExecutionStore(engine))
    created = manager.create("a", {"price": 1.5}, max_attempts=2)
    manager.start(created.id)
    failed = manager.fail(created.id, "no")
    assert (failed.payload, failed.error and failed.error.message) == ({"price": 1.5}, "no")
    engine.dispose()


def test_clock_injected_is_used_everywhere(database: Database, runner: asyncio.Runner) -> None:
    ticks = iter(datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC) for second in range(60))
    clock = lambda: next(ticks)  # noqa: E731
    async_engine = create_async_engine(
        make_url(database.url).set(drivername="sqlite+aiosqlite")
        if database.name == "sqlite"
        else database.url
    )
    manager = ExecutionManager(SqlExecutionStore(database.engine, clock=clock))
    blocking: Any = Blocking(
        AsyncExecutionManager(AsyncSqlExecutionStore(async_engine, clock=clock)), runner
    )
    id = manager.create("a").id
    with database.engine.begin() as connection:
        assert manager.within(connection).start(id).updated_at.second == 1
    assert blocking.checkpoint(id, "k", 1).updated_at.second == 2
    assert blocking.update_progress(id, 1, 2).updated_at.second == 3
    assert blocking.complete(id).completed_at == datetime(2026, 1, 1, 0, 0, 4, tzinfo=UTC)
    runner.run(async_engine.dispose())


def test_within_delete_of_parent_blocks_create_of_child(database: Database) -> None:
    with connect(database.url) as manager, database.engine.connect() as connection:
        parent = manager.create("a")
        manager.within(connection).delete(parent.id)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(manager.create, "b", parent_id=parent.id)
            time.sleep(0.3)
            connection.commit()
            with pytest.raises(ExecutionNotFound):
                waiting.result(60)


def test_within_transactions_begin_as_writers(database: Database) -> None:
    """A transaction that reads and then writes waits, and sees the other one's writes."""
    with connect(database.url) as manager:
        id = manager.create("a").id

    def add_one(_: int) -> None:
        engine = (
            configure_sqlite(create_engine(database.url)) if database.name == "sqlite" else None
        )
        with (engine or database.engine).begin() as connection:
            if database.name == "postgresql":
                connection.execute(text("LOCK TABLE executions"))
            read = "SELECT coalesce(progress_current, 0) FROM executions"
            count = connection.execute(text(read)).scalar_one()
            time.sleep(0.01)
            ExecutionManager(SqlExecutionStore(database.engine)).within(connection).update_progress(
                id, count + 1, 20
            )
        if engine:
            engine.dispose()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add_one, range(20)))
    with connect(database.url) as manager:
        progress = manager.get(id).progress
        assert progress is not None
        assert progress.current == 20


def test_clock_naive_is_refused(database: Database) -> None:
    manager = ExecutionManager(SqlExecutionStore(database.engine, clock=datetime.now))
    with pytest.raises(InvalidValue, match="clock must return aware datetimes"):
        manager.create("a")


def test_configure_sqlite_twice_is_idempotent(tmp_path: Path) -> None:
    engine = configure_sqlite(configure_sqlite(create_engine(f"sqlite:///{tmp_path}/x.db")))
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/x.db")
    for bad in (5, timedelta(0), None):
        with pytest.raises(InvalidValue, match="busy_timeout"):
            configure_sqlite(async_engine, busy_timeout=bad)  # type: ignore[arg-type]
    assert configure_sqlite(async_engine) is async_engine


@pytest.mark.slow
def test_cancelled_tasks_leave_pool_and_locks_free(database: Database) -> None:
    async def cancel_many() -> None:
        async with connect_async(database.url) as manager:
            id = (await manager.create("a")).id
            for n in range(in_whole(200, 50)):
                task = asyncio.create_task(manager.checkpoint(id, "k", n))
                for _ in range(n % 25):  # at a different await each time
                    await asyncio.sleep(0)
                if n % 2:
                    await asyncio.sleep(random.choice([0.0003, 0.001, 0.002]))
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            gc.collect()  # warns of connections that were not returned
            with connect(database.url) as other:  # meets no lock of a cancelled task
                other.checkpoint(id, "k", "done")
            assert (await manager.get(id)).checkpoints == {"k": "done"}
            pool = manager._store._bind.engine.pool
        assert pool.checkedout() == 0

    asyncio.run(cancel_many())


@pytest.mark.slow
def test_times_after_waiting_for_lock_stay_ordered(database: Database) -> None:
    """PostgreSQL reads its clock, then waits for the row: B reads earlier and writes later."""
    with connect(database.url) as manager, database.engine.connect() as connection:
        id = manager.create("a", max_attempts=2).id
        manager.start(id)
        with ThreadPoolExecutor(1) as thread:
            first = manager.within(connection)
            first.fail(id, "no", retryable=True)
            waiting = thread.submit(manager.complete, id)
            time.sleep(0.3)
            first.start(id)
            connection.commit()
            done = waiting.result(60)
    assert done.attempts == 2
    assert done.started_at is not None
    assert done.completed_at is not None
    assert done.started_at <= done.completed_at
    times = database.rows("SELECT occurred_at FROM execution_history ORDER BY seq")
    assert [str(t["occurred_at"]) for t in times] == sorted(str(t["occurred_at"]) for t in times)


def test_close_leaves_host_engine_open(database: Database, runner: asyncio.Runner) -> None:
    caller = Caller("Connection", database, runner, configured=True)
    caller.outside.create("a")
    pool = caller.engine.pool
    with caller.outside:
        pass
    assert caller.engine.pool is pool
    caller.close()
