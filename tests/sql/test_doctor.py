"""`doctor` finds each kind of drift, made by real DDL; a correct database has no findings."""

import io
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
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
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
from execution_core.doctor import executions as execution_checks
from execution_core.sql.driver.engine import create_async_engine, create_sync_engine

from ..conftest import Database
from ..support.postgres import dsn
from ..support.rows import DONE, FAILED, ROW, RUNNING, insert
from ..support.sampling import sampled
from ..support.states import STATES, bring_to

ROOT = Path(__file__).parents[2]

SCHEMA_CHECKS = ["tables", "constraints", "indexes", "triggers", "views"]
EXECUTION_CHECKS = ["overdue", "stalled", "unclaimed", "attention", "history", "history_start"]
SQLITE_SETTINGS = ["sqlite_version", "journal_mode", "writable", "connections"]
UNSAFE_FOR_SPEED = [
    "fsync",
    "full_page_writes",
]  # off in the test server, which need not be durable
POSTGRESQL_SETTINGS = [
    *("server_version", "server_encoding", "transaction_isolation", "synchronous_commit"),
    *("transaction_read_only", "session_replication_role", *UNSAFE_FOR_SPEED),
]
ACTIVITY = ["functions", "idle_transactions", "statistics"]


def examine(target: Engine | str, **options: Any) -> dict[str, Finding]:
    """Return the findings of doctor by check."""
    findings = doctor.examine(target, **options)
    by_check = {finding.check: finding for finding in findings}
    assert len(by_check) == len(findings)
    return by_check


def not_ok(target: Engine | str, **options: Any) -> dict[str, tuple[str, str]]:
    """Return level and message of each finding that is not ok, but for work that has failed."""
    return {
        check: (finding.level, finding.message)
        for check, finding in examine(target, **options).items()
        if finding.level != "ok" and check not in UNSAFE_FOR_SPEED
        if check != "attention" or "could not be checked" in finding.message
    }


def problems(target: Engine | str, **options: Any) -> dict[str, str]:
    everything = not_ok(target, **options).items()
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
    """Return a database whose schema the test may change."""
    execute_sql(empty_url, printed_schema(empty_url.partition(":")[0]))
    engine = create_sync_engine(empty_url)
    yield Database(engine.dialect.name, empty_url, engine)
    engine.dispose()


@cache
def printed_schema(dialect: str) -> str:
    printed = io.StringIO()
    migrate.upgrade_sql(f"{dialect}://", printed)
    return printed.getvalue()


def execute_sql(url: str, sql: str) -> None:
    """Execute a script of several statements."""
    if url.startswith("sqlite"):
        raw = sqlite3.connect(url.removeprefix("sqlite:///"))
        raw.execute("PRAGMA journal_mode = wal")
        raw.executescript(sql)
        raw.close()
    else:
        with psycopg.connect(dsn(url), autocommit=True) as plain:
            plain.execute(sql.encode())


