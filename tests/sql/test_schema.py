"""The schema: which rows are legal, the history that triggers write, and the views."""

import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    CheckConstraint,
    DateTime,
    bindparam,
    create_engine,
    inspect,
    text,
)
from sqlalchemy.exc import IntegrityError

from execution_core import (
    ExecutionManager,
    InvalidStateTransition,
    SqlExecutionStore,
    connect,
)
from execution_core.sql.driver.engine import create_sync_engine
from execution_core.sql.schema.indexes import metadata

from ..conftest import Database
from ..support.rows import DONE, FAILED, ID, OTHER, ROW, RUNNING, insert
from ..support.states import STATES, bring_to

# --- legal rows -------------------------------------------------------------------------------


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
        "completed_at": "2026-01-01 00:00:01.000000",
    },
    "started_at_when_started ": {**ROW, "started_at": "2026-01-01 00:00:00.000000"},
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
    "completed_at_when_finished": {**DONE, "completed_at": None},
    "completed_at_when_finished ": {**RUNNING, "completed_at": "2026-01-01 00:00:01.000000"},
    "error_fits_status": {**FAILED, "error": None},
    "error_fits_status ": {**DONE, "error": '{"message": "no"}'},
    "error_has_message": {**FAILED, "error": '{"code": "no"}'},
    "error_has_message ": {**FAILED, "error": '"text"'},
    "error_has_message  ": {**FAILED, "error": '{"message": 5}'},
    "result_when_completed": {**RUNNING, "result": "1"},
    "attempts_fit_status  ": {**RUNNING, "status": "retrying"},
    "deadline_at_when_limited": {**ROW, "deadline_at": "2026-01-01 00:00:01.000000"},
    "deadline_at_when_limited ": {**RUNNING, "timeout_ms": 1000},
    "worker_length": {**ROW, "worker": ""},
    "created_at_in_calendar": {**ROW, "created_at": "0001-01-01 00:00:00.000000"},
    "updated_at_in_calendar": {**ROW, "updated_at": "0001-01-01 00:00:00.000000"},
    "started_at_in_calendar": {**RUNNING, "started_at": "0001-01-01 00:00:00.000000"},
    "completed_at_in_calendar": {**DONE, "completed_at": "0001-01-01 00:00:00.000000"},
    "deadline_at_in_calendar": {
        **RUNNING,
        "timeout_ms": 1,
        "deadline_at": "0001-01-01 00:00:00.000000",
    },
    "due_at_when_waiting": {**ROW, "due_at": None},
    "due_at_when_waiting ": {**RUNNING, "status": "retrying", "max_attempts": 2},
    "timeout_positive": {**ROW, "timeout_ms": 0},
    "type_length": {**ROW, "type": ""},
    "type_length ": {**ROW, "type": "x" * 256},
    "idempotency_key_length": {**ROW, "idempotency_key": ""},
    "fingerprint_of_key": {**ROW, "fingerprint": "f"},
    "parent_is_another": {**ROW, "parent_id": ID},
    "replay_of_another": {**ROW, "replay_of": ID},
    "heartbeat_at_in_calendar": {**RUNNING, "heartbeat_at": "0001-01-01 00:00:00.000000"},
    "due_at_in_calendar": {**ROW, "due_at": "0001-01-01 00:00:00.000000"},
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


@pytest.mark.parametrize("constraint", ILLEGAL)
def test_check_rejects_illegal_row(database: Database, constraint: str) -> None:
    with pytest.raises(IntegrityError, match=f"ck_executions_{constraint.strip()}"):
        insert(database, ILLEGAL[constraint])
    assert database.rows("SELECT * FROM execution_history") == []


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_check_error_names_constraint_and_hides_values(database: Database) -> None:
    with pytest.raises(IntegrityError) as caught:
        insert(database, {**ROW, "type": "", "payload": '"secret"'})
    error: Any = caught.value.orig
    assert error.diag.constraint_name == "ck_executions_type_length"
    assert error.diag.table_name == "executions"
    assert error.diag.message_primary == (
        f"Cannot write execution {ID}:"
        ' the row violates check constraint "ck_executions_type_length"'
    )
    assert "secret" not in str(error)


