"""The fast path: what goes straight to the driver behaves as what SQLAlchemy executes."""

import asyncio
import json
import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ExecutionManager,
    ExecutionStatus,
    SqlExecutionStore,
    configure_sqlite,
    connect,
    connect_async,
    migrate,
)
from execution_core.core import json_values, transitions, validation
from execution_core.core.selections import check_page
from execution_core.sql.driver.connection_cache import CURSOR
from execution_core.sql.driver.engine import OWN_POOL
from execution_core.sql.driver.executor import Executor
from execution_core.sql.schema.column_types import JsonText
from execution_core.sql.statements import queries

from ..conftest import Blocking, Database, open_manager
from ..support.postgres import free_port, server


def every_verb(manager: ExecutionManager) -> None:
    parent = manager.create("a").id
    id = manager.create("a", {"p": [1, None]}, max_attempts=2, parent_id=parent).id
    manager.start(id, worker="w")
    manager.update_progress(id, 1, 2)
    manager.checkpoint(id, "k", {"v": 1})
    manager.advance(id, 2, 2, key="l", value=2, attempt=1)
    manager.heartbeat(id)
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
    manager.delete(parent)
    manager.delete(id)


class Host:
    """A manager over a host's own engine, in one of the colours."""

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
        """Send what the driver refuses, and return what is raised."""
        query = queries.page(check_page(None, None, None, 1, None))
        query.parameters["limit"] = "many"
        with pytest.raises(DBAPIError) as caught:
            self.store._rows(query)
        return caught.value


@pytest.fixture
def host(database: Database, mode: str, runner: asyncio.Runner) -> Iterator[Callable[..., Host]]:
    made = []
    url = database.url.replace("sqlite:", "sqlite+pysqlite:")
    over = Database(database.name, url, database.engine)

    def make(**options: Any) -> Host:
        made.append(Host(over, mode, runner, **options))
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
def test_a_listener_sees_every_statement(host: Callable[..., Host], name: str) -> None:
    watched = host()
    watched.manager.list()  # also when it starts to listen later
    seen = []
    event.listen(watched.engine, name, lambda *_: seen.append(name))
    every_verb(watched.manager)
    assert len(seen) == 21


def test_a_listener_that_changes_what_is_sent(host: Callable[..., Host]) -> None:
    changed = host()

    def comment(*given: Any) -> tuple[str, Any]:
        sent.append(f"/* traced */ {given[2]}")
        return sent[-1], given[3]

    sent: list[str] = []
    event.listen(changed.engine, "before_cursor_execute", comment, retval=True)
    assert changed.manager.create("a").status == "pending"
    assert sent[-1].startswith("/* traced */ INSERT")


def test_a_listener_to_errors(host: Callable[..., Host]) -> None:
    broken = host()
    heard: list[Any] = []
    event.listen(broken.engine, "handle_error", heard.append)
    error = broken.failure()
    assert [context.sqlalchemy_exception for context in heard] == [error]


def test_an_error_is_sqlalchemys(host: Callable[..., Host]) -> None:
    broken = host(pool_size=1, max_overflow=0, pool_timeout=5)
    for _ in range(3):  # a pool of one: each gave its connection back
        error = broken.failure()
        assert "FROM executions" in str(error)
        assert "many" in str(error)
        assert not error.connection_invalidated
    every_verb(broken.manager)
    assert broken.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_an_error_hides_what_the_host_hides(host: Callable[..., Host]) -> None:
    assert "'many'" not in str(host(hide_parameters=True).failure())


def test_logging_shows_statements(
    host: Callable[..., Host], caplog: pytest.LogCaptureFixture
) -> None:
    quiet = host()
    quiet.manager.create("quiet")
    assert not caplog.records
    with caplog.at_level(logging.INFO, logger="sqlalchemy.engine"):
        loud = host()
        loud.manager.create("loud")
    assert "INSERT INTO executions" in caplog.text


def test_a_hosts_transaction_is_still_a_transaction(database: Database) -> None:
    """The connection that the manager just used by itself begins one again."""
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


