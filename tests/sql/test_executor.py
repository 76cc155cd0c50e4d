"""The executor: statements sent directly to the driver behave like those sent by SQLAlchemy."""

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    Execution,
    ExecutionManager,
    SqlExecutionStore,
    configure_sqlite,
    connect,
    connect_async,
    migrate,
)
from execution_core.core import transitions
from execution_core.sql.driver import compiled
from execution_core.sql.driver.connection_cache import CURSOR
from execution_core.sql.driver.engine import OWN_POOL
from execution_core.sql.statements import queries
from execution_core.testing.pages import build_page

from ..conftest import Blocking, Database
from ..support.postgres import free_port
from ..support.sampling import in_whole


def heartbeat_many(manager: Any, attempts: list[tuple[str, int]]) -> set[tuple[str, int]]:
    """Call `heartbeat_many` of the store of a manager, sync or async."""
    store = getattr(manager, "target", manager)._store
    store = Blocking(store, manager.runner) if isinstance(manager, Blocking) else store
    sent: set[tuple[str, int]] = store.heartbeat_many(attempts)
    return sent


def call_every_verb(manager: ExecutionManager) -> None:
    parent = manager.create("a").id
    id = manager.create("a", {"p": [1, None]}, max_attempts=2, parent_id=parent).id
    manager.start(id, worker="w")
    manager.update_progress(id, 1, 2)
    manager.checkpoint(id, "k", {"v": 1})
    manager.advance(id, 2, 2, key="l", value=2, attempt=1)
    manager.heartbeat(id)
    assert heartbeat_many(manager, [(id, 1), (id, 2)]) == {(id, 1)}
    assert manager.sweep(stalled_after=timedelta(hours=1)) == []
    waiting = manager.fail(id, "no", retryable=True, retry_after=timedelta(0))
    assert waiting.status == "retrying"
    assert manager.get(id).due_at == waiting.due_at
    time.sleep(0.002)
    assert [claimed.id for claimed in manager.claim("a", limit=2)] == [parent, id]
    with manager.attempt(manager.create("b", start_after=timedelta(1)).id) as attempt:
        attempt.advance(1, 1, key="k", value=1)
    manager.delete(attempt.execution.id)
    done = manager.complete(id, {"r": 2.5})
    assert manager.get(id) == done
    assert [found.id for found in manager.list(type="a", status=["completed", "running"])] == [
        id,
        parent,
    ]
    news = [{"type": "c", "parent_id": parent}, {"type": "c", "idempotency_key": "many"}]
    many = manager.create_many(news)
    assert [each.id for each in manager.create_many([*news[1:], *news[1:]])] == [many[1].id] * 2
    ends = manager.complete_many([(each, 1) for each in manager.claim("c", limit=2)])
    assert [type(each) for each in ends] == [Execution] * 2
    for each in (parent, id, *(x.id for x in many)):
        manager.delete(each)


class Host:
    """A manager on the engine of a host, sync or async."""

    def __init__(
        self, database: Database, mode: str, runner: asyncio.Runner, **options: Any
    ) -> None:
        url = database.url
        if mode == "sync":
            engine = create_engine(url, **options)
            self.engine: Engine = engine
            self.store: Any = SqlExecutionStore(engine)
            self.manager: Any = ExecutionManager(self.store)
            self.dispose: Callable[[], Any] = engine.dispose
        else:
            asynchronous = create_async_engine(url.replace("pysqlite", "aiosqlite"), **options)
            self.engine = asynchronous.sync_engine
            store = AsyncSqlExecutionStore(asynchronous)
            self.store = Blocking(store, runner)
            self.manager = Blocking(AsyncExecutionManager(store), runner)
            self.dispose = lambda: runner.run(asynchronous.dispose())

    def failure(self) -> DBAPIError:
        """Send a statement that the driver refuses, and return the error."""
        query = queries.page(build_page(limit=1))
        query.parameters["limit"] = "many"
        with pytest.raises(DBAPIError) as caught:
            self.store._ask(query, list)
        return caught.value