ILLEGAL_ON_SQLITE = {
    "id_is_uuid": {**ROW, "id": "my-job"},
    "id_is_uuid ": {**ROW, "id": ID.upper()},
    "integers_are_integers": {**ROW, "max_attempts": "many"},
    "integers_are_integers ": {**ROW, "timeout_ms": "30s"},
    "integers_are_integers  ": {**RUNNING, "max_attempts": 2.5},
    "payload_is_json": {**ROW, "payload": "{"},
    "result_is_json": {**DONE, "result": "{"},
    "created_at_in_calendar ": {**ROW, "created_at": "yesterday"},
    "created_at_in_calendar  ": {**ROW, "created_at": "2026-01-01T00:00:00.000Z"},
    "updated_at_in_calendar  ": {**ROW, "updated_at": 1700000000},
    "updated_at_in_calendar   ": {**ROW, "updated_at": "2026-13-01 00:00:00.000000"},
    "heartbeat_at_in_calendar ": {**ROW, "heartbeat_at": "2026-13-01 00:00:00.000000"},
    "due_at_in_calendar ": {**ROW, "due_at": "soon"},
    "due_at_in_calendar  ": {**ROW, "due_at": "2026-02-30 00:00:00.000000"},
    "due_at_in_calendar   ": {**ROW, "due_at": "2026-01-01 24:00:00.000000"},
    "due_at_in_calendar    ": {**ROW, "due_at": "0000-06-01 00:00:00.000000"},
    "due_at_in_calendar     ": {**ROW, "due_at": "9999-12-31 00:00:00.000000"},
    "due_at_in_calendar      ": {**ROW, "due_at": "2026-01-01 00:00:00.000"},
    "due_at_in_calendar       ": {**ROW, "due_at": "2026-01-01 00:00"},
    "heartbeat_at_in_calendar  ": {**ROW, "heartbeat_at": 1700000000},
}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("constraint", ILLEGAL_ON_SQLITE)
def test_check_on_sqlite_rejects_wrong_types(database: Database, constraint: str) -> None:
    with pytest.raises(IntegrityError, match=f"ck_executions_{constraint.strip()}"):
        insert(database, ILLEGAL_ON_SQLITE[constraint])


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("time", ["infinity", "-infinity", "0044-03-15 BC"])
def test_check_rejects_times_that_python_cannot_read(database: Database, time: str) -> None:
    with pytest.raises(IntegrityError, match="ck_executions_created_at_in_calendar"):
        insert(database, {**ROW, "created_at": time})


ENTRY: dict[str, Any] = {"execution_id": ID, "id": OTHER, "attempt": 0, "message": "m"}
ILLEGAL_ENTRIES = {
    "level_known": {**ENTRY, "level": "loud"},
    "attempt_counted": {**ENTRY, "attempt": -1},
}
ILLEGAL_ENTRIES_ON_SQLITE = {
    "id_is_uuid": {**ENTRY, "id": "my-entry"},
    "data_is_json": {**ENTRY, "data": "{"},
    "logged_at_in_calendar": {**ENTRY, "logged_at": "2026-02-30 00:00:00.000000"},
    "logged_at_in_calendar ": {**ENTRY, "logged_at": "2026-01-01T00:00:00.000Z"},
}


def test_check_rejects_illegal_log_entry(database: Database) -> None:
    insert(database, ROW)
    illegal = ILLEGAL_ENTRIES | (ILLEGAL_ENTRIES_ON_SQLITE if database.name == "sqlite" else {})
    for constraint, entry in illegal.items():
        with pytest.raises(IntegrityError, match=f"ck_execution_logs_{constraint.strip()}"):
            insert(database, entry, "execution_logs")
    assert database.rows("SELECT * FROM execution_logs") == []


