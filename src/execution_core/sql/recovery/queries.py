"""Queries for what a write leaves in the database, used by `verify_commit`."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    func,
    select,
    text,
)

from ...core.models import ExecutionStatus
from ...core.state_machine import FINISHED, Rule
from ...core.transitions import Transition
from ..driver.session import MICROSECONDS, Backend
from ..schema.expressions import database_now
from ..schema.tables import execution_history, execution_logs, executions
from ..statements.many_rows import ManyRowsStatement, row_source
from ..statements.queries import Query
from ..statements.rows import FIELDS, LOG_ROW, ROW
from ..statements.transition_sql import status_literal

ENDED: Final = "ended"
WAITS: Final = "waits for a standby"
STILL_ENDING: Final = "still ending"
_END_BACKEND: Final = (
    text(f"""
    SELECT CASE
           WHEN {MICROSECONDS.format("pg_postmaster_start_time()")} <> :server_started
           THEN 'another server'
           WHEN other.pid IS NULL THEN '{ENDED}'
           WHEN other.backend_start IS NULL THEN 'hidden from this role'
           WHEN {MICROSECONDS.format("other.backend_start")} <> :started THEN '{ENDED}'
           WHEN other.wait_event = 'SyncRep' THEN '{WAITS}'
           WHEN pg_terminate_backend(other.pid, 5000) THEN '{ENDED}'
           ELSE '{STILL_ENDING}'
           END
      FROM (SELECT pg_sleep(:seconds)) AS slept
      LEFT JOIN pg_stat_get_activity(:number) AS other ON true
    """)  # noqa: S608 - constants
    .bindparams(
        bindparam("number", type_=Integer),
        bindparam("started", type_=BigInteger),
        bindparam("server_started", type_=BigInteger),
        bindparam("seconds", type_=Float),
    )
    .columns(state=Text)
)
# A transaction with a record in the WAL waits for the standby, and so for all records before it.
_WAIT_FOR_STANDBY: Final = text("""
    SELECT CASE
           WHEN current_setting('synchronous_standby_names') <> ''
            AND current_setting('synchronous_commit') NOT IN ('off', 'local')
           THEN CAST(pg_logical_emit_message(true, 'execution_core', '') AS text)
           END
    """).columns(position=Text)

# The columns of a row that the history stores for each transition.
_HISTORY_COLUMNS = {
    "status": "to_status",
    "attempts": "attempt",
    "updated_at": "occurred_at",
    "worker": "worker",
    "error": "error",
}


def find_write(id: str, token: str) -> Query:
    """Select an execution and the history row of a write to it, for `row_after_write`."""
    return Query(_find_write(), {"id": id, "token": token}, "get", id)


def find_writes(ids: Iterable[str], token: str) -> Query:
    """Select executions, each with the history row of one write to all, for `row_after_write`."""
    statement, rows = _find_writes()
    given = rows.encode({"id": id} for id in ids)
    return Query(statement, {"rows": given, "token": token}, "get")


def row_after_write(
    row: Sequence[Any], transition: Transition, token: str
) -> tuple[Sequence[Any], bool, datetime]:
    """Return an execution's row, whether the write with this token committed, and the time.

    If a later transition changed the row, it is built again from what the write left in the
    history. Progress, checkpoints and metadata are those of the row.
    """
    current, now, last_token, is_last, started, *logged = [*row[: len(ROW)]], *row[len(ROW) :]
    if logged[0] is None:
        return current, last_token == token, now
    if not is_last:
        fields = dict(zip(FIELDS, current, strict=False))
        written = dict(zip(_HISTORY_COLUMNS, logged, strict=True))
        at, status, delay = written["updated_at"], written["status"], None
        if status == ExecutionStatus.RETRYING:
            delay = transition.values.get("retry_after") or timedelta(0)
        written |= {
            "result": fields["result"] if status == ExecutionStatus.COMPLETED else None,
            "completed_at": at if status in FINISHED else None,
            "due_at": None if delay is None else at + delay,
        }
        if fields["attempts"] != written["attempts"]:
            timeout = fields["timeout"]
            deadline = None if timeout is None else started + timedelta(milliseconds=timeout)
            written |= {"started_at": started, "heartbeat_at": started, "deadline_at": deadline}
        current[: len(FIELDS)] = (fields | written).values()
    return current, True, now


def find_batch_write(token: str, rule: Rule) -> Query:
    """Select the executions that one batch changed, for `row_if_unchanged`."""
    return Query(_find_batch_write(rule), {"token": token}, "get")


def row_if_unchanged(row: Sequence[Any]) -> Sequence[Any] | None:
    """Return an execution's row, or None if others changed its status or attempt since."""
    current, written = row[: len(ROW)], [*row[len(ROW) :]]
    unchanged = written == [current[FIELDS.index(field)] for field in ("status", "attempts")]
    return current if unchanged else None