def only(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("empty_url", [kind], indirect=True)


def with_settings(url: str, **settings: str) -> str:
    options = " ".join(f"-c{name}={value}" for name, value in settings.items())
    changed = make_url(url).update_query_dict({"options": options})
    return changed.render_as_string(hide_password=False)


def run(url: str, statements: str) -> None:
    """Execute statements in autocommit: some cannot run in a transaction."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements.split(";;"):
            connection.exec_driver_sql(statement)


# --- correct databases --------------------------------------------------------------------------


def test_doctor_fresh_database_all_ok(own: Database) -> None:
    of_one = SQLITE_SETTINGS if own.name == "sqlite" else [*POSTGRESQL_SETTINGS, *ACTIVITY]
    expected = {"migrated", *SCHEMA_CHECKS, *EXECUTION_CHECKS, *of_one}
    of_engine = {"synchronous"} if own.name == "sqlite" else set()
    for target, checks in ((own.url, expected), (own.engine, expected | of_engine)):
        findings = examine(target, whole=True)
        assert {*findings} == checks
        assert next(iter(findings)) == "migrated"
        assert not_ok(target) == {}
        assert all((each.advice is None) == (each.level == "ok") for each in findings.values())


@pytest.mark.parametrize("whole", [False, True])
def test_doctor_rows_of_library_and_manual_sql_all_ok(own: Database, whole: bool) -> None:
    with connect(own.url) as manager:
        for state in STATES:
            bring_to(manager, state)
        manager.start(manager.retry(bring_to(manager, "timed_out").id).id)
    late = {**RUNNING, "attempts": 3, "max_attempts": 5}
    for n, row in enumerate([ROW, RUNNING, DONE, FAILED, late]):
        insert(own, {**row, "id": f"{ROW['id'][:-1]}{n + 2}"})
    own.run("UPDATE executions SET status = 'cancelled', completed_at = started_at, error = NULL"
            " WHERE status = 'failed'")  # fmt: skip
    bad = not_ok(own.url, whole=whole)
    assert {*bad} == {"history_start"}
    assert bad["history_start"][1].startswith(
        "4 whose history does not begin with pending, the first: "
    )


APPLICATION_OBJECTS = [
    "CREATE INDEX ix_host ON executions (worker)",
    "CREATE VIEW host AS SELECT id, status FROM executions",
    "ALTER TABLE executions ADD COLUMN tenant TEXT CONSTRAINT ck_tenant CHECK (tenant <> '')",
    "CREATE TABLE orders (id INTEGER PRIMARY KEY)",
]


def test_doctor_objects_of_application_ignored(own: Database) -> None:
    trigger = "CREATE TRIGGER host AFTER DELETE ON executions "
    if own.name == "sqlite":
        trigger += "BEGIN DELETE FROM orders; END"
    else:
        trigger += "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        trigger = trigger.replace("AFTER DELETE", "BEFORE UPDATE")
        run(own.url, "CREATE SCHEMA mine")
        run(own.url, EMPTY_FUNCTION.format("mine.execution_core_record_transition()"))
    run(own.url, ";;".join([*APPLICATION_OBJECTS, trigger]))
    assert not_ok(own.url) == {}


def test_doctor_migrated_schema_all_ok(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    assert not_ok(empty_url) == {}


@only("sqlite")
@pytest.mark.parametrize("what", ["TO {}", "COLUMN worker TO {}"])
def test_doctor_table_or_column_renamed_and_back_all_ok(own: Database, what: str) -> None:
    """SQLite quotes a renamed table or column wherever it occurs."""
    aside = what.format("aside")
    run(own.url, f"ALTER TABLE executions RENAME {aside}")
    assert problems(own.url)
    back = "executions" if what == "TO {}" else "worker"
    table = "aside" if what == "TO {}" else "executions"
    run(own.url, f"ALTER TABLE {table} RENAME " + what.replace("worker", "aside").format(back))
    assert not_ok(own.url) == {}


@only("postgresql")
def test_doctor_tables_in_another_schema_follows_search_path(empty_url: str) -> None:
    run(empty_url, "CREATE SCHEMA mine")
    url = with_settings(empty_url, search_path="mine")
    migrate.upgrade(url)
    assert not_ok(url) == {}
    assert {*not_ok(empty_url)} == {"migrated"}
    url = with_settings(empty_url, search_path="public,mine")
    run(url, "DROP TRIGGER execution_core_record_transition ON executions")
    assert {*problems(url)} == {"triggers"}


# --- the schema --------------------------------------------------------------------------------

DISABLED = "is not enforced: its triggers are disabled"

DRIFT = {
    "index dropped": ("DROP INDEX ix_executions_due", {"indexes": "ix_executions_due is missing"}),
    "view dropped": ("DROP VIEW execution_stats", {"views": "execution_stats is missing"}),
    "table dropped": (
        "DROP TABLE execution_history {cascade}",
        {
            "tables": "execution_history is missing",
            "constraints": "fk_execution_history_execution_id is missing",
        },
    ),
    "trigger dropped": (
        "DROP TRIGGER execution_core_record_creation {on}",
        {"triggers": "execution_core_record_creation is missing"},
    ),
    "column dropped": (
        "ALTER TABLE execution_logs DROP COLUMN message",
        {"tables": "execution_logs.message is missing"},
    ),
}

EMPTY_FUNCTION = (
    "CREATE FUNCTION {} RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
)
CHECK_NOT_VALID = (
    "ALTER TABLE executions DROP CONSTRAINT ck_executions_valid;;"
    "ALTER TABLE executions ADD CONSTRAINT ck_executions_valid CHECK (true) NOT VALID"
)

POSTGRESQL_DRIFT = {
    "trigger disabled": (
        "ALTER TABLE executions DISABLE TRIGGER execution_core_record_creation",
        {"triggers": "execution_core_record_creation is disabled"},
    ),
    "trigger for replicas": (
        "ALTER TABLE executions ENABLE REPLICA TRIGGER execution_core_record_creation",
        {"triggers": "execution_core_record_creation fires only on replicas"},
    ),
    "function dropped": (
        "DROP FUNCTION execution_core_in_use(uuid)",
        {"functions": "execution_core_in_use is missing"},
    ),
    "check dropped": (
        "ALTER TABLE executions DROP CONSTRAINT ck_executions_valid",
        {"constraints": "ck_executions_valid is missing"},
    ),
    "check not valid": (CHECK_NOT_VALID, {"constraints": "ck_executions_valid is not valid"}),
    "foreign key disabled": (
        "ALTER TABLE execution_logs DISABLE TRIGGER ALL",
        {"constraints": f"fk_execution_logs_execution_id {DISABLED}"},
    ),
    "unique constraint dropped": (
        "ALTER TABLE executions DROP CONSTRAINT uq_executions_idempotency_key",
        {"constraints": "uq_executions_idempotency_key is missing"},
    ),
    "column of another type": (
        "ALTER TABLE execution_logs ALTER attempt TYPE bigint",
        {"tables": "execution_logs.attempt is bigint NOT NULL, not INTEGER NOT NULL"},
    ),
    "column that accepts null": (
        "ALTER TABLE execution_logs ALTER message DROP NOT NULL",
        {"tables": "execution_logs.message is text, not TEXT NOT NULL"},
    ),
    "table unlogged": (
        "ALTER TABLE execution_logs SET UNLOGGED",
        {"tables": "execution_logs is unlogged: a crash empties it"},
    ),
}


def assert_found(own: Database, statements: str, expected: dict[str, str]) -> None:
    on_postgresql = own.name == "postgresql"
    statements = statements.replace("{cascade}", "CASCADE" if on_postgresql else "")
    statements = statements.replace("{on}", "ON executions" if on_postgresql else "")
    assert not_ok(own.url) == {}
    run(own.url, statements)
    reported = problems(own.url)
    assert {check: reported[check].split("; ")[0] for check in expected} == expected
    dependents = {"views", "indexes"}  # dropped with a table, the views by CASCADE
    assert {*reported} - dependents == {*expected} - dependents
    assert problems(own.engine) == reported


@pytest.mark.parametrize("kind", sampled(list(DRIFT), 3))
def test_doctor_missing_object_is_problem(own: Database, kind: str) -> None:
    assert_found(own, *DRIFT[kind])


@only("postgresql")
@pytest.mark.parametrize("kind", sampled(list(POSTGRESQL_DRIFT), 3))
def test_doctor_postgresql_drift_is_problem(own: Database, kind: str) -> None:
    assert_found(own, *POSTGRESQL_DRIFT[kind])


@only("postgresql")
def test_doctor_failed_concurrent_index_is_invalid(own: Database) -> None:
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
    """Change a table as the documentation of SQLite advises: create it again and copy the rows."""
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
            {"tables": "execution_logs.attempt is TEXT NOT NULL, not INTEGER NOT NULL"},
        ),
        (
            "executions",
            "CONSTRAINT ck_executions_max_attempts_positive CHECK (max_attempts >= 1),",
            "",
            {"constraints": "ck_executions_max_attempts_positive is missing"},
        ),
    ],
)
def test_doctor_sqlite_table_rebuilt_finds_changes(
    own: Database, table: str, old: str, new: str, expected: dict[str, str]
) -> None:
    rebuild(own, table, old, new)
    assert problems(own.url) == expected


def test_doctor_many_problems_message_is_shortened(own: Database) -> None:
    for name in ("due", "type_due", "status_id", "deadline_at", "replay_of", "completed_at"):
        run(own.url, f"DROP INDEX ix_executions_{name}")
    reported = problems(own.url)["indexes"]
    assert reported.count("is missing") == finding.MAX_EXAMPLES
    assert reported.endswith("; and 1 more")


# --- migrations --------------------------------------------------------------------------------


def test_doctor_empty_database_not_migrated(empty_url: str) -> None:
    with create_engine(empty_url, poolclass=NullPool).begin() as connection:
        connection.execute(text("CREATE TABLE orders (id integer)"))
    findings = examine(empty_url)
    assert findings["migrated"].level == "problem"
    assert findings["migrated"].message == "no table executions is visible"
    assert {*SCHEMA_CHECKS, *EXECUTION_CHECKS}.isdisjoint(findings)


def test_doctor_older_revision_not_migrated(own: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this version had one more migration than the database."""
    known = migrate.revisions()
    monkeypatch.setattr(migrate, "revisions", lambda: ["execution_core_9999", *known])
    findings = examine(own.url)
    assert findings["migrated"].level == "problem"
    assert findings["migrated"].message == f"at {known[0]}, before execution_core_9999"
    assert {*SCHEMA_CHECKS, *EXECUTION_CHECKS}.isdisjoint(findings)


def test_doctor_without_version_table_checks_newest_schema(own: Database) -> None:
    """The application's Alembic may keep the revisions in its own version table."""
    own.run("DROP TABLE execution_core_version")
    assert {check: level for check, (level, _) in not_ok(own.url).items()} == {
        "migrated": "warning"
    }
    run(own.url, "DROP VIEW execution_stats")
    assert problems(own.url) == {"views": "execution_stats is missing"}


# --- settings ----------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    # SQLite itself changes the read marks in the -shm file.
    files = (path for path in folder.iterdir() if path.is_file())
    return {path.name: b"" if path.suffix == ".db-shm" else path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["executions.db", "a b?c#d%20é.db"])
@pytest.mark.parametrize("mode", ["delete", "wal", "wal that a crash has left"])
def test_doctor_sqlite_file_is_unchanged(tmp_path: Path, mode: str, name: str) -> None:
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


def test_doctor_missing_file_refused_and_not_created(tmp_path: Path) -> None:
    for name in (f"{tmp_path}/no.db", f"file:{tmp_path}/no.db?uri=true", str(tmp_path)):
        with pytest.raises(InvalidValue, match="names a file that does not exist"):
            doctor.examine(f"sqlite:///{name}")
    assert list(tmp_path.iterdir()) == []


def test_doctor_other_file_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("Dear diary, " * 100)
    with pytest.raises(InvalidValue, match="target cannot be read: file is not a database"):
        doctor.examine(f"sqlite:///{tmp_path}/text.db")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "target must be an Engine or a URL, not NoneType"),
        ("sqlite://", "target is an in-memory database"),
        ("sqlite:///file::memory:?uri=true", "target is an in-memory database"),
        ("mysql://u:secret@h/d", "url must begin with"),
    ],
)
def test_doctor_invalid_target_refused(target: Any, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        doctor.examine(target)
    assert message in str(caught.value)


def test_doctor_invalid_engine_or_duration_refused() -> None:
    with pytest.raises(InvalidValue, match="not AsyncEngine"):
        doctor.examine(create_async_engine("sqlite://"))  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="stalled_after"):
        doctor.examine("sqlite://", stalled_after=timedelta(0))