def test_manual_insert_of_log_entry_is_readable(database: Database) -> None:
    insert(database, ROW)
    insert(database, ENTRY, "execution_logs")
    with connect(database.url) as manager:
        (entry,) = manager.logs(ID)
    assert (entry.id, entry.level, entry.message, entry.data) == (OTHER, "info", "m", None)
    assert abs(entry.logged_at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("table", "tried"),
    [
        ("executions", {*ILLEGAL, *ILLEGAL_ON_SQLITE}),
        ("execution_logs", {*ILLEGAL_ENTRIES, *ILLEGAL_ENTRIES_ON_SQLITE}),
    ],
)
def test_check_constraints_all_have_a_case(table: str, tried: set[str]) -> None:
    checks = [c for c in metadata.tables[table].constraints if isinstance(c, CheckConstraint)]
    # ck_executions_valid calls the function that names the others on PostgreSQL.
    names = {str(c.name) for c in checks} - {"ck_executions_valid"}
    assert names == {f"ck_{table}_{name.strip()}" for name in tried}


@pytest.mark.parametrize(
    "row", [ROW, RUNNING, DONE, FAILED], ids=["pending", "running", "done", "failed"]
)
def test_manual_insert_of_legal_row_is_readable(database: Database, row: dict[str, Any]) -> None:
    insert(database, row)
    with connect(database.url) as manager:
        read = manager.get(ID)
    assert read.status == row.get("status", "pending")
    assert abs(read.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert (read.metadata, read.checkpoints, read.max_attempts) == ({}, {}, 1)


def test_idempotency_key_is_unique_for_manual_inserts(database: Database) -> None:
    insert(database, {**ROW, "idempotency_key": "k"})
    with pytest.raises(IntegrityError):
        insert(database, {**ROW, "id": OTHER, "idempotency_key": "k"})


# --- history and views -------------------------------------------------------------------------


def test_history_records_every_transition(database: Database, manager: ExecutionManager) -> None:
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


def test_history_records_manual_updates(database: Database, manager: ExecutionManager) -> None:
    ids = [manager.create("a").id for _ in range(3)]
    now = (
        "statement_timestamp()"
        if database.name == "postgresql"
        else "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
    )
    database.run("UPDATE executions SET progress_message = NULL")
    database.run("UPDATE executions SET status = status")
    database.run(
        "UPDATE executions SET status = 'running', attempts = 1, worker = 'psql', due_at = NULL,"
        f" started_at = {now}"
    )
    database.run(
        f"UPDATE executions SET status = 'cancelled', completed_at = {now},"
        ' metadata = \'{"cancellation_reason": "enough"}\''
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
        assert rows[-1]["reason"] == "enough"
        # updated_at is unchanged; the history has the true times nevertheless.
        times = [str(r["occurred_at"]) for r in rows]
        assert times == sorted(times)
        assert times[1] > str(rows[0]["occurred_at"])
        assert manager.get(id).worker == "psql"


def test_views_compute_durations(database: Database) -> None:
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


def test_views_show_running_executions(database: Database, manager: ExecutionManager) -> None:
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
    " updated_at started_at completed_at deadline_at heartbeat_at duration_seconds"
    " idempotency_key parent_id replay_of silent_seconds due_at due_seconds",
    "execution_attempts": "execution_id type attempt worker started_at ended_at duration_seconds"
    " outcome error error_code error_message",
    "execution_timeline": "execution_id type seq from_status to_status attempt occurred_at"
    " seconds_since_last worker reason error error_code error_message actor",
    "execution_stats": "type status count oldest_created_at average_seconds longest_seconds",
    "overdue_executions": "execution_id type attempt worker started_at deadline_at overdue_seconds",
    "execution_history": "execution_id seq from_status to_status attempt occurred_at worker reason"
    " error write_token actor",
    "executions_needing_attention": "execution_id type status reason action since_at since_seconds"
    " attempts max_attempts worker idempotency_key error_code error_message",
    "execution_children": "parent_id total finished percent pending running completed failed"
    " retrying timed_out cancelled",
    "execution_logs": "execution_id id attempt logged_at level message data",
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_and_tables_have_documented_columns(database: Database, name: str) -> None:
    columns = [column["name"] for column in inspect(database.engine).get_columns(name)]
    assert columns == VIEWS[name].split()


def test_stats_view_computes_average_and_longest(database: Database) -> None:
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


def test_history_reason_only_for_cancellations(
    database: Database, manager: ExecutionManager
) -> None:
    id = manager.create("a", metadata={"cancellation_reason": "not yet"}).id
    manager.start(id)
    manager.cancel(id)
    reasons = database.rows("SELECT reason FROM execution_history ORDER BY seq")
    assert [row["reason"] for row in reasons] == [None, None, "not yet"]


def test_attempts_view_names_worker_that_started(
    database: Database, manager: ExecutionManager
) -> None:
    id = manager.create("a").id
    manager.start(id, worker="one")
    database.run("UPDATE executions SET worker = 'another'")
    manager.complete(id)
    (attempt,) = database.rows("SELECT worker FROM execution_attempts")
    assert attempt["worker"] == "one"


def test_engine_new_sqlite_file_waits_for_writer_before_wal(tmp_path: Path) -> None:
    """As when several processes open a new file: SQLite itself does not wait then."""
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


def test_delete_without_foreign_keys_removes_dependents(database: Database) -> None:
    engine = create_engine(database.url)  # SQLite's default: foreign keys are off
    manager = ExecutionManager(SqlExecutionStore(engine))
    parent = manager.create("a")
    child = manager.create("b", parent_id=parent.id)
    manager.delete(parent.id)
    assert manager.get(child.id).parent_id is None
    assert len(database.rows("SELECT * FROM execution_history")) == 1
    engine.dispose()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_history_recorded_with_any_search_path(
    database: Database, manager: ExecutionManager
) -> None:
    manager.create("a")
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL search_path TO pg_catalog"))
        connection.execute(
            text("UPDATE public.executions SET status = 'cancelled', completed_at = now()")
        )
    assert len(database.rows("SELECT * FROM execution_history")) == 2


@pytest.mark.parametrize("state", STATES)
def test_times_and_json_readable_in_plain_sql(
    database: Database, manager: ExecutionManager, state: str
) -> None:
    execution = bring_to(manager, state)
    (row,) = database.rows(
        "SELECT id, status, payload ->> 'n' AS n, created_at FROM executions WHERE id = :id",
        id=execution.id,
    )
    assert (str(row["id"]), row["status"], str(row["n"])) == (execution.id, execution.status, "1")
    if database.name == "sqlite":
        assert row["created_at"] == f"{execution.created_at:%Y-%m-%d %H:%M:%S.%f}"
        (date,) = database.rows("SELECT datetime(created_at) AS d FROM executions")
        assert date["d"] == f"{execution.created_at:%Y-%m-%d %H:%M:%S}"
    else:
        assert row["created_at"] == execution.created_at


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_history_not_diverted_by_temporary_table(
    database: Database, manager: ExecutionManager
) -> None:
    """A temporary table comes first in any search_path; the trigger names the schema."""
    id = manager.create("a").id
    with database.engine.begin() as connection:
        connection.execute(
            text("CREATE TEMPORARY TABLE execution_history (LIKE execution_history)")
        )
        connection.execute(text("UPDATE executions SET status = 'cancelled', completed_at = now()"))
        connection.execute(text("DROP TABLE pg_temp.execution_history"))
    assert database.history(id) == [(None, "pending"), ("pending", "cancelled")]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_times_compare_with_sqlite_date_functions(
    database: Database, manager: ExecutionManager
) -> None:
    """Filters written with datetime(), or bound by SQLAlchemy's own DateTime, are correct."""
    hours_ago = datetime.now(UTC) - timedelta(hours=5)
    old = ExecutionManager(SqlExecutionStore(database.engine, clock=lambda: hours_ago)).create("a")
    new = manager.create("a")
    recent = "SELECT id FROM executions WHERE created_at > datetime('now', '-3 hours')"
    assert [row["id"] for row in database.rows(recent)] == [new.id]
    before = "SELECT id FROM executions WHERE created_at < :time"
    bound = text(before).bindparams(
        bindparam("time", datetime.now() - timedelta(hours=3), DateTime)
    )
    with database.engine.connect() as connection:
        naive = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=3)
        found = connection.execute(bound, {"time": naive}).scalars().all()
    assert found == [old.id]
