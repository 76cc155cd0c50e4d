"""Doctor: each kind of drift, made by real DDL, is found, and what is sound is left in peace."""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, NullPool, StaticPool, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError

from execution_core import (
    ExecutionManager,
    InvalidValue,
    SqlExecutionStore,
    cli,
    configure_sqlite,
    connect,
    doctor,
    migrate,
)
from execution_core.doctor import Finding, finding, settings
from execution_core.doctor.executions import NEWEST
from execution_core.sql.driver.engine import create_async_engine, create_sync_engine

from ..conftest import Database
from ..support.postgres import dsn
from ..support.rows import DONE, FAILED, ROW, RUNNING, insert
from ..support.situations import STATES, bring_to

ROOT = Path(__file__).parents[2]

SCHEMA = ["tables", "constraints", "indexes", "triggers", "views"]
CONTENTS = ["overdue", "stalled", "unclaimed", "history"]
SETTINGS_OF_SQLITE = ["sqlite_version", "journal_mode", "writable", "connections"]
HASTY = ["fsync", "full_page_writes"]  # a server for tests need not survive a loss of power
SETTINGS_OF_POSTGRESQL = [
    *("server_version", "transaction_isolation", "synchronous_commit", "transaction_read_only"),
    *("session_replication_role", *HASTY),
]
ACTIVITY = ["functions", "idle_transactions", "statistics"]


def found(target: Engine | str, **options: Any) -> dict[str, Finding]:
    findings = doctor.examine(target, **options)
    by_check = {finding.check: finding for finding in findings}
    assert len(by_check) == len(findings)
    return by_check


def wrong(target: Engine | str, **options: Any) -> dict[str, tuple[str, str]]:
    """How bad each thing is that is not as it should be, and what is said of it."""
    return {
        check: (finding.level, finding.message)
        for check, finding in found(target, **options).items()
        if finding.level != "ok" and check not in HASTY
    }


def problems(target: Engine | str, **options: Any) -> dict[str, str]:
    everything = wrong(target, **options).items()
    return {check: message for check, (level, message) in everything if level == "problem"}


