"""A host's engine with asyncpg: errors, lost connections and time limits.

The verbs are tested elsewhere: `test_within` has callers with asyncpg, `any_manager` such a
manager, and `test_contract` such a store.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import NullPool, event, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from execution_core import (
    AsyncExecutionManager,
    AsyncSqlExecutionStore,
    ConcurrentUpdate,
    ExecutionManager,
    InvalidValue,
    SqlExecutionStore,
    connect_async,
    doctor,
    migrate,
)

from ..conftest import Blocking, Database, open_asyncpg_manager
from ..support.history import assert_legal
from ..support.pgbouncer import BINARY, MISSING, pgbouncer
from ..support.postgres import free_port
from ..support.proxy import Cut, Proxy
from ..support.sampling import in_whole, sampled
from ..support.states import bring_to
from .lost_connections import age_by_a_minute, blocked_pids, row_lock, wait_for
from .test_lost_connections import VERBS, comparable, stored, undisturbed
from .test_unreadable_rows import LONG

pytestmark = pytest.mark.slow

__all__ = ["undisturbed"]  # a fixture

SECOND = timedelta(seconds=1)


def asyncpg_url(url: str) -> Any:
    return make_url(url).set(drivername="postgresql+asyncpg")


@pytest.fixture
def database(postgres_database: Database) -> Database:
    postgres_database.empty()
    return postgres_database


@pytest.fixture
def host(database: Database, runner: asyncio.Runner) -> Iterator[Callable[..., Any]]:
    """A function that returns a manager on a new engine; its arguments are those of asyncpg."""
    made: list[AsyncEngine] = []

    def make(**arguments: Any) -> Any:
        url = asyncpg_url(arguments.pop("url", database.url))
        made.append(create_async_engine(url, connect_args=arguments))
        return Blocking(AsyncExecutionManager(AsyncSqlExecutionStore(made[-1])), runner)

    yield make
    for engine in made:
        runner.run(engine.dispose())


def notes(call: Callable[[], Any]) -> str:
    """Return the notes of the error that a call must raise."""
    with pytest.raises(DBAPIError) as caught:
        call()
    return "\n".join(getattr(caught.value, "__notes__", ()))


def unknown(verb: str) -> str:
    return f"It is unknown whether {verb} was committed"


def test_lost_connection_committed_write_is_answered(
    database: Database, proxy: Proxy, runner: asyncio.Runner, undisturbed: dict[str, Any]
) -> None:
    with open_asyncpg_manager(proxy.url, runner) as manager:
        for verb, (state, call) in sampled([*VERBS.items()], 3):
            expected, answer = undisturbed[verb]
            id = bring_to(manager, state).id
            age_by_a_minute(database)
            proxy.cut(Cut.AFTER)
            assert comparable(call(manager, id)) == answer
            assert proxy.waiting == 0, verb
            assert stored(database, id) == expected
            assert_legal(database)
            database.empty()


def test_lost_connection_write_not_found_is_unknown(
    database: Database, proxy: Proxy, runner: asyncio.Runner
) -> None:
    """The server process is not identified, so it may still commit."""
    with open_asyncpg_manager(proxy.url, runner) as manager:
        for verb in sampled([*VERBS], 3):
            state, call = VERBS[verb]
            id = bring_to(manager, state).id
            age_by_a_minute(database)
            before = stored(database, id)
            proxy.cut(Cut.BEFORE)
            with pytest.raises(DBAPIError) as caught:
                call(manager, id)
            assert "It is unknown whether" in caught.value.__notes__[0], verb
            assert stored(database, id) == before
            database.empty()


def test_lost_connection_read_is_repeated(proxy: Proxy, runner: asyncio.Runner) -> None:
    with open_asyncpg_manager(proxy.url, runner) as manager:
        id = manager.create("work").id
        proxy.cut(Cut.READING)
        assert manager.get(id).id == id
        assert proxy.waiting == 0


def test_connection_ended_while_idle_is_not_used(
    database: Database, host: Callable[..., Any]
) -> None:
    manager = host(server_settings={"application_name": "idle"})
    id = manager.create("work").id
    terminate(database, "application_name = 'idle'")
    manager.runner.run(asyncio.sleep(0.1))  # asyncpg sees it when the event loop runs
    assert manager.start(id).attempts == 1


def terminate(database: Database, which: str) -> None:
    query = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {which}"
    assert database.rows(query)


def test_session_ended_during_write_outcome_is_unknown_and_next_call_works(
    database: Database, host: Callable[..., Any]
) -> None:
    manager = host(server_settings={"application_name": "waiting"})
    id = manager.create("work").id

    async def start() -> Any:
        call = asyncio.create_task(manager.target.start(id))
        while not blocked_pids(database):
            await asyncio.sleep(0.01)
        terminate(database, "application_name = 'waiting'")
        return await call

    with row_lock(database, id):
        assert unknown("start") in notes(lambda: manager.runner.run(start()))
    assert manager.start(id).attempts == 1


@contextmanager
def failing_updates(database: Database, state: str) -> Iterator[None]:
    """Let each UPDATE of an execution fail with an SQLSTATE."""
    database.run(
        "CREATE FUNCTION rival() RETURNS trigger LANGUAGE plpgsql AS $$"
        f" BEGIN RAISE EXCEPTION 'rival' USING ERRCODE = '{state}'; END $$"
    )
    database.run(
        "CREATE TRIGGER rival BEFORE UPDATE ON executions FOR EACH ROW EXECUTE FUNCTION rival()"
    )
    try:
        yield
    finally:
        database.run("DROP FUNCTION rival CASCADE")


@pytest.mark.parametrize("state", ["57P01", "08006"])
def test_session_end_seen_before_the_connection_closes_outcome_is_unknown(
    database: Database, host: Callable[..., Any], state: str
) -> None:
    """asyncpg may raise the error before its socket is closed."""
    manager = host()
    id = manager.create("work").id
    with failing_updates(database, state):
        assert unknown("start") in notes(lambda: manager.start(id))
    assert manager.start(id).attempts == 1


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_conflict_repeated_raises_concurrent_update(
    database: Database, host: Callable[..., Any], state: str
) -> None:
    manager = host()
    id = manager.create("work").id
    with (
        failing_updates(database, state),
        pytest.raises(ConcurrentUpdate, match=f"Cannot start execution {id}"),
    ):
        manager.start(id)
    with failing_updates(database, state):
        raised: list[Any] = manager.runner.run(within_start(manager, id))
    assert [type(error) for error in raised] == [ConcurrentUpdate]
    assert manager.start(id).attempts == 1


async def within_start(manager: Any, id: str) -> list[Exception]:
    """Start an execution in a transaction of the host; return the error."""
    async with AsyncSession(manager.target._store._bind._async_engine) as session:
        try:
            await manager.target.within(session).start(id)
        except Exception as error:
            return [error]
    return []


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("lock_timeout", "waited for a lock that another transaction holds"),
        ("statement_timeout", "The call took too long"),
    ],
)
def test_timeout_of_the_server_is_raised_with_advice(
    database: Database, host: Callable[..., Any], setting: str, advice: str
) -> None:
    manager = host(server_settings={setting: "50ms"})
    id = manager.create("work").id
    with row_lock(database, id):
        assert advice in notes(lambda: manager.start(id))
    assert manager.start(id).attempts == 1


def test_schema_missing_is_raised_with_advice(host: Callable[..., Any]) -> None:
    manager = host(server_settings={"search_path": "nowhere"})
    assert "The schema may be missing" in notes(manager.list)


@pytest.fixture(params=["call_timeout", "command_timeout"])
def limited_manager(
    request: pytest.FixtureRequest,
    database: Database,
    runner: asyncio.Runner,
    host: Callable[..., Any],
) -> Iterator[Any]:
    """A manager whose calls may take a second: by the library's limit, or by that of asyncpg."""
    if request.param == "command_timeout":
        yield host(command_timeout=1)
        return
    with open_asyncpg_manager(database.url, runner, call_timeout=SECOND) as manager:
        yield manager


