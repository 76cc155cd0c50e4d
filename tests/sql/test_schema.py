"""The schema: made by migrations alone, safe against any hand, read with plain SQL."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
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
from sqlalchemy.exc import IntegrityError

from execution_core import (
    ExecutionManager,
    InvalidStateTransition,
    InvalidValue,
    SqlExecutionStore,
    connect,
    migrate,
)
from execution_core.sql.driver.engine import create_async_engine, create_sync_engine
from execution_core.sql.schema.indexes import metadata

from ..conftest import Database
from ..support.situations import STATES, bring_to
from ..tracking.test_races import spawn

ROOT = Path(__file__).parents[2]
ID = "0198a000-0000-7000-8000-000000000001"
OTHER = "0198a000-0000-7000-8000-000000000002"

counter = iter(range(10**9))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/empty.db"
    create: Callable[[str], str] = request.getfixturevalue("empty_postgres")
    return create(f"empty_{next(counter)}")


@pytest.fixture(params=["configured", "as it comes"])
def empty_engine(request: pytest.FixtureRequest, empty_url: str) -> Iterator[Engine]:
    engine = (
        create_sync_engine(empty_url) if request.param == "configured" else create_engine(empty_url)
    )
    yield engine
    engine.dispose()


def contents(engine: Engine) -> set[str]:
    inspector = inspect(engine)
    return {*inspector.get_table_names(), *inspector.get_view_names()}


EVERYTHING = {
    "executions",
    "execution_history",
    "execution_logs",
    "execution_core_version",
    "execution_overview",
    "execution_attempts",
    "execution_timeline",
    "execution_stats",
    "overdue_executions",
}


def config(url: str) -> Config:
    os.environ["EXECUTION_CORE_URL"] = url
    return Config(ROOT / "alembic.ini")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTION_CORE_URL", "to be restored")


def test_upgrade_twice(empty_engine: Engine) -> None:
    assert migrate.current(empty_engine) is None
    assert not migrate.check(empty_engine)
    for _ in range(2):
        migrate.upgrade(empty_engine)
        assert contents(empty_engine) == EVERYTHING
        assert migrate.check(empty_engine)
        ExecutionManager(SqlExecutionStore(empty_engine)).create("a")


def test_upgrade_in_the_callers_transaction(empty_engine: Engine) -> None:
    with empty_engine.connect() as connection:
        migrate.upgrade(connection)
        assert migrate.check(connection)
        connection.rollback()
        assert contents(empty_engine) == set()
        migrate.upgrade(connection)
        connection.commit()
    assert contents(empty_engine) == EVERYTHING


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


def test_upgrade_by_alembic_and_back(empty_url: str) -> None:
    alembic, engine = config(empty_url), create_engine(empty_url)
    command.upgrade(alembic, "head")
    assert contents(engine) == EVERYTHING
    command.check(alembic)
    with connect(empty_url) as manager:
        child = manager.create("b", parent_id=bring_to(manager, "completed").id)
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
    assert contents(engine) == EVERYTHING
    engine.dispose()


EARLIER: dict[str, dict[str, Any]] = {
    "pending": {},
    "running": {"attempts": 1, "started_at": "2026-01-01T00:00:00.000Z"},
    "completed": {"attempts": 1, "started_at": "2026-01-01T00:00:00.000Z", "result": "[1, 2]"},
    "failed": {"attempts": 1, "started_at": "2026-01-01T00:00:00.000Z"},
    "retrying": {"attempts": 1, "started_at": "2026-01-01T00:00:00.000Z", "max_attempts": 3},
    "timed_out": {"attempts": 1, "started_at": "2026-01-01T00:00:00.000Z", "max_attempts": 3},
    "cancelled": {"metadata": '{"cancellation_reason": "late"}'},
}


@pytest.mark.parametrize("revision", [f"execution_core_{n:04}" for n in range(1, 6)])
def test_what_earlier_migrations_filled(empty_url: str, revision: str) -> None:
    """Every row is as it was, works as any other, and goes the way back as well."""
    alembic, engine = config(empty_url), create_sync_engine(empty_url)
    database = Database(engine.dialect.name, empty_url, engine)
    command.upgrade(alembic, revision)
    ids = {}
    for n, (status, facts) in enumerate(EARLIER.items()):
        ids[status] = f"{ID[:-1]}{n}"
        over = status in ("completed", "failed", "timed_out", "cancelled")
        row = {
            "id": ids[status],
            "type": "work",
            "status": status,
            "payload": '{"n": 1}',
            "created_at": "2026-01-01T00:00:00.000Z",
            "updated_at": "2026-01-01T00:00:00.000Z",
            "checkpoints": '{"last_index": 4}',
            "progress_current": 5,
            "progress_total": 10,
            "progress_percent": 50,
            **facts,
        }
        row |= {"completed_at": "2026-01-01T00:00:01.000Z"} if over else {}
        row |= {"error": '{"message": "no"}'} if status in ("failed", "timed_out") else {}
        insert(database, row)
    everything = "SELECT * FROM {} ORDER BY 1, 2"
    before = {table: database.rows(everything.format(table)) for table in TABLES}
    command.upgrade(alembic, "head")
    for table in TABLES:
        after = database.rows(everything.format(table))
        assert [new | old for new, old in zip(after, before[table], strict=True)] == after
    assert database.rows(everything.format("executions")) == [
        NEW_COLUMNS | row for row in before["executions"]
    ]
    command.downgrade(alembic, revision)
    assert {table: database.rows(everything.format(table)) for table in TABLES} == before
    command.upgrade(alembic, "head")
    command.check(alembic)
    with connect(empty_url) as manager:
        (stalled,) = manager.sweep(stalled_after=timedelta(days=1))
        assert stalled.id == ids["running"]
        assert [each.id for each in manager.claim(limit=9)] == [ids["pending"], ids["retrying"]]
        with manager.attempt(manager.retry(ids["timed_out"]).id) as attempt:
            assert list(attempt.each("abcdefg")) == ["f", "g"]
        assert manager.get(ids["completed"]).result == [1, 2]
        assert manager.get(ids["timed_out"]).status == "completed"
    engine.dispose()


def test_views_of_the_hosts_own_outlive_an_upgrade(empty_url: str) -> None:
    alembic, engine = config(empty_url), create_sync_engine(empty_url)
    database = Database(engine.dialect.name, empty_url, engine)
    command.upgrade(alembic, "execution_core_0003")
    for view in ("execution_attempts", "execution_timeline"):
        database.run(f"CREATE VIEW own_{view} AS SELECT execution_id, error FROM {view}")
    command.upgrade(alembic, "head")
    with connect(empty_url) as manager:
        bring_to(manager, "failed")
    assert len(database.rows("SELECT error FROM own_execution_attempts")) == 1
    assert len(database.rows("SELECT error FROM own_execution_timeline")) == 3
    engine.dispose()


SAID = """
SELECT relname || coalesce('.' || attname, '') AS what, description
  FROM pg_class
  JOIN (SELECT attrelid, attnum, attname FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped
        UNION ALL SELECT oid, 0, NULL FROM pg_class) AS part ON attrelid = pg_class.oid
  LEFT JOIN pg_description
    ON objoid = attrelid AND objsubid = attnum AND classoid = CAST('pg_class' AS regclass)
 WHERE relnamespace = CAST('public' AS regnamespace) AND relkind IN ('r', 'v')
   AND relname <> 'execution_core_version'