@pytest.fixture(scope="module")
def disposable_postgres(empty_postgres: Callable[[str], str]) -> str:
    return empty_postgres("doctor")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/executions.db"
    url: str = request.getfixturevalue("disposable_postgres")
    engine = create_engine(url)
    with engine.begin() as connection:
        for schema in ("public", "mine"):
            connection.execute(text(f"DROP SCHEMA IF EXISTS {schema} CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
        connection.execute(text("GRANT USAGE ON SCHEMA public TO public"))
    engine.dispose()
    return url


@pytest.fixture
def own(empty_url: str) -> Iterator[Database]:
    """A database whose schema the test may spoil."""
    migrate.upgrade(empty_url)
    engine = create_sync_engine(empty_url)
    yield Database(engine.dialect.name, empty_url, engine)
    engine.dispose()


def only(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("empty_url", [kind], indirect=True)


def with_settings(url: str, **settings: str) -> str:
    options = " ".join(f"-c{name}={value}" for name, value in settings.items())
    changed = make_url(url).update_query_dict({"options": options})
    return changed.render_as_string(hide_password=False)


def run(url: str, statements: str) -> None:
    """Each by itself, as some cannot be in a transaction."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements.split(";;"):
            connection.exec_driver_sql(statement)


# --- what is sound -----------------------------------------------------------------------------


def test_a_fresh_database_is_sound(own: Database) -> None:
    of_one = SETTINGS_OF_SQLITE if own.name == "sqlite" else [*SETTINGS_OF_POSTGRESQL, *ACTIVITY]
    expected = {"migrated", *SCHEMA, *CONTENTS, *of_one}
    of_engine = {"synchronous"} if own.name == "sqlite" else set()
    for target, checks in ((own.url, expected), (own.engine, expected | of_engine)):
        findings = found(target, whole=True)
        assert {*findings} == checks
        assert next(iter(findings)) == "migrated"
        assert wrong(target) == {}
        assert all((each.advice is None) == (each.level == "ok") for each in findings.values())


@pytest.mark.parametrize("whole", [False, True])
def test_what_verbs_and_hands_leave_is_sound(own: Database, whole: bool) -> None:
    with connect(own.url) as manager:
        for situation in STATES:
            bring_to(manager, situation)
        manager.start(manager.retry(bring_to(manager, "timed_out").id).id)
    late = {**RUNNING, "attempts": 3, "max_attempts": 5}
    for n, row in enumerate([ROW, RUNNING, DONE, FAILED, late]):
        insert(own, {**row, "id": f"{ROW['id'][:-1]}{n + 2}"})
    own.run("UPDATE executions SET status = 'cancelled', completed_at = started_at, error = NULL"
            " WHERE status = 'failed'")  # fmt: skip
    assert wrong(own.url, whole=whole) == {}


HOSTS_OWN = [
    "CREATE INDEX ix_host ON executions (worker)",
    "CREATE VIEW host AS SELECT id, status FROM executions",
    "ALTER TABLE executions ADD COLUMN tenant TEXT CONSTRAINT ck_tenant CHECK (tenant <> '')",
    "CREATE TABLE orders (id INTEGER PRIMARY KEY)",
]


def test_what_the_host_adds_is_its_own_affair(own: Database) -> None:
    trigger = "CREATE TRIGGER host AFTER DELETE ON executions "
    if own.name == "sqlite":
        trigger += "BEGIN DELETE FROM orders; END"
    else:
        trigger += "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        trigger = trigger.replace("AFTER DELETE", "BEFORE UPDATE")
        run(own.url, "CREATE SCHEMA mine")
        run(own.url, RECORD.replace("FUNCTION ", "FUNCTION mine."))
    run(own.url, ";;".join([*HOSTS_OWN, trigger]))
    assert wrong(own.url) == {}


def test_what_the_printed_sql_makes_is_sound(
    empty_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate.upgrade_sql(empty_url)
    printed = capsys.readouterr().out
    if empty_url.startswith("sqlite"):
        raw = sqlite3.connect(empty_url.removeprefix("sqlite:///"))
        raw.executescript(printed)
        raw.close()
    else:
        import psycopg

        with psycopg.connect(dsn(empty_url), autocommit=True) as plain:
            plain.execute(printed.encode())
    assert problems(empty_url) == {}


@only("sqlite")
@pytest.mark.parametrize("what", ["TO {}", "COLUMN worker TO {}"])
def test_a_name_that_was_another_for_a_while(own: Database, what: str) -> None:
    """SQLite writes what it renames in quotes, wherever it stands."""
    aside = what.format("aside")
    run(own.url, f"ALTER TABLE executions RENAME {aside}")
    assert problems(own.url)
    back = "executions" if what == "TO {}" else "worker"
    table = "aside" if what == "TO {}" else "executions"
    run(own.url, f"ALTER TABLE {table} RENAME " + what.replace("worker", "aside").format(back))
    assert wrong(own.url) == {}


@only("postgresql")
def test_tables_may_stand_in_any_schema(empty_url: str) -> None:
    run(empty_url, "CREATE SCHEMA mine")
    url = with_settings(empty_url, search_path="mine")
    migrate.upgrade(url)
    assert wrong(url) == {}
    assert {*wrong(empty_url)} == {"migrated"}
    url = with_settings(empty_url, search_path="public,mine")
    run(url, "DROP TRIGGER execution_core_record_move ON executions")
    assert {*problems(url)} == {"triggers"}


@only("postgresql")
def test_what_explains_are_told_besides_is_no_drift(own: Database) -> None:
    url = with_settings(own.url, compute_query_id="on", jit="on", jit_above_cost="0")
    assert wrong(url) == {}


@only("postgresql")
def test_however_many_rows_the_views_are_the_same(own: Database) -> None:
    for rows in (3, 30_000):
        own.run(
            "INSERT INTO executions (id, type, status, completed_at) SELECT gen_random_uuid(),"
            f" 'a' || n % 9, 'cancelled', now() FROM generate_series(1, {rows}) AS n"
        )
        assert found(own.url)["views"].level == "ok"
        run(own.url, "VACUUM ANALYZE executions;;VACUUM ANALYZE execution_history")
        assert wrong(own.url) == {}


# --- the schema --------------------------------------------------------------------------------

DISABLED = "is not enforced: its triggers are disabled"
ANOTHER = "is not as the migrations make it"
OVERDUE = (
    "SELECT id AS execution_id, type, attempts AS attempt, worker, started_at, deadline_at,"
    " 0.5 {cast} AS overdue_seconds FROM executions WHERE status = 'running'"
)

DRIFT = {
    "index dropped": (
        "DROP INDEX ix_executions_due",
        {"indexes": "ix_executions_due is missing"},
    ),
    "index with another condition": (
        ("DROP INDEX ix_executions_deadline_at;;CREATE INDEX ix_executions_deadline_at"
        " ON executions (deadline_at) WHERE status = 'failed'"),
        {"indexes": f"ix_executions_deadline_at {ANOTHER}"},
    ),
    "index without its condition": (
        ("DROP INDEX ix_executions_due;;"
        "CREATE INDEX ix_executions_due ON executions (coalesce(due_at, created_at), id)"),
        {"indexes": f"ix_executions_due {ANOTHER}"},
    ),
    "index of other columns": (
        ("DROP INDEX ix_executions_status_id;;"
        "CREATE INDEX ix_executions_status_id ON executions (id, status)"),
        {"indexes": f"ix_executions_status_id {ANOTHER}"},
    ),
    "view dropped": (
        "DROP VIEW execution_stats",
        {"views": "execution_stats is missing"},
    ),
    "table dropped": (
        "DROP TABLE execution_history {cascade}",
        {
            "tables": "execution_history is missing",
            "constraints": "pk_execution_history is missing",
        },
    ),
}  # fmt: skip

DRIFT_OF_SQLITE = {
    "trigger dropped": (
        "DROP TRIGGER execution_core_record_move",
        {"triggers": "execution_core_record_move is missing"},
    ),
    "trigger emptied": (
        (
            "DROP TRIGGER execution_core_forget;;"
            "CREATE TRIGGER execution_core_forget AFTER DELETE ON executions BEGIN SELECT 1; END"
        ),
        {"triggers": f"execution_core_forget {ANOTHER}"},
    ),
    "view of other rows": (
        f"DROP VIEW overdue_executions;;CREATE VIEW overdue_executions AS {OVERDUE}",
        {"views": f"overdue_executions {ANOTHER}"},
    ),
}

RECORD = (
    "CREATE OR REPLACE FUNCTION execution_core_record_move() RETURNS trigger LANGUAGE plpgsql"
    " SET search_path FROM CURRENT AS $$ BEGIN RETURN NULL; END $$"
)
RENEW = "ALTER TABLE executions DROP CONSTRAINT {0};;ALTER TABLE executions ADD CONSTRAINT {0} "

DRIFT_OF_POSTGRESQL = {
    "trigger dropped": (
        "DROP TRIGGER execution_core_record_move ON executions",
        {"triggers": "execution_core_record_move is missing"},
    ),
    "trigger disabled": (
        "ALTER TABLE executions DISABLE TRIGGER execution_core_record_creation",
        {"triggers": "execution_core_record_creation is disabled"},
    ),
    "trigger for replicas": (
        "ALTER TABLE executions ENABLE REPLICA TRIGGER execution_core_record_creation",
        {"triggers": "execution_core_record_creation fires on replicas alone"},
    ),
    "trigger with another condition": (
        ("DROP TRIGGER execution_core_record_move ON executions;;"
        "CREATE TRIGGER execution_core_record_move AFTER UPDATE OF status ON executions"
        " FOR EACH ROW WHEN (NEW.status = 'failed') EXECUTE FUNCTION execution_core_record_move()"),
        {"triggers": f"execution_core_record_move {ANOTHER}"},
    ),
    "function emptied": (
        RECORD,
        {"functions": f"execution_core_record_move {ANOTHER}"},
    ),
    "function unpinned": (
        "ALTER FUNCTION execution_core_record_move() RESET ALL",
        {"functions": "execution_core_record_move has lost its search_path"},
    ),
    "function dropped": (
        "DROP FUNCTION execution_core_in_use(uuid)",
        {"functions": "execution_core_in_use is missing"},
    ),
    "check dropped": (
        "ALTER TABLE executions DROP CONSTRAINT ck_executions_type_length",
        {"constraints": "ck_executions_type_length is missing"},
    ),
    "check weakened": (
        RENEW.format("ck_executions_attempts_in_range") + "CHECK (attempts >= 0)",
        {"constraints": f"ck_executions_attempts_in_range {ANOTHER}"},
    ),
    "check not valid": (
        RENEW.format("ck_executions_type_length") + "CHECK (length(type) BETWEEN 1 AND 255)"
        " NOT VALID",
        {"constraints": "ck_executions_type_length is not valid"},
    ),
    "foreign key that does something else": (
        RENEW.format("fk_executions_parent_id") + "FOREIGN KEY (parent_id) REFERENCES executions",
        {"constraints": f"fk_executions_parent_id {ANOTHER}"},
    ),
    "foreign key switched off": (
        "ALTER TABLE execution_logs DISABLE TRIGGER ALL",
        {"constraints": f"fk_execution_logs_execution_id {DISABLED}"},
    ),
    "key no longer unique": (
        "ALTER TABLE executions DROP CONSTRAINT uq_executions_idempotency_key",
        {"constraints": "uq_executions_idempotency_key is missing"},
    ),
    "column of another type": (
        "ALTER TABLE execution_logs ALTER attempt TYPE bigint",
        {"tables": f"execution_logs.attempt {ANOTHER}"},
    ),
    "column that may be null": (
        "ALTER TABLE execution_logs ALTER message DROP NOT NULL",
        {"tables": f"execution_logs.message {ANOTHER}"},
    ),
    "column without its default": (
        "ALTER TABLE executions ALTER created_at DROP DEFAULT",
        {"tables": f"executions.created_at {ANOTHER}"},
    ),
    "table that a crash empties": (
        "ALTER TABLE execution_logs SET UNLOGGED",
        {"tables": "execution_logs is unlogged: a crash empties it"},
    ),
    "view of other rows": (
        f"CREATE OR REPLACE VIEW overdue_executions AS {OVERDUE}",
        {"views": f"overdue_executions {ANOTHER}"},
    ),
    "view with another column": (
        "ALTER VIEW execution_stats RENAME COLUMN count TO number",
        {"views": f"execution_stats {ANOTHER}"},
    ),
}  # fmt: skip


def drifts(own: Database, statements: str, expected: dict[str, str]) -> None:
    on_postgresql = own.name == "postgresql"
    statements = statements.replace("{cascade}", "CASCADE" if on_postgresql else "")
    statements = statements.replace("{cast}", "::float8" if on_postgresql else "")
    assert wrong(own.url) == {}
    run(own.url, statements)
    said = problems(own.url)
    assert {check: said[check].split("; ")[0] for check in expected} == expected
    assert {*said} - {"views"} == {*expected} - {"views"}  # some go with what is dropped
    assert problems(own.engine) == said


@pytest.mark.parametrize("kind", DRIFT)
def test_drift(own: Database, kind: str) -> None:
    drifts(own, *DRIFT[kind])


@only("sqlite")
@pytest.mark.parametrize("kind", DRIFT_OF_SQLITE)
def test_drift_of_sqlite(own: Database, kind: str) -> None:
    drifts(own, *DRIFT_OF_SQLITE[kind])


@only("postgresql")
@pytest.mark.parametrize("kind", DRIFT_OF_POSTGRESQL)
def test_drift_of_postgresql(own: Database, kind: str) -> None:
    drifts(own, *DRIFT_OF_POSTGRESQL[kind])


@only("postgresql")
def test_an_index_that_could_not_be_built(own: Database) -> None:
    with connect(own.url) as manager:
        for _ in range(2):
            manager.create("a")
    run(own.url, "DROP INDEX ix_executions_status_id")
    with pytest.raises(DBAPIError):
        run(
            own.url,
            "CREATE UNIQUE INDEX CONCURRENTLY ix_executions_status_id ON executions (status)",
        )
    assert problems(own.url) == {"indexes": "ix_executions_status_id is invalid"}


def rebuild(database: Database, table: str, old: str, new: str) -> None:
    """Change a table as SQLite's own documentation message: make it anew, and copy the rows."""
    raw = sqlite3.connect(database.url.removeprefix("sqlite:///"), isolation_level=None)
    raw.execute("PRAGMA legacy_alter_table = ON")
    ((made,),) = raw.execute("SELECT sql FROM sqlite_master WHERE name = ?", [table])
    others = raw.execute(
        "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND type <> 'table' AND sql > ''", [table]
    ).fetchall()
    assert old in made
    raw.execute(made.replace(old, new).replace(f"CREATE TABLE {table}", "CREATE TABLE rebuilt"))
    raw.execute(f"INSERT INTO rebuilt SELECT * FROM {table}")
    raw.execute(f"DROP TABLE {table}")
    raw.execute(f"ALTER TABLE rebuilt RENAME TO {table}")
    for (other,) in others:
        raw.execute(other)
    raw.close()


@only("sqlite")
@pytest.mark.parametrize(
    ("table", "old", "new", "expected"),
    [
        ("executions", "", "", {}),
        ("executions", "worker TEXT", '"worker" TEXT', {}),
        (
            "executions",
            "CONSTRAINT ck_executions_type_length",
            'CONSTRAINT "ck_executions_type_length"',
            {},
        ),
        (
            "execution_logs",
            "attempt INTEGER NOT NULL",
            "attempt TEXT NOT NULL",
            {"tables": f"execution_logs.attempt {ANOTHER}"},
        ),
        (
            "executions",
            "CONSTRAINT ck_executions_max_attempts_positive CHECK (max_attempts >= 1),",
            "",
            {"constraints": "ck_executions_max_attempts_positive is missing"},
        ),
        (
            "executions",
            "CHECK (max_attempts >= 1)",
            "CHECK (max_attempts >= 0)",
            {"constraints": f"ck_executions_max_attempts_positive {ANOTHER}"},
        ),
        (
            "executions",
            "fk_executions_replay_of REFERENCES executions (id) ON DELETE SET NULL",
            "fk_executions_replay_of REFERENCES executions (id)",
            {"constraints": f"fk_executions_replay_of {ANOTHER}"},
        ),
    ],
)
def test_a_table_made_anew(
    own: Database, table: str, old: str, new: str, expected: dict[str, str]
) -> None:
    rebuild(own, table, old, new)
    assert problems(own.url) == expected


def test_much_is_not_said_at_length(own: Database) -> None:
    for name in ("due", "type_due", "status_id", "deadline_at", "replay_of", "completed_at"):
        run(own.url, f"DROP INDEX ix_executions_{name}")
    said = problems(own.url)["indexes"]
    assert said.count("is missing") == finding.EXAMPLES
    assert said.endswith("; and 1 more")


# --- migrations --------------------------------------------------------------------------------


def test_an_empty_database(empty_url: str) -> None:
    with create_engine(empty_url, poolclass=NullPool).begin() as connection:
        connection.execute(text("CREATE TABLE orders (id integer)"))
    findings = found(empty_url)
    assert findings["migrated"].level == "problem"
    assert findings["migrated"].message == "no table executions is visible"
    assert {*SCHEMA, *CONTENTS}.isdisjoint(findings)


def test_an_older_version(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTION_CORE_URL", empty_url)
    command.upgrade(Config(ROOT / "alembic.ini"), "execution_core_0002")
    findings = found(empty_url)
    assert findings["migrated"].level == "problem"
    assert findings["migrated"].message.startswith(
        "at execution_core_0002, before execution_core_0"
    )
    assert {*SCHEMA, *CONTENTS}.isdisjoint(findings)


def test_a_newer_version(own: Database) -> None:
    own.run("UPDATE execution_core_version SET version_num = 'execution_core_9999'")
    findings = found(own.url)
    assert "at execution_core_9999, which a newer version" in problems(own.url)["migrated"]
    assert findings["migrated"].advice == "Install that version here as well"
    assert {*SCHEMA, *CONTENTS}.isdisjoint(findings)


def test_versions_that_the_hosts_alembic_keeps(own: Database) -> None:
    """They stand in a table that is the host's: what is there tells."""
    own.run("DROP TABLE execution_core_version")
    assert {check: level for check, (level, _) in wrong(own.url).items()} == {"migrated": "warning"}
    run(own.url, "DROP VIEW execution_stats")
    assert problems(own.url) == {"views": "execution_stats is missing"}


# --- settings ----------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    # Of what readers share, the -shm, SQLite itself changes the marks of readers.
    files = (path for path in folder.iterdir() if path.is_file())
    return {path.name: b"" if path.suffix == ".db-shm" else path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["executions.db", "a b?c#d%20é.db"])
@pytest.mark.parametrize("mode", ["delete", "wal", "wal that a crash has left"])
def test_a_file_stays_as_it_is(tmp_path: Path, mode: str, name: str) -> None:
    url = make_url("sqlite://").set(database=str(tmp_path / name))
    engine = create_engine(url) if mode == "delete" else create_sync_engine(url)
    migrate.upgrade(engine)
    engine.dispose()
    if mode == "wal that a crash has left":
        subprocess.run(
            [sys.executable, "-c", CRASH, str(tmp_path / name)], check=True, timeout=60
        )  # fmt: skip
    before = contents(tmp_path)
    assert len(before) == (3 if "crash" in mode else 1)
    findings = doctor.examine(url, whole=True)
    assert contents(tmp_path) == before
    levels = {each.check: each.level for each in findings if each.level != "ok"}
    assert levels == ({"journal_mode": "warning"} if mode == "delete" else {})


CRASH = """
import os, sqlite3, sys
id = "0198a000-0000-7000-8000-000000000001"
raw = sqlite3.connect(sys.argv[1])
raw.execute("INSERT INTO executions (id, type) VALUES (?, 'a')", [id])
raw.commit()
os._exit(0)
"""


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    for name in (f"{tmp_path}/no.db", f"file:{tmp_path}/no.db?uri=true", str(tmp_path)):
        with pytest.raises(InvalidValue, match="is a file that does not exist"):
            doctor.examine(f"sqlite:///{name}")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("Dear diary, " * 100)
    with pytest.raises(InvalidValue, match="target cannot be read: file is not a database"):
        doctor.examine(f"sqlite:///{tmp_path}/text.db")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "target must be an Engine or a URL, not NoneType"),
        ("sqlite://", "target is in memory, and gone at once: pass an Engine"),
        ("sqlite:///file::memory:?uri=true", "target is in memory"),
        ("mysql://u:secret@h/d", "url must begin with"),
    ],
)
def test_bad_targets_are_refused(target: Any, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        doctor.examine(target)
    assert message in str(caught.value)


def test_bad_engines_and_times_are_refused() -> None:
    with pytest.raises(InvalidValue, match="not AsyncEngine"):
        doctor.examine(create_async_engine("sqlite://"))  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="stalled_after"):
        doctor.examine("sqlite://", stalled_after=timedelta(0))


READS = {"SELECT", "EXPLAIN", "WITH", "PRAGMA", "SET", "SAVEPOINT", "RELEASE", "ROLLBACK"}


def test_nothing_but_reading(own: Database) -> None:
    sent = []

    @event.listens_for(own.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append((statement.split(maxsplit=1)[0], getattr(cursor.connection, "read_only", None)))

    assert wrong(own.engine, whole=True) == {}
    assert {verb for verb, _ in sent} <= READS
    if own.name == "postgresql":  # which sees to it as well, but for the settings that come first
        assert sent[0] == ("SELECT", None)
        assert {read_only for _, read_only in sent[1:]} == {True}


@only("sqlite")
def test_an_engine_as_it_comes(own: Database) -> None:
    engine = create_engine(own.url, connect_args={"timeout": 0})
    assert wrong(engine) == {
        "connections": (
            "warning",
            (
                "foreign keys are off; a writer does not wait for another;"
                " who reads and then writes cannot wait"
            ),
        )
    }
    engine.dispose()


@only("sqlite")
def test_a_synchronous_that_loses_moves(own: Database) -> None:
    engine = create_engine(own.url, poolclass=StaticPool)
    configure_sqlite(engine)
    with engine.connect() as connection:
        assert wrong(engine) == {}
    with engine.execution_options(sqlite_begin=None).connect() as connection:
        connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
    assert {*wrong(engine)} == {"synchronous"}
    engine.dispose()


def test_an_engine_in_memory() -> None:
    engine = configure_sqlite(create_engine("sqlite://", poolclass=StaticPool))
    migrate.upgrade(engine)
    bring_to(ExecutionManager(SqlExecutionStore(engine)), "timed_out-last")
    assert wrong(engine, whole=True) == {}
    engine.dispose()


def test_a_writer_is_not_waited_for_and_nothing_is_left_open(own: Database) -> None:
    with own.engine.begin() as writer:
        writer.execute(
            text("INSERT INTO executions (id, type) VALUES (:id, 'a')"), {"id": ROW["id"]}
        )
        assert wrong(own.url) == {}
        assert wrong(own.engine) == {}
        assert own.engine.pool.checkedout() == 1  # type: ignore[attr-defined]


@contextmanager
def without_the_rights_of_root() -> Iterator[None]:
    root = os.geteuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that everybody may read, and nobody may write; pytest's own are for one user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        folder.chmod(0o755)


def closed(file: Path) -> None:
    file.chmod(0o444)
    file.parent.chmod(0o555)


def test_who_may_not_write(closed_folder: Path) -> None:
    file = closed_folder / "executions.db"
    engine = create_engine(f"sqlite:///{file}", poolclass=NullPool)
    migrate.upgrade(engine)
    closed(file)
    with without_the_rights_of_root():  # who may be unable to read the migrations, too
        findings = settings.sqlite_settings(engine, given=False)
    (writable,) = (each for each in findings if each.check == "writable")
    assert writable.level == "warning"
    assert writable.message == f"{file} is not; {closed_folder} is not"


def test_who_may_not_even_read(closed_folder: Path) -> None:
    """To read a file in WAL mode, one that nobody has open, SQLite has to write beside it."""
    file = closed_folder / "executions.db"
    migrate.upgrade(f"sqlite:///{file}")
    closed(file)
    with without_the_rights_of_root(), pytest.raises(InvalidValue, match="and on its folder"):
        doctor.examine(f"sqlite:///{file}")


@only("postgresql")
@pytest.mark.parametrize(
    ("settings", "check", "level", "message"),
    [
        ({"default_transaction_isolation": "serializable"}, "transaction_isolation", "warning",
         "serializable: calls that meet raise where they would wait"),
        ({"synchronous_commit": "off"}, "synchronous_commit", "warning", "off: the last moves"),
        ({"synchronous_commit": "local"}, "synchronous_commit", "warning", "local: the last moves"),
        ({"default_transaction_read_only": "on"}, "transaction_read_only", "warning",
         "on: a standby, or default_transaction_read_only is on"),
        ({"session_replication_role": "replica"}, "session_replication_role", "problem",
         "replica: no trigger fires, so no history is written"),
    ],
)  # fmt: skip
def test_settings_of_postgresql(
    own: Database, settings: dict[str, str], check: str, level: str, message: str
) -> None:
    assert check not in wrong(own.url)
    bad = wrong(with_settings(own.url, **settings))
    assert {*bad} == {check}
    assert bad[check][0] == level
    assert bad[check][1].startswith(message)


@only("postgresql")
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
def test_the_isolation_of_the_hosts_engine(own: Database, level: str) -> None:
    engine = create_engine(own.url, isolation_level=level)
    assert {*wrong(engine)} == (set() if level == "AUTOCOMMIT" else {"transaction_isolation"})
    with engine.connect() as connection:  # the engine has not become one that only reads
        connection.execute(
            text("INSERT INTO executions (id, type) VALUES (gen_random_uuid(), 'a')")
        )
        assert connection.get_isolation_level() == (
            "READ COMMITTED" if level == "AUTOCOMMIT" else level
        )
    engine.dispose()


@only("postgresql")
def test_what_the_server_does_for_safety(own: Database) -> None:
    findings = found(own.url)
    for setting in HASTY:
        on = own.rows(f"SHOW {setting}")[0][setting] == "on"
        assert findings[setting].level == ("ok" if on else "warning")


# --- activity and rights in PostgreSQL ---------------------------------------------------------


@pytest.fixture
def reader(own: Database) -> Iterator[str]:
    """The URL of a role that has no right to anything."""
    name = f"doctor_reader_{os.getpid()}"
    own.run(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    changed = make_url(own.url).set(username=name, password="secret")
    yield changed.render_as_string(hide_password=False)
    own.run(f"DROP OWNED BY {name}")
    own.run(f"DROP ROLE {name}")


@only("postgresql")
def test_rights_that_are_missing(own: Database, reader: str) -> None:
    bad = wrong(reader)
    assert {check: level for check, (level, _) in bad.items()} == dict.fromkeys(
        ["migrated", "constraints", "views", *CONTENTS], "warning"
    )
    denied = "could not be examined: permission denied for table "
    assert bad["migrated"][1] == denied + "execution_core_version"
    assert bad["overdue"][1] == denied + "executions"
    assert "GRANT SELECT" in str(found(reader)["history"].advice)
    role = make_url(reader).username
    own.run(f"GRANT SELECT ON executions, execution_core_version TO {role}")
    bad = wrong(reader)
    assert {*bad} == {"constraints", "views", "history"}
    assert bad["history"][1] == denied + "execution_history"
    run(own.url, "ALTER TABLE executions DISABLE TRIGGER execution_core_record_move")
    assert {*problems(reader)} == {"triggers"}
    own.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    assert {*wrong(reader)} == {"triggers"}
    own.run("REVOKE USAGE ON SCHEMA public FROM public")
    assert {*wrong(reader)} == {"migrated"}
    assert "USAGE on the schema" in str(found(reader)["migrated"].advice)


@only("postgresql")
def test_rows_that_a_role_may_not_see(own: Database, reader: str) -> None:
    """A part of the rows must not pass for all of them."""
    own.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {make_url(reader).username}")
    assert wrong(reader) == {}
    run(own.url, "ALTER TABLE executions ENABLE ROW LEVEL SECURITY")
    assert {"overdue", "history"} < {*wrong(reader)}
    assert "row-level security" in wrong(reader)["overdue"][1]


@only("postgresql")
def test_a_transaction_that_was_left_open(own: Database) -> None:
    moment = timedelta(milliseconds=1)
    with own.engine.connect() as forgotten:
        forgotten.execute(text("SELECT set_config('application_name', 'forgetful', false)"))
        pid = forgotten.execute(text("SELECT pg_backend_pid()")).scalar_one()
        forgotten.execute(text("SELECT count(*) FROM pg_class"))
        assert wrong(own.url, stalled_after=moment) == {}  # it holds nothing of ours
        forgotten.execute(text("SELECT * FROM executions FOR UPDATE"))
        bad = wrong(own.url, stalled_after=moment)
        assert {*bad} == {"idle_transactions"}
        assert bad["idle_transactions"][1].startswith(
            f"{pid} ({own.engine.url.username}, forgetful) since 20"
        )
        assert wrong(own.url) == {}  # for an hour


@only("postgresql")
def test_a_lock_is_not_waited_for(own: Database) -> None:
    with own.engine.connect() as migrating:
        migrating.execute(text("LOCK execution_history"))
        bad = wrong(own.url)
    assert {check: level for check, (level, _) in bad.items()} == dict.fromkeys(
        [*SCHEMA, "functions", "history"], "warning"
    )
    assert "lock timeout" in bad["history"][1]


@only("postgresql")
def test_what_the_planner_does_not_know(own: Database) -> None:
    for table in ("executions", "execution_history"):
        own.run(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    cancelled = (
        "INSERT INTO executions (id, type, status, completed_at)"
        " SELECT gen_random_uuid(), 'a', 'cancelled', now() FROM generate_series(1, {})"
    )
    run(own.url, cancelled.format(settings.MANY_ROWS - 1))
    wait_for_statistics(own, "n_live_tup", settings.MANY_ROWS - 1)
    assert wrong(own.url) == {}
    run(own.url, cancelled.format(1))
    wait_for_statistics(own, "n_live_tup", settings.MANY_ROWS)
    bad = wrong(own.url)
    assert {*bad} == {"statistics"}
    assert "executions, 10000 rows, never analysed" in bad["statistics"][1]
    run(own.url, "ANALYZE executions;;ANALYZE execution_history")
    assert wrong(own.url) == {}
    run(own.url, ";;".join(["UPDATE executions SET type = type || 'a'"] * 2))
    wait_for_statistics(own, "n_dead_tup", 2 * settings.MANY_ROWS)
    assert wrong(own.url) == {
        "statistics": ("warning", "executions, 10000 rows, 20000 dead ones beside")
    }
    run(own.url, "VACUUM executions")
    assert wrong(own.url) == {}


def wait_for_statistics(database: Database, figure: str, at_least: int) -> None:
    """PostgreSQL writes down what a session has done when the session is over, or soon after."""
    limit = time.monotonic() + 60
    query = f"SELECT {figure} AS n FROM pg_stat_user_tables WHERE relname = 'executions'"
    while database.rows(query)[0]["n"] < at_least:
        assert time.monotonic() < limit


# --- executions --------------------------------------------------------------------------------


def at(database: Database, **ago: float) -> ExecutionManager:
    """A manager whose time is not now."""
    then = datetime.now(UTC) - timedelta(**ago)
    return ExecutionManager(SqlExecutionStore(database.engine, clock=lambda: then))


def test_overdue(own: Database) -> None:
    started = {}
    for minutes, timeout in ((9, 30), (8, 1), (7, 2), (6, None)):
        manager = at(own, minutes=minutes)
        limit = None if timeout is None else timedelta(minutes=timeout)
        job = manager.create("import", timeout=limit, max_attempts=2)
        started[minutes] = manager.start(job.id, worker=f"host-{minutes}")
    oldest = started[8]
    assert wrong(own.url) == {
        "overdue": (
            "problem",
            (
                f"2, the first since {oldest.deadline_at:%Y-%m-%d %H:%M:%S} UTC:"
                f" {oldest.id} (import, host-8)"
            ),
        )
    }
    with connect(own.url) as now:
        assert {each.id for each in now.sweep()} == {oldest.id, started[7].id}
    assert wrong(own.url) == {}


def test_stalled(own: Database) -> None:
    silent = at(own, hours=2).create("import")
    at(own, hours=2).start(silent.id)
    alive = at(own, hours=2).create("import")
    at(own, hours=2).start(alive.id, worker="host")
    at(own, minutes=10).heartbeat(alive.id)
    bad = wrong(own.url)
    assert {*bad} == {"stalled"}
    assert bad["stalled"][0] == "problem"
    assert bad["stalled"][1].startswith("1, the first since 20")
    assert bad["stalled"][1].endswith(f" UTC: {silent.id} (import)")
    minutes = timedelta(minutes=5)
    assert wrong(own.url, stalled_after=minutes)["stalled"][1].startswith("2, the first since")
    with connect(own.url) as now:
        assert len(now.sweep(stalled_after=minutes)) == 2
    assert wrong(own.url, stalled_after=minutes) == {}


def test_unclaimed(own: Database) -> None:
    old = at(own, hours=3)
    forgotten = old.create("mail")
    old.create("later", start_after=timedelta(hours=2, minutes=30))
    retrying = old.start(old.create("a", max_attempts=2).id)
    old.fail(retrying.id, "no", retryable=True, retry_after=timedelta(minutes=30))
    bad = wrong(own.url)
    assert {*bad} == {"unclaimed"}
    level, message = bad["unclaimed"]
    assert level == "warning"
    assert message == (
        f"2, the first since {forgotten.created_at:%Y-%m-%d %H:%M:%S} UTC: {forgotten.id} (mail)"
    )
    with connect(own.url) as now:
        assert len(now.claim(limit=2)) == 2
    assert wrong(own.url) == {}


# --- history -----------------------------------------------------------------------------------

OF_IT = "WHERE execution_id = :id"
GAPS = {
    "a move in between": f"DELETE FROM execution_history {OF_IT} AND seq = 2",
    "the first move": f"DELETE FROM execution_history {OF_IT} AND seq = 1",
    "the last move": f"DELETE FROM execution_history {OF_IT} AND seq = 5",
    "all moves": f"DELETE FROM execution_history {OF_IT}",
    "an attempt, from end to end": f"DELETE FROM execution_history {OF_IT} AND seq IN (4, 5)",
    "another origin": f"UPDATE execution_history SET from_status = 'pending' {OF_IT} AND seq = 3",
    "an origin of the first": f"UPDATE execution_history SET from_status = 'failed' {OF_IT}"
    " AND seq = 1",
    "no origin": f"UPDATE execution_history SET from_status = NULL {OF_IT} AND seq = 4",
    "another end": f"UPDATE execution_history SET to_status = 'cancelled' {OF_IT} AND seq = 5",
    "another number": f"UPDATE execution_history SET seq = 7 {OF_IT} AND seq = 5",
}  # fmt: skip


@pytest.mark.parametrize("gap", GAPS)
def test_gaps_in_a_history(own: Database, gap: str) -> None:
    with connect(own.url) as manager:
        hurt, sound = (bring_to(manager, "failed-last") for _ in range(2))
    assert wrong(own.url) == {}
    own.run(GAPS[gap].replace(":id", "CAST(:id AS uuid)" if own.name != "sqlite" else ":id"),
            id=hurt.id)  # fmt: skip
    for whole in (False, True):
        assert wrong(own.url, whole=whole) == {
            "history": ("problem", f"1 with a gap, or not as they moved last, the first: {hurt.id}")
        }
    assert sound.id not in wrong(own.url)["history"][1]


def test_moves_that_no_trigger_saw(own: Database) -> None:
    """Also those after which the status is what it was: the attempts tell."""
    table = "" if own.name == "sqlite" else " ON executions"
    with connect(own.url) as manager:
        job = manager.start(manager.create("a", max_attempts=2).id)
        ((made,),) = [tuple(row.values()) for row in own.rows(
            "SELECT sql FROM sqlite_master WHERE name = 'execution_core_record_move'"
            if own.name == "sqlite"
            else "SELECT pg_get_triggerdef(oid) FROM pg_trigger"
            " WHERE tgname = 'execution_core_record_move'"
        )]  # fmt: skip
        run(own.url, f"DROP TRIGGER execution_core_record_move{table}")
        manager.fail(job.id, "no", retryable=True)
        manager.start(job.id)
        run(own.url, made)
        assert {*problems(own.url)} == {"history"}


def test_which_histories_are_read(own: Database) -> None:
    with connect(own.url) as manager:
        done, live = (bring_to(manager, situation) for situation in ("completed", "pending"))
    with connect(own.url) as manager:
        for _ in range(NEWEST):
            manager.cancel(manager.create("a").id)
    own.run("DELETE FROM execution_history WHERE to_status = 'completed'")
    assert wrong(own.url) == {}
    assert done.id in wrong(own.url, whole=True)["history"][1]
    own.run("DELETE FROM execution_history WHERE execution_id = (SELECT id FROM executions"
            " WHERE status = 'pending')")  # fmt: skip
    assert live.id in wrong(own.url)["history"][1]
    own.run("DELETE FROM execution_history WHERE to_status = 'cancelled'")
    assert wrong(own.url)["history"][1].startswith(f"{NEWEST + 1} with a gap")


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def say(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["doctor", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return say


Say = Callable[..., tuple[int, str, str]]


def test_the_command(own: Database, say: Say) -> None:
    code, out, err = say("--url", own.url)
    assert (code, err) == (0, "")
    findings = found(own.url)
    assert [line.split()[:2] for line in out.splitlines() if line[0] != " "] == [
        [each.level, f"{each.check}:"] for each in findings.values()
    ]
    run(own.url, "DROP VIEW execution_stats")
    code, out, err = say("--url", own.url)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    said = lines.index("problem  views: execution_stats is missing")
    assert lines[said + 1] == f"         {found(own.url)['views'].advice}"


def test_the_command_in_json(own: Database, say: Say) -> None:
    forgotten = at(own, minutes=5).create("a")
    code, out, _ = say("--json", "--url", own.url, "--stalled-after", "2m")
    assert code == 0  # warnings do not change it
    document = json.loads(out)
    assert {*document} == {"database", "findings"}
    assert document["database"] == own.url.replace("+psycopg", "")
    by_check = {each["check"]: each for each in document["findings"]}
    assert all({*each} == {"check", "level", "message", "advice"} for each in by_check.values())
    assert by_check["migrated"]["advice"] is None
    assert by_check["unclaimed"]["level"] == "warning"
    assert forgotten.id in by_check["unclaimed"]["message"]


def test_the_command_reads_all_histories(own: Database, say: Say) -> None:
    _, out, _ = say("--url", own.url)
    assert f"history: without a gap, of the live and the newest {NEWEST:,} ex" in out
    _, out, _ = say("--url", own.url, "--all")
    assert "history: without a gap, of every execution" in out


def test_the_command_makes_no_file(tmp_path: Path, say: Say) -> None:
    code, out, err = say("--url", f"sqlite:///{tmp_path}/no.db")
    assert (code, out) == (1, "")
    assert "is a file that does not exist" in err
    assert list(tmp_path.iterdir()) == []


@only("postgresql")
def test_the_command_shows_no_password(own: Database, reader: str, say: Say) -> None:
    for arguments in ((), ("--json",)):
        code, out, err = say("--url", reader, *arguments)
        assert code == 0
        assert "secret" not in out + err
    code, out, err = say("--url", "postgresql://u:secret@127.0.0.1:1/d")
    assert (code, out) == (1, "")
    assert "secret" not in err