def test_write_beyond_time_limit_outcome_is_unknown(
    database: Database, limited_manager: Any
) -> None:
    """A transaction of the same program holds the row, so nothing else ends the wait."""
    manager = limited_manager
    id = manager.create("work").id
    with row_lock(database, id):
        began = time.monotonic()
        assert unknown("start") in notes(lambda: manager.start(id))
        assert 1 <= time.monotonic() - began < 6
    wait_for(lambda: not blocked_pids(database))
    assert manager.cancel(id).status == "cancelled"


def test_read_beyond_time_limit_is_raised_with_advice(
    database: Database, limited_manager: Any
) -> None:
    limited_manager.list()
    with database.engine.begin() as connection:
        connection.execute(text("LOCK TABLE executions IN ACCESS EXCLUSIVE MODE"))
        assert "longer than call_timeout" in notes(limited_manager.list)


def test_connection_refused_raises_operational_error(
    host: Callable[..., Any], database: Database
) -> None:
    manager = host(url=make_url(database.url).set(port=free_port()))
    for _ in range(2):
        with pytest.raises(OperationalError, match=r"refused|Connect call failed"):
            manager.create("work")


def test_login_refused_raises_dbapi_error(host: Callable[..., Any], database: Database) -> None:
    manager = host(url=make_url(database.url).set(database="nowhere"))
    with pytest.raises(DBAPIError, match='database "nowhere" does not exist'):
        manager.create("work")