def find_log_entry(execution_id: str, id: str) -> Query:
    """Select the log entry with this id."""
    parameters = {"execution_id": execution_id, "id": id}
    return Query(_find_log_entry(), parameters, "get", execution_id)


def end_backend(backend: Backend, seconds: float) -> Query:
    """Select whether a server process has ended, after `seconds`; terminate it if it has not.

    Only the process that started at this time, under a server that started at this time, is
    terminated: another server process may have got its number. One that waits for a standby is not,
    because its commit would become visible without being on the standby.
    """
    parameters = {
        "number": backend.number,
        "started": backend.started,
        "server_started": backend.server_started,
        "seconds": seconds,
    }
    return Query(_END_BACKEND, parameters, "get")


def wait_for_standby() -> Query:
    """Commit something after what was read, so that a synchronous standby has both."""
    return Query(_WAIT_FOR_STANDBY, {}, "get")


@cache
def _find_write() -> Select[Any]:
    return _select_write().where(executions.c.id == bindparam("id", type_=executions.c.id.type))


@cache
def _find_writes() -> ManyRowsStatement:
    rows = row_source([bindparam("id", type_=executions.c.id.type)])
    return ManyRowsStatement(_select_write().where(rows.contain(executions.c.id, "id")), rows)


def _select_write() -> Select[Any]:
    history = execution_history.c
    logged = (history[name] for name in _HISTORY_COLUMNS.values())
    other = execution_history.alias("other").c
    of_execution = other.execution_id == executions.c.id
    last = select(func.max(other.seq)).where(of_execution).scalar_subquery()
    started = (
        select(other.occurred_at)
        .where(of_execution, other.to_status == "running", other.attempt == history.attempt)
        .scalar_subquery()
    )
    return select(
        *(*ROW, database_now(), executions.c.write_token),
        *((history.seq == last).label("is_last"), started.label("started"), *logged),
    ).select_from(executions.outerjoin(execution_history, _wrote()))


@cache
def _find_batch_write(rule: Rule) -> Select[Any]:
    history = execution_history.c
    found = select(*ROW, history.to_status, history.attempt)
    # As in the condition of the index on the token.
    targets = dict.fromkeys(move.target for move in rule.moves if move.target)
    return found.join_from(executions, execution_history, _wrote()).where(
        history.to_status.in_([status_literal(target) for target in targets])
    )


def _wrote() -> ColumnElement[bool]:
    """Return whether a row of the history is by the write with the token."""
    history = execution_history.c
    token = bindparam("token", type_=history.write_token.type)
    return and_(history.execution_id == executions.c.id, history.write_token == token)


@cache
def _find_log_entry() -> Select[Any]:
    entry = execution_logs.c
    execution_id, id = (bindparam(name, type_=entry.id.type) for name in ("execution_id", "id"))
    return select(*LOG_ROW).where(entry.execution_id == execution_id, entry.id == id)