@pytest.mark.parametrize("own", [True, False])
def test_a_connection_that_the_server_ended(
    postgres_database: Database, mode: str, own: bool
) -> None:
    """No call reports it: each connects anew, whatever else was idle, and is made once."""
    database = postgres_database
    others = "datname = current_database() AND pid <> pg_backend_pid()"

    def end_all() -> None:
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
        end_all()
        for _ in range(8):
            await manager.list()
        end_all()
        assert (await manager.start((await manager.create("b")).id)).attempts == 1
        await manager.close()
        await engine.dispose()

    def synchronous() -> None:
        engine = create_engine(database.url)
        manager = connect(database.url) if own else ExecutionManager(SqlExecutionStore(engine))
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: manager.create("a"), range(4)))
        end_all()
        for _ in range(8):
            manager.list()
        end_all()
        assert manager.start(manager.create("b").id).attempts == 1
        manager.close()
        engine.dispose()

    database.engine.dispose()
    if mode == "sync":
        synchronous()
    else:
        asyncio.run(asynchronous())


def connections(database: Database) -> int:
    """How many there are to PostgreSQL."""
    if database.name == "sqlite":
        return 0
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    return int(database.rows(query)[0]["count"])


def listen(manager: Any) -> None:
    event.listen(manager._store._bind.engine, "commit", lambda _: None)


def test_more_callers_than_connections(database: Database, mode: str) -> None:
    """They wait for one another; nobody is turned away, and nobody is forgotten.

    Also once somebody listens, and statements go SQLAlchemy's own way, by its own pool.
    """
    callers, each = 3 * OWN_POOL, 8
    barrier = threading.Barrier(callers)

    def synchronous() -> None:
        with connect(database.url) as manager, ThreadPoolExecutor(callers) as threads:

            def work(_: int) -> None:
                barrier.wait(60)
                for _ in range(each):
                    manager.start(manager.create("a").id)

            for pools in (1, 2):
                list(threads.map(work, range(callers)))
                assert connections(database) <= pools * OWN_POOL + 1
                listen(manager)

    async def asynchronous() -> None:
        async with connect_async(database.url) as manager:

            async def work() -> None:
                for _ in range(each):
                    await manager.start((await manager.create("a")).id)

            for pools in (1, 2):
                await asyncio.gather(*(work() for _ in range(callers)))
                assert connections(database) <= pools * OWN_POOL + 1
                listen(manager)

    database.engine.dispose()
    if mode == "sync":
        synchronous()
    else:
        asyncio.run(asynchronous())
    assert database.rows("SELECT count(*) AS n FROM executions WHERE status = 'running'") == [
        {"n": 2 * callers * each}
    ]


def test_a_listened_to_call_leaves_the_hosts_engine_its_own(database: Database) -> None:
    """In asyncio, where SQLAlchemy finds an AsyncEngine by what it stands for."""

    async def run() -> None:
        engine = create_async_engine(database.url.replace("sqlite:", "sqlite+aiosqlite:"))
        event.listen(engine.sync_engine, "commit", lambda _: None)
        await AsyncExecutionManager(AsyncSqlExecutionStore(engine)).create("a")
        async with AsyncSession(engine) as session:
            assert (await session.connection()).engine is engine
        await engine.dispose()

    asyncio.run(run())


def test_one_event_loop_after_the_other(database: Database) -> None:
    manager = connect_async(database.url)

    async def work() -> None:
        await asyncio.gather(*(manager.create("a") for _ in range(3 * OWN_POOL)))
        await manager.close()

    for _ in range(3):
        asyncio.run(work())
    assert database.rows("SELECT count(*) AS n FROM executions") == [{"n": 9 * OWN_POOL}]


def test_a_server_that_is_not_there(mode: str, runner: asyncio.Runner) -> None:
    """However often it was tried, the next call tries again, and gets an answer."""
    url = f"postgresql+psycopg://postgres@127.0.0.1:{free_port()}/none"
    manager: Any = connect(url) if mode == "sync" else Blocking(connect_async(url), runner)
    for _ in range(OWN_POOL + 2):
        with pytest.raises(OperationalError) as caught:
            manager.list()
        assert "SELECT" not in str(caught.value)  # nothing was sent
    manager.close()


def test_an_interrupted_call_gives_up_its_connection(database: Database) -> None:
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


def test_callers_that_share_one_connection() -> None:
    """In-memory SQLite is one connection for all: what is acknowledged stays."""

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


def test_a_sync_store_in_an_asyncio_hosts_greenlet(database: Database) -> None:
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