def test_server_gone_during_verification_outcome_is_unknown(
    proxy: Proxy, runner: asyncio.Runner
) -> None:
    with open_asyncpg_manager(proxy.url, runner) as manager:
        id = manager.create("work").id
        event.listen(manager.target._store._bind.engine, "do_connect", refuse)
        proxy.cut(Cut.BEFORE)
        assert unknown("start") in notes(lambda: manager.start(id))


def refuse(*_: Any) -> None:
    raise ConnectionRefusedError


def test_unreadable_payload_is_named_and_hides_no_other_row(
    database: Database, host: Callable[..., Any]
) -> None:
    manager = host()
    ids = [manager.create("work", {"n": n}).id for n in range(3)]
    database.run(f"UPDATE executions SET payload = '{LONG}'::jsonb WHERE id = :id", id=ids[1])
    assert [each.id for each in manager.claim(limit=3)] == [ids[0], ids[2]]
    with pytest.raises(InvalidValue, match=f"payload of {ids[1]} cannot be read by Python"):
        manager.get(ids[1])


def test_connect_async_with_asyncpg_url_is_refused(database: Database) -> None:
    with pytest.raises(InvalidValue, match=r"not postgresql\+asyncpg.*AsyncSqlExecutionStore"):
        connect_async(asyncpg_url(database.url))


def test_migrate_doctor_and_sync_store_run_in_run_sync(
    empty_postgres: Callable[[str], str], runner: asyncio.Runner
) -> None:
    async def work() -> None:
        engine = create_async_engine(asyncpg_url(empty_postgres("asyncpg")))
        async with engine.begin() as connection:
            await connection.run_sync(migrate.upgrade)
            assert await connection.run_sync(migrate.check)
        async with engine.connect() as connection:
            found = await connection.run_sync(lambda sync: doctor.examine(sync.engine, whole=True))
            assert not [each for each in found if each.level == "problem"]
            created = await connection.run_sync(
                lambda sync: ExecutionManager(SqlExecutionStore(sync.engine)).create("a")
            )
        manager = AsyncExecutionManager(AsyncSqlExecutionStore(engine))
        assert await manager.get(created.id) == created
        await engine.dispose()

    runner.run(work())


def test_cancelled_tasks_leave_pool_and_locks_free(
    database: Database, host: Callable[..., Any]
) -> None:
    manager = host()
    id = manager.create("work").id

    async def cancel_many() -> None:
        for n in range(in_whole(100, 30)):
            task = asyncio.create_task(manager.target.checkpoint(id, "k", n))
            for _ in range(n % 25):  # at a different await each time
                await asyncio.sleep(0)
            if n % 2:
                await asyncio.sleep(0.001 * (n % 5))
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await manager.target.checkpoint(id, "k", "done")

    manager.runner.run(cancel_many())
    assert manager.get(id).checkpoints == {"k": "done"}
    assert manager.target._store._bind.engine.pool.checkedout() == 0


@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_pgbouncer_with_unique_statement_names_works(
    database: Database, runner: asyncio.Runner
) -> None:
    """With the settings of docs/deploying.md."""

    async def work(url: str) -> None:
        engine = create_async_engine(
            asyncpg_url(url),
            poolclass=NullPool,
            connect_args={
                "statement_cache_size": 0,
                "prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__",
            },
        )
        manager = AsyncExecutionManager(AsyncSqlExecutionStore(engine))

        async def lifecycle() -> None:
            id = (await manager.create("work")).id
            await manager.start(id)
            await manager.checkpoint(id, "k", 1)
            assert (await manager.complete(id)).status == "completed"

        await asyncio.gather(*(lifecycle() for _ in range(in_whole(50, 10))))
        await engine.dispose()

    with pgbouncer(database.url, "transaction") as url:
        runner.run(work(url))
