"""Migrations: upgrade, downgrade, concurrency, offline SQL, and beside a host's Alembic."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import (
    CheckConstraint,
    Column,
    Engine,
    Index,
    Text,
    UniqueConstraint,
    create_engine,
    inspect,
    text,
)
from sqlalchemy.exc import DBAPIError, OperationalError

from execution_core import (
    ExecutionManager,
    InvalidValue,
    SqlExecutionStore,
    connect,
    migrate,
)
from execution_core.cli import main
from execution_core.core.state_machine import FINISHED
from execution_core.sql.driver.engine import create_async_engine, create_sync_engine
from execution_core.sql.schema.indexes import metadata

from ..conftest import Database, open_manager
from ..support.processes import spawn
from ..support.rows import insert
from ..support.states import bring_to

ROOT = Path(__file__).parents[2]
LONG_AGO = "2026-01-01 00:00:00.000000"
ID = "0198a000-0000-7000-8000-000000000001"
OTHER = "0198a000-0000-7000-8000-000000000002"

ALEMBIC = tuple(int(part) for part in version("alembic").split("."))
COMPARES = ALEMBIC >= (1, 19, 2)
"""Whether `alembic check` compares CHECK constraints, and no comments that the models lack."""

counter = iter(range(10**9))


def check_models(config: Config) -> None:
    """Assert that the models equal the tables, where Alembic can tell."""
    if COMPARES:
        command.check(config)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/empty.db"
    create: Callable[[str], str] = request.getfixturevalue("empty_postgres")
    return create(f"empty_{next(counter)}")


@pytest.fixture(params=["configured", "default"])
def empty_engine(request: pytest.FixtureRequest, empty_url: str) -> Iterator[Engine]:
    engine = (
        create_sync_engine(empty_url) if request.param == "configured" else create_engine(empty_url)
    )
    yield engine
    engine.dispose()


def contents(engine: Engine) -> set[str]:
    inspector = inspect(engine)
    return {*inspector.get_table_names(), *inspector.get_view_names()}


RELATIONS = {
    "executions",
    "execution_history",
    "execution_logs",
    "execution_core_version",
    "execution_overview",
    "execution_attempts",
    "execution_children",
    "execution_timeline",
    "execution_stats",
    "executions_needing_attention",
    "overdue_executions",
}


def config(url: str) -> Config:
    os.environ["EXECUTION_CORE_URL"] = url
    return Config(ROOT / "alembic.ini")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTION_CORE_URL", "to be restored")


def test_upgrade_twice_changes_nothing(empty_engine: Engine) -> None:
    assert migrate.current(empty_engine) is None
    assert not migrate.check(empty_engine)
    for _ in range(2):
        migrate.upgrade(empty_engine)
        assert contents(empty_engine) == RELATIONS
        assert migrate.check(empty_engine)
        ExecutionManager(SqlExecutionStore(empty_engine)).create("a")


def test_owns_names_tables_and_views_exactly(empty_engine: Engine) -> None:
    migrate.upgrade(empty_engine)
    assert contents(empty_engine) == {name for name in contents(empty_engine) if migrate.owns(name)}
    for name in ("execution_plans", "executions_old", "Executions", "alembic_version", "", None):
        assert not migrate.owns(name)


@pytest.mark.slow
def test_upgrade_in_callers_transaction_rolls_back(empty_engine: Engine) -> None:
    with empty_engine.connect() as connection:
        migrate.upgrade(connection)
        assert migrate.check(connection)
        connection.rollback()
        assert contents(empty_engine) == set()
        migrate.upgrade(connection)
        connection.commit()
    assert contents(empty_engine) == RELATIONS


@pytest.fixture
def locked_url(empty_postgres: Callable[[str], str]) -> Iterator[str]:
    """A migrated PostgreSQL database in which a session holds a lock on a table."""
    url = empty_postgres(f"locked_{next(counter)}")
    migrate.upgrade(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE execution_core_version")
        yield url
    engine.dispose()


def test_upgrade_waits_for_table_lock_within_lock_timeout(
    locked_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OperationalError, match="due to lock timeout"):
        migrate.upgrade(locked_url, lock_timeout=timedelta(milliseconds=200))
    assert main(["migrate", "--lock-timeout", "200ms", "--url", locked_url]) == 1
    assert "Another session holds a lock on a table" in capsys.readouterr().err


@pytest.mark.slow
def test_upgrade_from_asyncio(empty_url: str) -> None:
    async def upgrade() -> bool:
        engine = create_async_engine(empty_url)
        async with engine.begin() as connection:
            await connection.run_sync(migrate.upgrade)
        async with engine.connect() as connection:
            done = await connection.run_sync(migrate.check)
        await engine.dispose()
        return done

    assert asyncio.run(upgrade())
    assert migrate.check(empty_url)


def test_upgrade_by_alembic_and_downgrade(empty_url: str) -> None:
    alembic, engine = config(empty_url), create_engine(empty_url)
    command.upgrade(alembic, "head")
    assert contents(engine) == RELATIONS
    check_models(alembic)
    with connect(empty_url) as manager:
        child = manager.create("b", parent_id=bring_to(manager, "running").id)
        manager.cancel(child.id)
    command.downgrade(alembic, "base")
    assert contents(engine) == {"execution_core_version"}
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            left = connection.execute(
                text("SELECT proname FROM pg_proc WHERE proname LIKE 'execution%'")
            )
            assert left.all() == []
    command.upgrade(alembic, "head")
    assert contents(engine) == RELATIONS
    engine.dispose()


FILLED: dict[str, dict[str, Any]] = {
    "pending": {},
    "running": {"attempts": 1, "started_at": LONG_AGO, "due_at": None},
    "completed": {"attempts": 1, "started_at": LONG_AGO, "due_at": None, "result": "[1, 2]"},
    "failed": {"attempts": 1, "started_at": LONG_AGO, "due_at": None},
    "retrying": {"attempts": 1, "started_at": LONG_AGO, "max_attempts": 3},
    "timed_out": {"attempts": 1, "started_at": LONG_AGO, "due_at": None, "max_attempts": 3},
    "cancelled": {"due_at": None, "metadata": '{"cancellation_reason": "late"}'},
}


@pytest.mark.parametrize("revision", migrate.revisions())
def test_upgrade_filled_database_keeps_rows(empty_url: str, revision: str) -> None:
    """From every revision to the newest and back: rows stay as they are, and can be used."""
    alembic, engine = config(empty_url), create_sync_engine(empty_url)
    database = Database(engine.dialect.name, empty_url, engine)
    command.upgrade(alembic, revision)
    ids = {}
    for n, (status, facts) in enumerate(FILLED.items()):
        ids[status] = f"{ID[:-1]}{n}"
        row = {
            "id": ids[status],
            "type": "work",
            "status": status,
            "payload": '{"n": 1}',
            "created_at": LONG_AGO,
            "updated_at": LONG_AGO,
            "due_at": LONG_AGO,
            "checkpoints": '{"last_index": 4}',
            "progress_current": 5,
            "progress_total": 10,
            "progress_percent": 50,
            **facts,
        }
        row |= {"completed_at": "2026-01-01 00:00:01.000000"} if status in FINISHED else {}
        row |= {"error": '{"message": "no"}'} if status in ("failed", "timed_out") else {}
        insert(database, row)

    def contents() -> dict[str, list[dict[str, Any]]]:
        return {table: database.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES}

    before = contents()
    command.upgrade(alembic, "head")
    for table, rows in contents().items():
        assert [new | old for new, old in zip(rows, before[table], strict=True)] == rows
    command.downgrade(alembic, revision)
    assert contents() == before
    command.upgrade(alembic, "head")
    check_models(alembic)
    with connect(empty_url) as manager:
        (stalled,) = manager.sweep(stalled_after=timedelta(days=1))
        assert stalled.id == ids["running"]
        assert [each.id for each in manager.claim(limit=9)] == [ids["pending"], ids["retrying"]]
        with manager.attempt(manager.retry(ids["timed_out"]).id) as attempt:
            assert list(attempt.each("abcdefg")) == ["f", "g"]
        assert manager.get(ids["completed"]).result == [1, 2]
        assert manager.get(ids["timed_out"]).status == "completed"
    engine.dispose()


COMMENTS = """
SELECT relname || coalesce('.' || attname, '') AS what, description
  FROM pg_class
  JOIN (SELECT attrelid, attnum, attname FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped
        UNION ALL SELECT oid, 0, NULL FROM pg_class) AS part ON attrelid = pg_class.oid
  LEFT JOIN pg_description
    ON objoid = attrelid AND objsubid = attnum AND classoid = CAST('pg_class' AS regclass)
 WHERE relnamespace = CAST('public' AS regnamespace) AND relkind IN ('r', 'v')
   AND relname <> 'execution_core_version'