def test_a_page_is_what_a_filter_finds(database: Database, mode: str, runner: Any) -> None:
    with open_manager(database.url, mode, runner) as manager:
        parents = [manager.create("parent").id for _ in range(2)]
        for n in range(60):
            id = manager.create("ab"[n % 2], max_attempts=2, parent_id=parents[n % 3 - 1]).id
            if n % 7 < 5:
                manager.start(id)
            if n % 7 < 3:
                manager.fail(id, "no", retryable=n % 7 == 1)
            if n % 7 == 3:
                manager.complete(id)
        everything = manager.list(limit=1000)
        chosen = random.Random(7)
        for _ in range(300):
            statuses = chosen.sample(list(ExecutionStatus), chosen.randrange(1, 5))
            wanted = check_page(
                chosen.choice([None, statuses, statuses[0], []]),
                chosen.choice([None, "a", "b", "c"]),
                chosen.choice([None, *parents]),
                chosen.choice([1, 3, 10, 100]),
                chosen.choice([None, everything[20].id, everything[-3].id]),
            )
            found = manager.list(
                status=wanted.statuses,
                type=wanted.type,
                parent_id=wanted.parent_id,
                limit=wanted.limit,
                before=wanted.before,
            )
            assert found == [each for each in everything if wanted.includes(each)][: wanted.limit]


def test_executions_share_nothing(database: Database) -> None:
    with connect(database.url) as manager:
        one, other = manager.create("a"), manager.create("b")
        one.model_fields_set.discard("type")
        assert other.model_dump(exclude_unset=True)["type"] == "b"


def test_a_configured_engine_goes_the_fast_way(database: Database) -> None:
    with connect(database.url) as manager:
        assert not manager._store._bind._must_use_sqlalchemy()


def test_a_cursor_that_is_kept_keeps_no_payload(database: Database) -> None:
    with connect(database.url) as manager:
        small = manager.create("a", "x").id
        large = manager.create("a", "x" * 2**20).id
        direct: Any = manager._store._bind
        if database.name == "sqlite":
            return
        manager.get(small)
        (kept,) = direct._idle._connections
        assert CURSOR in kept.info
        manager.get(large)
        assert CURSOR not in kept.info
        manager.get(small)
        assert manager.find_by_idempotency_key("none") is None
        assert CURSOR in kept.info
        assert manager._store.update(small, transitions.complete("x" * 2**20, None)) is None
        assert CURSOR not in kept.info
        manager.list()
        assert CURSOR not in kept.info


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(PLAIN)
def test_json_is_read_as_python_reads_it(value: Any) -> None:
    for written in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        expected = json.loads(written)
        found = read_json(written)
        assert found == expected
        assert repr(found) == repr(expected)


@pytest.mark.parametrize(
    "written",
    ['"\\ud800"', "[" * 250 + "]" * 250, " { } ", "1e400", "-0", "-0.0", "1E5", '{"a":1,"a":2}',
     "123456789012345678901234567890", "0.1", "1e23", "NaN", '"\\u0000"', "5e-324"],
)  # fmt: skip
def test_odd_json_is_read_as_python_reads_it(written: str) -> None:
    assert repr(read_json(written)) == repr(json.loads(written))


def read_json(written: str) -> Any:
    from sqlalchemy.dialects import sqlite

    read = JsonText().result_processor(sqlite.dialect(), None)
    return read(written)


@pytest.mark.parametrize("depth", [json_values.MAX_DEPTH, json_values.MAX_DEPTH - 1])
def test_the_deepest_payload(database: Database, depth: int) -> None:
    payload: Any = "leaf"
    for n in range(depth):
        payload = {"in": payload} if n % 2 else [payload]
    with connect(database.url) as manager:
        assert manager.get(manager.create("a", payload).id).payload == payload


def asked() -> list[dict[str, Any]]:
    id = "0198a000-0000-7000-8000-000000000001"
    statuses: list[Any] = [None, "failed", ["pending", "running"], []]
    return [
        {"status": status, "type": type, "parent_id": parent, "limit": 5, "before": before}
        for status in statuses
        for type in (None, "a")
        for parent in (None, id)
        for before in (None, id)
    ]