@pytest.fixture
def host(database: Database, mode: str, runner: asyncio.Runner) -> Iterator[Callable[..., Host]]:
    made = []
    url = database.url.replace("sqlite:", "sqlite+pysqlite:")
    of_host = Database(database.name, url, database.engine)

    def make(**options: Any) -> Host:
        made.append(Host(of_host, mode, runner, **options))
        return made[-1]

    yield make
    for each in made:
        each.dispose()


@pytest.mark.parametrize(
    "name",
    [
        *("before_cursor_execute", "after_cursor_execute", "before_execute", "after_execute"),
        *("engine_connect", "begin", "commit"),
    ],
)
def test_listener_every_verb_sees_each_statement(host: Callable[..., Host], name: str) -> None:
    watched = host()
    watched.manager.list()  # a listener can be added after the first call
    seen = []
    event.listen(watched.engine, name, lambda *_: seen.append(name))
    call_every_verb(watched.manager)
    assert len(seen) == 33


def test_listener_changes_the_statement_changed_text_is_sent(host: Callable[..., Host]) -> None:
    changed = host()

    def comment(*given: Any) -> tuple[str, Any]:
        sent.append(f"/* traced */ {given[2]}")
        return sent[-1], given[3]

    sent: list[str] = []
    event.listen(changed.engine, "before_cursor_execute", comment, retval=True)
    assert changed.manager.create("a").status == "pending"
    assert sent[-1].startswith("/* traced */ INSERT")


def test_listener_handle_error_receives_the_error(host: Callable[..., Host]) -> None:
    broken = host()
    heard: list[Any] = []
    event.listen(broken.engine, "handle_error", heard.append)
    error = broken.failure()
    assert [context.sqlalchemy_exception for context in heard] == [error]


@pytest.mark.slow
def test_error_of_driver_raised_as_sqlalchemy_error(host: Callable[..., Host]) -> None:
    broken = host(pool_size=1, max_overflow=0, pool_timeout=5)
    for _ in range(3):  # with a pool of one, each call must return its connection
        error = broken.failure()
        assert "FROM executions" in str(error)
        assert "many" in str(error)
        assert not error.connection_invalidated
    call_every_verb(broken.manager)
    assert broken.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_error_with_hide_parameters_shows_no_values(host: Callable[..., Host]) -> None:
    assert "'many'" not in str(host(hide_parameters=True).failure())


def test_logging_at_info_shows_statements(
    host: Callable[..., Host], caplog: pytest.LogCaptureFixture
) -> None:
    quiet = host()
    quiet.manager.create("quiet")
    assert not caplog.records
    with caplog.at_level(logging.INFO, logger="sqlalchemy.engine"):
        loud = host()
        loud.manager.create("loud")
    assert "INSERT INTO executions" in caplog.text


def test_host_transaction_after_manager_call_rolls_back_and_commits(database: Database) -> None:
    """The manager uses the connection in autocommit; the host then uses it in transactions."""
    engine = create_engine(database.url, pool_size=1, max_overflow=0)
    if database.name == "sqlite":
        configure_sqlite(engine)
    manager = ExecutionManager(SqlExecutionStore(engine))
    kept = manager.create("a").id
    with engine.connect() as connection:
        connection.execute(text("DELETE FROM executions"))
        connection.rollback()
    before = manager.get(kept)
    with engine.begin() as connection:
        connection.execute(text("UPDATE executions SET type = 'b'"))
    assert (before.type, manager.get(kept).type) == ("a", "b")
    engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