"""


def test_upgrade_comments_every_column_on_postgresql(empty_postgres: Callable[[str], str]) -> None:
    url = empty_postgres(f"comments_{next(counter)}")
    migrate.upgrade(url)
    engine = create_sync_engine(url)
    database = Database("postgresql", url, engine)
    comments = {row["what"]: row["description"] for row in database.rows(COMMENTS)}
    assert {what for what in comments if "." not in what} == RELATIONS - {"execution_core_version"}
    assert {what for what, description in comments.items() if not description} == set()
    assert comments["execution_attempts.worker"] != comments["execution_overview.worker"]
    engine.dispose()


TABLES = ("executions", "execution_history", "execution_attempts", "execution_timeline")


@pytest.mark.slow
@pytest.mark.skipif(not COMPARES, reason="needs Alembic 1.19.2")
@pytest.mark.parametrize("what", ["check constraint", "column", "index", "unique constraint"])
def test_alembic_check_detects_drift(empty_url: str, what: str) -> None:
    """Control: `command.check` compares what the tables declare."""
    from alembic.util import AutogenerateDiffsDetected

    migrate.upgrade(empty_url)
    copy = type(metadata)(naming_convention=metadata.naming_convention)
    for original in metadata.tables.values():
        infos = {index.name: index.info for index in original.indexes}
        for index in original.to_metadata(copy).indexes:
            index.info.update(infos[index.name])  # SQLAlchemy's copy leaves it out
    table = copy.tables["executions"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("execution_core.sql.schema.indexes.metadata", copy)
        command.check(config(empty_url))
        match what:
            case "check constraint":
                table.append_constraint(CheckConstraint("attempts < 9", name="invented"))
            case "column":
                table.append_column(Column("invented", Text))
            case "index":
                Index("ix_invented", table.c.worker)
            case "unique constraint":
                table.append_constraint(UniqueConstraint(table.c.worker, name="uq_invented"))
        with pytest.raises(AutogenerateDiffsDetected):
            command.check(config(empty_url))


@pytest.mark.slow
def test_upgrade_sql_creates_same_schema(empty_url: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "execution_core", "migrate", "--sql", "--url", empty_url],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if empty_url.startswith("sqlite"):
        raw = sqlite3.connect(empty_url.removeprefix("sqlite:///"))
        raw.executescript(printed)
        raw.close()
    else:
        import psycopg

        from ..support.postgres import dsn

        with psycopg.connect(dsn(empty_url), autocommit=True) as plain:
            plain.execute(printed.encode())
    assert migrate.check(empty_url)
    check_models(config(empty_url))
    with connect(empty_url) as manager:
        assert bring_to(manager, "timed_out-last").attempts == 2


@pytest.mark.slow
def test_upgrade_by_concurrent_processes_waits(empty_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "execution_core", "migrate", "--url", empty_url],
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        output = process.communicate(timeout=60)
        assert process.returncode == 0, output
    assert migrate.check(empty_url)


def migrate_at(level: str | None, url: str, barrier: Any, answers: Any) -> None:
    engine = create_engine(url, isolation_level=level) if level else create_engine(url)
    try:
        barrier.wait(60)
        migrate.upgrade(engine)
        answers.put(None)
    except Exception as error:
        answers.put(repr(error))
    engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
def test_upgrade_at_any_isolation_level_succeeds(
    empty_postgres: Callable[[str], str], level: str
) -> None:
    url = empty_postgres(f"level_{next(counter)}")
    barrier, answers = spawn.Barrier(4), spawn.Queue()
    processes = [
        spawn.Process(target=migrate_at, args=(level, url, barrier, answers)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [None] * 4
    for process in processes:
        process.join()
    assert migrate.check(url)


def test_upgrade_by_concurrent_threads_waits(
    empty_url: str, tmp_path: Path, empty_postgres: Callable[[str], str]
) -> None:
    other = f"sqlite:///{tmp_path}/another.db"
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(migrate.upgrade, [empty_url, other] * 3))
    assert migrate.check(empty_url)
    assert migrate.check(other)


def test_upgrade_by_concurrent_tasks_of_one_thread_refused(tmp_path: Path) -> None:
    async def upgrade(name: str) -> None:
        engine = create_async_engine(f"sqlite:///{tmp_path}/{name}.db")
        try:
            async with engine.begin() as connection:
                await connection.run_sync(migrate.upgrade)
        finally:
            await engine.dispose()

    async def both() -> list[Any]:
        return [*await asyncio.gather(upgrade("a"), upgrade("b"), return_exceptions=True)]

    answers = asyncio.run(both())
    refusals = [answer for answer in answers if answer is not None]
    assert [str(each) for each in refusals] == [
        "Cannot migrate: another task of this thread is migrating. Await it first."
    ]
    asyncio.run(upgrade("a"))
    asyncio.run(upgrade("b"))


def test_upgrade_in_autocommit_refused(empty_postgres: Callable[[str], str]) -> None:
    engine = create_engine(empty_postgres(f"auto_{next(counter)}"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(InvalidValue, match="AUTOCOMMIT"):
        migrate.upgrade(connection)
    engine.dispose()


def test_migrate_check_does_not_wait_for_writers(database: Database) -> None:
    engine = create_sync_engine(database.url)
    with engine.begin() as writer:
        writer.execute(text("INSERT INTO executions (id, type) VALUES (:id, 'a')"), {"id": ID})
        assert migrate.check(database.url)
        assert migrate.check(writer)
    engine.dispose()


def test_upgrade_beside_hosts_alembic_leaves_its_tables(empty_url: str, tmp_path: Path) -> None:
    """A host with tables, a version table and migrations of its own."""
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('host_1')"))
        connection.execute(text("CREATE TABLE orders (id integer)"))
    migrate.upgrade(engine)
    check_models(config(empty_url))
    command.downgrade(config(empty_url), "base")
    assert contents(engine) == {"alembic_version", "orders", "execution_core_version"}
    engine.dispose()


def test_upgrade_listed_in_hosts_version_locations(empty_url: str, tmp_path: Path) -> None:
    host = tmp_path / "host"
    command.init(Config(tmp_path / "alembic.ini"), str(host))
    (host / "env.py").write_text(
        "from alembic import context\n"
        "connection = context.config.attributes['connection']\n"
        "context.configure(connection=connection)\n"
        "with context.begin_transaction():\n"
        "    context.run_migrations()\n"
    )
    alembic = Config()
    alembic.set_main_option("script_location", str(host))
    alembic.set_main_option("path_separator", "os")
    alembic.set_main_option(
        "version_locations",
        os.pathsep.join([str(host / "versions"), str(migrate.scripts() / "versions")]),
    )
    command.revision(
        alembic, "host", rev_id="host_1", head="base", version_path=str(host / "versions")
    )
    engine = create_sync_engine(empty_url)
    with engine.begin() as connection:
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "heads")
    with engine.connect() as connection:
        versions = set(connection.scalars(text("SELECT version_num FROM alembic_version")))
    assert versions == {"host_1", migrate.revisions()[0]}
    ExecutionManager(SqlExecutionStore(engine)).create("a")
    engine.dispose()


def test_upgrade_invalid_target_refused() -> None:
    for bad in (None, 7, object()):
        with pytest.raises(InvalidValue, match="target must be an Engine, a Connection or a URL"):
            migrate.upgrade(bad)  # type: ignore[arg-type]
    for url in ("", "nonsense", "mysql://u:secret@h/d", "postgresql://u:secret@h:port/d"):
        with pytest.raises(InvalidValue) as caught:
            migrate.upgrade(url)
        assert "secret" not in str(caught.value)


def test_connect_invalid_url_refused() -> None:
    for url in ("", "nonsense", "mysql://u:secret@h/d", "sqlite+nonsense://", "sqlite://x.db"):
        with pytest.raises(InvalidValue) as caught:
            connect(url)
        assert caught.value.argument == "url"
        assert "secret" not in str(caught.value)


def test_error_of_own_engine_omits_payload(
    empty_url: str, mode: str, runner: asyncio.Runner
) -> None:
    with (
        open_manager(empty_url, mode, runner) as manager,
        pytest.raises(DBAPIError, match="INSERT INTO executions") as caught,
    ):
        manager.create("pay", {"card": "4111-1111"})
    assert "4111-1111" not in str(caught.value)