READS = {"SELECT", "EXPLAIN", "WITH", "PRAGMA", "SET", "SAVEPOINT", "RELEASE", "ROLLBACK"}


def test_doctor_sends_only_reading_statements(own: Database) -> None:
    sent = []

    @event.listens_for(own.engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append((statement.split(maxsplit=1)[0], getattr(cursor.connection, "read_only", None)))

    assert not_ok(own.engine, whole=True) == {}
    assert {verb for verb, _ in sent} <= READS
    if own.name == "postgresql":  # the first SELECT, of the settings, is outside the transaction
        assert sent[0] == ("SELECT", None)
        assert {read_only for _, read_only in sent[1:]} == {True}


@only("sqlite")
def test_doctor_unconfigured_sqlite_engine_is_warning(own: Database) -> None:
    engine = create_engine(own.url, connect_args={"timeout": 0})
    assert not_ok(engine) == {
        "connections": (
            "warning",
            (
                "foreign keys are off;"
                " busy_timeout is 0, so a writer fails while another one writes;"
                " BEGIN IMMEDIATE is not used, so a transaction that reads first can fail"
            ),
        )
    }
    engine.dispose()


@only("sqlite")
def test_doctor_synchronous_normal_is_warning(own: Database) -> None:
    engine = create_engine(own.url, poolclass=StaticPool)
    configure_sqlite(engine)
    with engine.connect() as connection:
        assert not_ok(engine) == {}
    with engine.execution_options(sqlite_begin=None).connect() as connection:
        connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
    assert {*not_ok(engine)} == {"synchronous"}
    engine.dispose()


def test_doctor_in_memory_engine_all_ok() -> None:
    engine = configure_sqlite(create_engine("sqlite://", poolclass=StaticPool))
    migrate.upgrade(engine)
    bring_to(ExecutionManager(SqlExecutionStore(engine)), "timed_out-last")
    assert not_ok(engine, whole=True) == {}
    engine.dispose()


def test_doctor_during_a_write_does_not_wait_and_returns_connections(own: Database) -> None:
    with own.engine.begin() as writer:
        writer.execute(
            text("INSERT INTO executions (id, type) VALUES (:id, 'a')"), {"id": ROW["id"]}
        )
        assert not_ok(own.url) == {}
        assert not_ok(own.engine) == {}
        assert own.engine.pool.checkedout() == 1  # type: ignore[attr-defined]


@contextmanager
def without_the_rights_of_root() -> Iterator[None]:
    """Run as nobody where the tests run as root, whom file modes do not restrict."""
    root = os.geteuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A directory that every user can reach; pytest's own are private to one user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        folder.chmod(0o755)


def make_read_only(file: Path) -> None:
    file.chmod(0o444)
    file.parent.chmod(0o555)


def test_doctor_read_only_file_is_warning(shared_folder: Path) -> None:
    file = shared_folder / "executions.db"
    engine = create_engine(f"sqlite:///{file}", poolclass=NullPool)
    migrate.upgrade(engine)
    make_read_only(file)
    with without_the_rights_of_root():  # the user may be unable to read the migrations
        findings = settings.sqlite_settings(engine, given=False)
    (writable,) = (each for each in findings if each.check == "writable")
    assert writable.level == "warning"
    assert writable.message == f"{file} is not writable; {shared_folder} is not writable"


def test_doctor_unreadable_wal_file_refused(shared_folder: Path) -> None:
    """SQLite must create files to read a WAL database that no process has open."""
    file = shared_folder / "executions.db"
    migrate.upgrade(f"sqlite:///{file}")
    make_read_only(file)
    with without_the_rights_of_root(), pytest.raises(InvalidValue, match="and of its directory"):
        doctor.examine(f"sqlite:///{file}")


@only("postgresql")
@pytest.mark.parametrize(
    ("settings", "check", "level", "message"),
    [
        ({"default_transaction_isolation": "serializable"}, "transaction_isolation", "warning",
         "serializable: concurrent calls raise serialization failures"),
        ({"synchronous_commit": "off"}, "synchronous_commit", "warning",
         "off: a crash (off) or a failover"),
        ({"synchronous_commit": "local"}, "synchronous_commit", "warning",
         "local: a crash (off) or a failover"),
        ({"default_transaction_read_only": "on"}, "transaction_read_only", "warning",
         "on: this is a standby, or default_transaction_read_only is on"),
        ({"session_replication_role": "replica"}, "session_replication_role", "problem",
         "replica: triggers do not fire, so no history is written"),
    ],
)  # fmt: skip
def test_doctor_postgresql_settings_are_checked(
    own: Database, settings: dict[str, str], check: str, level: str, message: str
) -> None:
    assert check not in not_ok(own.url)
    bad = not_ok(with_settings(own.url, **settings))
    assert {*bad} == {check}
    assert bad[check][0] == level
    assert bad[check][1].startswith(message)


@only("postgresql")
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"])
def test_doctor_isolation_of_engine_is_checked_and_kept(own: Database, level: str) -> None:
    engine = create_engine(own.url, isolation_level=level)
    assert {*not_ok(engine)} == (set() if level == "AUTOCOMMIT" else {"transaction_isolation"})
    with engine.connect() as connection:  # the engine still writes
        connection.execute(
            text("INSERT INTO executions (id, type) VALUES (gen_random_uuid(), 'a')")
        )
        assert connection.get_isolation_level() == (
            "READ COMMITTED" if level == "AUTOCOMMIT" else level
        )
    engine.dispose()


@only("postgresql")
def test_doctor_fsync_and_full_page_writes_are_checked(own: Database) -> None:
    findings = examine(own.url)
    for setting in UNSAFE_FOR_SPEED:
        on = own.rows(f"SHOW {setting}")[0][setting] == "on"
        assert findings[setting].level == ("ok" if on else "warning")


# --- activity and rights in PostgreSQL ---------------------------------------------------------


@pytest.fixture
def reader(own: Database) -> Iterator[str]:
    """Return the URL of a role without any rights."""
    name = f"doctor_reader_{os.getpid()}"
    own.run(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    changed = make_url(own.url).set(username=name, password="secret")
    yield changed.render_as_string(hide_password=False)
    own.run(f"DROP OWNED BY {name}")
    own.run(f"DROP ROLE {name}")


@only("postgresql")
def test_doctor_role_without_rights_gets_warnings(own: Database, reader: str) -> None:
    bad = not_ok(reader)
    assert {check: level for check, (level, _) in bad.items()} == dict.fromkeys(
        ["migrated", *EXECUTION_CHECKS], "warning"
    )
    denied = "could not be checked: permission denied for table "
    assert bad["migrated"][1] == denied + "execution_core_version"
    assert bad["overdue"][1] == denied + "executions"
    assert "GRANT SELECT" in str(examine(reader)["history"].advice)
    role = make_url(reader).username
    own.run(f"GRANT SELECT ON executions, execution_core_version TO {role}")
    bad = not_ok(reader)
    assert {*bad} == {"attention", "history", "history_start"}
    assert bad["history"][1] == denied + "execution_history"
    run(own.url, "ALTER TABLE executions DISABLE TRIGGER execution_core_record_transition")
    assert {*problems(reader)} == {"triggers"}
    own.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    assert {*not_ok(reader)} == {"triggers"}
    own.run("REVOKE USAGE ON SCHEMA public FROM public")
    assert {*not_ok(reader)} == {"migrated"}
    assert "USAGE on the schema" in str(examine(reader)["migrated"].advice)


@only("postgresql")
def test_doctor_row_level_security_is_warning(own: Database, reader: str) -> None:
    """Doctor must not report on a part of the rows."""
    own.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {make_url(reader).username}")
    assert not_ok(reader) == {}
    run(own.url, "ALTER TABLE executions ENABLE ROW LEVEL SECURITY")
    assert {"overdue", "history"} < {*not_ok(reader)}
    assert "row-level security" in not_ok(reader)["overdue"][1]


@only("postgresql")
def test_doctor_idle_transaction_with_lock_is_warning(own: Database) -> None:
    moment = timedelta(milliseconds=1)
    with own.engine.connect() as forgotten:
        forgotten.execute(text("SELECT set_config('application_name', 'forgetful', false)"))
        pid = forgotten.execute(text("SELECT pg_backend_pid()")).scalar_one()
        forgotten.execute(text("SELECT count(*) FROM pg_class"))
        assert not_ok(own.url, stalled_after=moment) == {}  # it locks none of the tables
        forgotten.execute(text("SELECT * FROM executions FOR UPDATE"))
        bad = not_ok(own.url, stalled_after=moment)
        assert {*bad} == {"idle_transactions"}
        assert bad["idle_transactions"][1].startswith(
            f"{pid} ({own.engine.url.username}, forgetful) since 20"
        )
        assert not_ok(own.url) == {}  # one hour is allowed


@only("postgresql")
def test_doctor_locked_table_does_not_wait(own: Database) -> None:
    with own.engine.connect() as migrating:
        migrating.execute(text("LOCK execution_history"))
        bad = not_ok(own.url)
    assert {check: level for check, (level, _) in bad.items()} == dict.fromkeys(
        ["history", "history_start"], "warning"
    )
    assert "lock timeout" in bad["history"][1]


@only("postgresql")
def test_doctor_outdated_statistics_are_warning(own: Database) -> None:
    for table in ("executions", "execution_history"):
        own.run(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    pending = "INSERT INTO executions (id, type) SELECT gen_random_uuid(), 'a' FROM"
    pending += " generate_series(1, {})"
    run(own.url, pending.format(settings.MANY_ROWS - 1))
    wait_for_statistics(own, "n_live_tup", settings.MANY_ROWS - 1)
    assert not_ok(own.url) == {}
    run(own.url, pending.format(1))
    wait_for_statistics(own, "n_live_tup", settings.MANY_ROWS)
    bad = not_ok(own.url)
    assert {*bad} == {"statistics"}
    assert "executions: 10000 rows, never analyzed" in bad["statistics"][1]
    run(own.url, "ANALYZE executions;;ANALYZE execution_history")
    assert not_ok(own.url) == {}
    run(own.url, ";;".join(["UPDATE executions SET type = type || 'a'"] * 2))
    wait_for_statistics(own, "n_dead_tup", 2 * settings.MANY_ROWS)
    assert not_ok(own.url) == {"statistics": ("warning", "executions: 10000 rows, 20000 dead rows")}
    run(own.url, "VACUUM executions")
    assert not_ok(own.url) == {}


def wait_for_statistics(database: Database, figure: str, at_least: int) -> None:
    """PostgreSQL reports the statistics of a session when it ends, or soon after."""
    limit = time.monotonic() + 60
    query = f"SELECT {figure} AS n FROM pg_stat_user_tables WHERE relname = 'executions'"
    while database.rows(query)[0]["n"] < at_least:
        assert time.monotonic() < limit
        time.sleep(0.02)


# --- executions --------------------------------------------------------------------------------


def at(database: Database, **ago: float) -> ExecutionManager:
    """Return a manager whose clock is in the past."""
    then = datetime.now(UTC) - timedelta(**ago)
    return ExecutionManager(SqlExecutionStore(database.engine, clock=lambda: then))


def test_doctor_overdue_execution_is_problem(own: Database) -> None:
    started = {}
    for minutes, timeout in ((9, 30), (8, 1), (7, 2), (6, None)):
        manager = at(own, minutes=minutes)
        limit = None if timeout is None else timedelta(minutes=timeout)
        job = manager.create("import", timeout=limit, max_attempts=2)
        started[minutes] = manager.start(job.id, worker=f"host-{minutes}")
    oldest = started[8]
    assert not_ok(own.url) == {
        "overdue": (
            "problem",
            (
                f"2 found, the oldest since {oldest.deadline_at:%Y-%m-%d %H:%M:%S} UTC:"
                f" {oldest.id} (import, host-8)"
            ),
        )
    }
    with connect(own.url) as now:
        assert {each.id for each in now.sweep()} == {oldest.id, started[7].id}
    assert not_ok(own.url) == {}


def test_doctor_stalled_execution_is_problem(own: Database) -> None:
    silent = at(own, hours=2).create("import")
    at(own, hours=2).start(silent.id)
    alive = at(own, hours=2).create("import")
    at(own, hours=2).start(alive.id, worker="host")
    at(own, minutes=10).heartbeat(alive.id)
    bad = not_ok(own.url)
    assert {*bad} == {"stalled"}
    assert bad["stalled"][0] == "problem"
    assert bad["stalled"][1].startswith("1 found, the oldest since 20")
    assert bad["stalled"][1].endswith(f" UTC: {silent.id} (import)")
    minutes = timedelta(minutes=5)
    assert not_ok(own.url, stalled_after=minutes)["stalled"][1].startswith(
        "2 found, the oldest since"
    )
    with connect(own.url) as now:
        assert len(now.sweep(stalled_after=minutes)) == 2
    assert not_ok(own.url, stalled_after=minutes) == {}


def test_doctor_unclaimed_execution_is_warning(own: Database) -> None:
    old = at(own, hours=3)
    forgotten = old.create("mail")
    old.create("later", start_after=timedelta(hours=2, minutes=30))
    retrying = old.start(old.create("a", max_attempts=2).id)
    old.fail(retrying.id, "no", retryable=True, retry_after=timedelta(minutes=30))
    bad = not_ok(own.url)
    assert {*bad} == {"unclaimed"}
    level, message = bad["unclaimed"]
    assert level == "warning"
    assert message == (
        f"2 found, the oldest since {forgotten.created_at:%Y-%m-%d %H:%M:%S} UTC:"
        f" {forgotten.id} (mail)"
    )
    with connect(own.url) as now:
        assert len(now.claim(limit=2)) == 2
    assert not_ok(own.url) == {}


# --- history -----------------------------------------------------------------------------------

DELETE = "DELETE FROM execution_history WHERE execution_id = :id"
UPDATE = "UPDATE execution_history SET {} WHERE execution_id = :id AND seq = {}"
GAPS = {
    "a transition in the middle": f"{DELETE} AND seq = 2",
    "the first transition": f"{DELETE} AND seq = 1",
    "the last transition": f"{DELETE} AND seq = 5",
    "all transitions": DELETE,
    "the last attempt": f"{DELETE} AND seq IN (4, 5)",
    "another from_status": UPDATE.format("from_status = 'pending'", 3),
    "a from_status of the first": UPDATE.format("from_status = 'failed'", 1),
    "no from_status": UPDATE.format("from_status = NULL", 4),
    "another to_status": UPDATE.format("to_status = 'cancelled'", 5),
    "another seq": UPDATE.format("seq = 7", 5),
}


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.slow
def test_doctor_gap_in_history_is_problem(own: Database, gap: str) -> None:
    with connect(own.url) as manager:
        hurt, sound = (bring_to(manager, "failed-last") for _ in range(2))
    assert not_ok(own.url) == {}
    own.run(GAPS[gap].replace(":id", "CAST(:id AS uuid)" if own.name != "sqlite" else ":id"),
            id=hurt.id)  # fmt: skip
    for whole in (False, True):
        assert not_ok(own.url, whole=whole) == {
            "history": ("problem", f"1 with a gap or a wrong last transition, the first: {hurt.id}")
        }
    assert sound.id not in not_ok(own.url)["history"][1]


def test_doctor_transition_without_trigger_is_problem(own: Database) -> None:
    """It is found even if the status is the same afterwards, by the number of attempts."""
    table = "" if own.name == "sqlite" else " ON executions"
    with connect(own.url) as manager:
        job = manager.start(manager.create("a", max_attempts=2).id)
        ((made,),) = [tuple(row.values()) for row in own.rows(
            "SELECT sql FROM sqlite_master WHERE name = 'execution_core_record_transition'"
            if own.name == "sqlite"
            else "SELECT pg_get_triggerdef(oid) FROM pg_trigger"
            " WHERE tgname = 'execution_core_record_transition'"
        )]  # fmt: skip
        run(own.url, f"DROP TRIGGER execution_core_record_transition{table}")
        manager.fail(job.id, "no", retryable=True)
        manager.start(job.id)
        run(own.url, made)
        assert {*problems(own.url)} == {"history"}


def test_doctor_history_checks_live_and_newest_or_all(
    own: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_checks, "NEWEST", 20)
    with connect(own.url) as manager:
        done, live = (bring_to(manager, state) for state in ("completed", "pending"))
    with connect(own.url) as manager:
        for _ in range(20):
            manager.cancel(manager.create("a").id)
    own.run("DELETE FROM execution_history WHERE to_status = 'completed'")
    assert not_ok(own.url) == {}
    assert done.id in not_ok(own.url, whole=True)["history"][1]
    own.run("DELETE FROM execution_history WHERE execution_id = (SELECT id FROM executions"
            " WHERE status = 'pending')")  # fmt: skip
    assert live.id in not_ok(own.url)["history"][1]
    own.run("DELETE FROM execution_history WHERE to_status = 'cancelled'")
    assert not_ok(own.url)["history"][1].startswith("21 with a gap")


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["doctor", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


Call = Callable[..., tuple[int, str, str]]


def test_doctor_command_prints_findings_and_exits_1_on_problem(own: Database, call: Call) -> None:
    code, out, err = call("--url", own.url)
    assert (code, err) == (0, "")
    findings = examine(own.url)
    assert [line.split()[:2] for line in out.splitlines() if line[0] != " "] == [
        [each.level, f"{each.check}:"] for each in findings.values()
    ]
    run(own.url, "DROP VIEW execution_stats")
    code, out, err = call("--url", own.url)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    reported = lines.index("problem  views: execution_stats is missing")
    assert lines[reported + 1] == f"         {examine(own.url)['views'].advice}"


def test_doctor_command_json_prints_one_document(own: Database, call: Call) -> None:
    forgotten = at(own, minutes=5).create("a")
    code, out, _ = call("--json", "--url", own.url, "--stalled-after", "2m")
    assert code == 0  # warnings do not change the exit code
    document = json.loads(out)
    assert {*document} == {"database", "findings"}
    assert document["database"] == own.url.replace("+psycopg", "")
    by_check = {each["check"]: each for each in document["findings"]}
    assert all({*each} == {"check", "level", "message", "advice"} for each in by_check.values())
    assert by_check["migrated"]["advice"] is None
    assert by_check["unclaimed"]["level"] == "warning"
    assert forgotten.id in by_check["unclaimed"]["message"]


def test_doctor_command_all_checks_every_history(own: Database, call: Call) -> None:
    _, out, _ = call("--url", own.url)
    assert f"history: complete, for the live and the newest {execution_checks.NEWEST:,} ex" in out
    _, out, _ = call("--url", own.url, "--all")
    assert "history: complete, for every execution" in out


def test_doctor_command_missing_file_not_created(tmp_path: Path, call: Call) -> None:
    code, out, err = call("--url", f"sqlite:///{tmp_path}/no.db")
    assert (code, out) == (1, "")
    assert "names a file that does not exist" in err
    assert list(tmp_path.iterdir()) == []


@only("postgresql")
def test_doctor_command_hides_password(own: Database, reader: str, call: Call) -> None:
    for arguments in ((), ("--json",)):
        code, out, err = call("--url", reader, *arguments)
        assert code == 0
        assert "secret" not in out + err
    code, out, err = call("--url", "postgresql://u:secret@127.0.0.1:1/d")
    assert (code, out) == (1, "")
    assert "secret" not in err