"""


def test_postgresql_says_what_everything_is(empty_postgres: Callable[[str], str]) -> None:
    url = empty_postgres(f"said_{next(counter)}")
    migrate.upgrade(url)
    engine = create_sync_engine(url)
    database = Database("postgresql", url, engine)
    said = {row["what"]: row["description"] for row in database.rows(SAID)}
    assert {what for what in said if "." not in what} == EVERYTHING - {"execution_core_version"}
    assert {what for what, description in said.items() if not description} == set()
    assert said["execution_attempts.worker"] != said["execution_overview.worker"]
    command.downgrade(config(url), "execution_core_0003")
    assert {row["description"] for row in database.rows(SAID)} == {None}
    engine.dispose()


TABLES = ("executions", "execution_history", "execution_attempts", "execution_timeline")
NEW_COLUMNS = dict.fromkeys(("heartbeat_at", "due_at", "replay_of", "write_token"))


@pytest.mark.parametrize("what", ["check constraint", "column", "index", "unique constraint"])
def test_alembic_check_sees_drift(empty_url: str, what: str) -> None:
    """The control of `command.check`: what the tables declare really is compared."""
    from alembic.util import AutogenerateDiffsDetected

    migrate.upgrade(empty_url)
    table = metadata.tables["executions"].to_metadata(
        type(metadata)(naming_convention=metadata.naming_convention)
    )
    infos = {index.name: index.info for index in metadata.tables["executions"].indexes}
    for index in table.indexes:
        index.info.update(infos[index.name])  # SQLAlchemy's copy leaves it out
    metadata.tables["execution_history"].to_metadata(table.metadata)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("execution_core.sql.schema.indexes.metadata", table.metadata)
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


def test_offline_sql_makes_the_same_schema(empty_url: str) -> None:
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
    command.check(config(empty_url))
    with connect(empty_url) as manager:
        assert bring_to(manager, "timed_out-last").attempts == 2


def test_processes_that_migrate_at_once_wait_for_each_other(empty_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "execution_core", "migrate", "--url", empty_url],
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(6)
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


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
def test_whatever_the_hosts_isolation_is(empty_postgres: Callable[[str], str], level: str) -> None:
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


def test_threads_that_migrate_at_once_wait_for_each_other(
    empty_url: str, tmp_path: Path, empty_postgres: Callable[[str], str]
) -> None:
    other = f"sqlite:///{tmp_path}/another.db"
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(migrate.upgrade, [empty_url, other] * 3))
    assert migrate.check(empty_url)
    assert migrate.check(other)


def test_tasks_of_one_thread_are_told_to_take_turns(tmp_path: Path) -> None:
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
    told = [a for a in answers if a is not None]
    assert [str(t) for t in told] == ["Cannot migrate: another task of this thread is migrating"]
    asyncio.run(upgrade("a"))
    asyncio.run(upgrade("b"))


def test_a_connection_in_autocommit_is_refused(empty_postgres: Callable[[str], str]) -> None:
    engine = create_engine(empty_postgres(f"auto_{next(counter)}"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(InvalidValue, match="AUTOCOMMIT"):
        migrate.upgrade(connection)
    engine.dispose()


def test_a_check_at_startup_waits_for_no_writer(database: Database) -> None:
    engine = create_sync_engine(database.url)
    with engine.begin() as writer:
        writer.execute(text("INSERT INTO executions (id, type) VALUES (:id, 'a')"), {"id": ID})
        assert migrate.check(database.url)
        assert migrate.check(writer)
    engine.dispose()


def test_it_lives_beside_the_hosts_alembic(empty_url: str, tmp_path: Path) -> None:
    """A host with tables, a version table and migrations of its own."""
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('host_1')"))
        connection.execute(text("CREATE TABLE orders (id integer)"))
    migrate.upgrade(engine)
    command.check(config(empty_url))
    command.downgrade(config(empty_url), "base")
    assert contents(engine) == {"alembic_version", "orders", "execution_core_version"}
    engine.dispose()


def test_a_host_can_list_our_versions_beside_its_own(empty_url: str, tmp_path: Path) -> None:
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
    assert versions == {"host_1", "execution_core_0006"}
    ExecutionManager(SqlExecutionStore(engine)).create("a")
    engine.dispose()


def test_bad_targets_are_refused() -> None:
    for bad in (None, 7, object()):
        with pytest.raises(InvalidValue, match="target must be an Engine, a Connection or a URL"):
            migrate.upgrade(bad)  # type: ignore[arg-type]
    for url in ("", "nonsense", "mysql://u:secret@h/d", "postgresql://u:secret@h:port/d"):
        with pytest.raises(InvalidValue) as caught:
            migrate.upgrade(url)
        assert "secret" not in str(caught.value)


def test_only_our_databases_will_do() -> None:
    for url in ("", "nonsense", "mysql://u:secret@h/d", "sqlite+nonsense://", "sqlite://x.db"):
        with pytest.raises(InvalidValue) as caught:
            connect(url)
        assert caught.value.argument == "url"
        assert "secret" not in str(caught.value)


# --- what a row may be -------------------------------------------------------------------------

ROW: dict[str, Any] = {"id": ID, "type": "work"}
RUNNING = {**ROW, "status": "running", "attempts": 1, "started_at": "2026-01-01T00:00:00.000Z"}
DONE = {**RUNNING, "status": "completed", "completed_at": "2026-01-01T00:00:01.000Z"}
FAILED = {**DONE, "status": "failed", "error": '{"message": "no"}'}

ILLEGAL = {
    "status_known": {**RUNNING, "status": "nonsense"},
    "attempts_in_range": {**RUNNING, "attempts": 2},
    "max_attempts_positive": {**ROW, "max_attempts": 0},
    "attempts_fit_status": {**RUNNING, "status": "pending"},
    "attempts_fit_status ": {**ROW, "status": "running"},
    "attempts_fit_status    ": {**ROW, "status": "retrying"},
    "attempts_fit_status     ": {**DONE, "attempts": 0, "started_at": None},
    "attempts_in_range ": {
        **RUNNING,
        "attempts": -1,
        "started_at": None,
        "status": "cancelled",
        "completed_at": "2026-01-01T00:00:01.000Z",
    },
    "started_at_when_started ": {**ROW, "started_at": "2026-01-01T00:00:00.000Z"},
    "error_fits_status  ": {**FAILED, "status": "timed_out", "error": None},
    "idempotency_key_length ": {**ROW, "idempotency_key": "k" * 256},
    "worker_length ": {**ROW, "worker": "w" * 256},
    "progress_whole    ": {
        **ROW,
        "progress_current": 1,
        "progress_total": -1,
        "progress_percent": 1,
    },
    "progress_whole     ": {**ROW, "progress_current": 1, "progress_total": 1},
    "progress_whole      ": {**ROW, "progress_total": 1},
    "progress_whole       ": {**ROW, "progress_percent": 1},
    "started_at_when_started": {**RUNNING, "started_at": None},
    "completed_at_when_over": {**DONE, "completed_at": None},
    "completed_at_when_over ": {**RUNNING, "completed_at": "2026-01-01T00:00:01.000Z"},
    "error_fits_status": {**FAILED, "error": None},
    "error_fits_status ": {**DONE, "error": '{"message": "no"}'},
    "error_has_message": {**FAILED, "error": '{"code": "no"}'},
    "error_has_message ": {**FAILED, "error": '"text"'},
    "error_has_message  ": {**FAILED, "error": '{"message": 5}'},
    "result_when_completed": {**RUNNING, "result": "1"},
    "attempts_fit_status  ": {**RUNNING, "status": "retrying"},
    "deadline_at_when_limited": {**ROW, "deadline_at": "2026-01-01T00:00:01.000Z"},
    "deadline_at_when_limited ": {**RUNNING, "timeout_ms": 1000},
    "worker_length": {**ROW, "worker": ""},
    "times_in_calendar": {**RUNNING, "started_at": "0001-01-01T00:00:00Z"},
    "timeout_positive": {**ROW, "timeout_ms": 0},
    "type_length": {**ROW, "type": ""},
    "type_length ": {**ROW, "type": "x" * 256},
    "idempotency_key_length": {**ROW, "idempotency_key": ""},
    "fingerprint_of_key": {**ROW, "fingerprint": "f"},
    "parent_is_another": {**ROW, "parent_id": ID},
    "replay_of_another": {**ROW, "replay_of": ID},
    "heartbeat_at_in_calendar": {**RUNNING, "heartbeat_at": "0001-01-01T00:00:00Z"},
    "retry_at_in_calendar": {**ROW, "due_at": "0001-01-01T00:00:00Z"},
    "metadata_is_object": {**ROW, "metadata": "[]"},
    "checkpoints_are_object": {**ROW, "checkpoints": "7"},
    "progress_whole": {**ROW, "progress_current": 1},
    "progress_whole ": {**ROW, "progress_message": "x"},
    "progress_whole  ": {
        **ROW,
        "progress_current": 1,
        "progress_total": 1,
        "progress_percent": 101,
    },
    "progress_whole   ": {
        **ROW,
        "progress_current": -1,
        "progress_total": 1,
        "progress_percent": 1,
    },
}


def insert(database: Database, row: dict[str, Any], into: str = "executions") -> None:
    kinds = dict.fromkeys(("id", "parent_id", "replay_of", "execution_id"), "uuid")
    json_columns = ("payload", "result", "error", "metadata", "checkpoints", "data")
    kinds |= dict.fromkeys(json_columns, "jsonb")
    kinds |= dict.fromkeys((n for n in row if n.endswith("_at")), "timestamptz")
    places = [
        f"CAST(:{c} AS {kinds[c]})" if c in kinds and database.name == "postgresql" else f":{c}"
        for c in row
    ]
    database.run(f"INSERT INTO {into} ({', '.join(row)}) VALUES ({', '.join(places)})", **row)


@pytest.mark.parametrize("constraint", ILLEGAL)
def test_no_hand_can_write_an_illegal_row(database: Database, constraint: str) -> None:
    with pytest.raises(IntegrityError, match=f"ck_executions_{constraint.strip()}"):
        insert(database, ILLEGAL[constraint])
    assert database.rows("SELECT * FROM execution_history") == []


ILLEGAL_IN_SQLITE = {
    "id_is_uuid": {**ROW, "id": "my-job"},
    "id_is_uuid ": {**ROW, "id": ID.upper()},
    "integers_are_integers": {**ROW, "max_attempts": "many"},
    "integers_are_integers ": {**ROW, "timeout_ms": "30s"},
    "integers_are_integers  ": {**RUNNING, "max_attempts": 2.5},
    "payload_is_json": {**ROW, "payload": "{"},
    "result_is_json": {**DONE, "result": "{"},
    "times_in_calendar": {**ROW, "created_at": "yesterday"},
    "times_in_calendar ": {**ROW, "created_at": "2026-01-01 00:00:00"},
    "times_in_calendar  ": {**ROW, "updated_at": 1700000000},
    "times_in_calendar   ": {**ROW, "updated_at": "2026-13-01T00:00:00.000Z"},
    "heartbeat_at_in_calendar ": {**ROW, "heartbeat_at": "2026-13-01T00:00:00.000Z"},
    "retry_at_in_calendar ": {**ROW, "due_at": "soon"},
    "retry_at_in_calendar  ": {**ROW, "due_at": "2026-02-30T00:00:00.000Z"},
    "retry_at_in_calendar   ": {**ROW, "due_at": "2026-01-01T24:00:00.000Z"},
    "retry_at_in_calendar    ": {**ROW, "due_at": "0000-06-01T00:00:00.000Z"},
    "retry_at_in_calendar     ": {**ROW, "due_at": "9999-12-31T00:00:00.000Z"},
    "retry_at_in_calendar      ": {**ROW, "due_at": "2026-01-01 00:00:00"},
    "heartbeat_at_in_calendar  ": {**ROW, "heartbeat_at": 1700000000},
}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("constraint", ILLEGAL_IN_SQLITE)
def test_sqlite_takes_nothing_that_postgresqls_types_refuse(
    database: Database, constraint: str
) -> None:
    with pytest.raises(IntegrityError, match=f"ck_executions_{constraint.strip()}"):
        insert(database, ILLEGAL_IN_SQLITE[constraint])


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("time", ["infinity", "-infinity", "0044-03-15 BC"])
def test_no_time_is_beyond_what_python_can_read(database: Database, time: str) -> None:
    with pytest.raises(IntegrityError, match="ck_executions_times_in_calendar"):
        insert(database, {**ROW, "created_at": time})


LINE: dict[str, Any] = {"execution_id": ID, "id": OTHER, "attempt": 0, "message": "m"}
ILLEGAL_LINES = {
    "level_known": {**LINE, "level": "loud"},
    "attempt_counted": {**LINE, "attempt": -1},
}
ILLEGAL_LINES_IN_SQLITE = {
    "id_is_uuid": {**LINE, "id": "my-line"},
    "data_is_json": {**LINE, "data": "{"},
    "logged_at_in_calendar": {**LINE, "logged_at": "2026-02-30T00:00:00.000Z"},
    "logged_at_in_calendar ": {**LINE, "logged_at": "2026-01-01 00:00:00"},
}


def test_no_hand_can_log_an_illegal_line(database: Database) -> None:
    insert(database, ROW)
    illegal = ILLEGAL_LINES | (ILLEGAL_LINES_IN_SQLITE if database.name == "sqlite" else {})
    for constraint, line in illegal.items():
        with pytest.raises(IntegrityError, match=f"ck_execution_logs_{constraint.strip()}"):
            insert(database, line, "execution_logs")
    assert database.rows("SELECT * FROM execution_logs") == []


def test_a_hand_may_log_a_legal_line(database: Database) -> None:
    insert(database, ROW)
    insert(database, LINE, "execution_logs")
    with connect(database.url) as manager:
        (entry,) = manager.logs(ID)
    assert (entry.id, entry.level, entry.message, entry.data) == (OTHER, "info", "m", None)
    assert abs(entry.logged_at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("table", "tried"),
    [
        ("executions", {*ILLEGAL, *ILLEGAL_IN_SQLITE}),
        ("execution_logs", {*ILLEGAL_LINES, *ILLEGAL_LINES_IN_SQLITE}),
    ],
)
def test_every_check_is_tried(table: str, tried: set[str]) -> None:
    checks = [c for c in metadata.tables[table].constraints if isinstance(c, CheckConstraint)]
    assert {c.name for c in checks} == {f"ck_{table}_{name.strip()}" for name in tried}


@pytest.mark.parametrize(
    "row", [ROW, RUNNING, DONE, FAILED], ids=["pending", "running", "done", "failed"]
)
def test_a_hand_may_write_a_legal_row(database: Database, row: dict[str, Any]) -> None:
    insert(database, row)
    with connect(database.url) as manager:
        read = manager.get(ID)
    assert read.status == row.get("status", "pending")
    assert abs(read.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert (read.metadata, read.checkpoints, read.max_attempts) == ({}, {}, 1)


def test_a_key_is_unique_whoever_writes(database: Database) -> None:
    insert(database, {**ROW, "idempotency_key": "k"})
    with pytest.raises(IntegrityError):
        insert(database, {**ROW, "id": OTHER, "idempotency_key": "k"})


# --- history and views -------------------------------------------------------------------------


def test_history_records_every_move(database: Database, manager: ExecutionManager) -> None:
    id = manager.create("pay", max_attempts=3, timeout=timedelta(minutes=1)).id
    manager.start(id, worker="one")
    manager.update_progress(id, 1, 2)
    manager.checkpoint(id, "k", 1)
    manager.fail(id, "first", retryable=True)
    manager.start(id, worker="two")
    manager.timeout(id)
    manager.retry(id)
    manager.start(id, worker="three")
    manager.cancel(id, "enough")
    with pytest.raises(InvalidStateTransition):
        manager.complete(id)
    rows = database.rows("SELECT * FROM execution_history ORDER BY seq")
    assert [row["seq"] for row in rows] == list(range(1, 9))
    assert [(r["to_status"], r["attempt"], r["worker"], r["reason"]) for r in rows] == [
        ("pending", 0, None, None),
        ("running", 1, "one", None),
        ("retrying", 1, "one", None),
        ("running", 2, "two", None),
        ("timed_out", 2, "two", None),
        ("retrying", 2, "two", None),
        ("running", 3, "three", None),
        ("cancelled", 3, "three", "enough"),
    ]
    assert [r["from_status"] for r in rows] == [None, *(r["to_status"] for r in rows[:-1])]
    errors = [json.loads(e) if isinstance(e, str) else e for e in (r["error"] for r in rows)]
    assert [e and e["message"] for e in errors] == [
        None, None, "first", None, "Execution timed out", None, None, None,
    ]  # fmt: skip
    attempts = database.rows("SELECT * FROM execution_attempts ORDER BY attempt")
    assert [(a["attempt"], a["worker"], a["outcome"]) for a in attempts] == [
        (1, "one", "failed"),
        (2, "two", "timed_out"),
        (3, "three", "cancelled"),
    ]
    manager.delete(id)
    assert database.rows("SELECT * FROM execution_history") == []


def test_a_hand_in_sql_is_recorded_too(database: Database, manager: ExecutionManager) -> None:
    ids = [manager.create("a").id for _ in range(3)]
    now = (
        "statement_timestamp()"
        if database.name == "postgresql"
        else "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
    )
    database.run("UPDATE executions SET progress_message = NULL")
    database.run("UPDATE executions SET status = status")
    database.run(
        "UPDATE executions SET status = 'running', attempts = 1, worker = 'psql',"
        f" started_at = {now}"
    )
    database.run(
        f"UPDATE executions SET status = 'cancelled', completed_at = {now},"
        ' metadata = \'{"cancellation_reason": "by hand"}\''
    )
    for id in ids:
        assert database.history(id) == [
            (None, "pending"),
            ("pending", "running"),
            ("running", "cancelled"),
        ]
        rows = database.rows(
            "SELECT * FROM execution_timeline WHERE execution_id = :id ORDER BY seq", id=id
        )
        assert [r["seq"] for r in rows] == [1, 2, 3]
        assert [r["worker"] for r in rows] == [None, "psql", "psql"]
        assert rows[-1]["reason"] == "by hand"
        # The hand left updated_at alone, and the history tells the true times all the same.
        times = [str(r["occurred_at"]) for r in rows]
        assert times == sorted(times)
        assert times[1] > str(rows[0]["occurred_at"])
        assert manager.get(id).worker == "psql"


def test_times_in_the_views(database: Database) -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    clock = iter(now + timedelta(seconds=s) for s in (0, 10, 12.5, 20, 21.25))
    manager = ExecutionManager(SqlExecutionStore(database.engine, clock=lambda: next(clock)))
    id = manager.create("pay", max_attempts=2, timeout=timedelta(seconds=5)).id
    assert manager.start(id).deadline_at == now + timedelta(seconds=15)
    manager.fail(id, "x", retryable=True)
    manager.start(id)
    done = manager.complete(id)
    assert done.completed_at == done.updated_at == now + timedelta(seconds=21.25)
    timeline = database.rows("SELECT * FROM execution_timeline ORDER BY seq")
    assert [r["seconds_since_last"] for r in timeline] == [None, 10, 2.5, 7.5, 1.25]
    assert {r["type"] for r in timeline} == {"pay"}
    attempts = database.rows("SELECT * FROM execution_attempts ORDER BY attempt")
    assert [(a["duration_seconds"], a["outcome"]) for a in attempts] == [
        (2.5, "failed"),
        (1.25, "completed"),
    ]
    stats = database.rows("SELECT * FROM execution_stats")
    assert [(s["type"], s["status"], s["count"]) for s in stats] == [("pay", "completed", 1)]
    assert stats[0]["average_seconds"] == stats[0]["longest_seconds"] == 1.25


def test_what_runs_now_in_the_views(database: Database, manager: ExecutionManager) -> None:
    long_ago = datetime.now(UTC) - timedelta(minutes=10)
    late = ExecutionManager(SqlExecutionStore(database.engine, clock=lambda: long_ago))
    for timeout in (timedelta(minutes=1), timedelta(hours=1), None):
        late.start(late.create("a", timeout=timeout).id, worker="w")
    late.start(late.create("b", max_attempts=2, timeout=timedelta(minutes=1)).id)
    late.fail(late.list(type="b")[0].id, "x", retryable=True)
    overdue = database.rows("SELECT * FROM overdue_executions")
    assert [(o["type"], o["worker"], o["attempt"]) for o in overdue] == [("a", "w", 1)]
    assert 539 < overdue[0]["overdue_seconds"] < 600
    stats = database.rows("SELECT * FROM execution_stats ORDER BY type")
    assert [(s["type"], s["status"], s["count"]) for s in stats] == [
        ("a", "running", 3),
        ("b", "retrying", 1),
    ]
    assert 599 < stats[0]["average_seconds"] < 700
    assert stats[1]["average_seconds"] is None
    assert {
        a["outcome"]
        for a in database.rows("SELECT outcome FROM execution_attempts WHERE type = 'a'")
    } == {"running"}


VIEWS = {
    "execution_overview": "execution_id type status attempts max_attempts worker progress_current"
    " progress_total progress_percent progress_message error_code error_message created_at"
    " updated_at started_at completed_at deadline_at heartbeat_at due_at duration_seconds"
    " idempotency_key parent_id replay_of silent_seconds due_at due_seconds",
    "execution_attempts": "execution_id type attempt worker started_at ended_at duration_seconds"
    " outcome error error_code error_message",
    "execution_timeline": "execution_id type seq from_status to_status attempt occurred_at"
    " seconds_since_last worker reason error error_code error_message",
    "execution_stats": "type status count oldest_created_at average_seconds longest_seconds",
    "overdue_executions": "execution_id type attempt worker started_at deadline_at overdue_seconds",
    "execution_history": "execution_id seq from_status to_status attempt occurred_at worker reason"
    " error write_token",
    "execution_logs": "execution_id id attempt logged_at level message data",
}


@pytest.mark.parametrize("name", VIEWS)
def test_what_people_read_has_these_columns(database: Database, name: str) -> None:
    columns = [column["name"] for column in inspect(database.engine).get_columns(name)]
    assert columns == VIEWS[name].split()


def test_averages_and_extremes(database: Database) -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    clock = iter(now + timedelta(seconds=s) for s in (0, 1, 2, 10, 11, 14))
    manager = ExecutionManager(SqlExecutionStore(database.engine, clock=lambda: next(clock)))
    for _ in range(2):
        id = manager.create("a").id
        manager.start(id)
        manager.complete(id)
    (stats,) = database.rows("SELECT * FROM execution_stats")
    assert (stats["count"], stats["average_seconds"], stats["longest_seconds"]) == (2, 2, 3)
    assert str(stats["oldest_created_at"]).startswith("2026-01-31")


def test_a_reason_belongs_to_a_cancellation(database: Database, manager: ExecutionManager) -> None:
    id = manager.create("a", metadata={"cancellation_reason": "not yet"}).id
    manager.start(id)
    manager.cancel(id)
    reasons = database.rows("SELECT reason FROM execution_history ORDER BY seq")
    assert [row["reason"] for row in reasons] == [None, None, "not yet"]


def test_an_attempt_is_by_who_started_it(database: Database, manager: ExecutionManager) -> None:
    id = manager.create("a").id
    manager.start(id, worker="one")
    database.run("UPDATE executions SET worker = 'another'")
    manager.complete(id)
    (attempt,) = database.rows("SELECT worker FROM execution_attempts")
    assert attempt["worker"] == "one"


def test_a_new_file_turns_to_wal_when_its_writer_is_done(tmp_path: Path) -> None:
    """As when several processes meet at a new file: SQLite itself does not wait then."""
    writer = sqlite3.connect(tmp_path / "new.db", isolation_level=None, check_same_thread=False)
    writer.execute("CREATE TABLE t (id)")
    writer.execute("BEGIN IMMEDIATE")
    engine = create_sync_engine(f"sqlite:///{tmp_path}/new.db")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(engine.connect)
        time.sleep(0.3)
        assert not waiting.done()
        writer.execute("COMMIT")
        with waiting.result(60) as connection:
            assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
    writer.close()
    engine.dispose()


def test_sqlite_without_foreign_keys_forgets_as_well(database: Database) -> None:
    engine = create_engine(database.url)  # SQLite's own default: foreign keys are off
    manager = ExecutionManager(SqlExecutionStore(engine))
    parent = manager.create("a")
    child = manager.create("b", parent_id=parent.id)
    manager.delete(parent.id)
    assert manager.get(child.id).parent_id is None
    assert len(database.rows("SELECT * FROM execution_history")) == 1
    engine.dispose()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_qualified_name_finds_the_history(database: Database, manager: ExecutionManager) -> None:
    manager.create("a")
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL search_path TO pg_catalog"))
        connection.execute(
            text("UPDATE public.executions SET status = 'cancelled', completed_at = now()")
        )
    assert len(database.rows("SELECT * FROM execution_history")) == 2


@pytest.mark.parametrize("situation", STATES)
def test_times_and_json_are_readable_without_the_library(
    database: Database, manager: ExecutionManager, situation: str
) -> None:
    execution = bring_to(manager, situation)
    (row,) = database.rows(
        "SELECT id, status, payload ->> 'n' AS n, created_at FROM executions WHERE id = :id",
        id=execution.id,
    )
    assert (str(row["id"]), row["status"], str(row["n"])) == (execution.id, execution.status, "1")
    if database.name == "sqlite":
        assert datetime.fromisoformat(row["created_at"]) == execution.created_at
        (date,) = database.rows("SELECT datetime(created_at) AS d FROM executions")
        assert date["d"] == f"{execution.created_at:%Y-%m-%d %H:%M:%S}"
    else:
        assert row["created_at"] == execution.created_at