def test_connection_terminated_by_server_next_call_reconnects(
    postgres_database: Database, mode: str, own: bool
) -> None:
    """No call raises: each reconnects, however many idle connections are dead, and runs once."""
    database = postgres_database
    others = "datname = current_database() AND pid <> pg_backend_pid()"

    def terminate_all() -> None:
        database.rows(
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}"
        )

    async def asynchronous() -> None:
        engine = create_async_engine(database.url)
        manager = (
            connect_async(database.url)
            if own
            else AsyncExecutionManager(AsyncSqlExecutionStore(engine))
        )
        await asyncio.gather(*(manager.create("a") for _ in range(4)))
        terminate_all()
        for _ in range(8):
            await manager.list()
        terminate_all()
        assert (await manager.start((await manager.create("b")).id)).attempts == 1
        await manager.close()
        await engine.dispose()

    def synchronous() -> None:
        engine = create_engine(database.url)
        manager = connect(database.url) if own else ExecutionManager(SqlExecutionStore(engine))
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: manager.create("a"), range(4)))
        terminate_all()
        for _ in range(8):
            manager.list()
        terminate_all()
        assert manager.start(manager.create("b").id).attempts == 1
        manager.close()
        engine.dispose()

    database.engine.dispose()
    if mode == "sync":
        synchronous()
    else:
        asyncio.run(asynchronous())


def count_connections(database: Database) -> int:
    """Return the number of connections to PostgreSQL."""
    if database.name == "sqlite":
        return 0
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    return int(database.rows(query)[0]["count"])


def add_listener(manager: Any) -> None:
    event.listen(manager._store._bind.engine, "commit", lambda _: None)


@pytest.mark.slow
def test_pool_more_callers_than_connections_all_calls_succeed(
    database: Database, mode: str
) -> None:
    """Callers wait for a free connection; no call fails and no write is lost.

    The second round has a listener: then statements use the pool of SQLAlchemy.
    """
    callers, each = 3 * OWN_POOL, in_whole(8, 3)
    barrier = threading.Barrier(callers)

    def synchronous() -> None:
        with connect(database.url) as manager, ThreadPoolExecutor(callers) as threads:

            def work(_: int) -> None:
                barrier.wait(60)
                for _ in range(each):
                    manager.start(manager.create("a").id)

            for pools in (1, 2):
                list(threads.map(work, range(callers)))
                assert count_connections(database) <= pools * OWN_POOL + 1
                add_listener(manager)

    async def asynchronous() -> None:
        async with connect_async(database.url) as manager:

            async def work() -> None:
                for _ in range(each):
                    await manager.start((await manager.create("a")).id)

            for pools in (1, 2):
                await asyncio.gather(*(work() for _ in range(callers)))
                assert count_connections(database) <= pools * OWN_POOL + 1
                add_listener(manager)

    database.engine.dispose()
    if mode == "sync":
        synchronous()
    else:
        asyncio.run(asynchronous())
    assert database.rows("SELECT count(*) AS n FROM executions WHERE status = 'running'") == [
        {"n": 2 * callers * each}
    ]


def test_listener_on_async_engine_engine_keeps_its_identity(database: Database) -> None:
    """SQLAlchemy finds an AsyncEngine by its sync engine; the store must not replace it."""

    async def run() -> None:
        engine = create_async_engine(database.url.replace("sqlite:", "sqlite+aiosqlite:"))
        event.listen(engine.sync_engine, "commit", lambda _: None)
        await AsyncExecutionManager(AsyncSqlExecutionStore(engine)).create("a")
        async with AsyncSession(engine) as session:
            assert (await session.connection()).engine is engine
        await engine.dispose()

    asyncio.run(run())


@pytest.mark.slow
def test_async_manager_in_successive_event_loops_works(database: Database) -> None:
    manager = connect_async(database.url)

    async def work() -> None:
        await asyncio.gather(*(manager.create("a") for _ in range(3 * OWN_POOL)))
        await manager.close()

    for _ in range(3):
        asyncio.run(work())
    assert database.rows("SELECT count(*) AS n FROM executions") == [{"n": 9 * OWN_POOL}]