@pytest.mark.parametrize("wanted", asked(), ids=str)
def test_every_page_is_found_by_an_index(database: Database, wanted: dict[str, Any]) -> None:
    """No page reads, or sorts, what it does not show: however much has finished."""
    query = queries.page(check_page(**wanted))
    compiled = query.statement.compile(dialect=database.engine.dialect)
    given = {**compiled.params, **query.parameters}
    with database.engine.connect() as connection:
        explain = "EXPLAIN QUERY PLAN " if database.name == "sqlite" else "EXPLAIN "
        if database.name == "postgresql":  # it reads tables this small as a whole if it may
            connection.exec_driver_sql("SET enable_seqscan = off")
            connection.exec_driver_sql("SET enable_bitmapscan = off")
            parameters: Any = {name: given[name] for name in compiled.params}
        else:
            parameters = tuple(given[name] for name in compiled.positiontup or ())
        plan = [
            str(row[-1]) for row in connection.exec_driver_sql(explain + str(compiled), parameters)
        ]
    for step in plan:
        assert "Seq Scan on executions" not in step, plan
        assert not step.startswith("SCAN executions") or "USING INDEX" in step, plan
    if "TEMP B-TREE" in str(plan):
        assert "COMPOUND" in str(plan), plan


def test_progress_stays_on_its_page() -> None:
    """On a PostgreSQL of its own: what others read meanwhile keeps old versions in their places.

    SQLite keeps no versions of a row.
    """
    with server(own=True) as alone:
        total, hot = updated(alone.url)
    assert total == 40 * 121
    assert hot >= 0.98 * total


def updated(url: str) -> tuple[int, int]:
    """Make progress, and count the updates, and those of them that no index had to know."""
    migrate.upgrade(url)
    engine = create_engine(url)
    with engine.begin() as connection:  # an ANALYZE at work reads as well
        connection.execute(text("ALTER TABLE executions SET (autovacuum_enabled = off)"))
    with connect(url) as manager:
        ids = [manager.create("a", "x" * 1500).id for _ in range(40)]
        for id in ids:
            manager.start(id)  # the only one of their updates that an index has to know
        for n in range(30):
            for id in ids:
                manager.update_progress(id, n, 30, message="m" * n)
                manager.checkpoint(id, "last", n)
                manager.advance(id, n, 30, key="last", value=n)
                manager.heartbeat(id)
    counted = (
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'executions'"
    )
    total = hot = 0
    limit = time.monotonic() + 60
    while total < 40 * 121 and time.monotonic() < limit:  # a connection is counted when it ended
        with engine.connect() as connection:
            total, hot = connection.execute(text(counted)).one()
    engine.dispose()
    return total, hot


def test_a_large_payload_is_not_written_again(postgres_database: Database) -> None:
    """On PostgreSQL; SQLite writes a row as a whole, as docs/performance.md says."""
    moves = [
        transitions.start("w"),
        transitions.update_progress(1, 2, None, None, None),
        transitions.checkpoint("k", 1, None),
        transitions.complete({"r": 1}, None),
    ]

    def logged(payload: str) -> int:
        engine = postgres_database.engine
        with connect(postgres_database.url) as manager, engine.begin() as connection:
            id = manager.create("a", payload).id
            total = 0
            for move in moves:
                statement, parameters, *_ = queries.update(id, move, validation.new_id(), None)
                compiled: Any = statement.compile(dialect=engine.dialect)
                given = {
                    name: bind.type.dialect_impl(engine.dialect).bind_processor(engine.dialect)
                    for name, bind in compiled.binds.items()
                }
                explained = connection.exec_driver_sql(
                    f"EXPLAIN (ANALYZE, WAL, FORMAT JSON) {compiled}",
                    {
                        name: convert(parameters[name]) if convert else parameters[name]
                        for name, convert in given.items()
                    },
                ).scalar_one()
                assert explained[0]["Plan"]["Plans"][0]["Actual Rows"] == 1
                total += explained[0]["Plan"]["WAL Bytes"]
        return total

    noise = "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=100_000))
    assert 0 < logged(noise) <= 1.2 * logged("x" * 100)


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
def test_what_is_imported(statement: str, unwanted: list[str]) -> None:
    listed = "import sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{listed}"], capture_output=True, text=True, check=True
    )
    assert not {*unwanted} & {*done.stdout.split()}


def test_a_statement_is_compiled_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(database.url) as manager:
        every_verb(manager)
        direct: Executor = manager._store._bind
        known = dict(direct._compiled)
        every_verb(manager)
        assert direct._compiled == known
