"""Every call of `connect`'s manager ends in time: locks, connections, frozen servers."""

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, make_url
from sqlalchemy.exc import DBAPIError, MissingGreenlet, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import create_async_engine

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ExecutionManager,
    InvalidValue,
    SqlExecutionStore,
    connect,
    connect_async,
    migrate,
)
from execution_core.cli import main
from execution_core.sql.driver.engine import GRACE_SECONDS, OWN_POOL

from ..conftest import Blocking, Database
from ..support import postgres
from ..support.pgbouncer import BINARY, MISSING, pgbouncer
from ..support.postgres import dsn
from ..support.proxy import Cut, Proxy
from ..support.states import bring_to
from .lost_connections import open_bound_manager, row_lock, wait_for

SHORT = timedelta(milliseconds=300)
TIMEOUTS = "SELECT current_setting('lock_timeout') || ' ' || current_setting('statement_timeout')"


def open_bounded(
    url: str, mode: str, runner: asyncio.Runner, **options: Any
) -> AbstractContextManager[Any]:
    return open_bound_manager(url, mode, "own", runner, **options)


@pytest.fixture
def empty(postgres_database: Database) -> Database:
    postgres_database.empty()
    return postgres_database


def seconds_of(call: Callable[[], Any]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


@contextmanager
def frozen(server: postgres.Server) -> Iterator[None]:
    """Stop all processes of a server that answer clients."""
    assert server.postmaster is not None
    with psycopg.connect(postgres.dsn(server.url)) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchall()
    stopped = [server.postmaster.pid, *(pid for (pid,) in rows)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def test_call_waits_for_row_lock_within_lock_timeout(
    empty: Database, mode: str, runner: asyncio.Runner
) -> None:
    with open_bounded(empty.url, mode, runner, lock_timeout=SHORT) as manager:
        id = manager.create("work").id

        def refused() -> None:
            with pytest.raises(OperationalError) as caught:
                manager.start(id)
            assert "a lock that another transaction holds" in caught.value.__notes__[0]

        with row_lock(empty, id):
            assert 0.3 <= seconds_of(refused) < 5
        assert manager.start(id).attempts == 1


def test_create_waits_for_open_key_within_lock_timeout(
    empty: Database, mode: str, runner: asyncio.Runner
) -> None:
    with (
        open_bounded(f"{empty.url}?lock_timeout=0.3", mode, runner) as manager,
        connect(empty.url) as other,
        empty.engine.connect() as connection,
    ):
        other.within(connection).create("work", idempotency_key="k")
        with pytest.raises(OperationalError, match="lock timeout"):
            manager.create("work", idempotency_key="k")
        connection.rollback()
        assert manager.create("work", idempotency_key="k").status == "pending"


def test_sqlite_call_waits_for_writer_within_lock_timeout(
    tmp_path: Any, mode: str, runner: asyncio.Runner
) -> None:
    url = f"sqlite:///{tmp_path}/bounds.db"
    migrate.upgrade(url)
    with (
        open_bounded(url, mode, runner, lock_timeout=SHORT) as manager,
        connect(url) as other,
    ):
        store: Any = other._store
        with (
            store._bind.engine.begin(),  # BEGIN IMMEDIATE
            pytest.raises(OperationalError, match="database is locked"),
        ):
            manager.create("work")
        assert manager.create("work").status == "pending"


@pytest.mark.slow
def test_call_waits_for_connection_within_call_timeout(
    empty: Database, mode: str, runner: asyncio.Runner
) -> None:
    bounds = {"call_timeout": timedelta(seconds=1), "lock_timeout": timedelta(seconds=30)}

    async def crowd(manager: Any, id: str) -> list[Any]:
        calls = (manager.start(id) for _ in range(OWN_POOL + 1))
        return await asyncio.gather(*calls, return_exceptions=True)

    with open_bounded(empty.url, mode, runner, **bounds) as manager:
        id = manager.create("work").id
        with row_lock(empty, id):
            if mode == "sync":
                with ThreadPoolExecutor(OWN_POOL + 1) as pool:
                    calls = [pool.submit(manager.start, id) for _ in range(OWN_POOL + 1)]
                    errors = [call.exception() for call in calls]
            else:
                errors = runner.run(crowd(manager.target, id))
        # Each error of the others is that of the server's own timeout.
        waited = [error for error in errors if isinstance(error, TimeoutError)]
        assert len(waited) <= 1
        for error in waited:
            assert f"All {OWN_POOL} connections of this manager were in use" in str(error)
        slow = [error for error in errors if isinstance(error, DBAPIError)]
        assert len(slow) + len(waited) == OWN_POOL + 1
        assert all("statement timeout" in str(error) for error in slow)
        assert manager.start(id).attempts == 1


def test_connection_wait_is_an_error_that_says_what_to_do(
    database: Database, mode: str, runner: asyncio.Runner
) -> None:
    with open_bounded(database.url, mode, runner, call_timeout=SHORT) as manager:
        id = manager.create("work").id
        target: Any = manager if mode == "sync" else manager.target
        executor = target._store._bind

        async def hold_all() -> None:
            async with AsyncExitStack() as stack:
                for _ in range(OWN_POOL):
                    if database.name == "sqlite":
                        await stack.enter_async_context(executor._async_engine.connect())
                    else:
                        await stack.enter_async_context(executor._semaphore())
                await target.get(id)

        expected = f"All {OWN_POOL} connections of this manager were in use for 0.3 seconds"
        with pytest.raises(TimeoutError, match=expected):
            if mode == "sync":
                permits = [executor._permits.get() for _ in range(OWN_POOL)]
                try:
                    manager.get(id)
                finally:
                    for permit in permits:
                        executor._permits.put(permit)
            else:
                runner.run(hold_all())
        assert manager.get(id).id == id


@pytest.mark.slow
def test_prune_has_no_time_limit(empty: Database, mode: str, runner: asyncio.Runner) -> None:
    empty.run(
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(0.6); RETURN OLD; END $$"
    )
    empty.run(
        "CREATE TRIGGER slow BEFORE DELETE ON executions FOR EACH ROW EXECUTE FUNCTION slowly()"
    )
    try:
        with open_bounded(empty.url, mode, runner, call_timeout=SHORT) as manager:
            ids = [bring_to(manager, "failed").id for _ in range(2)]
            with pytest.raises(OperationalError, match="statement timeout") as caught:
                manager.delete(ids[0])
            assert "The call took too long" in caught.value.__notes__[0]
            assert manager.prune(timedelta(milliseconds=1)) == 2
            bring_to(manager, "failed")
            with pytest.raises(OperationalError, match="statement timeout"):
                manager.delete(manager.list()[0].id)
    finally:
        empty.run("DROP FUNCTION slowly CASCADE")


@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_pooler_gets_no_timeouts_of_a_session(
    empty: Database, mode: str, runner: asyncio.Runner
) -> None:
    """They would be those of another client."""
    with (
        pgbouncer(empty.url, "transaction", connections=1) as url,
        open_bounded(url, mode, runner) as manager,
    ):
        manager.create("work")
        engine = psycopg.connect(postgres.dsn(url), autocommit=True)
        assert engine.execute(TIMEOUTS).fetchone() == ("0 0",)
        engine.close()


@pytest.mark.parametrize("binding", ["host's", "listening"])
def test_host_engine_block_beside_open_transaction_ends_within_call_timeout(
    empty: Database, mode: str, runner: asyncio.Runner, binding: str
) -> None:
    """A transaction of the same program may hold the row: nothing else would end the wait."""
    limit = timedelta(seconds=1)
    with open_bound_manager(empty.url, mode, binding, runner, call_timeout=limit) as manager:
        id = manager.create("work").id
        with ExitStack() as stack:

            def block() -> None:
                with pytest.raises(OperationalError) as caught, manager.attempt(id):
                    stack.enter_context(row_lock(empty, id))
                assert "perhaps one of this program" in caught.value.__notes__[0]

            assert 1 <= seconds_of(block) < 1 + 4
        assert manager.get(id).status == "running"
        assert manager.complete(id, attempt=1).status == "completed"


def test_host_engine_exhausted_pool_raises_with_advice(
    empty: Database, mode: str, runner: asyncio.Runner
) -> None:
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.2}
    manager: Any
    if mode == "sync":
        engine: Any = create_engine(empty.url, **options)
        manager, host = ExecutionManager(SqlExecutionStore(engine)), engine
    else:
        engine = create_async_engine(empty.url, **options)
        manager = Blocking(AsyncExecutionManager(AsyncSqlExecutionStore(engine)), runner)
        host = engine.sync_engine
    id = manager.create("work").id
    taken = host.pool._do_get()
    with pytest.raises(PoolTimeout) as caught:
        manager.start(id)
    assert "All connections of the engine's pool were in use" in caught.value.__notes__[0]
    host.pool._do_return_conn(taken)
    assert manager.start(id).attempts == 1
    dispose: Any = engine.dispose
    _ = dispose() if mode == "sync" else runner.run(dispose())


def test_url_with_invalid_timeout_refused(empty: Database) -> None:
    for query in ("lock_timeout=soon", "call_timeout=-1", "call_timeout=nan", "lock_timeout=1e99"):
        with pytest.raises(InvalidValue, match=f"has {query}: use a number of seconds"):
            connect(f"{empty.url}?{query}")
    with pytest.raises(InvalidValue, match="call_timeout must be a timedelta, not an int"):
        connect(empty.url, call_timeout=1)


def test_timeout_above_the_limit_of_postgresql_is_cut(empty: Database) -> None:
    with connect(f"{empty.url}?lock_timeout=1e9&call_timeout=1e9") as manager:
        manager.create("work")
    migrate.upgrade(empty.url, lock_timeout=timedelta(days=400))


@pytest.mark.parametrize("call", ["connect", "connect_async"])
def test_engine_options_work_or_are_refused(
    database: Database, call: str, runner: asyncio.Runner
) -> None:
    """A pool that takes no size works; single statements have no isolation level."""
    mode = "sync" if call == "connect" else "async"
    with open_bound_manager(database.url, mode, "own", runner, poolclass=NullPool) as manager:
        assert manager.create("work").status == "pending"
    opens: Any = connect if mode == "sync" else connect_async
    with pytest.raises(InvalidValue, match="isolation_level cannot be set: each call is one"):
        opens(database.url, isolation_level="SERIALIZABLE")


# The driver's attempt to connect is never awaited.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_sync_store_on_async_driver_says_what_to_use(database: Database) -> None:
    url = make_url(database.url)
    driver = {"postgresql": "postgresql+psycopg_async", "sqlite": "sqlite+aiosqlite"}
    engine = create_engine(url.set(drivername=driver[database.name]))
    with pytest.raises(MissingGreenlet) as caught:
        ExecutionManager(SqlExecutionStore(engine)).create("work")
    assert "use AsyncSqlExecutionStore" in caught.value.__notes__[0]
    del caught
    gc.collect()


def test_command_waits_for_row_lock_within_lock_timeout_of_url(
    empty: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    with connect(empty.url) as manager:
        id = manager.create("work").id
    with row_lock(empty, id):
        began = time.monotonic()
        assert main(["cancel", id, "--url", f"{empty.url}?lock_timeout=0.3"]) == 1
        assert 0.3 <= time.monotonic() - began < 4
    assert "due to lock timeout" in capsys.readouterr().err


@pytest.mark.slow
def test_write_whose_outcome_no_connection_can_look_up_is_unknown(
    empty: Database, runner: asyncio.Runner
) -> None:
    """All connections wait for a lock when the answer of a write is lost."""
    empty.run(
        """CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF new.type = 'slow' THEN PERFORM pg_sleep(1); END IF; RETURN new; END $$"""
    )
    empty.run(
        "CREATE TRIGGER slowly BEFORE INSERT ON executions FOR EACH ROW EXECUTE FUNCTION slowly()"
    )
    proxy = Proxy(empty.url)
    limits: dict[str, Any] = {
        "call_timeout": timedelta(seconds=2),
        "lock_timeout": timedelta(seconds=1.9),
    }

    async def lose() -> pytest.ExceptionInfo[OperationalError]:
        async with connect_async(proxy.url, **limits) as manager:
            id = (await manager.start((await manager.create("held")).id)).id

            async def wait_for_lock() -> None:
                with suppress(OperationalError, TimeoutError):
                    await manager.update_progress(id, 1, 10)

            with row_lock(empty, id):
                proxy.cut(Cut.AFTER)
                lost = asyncio.create_task(manager.create("slow"))
                waiting = []
                while not lost.done():
                    waiting += [asyncio.create_task(wait_for_lock()) for _ in range(3)]
                    await asyncio.sleep(0.05)
                with pytest.raises(OperationalError) as caught:
                    await lost
            await asyncio.gather(*waiting)
            return caught

    try:
        assert "It is unknown whether create was" in runner.run(lose()).value.__notes__[0]
    finally:
        proxy.close()
        empty.run("DROP FUNCTION slowly CASCADE")
    assert len(empty.rows("SELECT id FROM executions WHERE type = 'slow'")) == 1


@pytest.mark.slow
@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_first_call_behind_pooler_of_frozen_server_ends_in_time(
    mode: str, runner: asyncio.Runner
) -> None:
    """The pooler itself answers the login."""
    with postgres.server(own=True) as server, pgbouncer(server.url, "transaction") as url:
        migrate.upgrade(server.url)
        limited = make_url(url).update_query_dict({"call_timeout": "1"})
        own: Any = limited.render_as_string(hide_password=False)
        with connect(url) as known:
            known.list()  # now the pooler has a connection to the server
        with frozen(server), open_bounded(own, mode, runner) as manager:

            def fails() -> None:
                with pytest.raises(OperationalError) as caught:
                    manager.list()
                assert caught.value.__notes__[0].startswith("No connection could be opened")

            assert seconds_of(fails) < 1 + GRACE_SECONDS + 4


@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_first_call_waits_for_busy_pooler(
    postgres_database: Database, mode: str, runner: asyncio.Runner
) -> None:
    """The pooler accepts the login at once, and the first query when a connection is free."""
    with pgbouncer(postgres_database.url, "session", connections=1) as url:
        limited = make_url(url).update_query_dict({"connect_timeout": "1"})
        own: Any = limited.render_as_string(hide_password=False)
        holder = psycopg.connect(dsn(url), autocommit=True)
        holder.execute("SELECT 1")
        with open_bounded(own, mode, runner) as manager:
            threading.Timer(3, holder.close).start()
            assert manager.list() is not None


@pytest.mark.slow
def test_frozen_server_call_ends_in_time(mode: str, runner: asyncio.Runner) -> None:
    """The kernel accepts what is sent to a stopped process, so nothing else shows it."""
    limit = timedelta(seconds=1)
    with postgres.server(own=True) as server:
        migrate.upgrade(server.url)
        url = make_url(server.url).update_query_dict({"connect_timeout": "2"})
        own: Any = url.render_as_string(hide_password=False)
        with open_bounded(own, mode, runner, call_timeout=limit) as manager:
            id = manager.create("work").id
            with frozen(server):

                def unknown() -> None:
                    with pytest.raises(OperationalError) as caught:
                        manager.start(id)
                    assert "It is unknown whether start was" in caught.value.__notes__[0]

                assert seconds_of(unknown) < 1 + GRACE_SECONDS + 2 + 4
            wait_for(lambda: manager.get(id).status == "running")