def test_connection_refused_every_call_raises_operational_error(
    mode: str, runner: asyncio.Runner
) -> None:
    """Failed attempts use up no permit: more calls than the pool is large all get an answer."""
    url = f"postgresql+psycopg://postgres@127.0.0.1:{free_port()}/none"
    manager: Any = connect(url) if mode == "sync" else Blocking(connect_async(url), runner)
    for _ in range(OWN_POOL + 2):
        with pytest.raises(OperationalError) as caught:
            manager.list()
        assert "SELECT" not in str(caught.value)  # no statement was sent
    manager.close()


def test_call_interrupted_discards_its_connection(database: Database) -> None:
    with connect(database.url) as manager:
        id = manager.create("a").id
        direct: Any = manager._store._bind
        used = []

        def interrupted(pooled: Any, *_: Any) -> Any:
            used.append(pooled.driver_connection)
            raise KeyboardInterrupt

        direct._execute_on = interrupted
        with pytest.raises(KeyboardInterrupt):
            manager.get(id)
        del direct._execute_on
        assert manager.get(id).status == "pending"
        pooled = direct._checkout()
        assert pooled.driver_connection is not used[0]
        direct._checkin(pooled)


def test_in_memory_sqlite_concurrent_tasks_lose_no_write() -> None:
    """In-memory SQLite has one connection for all tasks; acknowledged writes stay."""

    async def work() -> None:
        engine = create_async_engine("sqlite+aiosqlite://")
        configure_sqlite(engine)
        async with engine.begin() as connection:
            await connection.run_sync(migrate.upgrade)
        manager = AsyncExecutionManager(AsyncSqlExecutionStore(engine))
        made: list[str] = []

        async def create() -> None:
            for _ in range(10):
                made.append((await manager.create("a")).id)
                await manager.list(limit=1)

        await asyncio.gather(*(create() for _ in range(20)))
        assert {found.id for found in await manager.list(limit=1000)} == {*made}
        await engine.dispose()

    asyncio.run(work())


def test_sync_store_in_run_sync_works(database: Database) -> None:
    async def work() -> None:
        engine = create_async_engine(database.url.replace("sqlite:", "sqlite+aiosqlite:"))
        async with engine.connect() as connection:
            created = await connection.run_sync(
                lambda sync: ExecutionManager(SqlExecutionStore(sync.engine)).create("a")
            )
        assert created.status == "pending"
        await engine.dispose()

    asyncio.run(work())
    assert len(database.rows("SELECT id FROM executions")) == 1


def test_executor_of_connect_bypasses_sqlalchemy(database: Database) -> None:
    with connect(database.url) as manager:
        assert not manager._store._bind._must_use_sqlalchemy()


def test_cursor_cache_large_payload_drops_the_cursor(database: Database) -> None:
    with connect(database.url) as manager:
        small = manager.create("a", "x").id
        large = manager.create("a", "x" * 2**20).id
        direct: Any = manager._store._bind
        if database.name == "sqlite":
            return
        manager.get(small)
        (idle,) = direct._idle._connections
        assert CURSOR in idle.info
        manager.get(large)
        assert CURSOR not in idle.info
        manager.get(small)
        assert manager.find_by_idempotency_key("none") is None
        assert CURSOR in idle.info
        assert manager._store.update(small, transitions.complete("x" * 2**20, None)) is None
        assert CURSOR not in idle.info
        manager.list()
        assert CURSOR not in idle.info


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import execution_core", ["sqlalchemy", "alembic"]),
        (
            "from execution_core import connect",
            ["sqlalchemy.orm", "sqlalchemy.ext.asyncio", "sqlalchemy.dialects.postgresql"],
        ),
    ],
)
def test_import_of_package_loads_no_unneeded_module(statement: str, unwanted: list[str]) -> None:
    listed = "import sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{listed}"], capture_output=True, text=True, check=True
    )
    assert not {*unwanted} & {*done.stdout.split()}


def test_statement_used_again_is_not_compiled_again(database: Database) -> None:
    with connect(database.url) as manager:
        call_every_verb(manager)
    known = dict(compiled._compiled)
    with connect(database.url) as manager:  # another engine
        call_every_verb(manager)
    assert known
    assert compiled._compiled == known
