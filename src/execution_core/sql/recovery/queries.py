"""Queries for what a write leaves in the database, used by `verify_commit`."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    column,
    false,
    func,
    literal_column,
    select,
    table,
)

from ...core.state_machine import FINISHED
from ..schema.expressions import database_now
from ..schema.tables import execution_history, execution_logs, executions
from ..statements.queries import Query
from ..statements.rows import FIELDS, LOG_ROW, ROW

TERMINATE_TIMEOUT_MS: Final = "5000"
"""How long a backend process may take to end."""

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


def row_after_write(row: Sequence[Any], token: str) -> tuple[Sequence[Any], bool, datetime]:
    """Return an execution's row, whether the write with this token committed, and the time.

    If others changed the row since, the history's values replace those of the row.
    """
    current, now, last_token, *logged = [*row[: len(ROW)]], *row[len(ROW) :]
    if logged[0] is None:
        return current, last_token == token, now
    fields = dict(zip(FIELDS, current, strict=False))
    written = dict(zip(_HISTORY_COLUMNS, logged, strict=True))
    if [fields["status"], fields["attempts"]] != [written["status"], written["attempts"]]:
        finished = written["status"] in FINISHED
        written["completed_at"] = written["updated_at"] if finished else None
        current[: len(FIELDS)] = (fields | written).values()
    return current, True, now


def find_batch_write(token: str) -> Query:
    """Select the executions that one batch changed, for `row_if_unchanged`."""
    return Query(_find_batch_write(), {"token": token}, "get")


def row_if_unchanged(row: Sequence[Any]) -> Sequence[Any] | None:
    """Return an execution's row, or None if others changed its status or attempt since."""
    current, written = row[: len(ROW)], [*row[len(ROW) :]]
    unchanged = written == [current[FIELDS.index(field)] for field in ("status", "attempts")]
    return current if unchanged else None


def find_log_entry(execution_id: str, id: str) -> Query:
    """Select the log entry with this id."""
    parameters = {"execution_id": execution_id, "id": id}
    return Query(_find_log_entry(), parameters, "get", execution_id)


def terminate_backend(number: int, age: timedelta) -> Query:
    """Select the answering backend's number, and whether an abandoned one of the same role ended.

    The latter is None if there is no such process. A backend that is younger than `age` has got the
    number by chance, unless the server's clock was set back: it is not terminated, and the answer
    is False.
    """
    return Query(_terminate_backend(), {"number": number, "age": age.total_seconds()}, "get")


@cache
def _find_write() -> Select[Any]:
    history = execution_history.c
    logged = (history[name] for name in _HISTORY_COLUMNS.values())
    return (
        select(*ROW, database_now(), executions.c.write_token, *logged)
        .select_from(executions.outerjoin(execution_history, _wrote()))
        .where(executions.c.id == bindparam("id", type_=executions.c.id.type))
    )


@cache
def _find_batch_write() -> Select[Any]:
    found = select(*ROW, execution_history.c.to_status, execution_history.c.attempt)
    return found.select_from(executions.join(execution_history, _wrote()))


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


@cache
def _terminate_backend() -> Select[Any]:
    names = ("pid", "usesysid", "datid", "backend_start")
    activity = table("pg_stat_activity", *(column(name) for name in names))
    own, other = activity.alias("own"), activity.alias("other")
    same = [own.c[name] == other.c[name] for name in ("usesysid", "datid")]
    # Not the answering backend itself, which may have got the number of one that has ended.
    number = and_(other.c.pid == bindparam("number", type_=Integer), other.c.pid != own.c.pid)
    age = func.make_interval(0, 0, 0, 0, 0, 0, bindparam("age", type_=Double))
    terminated = case(
        (other.c.pid.is_(None), None),
        (
            other.c.backend_start <= func.clock_timestamp() - age,
            func.pg_terminate_backend(other.c.pid, literal_column(TERMINATE_TIMEOUT_MS, Integer)),
        ),
        else_=false(),
    )
    return (
        select(own.c.pid, terminated)
        .select_from(own.outerjoin(other, and_(number, *same)))
        .where(own.c.pid == func.pg_backend_pid())
    )
